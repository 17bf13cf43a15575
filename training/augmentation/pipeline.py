"""From a batch of bytes to what the model is trained on: flip, warp, colour, normalisation, erasing, mixing.

Shapes: B images, K labels.
"""

from dataclasses import dataclass

import torch

from ..recipe import Augmentation
from .auto_augment import auto_augment
from .counter_random import Purpose, uniform
from .mixing import mix
from .policies import colour_jitter, erase, three_augment
from .rand_augment import rand_augment
from .warp import NUM_PARAMETERS, warp


@dataclass(frozen=True)
class Augmenter:
    """Augmentation of batches; what happens to an image depends on `seed` and the image's key alone.

    Args:
        settings: The recipe's.
        seed: Of the run.
        mean, std: Of each channel, for pixels in [0, 1].
        num_labels: K.

    Example:

    ```python
    >>> augmenter = Augmenter(Augmentation(flip=0.5, mixup=0.8), 0, (0.5,) * 3, (0.5,) * 3, num_labels=4)
    >>> images, keys = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([[0, 7, 0], [0, 3, 0]])
    >>> pixels, targets = augmenter(images, torch.tensor([1, 2]), keys)
    >>> pixels.shape, targets.sum(1)
    (torch.Size([2, 3, 8, 8]), tensor([1., 1.]))

    ```
    """

    settings: Augmentation
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_labels: int

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment.

        Args:
            images: (B, 3, height, width) uint8.
            labels: (B,) integers.
            keys: (B, 3): epoch, index and repeat of each image.

        Returns:
            Normalised pixels (B, 3, height, width), and labels: (B, K) where images are mixed.
        """
        settings, seed = self.settings, self.seed
        keys = keys.cpu()  # what is drawn, is drawn there: a few numbers an image
        if settings.flip:  # as bytes: a quarter of the memory
            flipped = (uniform(seed, Purpose.FLIP, keys, 1)[:, 0] < settings.flip).to(images.device)
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        pixels = images.float().div_(255)  # half the time of images / 255
        if settings.warp:
            drawn = 2 * uniform(seed, Purpose.WARP, keys, NUM_PARAMETERS).to(pixels.device) - 1
            pixels = warp(pixels.flatten(0, 1), drawn.repeat_interleave(3, 0)).view_as(pixels)
        if settings.autoaugment:
            pixels = auto_augment(pixels, settings.autoaugment, seed, keys)
        if settings.randaugment_operations:
            pixels = rand_augment(pixels, settings, seed, keys)
        if settings.three_augment:
            pixels = three_augment(pixels, seed, keys)
        pixels = colour_jitter(pixels, settings, seed, keys)
        pixels = self._normalise_(pixels)
        if settings.erasing:
            pixels = erase(pixels, settings, seed, keys)
        if settings.mixup or settings.cutmix:
            return mix(pixels, labels, self.num_labels, settings, seed, keys)
        return pixels, labels

    def _normalise_(self, pixels: torch.Tensor) -> torch.Tensor:
        """(pixels - mean) / std, in place: fresh memory costs more than the arithmetic."""
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)
