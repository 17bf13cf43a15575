"""Where a command computes."""

from .errors import UserError


def usable_device(name: str) -> str:
    """A device's name, for "auto" a GPU's if there is one.

    Raises:
        UserError: this torch does not know it, or it is not there.

    Example:

    ```python
    >>> usable_device("cpu")
    'cpu'

    ```
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here; pass cpu, or leave it out") from error
    return name
