"""int8 weights by torchao, also through transformers' own `quantization_config`, on the CPU."""

import copy

import pytest
import torch

from qkvit import QKViTForImageClassification

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed; see .ci/run")

SCHEMES = {
    "weight-only": quantization.Int8WeightOnlyConfig,
    "dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
}
ASKED = {"output_attentions": True, "output_qkv": True}


@pytest.fixture(params=SCHEMES)
def scheme(request):
    """A way to quantise."""
    return SCHEMES[request.param]()


def quantised(model, scheme):
    small = copy.deepcopy(model)
    quantization.quantize_(small, scheme)
    return small


def is_int8(layer: torch.nn.Linear) -> bool:
    return getattr(layer.weight, "qdata", layer.weight).dtype == torch.int8


@pytest.mark.parametrize("mlp_type", ["mlp", "swiglu"])
def test_every_linear_layer_is_quantised_and_the_logits_stay_close(tiny_model, pixels, scheme, mlp_type):
    model = tiny_model(num_hidden_layers=2, mlp_type=mlp_type)
    small = quantised(model, scheme)
    layers = [layer for layer in small.modules() if isinstance(layer, torch.nn.Linear)]
    assert all(is_int8(layer) for layer in layers)
    assert len(layers) == 2 * (6 + (mlp_type == "swiglu")) + 2  # per layer; the patches and the classifier
    with torch.no_grad():
        found, expected = small(pixels).logits, model(pixels).logits
    assert not torch.equal(found, expected)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.995


def test_a_quantised_model_gives_q_k_v_and_maps_and_they_belong_together(tiny_model, pixels, scheme):
    model = quantised(tiny_model(num_hidden_layers=2), scheme)
    with torch.no_grad():
        out = model(pixels, **ASKED)
        assert torch.equal(model(pixels).logits, out.logits)
    scores = out.queries[1] @ out.keys[1].transpose(-1, -2) * 16**-0.5
    torch.testing.assert_close(out.attentions[1], scores.softmax(-1))


def test_a_quantised_model_saves_and_loads_as_every_quantised_model_of_transformers(
    tiny_model, pixels, scheme, tmp_path
):
    from transformers import TorchAoConfig

    model = tiny_model(num_hidden_layers=2)
    model.save_pretrained(tmp_path / "float32")
    small = QKViTForImageClassification.from_pretrained(tmp_path / "float32", quantization_config=TorchAoConfig(scheme))
    assert is_int8(small.qkvit.layers[0].attention.q_proj)
    small.save_pretrained(tmp_path / "int8")
    loaded = QKViTForImageClassification.from_pretrained(tmp_path / "int8")
    assert is_int8(loaded.qkvit.layers[0].attention.q_proj)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, small(pixels).logits, rtol=0, atol=0)
