"""Parameters in parts on several processes (FSDP2, DeepSpeed ZeRO-3): whole tensors out of them, and into them.

A checkpoint and a finished model hold whole tensors, the same files as from one process: another number of processes,
another way of sharding or none at all reads them. `torch.distributed.checkpoint` would write parts without gathering,
but its metadata is a pickle, which runs whatever code is in it when it is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def unsharded_class(model: nn.Module) -> type[nn.Module]:
    """The class that a model had before FSDP2 put its own in front."""
    found: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    return found


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in one piece; of one that is in parts, on every process (all must ask).

    Example:

    ```python
    >>> whole(torch.ones(2))  # nothing is gathered where nothing is in parts
    tensor([1., 1.])

    ```
    """
    if not isinstance(tensor, DTensor):
        return tensor
    gathering = tensor.device_mesh.device_type
    part: Any = tensor if tensor.device.type == gathering else tensor.to(gathering)  # parts kept in the host's memory
    return part.full_tensor()


@torch.no_grad()
def in_parts_like(tensor: torch.Tensor, model_tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor cut and placed as `model_tensor` is; each process cuts its own part out of its own copy."""
    if isinstance(model_tensor, DTensor) and not isinstance(tensor, DTensor):
        mesh = model_tensor.device_mesh
        cut = distribute_tensor(tensor.to(mesh.device_type), mesh, model_tensor.placements, src_data_rank=None)
        return cut if cut.device == model_tensor.device else cut.to(model_tensor.device)
    return tensor if tensor.device == model_tensor.device else tensor.to(model_tensor.device)


@torch.no_grad()
def whole_tensors(tensors: dict[str, torch.Tensor], keep: bool = True) -> dict[str, torch.Tensor]:
    """Whole tensors, gathered one after the other, and moved to the host's memory if they were in parts.

    Args:
        tensors: Of one process; all processes ask for the same names.
        keep: Whether this process wants them: where not, it only takes part, and gets an empty dictionary.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if keep:
            found[name] = gathered.cpu() if isinstance(tensor, DTensor) else gathered
    return found


def whole_state_dict(model: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """The state dictionary that the model would have on one process; see `whole_tensors`."""
    with _gathered_by_deepspeed(model) as gathered:
        tensors = whole_tensors(model.state_dict(), keep)
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()} if gathered else tensors


@torch.no_grad()
def load_whole_state_dict(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Give a model, in parts or not, the values of whole tensors; all of them must be there and no others."""
    with _gathered_by_deepspeed(model, write=True):
        own = model.state_dict()
        cut = {name: in_parts_like(tensor, own[name]) if name in own else tensor for name, tensor in tensors.items()}
        model.load_state_dict(cut, strict=True)


def whole_optimizer_state(optimizer: Any, keep: bool = True) -> dict[str, Any]:
    """An optimiser's state dictionary with whole tensors in the host's memory: that of one process."""
    saved = optimizer.state_dict()
    state = {index: _each(values, keep) for index, values in sorted(saved["state"].items())}
    return {**saved, "state": state if keep else {}}


def load_whole_optimizer_state(optimizer: Any, saved: dict[str, Any]) -> None:
    """Give an optimiser, whose parameters may be in parts, the state that `whole_optimizer_state` gave.

    What has the shape of a parameter is cut as that one; the rest (steps) is the same everywhere.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {
            name: in_parts_like(value, parameters[index])
            if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape and value.dim()
            else value
            for name, value in values.items()
        }
        for index, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _each(values: dict[str, Any], keep: bool) -> dict[str, Any]:
    tensors = whole_tensors({name: value for name, value in values.items() if isinstance(value, torch.Tensor)}, keep)
    return {**values, **tensors} if keep else {}


@contextmanager
def _gathered_by_deepspeed(model: nn.Module, write: bool = False) -> Iterator[bool]:
    """Inside, parameters that ZeRO-3 keeps in parts are whole; what the first process writes into them is kept."""
    parameters = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not parameters:
        yield False
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
        yield True
