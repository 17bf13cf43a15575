"""Norms after the output projection are those of the product itself, also where the projection loses directions."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from qkvit.analysis import PreparedProjection
from qkvit.analysis.statistics.values import head_factors, norms_and_shares, projected_norms


@given(
    heads=some.integers(1, 3),
    tokens=some.integers(1, 30),  # few or many beside the width of the model: by the product itself or by its factors
    width=some.sampled_from([1, 4, 32]),
    columns=some.sampled_from([1, 8, 40]),
    condition=some.sampled_from([1.0, 1e3, 1e6]),
    seed=some.integers(0, 1000),
)
def test_norms_are_those_of_the_projected_vectors(rows_read_by, heads, tokens, width, columns, condition, seed):
    torch.manual_seed(seed)
    projection = torch.randn(columns, heads * width) * torch.logspace(0, 0.5, heads * width)
    vectors = torch.randn(2, heads, tokens, width) * torch.linspace(1, condition, width)
    blocks = projection.double().T.unflatten(0, (heads, width))
    exact = (vectors.double() @ blocks).norm(dim=-1)
    found = projected_norms(vectors, projection)
    lost = 1e-6 * vectors.norm(dim=-1) * blocks.flatten(1).norm(dim=-1)[:, None]  # a direction that W has not
    assert ((found - exact).abs() <= 1e-5 * exact + lost).all()


def test_a_small_direction_keeps_its_norm():
    """A square of W in float32 would lose it: 1e-4 squared is less than its rounding."""
    projection = torch.diag(torch.tensor([1.0, 1e-4]))
    vectors = torch.tensor([0.0, 1.0]).expand(1, 1, 9, 2)
    assert projected_norms(vectors, projection)[0, 0, 8].item() == pytest.approx(1e-4, rel=1e-5)


def test_a_head_without_weights_gives_nothing():
    assert projected_norms(torch.ones(1, 2, 9, 4), torch.zeros(5, 8)).abs().max() < 1e-30


def test_weights_that_are_not_numbers_are_not_hidden():
    projection = torch.eye(4)
    projection[0, 0] = torch.nan
    norms = projected_norms(torch.ones(1, 2, 9, 2), projection)
    assert norms[0, 0].isnan().all()
    assert not norms[0, 1].isnan().any()


def test_factors_are_square_whatever_the_width_of_the_model():
    assert head_factors(torch.randn(64, 12), 3).shape == (3, 4, 4)


@given(
    images=some.integers(1, 3),
    heads=some.integers(1, 5),
    tokens=some.integers(1, 20),
    columns=some.sampled_from([1, 7, 130, 300]),
    piece=some.sampled_from([1, 2**10, 2**20]),
    seed=some.integers(0, 1000),
)
def test_shares_are_those_of_the_output(rows_read_by, images, heads, tokens, columns, piece, seed):
    """In whatever pieces the output is computed."""
    torch.manual_seed(seed)
    outputs, projection = torch.randn(images, heads, tokens, 4), torch.randn(columns, heads * 4)
    parts = outputs.double() @ projection.double().T.unflatten(0, (heads, 4))  # (B, H, N, C)
    along = (parts * parts.sum(dim=1, keepdim=True)).sum(dim=(2, 3))
    with mock.patch("qkvit.analysis.statistics.values.CPU_PIECE", piece):
        norms, shares = norms_and_shares(outputs, projection)
    torch.testing.assert_close(norms.double(), parts.norm(dim=-1), rtol=1e-4, atol=1e-6)
    lost = 1e-5 * parts.norm(dim=(2, 3)).sum(dim=1, keepdim=True) ** 2
    assert ((shares.double() * along.sum(dim=1, keepdim=True) - along).abs() <= lost).all()


@given(
    images=some.integers(1, 3),
    heads=some.integers(1, 5),
    tokens=some.integers(1, 40),
    width=some.sampled_from([4, 16, 48]),  # torch multiplies all heads with all, or the kernel every two
    at_once=some.sampled_from([1, 16, 512]),
    is_transposed=some.booleans(),
    seed=some.integers(0, 1000),
)
def test_shares_by_a_prepared_projection_are_those_of_the_output(
    rows_read_by, images, heads, tokens, width, at_once, is_transposed, seed
):
    torch.manual_seed(seed)
    projection = torch.nn.Linear(heads * width, 20, dtype=torch.float64).requires_grad_(False)
    outputs = torch.randn(images, tokens, heads, width).transpose(1, 2)  # as a backend gives it
    outputs = outputs if is_transposed else outputs.contiguous()
    parts = outputs.double() @ projection.weight.T.unflatten(0, (heads, width))  # (B, H, N, C)
    along = (parts * parts.sum(dim=1, keepdim=True)).sum(dim=(2, 3))
    prepared = PreparedProjection.of(projection.float(), heads)
    with mock.patch("qkvit.analysis.statistics.fused_cpu.TOKENS_AT_ONCE", at_once):
        _, shares = norms_and_shares(outputs, prepared.weight, prepared)
    lost = 1e-5 * parts.norm(dim=(2, 3)).sum(dim=1, keepdim=True) ** 2
    assert ((shares.double() * along.sum(dim=1, keepdim=True) - along).abs() <= lost).all()


def test_outputs_that_are_not_numbers_are_not_hidden_by_a_prepared_projection(rows_read_by):
    prepared = PreparedProjection.of(torch.nn.Linear(48, 20), 3)
    outputs = torch.randn(2, 3, 9, 16)
    outputs[0, 1, 5, 3] = torch.nan
    norms, shares = norms_and_shares(outputs, prepared.weight, prepared)
    assert shares[0].isnan().all()
    assert shares[1].isfinite().all()
    assert norms.isnan().nonzero().tolist() == [[0, 1, 5]]
