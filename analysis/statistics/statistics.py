"""`attention_statistics`: where each head looks, how widely, and what draws attention, without the attention maps.

Shapes: B images, H heads, N tokens, D width of a head, C width of the model.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import torch

from ..token_layout import TokenLayout
from .blockwise import blockwise_statistics, cpu_plan, gpu_plan
from .fused_gpu import fused_statistics, suits
from .groups import ON_REQUEST, Backend, asked_groups, backend_for
from .inputs import AttentionInputs
from .projection import PreparedProjection
from .reference import reference_statistics


@dataclass(frozen=True, kw_only=True)
class AttentionStatistics:
    """Statistics of one layer's attention; `None` for what was not asked for or does not exist.

    With p_ij the weight of key token j in the row of query token i (a row sums to 1), d_ij the distance between the
    centres of two patches in patches, and v_j W the value of token j after its head's block of the output projection.
    A token before the patches (class token, registers) has no place in the image. So distance, centre and spread are
    taken over the patches among the keys, with weights normalised over them: w_ij = p_ij / sum_k p_ik.

    | field | of | formula | shape |
    |---|---|---|---|
    | entropy | row | -sum_j p_ij log p_ij, in nats | (B, H, N) |
    | maximum, argmaximum | row | max_j p_ij, and the token j (any of them where several are largest) | (B, H, N) |
    | received | column | sum_i p_ij: what token j is given; its mean over tokens is 1 | (B, H, N) |
    | sink_share | head | share of `received` in the heaviest 1 % of tokens, rounded up to whole tokens | (B, H) |
    | on_class_token, on_registers | row | their weight | (B, H, N) |
    | on_prefix, on_patches | row | weight on all tokens before the patches, and on the patches | (B, H, N) |
    | on_self | row | p_ii | (B, H, N) |
    | on_neighbours | row | weight on the up to 8 patches around i; NaN unless i is a patch | (B, H, N) |
    | centre | row | sum_j w_ij (row_j, column_j), in patches from the first | (B, H, N, 2) |
    | spread | row | sqrt(sum_j w_ij ||place_j - centre_i||^2), in patches | (B, H, N) |
    | distance | row | sum_j w_ij d_ij, in patches; NaN unless i is a patch | (B, H, N) |
    | head_similarity | head | cosine of two heads' maps: <p, q> / (||p|| ||q||) over all entries | (B, H, H) |
    | value_norm | column | ||v_j W|| | (B, H, N) |
    | weighted_sum | row | sum_j ||p_ij v_j W|| | (B, H, N) |
    | weighted_on_... | row | as on_..., of the shares ||p_ij v_j W|| / weighted_sum | (B, H, N) |
    | weighted_received | column | as received, of these shares | (B, H, N) |
    | output_norm | row | norm of the head's part of the output, ||sum_j p_ij v_j W|| | (B, H, N) |
    | output_share | head | sum_i <part_i, output_i> / sum_i ||output_i||^2: sums to 1, may be negative | (B, H) |
    | mean_map | layer | sum_h p_ij / H, the only one of N x N numbers: for `map_rollout` of few tokens | (B, N, N) |

    Distance is the mean attention distance of Dosovitskiy et al. 2021 (arXiv 2010.11929). Sinks, tokens that draw much
    of all attention: Darcet et al. 2024 (arXiv 2309.16588). Norm-weighted attention: Kobayashi et al. 2020 (arXiv
    2004.10102). Without an output projection W is the identity, and the heads' parts stand beside each other.
    """

    layout: TokenLayout
    entropy: torch.Tensor | None = None
    maximum: torch.Tensor | None = None
    argmaximum: torch.Tensor | None = None
    received: torch.Tensor | None = None
    sink_share: torch.Tensor | None = None
    on_class_token: torch.Tensor | None = None
    on_registers: torch.Tensor | None = None
    on_prefix: torch.Tensor | None = None
    on_patches: torch.Tensor | None = None
    on_self: torch.Tensor | None = None
    on_neighbours: torch.Tensor | None = None
    centre: torch.Tensor | None = None
    spread: torch.Tensor | None = None
    distance: torch.Tensor | None = None
    head_similarity: torch.Tensor | None = None
    value_norm: torch.Tensor | None = None
    weighted_sum: torch.Tensor | None = None
    weighted_on_class_token: torch.Tensor | None = None
    weighted_on_registers: torch.Tensor | None = None
    weighted_on_prefix: torch.Tensor | None = None
    weighted_on_patches: torch.Tensor | None = None
    weighted_on_self: torch.Tensor | None = None
    weighted_received: torch.Tensor | None = None
    output_norm: torch.Tensor | None = None
    output_share: torch.Tensor | None = None
    mean_map: torch.Tensor | None = None

    @property
    def distance_fraction(self) -> torch.Tensor | None:
        """`distance` as a fraction of the image's longer side: (B, H, N).

        `None` where patches are not square: a distance in patches is then no distance in the image.
        """
        if self.distance is None or not self.layout.has_square_patches:
            return None
        return self.distance / max(self.layout.grid)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors of what was computed."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                yield field.name, value

    def per_head(self) -> dict[str, torch.Tensor]:
        """One number for each image and head, by name: (B, H).

        The mean over tokens. `distance`, `centre`, `spread` and the weights on kinds of tokens are averaged over the
        rows of patches; `centre` gives "centre_row" and "centre_column"; `head_similarity` is averaged over the other
        heads. Left out are `received` and `weighted_received`, whose mean is 1, `argmaximum` and `mean_map`. Rows that
        are NaN are left out of a mean, and a mean of none is NaN.
        """
        found: dict[str, torch.Tensor] = {}
        for name, numbers in self.items():
            match name:
                case "received" | "weighted_received" | "argmaximum" | "mean_map":
                    continue
                case "sink_share" | "output_share":
                    found[name] = numbers
                case "head_similarity":
                    heads = numbers.shape[-1]
                    others = numbers.sum(dim=-1) - numbers.diagonal(dim1=-2, dim2=-1)
                    found[name] = others / (heads - 1)  # 0 / 0 for a single head
                case "centre":
                    rows = numbers[:, :, self.layout.patches].nanmean(dim=2)
                    found["centre_row"], found["centre_column"] = rows.unbind(dim=-1)
                case _ if name in ("distance", "spread") or "on_" in name:
                    found[name] = numbers[:, :, self.layout.patches].nanmean(dim=2)
                case _:
                    found[name] = numbers.nanmean(dim=2)
        if self.distance_fraction is not None:
            found["distance_fraction"] = found["distance"] / max(self.layout.grid)
        return found


@torch.no_grad()
def attention_statistics(
    query: torch.Tensor,
    key: torch.Tensor,
    layout: TokenLayout,
    *,
    scaling: float,
    value: torch.Tensor | None = None,
    output_projection: torch.Tensor | torch.nn.Linear | PreparedProjection | None = None,
    output: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    statistics: str | Iterable[str] | None = None,
    backend: Backend | None = None,
) -> AttentionStatistics:
    """Exact statistics of softmax(scaling * Q K^T + mask), without a tensor of N x N numbers.

    Computed in float32 (float64 for float64 inputs) from the inputs as they are, block by block; without gradients.
    Peak memory beside the inputs grows linearly with N.

    Args:
        query, key: (B, H, N, D), as they enter the product: after bias, norm and rotary positions.
        layout: What the tokens are.
        scaling: What the products are multiplied by; most models use D ** -0.5.
        value: (B, H, N, D_v); needed for the norm-weighted statistics and the heads' shares of the output.
        output_projection: The linear layer after attention, or its weight (C, H * D_v); over many images,
            `PreparedProjection.of` the layer, which takes less time.
        output: (B, H, N, D_v), what attention gives before the projection, where it is at hand (`record` has it): in
            float32 it is not computed again. One of 16 bits is, because it is rounded.
        attention_mask: Broadcasts to (B, H, N, N): True for the keys that a query may see, or numbers added to the
            scores.
        statistics: Groups to compute, of "entropy", "maximum", "received", "masses", "place", "distance", "similarity"
            and "values". `None`: all of these that can be had. The first five are the cheap ones,
            `qkvit.analysis.FUSED`. "mean_map" is given only by name.
        backend: "cpu" goes over blocks that fit a core's cache; "gpu" runs Triton kernels, or, where they do not suit
            (float64, no Triton, a GPU before compute capability 8.0), goes over blocks that fill the device;
            "reference" builds the maps in float64. `None`: by the device of the query.

    Raises:
        ValueError: shapes, types or devices do not fit each other or the layout, a query may see no key, or there is no
            group or backend of that name.

    Example:

    ```python
    >>> layout = TokenLayout(grid=(4, 4), has_class_token=True)
    >>> query, key = torch.zeros(1, 2, 17, 8), torch.ones(1, 2, 17, 8)  # every token looks at every token alike
    >>> s = attention_statistics(query, key, layout, scaling=8**-0.5)
    >>> round(s.entropy[0, 0, 0].item(), 3)  # log 17
    2.833
    >>> round(s.received.mean().item(), 3), s.centre[0, 0, 0].tolist()
    (1.0, [1.5, 1.5])

    ```
    """
    weight, prepared = _weight_of(output_projection)
    inputs = AttentionInputs(query, key, layout, scaling, value, weight, output, attention_mask, prepared)
    groups = asked_groups(statistics, has_value=value is not None)
    found = BACKENDS[backend_for(backend, query.device)](inputs, groups)
    if "received" in found:
        found["sink_share"] = sink_share(found["received"])
    if "products" in found:
        found["head_similarity"] = cosines(found.pop("products"))
    return AttentionStatistics(layout=layout, **found)


def sink_share(received: torch.Tensor) -> torch.Tensor:
    """Share of the attention in the heaviest 1 % of tokens, rounded up to whole tokens: (B, H, N) -> (B, H).

    Example:

    ```python
    >>> sink_share(torch.tensor([[[8.0, 1.0, 1.0]]]))
    tensor([[0.8000]])

    ```
    """
    heaviest = -(-received.shape[-1] // 100)
    return received.topk(heaviest, dim=-1).values.sum(dim=-1) / received.sum(dim=-1)


def cosines(products: torch.Tensor) -> torch.Tensor:
    """Cosines from inner products: (B, H, H)."""
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    return products / (norms[:, :, None] * norms[:, None, :])


def _cpu(inputs: AttentionInputs, groups: frozenset[str]) -> dict[str, torch.Tensor]:
    return blockwise_statistics(inputs, groups, cpu_plan(inputs, groups))


def _gpu(inputs: AttentionInputs, groups: frozenset[str]) -> dict[str, torch.Tensor]:
    if suits(inputs.query, inputs.value, inputs.mask, inputs.layout.num_prefix):
        maps = groups & ON_REQUEST.keys()  # no kernel makes maps
        found = fused_statistics(inputs, groups - maps) if groups - maps else {}
        return found | (blockwise_statistics(inputs, maps, gpu_plan(inputs, maps)) if maps else {})
    return blockwise_statistics(inputs, groups, gpu_plan(inputs, groups))


BACKENDS: dict[str, Callable[[AttentionInputs, frozenset[str]], dict[str, torch.Tensor]]] = {
    "reference": reference_statistics,
    "cpu": _cpu,
    "gpu": _gpu,
}


def _weight_of(
    projection: torch.Tensor | torch.nn.Linear | PreparedProjection | None,
) -> tuple[torch.Tensor | None, PreparedProjection | None]:
    if isinstance(projection, PreparedProjection):
        return projection.weight, projection
    return projection if projection is None or isinstance(projection, torch.Tensor) else projection.weight, None
