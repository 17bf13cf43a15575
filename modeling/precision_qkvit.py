"""A conversion under autocast that is made once where autocast would make it several times."""

import torch


def cast_once(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in autocast's data type, for several matrix products to share; as it is without autocast.

    Autocast converts the input of every product anew: three times for Q, K and V.
    """
    device = tensor.device.type
    if tensor.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor
