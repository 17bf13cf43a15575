"""Under autocast: what a pass converts, and what is kept of it."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from qkvit.modeling.precision_qkvit import cast_once, conversions_of_a_pass

AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


class Conversions(TorchDispatchMode):
    """How often the weight of the last layer's MLP is converted."""

    def __init__(self, model) -> None:
        super().__init__()
        self.weight = model.qkvit.layers[-1].mlp.up_proj.weight
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0] is self.weight:
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_passes_that_share_a_context_convert_twice_and_then_no_more(tiny_model, pixels):
    model = tiny_model().eval()
    with Conversions(model) as conversions, torch.no_grad():
        with torch.autocast(**AUTOCAST):
            counts = []
            for _ in range(4):
                model(pixels)
                counts.append(conversions.count)
        assert counts == [1, 2, 2, 2]  # not kept by the first pass, kept by the second
        for _ in range(3):
            with torch.autocast(**AUTOCAST):
                model(pixels)
        assert conversions.count == 5


def test_the_next_context_sees_changed_weights(tiny_model, pixels):
    model = tiny_model().eval()
    with torch.no_grad(), torch.autocast(**AUTOCAST):
        for _ in range(3):
            before = model(pixels).logits
    with torch.no_grad():
        model.qkvit.layers[0].mlp.up_proj.weight.mul_(3)
        with torch.autocast(**AUTOCAST):
            after = model(pixels).logits
    assert not torch.equal(before, after)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_kept_or_not_it_is_the_same_to_the_bit(tiny_model, pixels, mode):
    model = tiny_model().eval()
    with torch.autocast(**AUTOCAST):
        expected = model(pixels).logits.detach()
    with mode(), torch.autocast(**AUTOCAST):
        assert all(torch.equal(model(pixels).logits, expected) for _ in range(3))


def test_autocast_keeps_conversions_again_after_a_pass_that_fails(tiny_model, pixels):
    model = tiny_model().eval()

    def fail(*_):
        assert not torch.is_autocast_cache_enabled()
        raise RuntimeError("on purpose")

    model.qkvit.layers[-1].register_forward_hook(fail)
    with torch.no_grad(), torch.autocast(**AUTOCAST):
        with pytest.raises(RuntimeError, match="on purpose"):
            model(pixels)
        assert torch.is_autocast_cache_enabled()  # asked here: autocast restores it where it ends


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast(**AUTOCAST),  # with gradients
        torch.no_grad,  # without autocast
    ],
    ids=["gradients", "no autocast"],
)
def test_elsewhere_nothing_is_changed(around):
    with around():
        assert isinstance(conversions_of_a_pass(torch.zeros(1, 2, 4)), nullcontext)


def test_who_keeps_nothing_stays_with_that():
    with torch.no_grad(), torch.autocast(**AUTOCAST, cache_enabled=False):
        with conversions_of_a_pass(torch.zeros(1, 2, 4)):
            pass
        assert not torch.is_autocast_cache_enabled()


def test_tokens_that_are_only_thought_of_are_left_alone():
    with FakeTensorMode() as mode, torch.no_grad(), torch.autocast(**AUTOCAST):
        assert isinstance(conversions_of_a_pass(mode.from_tensor(torch.zeros(1, 2, 4))), nullcontext)


def test_an_input_is_converted_under_autocast_alone():
    tokens = torch.zeros(1, 2, 4)
    assert cast_once(tokens) is tokens
    with torch.autocast(**AUTOCAST):
        assert cast_once(tokens).dtype == torch.bfloat16
