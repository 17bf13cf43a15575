"""Under gradient checkpointing, edits are computed again and a record is made once."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qkvit.analysis import Noise, OtherImage, Zero, attention_door, intervene, record

EDITS = {(0, "key"): Zero(), (1, "attention"): OtherImage(heads=0), (2, "value"): Noise(seed=3, tokens=slice(1, None))}


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros(()) if parameter.grad is None else parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["inside", "after", "in another thread"])
def test_gradient_checkpointing_computes_the_edited_layers_again(family_model, pixels, reentrant, where):
    check_edits(family_model("ViT"), pixels, reentrant, where)


def test_every_family_computes_its_edited_layers_again(family, family_model, pixels):
    check_edits(family_model(family), pixels, reentrant=False, where="inside")


def check_edits(model: nn.Module, pixels: torch.Tensor, reentrant: bool, where: str) -> None:
    model.train()

    def run(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        model.zero_grad()
        torch.manual_seed(0)  # DINOv3 shifts positions at random while it is trained
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with intervene(model, EDITS), record(model, keep="all") as recording:
            model(pixels)  # another call: noise is drawn anew for each
            loss = model(pixels).last_hidden_state.square().sum()
            if where == "inside":
                loss.backward()
            elif where == "in another thread":
                thread = threading.Thread(target=loss.backward)
                thread.start()
                thread.join()
        if where == "after":
            loss.backward()
        return gradients(model), len(recording.calls[0])

    expected, calls = run(checkpointing=False)
    found, calls_again = run(checkpointing=True)
    assert calls == calls_again == 2
    assert sum(gradient.abs().sum() for gradient in found) > 0
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other)
    assert model.config._attn_implementation == "sdpa"


def test_an_explicit_record_survives_gradient_checkpointing(tiny_model, pixels):
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    with record(model, 1, "attention", detach=False, explicit=True) as recording:
        loss = model(pixels).logits.square().sum()
    (gradient,) = torch.autograd.grad(loss, [recording[1].attention])
    model.gradient_checkpointing_disable()
    with record(model, 1, "attention", detach=False, explicit=True) as recording:
        loss = model(pixels).logits.square().sum()
    torch.testing.assert_close(torch.autograd.grad(loss, [recording[1].attention])[0], gradient)


def test_checkpointing_that_is_enabled_inside_does_not_record_twice(tiny_model, pixels):
    model = tiny_model().train()
    with record(model, keep="all") as recording:
        model.gradient_checkpointing_enable()
        model(pixels).logits.sum().backward()
        assert len(recording.calls[1]) == 1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_edits_that_the_backward_pass_would_lose_are_refused(tiny_model, pixels, raises_sentence, reentrant, own):
    """Checkpointing that was enabled inside, or a user's own: the layers computed again would be without the edits."""
    model = tiny_model().train()
    with raises_sentence(ValueError, "QKViTAttention", "before the context is entered"), intervene(model, EDITS):
        if own:
            pixels.requires_grad_()
            checkpoint(lambda x: model(x).logits, pixels, use_reentrant=reentrant)
        else:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model(pixels)


def test_a_recomputation_that_an_edit_cannot_reach_raises(tiny_model, pixels, raises_sentence, monkeypatch):
    """By a checkpointing that is not torch's, and so not refused in the forward pass."""
    monkeypatch.setattr(attention_door, "_refuse_unknown_checkpoint", lambda module: None)
    model = tiny_model().train()
    failures = []

    def backward(loss: torch.Tensor) -> None:
        try:
            loss.backward()
        except ValueError as error:
            failures.append(error)

    with intervene(model, {(0, "key"): Zero()}):
        model.gradient_checkpointing_enable()
        thread = threading.Thread(target=backward, args=(model(pixels).logits.sum(),))  # as on a GPU
        thread.start()
        thread.join()
    (error,) = failures
    with raises_sentence(ValueError, "enable gradient checkpointing before the context"):
        raise error
