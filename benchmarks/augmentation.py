"""Augmentation of a batch: our operations in plain torch beside kornia's, on the same images and strengths.

    pip install kornia
    python benchmarks/augmentation.py --output benchmarks/results/cpu-augmentation.json

Each row is one operation on one batch of photograph-like images in [0, 1], each with a strength of its own, as
training draws them. A ratio is kornia's time over ours in the same round; "differs" is the largest and the mean
difference of the two results, of 255 levels.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import heading, write
from turns import quartiles, ratios, take_turns

from qkvit.training.augmentation import operations as ours

Operation = Callable[[], torch.Tensor]


def photographs(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Noise in octaves, in whole levels: about as much detail at each scale as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, side, side)
    coarse = 4
    while coarse < side:
        noise = torch.randn(count, 3, coarse, coarse, generator=generator)
        images += torch.nn.functional.interpolate(noise, (side, side), mode="bicubic") / coarse**0.35
        coarse *= 2
    images = 0.5 + images / images.std() / 5
    return (images.clamp(0, 1) * 255).round() / 255


def forward(degrees: torch.Tensor, shear: torch.Tensor, shift: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The map of pixels that kornia asks for, (B, 2, 3), from place to place where ours looks: its inverse."""
    angle = torch.deg2rad(degrees)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).unflatten(1, (2, 2))
    one = torch.ones_like(angle)
    lean = torch.stack([one, shear[:, 0], shear[:, 1], one], 1).unflatten(1, (2, 2))
    inverse = torch.linalg.inv(turn @ lean)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=degrees.device)
    pixels = shift * torch.tensor([width, height], device=degrees.device)
    offset = centre - (inverse @ (centre + pixels).unsqueeze(2)).squeeze(2)
    return torch.cat([inverse, offset.unsqueeze(2)], dim=2)


def operations(images: torch.Tensor) -> dict[str, tuple[Operation, Operation]]:
    """Ours and kornia's."""
    from kornia import enhance, filters
    from kornia.geometry import transform as geometry

    count, (height, width) = len(images), images.shape[-2:]
    generator = torch.Generator().manual_seed(1)

    def drawn(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator).to(images.device)

    factor, threshold, sigma = drawn(0.1, 1.9), drawn(0.2, 1.0), drawn(0.1, 2.0)
    bits = drawn(4, 8).round()
    angle, none = drawn(-30, 30), torch.zeros(count, 2, device=images.device)
    shift, shear = drawn(-0.3, 0.3, 2), drawn(-0.3, 0.3, 2)
    grey = torch.full((3,), 0.5, device=images.device)

    def kornia_affine(maps: torch.Tensor) -> torch.Tensor:
        return geometry.warp_affine(
            images, maps, (height, width), padding_mode="fill", fill_value=grey, align_corners=False
        )

    rotation = forward(angle, none, none, height, width)
    everything = forward(angle, shear, shift, height, width)

    return {
        "brightness": (
            lambda: ours.brightness(images, factor),
            lambda: enhance.adjust_brightness_accumulative(images, factor),
        ),
        "contrast": (
            lambda: ours.contrast(images, factor),
            lambda: enhance.adjust_contrast_with_mean_subtraction(images, factor),
        ),
        "saturation": (
            lambda: ours.saturation(images, factor),
            lambda: enhance.adjust_saturation_with_gray_subtraction(images, factor),
        ),
        "sharpness": (lambda: ours.sharpness(images, factor), lambda: enhance.sharpness(images, factor)),
        "solarise": (lambda: ours.solarise(images, threshold), lambda: enhance.solarize(images, threshold)),
        "posterise": (
            lambda: ours.posterise(images, bits),
            lambda: enhance.posterize(images, bits.int()),
        ),
        "equalise": (lambda: ours.equalise(images), lambda: enhance.equalize(images)),
        "auto_contrast": (
            lambda: ours.auto_contrast(images),
            lambda: enhance.normalize_min_max(images),
        ),
        "blur": (
            lambda: ours.blur(images, sigma),
            lambda: filters.gaussian_blur2d(images, (13, 13), sigma.view(-1, 1).expand(-1, 2)),
        ),
        "rotate": (lambda: ours.affine(images, angle, none, none), lambda: kornia_affine(rotation)),
        "affine": (lambda: ours.affine(images, angle, shear, shift), lambda: kornia_affine(everything)),
    }


def main() -> None:
    """Time every operation and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # On a CPU the processor's own time, so that other programs on the machine matter little.
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    images = photographs(arguments.images, arguments.size).to(arguments.device)
    report = heading(arguments.device, "kornia") | {"images": list(images.shape), "rows": []}
    print(f"{'':15}ours, ms an image   kornia over ours         differs at most, on average (levels of 255)")
    for name, (our, theirs) in operations(images).items():
        times = take_turns(
            {"ours": our, "kornia": theirs}, at_least=arguments.rounds, device=arguments.device, clock=clock
        )
        difference = (our() - theirs()).abs() * 255
        milliseconds = [1000 * value / len(images) for value in quartiles(times["ours"])]
        row: dict[str, Any] = {
            "operation": name,
            "ours_ms_an_image": milliseconds,
            "kornia_over_ours": ratios(times["kornia"], times["ours"]),
            "differs_at_most": difference.max().item(),
            "differs_on_average": difference.mean().item(),
        }
        report["rows"].append(row)
        low, middle, high = row["kornia_over_ours"]
        print(
            f"{name:15}{milliseconds[1]:10.3f}{middle:14.2f} ({low:.2f} to {high:.2f})"
            f"{row['differs_at_most']:14.2f}{row['differs_on_average']:12.4f}",
            flush=True,
        )
        write(arguments.output, report)


if __name__ == "__main__":
    main()
