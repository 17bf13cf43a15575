"""What the transfer examples share: a pretrained model of any family, and how its images are prepared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig

import qkvit
from qkvit.configuration.preprocessing_qkvit import settings_of


def load_base(source: str | Path) -> qkvit.QKViTModel:
    """The model without a head, in float32: a QKViT folder or Hub id, or whatever `qkvit.convert` reads."""
    config, _ = PreTrainedConfig.get_config_dict(source)
    model: Any = (
        qkvit.QKViTModel.from_pretrained(source) if config.get("model_type") == "qkvit" else qkvit.convert(source)
    )
    settings = settings_of(model.config)
    base = getattr(model, "qkvit", model).float().eval()
    base.config.image_processor_settings = settings
    return base


@dataclass(frozen=True)
class Prepare:
    """A PIL image as the model was trained to see it: (3, size, size), normalised.

    The shorter side is resized to `size / crop_share`, bicubic, and the centre is cut out. With `augment`, a random
    part of the image is cut out instead, and mirrored half of the time ("Inception" cropping, arXiv 1409.4842).
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_share: float = 0.875
    augment: bool = False
    smallest_area: float = 0.3

    @classmethod
    def like(cls, model: qkvit.QKViTModel, size: int, **fields: Any) -> "Prepare":
        """With the mean and standard deviation of the model's own image processor."""
        settings = settings_of(model.config) or {}
        own = {
            ours: tuple(settings[theirs])
            for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
            if theirs in settings
        }
        return cls(size=size, **own, **fields)

    def settings(self) -> dict[str, Any]:
        """As preprocessor_config.json states it for transformers' image processors, without the augmentation."""
        return {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": round(self.size / self.crop_share)},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }

    def __call__(self, image: Image.Image) -> torch.Tensor:
        image = self._random_part(image) if self.augment else self._centre(image)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255  # (size, size, 3)
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()

    def _centre(self, image: Image.Image) -> Image.Image:
        scale = round(self.size / self.crop_share) / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

    def _random_part(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        area = width * height * torch.empty(()).uniform_(self.smallest_area, 1).item()
        ratio = torch.empty(()).uniform_(-0.29, 0.29).exp().item()  # from 3/4 to 4/3
        part_width, part_height = (min(side, (area * r) ** 0.5) for side, r in ((width, ratio), (height, 1 / ratio)))
        left, top = (torch.rand(()).item() * space for space in (width - part_width, height - part_height))
        box = (left, top, left + part_width, top + part_height)
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else image
