"""Where in a tar file each sample of a WebDataset shard lies.

Files of one sample share their path up to the first dot of the file's name: 0001.jpg, 0001.cls. Only headers and labels
are read, once; the result is kept in the user's cache (`$XDG_CACHE_HOME/qkvit/shards`) until the shard changes.
"""

import contextlib
import hashlib
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .folder_source import EXTENSIONS, PackedStrings

_VERSION = 2
_LABELS = (".cls", ".json")


@dataclass
class ShardIndex:
    """The samples of a shard, in their order.

    Args:
        names: Of the image in the shard, or the key of a sample without one.
        offsets, sizes: Of the image's bytes in the file; size -1: there is none.
        cls, json: The label files' texts; empty where there is none.
        passed_over: Names of the files that are images by their last ending alone, where their key has no image.
    """

    names: PackedStrings
    offsets: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    cls: PackedStrings
    json: PackedStrings
    passed_over: PackedStrings

    def __len__(self) -> int:
        return len(self.offsets)

    def to_arrays(self) -> dict[str, Any]:
        """For a file."""
        arrays: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, PackedStrings):
                arrays |= {f"{each.name}_bytes": value.bytes, f"{each.name}_ends": value.ends}
            else:
                arrays[each.name] = value
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Any) -> "ShardIndex":
        """From a file."""

        def packed(name: str) -> PackedStrings:
            return PackedStrings.joined(arrays[f"{name}_bytes"], arrays[f"{name}_ends"])

        texts = (packed(name) for name in ("cls", "json", "passed_over"))
        return cls(packed("names"), arrays["offsets"], arrays["sizes"], *texts)


def index_of(shard: Path) -> ShardIndex:
    """The index of a shard, from the cache if it is there.

    Raises:
        ValueError: it is no tar file, cut short or compressed; or a key has the same ending twice.

    Example:

    ```python
    >>> with tarfile.open("0.tar", "w") as tar:
    ...     for name, content in (("a.jpg", b"..."), ("a.cls", b"3"), ("b.jpg", b"....")):
    ...         info = tarfile.TarInfo(name)
    ...         info.size = len(content)
    ...         tar.addfile(info, io.BytesIO(content))
    >>> index = index_of(Path("0.tar"))
    >>> index.names[1], index.sizes.tolist(), index.cls[0]
    ('b.jpg', [3, 4], '3')

    ```
    """
    cached = _cache_file(shard)
    try:
        with np.load(cached, allow_pickle=False) as arrays:
            return ShardIndex.from_arrays(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    index = _scan(shard)
    _keep(cached, index)
    return index


def _scan(shard: Path) -> ShardIndex:
    samples: dict[str, dict[str, Any]] = {}
    dotted: list[str] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                key, ending = _key_and_ending(member.name)
                if not member.isreg() or not key:
                    continue
                if ending in EXTENSIONS or ending in _LABELS:
                    if ending in samples.get(key, ()):
                        raise ValueError(f"{shard}: {key}{ending} is in it twice; give each sample a key of its own")
                    _add(samples.setdefault(key, {}), ending, member, tar)
                elif os.path.splitext(ending)[1] in EXTENSIONS:
                    dotted.append(member.name)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: {_why_not(shard, error)}") from error
    found = samples.values()
    return ShardIndex(
        names=PackedStrings(sample.get("name", key) for key, sample in samples.items()),
        offsets=np.asarray([sample.get("offset", 0) for sample in found], dtype=np.int64),
        sizes=np.asarray([sample.get("size", -1) for sample in found], dtype=np.int64),
        cls=PackedStrings(sample.get(".cls", "") for sample in found),
        json=PackedStrings(sample.get(".json", "") for sample in found),
        # Beside an image of its key such a file is more of the sample: 1.jpg, 1.mask.png.
        passed_over=PackedStrings(name for name in dotted if "name" not in samples.get(_key_and_ending(name)[0], ())),
    )


def _key_and_ending(name: str) -> tuple[str, str]:
    """What a sample's files have in common, and the rest in small letters; no key: hidden, or without an ending."""
    folder, _, file = name.rpartition("/")
    stem, dot, rest = file.partition(".")
    if not stem or not dot:
        return "", ""
    return f"{folder}/{stem}" if folder else stem, f".{rest.lower()}"


def _add(sample: dict[str, Any], ending: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    sample[ending] = ""
    if ending in _LABELS:
        content = tar.extractfile(member)
        assert content is not None
        sample[ending] = content.read().decode("utf-8", errors="replace").strip()
    elif "name" not in sample:
        sample |= {"name": member.name, "offset": member.offset_data, "size": member.size}


def _why_not(shard: Path, error: Exception) -> str:
    with shard.open("rb") as file:
        head = file.read(6)
    if head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or head[:3] == b"BZh" or head == b"\xfd7zXZ\x00":
        return "it is compressed, and images cannot be found in it without reading all of it; decompress it"
    if "unexpected end" in str(error):
        return "the file is cut short; copy it again, or leave it out"
    return "it cannot be read as a tar file; write it again, or leave it out"


def _cache_file(shard: Path) -> Path:
    facts = shard.stat()
    said = f"{_VERSION}\n{shard.resolve()}\n{facts.st_size}\n{facts.st_mtime_ns}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "qkvit" / "shards"
    return folder / f"{hashlib.sha256(os.fsencode(said)).hexdigest()[:32]}.npz"


def _keep(cached: Path, index: ShardIndex) -> None:
    content = io.BytesIO()
    np.savez(content, **index.to_arrays())
    part = cached.with_name(f"{cached.name}.{os.getpid()}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.getvalue())
        part.replace(cached)
    except OSError:  # no room, or no right to: it is read again the next time
        with contextlib.suppress(OSError):
            part.unlink()


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with one or more number ranges in braces stands for.

    Example:

    ```python
    >>> expanded("train-{008..010}.tar")
    ['train-008.tar', 'train-009.tar', 'train-010.tar']

    ```
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    width = len(first) if first.startswith("0") else 0
    numbers: Iterable[int] = range(int(first), int(last) + 1)
    named = (f"{pattern[: found.start()]}{number:0{width}d}{pattern[found.end() :]}" for number in numbers)
    return [name for each in named for name in expanded(each)]
