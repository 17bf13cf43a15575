"""LayerNorm in one kernel each way equals torch's; without a GPU, Triton's interpreter runs the kernels."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from qkvit.modeling import fused_norm_qkvit, shortcuts_qkvit
from qkvit.modeling.fused_norm_qkvit import FusedNorm, can_fuse
from qkvit.modeling.layers_qkvit import QKViTLayer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def made(width: int, tokens: int, seed: int, offset: float = 0.0) -> tuple[nn.LayerNorm, torch.Tensor, torch.Tensor]:
    """A norm, tokens that ask for gradients, and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.LayerNorm(width)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(width, generator=generator))
        norm.bias.copy_(torch.randn(width, generator=generator))
    x = torch.randn(2, tokens, width, generator=generator) + offset
    return norm.to(DEVICE), x.to(DEVICE).requires_grad_(), torch.randn(x.shape, generator=generator).to(DEVICE)


def fused(norm: nn.LayerNorm, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return FusedNorm.apply(x, norm.weight, norm.bias, norm.eps, dtype)


def exact(norm: nn.LayerNorm, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    """In float64 on the CPU: the result, and the gradients of tokens, weight and bias."""
    inputs = [it.detach().cpu().double().requires_grad_() for it in (x, norm.weight, norm.bias)]
    normed = nn.functional.layer_norm(inputs[0], x.shape[-1:], *inputs[1:], norm.eps)
    return [normed.detach(), *torch.autograd.grad(normed, inputs, gradient.cpu().double())]


@given(
    width=some.sampled_from([1, 2, 24, 48, 100]),
    tokens=some.integers(1, 9),
    offset=some.sampled_from([0.0, 10.0]),
    programs=some.sampled_from([1, 4, 1000]),
    seed=some.integers(0, 1000),
)
def test_it_is_layer_norm_and_so_are_its_gradients(width, tokens, offset, programs, seed):
    norm, x, gradient = made(width, tokens, seed, offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_norm_qkvit, "PROGRAMS", programs)
        normed = fused(norm, x)
        found = [normed, *torch.autograd.grad(normed, (x, norm.weight, norm.bias), gradient)]
    plain = norm(x)
    of_torch = [plain, *torch.autograd.grad(plain, (x, norm.weight, norm.bias), gradient)]
    for ours, theirs, true in zip(found, of_torch, exact(norm, x, gradient), strict=True):
        error, of_plain = ((it.detach().cpu().double() - true).abs().max().item() for it in (ours, theirs))
        assert error <= 4 * of_plain + 1e-6 * (1 + true.abs().max().item())  # few numbers are ill-conditioned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once(dtype):
    norm, x, gradient = made(48, 5, 0)
    normed = fused(norm, x, dtype)
    assert normed.dtype == dtype
    expected = exact(norm, x, gradient)[0].to(dtype)
    step = torch.finfo(dtype).eps * expected.abs().clamp(min=0.1)
    assert ((normed.cpu().double() - expected.double()).abs() <= step.double()).all()
    normed.backward(gradient.to(dtype))
    assert x.grad.dtype == norm.weight.grad.dtype == torch.float32


def test_any_strides_are_read():
    norm, x, gradient = made(24, 6, 1)
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    normed = fused(norm, turned)
    (found,) = torch.autograd.grad(normed, turned, gradient.transpose(0, 1).contiguous().transpose(0, 1))
    torch.testing.assert_close(found.cpu().double(), exact(norm, x, gradient)[1], rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients_are_those_of_layer_norm():
    norm, x, gradient = made(24, 3, 2)
    norm.bias.requires_grad_(False)
    found = []
    for normed in (fused(norm, x), norm(x)):
        (first,) = torch.autograd.grad(normed, x, gradient, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (x, norm.weight)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_nan_is_not_hidden():
    norm, x, _ = made(24, 3, 3)
    with torch.no_grad():
        x[1, 2, 5] = torch.nan
    is_nan = fused(norm, x).isnan().all(dim=-1)
    assert is_nan.sum() == 1
    assert is_nan[1, 2]


def test_other_norms_are_left_alone():
    x = torch.zeros(1, 2, 8, device=DEVICE)
    assert can_fuse(nn.LayerNorm(8).to(DEVICE), x)
    others = [nn.RMSNorm(8), nn.LayerNorm(8, bias=False), nn.LayerNorm(8, elementwise_affine=False)]
    others += [nn.LayerNorm((2, 8)), nn.LayerNorm(8).bfloat16(), nn.Identity()]
    assert not any(can_fuse(norm.to(DEVICE), x) for norm in others)
    assert not can_fuse(nn.LayerNorm(8).to(DEVICE), x.bfloat16())


@pytest.fixture
def taken(monkeypatch) -> list[torch.Tensor]:
    """Much is normalised: each time, the tensor is noted."""
    seen = []
    apply = FusedNorm.apply

    def noted(x, *args):
        seen.append(x)
        return apply(x, *args)

    monkeypatch.setattr(shortcuts_qkvit, "_pays_to_fuse", lambda x: True)
    monkeypatch.setattr(FusedNorm, "apply", noted)
    return seen


def test_a_model_takes_it_and_gives_what_it_gives_without(tiny_model, pixels, taken, monkeypatch):
    model, pixels = tiny_model().train().to(DEVICE), pixels.to(DEVICE)
    found = []
    for is_fused in (True, False):
        monkeypatch.setattr(shortcuts_qkvit, "_pays_to_fuse", lambda x, is_fused=is_fused: is_fused)
        model.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            out = model(pixels, labels=torch.tensor([0, 3], device=DEVICE))
        out.loss.backward()
        found.append([out.logits.float(), *(parameter.grad for parameter in model.parameters())])
    assert len(taken) == 2 * model.config.num_hidden_layers
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02 * max(1.0, theirs.abs().max().item()))


def test_who_looks_at_a_norm_sees_what_it_gives_in_float32(tiny_config, taken):
    layer, tokens, seen = QKViTLayer(tiny_config(), 0).to(DEVICE), torch.randn(1, 5, 32, device=DEVICE), []
    layer.attention_norm.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast(DEVICE, torch.bfloat16):
        layer(tokens)
    assert seen == [torch.float32]
    assert len(taken) == 1  # the other norm


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_taken_for_much_and_under_autocast_alone(tiny_config, monkeypatch):
    layer, tokens = QKViTLayer(tiny_config(), 0).cuda(), torch.randn(1, 64, 32, device="cuda")
    taken, apply = [], FusedNorm.apply
    monkeypatch.setattr(FusedNorm, "apply", lambda x, *args: taken.append(x) or apply(x, *args))
    monkeypatch.setattr(shortcuts_qkvit, "LARGE", 64 * 32)
    layer(tokens)
    with torch.autocast("cuda", torch.bfloat16):
        layer(tokens[:, :63])
        assert not taken
        layer(tokens)
    assert len(taken) == 2
