"""Make transformers' Auto classes know QKViT."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    ViTImageProcessorPil,
)

# Not from transformers: 5.17 has it there only where torchvision is installed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
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
    AutoImageProcessor.register(QKViTConfig, image_processor_classes=processors, exist_ok=True)
