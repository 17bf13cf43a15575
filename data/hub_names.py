"""Names that may be a mistyped path or an id on the Hub: looked for before the libraries that try it many times."""

import difflib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

HUB_ID = re.compile(r"(?:([A-Za-z0-9][\w.-]*)/)?([A-Za-z0-9][\w.-]*)")
_CONFIGS = ("config.json", "adapter_config.json")  # of a model, of an adapter that names its model
_SECONDS = 10  # that the Hub may take for its answer
_found: set[tuple[str, str]] = set()  # asked for once


def look_for(name: str | Path, kind: Literal["model", "dataset"]) -> None:
    """Refuse a name of nothing that is here and of nothing on the Hub; say so before the Hub is asked.

    Each process asks the Hub once, with no second try. What is in its cache counts as there. A name that can only be an
    id, because there is no folder of its first part, is asked for in silence.

    Raises:
        ValueError: there is no such file or folder, and no such id, or the Hub cannot be asked; or a model's folder has
            no config.json.

    Example:

    ```python
    >>> Path("runs/digits").mkdir(parents=True)
    >>> Path("runs/digits/config.json").touch()
    >>> look_for("runs/digits", "model")
    >>> look_for("runs", "model")
    Traceback (most recent call last):
    ...
    ValueError: runs is no model: it has no config.json; did you mean runs/digits?
    >>> look_for("./runs/digit", "model")
    Traceback (most recent call last):
    ...
    ValueError: there is no folder or file ./runs/digit here; pass one that exists, or the id of a model on the Hub

    ```
    """
    name = str(name)
    with suppress(OSError):  # too long for a path, or in a folder that may not be read
        if Path(name).exists():
            if kind == "model" and Path(name).is_dir():
                _refuse_other_folders(Path(name))
            return
    if "://" in name or "{" in name:  # an address, or shards with numbers: looked for where they are opened
        return
    parts, what = HUB_ID.fullmatch(name), "model" if kind == "model" else "data set"
    if parts is None:
        raise ValueError(
            f"there is no folder or file {name} here; pass one that exists, or the id of a {what} on the Hub"
        )
    if (name, kind) in _found:
        return
    folder = Path(parts[1] or ".")
    meant = _nearest(folder, parts[2])
    if folder.is_dir() and os.environ.get("RANK", "0") == "0":
        print(f"There is no {name} here{meant}; looking for it on the Hub.", file=sys.stderr, flush=True)
    if not _is_cached(name, kind):
        fault = _ask(name, kind, what)
        if fault is not None:
            raise ValueError(
                f"there is no folder or file {name} here{meant}, and {fault}; pass one that exists, or the id of a"
                f" {what} on the Hub"
            )
    _found.add((name, kind))


def _refuse_other_folders(folder: Path) -> None:
    if any((folder / config).exists() for config in _CONFIGS):
        return
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    way_out = f"did you mean {inside[0]}?" if inside else "pass a folder that save_pretrained wrote"
    raise ValueError(f"{folder} is no model: it has no {_CONFIGS[0]}; {way_out}")


def _ask(name: str, kind: str, what: str) -> str | None:
    """Why the Hub does not give it; None where it does, or answers with something that others explain better."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_SECONDS)
    except GatedRepoError:
        return None
    except RepositoryNotFoundError:
        return f"the Hub has no {what} of that name, or a private one"
    except OfflineModeIsEnabled:
        return "the Hub is not asked (HF_HUB_OFFLINE is set)"
    except HfHubHTTPError:
        return None
    except Exception as error:  # of the network, in a library that huggingface_hub chooses
        from ..configuration.reasons import first_line  # not above: the command has not loaded torch yet

        return f"the Hub cannot be asked ({first_line(error)})"
    return None


def revision_of(name: str | Path, kind: Literal["model", "dataset"]) -> str | None:
    """The commit that a Hub id stood for when it was loaded last, or an address on the Hub stands for; None of others.

    Configurations of transformers 5 do not say it, nor do data sets: it is read from the cache that both load from.
    What is read in place is in no cache: the Hub is asked, and where it does not answer, it is None too.
    """
    name = str(name)
    if name.startswith("hf://"):
        return _commit_at(name)
    with suppress(OSError):  # a name too long for a path; a cache without that id
        if HUB_ID.fullmatch(name) and not Path(name).exists():
            return (_cache_of(name, kind) / "refs" / "main").read_text(encoding="utf-8").strip()
    return None


def _commit_at(address: str) -> str | None:
    from huggingface_hub import HfApi, HfFileSystem

    with suppress(Exception):  # of the network, or of an address that was told when it was opened
        place: Any = HfFileSystem().resolve_path(address)
        api, revision = HfApi(), place.revision
        return api.repo_info(place.repo_id, repo_type=place.repo_type, revision=revision, timeout=_SECONDS).sha
    return None


def _cache_of(name: str, kind: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")


def _is_cached(name: str, kind: str) -> bool:
    from huggingface_hub import constants

    snapshots = _cache_of(name, kind) / "snapshots"
    if kind == "model":
        return snapshots.is_dir()
    tables = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME, "datasets"))).expanduser()
    return snapshots.is_dir() or _plain(name) in {_plain(path.name) for path in tables.glob("*")}


def _plain(name: str) -> str:
    return re.sub("[/_]", "", name).lower()  # CamelCase/x is kept as camel_case___x


def _nearest(folder: Path, name: str) -> str:
    """What was perhaps meant, in brackets; nothing where no name in the folder is like it."""
    with suppress(OSError):
        near = difflib.get_close_matches(name, [entry.name for entry in folder.iterdir()], n=1)
        if near:
            return f" (did you mean {folder / near[0]}?)"
    return ""
