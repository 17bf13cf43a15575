"""Notice weights that were changed after they were saved: a safetensors file with other bytes loads without a word.

`SHA256SUMS` is in the format of `sha256sum`, so that `sha256sum --check SHA256SUMS` says the same in any shell. In the
cache of the Hub, weights are links to files whose names are their sums, as the Hub told them.
"""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS = "SHA256SUMS"
_WEIGHTS = "model*.safetensors"
_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_AT_ONCE = 4  # a file's hash is one core's work


def write_sums(folder: str | Path) -> None:
    """Write the SHA-256 of every weight file in `folder` beside them; aside first, then renamed.

    Example:

    ```python
    >>> Path("saved").mkdir()
    >>> _ = Path("saved/model.safetensors").write_bytes(b"weights")
    >>> write_sums("saved")
    >>> changed_weights(Path("saved")) is None
    True
    >>> _ = Path("saved/model.safetensors").write_bytes(b"Weights")
    >>> changed_weights(Path("saved")).name
    'model.safetensors'

    ```
    """
    folder = Path(folder)
    lines = [f"{digest}  {path.name}\n" for path, digest in _digests(sorted(folder.glob(_WEIGHTS)))]
    if lines:
        aside = folder / f".{SUMS}.{os.getpid()}"
        aside.write_text("".join(lines), encoding="utf-8")
        aside.replace(folder / SUMS)
    else:
        (folder / SUMS).unlink(missing_ok=True)  # what it names is gone


def changed_weights(folder: Path) -> Path | None:
    """The first weight file of `folder` that is not what `SHA256SUMS` says, if there is one and such sums."""
    try:
        said = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    pairs = [line.split(maxsplit=1) for line in said.splitlines()]
    sums = {folder / pair[1].strip().removeprefix("*"): pair[0].lower() for pair in pairs if len(pair) == 2}
    there = [path for path in sums if path.parent == folder and path.is_file()]
    return next((path for path, digest in _digests(there) if digest != sums[path]), None)


def changed_in_cache(files: list[Path]) -> Path | None:
    """What the first of these links in the Hub's cache names whose SHA-256 is not that name, if there is one.

    A file that is not a link (where the system has none), or names another kind of file, is not looked at.

    Example:

    ```python
    >>> Path("blobs").mkdir()
    >>> blob = Path("blobs", hashlib.sha256(b"weights").hexdigest())
    >>> _ = blob.write_bytes(b"weights")
    >>> Path("model.safetensors").symlink_to(blob)
    >>> changed_in_cache([Path("model.safetensors")]) is None
    True
    >>> _ = blob.write_bytes(b"Weights")
    >>> changed_in_cache([Path("model.safetensors")]).name == blob.name
    True

    ```
    """
    blobs = [file.parent / os.readlink(file) for file in files if file.is_symlink()]  # which may link elsewhere again
    named = [blob for blob in blobs if _DIGEST.match(blob.name) and blob.is_file()]
    return next((blob.absolute() for blob, digest in _digests(named) if digest != blob.name), None)


def _digests(paths: list[Path]) -> list[tuple[Path, str]]:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(zip(paths, threads.map(file_digest, paths), strict=True))


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
