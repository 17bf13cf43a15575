"""What `intervene` puts in the place of a tensor of attention.

A replacement says for which heads and tokens it is, and makes the new numbers from the old ones. The part that it gets
has four dimensions: (B, h, n, D) of query, key, value and output, (B, h, n, m) of scores and attention, with B images,
h chosen heads, n chosen tokens (rows) and m chosen key tokens.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .selection import Selection

MAPS = ("scores", "attention")


@dataclass(frozen=True, eq=False, kw_only=True)
class Replacement(ABC):
    """The heads and tokens that are replaced; the subclasses say by what.

    Args:
        heads: An index, a slice, several indices or a boolean for each. `None`: all.
        tokens: Likewise; of scores and attention, the rows: the query tokens.
        key_tokens: Of scores and attention alone, the columns: the key tokens.
    """

    heads: Any = None
    tokens: Any = None
    key_tokens: Any = None

    def __post_init__(self) -> None:
        for name in ("heads", "tokens", "key_tokens"):
            Selection(getattr(self, name), name)  # refuses what cannot be a selection

    def apply(self, target: str, tensor: torch.Tensor, key: tuple[int, ...]) -> torch.Tensor:
        """The tensor with its chosen part replaced. `key` numbers the edit, for random numbers.

        Raises:
            ValueError: heads, tokens or the replacement do not fit the tensor.
        """
        whole = tensor.shape
        indices = [
            Selection(self.heads, "heads").index(whole[1]),
            Selection(self.tokens, "tokens").index(whole[2]),
            Selection(self.key_tokens, "key_tokens").index(whole[3]) if target in MAPS else None,
        ]
        indices = [None if index is None else index.to(tensor.device) for index in indices]
        part = tensor
        for dim, index in enumerate(indices, start=1):
            part = part if index is None else part.index_select(dim, index)
        new = self.replace(part, indices, whole, key)
        if new.dtype != part.dtype:
            raise ValueError(
                f"{type(self).__name__} gives {new.dtype} where {part.dtype} is computed; convert it with"
                f" .to({part.dtype})"
            )
        new = new.expand(part.shape)
        if all(index is None for index in indices):
            return new
        places = [torch.arange(size, device=tensor.device) for size in whole]
        places[1:] = [place if index is None else index for place, index in zip(places[1:], indices, strict=True)]
        grid = torch.meshgrid(*places[1:], indexing="ij") if indices[2] is not None else None
        edited = tensor.clone()
        if grid is not None:
            edited[:, grid[0], grid[1], grid[2]] = new
        else:
            edited[:, places[1][:, None], places[2]] = new
        return edited

    @abstractmethod
    def replace(
        self, part: torch.Tensor, indices: list[torch.Tensor | None], whole: torch.Size, key: tuple[int, ...]
    ) -> torch.Tensor:
        """The new part, of a shape that expands to the old one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Zero(Replacement):
    """Zeros. Far outside what the model saw: it overstates importance, so look at the others beside it."""

    def replace(self, part: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(part)


@dataclass(frozen=True, eq=False)
class Given(Replacement):
    """A given tensor, such as one recorded of other images.

    Args:
        tensor: Of the shape of the replaced part, or of the whole tensor, of which the chosen part is taken; 1 in the
            place of a size means that it is the same for all.
    """

    tensor: torch.Tensor

    def replace(
        self, part: torch.Tensor, indices: list[torch.Tensor | None], whole: torch.Size, key: tuple[int, ...]
    ) -> torch.Tensor:
        given = self.tensor.to(part.device)
        if _fits(given.shape, part.shape):
            return given
        if _fits(given.shape, whole):
            return _part_of(given, indices)
        raise ValueError(
            f"Given has the shape {tuple(given.shape)} for a part {tuple(part.shape)} of {tuple(whole)}; pass a tensor"
            " of one of these shapes, with 1 where it is the same for all"
        )


@dataclass(frozen=True, eq=False)
class Mean(Replacement):
    """The mean over a data set.

    Args:
        tensor: Of all heads of the layer: (H, D), the same for each token, or (H, N, D). For scores and attention
            (H, N, N). It is converted to the data type of the model.
    """

    tensor: torch.Tensor

    def replace(
        self, part: torch.Tensor, indices: list[torch.Tensor | None], whole: torch.Size, key: tuple[int, ...]
    ) -> torch.Tensor:
        return _statistic(self.tensor, "Mean", part, indices, whole)


@dataclass(frozen=True, eq=False, kw_only=True)
class Noise(Replacement):
    """Gaussian noise with the mean and standard deviation of what it replaces, for each head and channel.

    The numbers depend on the seed, the layer, the tensor, the number of the forward pass in the context and the kind of
    device, and on nothing else: gradient checkpointing draws the same again. Processes draw the same too: give each its
    own seed.

    Args:
        seed: From 0.
        mean, std: Of a data set, (H, D) or (H, N, D). `None`: those of the replaced part over images and tokens (of
            scores and attention: for each head, over all entries). No gradients flow through them.
    """

    seed: int = 0
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mean is None) != (self.std is None):
            raise ValueError("Noise has one of mean and std; pass both, or none to match what it replaces")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} is no seed; pass a whole number from 0 up")

    @torch.no_grad()
    def replace(
        self, part: torch.Tensor, indices: list[torch.Tensor | None], whole: torch.Size, key: tuple[int, ...]
    ) -> torch.Tensor:
        if self.mean is not None and self.std is not None:
            mean, std = (_statistic(it, "Noise", part, indices, whole).float() for it in (self.mean, self.std))
        else:
            dims = (0, 2, 3) if key[1] in _MAP_NUMBERS else (0, 2)
            if part[:, 0].numel() == (1 if len(dims) == 3 else part.shape[-1]):
                raise ValueError("Noise cannot match a single token of a single image; pass mean and std of a data set")
            std, mean = torch.std_mean(part.float(), dim=dims, correction=0, keepdim=True)
        generator = torch.Generator(device=part.device).manual_seed(_mixed(self.seed, *key))
        noise = torch.randn(part.shape, generator=generator, device=part.device, dtype=torch.float32)
        return (noise * std + mean).to(part.dtype)


