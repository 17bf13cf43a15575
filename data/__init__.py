"""Images from folders, Parquet files and the Hub, for whatever measures, evaluates or trains."""

from .batching import ImageBatches, ImageDataset, batches
from .decoding import BadImage, BadImageError, SourceUnreachableError, decode_image
from .image_source import ImageSource, Sample
from .opening import open_images

__all__ = [
    "BadImage",
    "BadImageError",
    "ImageBatches",
    "ImageDataset",
    "ImageSource",
    "Sample",
    "SourceUnreachableError",
    "batches",
    "decode_image",
    "open_images",
]
