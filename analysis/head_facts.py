"""The simplest facts about an attention head, from its attention maps: how widely, how far and where it looks.

All of them are means over images of exact values, in float64. For the map p of one head, where p_ij is the weight of
key token j in the row of query token i, with N tokens, of which P are patches:

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

from .token_layout import TokenLayout


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


def row_entropy(weights: torch.Tensor) -> torch.Tensor:
    """Entropy of each row in nats: (..., N) -> (...). A weight of 0 adds 0.

    Example:

    ```python
    >>> row_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)).exp()
    tensor([1., 2.], dtype=torch.float64)

    ```
    """
    return torch.special.entr(weights).sum(dim=-1)


def row_distance(weights: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """Mean distance from each patch to the patches that it looks at, in patches: (..., N, N) -> (..., P).

    Tokens that are not patches have no place, so the weights are normalised over the patches. NaN for a row with no
    weight on any patch.

    Example:

    ```python
    >>> weights = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.2, 0.0, 0.8]])
    >>> row_distance(weights, TokenLayout(grid=(1, 3)))
    tensor([1.0000, 0.0000, 0.4000], dtype=torch.float64)

    ```
    """
    layout.check(weights.shape[-1])
    on_patches = weights[..., layout.patches, layout.patches].double()  # (..., P, P)
    distances = layout.distances().to(weights.device)
    return (on_patches * distances).sum(dim=-1) / on_patches.sum(dim=-1)


def facts_of_maps(weights: torch.Tensor, layout: TokenLayout) -> dict[str, torch.Tensor]:
    """The facts of each image and head: name -> (B, H), from maps (B, H, N, N) of one layer.

    Example:

    ```python
    >>> uniform = torch.full((1, 1, 5, 5), 1 / 5, dtype=torch.float64)
    >>> facts = facts_of_maps(uniform, TokenLayout(grid=(2, 2), has_class_token=True))
    >>> {name: round(value.item(), 3) for name, value in facts.items()}
    {'entropy': 1.609, 'entropy_share': 1.0, 'distance': 0.854, 'on_itself': 0.2, 'on_class_token': 0.2}

    ```
    """
    layout.check(weights.shape[-1])
    weights = weights.double()
    entropy = row_entropy(weights).mean(dim=-1)  # (B, H)
    facts = {
        "entropy": entropy,
        "entropy_share": entropy / math.log(layout.num_tokens) if layout.num_tokens > 1 else torch.zeros_like(entropy),
        "distance": row_distance(weights, layout).nanmean(dim=-1),
        "on_itself": weights.diagonal(dim1=-2, dim2=-1)[..., layout.patches].mean(dim=-1),
    }
    if layout.class_token is not None:
        facts["on_class_token"] = weights[..., layout.patches, layout.class_token].mean(dim=-1)
    return facts


@torch.no_grad()
def head_facts(model: Any, batches: Iterable[torch.Tensor], layout: TokenLayout | None = None) -> list[HeadFacts]:
    """Run a model over images and give the facts of every head of every layer.

    Args:
        model: A QKViT model.
        batches: Batches of `pixel_values`, (B, channels, height, width), all of one size.
        layout: What the tokens are. `None`: from the model's configuration, for images of its own size.

    Raises:
        ValueError: there are no images, or the layout does not fit the model's tokens.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> facts = head_facts(QKViTModel(config).eval(), [torch.rand(4, 3, 32, 32)])
    >>> len(facts), facts[-1].layer, facts[-1].head, facts[-1].images  # 2 layers of 3 heads
    (6, 1, 2, 4)

    ```
    """
    layout = layout or TokenLayout.from_config(model.config)
    seen: list[list[dict[str, torch.Tensor]]] = []  # per batch, per layer
    for pixel_values in batches:
        attentions = model(pixel_values, output_attentions=True).attentions
        seen.append([facts_of_maps(weights, layout) for weights in attentions])
    if not seen:
        raise ValueError("there are no images to take facts from; pass at least one batch")
    facts = []
    for layer, of_batches in enumerate(zip(*seen, strict=True)):
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
    size = layout.num_tokens
    weights = torch.full((1, 1, size, size), 1 / size, dtype=torch.float64)
    return {name: value.item() for name, value in facts_of_maps(weights, layout).items()}


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
