"""Random weights as a control: noise of the same scale, and nothing of what was learned."""

import torch
import transformers

from qkvit import QKViTModel
from qkvit.analysis.random_control import with_random_weights


def test_matrices_become_noise_of_their_scale_and_vectors_stay(tiny_model):
    model = tiny_model(QKViTModel)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    noisy = with_random_weights(model, seed=1)
    for name, parameter in noisy.named_parameters():
        if parameter.ndim < 2:
            assert torch.equal(parameter, before[name]), name
            continue
        assert not torch.equal(parameter, before[name]), name
        together = torch.stack([parameter.flatten(), before[name].flatten()])
        assert torch.corrcoef(together)[0, 1].abs() < 5 / parameter.numel() ** 0.5, name
        if parameter.numel() > 500:
            torch.testing.assert_close(parameter.std(), before[name].std(), rtol=0.15, atol=0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_seed_gives_the_same_noise_again_and_another_seed_other_noise(tiny_model):
    model = tiny_model(QKViTModel)
    one, again, other = (with_random_weights(model, seed).layers[0].attention.q_proj.weight for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_class_token_of_one_dimension_is_drawn_too():
    """It is learned, as those are that other models give three."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=4))
    noisy = dict(with_random_weights(model).named_parameters())
    (token,) = [name for name in noisy if name.endswith("class_embedding")]
    assert not torch.equal(noisy[token], model.get_parameter(token))
