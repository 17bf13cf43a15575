"""The image processor that a saved QKViT model carries, so that `pipeline(...)` finds how to prepare an image."""

import json
import shutil
from pathlib import Path
from typing import Any

FILE_NAME = "preprocessor_config.json"


def default_image_processor(config: Any) -> Any:
    """Resize to `config.image_size`, scale to [0, 1], then to [-1, 1] (mean 0.5, standard deviation 0.5).

    Example:

    ```python
    >>> from qkvit import QKViTConfig
    >>> default_image_processor(QKViTConfig(image_size=(64, 32), patch_size=8)).size["width"]
    32

    ```
    """
    from transformers import ViTImageProcessorPil

    height, width = config.image_shape
    half = [0.5] * config.num_channels
    return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=half, image_std=half)


def save_image_processor(config: Any, folder: str | Path) -> None:
    """Write the image processor into `folder`, unless it has one: it may be the one of the training run.

    A model that was loaded from a folder with an image processor takes that one along, and so does one that
    `qkvit.convert` made from a checkpoint of another family: its settings are in `config.image_processor_settings`.
    """
    folder = Path(folder)
    if (folder / FILE_NAME).exists() or folder.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = getattr(config, "image_processor_settings", None)
    source = _saved_beside(getattr(config, "_name_or_path", ""))
    if settings is not None:
        text = json.dumps(settings, indent=2, sort_keys=True)
        (folder / FILE_NAME).write_text(f"{text}\n", encoding="utf-8")
    elif source is not None:
        shutil.copyfile(source, folder / FILE_NAME)
    else:
        default_image_processor(config).save_pretrained(folder)


def settings_of(config: Any) -> dict[str, Any] | None:
    """The settings of the image processor that belongs to a model: as converted, or beside the model's own files."""
    settings = getattr(config, "image_processor_settings", None)
    if settings is not None:
        return settings
    source = _saved_beside(getattr(config, "_name_or_path", ""))
    return None if source is None else json.loads(source.read_text(encoding="utf-8"))


def _saved_beside(name_or_path: str) -> Path | None:
    """The image processor of the model's own folder or cached Hub repository, if it has one."""
    if not name_or_path:
        return None
    local = Path(name_or_path) / FILE_NAME
    if local.is_file():
        return local
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name_or_path, FILE_NAME)
    except HFValidationError:  # a folder's name, not a repository's
        return None
    return Path(cached) if isinstance(cached, str) else None
