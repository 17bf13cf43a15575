"""Make transformers' Auto classes know QKViT."""

import contextlib

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    ViTImageProcessorPil,
)
from transformers.utils import is_torchvision_available

from .configuration import QKViTConfig
from .modeling import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel


def register() -> None:
    """Register configuration, models and image processor; doing it twice changes nothing."""
    AutoConfig.register("qkvit", QKViTConfig, exist_ok=True)
    AutoModel.register(QKViTConfig, QKViTModel, exist_ok=True)
    AutoModelForImageClassification.register(QKViTConfig, QKViTForImageClassification, exist_ok=True)
    AutoModelForMaskedImageModeling.register(QKViTConfig, QKViTForMaskedImageModeling, exist_ok=True)
    AutoBackbone.register(QKViTConfig, QKViTBackbone, exist_ok=True)
    processors: dict[str, type] = {"pil": ViTImageProcessorPil}
    if is_torchvision_available():
        from transformers import ViTImageProcessor

        processors["torchvision"] = ViTImageProcessor
    with contextlib.suppress(ImportError):  # early versions have no AutoImageProcessor without torchvision
        AutoImageProcessor.register(QKViTConfig, image_processor_classes=processors, exist_ok=True)
