"""How far `collect` is, on the disk: what was written is whole, or the one before is.

One safetensors file for each process: no pickle, so that reading a file from elsewhere runs no code.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..configuration.disk_errors import as_os_errors
from .run_identity import difference
from .tally import Tally


class ProgressFile:
    """Stores a tally, and finds it again for the same run.

    Args:
        folder: Where the files of all processes are; made when something is written.
        identity: What the run is: a file of another one is refused.
        rank, world: This process, and how many there are.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], rank: int = 0, world: int = 1) -> None:
        self.path = _path(folder, rank, world)
        self.identity = json.loads(json.dumps(identity | {"processes": world}))

    def load(self) -> Tally | None:
        """What was stored; None if there is nothing.

        Raises:
            ValueError: it is of another run, or cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        self._refuse_other_worlds()
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {})["tally"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                tally = Tally.from_state(tensors, metadata["values"])
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{self.path} cannot be read as the progress of a run; delete it to start anew") from error
        for name, value in self.identity.items():
            before = metadata["identity"].get(name, value)  # a file of an earlier version knows less of its run
            if before != value:
                raise ValueError(
                    f"{self.path} is the progress of another run ({difference(name, before, value)}): pass the same"
                    " again, or delete it to start anew"
                )
        return tally

    def save(self, tally: Tally) -> None:
        """Write beside, then rename: a full disk or a crash leaves the file of before.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        from safetensors.torch import save_file

        tensors, values = tally.state()
        metadata = {"tally": json.dumps({"identity": self.identity, "values": values})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        try:
            with as_os_errors(part):
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(self.path)
        except BaseException:
            part.unlink(missing_ok=True)
            _remove_if_empty(self.path.parent)
            raise

    def _refuse_other_worlds(self) -> None:
        world = self.identity["processes"]
        for other in sorted(self.path.parent.glob("progress-*-of-*.safetensors")):
            size = other.stem.rpartition("-")[2]
            if size != str(world):
                raise ValueError(
                    f"{other} is the progress of a run on {size} processes, and there are {world} now: run on {size}"
                    " again, or delete the file to start anew"
                )


def remove_progress(folder: str | Path, rank: int = 0, world: int = 1) -> None:
    """The run is over: take its file away, and the folder with the last one."""
    _path(folder, rank, world).unlink(missing_ok=True)
    _remove_if_empty(Path(folder))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # others may still have theirs there
        folder.rmdir()


def _path(folder: str | Path, rank: int, world: int) -> Path:
    return Path(folder) / f"progress-{rank}-of-{world}.safetensors"
