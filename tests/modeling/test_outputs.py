"""The outputs: `keys` and `values` are fields where they were asked for, and the dictionary's methods all the same."""

import copy
import dataclasses
import pickle

import pytest
import torch
from accelerate.utils import recursively_apply
from torch.utils import _pytree as pytree
from transformers.trainer_pt_utils import nested_detach

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from qkvit.modeling.outputs_qkvit import (
    QKViTBackboneOutput,
    QKViTClassifierOutput,
    QKViTMaskedImageModelingOutput,
    QKViTModelOutput,
)

MODELS = (QKViTModel, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTBackbone)
OUTPUTS = (QKViTModelOutput, QKViTClassifierOutput, QKViTMaskedImageModelingOutput, QKViTBackboneOutput)


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model(request, tiny_model) -> torch.nn.Module:
    return tiny_model(request.param)


@pytest.fixture
def out(model, pixels):
    return model(pixels, output_attentions=True, output_qkv=True, output_hidden_states=True)


def names(output) -> list[str]:
    return list(iter(output))


def assert_same(found, expected) -> None:
    """The same class, names and tensors."""
    assert type(found) is type(expected)
    assert names(found) == names(expected)
    for name in names(expected):
        first, second = found[name], expected[name]
        if isinstance(second, tuple):
            assert type(first) is tuple
            assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        else:
            assert torch.equal(first, second)


def test_no_attribute_hides_a_method_from_the_compiler(out):
    """torch 2.10 takes what `__dict__` holds under a method's name for the method, and cannot take the output apart."""
    assert not vars(out).keys() & set(dir(dict))


def test_keys_and_values_are_the_tuples_and_answer_as_the_methods(out):
    assert isinstance(out.keys, tuple)
    assert isinstance(out.values, tuple)
    assert len(out.queries) == len(out.keys) == len(out.values) == 3
    assert out.keys[0].shape == out.values[0].shape == out.queries[0].shape == (2, 2, out.attentions[0].shape[-1], 16)
    assert list(out.keys()) == names(out)
    assert len(list(out.values())) == len(names(out)) == len(list(out.items()))
    assert dict(out).keys() == set(out.keys())


def test_without_them_keys_and_values_are_the_methods_alone(model, pixels):
    out = model(pixels)
    assert callable(out.keys)
    assert not isinstance(out.keys, tuple)
    assert list(out.keys()) == names(out)
    assert not {"queries", "keys", "values", "attentions", "hidden_states"} & set(out.keys())
    assert next(iter(out.values())) is out[0]


def test_items_by_name_by_index_and_by_attribute_are_the_same(out):
    for index, name in enumerate(names(out)):
        assert out[name] is out[index]
        attribute = getattr(out, name)
        if isinstance(attribute, tuple):
            assert all(first is second for first, second in zip(attribute, out[name], strict=True))
        else:
            assert attribute is out[name]


def test_to_tuple_holds_every_item_in_order(out):
    items = out.to_tuple()
    assert len(items) == len(names(out))
    assert all(item is out[index] for index, item in enumerate(items))


def test_return_dict_false_gives_the_same_as_a_plain_tuple(model, pixels):
    out = model(pixels, output_qkv=[0])
    plain = model(pixels, output_qkv=[0], return_dict=False)
    assert type(plain) is tuple
    assert len(plain) == len(out.to_tuple())
    index = names(out).index("keys")
    assert torch.equal(plain[index][0], out.keys[0])
    assert plain[index][1:] == (None, None)


@pytest.mark.parametrize("model_class", MODELS)
def test_return_dict_false_in_the_configuration_does_the_same(tiny_model, pixels, model_class):
    expected = tiny_model(model_class)(pixels, output_qkv=[0]).to_tuple()
    plain = tiny_model(model_class, return_dict=False)(pixels, output_qkv=[0])
    assert type(plain) is tuple
    torch.testing.assert_close(plain, expected)


def detached(out):
    return type(out)(**{name: nested_detach(out[name]) for name in names(out)})


