"""What `collect` cannot take the numbers of is refused, and what looks like it is not."""

import pytest
import torch
import transformers


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rollout", [False, True])
def test_hidden_tokens_are_refused_and_a_mask_that_hides_nothing_is_not(
    model, quiet, raises_sentence, implementation, rollout
):
    """They would count as queries. Of these implementations, one hides by False and one by the least number."""
    model.set_attn_implementation(implementation)
    images, seen = torch.rand(2, 3, 16, 16), torch.ones(2, 16, dtype=torch.bool)
    options = {"forward": lambda m, pixels: m(pixels, attention_mask=seen), "layers": 1, "rollout": rollout}
    torch.testing.assert_close(
        quiet(model, [images], **options).mean("entropy"), quiet(model, [images], layers=1).mean("entropy")
    )
    seen[1, 12:] = False
    with raises_sentence(ValueError, "the attention mask hides tokens", "without padding"):
        quiet(model, [images], **options)


def test_a_bias_of_relative_positions_hides_nothing(quiet):
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BeitConfig(**fields, image_size=16, patch_size=4, use_relative_position_bias=True)
    model = transformers.BeitModel(config, add_pooling_layer=False).eval()
    for name, parameter in model.named_parameters():
        if "relative_position_bias_table" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    images = torch.rand(2, 3, 16, 16)
    entropy = quiet(model, [images], rollout=True).mean("entropy")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(model(images, output_attentions=True).attentions).double()  # (layers, B, H, N, N)
    torch.testing.assert_close(entropy, torch.special.entr(maps).sum(-1).mean(dim=(1, 3)), rtol=1e-4, atol=1e-5)
