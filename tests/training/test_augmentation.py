"""Warps: no change at 0, small change within their limits, ink stays ink."""

import torch

from qkvit.training.augmentation import MAX_SHIFT as SHIFT
from qkvit.training.augmentation import NUM_PARAMETERS, warp, warp_parameters


def square(batch=1):
    images = torch.zeros(batch, 28, 28)
    images[:, 8:20, 8:20] = 255
    return images


def test_parameters_are_drawn_anew_for_each_image_epoch_and_seed():
    drawn = [warp_parameters(4, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(numbers.abs().max() <= 1 for numbers in drawn)
    assert len({tuple(row.tolist()) for numbers in drawn for row in numbers}) == 16
    assert warp_parameters(4, seed=1, epoch=1).equal(drawn[-1])


def test_parameters_of_an_image_do_not_depend_on_how_many_there_are():
    assert warp_parameters(3, seed=0, epoch=0).equal(warp_parameters(9, seed=0, epoch=0)[:3])


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
    images = warp(square(200), warp_parameters(200, seed=0, epoch=0))
    assert images.min() >= 0
    assert images.max() <= 255.01
    share = images.sum((1, 2)) / square().sum()
    assert share.min() > 0.6
    assert share.max() < 1.6
    assert (images - square()).abs().mean(dim=(1, 2)).min() > 1  # every image is changed
