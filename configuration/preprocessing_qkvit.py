"""The image processor that a saved QKViT model carries, so that `pipeline(...)` finds how to prepare an image."""

import json
from pathlib import Path
from typing import Any

FILE_NAME = "preprocessor_config.json"


def default_image_processor(config: Any) -> Any:
    """Resize to `config.image_size`, scale to [0, 1], then to [-1, 1] (mean 0.5, standard deviation 0.5).

    transformers' pipelines convert every image to RGB, so they run models of 3 channels alone.

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
    If the folder's is of a model of another size, which is replaced, its size is made this model's.
    """
    folder = Path(folder)
    if folder.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE_NAME
    if not file.exists():
        settings = settings_of(config)
        if settings is None:
            default_image_processor(config).save_pretrained(folder)
        else:
            _write(settings, file)
    else:
        settings = read_settings(folder, FILE_NAME)
        resized = settings and _of_this_size(settings, read_settings(folder, "config.json"), config)
        if resized and resized != settings:
            _write(resized, file)


def without_companions(files_timestamps: dict[str, float]) -> dict[str, float]:
    """The times of a folder's files without those of the code and the image processor: so they are uploaded always.

    transformers uploads what is newer than the times that it took, and these are written before it takes them.
    """
    return {
        name: time for name, time in files_timestamps.items() if name != FILE_NAME and not name.endswith("_qkvit.py")
    }


def settings_of(config: Any) -> dict[str, Any] | None:
    """The settings of the image processor that belongs to a model: as converted, or beside the model's own files."""
    settings = getattr(config, "image_processor_settings", None)
    source = getattr(config, "_name_or_path", "")
    return settings_beside(source, config, local_files_only=True) if settings is None and source else settings


def settings_beside(name_or_path: Any, config: Any, **at: Any) -> dict[str, Any] | None:
    """The settings of the image processor in a model's folder or Hub repository, if there is one.

    Args:
        config: The model's, which may have been given another size than its file has.
        at: `subfolder`, `revision`, `cache_dir` and the like, as the model was loaded.
    """
    settings = read_settings(name_or_path, FILE_NAME, **at)
    return settings and _of_this_size(settings, read_settings(name_or_path, "config.json", **at), config)


def _of_this_size(settings: dict[str, Any], fields: dict[str, Any] | None, config: Any) -> dict[str, Any]:
    """With the size of `config` in the place of that of the model whose fields are given, and its number of channels.

    Any other size was chosen, for a model takes images of all sizes; so was a crop, which goes with its own size.
    """
    means = settings.get("image_mean")
    if isinstance(means, list) and len(means) != config.num_channels:
        half = [0.5] * config.num_channels
        settings = {**settings, "image_mean": half, "image_std": half}
    old, size = (fields or {}).get("image_size"), settings.get("size")
    if not isinstance(size, dict) or settings.get("do_center_crop"):
        return settings
    if [size.get("height"), size.get("width")] not in (old, [old, old]):
        return settings
    height, width = config.image_shape
    return {**settings, "size": {"height": height, "width": width}}


def read_settings(name_or_path: Any, file: str, **at: Any) -> dict[str, Any] | None:
    """The JSON object in a file of a folder, or of a Hub repository; `None` without one."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            str(name_or_path),
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **at,
        )
        content = None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no repository's name, or no JSON
        return None
    return content if isinstance(content, dict) else None


def _write(settings: dict[str, Any], file: Path) -> None:
    file.write_text(f"{json.dumps(settings, indent=2, sort_keys=True)}\n", encoding="utf-8")
