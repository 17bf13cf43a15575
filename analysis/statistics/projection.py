"""The linear layer after attention: its heads' blocks, and what is computed from it alone.

Shapes: H heads, D width of a head, C width of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PreparedProjection:
    """An output projection with what is computed from it alone, for who asks about many images.

    It is that of the weights as they were when it was made, and takes as much memory as they do. Of several layers
    (`together`), every tensor has the layers as its first dimension, and images come layer by layer.

    Args:
        weight: (C, H * D).
        factors: (H, D, D), as `head_factors` gives them.
        products: (H * D, H * D), weight^T weight with 0 in each head's own block: x^T products y is what the parts of
            different heads have in common.

    Example:

    ```python
    >>> prepared = PreparedProjection.of(torch.nn.Linear(12, 6), num_heads=3)
    >>> prepared.weight.shape, prepared.factors.shape, prepared.products.shape
    (torch.Size([6, 12]), torch.Size([3, 4, 4]), torch.Size([12, 12]))

    ```
    """

    weight: torch.Tensor
    factors: torch.Tensor
    products: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, projection: torch.nn.Linear, num_heads: int) -> "PreparedProjection":
        """From the linear layer after attention; its weight is not copied."""
        weight = projection.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        products = weight.double().T @ weight.double()
        width = len(products) // num_heads
        for own in range(0, len(products), width):
            products[own : own + width, own : own + width] = 0
        return cls(weight, head_factors(weight, num_heads).to(dtype), products.to(dtype))

    @classmethod
    @torch.no_grad()
    def together(cls, layers: "Sequence[PreparedProjection]") -> "PreparedProjection":
        """Of several layers whose tensors stand one after the other in the dimension of images.

        Raises:
            ValueError: the layers differ in width, or in heads.
        """
        if len(layers) == 1:
            return layers[0]
        sizes = sorted({(*it.factors.shape[:2], len(it.weight)) for it in layers})
        if len(sizes) > 1:
            what = f"layers of the sizes (heads, head_dim, width) {sizes}"
            raise ValueError(f"{what} cannot be taken together; take each alone")
        return cls(*(torch.stack([getattr(it, name) for it in layers]) for name in ("weight", "factors", "products")))

    def of_images(self, name: str, images: int) -> torch.Tensor:
        """ "factors" or "products" for each of so many images, or of none in particular: they broadcast."""
        tensor = getattr(self, name)
        return tensor if self.weight.ndim == 2 else tensor.repeat_interleave(images // len(tensor), dim=0)


def head_factors(projection: torch.Tensor, num_heads: int) -> torch.Tensor:
    """L of each head with L L^T = W W^T, so that ||v L|| = ||v W||, with D columns in the place of C: (H, D, D).

    Cholesky's factor in float64, whose rounding the square of W's condition number leaves small. The 1e-14 is for a W
    without full rank: it changes a norm by less than 1e-7 of ||v|| ||W||.
    """
    blocks = blocks_of_heads(projection.double(), num_heads)
    squares = blocks @ blocks.transpose(1, 2)  # (H, D, D)
    diagonal = squares.diagonal(dim1=1, dim2=2)
    diagonal += (1e-14 * diagonal.sum(dim=1, keepdim=True)).clamp_min(1e-300)
    return torch.linalg.cholesky_ex(squares).L


def blocks_of_heads(projection: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Each head's block W of the projection: (C, H D) -> (H, D, C)."""
    return projection.unflatten(1, (num_heads, -1)).permute(1, 2, 0)
