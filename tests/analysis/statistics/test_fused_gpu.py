"""The Triton kernels equal the float64 reference; without a GPU, Triton's interpreter runs them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from qkvit.analysis import TokenLayout, attention_statistics, rollout
from qkvit.analysis.statistics import fused_gpu
from qkvit.analysis.statistics.blockwise import Plan, blockwise_statistics
from qkvit.analysis.statistics.groups import GROUPS
from qkvit.analysis.statistics.inputs import AttentionInputs
from qkvit.analysis.statistics.reference import reference_statistics

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
ALL = frozenset(GROUPS)
LAYOUT = TokenLayout(grid=(3, 7), has_class_token=True, num_register_tokens=2)
TYPES = [torch.float32, torch.bfloat16, torch.float16]
MASKS = [None, "keys", "pairs", "bias", "least", "infinite"]


@some.composite
def layouts(draw) -> TokenLayout:
    grid = draw(some.tuples(some.integers(1, 6), some.integers(1, 6)))
    kind = draw(some.sampled_from(["none", "class", "class and registers", "unknown"]))
    if kind == "unknown":
        return TokenLayout(grid=grid, num_prefix_tokens=draw(some.integers(1, 20)))
    registers = draw(some.integers(1, 4)) if kind == "class and registers" else 0
    return TokenLayout(grid=grid, has_class_token=kind != "none", num_register_tokens=registers)


def moved(inputs: AttentionInputs, device: str) -> AttentionInputs:
    tensors = {name: it.to(device) for name, it in vars(inputs).items() if isinstance(it, torch.Tensor)}
    return dataclasses.replace(inputs, **tensors)


@settings(max_examples=15)
@given(
    layout=layouts(),
    largest=some.sampled_from([0.0, 0.1, 1.0, 10.0, 80.0]),
    dtype=some.sampled_from(TYPES),
    mask=some.sampled_from(MASKS),
    width=some.sampled_from([4, 8, 17]),
    seed=some.integers(0, 1000),
)
def test_kernels_give_what_the_reference_gives(
    random_attention, assert_as_exact, kernels, layout, largest, dtype, mask, width, seed
):
    inputs = random_attention(layout, batch=1, heads=2, width=width, largest=largest, dtype=dtype, mask=mask, seed=seed)
    exact = reference_statistics(inputs, ALL)
    found = fused_gpu.fused_statistics(moved(inputs, kernels), ALL)
    assert_as_exact(found, exact)
    if mask is None:
        scores = inputs.query.double() @ inputs.key.double().transpose(-1, -2) * inputs.scaling
        at_found = scores.softmax(dim=-1).gather(-1, found["argmaximum"].cpu()[..., None])[..., 0]
        torch.testing.assert_close(at_found, exact["maximum"], rtol=1e-4, atol=0)


def test_a_larger_image_is_exact_too(random_attention, assert_as_exact, kernels):
    inputs = random_attention(TokenLayout(grid=(5, 16), has_class_token=True), batch=1, heads=1, width=64, largest=20.0)
    assert_as_exact(fused_gpu.fused_statistics(moved(inputs, kernels), ALL), reference_statistics(inputs, ALL))


def test_a_field_that_is_kept_keeps_no_other(random_attention, kernels):
    found = fused_gpu.fused_statistics(moved(random_attention(LAYOUT, batch=1, heads=1), kernels), ALL)
    for name, field in found.items():
        assert field.untyped_storage().nbytes() == field.nbytes, name


def test_any_strides_and_widths_are_read(random_attention, assert_as_exact, kernels):
    inputs = random_attention(LAYOUT, width=5, mask="pairs")
    value = torch.randn(2, 3, LAYOUT.num_tokens, 19)
    given = {
        "query": inputs.query.transpose(1, 2).contiguous().transpose(1, 2),
        "key": inputs.key.transpose(2, 3).contiguous().transpose(2, 3),
        "value": value.repeat(1, 1, 1, 2)[..., 19:],
        "output_projection": torch.randn(7, 3 * 19),
        "mask": inputs.mask.transpose(2, 3).contiguous().transpose(2, 3).expand(2, 3, -1, -1),
    }
    strided = dataclasses.replace(moved(inputs, kernels), **{name: it.to(kernels) for name, it in given.items()})
    exact = reference_statistics(dataclasses.replace(inputs, **given), ALL)
    assert_as_exact(fused_gpu.fused_statistics(strided, ALL), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_least_number_of_its_type_hides_a_key(random_attention, assert_as_exact, kernels, dtype):
    """Also where it hides all patches, or all tokens before them: no weight is left to say where it is."""
    mask = torch.zeros(1, 1, LAYOUT.num_tokens, LAYOUT.num_tokens, dtype=dtype)
    mask[..., 4, LAYOUT.patches] = mask[..., 5, : LAYOUT.num_prefix] = torch.finfo(dtype).min
    inputs = dataclasses.replace(random_attention(LAYOUT, batch=1, heads=1), output_projection=None, mask=mask)
    exact = reference_statistics(inputs, ALL)
    assert exact["spread"].isnan().sum() == 1
    assert_as_exact(fused_gpu.fused_statistics(moved(inputs, kernels), ALL), exact)


@pytest.mark.parametrize("steps", [1.0, -1.0, 0.01])
def test_a_largest_score_that_comes_late_leaves_the_sums_exact(assert_as_exact, kernels, steps):
    """Scores that rise from key to key: each block has a new largest one."""
    layout = TokenLayout(grid=(11, 7), has_class_token=True)
    query, key = torch.ones(1, 1, 78, 1), torch.arange(78.0)[None, None, :, None]
    inputs = AttentionInputs(query, key, layout, steps, value=torch.randn(1, 1, 78, 3))
    assert_as_exact(fused_gpu.fused_statistics(moved(inputs, kernels), ALL), reference_statistics(inputs, ALL))


@pytest.mark.parametrize(
    ("tensor", "token", "number"),
    [
        ("query", 0, torch.nan),
        ("query", 5, torch.inf),
        ("key", 0, torch.inf),
        ("key", 5, torch.nan),
        ("key", LAYOUT.num_tokens - 1, torch.nan),  # no later block spreads it
        ("key", LAYOUT.num_tokens - 1, torch.inf),
    ],
)
def test_nan_and_infinity_are_not_hidden(random_attention, kernels, tensor, token, number):
    inputs = random_attention(LAYOUT, batch=1, heads=2, mask="pairs")
    broken = getattr(inputs, tensor).clone()
    broken[0, 1, token, 0] = number
    check_nan(dataclasses.replace(inputs, **{tensor: broken}), kernels)


def check_nan(inputs, kernels):
    """NaN where the path over blocks has it, and nowhere where the reference has none."""
    found = fused_gpu.fused_statistics(moved(inputs, kernels), ALL)
    least, most = blockwise_statistics(inputs, ALL, Plan(1, 2, 7)), reference_statistics(inputs, ALL)
    assert least["maximum"].isnan().any()
    for name in found.keys() - {"argmaximum"}:
        is_nan = found[name].isnan().cpu()
        if name != "weighted_on_prefix" or inputs.layout.num_prefix:  # no tokens are there: 0 says so as well
            assert (is_nan >= least[name].isnan()).all(), name
        assert (is_nan <= most[name].isnan()).all(), name
    assert (found["argmaximum"] >= 0).all()
    assert (found["argmaximum"] < inputs.layout.num_tokens).all()


@pytest.mark.parametrize(
    "layout", [TokenLayout((1, 1)), TokenLayout((1, 1), has_class_token=True), TokenLayout((3, 5))]
)
def test_nan_in_the_first_patch_is_not_taken_for_the_largest_score(random_attention, kernels, layout):
    inputs = random_attention(layout, batch=1, heads=2)
    inputs.key[0, 1, layout.num_prefix, 0] = torch.nan
    check_nan(inputs, kernels)


def test_nan_in_the_only_patch_that_is_seen_is_not_hidden(random_attention, kernels):
    inputs = random_attention(LAYOUT, batch=1, heads=2)
    mask = torch.ones(1, 1, LAYOUT.num_tokens, LAYOUT.num_tokens, dtype=torch.bool)
    mask[..., LAYOUT.num_prefix + 1 :] = False
    inputs.key[0, 1, LAYOUT.num_prefix, 0] = torch.nan
    check_nan(dataclasses.replace(inputs, mask=mask), kernels)


@pytest.mark.parametrize("layout", [TokenLayout((2, 3)), LAYOUT])
def test_a_query_all_of_whose_scores_are_minus_infinity_has_no_statistics(random_attention, kernels, layout):
    inputs = random_attention(layout, batch=1, heads=2)
    inputs.key[..., 0] = -inputs.key[..., 0].abs() - 1
    inputs.query[0, 1, layout.num_prefix, 0] = torch.inf
    check_nan(inputs, kernels)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_sink_without_a_value_leaves_the_output_of_the_others(assert_as_exact, kernels, dtype):
    """Their weights are below float16's least number, and all that arrives is theirs."""
    layout, generator = TokenLayout((3, 7), has_class_token=True), torch.Generator().manual_seed(0)
    key, value = (torch.randn(1, 1, 22, 4, generator=generator).to(dtype) for _ in range(2))
    key[..., 0], key[..., 9, 0], value[..., 9, :] = 0, 20, 0
    query = torch.tensor([1.0, 0.1, 0.1, 0.1]).to(dtype).expand(1, 1, 22, 4)
    inputs = AttentionInputs(query, key, layout, 1.0, value)
    assert_as_exact(fused_gpu.fused_statistics(moved(inputs, kernels), ALL), reference_statistics(inputs, ALL))


