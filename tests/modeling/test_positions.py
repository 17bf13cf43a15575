"""Positions: learned and interpolated, fixed sine and cosine, rotary; each against its formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit.modeling.positions_qkvit import interpolate_learned, rotary_2d, rotate_patches, sincos_2d

CPU = torch.device("cpu")
grids = st.tuples(st.integers(1, 6), st.integers(1, 6))

# ---- learned


def test_learned_positions_at_their_own_size_are_returned_as_they_are():
    positions = torch.randn(1, 12, 8)
    assert interpolate_learned(positions, (3, 4), (3, 4)) is positions


def test_learned_positions_at_another_size_are_those_of_a_bicubic_resize_of_each_channel():
    positions = torch.randn(1, 12, 8)
    found = interpolate_learned(positions, (3, 4), (5, 2))
    assert found.shape == (1, 10, 8)
    for channel in range(8):
        image = positions[0, :, channel].reshape(1, 1, 3, 4)
        resized = torch.nn.functional.interpolate(image, size=(5, 2), mode="bicubic", align_corners=False)
        torch.testing.assert_close(found[0, :, channel], resized.flatten())


def test_learned_positions_can_be_antialiased():
    positions = torch.randn(1, 36, 2)
    for channel in range(2):
        image = positions[0, :, channel].reshape(1, 1, 6, 6)
        resized = torch.nn.functional.interpolate(image, (2, 3), mode="bicubic", align_corners=False, antialias=True)
        found = interpolate_learned(positions, (6, 6), (2, 3), antialias=True)
        torch.testing.assert_close(found[0, :, channel], resized.flatten())


def test_positions_of_64_bits_are_interpolated_in_64_bits():
    positions = torch.randn(1, 4, 4, dtype=torch.float64)
    found = interpolate_learned(positions, (2, 2), (3, 3))
    assert found.dtype == torch.float64
    rounded = interpolate_learned(positions.float(), (2, 2), (3, 3)).double()
    assert 0 < (found - rounded).abs().max() < 1e-6


@given(grids, grids)
def test_interpolation_keeps_a_constant(trained, grid):
    positions = torch.full((1, trained[0] * trained[1], 2), 3.0)
    torch.testing.assert_close(
        interpolate_learned(positions, trained, grid), torch.full((1, grid[0] * grid[1], 2), 3.0)
    )


def test_interpolation_does_not_mix_up_rows_and_columns():
    rows = torch.arange(4.0).repeat_interleave(6).reshape(1, 24, 1)  # the value is the row
    found = interpolate_learned(rows, (4, 6), (8, 3)).reshape(8, 3)
    assert (found == found[:, :1]).all()  # along the columns nothing changes
    assert (found[1:, 0] > found[:-1, 0]).all()


def test_a_grid_of_as_many_patches_and_another_shape_is_interpolated():
    positions = torch.randn(1, 12, 4)
    assert not torch.equal(interpolate_learned(positions, (3, 4), (4, 3)), positions)


def test_interpolation_keeps_the_data_type_and_lets_gradients_through():
    positions = torch.randn(1, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    found = interpolate_learned(positions, (2, 2), (3, 3))
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert positions.grad.abs().sum() > 0


# ---- fixed sine and cosine


@given(st.integers(2, 8).map(lambda quarter: 4 * quarter), grids, grids)
def test_sincos_positions_are_those_of_the_formula(width, trained, grid):
    found = sincos_2d(width, trained, grid, CPU)[0]
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            y = (row + 0.5) * trained[0] / grid[0] - 0.5
            x = (column + 0.5) * trained[1] / grid[1] - 0.5
            frequencies = [10_000 ** (-i / (quarter - 1)) for i in range(quarter)]
            expected = [
                function(coordinate * frequency)
                for coordinate in (x, y)
                for function in (math.sin, math.cos)
                for frequency in frequencies
            ]
            expected = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(found[row * grid[1] + column].double(), expected, rtol=1e-5, atol=1e-5)


def test_sincos_positions_at_their_own_size_stand_on_whole_numbers():
    table = sincos_2d(8, (3, 4), (3, 4), CPU)[0].reshape(3, 4, 8)
    torch.testing.assert_close(table[2, 3, 0], torch.tensor(3.0).sin())  # x, at the frequency 1
    torch.testing.assert_close(table[2, 3, 4], torch.tensor(2.0).sin())  # y


# ---- rotary

seeds = st.integers(0, 2**31 - 1)
head_dims = st.sampled_from([4, 8, 12, 16])


def double_rotation(head_dim: int, grid: tuple[int, int], base: float = 100.0):
    cosine, sine = rotary_2d(head_dim, grid, CPU, base)
    angle = torch.atan2(sine.double(), cosine.double())  # cos^2 + sin^2 = 1 to the precision of float64
    return angle.cos(), angle.sin()


def random_heads(seed: int, tokens: int, head_dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, tokens, head_dim, dtype=torch.float64, generator=generator)


@given(head_dims, grids, st.floats(1, 10_000))
def test_rotary_angles_are_those_of_the_formula(head_dim, grid, base):
    cosine, sine = rotary_2d(head_dim, grid, CPU, base)
    assert cosine.shape == sine.shape == (grid[0] * grid[1], head_dim)
    for row in range(grid[0]):
        for column in range(grid[1]):
            centre = (2 * (row + 0.5) / grid[0] - 1, 2 * (column + 0.5) / grid[1] - 1)
            angles = [
                2 * math.pi * coordinate * base ** (-4 * i / head_dim)
                for coordinate in centre
                for i in range(head_dim // 4)
            ]
            angles = torch.tensor(angles * 2, dtype=torch.float64)
            patch = row * grid[1] + column
            torch.testing.assert_close(cosine[patch].double(), angles.cos(), rtol=0, atol=1e-5)
            torch.testing.assert_close(sine[patch].double(), angles.sin(), rtol=0, atol=1e-5)


@given(seeds, head_dims, grids)
def test_a_rotation_keeps_lengths(seed, head_dim, grid):
    heads = random_heads(seed, grid[0] * grid[1], head_dim)
    turned = rotate_patches(heads, double_rotation(head_dim, grid))
    torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1), rtol=1e-12, atol=0)


@given(seeds, head_dims, st.integers(2, 5), st.integers(2, 5))
def test_scores_depend_on_differences_of_positions_alone(seed, head_dim, rows, columns):
    query, key = (random_heads(s, 1, head_dim).expand(-1, -1, rows * columns, -1) for s in (seed, seed + 1))
    rotation = double_rotation(head_dim, (rows, columns))
    scores = rotate_patches(query, rotation) @ rotate_patches(key, rotation).transpose(-1, -2)
    scores = scores.unflatten(-1, (rows, columns)).unflatten(-3, (rows, columns))  # (..., rows, columns, rows, columns)
    shifted = scores[..., 1:, 1:, 1:, 1:]
    torch.testing.assert_close(shifted, scores[..., :-1, :-1, :-1, :-1], rtol=1e-5, atol=1e-5)


@given(seeds, grids, st.integers(0, 3))
def test_a_rotation_leaves_the_tokens_before_the_patches_alone(seed, grid, prefix):
    heads = random_heads(seed, prefix + grid[0] * grid[1], 8)
    turned = rotate_patches(heads, double_rotation(8, grid))
    assert turned.shape == heads.shape
    assert torch.equal(turned[:, :, :prefix], heads[:, :, :prefix])


def test_a_rotation_of_64_bits_differs_from_that_of_32_by_rounding():
    rough, fine = rotary_2d(8, (5, 3), CPU, 100.0), rotary_2d(8, (5, 3), CPU, 100.0, torch.float64)
    for found, expected in zip(rough, fine, strict=True):
        assert expected.dtype == torch.float64
        assert 0 < (found - expected).abs().max() < 1e-6


def test_positions_differ_along_both_axes():
    cosine, sine = rotary_2d(8, (3, 3), CPU, 100.0)
    assert len(torch.unique(torch.cat([cosine, sine], dim=1), dim=0)) == 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rotation_is_computed_in_float32_and_given_back_in_the_data_type_of_the_heads(dtype):
    heads = torch.randn(1, 1, 16, 8).to(dtype)
    rotation = rotary_2d(8, (4, 4), CPU, 100.0)
    turned = rotate_patches(heads, rotation)
    assert turned.dtype == dtype
    assert torch.equal(turned, rotate_patches(heads.float(), rotation).to(dtype))
