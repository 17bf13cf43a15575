"""Each parameter has its role, and is in exactly one group."""

import pytest
import torch
import transformers
from transformers import ViTConfig, ViTForImageClassification

from qkvit import QKViTForImageClassification
from qkvit.training import TrainingRefusedError
from qkvit.training.optimisation.lamb import Lamb
from qkvit.training.optimisation.optimizers import optimizer_class
from qkvit.training.optimisation.parameter_groups import check_groups, parameter_groups, roles, set_trainable
from qkvit.training.recipe import Optimisation


@pytest.fixture
def everything(tiny_model):
    return tiny_model(
        QKViTForImageClassification,
        qk_norm=True,
        layer_scale_init_value=0.1,
        use_distillation_token=True,
        num_register_tokens=2,
    )


@pytest.fixture
def theirs():
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **size))


def decayed(model, settings=None):
    groups = parameter_groups(model, settings or Optimisation(), 1e-3, 0.1)
    return {name: group["weight_decay"] for group in groups for name in group["names"]}


def test_only_matrices_decay(everything):
    decays = decayed(everything)
    for name, parameter in everything.named_parameters():
        matrix = parameter.ndim == 2
        assert (decays[name] > 0) == matrix, name


def test_transformers_norms_do_not_decay(theirs):
    decays = decayed(theirs)
    assert decays["vit.layernorm.weight"] == 0
    assert all(decays[name] == 0 for name in decays if "layernorm" in name)
    assert any(decays[name] > 0 for name in decays)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"image_size": 32, "patch_size": 8, "layer_scale_init_value": 0.1, "use_relative_position_bias": True}