def test_the_same_bits_again(random_attention, kernels):
    inputs = moved(random_attention(LAYOUT, batch=1, heads=2, largest=20.0), kernels)
    once, again = (fused_gpu.fused_statistics(inputs, ALL) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once if once[name].isfinite().all())


@settings(max_examples=4)
@given(mask=some.sampled_from(MASKS), dtype=some.sampled_from(TYPES), seed=some.integers(0, 100))
def test_a_step_of_rollout_is_the_product_with_the_mean_map(random_attention, kernels, mask, dtype, seed):
    inputs = random_attention(LAYOUT, heads=2, largest=20.0, mask=mask, dtype=dtype, seed=seed)
    given = {"scaling": inputs.scaling, "attention_mask": inputs.mask, "start": 3}
    exact = rollout([inputs.query] * 2, [inputs.key] * 2, backend="reference", **given)
    on_device = moved(inputs, kernels)
    given["attention_mask"] = on_device.mask
    found = rollout([on_device.query] * 2, [on_device.key] * 2, backend="gpu", **given)
    torch.testing.assert_close(found.double().cpu(), exact.double(), rtol=1e-4, atol=1e-35)


def test_rows_of_scores_far_below_zero(kernels):
    """What is left out of a tile has a score lower still."""
    query, key = (
        torch.ones(1, 1, 37, 1, device=kernels),
        torch.arange(500.0, 537.0, device=kernels)[None, None, :, None],
    )
    log_sums = fused_gpu.row_sums(query, key, None, -1.0)
    exact = (-key.double().flatten()).logsumexp(0) / torch.tensor(2.0).double().log()
    torch.testing.assert_close(log_sums.double(), exact.expand(1, 1, 37), rtol=1e-6, atol=0)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_group_that_lacks_heads_writes_nothing_for_them(random_attention, kernels, heads):
    inputs = moved(random_attention(LAYOUT, batch=1, heads=heads), kernels)
    attention = fused_gpu.Attention(inputs.query, inputs.key, None, inputs.scaling)
    log_sums = fused_gpu.row_sums(inputs.query, inputs.key, None, inputs.scaling)
    launch = fused_gpu.product_launch(attention, log_sums)
    size = launch.arguments["found_products"].numel()
    room = torch.full([size + 3 * heads + 3], -1.0, device=kernels)
    launch.arguments["found_products"] = room
    launch.run()
    assert (room[:size] > 0).all()
    assert (room[size:] == -1).all()


