"""What each token of a Vision Transformer is: class token, distillation token, registers, patches on a grid.

Every analysis takes it from here, once, so that none has to assume one class token and a square image.

Shapes: N tokens, P patches.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TokenLayout:
    """The tokens in their order: class token, distillation token, registers, then the patches row by row.

    Args:
        grid: Patches as (rows, columns).
        num_prefix_tokens: Tokens before the patches. It may be left out where the next three say it; given alone, it
            counts tokens of which only the place is known.
        has_class_token: Whether token 0 is a class token.
        has_distillation_token: Whether token 1 is a distillation token.
        num_register_tokens: Registers.

    Raises:
        ValueError: a number is negative, the grid is empty, or the counts contradict each other.

    Example:

    ```python
    >>> layout = TokenLayout(grid=(4, 6), has_class_token=True, num_register_tokens=2)
    >>> layout.num_prefix_tokens, layout.num_patches, layout.num_tokens
    (3, 24, 27)
    >>> layout.class_token, layout.patches
    (0, slice(3, 27, None))

    ```
    """

    grid: tuple[int, int]
    num_prefix_tokens: int | None = None
    has_class_token: bool = False
    has_distillation_token: bool = False
    num_register_tokens: int = 0

    def __post_init__(self) -> None:
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid={self.grid} is no (rows, columns) of patches; pass two numbers from 1 up")
        object.__setattr__(self, "grid", tuple(self.grid))
        for name in ("num_prefix_tokens", "num_register_tokens"):
            count = getattr(self, name)
            if count is not None and count < 0:
                raise ValueError(f"{name}={count} is not a count; pass 0 or more")
        if self.has_distillation_token and not self.has_class_token:
            raise ValueError("has_distillation_token=True needs has_class_token=True: it is the token after it")
        named = int(self.has_class_token) + int(self.has_distillation_token) + self.num_register_tokens
        if self.num_prefix_tokens is None:
            object.__setattr__(self, "num_prefix_tokens", named)
        elif named not in (0, self.num_prefix_tokens):
            raise ValueError(
                f"num_prefix_tokens={self.num_prefix_tokens}, but class token, distillation token and registers make"
                f" {named}; pass one of the two"
            )

    @classmethod
    def from_config(cls, config: Any, image_size: tuple[int, int] | None = None) -> "TokenLayout":
        """The layout of a model's tokens.

        Args:
            config: A `QKViTConfig`, also one that came with a model's own code.
            image_size: Pixels of the input as (height, width). `None`: those of `config.image_size`.

        Raises:
            ValueError: the configuration is of another model, or the patch does not divide the image.

        Example:

        ```python
        >>> from qkvit import QKViTConfig
        >>> config = QKViTConfig(image_size=(64, 32), patch_size=16)
        >>> TokenLayout.from_config(config).grid, TokenLayout.from_config(config, (32, 32)).grid
        ((4, 2), (2, 2))

        ```
        """
        # By name: the class of a configuration that came with a model's code is not the installed one.
        if getattr(config, "model_type", None) != "qkvit":
            raise ValueError(
                f"no token layout is known for model_type={getattr(config, 'model_type', None)!r}; make it yourself:"
                " TokenLayout(grid=(rows, columns), has_class_token=...)"
            )
        height, width = config.image_shape if image_size is None else image_size
        patch_height, patch_width = config.patch_shape
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"patch_size ({patch_height}, {patch_width}) does not divide image_size ({height}, {width}); pass the"
                " size of the images as the model gets them"
            )
        return cls(
            grid=(height // patch_height, width // patch_width),
            has_class_token=config.use_class_token,
            has_distillation_token=config.use_distillation_token,
            num_register_tokens=config.num_register_tokens,
        )

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.num_prefix + self.num_patches

    @property
    def num_prefix(self) -> int:
        """`num_prefix_tokens`, which is a number once the layout is made."""
        assert self.num_prefix_tokens is not None
        return self.num_prefix_tokens

    @property
    def class_token(self) -> int | None:
        """Index of the class token; None where there is none, or where it is not known which token it is."""
        return 0 if self.has_class_token else None

    @property
    def patches(self) -> slice:
        """Where the patches are among the tokens."""
        return slice(self.num_prefix, self.num_tokens)

    def distances(self) -> torch.Tensor:
        """Distance between the centres of every two patches, in patches: (P, P), float64.

        Example:

        ```python
        >>> TokenLayout(grid=(1, 3)).distances()[0]
        tensor([0., 1., 2.], dtype=torch.float64)

        ```
        """
        rows, columns = (torch.arange(size, dtype=torch.float64) for size in self.grid)
        places = torch.cartesian_prod(rows, columns)  # (P, 2)
        return (places[:, None] - places[None]).norm(dim=-1)

    def check(self, num_tokens: int) -> None:
        """Refuse a tensor with another number of tokens.

        Example:

        ```python
        >>> TokenLayout(grid=(4, 4), has_class_token=True).check(16)
        Traceback (most recent call last):
        ...
        ValueError: the layout has 17 tokens (1 before a grid of 4 x 4 patches), the tensor 16; derive it with ...

        ```
        """
        if num_tokens != self.num_tokens:
            rows, columns = self.grid
            raise ValueError(
                f"the layout has {self.num_tokens} tokens ({self.num_prefix} before a grid of {rows} x {columns}"
                f" patches), the tensor {num_tokens}; derive it with TokenLayout.from_config(model.config, image_size)"
            )
