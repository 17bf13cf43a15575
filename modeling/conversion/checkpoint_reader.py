"""Read a checkpoint tensor by tensor: safetensors or torch files, in one piece or in shards, or a model in memory.

What has been read is given back to the system every so often, so that reading needs the memory of what is kept and
little more. A pickle is only ever read by `torch.load(weights_only=True)`, which runs no code.
"""

import contextlib
import json
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ...configuration.hub_errors import hub_sentences
from ...configuration.preprocessing_qkvit import FILE_NAME as PROCESSOR
from ...configuration.preprocessing_qkvit import read_settings
from ...configuration.reasons import in_one_line
from ..loading_qkvit import AGAIN, lfs_pointer, not_opened

CONFIG = "config.json"
# In the order of preference; the second of each pair names the shards.
_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_REOPEN_AFTER = 32 << 20  # bytes: pages of a mapped file count as ours until it is closed
# As the format names them; other types do not occur among weights.
SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Checkpoint(Protocol):
    """Tensors by name, read when they are asked for."""

    where: str
    config: dict[str, Any]
    image_processor: dict[str, Any] | None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, without reading one."""
        ...

    def dtypes(self) -> dict[str, torch.dtype]:
        """Name -> data type of every tensor, likewise."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in memory of its own."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class ModelInMemory:
    """The tensors of an instantiated model; reading one copies it."""

    image_processor: dict[str, Any] | None

    def __init__(self, model: torch.nn.Module) -> None:
        config: Any = model.config
        self.where = f"the {type(model).__name__}"
        self.config = {**config.to_dict(), "architectures": [type(model).__name__]}
        source = getattr(config, "_name_or_path", "")
        self.image_processor = read_settings(source, PROCESSOR, local_files_only=True) if source else None
        self._tensors = model.state_dict()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: tensor.dtype for name, tensor in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().to("cpu", copy=True).contiguous()

    def close(self) -> None:
        self._tensors = {}


