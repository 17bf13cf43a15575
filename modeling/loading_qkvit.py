"""Say in one sentence why a saved model does not load: the file, what is wrong with it, and what to do.

safetensors and transformers name neither the damaged file nor a way out. Nothing is looked at before a load fails, so
whatever transformers can load, it loads; only weights that are not those that were saved are refused after it.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from .checksums_qkvit import SUMS, changed_in_cache, changed_weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "copy, download or save it again"
_HEAD = re.compile(r"^(distillation_)?classifier\.")
_OF_THE_BASE = re.compile(r"^(qkvit\.)?(embeddings|pre_norm|layers|norm)\.")  # a head, also a user's own, may be new
_FILE_ERRORS = (OSError, RuntimeError, SafetensorError)
_INDEX_ERRORS = (json.JSONDecodeError, KeyError, TypeError, AttributeError)  # what a damaged index leads to


@contextmanager
def plain_load_errors(name_or_path: Any, subfolder: str = "", has_config: bool = False) -> Iterator[None]:
    """Raise an `OSError` of one sentence where loading `name_or_path` fails for want of a sound file.

    Every other error passes as it is.

    Args:
        has_config: The caller has a configuration, so that the folder needs none.

    Example:

    ```python
    >>> with plain_load_errors("no/such/folder"):
    ...     raise OSError("Repo id must be in the form ...")
    Traceback (most recent call last):
    ...
    OSError: 'no/such/folder' is no folder here and no id on the Hub; pass a folder that save_pretrained wrote, or an id

    ```
    """
    try:
        yield
    except (*_FILE_ERRORS, *_INDEX_ERRORS) as error:
        sentence = _sentence(str(name_or_path), subfolder, has_config, error)
        if sentence is None:
            raise
        raise OSError(sentence) from error


def _sentence(name_or_path: str, subfolder: str, has_config: bool, error: Exception) -> str | None:
    """What is wrong, or None if the files are not the reason."""
    folder = Path(name_or_path, subfolder)
    if folder.is_dir():
        return _missing(folder, has_config) or _damaged(sorted(folder.glob("*.safetensors")))
    if "Repo id must be" in str(error):
        way_out = "pass a folder that save_pretrained wrote, or an id"
        return f"{name_or_path!r} is no folder here and no id on the Hub; {way_out}"
    if isinstance(error, SafetensorError):
        return _damaged(_cached(name_or_path, subfolder))
    if isinstance(error, OSError) and "couldn't connect to" in str(error):
        way_out = "pass a folder that save_pretrained wrote, or connect to the Hub for an id"
        return f"{name_or_path!r} is no folder here, and the Hub does not answer; {way_out}"
    return None


# ---- tensors that do not fit


def load_checked(load: Callable[..., Any], name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
    """What `from_pretrained` gives, if the file's tensors are the model's.

    Args:
        load: `from_pretrained` of transformers.

    Raises:
        RuntimeError: a tensor has another shape, as where transformers raises it.
        OSError: one of the base model is missing, and the caller did not ask for `output_loading_info`; or a file's
            SHA-256 is not the one that was written beside it, or that the Hub told when it was downloaded.
    """
    wants_info = kwargs.pop("output_loading_info", False)
    try:
        model, info = load(name_or_path, *args, output_loading_info=True, **kwargs)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error) or kwargs.get("ignore_mismatched_sizes"):
            raise
        # transformers names the shapes in its log alone: they are asked for again.
        _, info = load(name_or_path, *args, output_loading_info=True, **{**kwargs, "ignore_mismatched_sizes": True})
        raise RuntimeError(_mismatched(name_or_path, info["mismatched_keys"])) from error
    lacking = [] if _may_lack_tensors(model, kwargs) else _of_the_base(model, info["missing_keys"])
    if lacking and not wants_info:  # who asks for the report sees what is missing
        raise OSError(_lacks(name_or_path, lacking))
    if not lacking and name_or_path is not None and kwargs.get("state_dict") is None:
        _refuse_changed(str(name_or_path), kwargs)
    return (model, info) if wants_info else model


def _mismatched(name_or_path: Any, tensors: Any) -> str:
    name, in_file, in_model = min(tensors)
    if _HEAD.search(name):
        way_out = "pass ignore_mismatched_sizes=True to start with a new classifier"
    elif name.endswith("embeddings.position_embeddings"):
        way_out = "leave image_size out: images of other sizes are accepted as they are"
    else:
        way_out = f"the file belongs to another configuration: load it with the {CONFIG} that was saved with it"
    shapes = f"has shape {tuple(in_file)} in the file and {tuple(in_model)} in the model"
    return f"{name} {shapes} ({name_or_path}); {way_out}"


def _may_lack_tensors(model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the report of missing tensors is another's than the model file's, or the caller wants them anew."""
    return (
        bool(kwargs.get("ignore_mismatched_sizes"))
        or kwargs.get("state_dict") is not None
        or kwargs.get("quantization_config") is not None
        or getattr(model, "hf_quantizer", None) is not None
        or bool(getattr(model, "_hf_peft_config_loaded", False))
    )


