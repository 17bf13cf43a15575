"""What the tests of the statistics share: backends, random attention, and the comparison with float64."""

import contextlib
import dataclasses
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from qkvit.analysis import TokenLayout
from qkvit.analysis.statistics import fused_cpu
from qkvit.analysis.statistics.cpu_library import library
from qkvit.analysis.statistics.inputs import AttentionInputs

# Below these, float32 has no digits left; a spread is the root of a weight.
FLOORS = {"spread": 1e-15, "entropy": 1e-33, "output_share": 1e-6}
SMALLEST_WEIGHT = 1e-35


@pytest.fixture
def kernels() -> Iterator[str]:
    """The device on which the Triton kernels run: a GPU, or the CPU with the interpreter; skips where they cannot."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if torch.cuda.is_available():
        yield "cuda"
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("torch does not see this machine's GPU, and Triton is not told to interpret (TRITON_INTERPRET=1)")
    # The interpreter computes with NumPy, also what no result is made of.
    with np.errstate(all="ignore"), warnings.catch_warnings(), shorter_interpretation():
        warnings.filterwarnings("ignore", message="All-NaN slice")
        yield "cpu"


@contextlib.contextmanager
def shorter_interpretation() -> Iterator[None]:
    """Half of the interpreter's time goes into what is left out here.

    It puts its operations into triton.language anew at each call of one kernel function by another, where once for
    each module and launch is enough, and computes each whole number again in 64 bits to see whether 32 were enough.
    """
    from triton.runtime import interpreter

    launch, prepared = interpreter.InterpretedFunction.run, set()

    def run(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
        prepared.clear()
        return launch(self, *arguments, **named)

    def call(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn.__module__)
        return self.rewrite()(*arguments, **named)

    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    with (
        mock.patch.multiple(interpreter.InterpretedFunction, run=run, __call__=call),
        mock.patch.object(interpreter.interpreter_builder, "options", options),
    ):
        yield


@pytest.fixture(params=["reference", "cpu", "cpu by torch", "gpu"])
def backend(request) -> Iterator[str]:
    if request.param == "gpu":
        request.getfixturevalue("kernels")
    if request.param == "cpu" and library() is None:
        pytest.skip("there is no C compiler")
    with by_torch() if request.param == "cpu by torch" else contextlib.nullcontext():
        yield request.param.split()[0]


def by_torch() -> Any:
    """A context in which the CPU path goes without its compiled kernels."""
    return mock.patch.object(fused_cpu, "library", return_value=None)


@pytest.fixture(params=["compiled", "torch"], scope="session")
def rows_read_by(request) -> str:
    """What reads the rows on the CPU while the test runs: the compiled kernels or torch."""
    if request.param == "compiled" and library() is None:
        pytest.skip("there is no C compiler")
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item) -> Any:
    # Not in the fixture: one of the session would last over other tests, and hypothesis refuses one of the function.
    by = getattr(item, "funcargs", {}).get("rows_read_by")
    with by_torch() if by == "torch" else contextlib.nullcontext():
        if by == "compiled":
            assert fused_cpu.suits(torch.float32, torch.device("cpu"), 1)
        return (yield)


@pytest.fixture
def device(backend) -> str:
    return "cuda" if backend == "gpu" and torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def random_attention() -> Callable[..., AttentionInputs]:
    """Queries, keys, values, projection and mask, seeded. The largest score is `largest`, whatever the sizes."""

    def make(
        layout: TokenLayout,
        *,
        batch: int = 2,
        heads: int = 3,
        width: int = 8,
        largest: float = 5.0,
        dtype: torch.dtype = torch.float32,
        mask: str | None = None,
        seed: int = 0,
    ) -> AttentionInputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        shape, scaling = (batch, heads, layout.num_tokens, width), width**-0.5
        query, key, value = normal(*shape), normal(*shape), normal(*shape)
        query *= largest / (query @ key.transpose(-1, -2) * scaling).abs().max()
        return AttentionInputs(
            query.to(dtype),
            key.to(dtype),
            layout,
            scaling,
            value.to(dtype),
            normal(20, heads * width).to(dtype),
            None,
            make_mask(mask, batch, heads, layout.num_tokens, generator),
        )

    return make


def make_mask(kind: str | None, batch: int, heads: int, tokens: int, generator: torch.Generator) -> torch.Tensor | None:
    """A mask in which every query sees one key at least."""
    if kind is None:
        return None
    if kind == "bias":
        return torch.randn(1, heads, tokens, tokens, generator=generator)
    seen = torch.rand(batch, 1, 1 if kind == "keys" else tokens, tokens, generator=generator) > 0.6
    seen.scatter_(-1, torch.randint(tokens, (*seen.shape[:-1], 1), generator=generator), True)
    if kind == "least":
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    if kind == "infinite":
        return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    return seen


MASKS = [None, "keys", "pairs", "bias", "least", "infinite"]


@pytest.fixture(scope="session")
def assert_as_exact() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]:
    """Every field equals the float64 one to a relative 1e-4, and is NaN where that is."""

    def check(found: dict[str, Any], exact: dict[str, Any]) -> None:
        assert found.keys() == exact.keys()
        for name in exact.keys() - {"argmaximum"}:
            one, other = found[name].double().cpu(), exact[name].double().cpu()
            assert one.shape == other.shape, name
            assert torch.equal(one.isnan(), other.isnan()), name
            allowed = 1e-4 * other.abs() + FLOORS.get(name, SMALLEST_WEIGHT)
            wrong = (one - other).abs() > allowed
            assert not wrong.any(), f"{name}: {one[wrong][0].item()} is not {other[wrong][0].item()}"

    return check
