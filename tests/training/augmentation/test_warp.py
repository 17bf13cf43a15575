"""Warps: no change at 0, small change within their limits, ink stays ink."""

import torch

from qkvit.training.augmentation.warp import MAX_SHIFT as SHIFT
from qkvit.training.augmentation.warp import NUM_PARAMETERS, warp


def square(batch=1):
    images = torch.zeros(batch, 28, 28)
    images[:, 8:20, 8:20] = 255
    return images


def test_no_parameters_no_change():
    torch.testing.assert_close(warp(square(2), torch.zeros(2, NUM_PARAMETERS)), square(2), atol=0.05, rtol=0)


def test_a_shift_moves_the_ink():
    parameters = torch.zeros(2, NUM_PARAMETERS)
    parameters[0, 4], parameters[1, 5] = 1, 1  # along x, along y
    images = warp(square(2), parameters)
    columns, rows = torch.arange(28.0), torch.arange(28.0)
    centre_x = (images.sum(1) * columns).sum(1) / images.sum((1, 2))
    centre_y = (images.sum(2) * rows).sum(1) / images.sum((1, 2))
    torch.testing.assert_close(centre_x, torch.tensor([13.5 - SHIFT, 13.5]), atol=0.02, rtol=0)
    torch.testing.assert_close(centre_y, torch.tensor([13.5, 13.5 - SHIFT]), atol=0.02, rtol=0)


def test_warped_ink_stays_about_as_much_and_within_its_range():
    images = warp(square(200), 2 * torch.rand(200, NUM_PARAMETERS, generator=torch.Generator().manual_seed(0)) - 1)
    assert images.min() >= 0
    assert images.max() <= 255.01
    share = images.sum((1, 2)) / square().sum()
    assert share.min() > 0.6
    assert share.max() < 1.6
    assert (images - square()).abs().mean(dim=(1, 2)).min() > 1  # every image is changed
