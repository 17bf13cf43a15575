"""A model's folder that appears only when all of it is there."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

# What a saved model consists of: replaced together, so that no part of an old one is left beside a new one.
_OF_A_MODEL = (
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "SHA256SUMS",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "*_qkvit.py",
)


def check_free(folder: Path, force: bool = False) -> None:
    """Refuse a folder that holds something, unless it is a model and `force` is given.

    Raises:
        ValueError: with what to do instead.
    """
    if (folder.exists() and not folder.is_dir()) or (folder.is_symlink() and not folder.exists()):
        raise ValueError(f"{folder} is not a folder; name another place")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name another folder, or pass force=True to replace the model in it")
    if force and folder.is_dir() and any(folder.iterdir()) and not _is_model(folder):
        raise ValueError(f"{folder} holds no model that could be replaced, but other things; name another folder")


def _is_model(folder: Path) -> bool:
    """Whether there is a config.json of transformers or timm, or nothing that a model would take the place of."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in _OF_A_MODEL)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool({"model_type", "architectures", "architecture"} & config.keys())


@contextmanager
def whole_folder(folder: str | Path, force: bool = False) -> Iterator[Path]:
    """Give a new folder beside `folder` to write in, and put it in its place at the end.

    If the block raises, or is stopped, what it wrote is removed and `folder` is as it was. With `force`, the files of
    an earlier model are replaced, and other files stay.

    Raises:
        ValueError: the folder is not empty, or nothing can be written there.

    Example:

    ```python
    >>> with whole_folder("saved") as part:
    ...     _ = (part / "config.json").write_text("{}")
    ...     Path("saved").exists()
    False
    >>> Path("saved/config.json").exists()
    True

    ```
    """
    folder = Path(folder).expanduser().resolve()
    check_free(folder, force)
    try:
        scratch = scratch_beside(folder)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}); name another place") from error
    with swapped_in(scratch, folder, keep=_keep_others) as part:
        yield part


def scratch_beside(folder: Path) -> Path:
    """A new hidden folder beside `folder`, on the same disk.

    Raises:
        OSError: nothing can be written there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))


@contextmanager
def swapped_in(scratch: Path, folder: Path, keep: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """Give a folder in `scratch` to write in, and put it in the place of `folder` at the end.

    If the block raises, `folder` is as it was. `scratch` is removed in any case, with what stood in the place before;
    `keep(old, new)` may move something of that over.
    """
    part, old = scratch / "new", scratch / "old"
    try:
        part.mkdir()
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        elif old.exists() and keep is not None:
            keep(old, folder)
        shutil.rmtree(scratch, ignore_errors=True)


def _keep_others(old: Path, folder: Path) -> None:
    for path in old.iterdir():
        if not any(fnmatch(path.name, pattern) for pattern in _OF_A_MODEL) and not (folder / path.name).exists():
            path.rename(folder / path.name)
