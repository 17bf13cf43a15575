"""transformers' `vit_mae`, the encoder: nothing hidden, and the patches in their own order."""

import pytest
import torch
from harness import CHECKS, MLP, SIZE, Case, assert_same_tensors, called, images
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from qkvit.modeling.conversion import convert, export

DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


def model(model_class=ViTMAEModel, **options):
    return model_class(ViTMAEConfig(**{**SIZE, **MLP, **DECODER, "mask_ratio": 0.0, **options}))


def in_order(model, pixels, mask):
    """Noise that grows: their shuffling, which sorts by it, leaves the patches where they are."""
    count = pixels.shape[-2] * pixels.shape[-1] // 16
    return called(model, pixels, mask, noise=torch.arange(float(count)).expand(len(pixels), -1))


CASES = [
    Case("vit_mae", "encoder", model, run=in_order),
    Case("vit_mae", "no biases of Q, K, V", lambda: model(qkv_bias=False, hidden_act="relu"), run=in_order),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_vit_mae(case, check, tmp_path):
    CHECKS[check](case, tmp_path)


def test_undoing_their_random_order_gives_the_same_tokens():
    theirs, pixels = CASES[0].model(), images(16, 16)
    with torch.no_grad():
        out, ours = theirs(pixels), convert(theirs)(pixels).last_hidden_state
    patches = out.last_hidden_state[:, 1:].gather(1, out.ids_restore[..., None].expand(-1, -1, 16))
    assert torch.allclose(ours[:, 1:], patches, atol=1e-12)
    assert torch.allclose(ours[:, 0], out.last_hidden_state[:, 0], atol=1e-12)


def test_the_mask_ratio_does_not_matter():
    assert convert(model(mask_ratio=0.75)).config.patch_drop_rate == 0.0


def test_the_decoder_is_left_out_and_named_and_the_encoder_comes_back(tmp_path, caplog):
    model(ViTMAEForPreTraining).save_pretrained(tmp_path / "source")
    ours = convert(tmp_path / "source")
    assert "decoder.* (" in caplog.text
    assert_same_tensors(tmp_path / "source", export(ours, tmp_path / "out"), apart=r"^decoder\.")
