"""Loss and accuracy of a model on a split: every image exactly once, whatever the number of processes.

Process r of W takes images r, r + W, ...; sums are added up over the processes. Nothing is padded or repeated.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset

from .images.bad_images import Unusable, usable
from .images.loader import Loader
from .multi_label import MultiLabelScores
from .processes.world import in_any_process


class EvaluationCutError(Exception):
    """An evaluation was broken off, in all processes."""


def metric_names(classes: int, *, multi_label: bool) -> list[str]:
    """What `evaluate` measures of a model with so many classes, beside the number of images."""
    if multi_label:
        return ["loss", "mean_average_precision", "micro_f1", "exact_match"]
    return ["loss", "accuracy", *(["accuracy_top5"] if classes > 5 else [])]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Any,
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    in_step: bool = False,
    cut: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Measure.

    Args:
        model: Gives `logits` (B, K).
        images: Items (pixels, label), or `Unusable`.
        in_step: Run as many passes in every process, because each needs all of them (FSDP2, ZeRO-3): a process that has
            no image left runs one that is not counted.
        cut: Asked before each batch whether to break off. What one process breaks off, nobody has. Not with `in_step`.

    Returns:
        loss: mean cross-entropy, without smoothing. accuracy, and accuracy_top5 where there are more than five classes.
        images: how many were counted. Where an image may have several labels: `multi_label_metrics`.

    Raises:
        EvaluationCutError: it was broken off.
    """
    was_training = model.training
    model.eval()
    own = Subset(images, range(rank, len(images), world))
    loader = Loader(own, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    sums = torch.zeros(4, dtype=torch.float64)  # loss, right, right among five, images
    num_labels = 0
    several = getattr(model.config, "problem_type", None) == "multi_label_classification"
    scores = MultiLabelScores() if several else None
    passes = math.ceil(math.ceil(len(images) / world) / batch_size) if in_step else len(loader)
    is_cut = False
    with closing(loader):
        for _, batch in zip_longest(range(passes), loader, fillvalue=()):
            if cut is not None and cut():
                is_cut = True
                break
            items = usable(batch, images)
            if not items:
                if in_step:
                    _run_uncounted(model, images, device, autocast)
                continue
            pixels = torch.stack([pixels for pixels, _ in items]).to(device)
            labels = torch.from_numpy(np.stack([label for _, label in items])).to(device)
            with autocast():
                logits = model(pixel_values=pixels).logits.float()
            if scores is not None:
                scores.add(logits, labels)
                continue
            num_labels = logits.shape[-1]
            best = logits.topk(min(5, num_labels), dim=-1).indices == labels.unsqueeze(1)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.tensor(
                [loss.item(), best[:, 0].sum().item(), best.any(1).sum().item(), len(items)], dtype=torch.float64
            )
    model.train(was_training)
    if cut is not None and in_any_process(is_cut, device, world):
        raise EvaluationCutError
    if scores is not None:
        return scores.measured(world)
    if world > 1:
        gathered = sums.to(device)
        torch.distributed.all_reduce(gathered)
        sums = gathered.cpu()
    loss_sum, right, among_five, count = sums.tolist()
    if not count:
        return {"images": 0}
    measured = {"loss": loss_sum / count, "accuracy": right / count, "images": int(count)}
    if getattr(model.config, "num_labels", num_labels) > 5:
        measured["accuracy_top5"] = among_five / count
    return measured


def _run_uncounted(
    model: nn.Module, images: Any, device: torch.device | str, autocast: Callable[[], AbstractContextManager[Any]]
) -> None:
    """A pass whose result nobody wants, with the first usable image; none where there is none in any process."""
    items = map(images.__getitem__, range(len(images)))
    item = next((item for item in items if not isinstance(item, Unusable) or item.unreachable), None)
    if item is not None and not isinstance(item, Unusable):  # what cannot be reached is told by the pass that counts
        with autocast():
            model(pixel_values=item[0].unsqueeze(0).to(device))
