"""Memory grows with the number of tokens, not with its square."""

import importlib.util
from pathlib import Path

import pytest
import torch

from qkvit import QKViTModel
from qkvit.analysis import TokenLayout, attention_statistics, collect, model_rollout, rollout
from qkvit.analysis.statistics.groups import GROUPS

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "attention_statistics.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("attention_statistics_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARK.parent)  # it imports its neighbours
        spec.loader.exec_module(module)
    return module


def layer(grid):
    layout = TokenLayout(grid=(grid, grid), has_class_token=True)
    query, key, value = (torch.randn(1, 2, layout.num_tokens, 16) for _ in range(3))
    return query, key, value, layout


def all_statistics(grid, backend="cpu", statistics=None):
    query, key, value, layout = layer(grid)
    projection = torch.randn(32, 32)
    groups = GROUPS if statistics is None else statistics
    given = {"value": value, "output_projection": projection, "statistics": groups, "backend": backend}
    attention_statistics(query, key, layout, scaling=0.25, **given)


def roll_out(grid):
    query, key, _, _ = layer(grid)
    rollout([query], [key], start=0, scaling=0.25)


@pytest.mark.parametrize("step", [all_statistics, roll_out])
def test_memory_is_linear_in_the_tokens(rows_read_by, benchmark, step):
    sizes = [14, 32, 64]
    peaks = [benchmark.peak_bytes(lambda grid=grid: step(grid)) for grid in sizes]
    assert benchmark.exponent([grid**2 + 1 for grid in sizes], peaks) <= 1.1
    assert peaks[-1] < 4097**2 * 4 / 2  # half of one head's map


def test_the_reference_is_what_the_measurement_finds_quadratic(benchmark):
    sizes = [14, 20, 28]
    peaks = [benchmark.peak_bytes(lambda grid=grid: all_statistics(grid, "reference", "entropy")) for grid in sizes]
    assert benchmark.exponent([grid**2 + 1 for grid in sizes], peaks) > 1.8


def test_a_rollout_in_groups_keeps_one_group_alone(benchmark, tiny_model, monkeypatch):
    monkeypatch.setattr("qkvit.analysis.statistics.blockwise.CPU_NUMBERS", 2**12)
    model = tiny_model(QKViTModel, num_hidden_layers=12, image_size=64)
    image = torch.rand(1, 3, 64, 64)
    of_layer = 2 * 257 * 32 * 4  # bytes of its queries and keys
    whole = benchmark.peak_bytes(lambda: model_rollout(model, image))
    in_groups = benchmark.peak_bytes(lambda: model_rollout(model, image, layers_at_once=4))
    assert in_groups < whole - 6 * of_layer  # it would be 4 if the group before were kept too


def test_collecting_all_of_12_layers_at_4097_tokens_stays_below_1_5_times_the_plain_pass(benchmark, monkeypatch):
    """With a narrow model and small tiles, in the proportion that both have in small/16."""
    monkeypatch.setattr("qkvit.analysis.statistics.blockwise.CPU_NUMBERS", 2**17)
    small = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256, "image_size": 256, "patch_size": 4}
    bench = benchmark.Bench(64, "cpu", **small)
    assert (bench.layout.num_tokens, len(bench.model.layers)) == (4097, 12)
    weights = sum(parameter.nbytes for parameter in bench.model.parameters())

    def collecting() -> None:
        collect(bench.model, [bench.image], rollout=True, show_progress=False)

    with torch.inference_mode():
        plain, collected = (weights + benchmark.peak_bytes(step) for step in (bench.plain, collecting))
    assert collected < 1.5 * plain