@pytest.fixture
def paths(monkeypatch) -> list[str]:
    """Which way the statistics went."""
    taken = []

    def note(name, function):
        def noted(*args):
            taken.append(name)
            return function(*args)

        return noted

    module = "qkvit.analysis.statistics.statistics"
    monkeypatch.setattr(f"{module}.fused_statistics", note("fused", fused_gpu.fused_statistics))
    monkeypatch.setattr(f"{module}.blockwise_statistics", note("blockwise", blockwise_statistics))
    return taken


def ask(inputs, **changes):
    given = {"query": inputs.query, "key": inputs.key, "layout": inputs.layout, "scaling": inputs.scaling, **changes}
    return attention_statistics(statistics="entropy", backend="gpu", **given)


def test_the_gpu_takes_the_kernels_where_they_suit(random_attention, kernels, paths):
    inputs = moved(random_attention(LAYOUT), kernels)
    ask(inputs)
    ask(inputs, query=inputs.query.double(), key=inputs.key.double())
    ask(inputs, query=inputs.query.repeat(1, 1, 1, 40), key=inputs.key.repeat(1, 1, 1, 40))
    ask(inputs, value=inputs.value.double())
    assert paths == ["fused", "blockwise", "blockwise", "blockwise"]


def test_without_triton_the_gpu_goes_block_by_block(random_attention, kernels, paths, monkeypatch, assert_as_exact):
    monkeypatch.setattr(fused_gpu, "_has_triton", lambda: False)
    inputs = random_attention(LAYOUT)
    s = ask(moved(inputs, kernels))
    assert paths == ["blockwise"]
    assert_as_exact(dict(s.items()), reference_statistics(inputs, frozenset({"entropy"})))


