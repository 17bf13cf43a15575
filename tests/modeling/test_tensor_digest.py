"""Two models are the same where every bit of their weights is, under the same names."""

import torch

from qkvit import QKViTModel
from qkvit.modeling.tensor_digest import tensor_digest


def test_numbers_in_another_order_are_another_model(tiny_model):
    model = tiny_model(QKViTModel)
    before = tensor_digest(model.named_parameters())
    assert tensor_digest(reversed([*model.named_parameters()])) == before
    with torch.no_grad():
        weight = model.layers[1].attention.q_proj.weight
        weight.copy_(weight.flip(0))
    assert tensor_digest(model.named_parameters()) != before


def test_names_shapes_and_types_count_and_the_layout_in_memory_does_not():
    weight = torch.arange(4.0).reshape(2, 2)
    digests = [
        tensor_digest([pair])
        for pair in [("a", weight), ("b", weight), ("a", weight.flatten()), ("a", weight.view(torch.int32))]
    ]
    assert len(set(digests)) == 4
    assert tensor_digest([("a", weight.t().contiguous().t())]) == digests[0]
    assert tensor_digest([("a", weight.bfloat16())]) != digests[0]