def _of_the_base(model: Any, missing: Any) -> list[str]:
    parts = "qkvit." if hasattr(model, "qkvit") else ""  # a head of the user's own may have the name of one of them
    found = [name for name in missing if name.startswith(parts) and _OF_THE_BASE.search(name)]
    return sorted(name for name in found if not name.endswith("mask_token"))


def _lacks(name_or_path: Any, missing: list[str]) -> str:
    lacks = f"{name_or_path} lacks {missing[0]}, one of {len(missing)} missing tensors"
    way_out = f"{AGAIN}, or pass ignore_mismatched_sizes=True to start what is missing anew"
    return f"{lacks}: it is damaged or another model's; {way_out}"


def _refuse_changed(name_or_path: str, kwargs: dict[str, Any]) -> None:
    subfolder = kwargs.get("subfolder") or ""
    folder = Path(name_or_path, subfolder)
    if folder.is_dir():
        changed = changed_weights(folder)
        if changed is not None:
            why = f"{changed} is not what was saved there: its SHA-256 is not the one in {SUMS}"
            raise OSError(f"{why}; {AGAIN}, or delete {SUMS} if the change was meant")
    elif kwargs.get("use_safetensors") is not False:
        at = {name: kwargs[name] for name in ("revision", "cache_dir") if kwargs.get(name)}
        changed = changed_in_cache(_cached(name_or_path, subfolder, kwargs.get("variant"), **at))
        if changed is not None:
            why = f"{changed} is not what the Hub has of {name_or_path}: its SHA-256 is not its name"
            raise OSError(f"{why}; delete it, and load the model again to download it")


def _missing(folder: Path, has_config: bool) -> str | None:
    """The sentence for a folder that is no model, or that lacks a part of one."""
    if (folder / "adapter_config.json").is_file():
        return None  # an adapter's folder: its model is elsewhere
    if not has_config and not (folder / CONFIG).is_file():
        return f"{folder} is no model: it has no {CONFIG}; pass a folder that save_pretrained wrote"
    index = folder / INDEX
    if index.is_file() and not (folder / WEIGHTS).is_file():
        shards = _shards(index)
        if shards is None:
            return f"{index} is damaged: it is not an index of files in JSON; {AGAIN}"
        lacking = [shard for shard in shards if not (folder / shard).is_file()]
        if lacking:
            return f"{folder / lacking[0]} is missing, one of {len(shards)} files that {INDEX} names; {AGAIN}"
    elif not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin*")):
        return f"{folder} has no weights; save the model there again, or copy {WEIGHTS} into it"
    return None


def _shards(index: Path) -> list[str] | None:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _damaged(files: list[Path]) -> str | None:
    """The sentence for the first file that safetensors does not open."""
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                continue
        except (SafetensorError, OSError) as error:
            return not_opened(file, error)
    return None


def not_opened(file: Path, error: Exception) -> str:
    """The sentence for a weight file, from the error with which safetensors does not open it."""
    reason = str(error).removeprefix("Error while deserializing header: ")
    damaged = f"{file} is damaged or cut short ({file.stat().st_size:,} bytes; safetensors: {reason}); {AGAIN}"
    return lfs_pointer(file) or damaged


def lfs_pointer(file: Path) -> str | None:
    """The sentence for a file that `git clone` left in the place of weights; None for any other."""
    with suppress(OSError), file.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            return f"{file} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
    return None


def _cached(repository: str, subfolder: str, variant: str | None = None, **at: Any) -> list[Path]:
    """The weight files of a Hub repository that lie in the cache: of those that transformers looks for, the first."""
    prefix = f"{subfolder}/" if subfolder else ""
    of = f".{variant}" if variant else ""
    for name in (WEIGHTS.replace(".safetensors", f"{of}.safetensors"), INDEX.replace(".json", f"{of}.json")):
        try:
            found = try_to_load_from_cache(repository, prefix + name, **at)
        except HFValidationError:
            return []
        if isinstance(found, str):
            file = Path(found)
            shards = [name] if file.suffix != ".json" else _shards(file) or []
            return sorted(path for path in (file.parent / shard for shard in shards) if path.is_file())
    return []