def test_an_output_survives_pickling(out):
    assert_same(pickle.loads(pickle.dumps(detached(out))), out)


def test_an_output_can_be_copied(out):
    assert_same(copy.copy(out), out)
    assert_same(copy.deepcopy(detached(out)), out)
    assert_same(dataclasses.replace(out), out)


def test_an_output_without_qkv_survives_pickling_and_copying(model, pixels):
    with torch.no_grad():
        out = model(pixels)
    for found in (pickle.loads(pickle.dumps(out)), copy.deepcopy(out)):
        assert_same(found, out)
        assert callable(found.keys)


def test_an_output_is_a_pytree(out):
    leaves, structure = pytree.tree_flatten(out)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert_same(pytree.tree_unflatten(leaves, structure), out)
    doubled = pytree.tree_map(lambda tensor: 2 * tensor, out)
    assert type(doubled) is type(out)
    assert torch.equal(doubled.keys[1], 2 * out.keys[1])


def test_accelerate_takes_an_output_apart_and_puts_it_together(out):
    found = recursively_apply(lambda tensor: tensor + 1, out)
    assert type(found) is type(out)
    assert torch.equal(found.values[0], out.values[0] + 1)
    assert torch.equal(found.queries[2], out.queries[2] + 1)


def test_trainers_functions_take_the_items(out):
    items = nested_detach(tuple(out[name] for name in out.keys()))  # noqa: SIM118
    assert len(items) == len(names(out))
    assert not any(item.requires_grad for item in pytree.tree_leaves(items))


@pytest.mark.parametrize("output_class", OUTPUTS)
def test_an_output_made_by_hand_works_as_one_of_a_model(output_class):
    tensors = (torch.ones(1), None)
    output = output_class(keys=tensors)
    assert output.keys == tensors
    assert list(output.keys()) == ["keys"]
    assert list(output.values()) == [tensors]
    assert output["keys"] is tensors
    output.values = tensors
    assert output.values == tensors
    assert list(output.keys()) == ["keys", "values"]
    assert "keys=None" in repr(output_class())


def test_what_is_made_of_shown_keys_is_a_plain_tuple(out):
    made = [
        type(out.keys)(tensor for tensor in out.keys),
        nested_detach(out.keys),
        recursively_apply(lambda tensor: tensor, out.keys),
        pytree.tree_map(lambda tensor: tensor, out.keys),
        copy.copy(out.keys),
        pickle.loads(pickle.dumps(nested_detach(out.keys))),
        out.keys[:],
    ]
    for tensors in made:
        assert type(tensors) is tuple
        assert all(torch.equal(*pair) for pair in zip(tensors, out.keys, strict=True))


def test_shown_keys_may_be_put_into_another_output(out):
    other = QKViTModelOutput(values=out.values, keys=out.keys)
    assert type(other["keys"]) is tuple
    assert list(other.keys()) == ["keys", "values"]
    assert len(pytree.tree_leaves(other)) == 6


def test_items_stand_in_the_order_of_the_fields(out):
    fields = [field.name for field in dataclasses.fields(out)]
    assert names(out) == [name for name in fields if name in out]


def test_items_may_be_replaced_while_they_are_gone_through(out):
    """DeepSpeed's ZeRO-3 does so in its hooks."""
    names = list(out.keys())
    for name in out.keys():  # noqa: SIM118 (as it is written there)
        out[name] = out[name]
    assert list(out.keys()) == names


def test_fields_may_be_read_and_put_into_a_copy(model, pixels):
    """FSDP2 does so when it changes the type of what a model returns."""
    for options in ({}, {"output_qkv": True}):
        out = model(pixels, **options)
        fields = {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
        copied = dataclasses.replace(out, **fields)
        assert list(copied.keys()) == list(out.keys())
        assert all(torch.equal(copied[name], out[name]) for name in out if name in ("logits", "pooler_output"))


def test_printing_an_output_shows_its_fields(out):
    text = repr(out)
    assert text.startswith(type(out).__name__)
    assert "keys=" in text
