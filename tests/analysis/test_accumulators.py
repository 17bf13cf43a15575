"""Accumulators give the numbers of the whole stream, however it is cut and whatever the order of the parts."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit.analysis.accumulators import RELATIVE_ACCURACY, Moments, Quantiles, Sums, student_quantile

number = st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(0.0)
streams = st.lists(st.tuples(number, number), min_size=1, max_size=40)
cuts = st.lists(st.integers(0, 40), max_size=4)


def parts(stream, cut_at):
    values = torch.tensor(stream, dtype=torch.float64)
    edges = sorted({0, len(stream), *(cut for cut in cut_at if cut < len(stream))})
    return values, [values[start:end] for start, end in itertools.pairwise(edges)]


def accumulated(kind, pieces, *arguments):
    result = kind(*arguments)
    for piece in pieces:
        result.update(piece)
    return result


def merged(kind, pieces, *arguments):
    result = kind(*arguments)
    for piece in reversed(pieces):
        result.merge(accumulated(kind, [piece], *arguments))
    return result


@given(streams, cuts)
def test_moments_are_those_of_the_whole(stream, cut_at):
    values, pieces = parts(stream, cut_at)
    for moments in (accumulated(Moments, pieces, (2,)), merged(Moments, pieces, (2,))):
        for cell in range(2):
            known = values[:, cell][~values[:, cell].isnan()]
            assert moments.count[cell] == len(known)
            if len(known):
                torch.testing.assert_close(moments.mean[cell], known.mean(), rtol=1e-9, atol=1e-6)
            if len(known) > 1:
                torch.testing.assert_close(moments.standard_deviation()[cell], known.std(), rtol=1e-9, atol=1e-6)
            else:
                assert moments.standard_deviation()[cell].isnan()
                assert moments.half_interval()[cell].isnan()


def test_moments_of_large_numbers_keep_their_spread():
    values = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e9
    moments = accumulated(Moments, values.split(7), (1,))
    torch.testing.assert_close(moments.standard_deviation(), values.std(dim=0), rtol=1e-6, atol=0)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-9, 9)), min_size=1, max_size=20), st.integers(1, 5))
def test_moments_of_classes(stream, size):
    rows = torch.tensor([row for row, _ in stream])
    values = torch.tensor([[value] for _, value in stream], dtype=torch.float64)
    moments = Moments((3, 1))
    for row, value in zip(rows.split(size), values.split(size), strict=True):
        moments.update_rows(row, value)
    for row in range(3):
        of_class = values[rows == row]
        assert moments.count[row, 0] == len(of_class)
        if len(of_class):
            torch.testing.assert_close(moments.mean[row, 0], of_class.mean())
        if len(of_class) > 1:
            torch.testing.assert_close(moments.standard_deviation()[row, 0], of_class.std())


@given(streams, cuts, st.floats(0, 1))
def test_quantiles_are_those_of_the_whole_to_their_accuracy(stream, cut_at, share):
    values, pieces = parts(stream, cut_at)
    whole = accumulated(Quantiles, [values], 2)
    found = whole.quantile(share)
    for other in (accumulated(Quantiles, pieces, 2), merged(Quantiles, pieces, 2)):
        assert torch.equal(other.quantile(share).nan_to_num(7.7), found.nan_to_num(7.7))  # the order changes nothing
    for cell in range(2):
        known = values[:, cell][~values[:, cell].isnan()].sort().values
        if not len(known):
            assert found[cell].isnan()
        else:
            count = len(known)  # the smallest number that enough of them do not exceed
            expected = next(number for place, number in enumerate(known, 1) if place / count >= share - 1e-12)
            torch.testing.assert_close(found[cell], expected, rtol=RELATIVE_ACCURACY * 1.001, atol=1e-11)


@given(streams, cuts, st.floats(0, 1))
def test_no_quantile_lies_outside_the_range_of_the_data(stream, cut_at, share):
    values, pieces = parts(stream, cut_at)
    restored = Quantiles(2)
    restored.load_state(merged(Quantiles, pieces, 2).state())
    for quantiles in (accumulated(Quantiles, pieces, 2), merged(Quantiles, pieces, 2), restored):
        for cell in range(2):
            known = values[:, cell][~values[:, cell].isnan()]
            if len(known):
                assert known.min() <= quantiles.quantile(share)[cell] <= known.max()


def test_quantiles_of_few_numbers_and_of_round_shares():
    for count in (1, 2, 3, 10, 100):
        quantiles = Quantiles(1)
        quantiles.update(torch.arange(1.0, count + 1)[:, None])
        for hundredths in range(101):
            expected = max(1, -(-hundredths * count // 100))
            assert quantiles.quantile(hundredths / 100).item() == pytest.approx(expected, rel=RELATIVE_ACCURACY)


@pytest.mark.parametrize("share", [95, -0.1, math.nan])
def test_what_is_no_share_is_refused(raises_sentence, share):
    with raises_sentence(ValueError, f"share={share}", "from 0 to 1"):
        Quantiles(1).quantile(share)


def test_quantiles_of_extreme_numbers():
    quantiles = Quantiles(1)
    quantiles.update(torch.tensor([[-math.inf], [0.0], [1e-300], [math.inf], [1e300]]))
    assert quantiles.quantile(0.0) < -9e11
    assert quantiles.quantile(0.5) == 0
    assert quantiles.quantile(1.0) > 9e11


@given(st.lists(st.tuples(st.integers(0, 2), number, number), min_size=1, max_size=20), st.integers(1, 5))
def test_quantiles_of_rows_are_those_of_each_alone(stream, size):
    rows = torch.tensor([row for row, _, _ in stream])
    values = torch.tensor([numbers for _, *numbers in stream], dtype=torch.float64)
    quantiles = Quantiles(3 * 2)
    for row, value in zip(rows.split(size), values.split(size), strict=True):
        quantiles.update_rows(row, value)
    for row in range(3):
        alone = accumulated(Quantiles, [values[rows == row]], 2)
        for share in (0.0, 0.3, 1.0):
            found = quantiles.quantile(share).view(3, 2)[row]
            assert torch.equal(found.nan_to_num(7.7), alone.quantile(share).nan_to_num(7.7))


def test_quantiles_take_no_more_memory_for_more_numbers(monkeypatch):
    monkeypatch.setattr(Quantiles, "_PENDING", 1000)
    generator = torch.Generator().manual_seed(0)
    quantiles = Quantiles(3)
    sizes = []
    for _ in range(3):
        for _ in range(30):
            quantiles.update(torch.rand(100, 3, generator=generator))
        assert sum(len(keys) for keys, _ in quantiles._waiting) <= max(1000, len(quantiles._keys))
        sizes.append(len(quantiles.state()["keys"]))
    assert sizes[2] < 1.2 * sizes[1]
    torch.testing.assert_close(quantiles.quantile(0.5), torch.full((3,), 0.5, dtype=torch.float64), rtol=0.05, atol=0)


def test_sums_are_mean_and_second_moment():
    vectors = torch.randn(10, 4, dtype=torch.float64)
    sums = Sums((2, 4))
    for piece in vectors.split(3):
        other = Sums((2, 4))
        other.update(len(piece), piece.sum(0), piece.T @ piece, 1)
        sums.merge(other)
    mean, second = sums.means()
    torch.testing.assert_close(mean[1], vectors.mean(0))
    torch.testing.assert_close(second[1], vectors.T @ vectors / 10)
    assert mean[0].abs().max() == 0


def test_a_state_brings_everything_back():
    values = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for kind, arguments in ((Moments, ((2,),)), (Quantiles, (2,))):
        whole = accumulated(kind, values.split(5), *arguments)
        restored = kind(*arguments)
        restored.load_state(accumulated(kind, values.split(5)[:2], *arguments).state())
        for piece in values.split(5)[2:]:
            restored.update(piece)
        for name, tensor in whole.state().items():
            assert torch.equal(restored.state()[name], tensor)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 100, 371])
def test_student_quantile(degrees):
    stats = pytest.importorskip("scipy.stats", reason="compared with SciPy")
    assert math.isclose(student_quantile(0.975, degrees), stats.t.ppf(0.975, degrees), rel_tol=3e-3)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    values = torch.randn(8, 4000, generator=torch.Generator().manual_seed(0))
    moments = accumulated(Moments, [values], (4000,))
    covered = (moments.mean.abs() <= moments.half_interval()).double().mean().item()
    assert 0.93 < covered < 0.97


def test_a_number_that_is_rounded_over_a_bins_edge_moves_a_quantile_by_one_bin():
    """So quantiles of several processes are those of one to 1 %, not to 1e-6."""
    edge = Quantiles._GROWTH**100
    found = []
    for number in (edge * (1 - 1e-9), edge * (1 + 1e-9)):
        quantiles = Quantiles(1)
        quantiles.update(torch.tensor([[0.0], [number], [100 * edge]], dtype=torch.float64))
        found.append(quantiles.quantile(0.5).item())
    assert found[1] / found[0] == pytest.approx(Quantiles._GROWTH, rel=1e-9)
    assert found[1] / found[0] < 1 + 2.1 * RELATIVE_ACCURACY
