"""Checkpoints that are whole or are not there: written aside, sealed with hashes, then renamed."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SEAL = "whole.json"
ASIDE = ".unfinished"
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the hash of every file of a checkpoint, and force all of it onto the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): _hash(path) for path in files}
    text = json.dumps({"files": hashes, **facts}, indent=2)
    (folder / SEAL).write_text(f"{text}\n", encoding="utf-8")
    for path in [*files, folder / SEAL]:
        _sync(path)
    for inner in {path.parent for path in files} | {folder}:
        _sync(inner)


def publish(aside: Path, place: Path) -> None:
    """Rename a sealed checkpoint to its place.

    One of the same step that is there goes last: it may be the only whole one, saved before the evaluation that the new
    one holds. Killed in between, the new one waits for `publish_sealed`.
    """
    before = aside.with_name(f"{aside.name}.before")
    replaces = place.exists()
    if replaces:
        _sync(aside.parent)
        place.rename(before)
    aside.rename(place)
    _sync(place.parent)
    if replaces:
        shutil.rmtree(before)


def publish_sealed(output: Path) -> None:
    """Publish what a run sealed and was killed before it had renamed it."""
    for aside in sorted((output / ASIDE).glob("checkpoint-*")):
        if _NAME.fullmatch(aside.name) and sealed_facts(aside) is not None:
            publish(aside, output / aside.name)


def sealed_facts(folder: Path, *, compare: bool = True) -> dict[str, Any] | None:
    """What `seal` wrote if the checkpoint is whole: every file is there with its hash. Otherwise None.

    Args:
        compare: Read the files. Without it, the checkpoint is one that is known to be whole.
    """
    try:
        facts = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        whole = not compare or all(_hash(folder / name) == known for name, known in facts["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return facts if whole else None


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def prune(
    output: Path,
    limit: int | None,
    keep: Iterable[Path] = (),
    best: Path | None = None,
    written: Path | None = None,
) -> None:
    """Remove old checkpoints.

    Args:
        limit: How many stay: the newest, `best` and the next newest. `None` or 0: all.
        keep: Stay beside them.
        best: One of them.
        written: The one just written. Those of later steps, which were passed over when the run went on, are older.

    Example:

    ```python
    >>> for step in range(1, 6):
    ...     Path(f"pruned/checkpoint-{step}").mkdir(parents=True)
    >>> prune(Path("pruned"), 2, keep=[Path("pruned/checkpoint-1")])
    >>> [each.name for each in checkpoints(Path("pruned"))]
    ['checkpoint-5', 'checkpoint-4', 'checkpoint-1']
    >>> seal(Path("pruned/checkpoint-1"), {})  # the others are not whole
    >>> prune(Path("pruned"), 1)
    >>> [each.name for each in checkpoints(Path("pruned"))]
    ['checkpoint-1']

    ```
    """
    if not limit or limit < 0:
        return
    # Those that are not whole are no use; where all are, the newest stay: there the one just written is to be found.
    found = checkpoints(output)
    whole = [path for path in found if (path / SEAL).is_file()] or found
    if written is not None:
        whole.sort(key=lambda path: step_of(path) > step_of(written))
    kept = [path for place, path in enumerate(whole) if not place or path == best]
    kept += [path for path in whole if path not in kept][: max(limit - len(kept), 0)]
    for path in found:
        if path not in kept and path not in set(keep):
            (path / SEAL).unlink(missing_ok=True)  # stopped here, it must not pass for whole
            shutil.rmtree(path, ignore_errors=True)


def checkpoints(output: Path) -> list[Path]:
    """All folders of checkpoints, the newest first, whole or not."""
    found = [(int(named[1]), path) for path in output.glob("checkpoint-*") if (named := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_whole(output: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, and the newer ones that are not whole.

    Example:

    ```python
    >>> Path("run/checkpoint-3").mkdir(parents=True)
    >>> _ = Path("run/checkpoint-3/model.bin").write_text("weights")
    >>> seal(Path("run/checkpoint-3"), {})
    >>> Path("run/checkpoint-4").mkdir()
    >>> found, broken = newest_whole(Path("run"))
    >>> found.name, [each.name for each in broken]
    ('checkpoint-3', ['checkpoint-4'])

    ```
    """
    broken: list[Path] = []
    for path in checkpoints(output):
        if sealed_facts(path) is not None:
            return path, broken
        broken.append(path)
    return None, broken


def _hash(path: Path) -> str:
    from ..modeling.checksums_qkvit import file_digest  # modeling loads torch

    return file_digest(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