@dataclass(frozen=True, eq=False, kw_only=True)
class OtherImage(Replacement):
    """What another image of the batch has there.

    Args:
        permutation: For each image, the index of the image that it takes from. `None`: the next one, the last from the
            first.
    """

    permutation: Sequence[int] | torch.Tensor | None = None

    def check_images(self, tensor: torch.Tensor, images: int | None) -> None:
        """Refuse a tensor whose first dimension is not that of the images, such as windows of them.

        Raises:
            ValueError: it is not.
        """
        if images is not None and len(tensor) != images:
            raise ValueError(
                f"OtherImage finds {len(tensor)} parts of {images} images, as where attention stays within windows, and"
                " would take another part of the same image; pass Given(tensor) or Apply(function)"
            )

    def replace(self, part: torch.Tensor, *_: Any) -> torch.Tensor:
        batch = part.shape[0]
        if batch < 2:
            raise ValueError("OtherImage needs another image: pass batches of two or more")
        if self.permutation is None:
            return part.roll(-1, dims=0)
        source = torch.as_tensor(self.permutation, device=part.device)
        if source.shape != (batch,) or source.is_floating_point() or source.min() < 0 or source.max() >= batch:
            raise ValueError(
                f"permutation={self.permutation!r} does not fit a batch of {batch}; pass {batch} indices from 0 to"
                f" {batch - 1}"
            )
        return part.index_select(0, source)


@dataclass(frozen=True, eq=False)
class Apply(Replacement):
    """What a function makes of it.

    Args:
        function: From the part (a copy of it) to a tensor of the same shape and data type. Under gradient checkpointing
            it is called again, and has to give the same again.
    """

    function: Callable[[torch.Tensor], torch.Tensor]

    def replace(self, part: torch.Tensor, *_: Any) -> torch.Tensor:
        new = self.function(part.clone())  # it may write: after Given, into the caller's tensor
        if not isinstance(new, torch.Tensor) or new.shape != part.shape:
            came = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
            raise ValueError(
                f"Apply's function gives {came} for {tuple(part.shape)}; return a tensor of the same shape"
            )
        return new


# The numbers of the targets in the seeds of Noise.
TARGET_NUMBERS = {name: number for number, name in enumerate(("query", "key", "value", *MAPS, "output"))}
_MAP_NUMBERS = {TARGET_NUMBERS[name] for name in MAPS}


def _fits(shape: torch.Size, expected: torch.Size) -> bool:
    return len(shape) == len(expected) and all(size in (1, whole) for size, whole in zip(shape, expected, strict=True))


def _part_of(tensor: torch.Tensor, indices: list[torch.Tensor | None]) -> torch.Tensor:
    for dim, index in enumerate(indices, start=1):
        if index is not None and tensor.shape[dim] > 1:
            tensor = tensor.index_select(dim, index)
    return tensor


def _statistic(
    tensor: torch.Tensor, name: str, part: torch.Tensor, indices: list[torch.Tensor | None], whole: torch.Size
) -> torch.Tensor:
    """A data set's mean or standard deviation as something that expands to the part."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has a tensor of {tensor.dtype}; pass floating-point numbers")
    per_token = tensor[:, None] if tensor.ndim == 2 else tensor
    heads, tokens, last = whole[1:]
    per_token = _of_key_heads(per_token, heads)
    if tuple(per_token.shape) not in {(heads, tokens, last), (heads, 1, last)}:
        raise ValueError(
            f"{name} has a tensor of shape {tuple(tensor.shape)} for a layer with {heads} heads, {tokens} tokens and"
            f" {last} numbers for each; pass ({heads}, {last}) or ({heads}, {tokens}, {last})"
        )
    return _part_of(per_token[None].to(part.device), indices).to(part.dtype)


def _of_key_heads(per_head: torch.Tensor, heads: int) -> torch.Tensor:
    """Of keys and values that heads share, one for each that there is: `collect` has one for each head that uses it."""
    sharing = per_head.shape[0] // max(1, heads)
    if sharing < 2 or per_head.shape[0] % heads:
        return per_head
    first = per_head[::sharing]
    return first if torch.equal(first.repeat_interleave(sharing, dim=0), per_head) else per_head


def _mixed(*numbers: int) -> int:
    """One seed from several numbers (a hash: neighbouring numbers must not give related streams)."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
