"""What a model may be given, and the one sentence that says what is wrong with the rest."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

# What transformers' own wrappers and callers hand to a model's forward, beside its named arguments.
_FORWARD_ARGUMENTS = frozenset({"output_hidden_states", "return_dict"})


def check_arguments(arguments: Iterable[str]) -> None:
    """Refuse an unknown keyword argument: a misspelt one would be ignored in silence."""
    unknown = set(arguments) - _FORWARD_ARGUMENTS
    if unknown:
        raise TypeError(
            f"forward() got an unexpected argument {min(unknown)!r}; its arguments are in help(model.forward)"
        )


def check_pixels(pixel_values: torch.Tensor | None, num_channels: int, patch_size: tuple[int, int]) -> None:
    """Refuse pixels of the wrong shape or type, and pixels that are not numbers.

    The values are looked at on the CPU only: elsewhere it would make the step wait for the device.

    Example:

    ```python
    >>> check_pixels(torch.zeros(1, 3, 30, 32), num_channels=3, patch_size=(16, 16))
    Traceback (most recent call last):
    ...
    ValueError: patch_size 16 does not divide the images' height 30; resize or pad them to 32

    ```
    """
    if pixel_values is None:
        raise ValueError("pixel_values is None; pass a float tensor (batch, channels, height, width)")
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(
            f"pixel_values is a {type(pixel_values).__name__}; pass a float tensor (batch, channels, height, width), as"
            " the image processor makes it with return_tensors='pt'"
        )
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; pass (batch, channels, height, width), one image as"
            " pixel_values[None]"
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values has type {pixel_values.dtype}; pass floats as the image processor makes them"
            " (pixel_values.float() / 255, normalised)"
        )
    batch, channels, height, width = pixel_values.shape
    if batch == 0:
        raise ValueError("pixel_values holds 0 images; pass a batch of at least one")
    if channels != num_channels:
        raise ValueError(
            f"pixel_values has {channels} channels where the model has num_channels={num_channels}; convert the images"
            f" ({'RGB' if num_channels == 3 else 'grey' if num_channels == 1 else 'to that many channels'})"
        )
    for name, pixels, patch in (("height", height, patch_size[0]), ("width", width, patch_size[1])):
        if pixels % patch or pixels == 0:
            near = max(1, round(pixels / patch)) * patch
            raise ValueError(
                f"patch_size {patch} does not divide the images' {name} {pixels}; resize or pad them to {near}"
            )
    if may_look_at_values(pixel_values):
        _check_finite(pixel_values.detach())


def _check_finite(pixel_values: torch.Tensor) -> None:
    # One pass: a sum is finite only if every pixel is (float16 sums are kept in float32, or they overflow).
    if math.isfinite(pixel_values.sum(dtype=torch.promote_types(pixel_values.dtype, torch.float32)).item()):
        return
    bad = int((~torch.isfinite(pixel_values)).sum())
    if bad:
        raise ValueError(f"pixel_values has {bad} values that are NaN or infinite; check how images are decoded")


def token_mask_from(
    attention_mask: torch.Tensor | None, batch_size: int, num_patches: int, num_prefix_tokens: int, device: torch.device
) -> torch.Tensor | None:
    """A mask over all tokens, (B, N) and boolean, from one over all tokens or over the patches alone."""
    if attention_mask is None:
        return None
    _check_is_tensor(attention_mask, "attention_mask")
    num_tokens = num_prefix_tokens + num_patches
    if (
        attention_mask.ndim != 2
        or attention_mask.shape[0] != batch_size
        or attention_mask.shape[1] not in (num_patches, num_tokens)
    ):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; pass ({batch_size}, {num_patches}) for the"
            f" patches or ({batch_size}, {num_tokens}) for all tokens, 1 where a token is seen"
        )
    mask = attention_mask.to(torch.bool)
    if mask.shape[1] != num_tokens:
        mask = torch.nn.functional.pad(mask, (num_prefix_tokens, 0), value=True)
    if may_look_at_values(attention_mask):
        if (attention_mask < 0).any():
            raise ValueError("attention_mask has negative values; pass 1 where a token is seen and 0 where it is not")
        if not mask.any(dim=1).all():
            raise ValueError("attention_mask hides every token of an image; leave the image out of the batch")
    return mask.to(device)


def _check_is_tensor(value: Any, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; pass a tensor, such as torch.tensor({name})")


def may_look_at_values(tensor: torch.Tensor) -> bool:
    """Whether the values can be looked at without a wait for the device or a break in a compiled graph, and are there:
    what `torch.func.vmap` maps over has none of its own, nor has what is traced (`make_fx`, a FakeTensor).
    """
    return tensor.device.type == "cpu" and not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or isinstance(tensor, FakeTensor)
    )


def masked_patches_from(
    bool_masked_pos: torch.Tensor | None, batch_size: int, num_patches: int, device: torch.device
) -> torch.Tensor | None:
    """`bool_masked_pos` as booleans (B, P)."""
    if bool_masked_pos is None:
        return None
    _check_is_tensor(bool_masked_pos, "bool_masked_pos")
    if tuple(bool_masked_pos.shape) != (batch_size, num_patches):
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}; pass ({batch_size}, {num_patches}), True where"
            " a patch is hidden"
        )
    return bool_masked_pos.to(device=device, dtype=torch.bool)


def chosen_layers(choice: Any, num_layers: int, name: str) -> frozenset[int]:
    """The layers that `output_attentions` or `output_qkv` asks for.

    Example:

    ```python
    >>> sorted(chosen_layers([0, -1], 12, "output_qkv"))
    [0, 11]

    ```
    """
    if choice is None or choice is False:
        return frozenset()
    if choice is True:
        return frozenset(range(num_layers))
    layers = list(choice) if isinstance(choice, Iterable) else [choice]
    chosen = set()
    for layer in layers:
        index = None if isinstance(layer, bool) else _whole(layer)
        if index is None or not -num_layers <= index < num_layers:
            raise ValueError(
                f"{name}={choice!r}: {layer!r} is no layer of this model; pass True, or indices from {-num_layers} to"
                f" {num_layers - 1}"
            )
        chosen.add(index % num_layers)
    return frozenset(chosen)


def _whole(number: Any) -> int | None:
    """A whole number of Python's, NumPy's or torch's; `None` for everything else."""
    try:
        return operator.index(number)
    except TypeError:
        return None
