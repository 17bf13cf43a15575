"""Scales begin at 0 where that shows differences, say so where they do not, and never stretch noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit.analysis.pictures.scales import NARROWEST, Scale, scale_of

positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


@pytest.mark.parametrize("smallest", [0.0, 1.0, 3.3])
def test_amounts_begin_at_zero(smallest):
    scale = scale_of(torch.tensor([smallest, 5.0]))
    assert scale == Scale(0, 5.0)
    assert scale.remark == ""


def test_values_that_lie_close_together_are_told_apart():
    scale = scale_of(torch.tensor([4.5, 4.75, 5.0, math.nan, math.inf]))
    assert scale == Scale(4.5, 5.0)
    assert scale.remark == "from 4.5, not 0"


def test_noise_does_not_become_a_pattern():
    scale = scale_of(torch.tensor([5.0, 4.999]))
    assert scale == Scale(4.5, 5.0)


@given(positive, st.sampled_from(["linear", "root", "log"]))
def test_a_scale_holds_all_values_and_is_wide_enough(values, kind):
    scale = scale_of(torch.tensor(values, dtype=torch.float64), kind)
    assert scale.low <= min(values)
    assert scale.high == max(values)
    assert scale.high - scale.low >= NARROWEST * scale.high * (1 - 1e-9)
    scale.norm()


@pytest.mark.parametrize("kind", ["root", "log"])
def test_only_values_far_apart_have_a_bent_scale(kind):
    assert scale_of(torch.tensor([1.0, 9.0]), kind).kind == "linear"
    bent = scale_of(torch.tensor([1.0, 11.0]), kind)
    assert bent.kind == kind
    assert bent.remark == f"{kind} scale"


def test_there_is_no_logarithm_of_zero():
    assert scale_of(torch.tensor([0.0, 5.0]), "log") == Scale(0, 5.0)


@pytest.mark.parametrize("values", [[], [0.0], [math.nan]])
def test_nothing_to_show_has_a_scale_too(values):
    assert scale_of(torch.tensor(values)) == Scale(0, 1)


def test_a_value_below_zero_is_inside():
    assert scale_of(torch.tensor([-1.0, 3.0])).low == -1
    assert scale_of(torch.tensor([-3.0, -2.9])).low <= -3


@given(positive, st.sampled_from(["linear", "root", "log"]))
def test_the_numbers_beside_the_colours_are_as_they_are_written(values, kind):
    scale = scale_of(torch.tensor(values, dtype=torch.float64), kind)
    marks = scale.ticks()
    assert 3 <= len(marks) <= 7
    assert all(math.isclose(float(f"{mark:.3g}"), mark, abs_tol=1e-12) for mark in marks)
    assert all(scale.low <= mark <= scale.high * (1 + 1e-9) for mark in marks)


@pytest.mark.parametrize("values", [[-1.0, -1.0], [-5.0, -4.9]])
def test_a_scale_of_negative_numbers_ends_at_zero(values):
    scale = scale_of(torch.tensor(values))
    assert (scale.low, scale.high) == (values[0], 0)
