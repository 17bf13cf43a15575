"""What the weights alone say about a head: which tokens may match (W_Q^T W_K), and what is passed on (W_O W_V).

Only the products mean anything: (M W_Q, M^-T W_K) gives the same attention for every invertible M, and
(M W_V, W_O M^-1) the same output. Every number here is the same for all of them; norms or ranks of W_Q alone are not.
A product is C x C and has rank D at most, so all of it is computed from D x D matrices.

Shapes: L layers, H heads, D width of a head, C width of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from .head_weights import LayerWeights, caveats, head_weights


@dataclass(frozen=True)
class WeightStatistics:
    """Numbers about every head, from the weights alone.

    With A = W_Q^T W_K, so that x^T A y is what token y scores with token x, and A = W_O W_V, which maps what a token is
    to what is added where it is attended to; sigma_1, ... are the singular values of A:

    | statistic | formula |
    |---|---|
    | qk_norm, ov_norm | ||A||, the Frobenius norm |
    | qk_effective_rank, ov_effective_rank | exp(-sum_k p_k log p_k) with p_k = sigma_k / sum sigma; 1 to D |
    | qk_symmetric_share, ov_symmetric_share | ||(A + A^T) / 2||^2 / ||A||^2 |
    | qk_antisymmetric_share, ov_antisymmetric_share | the rest; both are 1/2 on average for random weights |
    | ..._with_gain | the same for A as the normalised tokens see it: with the gain (and, in a LayerNorm, the centring)
      of the norm before, and in W_O W_V with LayerScale after |
    | qk_gain_cosine, ov_gain_cosine | <A, A'> / (||A|| ||A'||) of A without and A' with them |
    | query_bias_share | ||c||^2 / (||c||^2 + ||A'||^2), where c = W_K'^T b_Q' is what a key scores whatever the query |
    | key_bias_norm | scaling * ||W_Q'^T b_K'||: a key bias moves all scores of a row alike, and softmax removes it |
    | value_bias_share | ||W_O b_V'||^2 / (||W_O b_V'||^2 + ||A'||^2): what is added wherever the head looks |

    A model also stays the same when a norm's gain is doubled and the projections after it are halved, or LayerScale is
    doubled and W_O halved: numbers without "with_gain" are those of the matrices as they are stored.
    b' are the biases with what the norm's shift adds. The two shares are those of the variance of a score, and of the
    mean square of an output, for tokens with independent standard normal coordinates.

    Effective rank: Roy & Vetterli 2007, EUSIPCO.

    Args:
        layers: The layers' numbers.
        numbers: Statistic -> (L, H), float64.
        qk_singular_values, ov_singular_values: (L, H, D), largest first, without gain.
        caveats: What the numbers leave out in this model.
        control: The same for random weights. Their scale is that of the projections as stored, so their norms and
            shares of biases, unlike the model's, depend on the basis of a head.
    """

    layers: tuple[int, ...]
    numbers: dict[str, torch.Tensor]
    qk_singular_values: torch.Tensor
    ov_singular_values: torch.Tensor
    caveats: tuple[str, ...] = ()
    control: "WeightStatistics | None" = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The tidy table: one row for each layer, head and statistic."""
        for name, values in self.numbers.items():
            other = None if self.control is None else self.control.numbers.get(name)
            for place, layer in enumerate(self.layers):
                for head, value in enumerate(values[place].tolist()):
                    control = None if other is None else other[place, head].item()
                    yield {"layer": layer, "head": head, "statistic": name, "value": value, "control": control}

    def singular_value_rows(self) -> Iterator[dict[str, Any]]:
        """Their tidy table: one row for each layer, head, product ("qk" or "ov") and index, the largest's being 0."""
        for product in ("qk", "ov"):
            values = getattr(self, f"{product}_singular_values").tolist()
            others = None if self.control is None else getattr(self.control, f"{product}_singular_values").tolist()
            for place, layer in enumerate(self.layers):
                for head, of_head in enumerate(values[place]):
                    of_control = [None] * len(of_head) if others is None else others[place][head]
                    for index, (value, control) in enumerate(zip(of_head, of_control, strict=True)):
                        found = {"layer": layer, "head": head, "product": product, "index": index}
                        yield found | {"value": value, "control": control}


def weight_statistics(model: Any, *, control: bool = True, seed: int = 0) -> WeightStatistics:
    """Statistics of every head of a model, from its weights alone.

    Args:
        model: A QKViT model, or any of transformers' with `q_proj`, `k_proj`, `v_proj` and an output projection.
        control: Also for random weights: normal ones of the same shapes and standard deviations, head by head, between
            the model's own biases, norms and LayerScale.
        seed: Of these.

    Raises:
        ValueError: projections are not found, or hold NaN or infinity; the layer is named.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> statistics = weight_statistics(QKViTModel(config))
    >>> statistics.numbers["qk_effective_rank"].shape, statistics.qk_singular_values.shape
    (torch.Size([2, 3]), torch.Size([2, 3, 64]))

    ```
    """
    layers = head_weights(model)
    found = _statistics(layers)
    if not control:
        return replace(found, caveats=caveats(model))
    generator = torch.Generator().manual_seed(seed)
    random = _statistics({layer: _random_like(weights, generator) for layer, weights in layers.items()})
    return replace(found, caveats=caveats(model), control=random)


def effective_rank(singular_values: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007): (..., D) -> (...).

    NaN where all of them are 0.

    Example:

    ```python
    >>> effective_rank(torch.tensor([[2.0, 2.0, 0.0], [5.0, 0.0, 0.0]]))
    tensor([2., 1.])

    ```
    """
    shares = singular_values / singular_values.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1).exp()


def product_singular_values(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Singular values of left^T right, of rank D at most: (..., D, C), (..., D, C) -> (..., D).

    With left^T = Q_1 R_1 and right^T = Q_2 R_2 they are those of R_1 R_2^T.

    Example:

    ```python
    >>> product_singular_values(torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[0.0, 0.0, 2.0]]))
    tensor([10.])

    ```
    """
    first = torch.linalg.qr(left.mT, mode="r").R
    second = torch.linalg.qr(right.mT, mode="r").R
    return torch.linalg.svdvals(first @ second.mT)


def _statistics(layers: dict[int, LayerWeights]) -> WeightStatistics:
    of_layers = [_of_layer(weights) for weights in layers.values()]
    names = [name for name in of_layers[0] if not name.endswith("singular_values")]
    first, *others = layers.items()
    for layer, weights in others:
        if weights.query.shape != first[1].query.shape or weights.value.shape != first[1].value.shape:
            (heads, _, width), (of_heads, _, of_width) = first[1].query.shape, weights.query.shape
            raise ValueError(
                f"layer {layer} has {of_heads} heads of a width of {of_width}, and layer {first[0]} has {heads} of"
                f" {width}: pass a model whose layers are all of one size"
            )
    return WeightStatistics(
        layers=tuple(layers),
        numbers={name: torch.stack([found[name] for found in of_layers]) for name in names},
        qk_singular_values=torch.stack([found["qk_singular_values"] for found in of_layers]),
        ov_singular_values=torch.stack([found["ov_singular_values"] for found in of_layers]),
    )


def _of_layer(weights: LayerWeights) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    query, key, value = (_reading(weight, weights) for weight in (weights.query, weights.key, weights.value))
    written = weights.output.mT  # (H, D, C)
    scaled = written * weights.scale
    for name, plain, applied in (
        ("qk", (weights.query, weights.key), (query, key)),
        ("ov", (written, weights.value), (scaled, value)),
    ):
        for ending, factors in (("", plain), ("_with_gain", applied)):
            singular_values = product_singular_values(*factors)
            symmetric = _symmetric_share(*factors)
            found[f"{name}_norm{ending}"] = singular_values.norm(dim=-1)
            found[f"{name}_effective_rank{ending}"] = effective_rank(singular_values)
            found[f"{name}_symmetric_share{ending}"] = symmetric
            found[f"{name}_antisymmetric_share{ending}"] = 1 - symmetric
            if not ending:
                found[f"{name}_singular_values"] = singular_values
        found[f"{name}_gain_cosine"] = _inner(plain, applied) / (
            found[f"{name}_norm"] * found[f"{name}_norm_with_gain"]
        )
    query_bias, key_bias, value_bias = (
        bias + weight @ weights.shift
        for bias, weight in (
            (weights.query_bias, weights.query),
            (weights.key_bias, weights.key),
            (weights.value_bias, weights.value),
        )
    )
    found["query_bias_share"] = _share(_combined(key, query_bias), found["qk_norm_with_gain"])
    found["key_bias_norm"] = _combined(query, key_bias) * weights.scaling
    found["value_bias_share"] = _share(_combined(scaled, value_bias), found["ov_norm_with_gain"])
    return found


def _reading(weight: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """The weight as the normalised token sees it, before the norm's gain and after its mean is gone: (H, D, C)."""
    weight = weight * weights.gain
    return weight - weight.mean(dim=-1, keepdim=True) if weights.centred else weight


def _combined(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """||W^T b||: (H, D, C), (H, D) -> (H,)."""
    return (bias[:, None] @ weight)[:, 0].norm(dim=-1)


def _share(part: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    return part.square() / (part.square() + rest.square())


def _inner(first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """<L_1^T R_1, L_2^T R_2> of two products, from D x D matrices: (H,)."""
    return ((first[0] @ second[0].mT) * (first[1] @ second[1].mT)).sum(dim=(-2, -1))


def _symmetric_share(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """||(A + A^T) / 2||^2 / ||A||^2 = (1 + <A, A^T> / ||A||^2) / 2 for A = left^T right: (H,)."""
    return (1 + _inner((left, right), (right, left)) / _inner((left, right), (left, right))) / 2


def _random_like(weights: LayerWeights, generator: torch.Generator) -> LayerWeights:
    def normal(weight: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        return drawn * weight.std(dim=(-2, -1), keepdim=True)

    return replace(
        weights,
        query=normal(weights.query),
        key=normal(weights.key),
        value=normal(weights.value),
        output=normal(weights.output),
    )
