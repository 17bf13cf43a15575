"""Several processes, each with its share of the images: whose it is, and all of them together."""

import zlib
from typing import Any

import torch

from .tally import Tally


class Share:
    """How many images a process was given, and a checksum of them where one is wanted."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.images = self.checksum = 0

    def add(self, pixel_values: torch.Tensor) -> None:
        self.images += len(pixel_values)
        if self.wanted:
            self.checksum = zlib.crc32(pixel_values.cpu().contiguous().view(torch.uint8).numpy().data, self.checksum)


def processes() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def knows_its_share(dataloader: Any) -> bool:
    """Whether the batches are those of `qkvit.data.batches`."""
    return hasattr(dataloader, "starting_at")


def wrong_share(dataloader: Any, rank: int, world: int) -> str | None:
    """Why batches are known not to be one process's share, whose images would count more than once."""
    if world == 1:
        return None
    if knows_its_share(dataloader) and dataloader.shard != (rank, world):
        return (
            f"process {rank} of {world} was given the batches of shard {dataloader.shard}, and each passes those of its"
            f" own share; pass batches(..., shard=({rank}, {world}))"
        )
    sampler = getattr(dataloader, "sampler", None)
    size = getattr(sampler, "total_size", None)
    if size is not None and size > len(dataloader.dataset):
        return (
            f"{type(sampler).__name__} gives {size} images of {len(dataloader.dataset)} to {world} processes, and those"
            " that it repeats would count twice; pass batches(..., shard=(rank, world)) of qkvit.data"
        )
    return None


def refuse_in_all(reason: str | None, world: int) -> None:
    """Raise in every process what one of them has to say: the others would wait for it at the end."""
    reasons: list[str | None] = [reason]
    if world > 1:
        import torch.distributed as dist

        reasons *= world
        dist.all_gather_object(reasons, reason)
    for said in filter(None, reasons):
        raise ValueError(said)


def merged(tally: Tally, rank: int, world: int, share: Share) -> Tally:
    """The tallies of all processes, added in the order of their ranks: the same everywhere.

    Raises:
        ValueError: two processes were given the same images.
    """
    if world == 1:
        return tally
    import torch.distributed as dist

    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, (share.images, share.checksum))
    same = next((it for it in shares if it[1] and shares.count(it) > 1), None)
    if same is not None:
        ranks = [number for number, it in enumerate(shares) if it == same]
        raise ValueError(
            f"processes {ranks[0]} and {ranks[1]} ran the same {same[0]} images, which would count twice; pass each"
            " process the batches of its own share, as batches(..., shard=(rank, world)) gives them"
        )
    total = Tally(tally.num_classes, tally.has_class_quantiles)
    for sender in range(world):  # one after the other: at most two are in memory
        message = [tally.state() if rank == sender else None]
        dist.broadcast_object_list(message, src=sender)
        state = message[0]
        assert state is not None
        total.merge(Tally.from_state(*state))
    total.bad.sort(key=lambda bad: bad["index"])
    return total
