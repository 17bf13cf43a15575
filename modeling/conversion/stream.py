"""Convert a checkpoint into a folder tensor by tensor: the model is never in memory as a whole."""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

import torch

from ..checksums_qkvit import write_sums
from .checkpoint_reader import SAFETENSORS_DTYPES, CheckpointFiles
from .families.family import Shape
from .importing import Conversion, full_name

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def convert_folder(source: str | Path, folder: Path, *, dtype: torch.dtype | str | None = None) -> str:
    """Write what `convert(source).save_pretrained(folder)` writes, in the memory of a few tensors.

    Returns:
        The name of the model's class.

    Raises:
        ValueError: as `convert` says.
    """
    with closing(CheckpointFiles(source)) as checkpoint:
        conversion = Conversion.plan_for(checkpoint, None, dtype)
        model = conversion.plan.model
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)  # and the code, and the image processor
        shapes = {full_name(model, name): shape for name, shape in conversion.plan.ours.items()}
        dtypes = {full_name(model, name): dtype for name, dtype in conversion.dtypes().items()}
        tensors = ((full_name(model, name), tensor) for name, tensor in conversion.tensors())
        write_safetensors(folder / "model.safetensors", shapes, dtypes, tensors)
    write_sums(folder)
    return type(model).__name__


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, torch.dtype],
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors) of tensors that come one by one.

    The format is 8 bytes that state the length of the header, little-endian; the header, which is JSON; and the numbers
    of all tensors, without gaps. As the library does, wide numbers come first, so that each is aligned.

    Example:

    ```python
    >>> from safetensors.torch import load_file
    >>> write_safetensors(Path("a.safetensors"), {"x": (2,)}, {"x": torch.float32}, [("x", torch.ones(2))])
    >>> load_file("a.safetensors")
    {'x': tensor([1., 1.])}

    ```
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes, key=lambda name: (-dtypes[name].itemsize, name)):
        start, end = end, end + math.prod(shapes[name]) * dtypes[name].itemsize
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    waiting = set(shapes)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            assert tuple(tensor.shape) == tuple(shapes[name])
            assert tensor.dtype == dtypes[name]
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            waiting.remove(name)
    assert not waiting, f"never written: {waiting}"
