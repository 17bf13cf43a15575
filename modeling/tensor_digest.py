"""Whether two models hold the same weights, as one number."""

import hashlib
from collections.abc import Iterable

import torch


def tensor_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The SHA-256 of names, shapes, types and every bit of tensors, whatever their order.

    Example:

    ```python
    >>> one = torch.nn.Linear(2, 2)
    >>> before = tensor_digest(one.named_parameters())
    >>> with torch.no_grad():
    ...     one.weight[0, 0] = -0.0
    >>> tensor_digest(one.named_parameters()) == before
    False

    ```
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