WINDOWS = {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
FAMILIES = {
    "Beit": SMALL,
    "Data2VecVision": SMALL,
    "Swin": WINDOWS,
    "Swinv2": WINDOWS,
    "ConvNext": {"hidden_sizes": [8] * 4, "depths": [1] * 4, "layer_scale_init_value": 0.1},
    "PoolFormer": {"hidden_sizes": [8] * 4, "depths": [1] * 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_and_positions_of_other_families_do_not_decay(family):
    config = getattr(transformers, f"{family}Config")(num_labels=3, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    decays, found = decayed(model), roles(model)
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim in (2, 4) and "position" not in name
        assert (decays[name] > 0) == matrix, name
        if ".output.dense." in name:
            assert len(found[name] & {"o", "mlp"}) == 1
            assert ("o" in found[name]) == (".attention." in name)


@pytest.mark.parametrize("fixture", ["everything", "theirs"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_parameter_is_in_exactly_one_group(request, fixture, layer_decay):
    model = request.getfixturevalue(fixture)
    groups = parameter_groups(model, Optimisation(layer_decay=layer_decay), 1e-3, 0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_group_that_forgets_or_repeats_is_found(everything):
    groups = parameter_groups(everything, Optimisation(), 1e-3, 0.1)
    with pytest.raises(AssertionError, match="exactly one group"):
        check_groups(everything, [{"params": groups[0]["params"][1:]}, *groups[1:]])
    with pytest.raises(AssertionError, match="exactly one group"):
        check_groups(everything, [*groups, {"params": groups[0]["params"][:1]}])
    with pytest.raises(AssertionError, match="not of this model"):
        check_groups(everything, [*groups, {"params": [torch.nn.Parameter(torch.zeros(1))]}])


def test_layer_wise_rates(tiny_model):
    model = tiny_model(QKViTForImageClassification)  # 3 layers
    groups = parameter_groups(model, Optimisation(layer_decay=0.5), 1.0, 0.1)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["classifier.weight"] == rates["qkvit.norm.weight"] == 1
    assert [rates[f"qkvit.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert rates["qkvit.embeddings.class_token"] == rates["qkvit.embeddings.patch_projection.bias"] == 0.0625
    assert groups[0]["lr"] == 1, "what is shown as the learning rate is the head's"
    of_none = parameter_groups(model, Optimisation(layer_decay=0.0), 1.0, 0.1)
    assert {group["lr"] for group in of_none} == {0.0, 1.0}


def test_what_is_before_the_layers_and_what_is_after_them(tiny_model):
    model = tiny_model(QKViTForImageClassification, use_pre_norm=True, pooling="attention", pooler_act="tanh")
    groups = parameter_groups(model, Optimisation(layer_decay=0.5), 1.0, 0.1)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["qkvit.pre_norm.weight"] == rates["qkvit.embeddings.class_token"] == 0.0625
    assert {rate for name, rate in rates.items() if ".pooler." in name} == {1}
    assert "qkvit.pooler.attention.probe" in rates


FOUR = {"depths": [1] * 4}
LAYERS_IN_STAGES = {"Swin": WINDOWS, "ConvNext": FOUR, "PoolFormer": FOUR, "ResNet": FOUR}


@pytest.mark.parametrize("family", LAYERS_IN_STAGES)
def test_layers_that_are_not_numbered_from_first_to_last_have_no_rates(family, raises_sentence):
    config = getattr(transformers, f"{family}Config")(num_labels=3, **LAYERS_IN_STAGES[family])
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    args = transformers.TrainingArguments(output_dir="unused", use_cpu=True)
    optimizer_class(model, Optimisation(), args)
    with raises_sentence(TrainingRefusedError, "layer_decay", config.model_type, "--set layer_decay=null"):
        optimizer_class(model, Optimisation(layer_decay=0.5), args)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("all", lambda name: True),
        ("only q", lambda name: ".q_" in name),
        ("only q, head", lambda name: ".q_" in name or "classifier" in name),
        ("all but k", lambda name: ".k_" not in name),
        ("only layer.1", lambda name: ".layers.1." in name),
        ("all but norm, *.bias", lambda name: "norm" not in name and not name.endswith("bias")),
    ],
)
def test_freezing_by_name(everything, rule, expected):
    trained = set_trainable(everything, rule)
    assert trained == [name for name, parameter in everything.named_parameters() if parameter.requires_grad]
    assert set(trained) == {name for name, _ in everything.named_parameters() if expected(name)}
    parameter_groups(everything, Optimisation(), 1e-3, 0.1)


@pytest.mark.parametrize(
    "rule", ["some", "only", "only qq", "all but embeddings, layer.0, layer.1, layer.2, norm, head, *"]
)
def test_a_rule_that_cannot_be_is_refused(everything, raises_sentence, rule):
    with raises_sentence(TrainingRefusedError, "trainable="):
        set_trainable(everything, rule)


def test_every_layer_of_both_families_has_q_k_v_and_o(everything, theirs):
    for model, depth in ((everything, 3), (theirs, 2)):
        found = roles(model)
        for role in ("q", "k", "v", "o"):
            matrices = [name for name, tags in found.items() if role in tags and not tags & {"norm", "bias"}]
            assert len(matrices) == depth, (role, matrices)


def test_lamb_scales_its_step_to_the_weights():
    for size in (1.0, 100.0):
        weight = torch.nn.Parameter(torch.full((4,), size))
        weight.grad = torch.tensor([1.0, 2.0, -3.0, 0.5])
        Lamb([{"params": [weight], "weight_decay": 0.01}], lr=0.1).step()
        assert (weight.detach() - size).norm() == pytest.approx(0.1 * size * 2, rel=1e-5)


def test_lamb_is_adam_without_decay():
    start = torch.tensor([1.0, -2.0, 3.0])
    ours, reference = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = Lamb([ours], lr=0.1, eps=1e-8), torch.optim.Adam([reference], lr=0.1, eps=1e-8)
    for step in range(5):
        for weight, optimizer in zip((ours, reference), optimizers, strict=True):
            weight.grad = torch.sin(torch.arange(3.0) + step)
            optimizer.step()
    torch.testing.assert_close(ours, reference)