class CheckpointFiles:
    """The tensors of a folder, or of a repository of the Hub.

    Raises:
        ValueError: there is no such place, a file is missing or damaged, or a pickle is more than tensors.
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        self.where = str(source)
        self._find = _Place(source, revision)
        self.config = read_json(self._find(CONFIG, needed=True))
        processor = self._find(PROCESSOR)
        self.image_processor = None if processor is None else read_json(processor)
        self._open: dict[Path, _SafetensorsFile | _TorchFile] = {}
        self._file_of = {name: path for path in self._files() for name in self._opened(path).names()}

    def _files(self) -> list[Path]:
        for whole, index in _FILES:
            path = self._find(whole)
            if path is not None:
                return [path]
            path = self._find(index)
            if path is not None:
                return [self._find(shard, needed=True) for shard in _shards(path)]
        raise ValueError(
            f"{self.where} has a {CONFIG} but no weights; put {' or '.join(whole for whole, _ in _FILES)} beside it"
        )

    def _opened(self, path: Path) -> "_SafetensorsFile | _TorchFile":
        if path not in self._open:
            self._open[path] = _SafetensorsFile(path) if path.suffix == ".safetensors" else _TorchFile(path)
        return self._open[path]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._opened(path).shape(name) for name, path in self._file_of.items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: self._opened(path).dtype(name) for name, path in self._file_of.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._opened(self._file_of[name]).read(name)

    def close(self) -> None:
        self._open.clear()


class _Place:
    """Finds the files of a folder or of a Hub repository."""

    def __init__(self, source: str | Path, revision: str | None) -> None:
        self.source, self.revision = str(source), revision
        self.folder: Path | None = None
        path = Path(source)
        with contextlib.suppress(OSError):  # a name that is too long for a path may be asked for on the Hub
            self.folder = path if path.is_dir() else None
        like_a_path = self.source.count("/") > 1 or self.source.startswith((".", "~"))
        if self.folder is None and (like_a_path or os.path.exists(path)):
            what = "a file" if os.path.exists(path) else "not there"
            raise ValueError(f"{self.source} is {what}; pass a folder with a {CONFIG} and weights, or an id on the Hub")

    def __call__(self, name: str, needed: bool = False) -> Any:
        """Path of a file; None, or an error, if there is none."""
        path = self._in_folder(name) if self.folder is not None else self._on_hub(name)
        if path is None and needed and self.folder is None:
            raise ValueError(
                f"there is no folder {self.source} here, and on the Hub no {name} of that id, or no way to the Hub;"
                " pass a folder, or an id that is there"
            )
        if path is None and needed:
            raise ValueError(
                f"{self.source} has no {name}; pass a folder that save_pretrained wrote, or copy that file into it"
            )
        return path

    def _in_folder(self, name: str) -> Path | None:
        assert self.folder is not None
        path = self.folder / name
        return path if path.is_file() else None

    def _on_hub(self, name: str) -> Path | None:
        from transformers.utils import cached_file

        with hub_sentences(self.source):
            try:
                found = cached_file(
                    self.source,
                    name,
                    revision=self.revision,
                    _raise_exceptions_for_missing_entries=False,
                    _raise_exceptions_for_gated_repo=True,
                )
            except (OSError, ValueError) as error:
                reason = in_one_line(error).split(". ")[0]
                raise ValueError(
                    f"{self.source!r} is no folder here and cannot be had from the Hub ({reason}); pass a folder, or an"
                    " id that is there"
                ) from error
        return None if found is None else Path(found)


class _SafetensorsFile:
    """One file, opened anew after every few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(not_opened(path, error)) from error

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        dtype = self._file.get_slice(name).get_dtype()
        if dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"{name} in {self.path} is of type {dtype}, which is quantised; pass the full weights")
        return SAFETENSORS_DTYPES[dtype]

    def read(self, name: str) -> torch.Tensor:
        tensor = self._file.get_tensor(name).clone()
        self._read_bytes += tensor.nbytes
        if self._read_bytes > _REOPEN_AFTER:
            self._file = safe_open(self.path, framework="pt")
            self._read_bytes = 0
        return tensor


class _TorchFile:
    """One file that `torch.save` wrote: a dictionary of tensors, perhaps under "state_dict" or "model"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        self._tensors = self._load()

    def _load(self) -> dict[str, torch.Tensor]:
        loaded = self._unpickled()
        for key in ("state_dict", "model"):
            if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
        if not isinstance(loaded, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
            raise ValueError(f"{self.path} is not a dictionary of tensors alone; save the state_dict of the model")
        return dict(loaded)

    def _unpickled(self) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about a pickle that it will refuse
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._is_zip())
        except pickle.UnpicklingError as error:
            raise ValueError(
                lfs_pointer(self.path)
                or f"{self.path} holds more than tensors, and reading it could run code ({_line(error)}); save its"
                " state_dict as model.safetensors, where you trust it"
            ) from error
        except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{self.path} is damaged or no file of torch ({_line(error)}); {AGAIN}") from error

    def _is_zip(self) -> bool:
        with self.path.open("rb") as stream:
            return stream.read(4) == b"PK\x03\x04"  # files of torch before 1.6 cannot be mapped

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name].contiguous().clone()
        self._read_bytes += tensor.nbytes
        if self._read_bytes > _REOPEN_AFTER and self._is_zip():
            self._tensors = {}
            self._tensors = self._load()
            self._read_bytes = 0
        return tensor


def read_config(source: str | Path) -> dict[str, Any]:
    """config.json of a folder or Hub id."""
    return read_json(_Place(source, None)(CONFIG, needed=True))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; a `ValueError` of one sentence if it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({_line(error)}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object of fields; {AGAIN}")
    return content


def _shards(index: Path) -> Iterator[str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} is damaged: it is not an index of files; {AGAIN}")
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names the file {name!r} in another folder; {AGAIN}")
        yield name


def _line(error: BaseException) -> str:
    """The first sentence of an error, on one line."""
    return in_one_line(error).split(". ")[0][:160]
