"""The simplest facts about an attention head: how widely, how far and where it looks.

All of them are means over images of what `attention_statistics` gives. For the map p of one head, where p_ij is the
weight of key token j in the row of query token i, with N tokens, of which P are patches:

| fact | of one row | averaged over |
|---|---|---|
| entropy | -sum_j p_ij log p_ij, in nats: 0 if one token has all the weight, log N if all have the same | all rows |
| entropy share | entropy / log N, in [0, 1] | all rows |
| distance | sum_j p_ij d_ij / sum_j p_ij over the patches j, d_ij between patch centres, in patches | rows of patches |
| on class token | p_i0 | rows of patches |
| on itself | p_ii | rows of patches |

Distance is the mean attention distance of Dosovitskiy et al. 2021 (arXiv 2010.11929), figure 7.

Shapes: B images, H heads, N tokens, P patches.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .attention_layers import check_images, see_images, unwrapped
from .recording import LayerRecord, record
from .statistics import attention_statistics
from .token_layout import TokenLayout

STATISTICS = ("entropy", "masses", "distance")


@dataclass(frozen=True)
class HeadFacts:
    """The facts of one head: means over images, and the standard errors of these means.

    Args:
        layer, head: Which one, from 0.
        images: How many images the means are over.
        entropy, entropy_share, distance, on_class_token, on_itself: As in the module's table; `None` for what does not
            exist: the class token's weight without one, the distance of a head that never looks at a patch.
        entropy_error, ...: Standard deviation over images / sqrt(images); `None` for a single image.
    """

    layer: int
    head: int
    images: int
    entropy: float
    entropy_share: float
    distance: float | None
    on_class_token: float | None
    on_itself: float
    entropy_error: float | None = None
    entropy_share_error: float | None = None
    distance_error: float | None = None
    on_class_token_error: float | None = None
    on_itself_error: float | None = None


@torch.no_grad()
def head_facts(model: Any, batches: Iterable[torch.Tensor], layout: TokenLayout | None = None) -> list[HeadFacts]:
    """Run a model over images and give the facts of every head of every layer.

    Inside `intervene` they are those of the edited queries and keys.

    Args:
        model: As `record` takes it.
        batches: Batches of `pixel_values`, (B, channels, height, width).
        layout: What the tokens are. `None`: from the model's configuration and the size of the images.

    Raises:
        ValueError: there are no images, the layout does not fit the model's tokens, the model's attention cannot be
            seen, or is not that of query and key (inside `intervene`, edited scores or maps; softcap, sinks or a
            window).

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> facts = head_facts(QKViTModel(config).eval(), [torch.rand(4, 3, 32, 32)])
    >>> len(facts), facts[-1].layer, facts[-1].head, facts[-1].images  # 2 layers of 3 heads
    (6, 1, 2, 4)

    ```
    """
    seen: dict[int, list[dict[str, torch.Tensor]]] = {}  # of each layer, a dictionary for each batch
    for pixel_values in batches:
        fits = layout or TokenLayout.from_model(model, (pixel_values.shape[-2], pixel_values.shape[-1]))
        with record(model, tensors=("query", "key")) as recording:
            see_images(unwrapped(model), pixel_values)
        for layer in recording:
            check_images(layer, recording[layer].query, len(pixel_values))
            seen.setdefault(layer, []).append(_facts_of(recording[layer], fits))
    if not seen:
        raise ValueError("there are no images to take facts from; pass at least one batch")
    facts = []
    for layer, of_batches in seen.items():
        joined = {name: torch.cat([batch[name] for batch in of_batches]) for name in of_batches[0]}  # (images, H)
        facts += [_summary(layer, head, joined) for head in range(joined["entropy"].shape[1])]
    return facts


def uniform_facts(layout: TokenLayout) -> dict[str, float]:
    """The facts of a head that looks at every token alike: what each number is to be compared with.

    Example:

    ```python
    >>> round(uniform_facts(TokenLayout(grid=(4, 4), has_class_token=True))["entropy"], 3)  # log 17
    2.833

    ```
    """
    alike = torch.zeros(1, 1, layout.num_tokens, 1, dtype=torch.float64)
    means = attention_statistics(alike, alike, layout, scaling=1, statistics=STATISTICS).per_head()
    return {name: value.item() for name, value in _named(means, layout).items()}


def _facts_of(layer: LayerRecord, layout: TokenLayout) -> dict[str, torch.Tensor]:
    """The facts of each image and head of a layer: name -> (B, H), in float64 on the CPU."""
    means = layer.statistics(layout, STATISTICS).per_head()
    return {name: numbers.cpu().double() for name, numbers in _named(means, layout).items()}


def _named(means: dict[str, torch.Tensor], layout: TokenLayout) -> dict[str, torch.Tensor]:
    """Facts by their names here, from statistics by theirs."""
    entropy = means["entropy"]
    facts = {
        "entropy": entropy,
        "entropy_share": entropy / math.log(layout.num_tokens) if layout.num_tokens > 1 else torch.zeros_like(entropy),
        "distance": means["distance"],
        "on_itself": means["on_self"],
    }
    if layout.class_token is not None:
        facts["on_class_token"] = means["on_class_token"]
    return facts


def _summary(layer: int, head: int, values: dict[str, torch.Tensor]) -> HeadFacts:
    numbers: dict[str, float | None] = {"distance": None, "on_class_token": None}
    for name, of_heads in values.items():
        known = of_heads[:, head]
        known = known[~known.isnan()]
        if len(known):
            numbers[name] = known.mean().item()
        if len(known) > 1:
            numbers[f"{name}_error"] = (known.std() / math.sqrt(len(known))).item()
    return HeadFacts(layer=layer, head=head, images=len(values["entropy"]), **numbers)  # type: ignore[arg-type]