def test_what_is_kept_beside_inputs_and_results_grows_with_the_tokens(random_attention, kernels):
    """As many numbers for each row whatever the number of tokens; products of heads, fewer than one."""
    of_rows = []
    for grid in ((4, 5), (13, 20)):
        layout = TokenLayout(grid=grid, has_class_token=True)
        inputs = moved(random_attention(layout, mask="keys"), kernels)
        attention = fused_gpu.Attention(inputs.query, inputs.key, inputs.mask, inputs.scaling)
        rows = inputs.query.shape[:3].numel()
        launch, _ = fused_gpu.row_launch(attention, ALL - {"values"}, inputs)
        given = {inputs.query.data_ptr(), inputs.key.data_ptr(), inputs.mask.data_ptr(), inputs.value.data_ptr()}
        own = [it for it in launch.arguments.values() if isinstance(it, torch.Tensor) and it.data_ptr() not in given]
        of_rows.append(sum(it.numel() for it in own) / rows)
        products = fused_gpu.product_launch(attention, launch.arguments["state"][0]).arguments["found_products"]
        assert products.numel() < rows
    assert of_rows[0] == of_rows[1] < 25


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_and_fit(kernels):
    """For Hopper, whatever this machine has: no spills, and what every device has of shared memory.

    In bfloat16, which takes the most registers; the script does it for other types, devices and widths too.
    """
    command = [sys.executable, str(BENCHMARKS / "compile_kernels.py"), "--capabilities", "90", "--widths", "64"]
    command += ["--dtypes", "bfloat16"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["kernel"] for row in rows} == {"row_kernel", "log_sum_kernel", "column_kernel", "product_kernel"}
    assert len(rows) == 4
    assert all(row["stack"] == 0 and row["shared"] <= 99 * 1024 for row in rows)
