"""The pass over blocks equals the float64 reference, whatever the layout, the blocks, the types and the scores."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch.utils._python_dispatch import TorchDispatchMode

from qkvit.analysis import TokenLayout, attention_statistics, rollout
from qkvit.analysis.statistics.blockwise import Plan, blockwise_statistics, cpu_plan, gpu_plan, plan_for
from qkvit.analysis.statistics.groups import GROUPS
from qkvit.analysis.statistics.precision import full_precision
from qkvit.analysis.statistics.reference import reference_statistics

ALL = frozenset(GROUPS)
MASKS = [None, "keys", "pairs", "bias", "least", "infinite"]
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@some.composite
def layouts(draw) -> TokenLayout:
    grid = draw(some.tuples(some.integers(1, 6), some.integers(1, 6)))
    kind = draw(some.sampled_from(["none", "class", "class and registers", "unknown"]))
    if kind == "unknown":
        return TokenLayout(grid=grid, num_prefix_tokens=draw(some.integers(1, 3)))
    registers = draw(some.integers(1, 4)) if kind == "class and registers" else 0
    return TokenLayout(grid=grid, has_class_token=kind != "none", num_register_tokens=registers)


@given(
    layout=layouts(),
    largest=some.sampled_from([0.0, 0.1, 1.0, 10.0, 80.0]),
    dtype=some.sampled_from(TYPES),
    mask=some.sampled_from(MASKS),
    images=some.integers(1, 3),
    queries=some.integers(1, 40),
    seed=some.integers(0, 1000),
)
def test_blocks_give_what_the_reference_gives(
    rows_read_by, random_attention, assert_as_exact, layout, largest, dtype, mask, images, queries, seed
):
    inputs = random_attention(layout, batch=3, largest=largest, dtype=dtype, mask=mask, seed=seed)
    exact = reference_statistics(inputs, ALL)
    found = blockwise_statistics(inputs, ALL, Plan(images, 3, queries))
    assert_as_exact(found, exact)
    weights = inputs.query.double() @ inputs.key.double().transpose(-1, -2) * inputs.scaling
    if mask is None:
        at_found = weights.softmax(dim=-1).gather(-1, found["argmaximum"][..., None])[..., 0]
        torch.testing.assert_close(at_found, exact["maximum"], rtol=1e-4, atol=0)


@given(
    layout=layouts(),
    images=some.integers(1, 2),
    heads=some.integers(1, 3),
    mask=some.sampled_from(MASKS),
    seed=some.integers(0, 1000),
)
def test_heads_may_come_one_after_the_other(
    rows_read_by, random_attention, assert_as_exact, layout, images, heads, mask, seed
):
    inputs = random_attention(layout, mask=mask, seed=seed)
    groups = ALL - {"similarity"}
    assert_as_exact(blockwise_statistics(inputs, groups, Plan(images, heads, 7)), reference_statistics(inputs, groups))


@pytest.mark.parametrize("plan_of", [cpu_plan, gpu_plan])
def test_a_larger_image_is_exact_too(rows_read_by, random_attention, assert_as_exact, plan_of):
    inputs = random_attention(TokenLayout(grid=(19, 31), has_class_token=True), batch=1, width=64, largest=20.0)
    assert_as_exact(blockwise_statistics(inputs, ALL, plan_of(inputs, ALL)), reference_statistics(inputs, ALL))


@pytest.mark.parametrize(("side", "images"), [(2, 12), (14, 9), (32, 1)])
def test_a_block_holds_several_images_where_they_are_small(random_attention, side, images):
    inputs = random_attention(TokenLayout(grid=(side, side), has_class_token=True), batch=12, heads=6)
    assert cpu_plan(inputs, ALL).images == images


@given(heads=some.integers(1, 24), tokens=some.integers(1, 20_000), all_heads=some.booleans())
def test_a_block_on_the_cpu_stays_small(heads, tokens, all_heads):
    plan = plan_for(heads, tokens, 2**19, all_heads)
    assert 1 <= plan.queries <= tokens
    assert 1 <= plan.heads <= heads
    assert plan.heads == heads or not all_heads
    assert plan.heads * plan.queries * tokens <= max(2**19, 17 * plan.heads * tokens) + plan.heads * tokens


class _LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_no_operation_gives_a_tensor_of_n_by_n(rows_read_by, random_attention, monkeypatch):
    layout = TokenLayout(grid=(20, 20), has_class_token=True)  # 401 tokens, 160,801 pairs
    inputs = random_attention(layout, batch=1, heads=2, width=8)
    monkeypatch.setattr("qkvit.analysis.statistics.blockwise.CPU_NUMBERS", 2**14)
    monkeypatch.setattr("qkvit.analysis.statistics.values.CPU_PIECE", 2**14)
    given = {"scaling": inputs.scaling}
    with _LargestTensor() as largest:
        attention_statistics(
            inputs.query,
            inputs.key,
            layout,
            value=inputs.value,
            output_projection=inputs.output_projection,
            backend="cpu",
            **given,
        )
        rollout([inputs.query] * 2, [inputs.key] * 2, start=0, **given)
    assert 0 < largest.numbers < 30_000
    with _LargestTensor() as largest:
        attention_statistics(inputs.query, inputs.key, layout, backend="reference", **given)
    assert largest.numbers >= 2 * 401**2


@pytest.mark.parametrize("allowed", ["torch.set_float32_matmul_precision", "mkldnn.matmul", "torch.backends"])
def test_products_are_exact_where_the_user_allows_rough_ones(
    rows_read_by, random_attention, assert_as_exact, precision_kept, allowed
):
    inputs = random_attention(TokenLayout(grid=(8, 8), has_class_token=True), width=64)
    setting = torch.backends.mkldnn.matmul
    if allowed == "mkldnn.matmul":
        setting.fp32_precision = "tf32"  # from here on torch refuses to say what set_float32_matmul_precision is
    elif allowed == "torch.backends":
        torch.backends.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("medium")
    before = setting.fp32_precision
    assert before in ("tf32", "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        found = blockwise_statistics(inputs, ALL, cpu_plan(inputs, ALL))
    assert setting.fp32_precision == before
    torch.backends.fp32_precision = "ieee"
    assert setting.fp32_precision == ("ieee" if allowed == "torch.backends" else before)
    assert_as_exact(found, reference_statistics(inputs, ALL))


def test_products_stay_exact_until_the_last_thread_has_left(precision_kept):
    setting = torch.backends.mkldnn.matmul
    setting.fp32_precision = "bf16"
    entered, leave = threading.Event(), threading.Event()

    def inside():
        with full_precision(torch.device("cpu")):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=inside)
    with full_precision(torch.device("cpu")):
        thread.start()
        assert entered.wait(10)
    assert setting.fp32_precision == "ieee"
    leave.set()
    thread.join()
    assert setting.fp32_precision == "bf16"


@pytest.fixture
def precision_kept():
    settings = (torch.backends, torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
    before = [it.fp32_precision for it in settings]
    by_one_name = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(by_one_name)
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


def test_of_no_images_there_are_empty_numbers():
    none = torch.zeros(0, 2, 5, 4)
    found = attention_statistics(none, none, TokenLayout(grid=(2, 2), has_class_token=True), scaling=0.5)
    assert found.entropy.shape == (0, 2, 5)
