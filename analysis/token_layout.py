"""What each token of a Vision Transformer is: class token, distillation token, registers, patches on a grid.

Every analysis takes it from here, once, so that none has to assume one class token and a square image.

Shapes: N tokens, P patches.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

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
        patch_size: Pixels of a patch as (height, width). `None`: it is square, of a size that is not known. Layouts of
            other sizes are equal: their tokens are the same.

    Raises:
        ValueError: a number is negative, the grid or a patch is empty, or the counts contradict each other.

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
    patch_size: tuple[int, int] | None = field(default=None, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid={self.grid} is no (rows, columns) of patches; pass two numbers from 1 up")
        object.__setattr__(self, "grid", tuple(self.grid))
        if self.patch_size is not None:
            if len(self.patch_size) != 2 or min(self.patch_size) < 1:
                raise ValueError(f"patch_size={self.patch_size} is no (height, width) of pixels; pass two from 1 up")
            object.__setattr__(self, "patch_size", tuple(self.patch_size))
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
    def from_config(cls, config: Any, image_size: int | tuple[int, int] | None = None) -> "TokenLayout":
        """The layout of a model's tokens.

        Args:
            config: A `QKViTConfig`, also one that came with a model's own code, or the config of transformers' ViT,
                DeiT, DINOv2, DINOv2 with registers, DINOv3, CLIP, SigLIP, I-JEPA, MSN, AIMv2, BEiT, Pixio, MLCD,
                RADIO, TIPSv2, ViTPose's backbone, or of the vision part of MetaCLIP 2, AltCLIP, Chinese CLIP, CLIPSeg,
                GIT, OWL-ViT, OWLv2, InternVL or Janus. Of a config with a text and a vision part, the vision part.
            image_size: Pixels of the input as (height, width), or one number for both. `None`: those of
                `config.image_size`.

        Raises:
            ValueError: the configuration is of another model, the image is smaller than a patch, or (QKViT) the patch
                does not divide the image. transformers' models leave out the pixels that fill no patch.

        Example:

        ```python
        >>> from qkvit import QKViTConfig
        >>> config = QKViTConfig(image_size=(64, 32), patch_size=16)
        >>> TokenLayout.from_config(config).grid, TokenLayout.from_config(config, (32, 32)).grid
        ((4, 2), (2, 2))
        >>> from transformers import Dinov2WithRegistersConfig
        >>> layout = TokenLayout.from_config(Dinov2WithRegistersConfig(patch_size=14), 224)
        >>> layout.grid, layout.num_register_tokens, layout.num_tokens
        ((16, 16), 4, 261)

        ```
        """
        # By name: the class of a configuration that came with a model's code is not the installed one.
        model_type = getattr(config, "model_type", None)
        vision_config = getattr(config, "vision_config", None)
        if model_type not in _PREFIX and vision_config is not None:
            return cls.from_config(vision_config, image_size)
        if model_type not in _PREFIX:
            _refuse(model_type)
        height, width = _pair(config.image_size if image_size is None else image_size)
        patch_height, patch_width = _pair(config.patch_size)
        fills = height % patch_height == 0 and width % patch_width == 0
        if (model_type == "qkvit" and not fills) or height < patch_height or width < patch_width:
            raise ValueError(
                f"patch_size ({patch_height}, {patch_width}) does not divide image_size ({height}, {width}); pass the"
                " size of the images as the model gets them"
            )
        grid = (height // patch_height, width // patch_width)
        return cls(grid=grid, patch_size=(patch_height, patch_width), **_PREFIX[model_type](config))

    @classmethod
    def from_model(cls, model: Any, image_size: int | tuple[int, int] | None = None) -> "TokenLayout":
        """The layout of a model's tokens: `from_config` of the model, or of the one inside DistributedDataParallel.

        Example:

        ```python
        >>> from transformers import DeiTConfig, DeiTModel
        >>> config = DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> layout = TokenLayout.from_model(DeiTModel(config))
        >>> layout.grid, layout.has_distillation_token
        ((14, 14), True)

        ```
        """
        while not hasattr(model, "config") and hasattr(model, "module"):
            model = model.module
        if not hasattr(model, "config"):
            raise ValueError(
                f"{type(model).__name__} has no config to take a token layout from; make it yourself:"
                " TokenLayout(grid=(rows, columns), has_class_token=...)"
            )
        return cls.from_config(model.config, image_size)

    @property
    def num_patches(self) -> int:
        """Rows times columns of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """All tokens of an image: those before the patches, and the patches."""
        return self.num_prefix + self.num_patches

    @property
    def num_prefix(self) -> int:
        """`num_prefix_tokens`, which is a number once the layout is made."""
        assert self.num_prefix_tokens is not None
        return self.num_prefix_tokens

    @property
    def has_square_patches(self) -> bool:
        """Whether a distance in patches is one in the image."""
        return self.patch_size is None or self.patch_size[0] == self.patch_size[1]

    @property
    def class_token(self) -> int | None:
        """Index of the class token; None where there is none, or where it is not known which token it is."""
        return 0 if self.has_class_token else None

    @property
    def registers(self) -> slice | None:
        """Where the registers are; None where there are none, or where it is not known which tokens they are."""
        count = self.num_register_tokens
        return slice(self.num_prefix - count, self.num_prefix) if count else None

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


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _refuse(model_type: str | None) -> NoReturn:
    if model_type in _OTHERWISE:
        why = _OTHERWISE[model_type]
        raise ValueError(f"model_type={model_type!r} does not have one grid of patches after its other tokens: {why}")
    raise ValueError(
        f"no token layout is known for model_type={model_type!r}; if its tokens are a grid of patches, row by row, with"
        " none or some before it, make it yourself in Python, and pass it to collect or rollout:"
        " layout=TokenLayout(grid=(rows, columns), num_prefix_tokens=...)"
    )


def _class_token(config: Any) -> dict[str, Any]:
    return {"has_class_token": True}


def _class_token_and_registers(config: Any) -> dict[str, Any]:
    return {"has_class_token": True, "num_register_tokens": config.num_register_tokens}


def _nothing(config: Any) -> dict[str, Any]:
    return {}


# What stands before the patches, for each model type.
_PREFIX: dict[str, Callable[[Any], dict[str, Any]]] = {
    "qkvit": lambda config: {
        "has_class_token": config.use_class_token,
        "has_distillation_token": config.use_distillation_token,
        "num_register_tokens": config.num_register_tokens,
    },
    "vit": _class_token,
    "deit": lambda config: {"has_class_token": True, "has_distillation_token": True},
    "vit_msn": _class_token,
    "beit": _class_token,
    "dinov2": _class_token,
    "dinov2_with_registers": _class_token_and_registers,
    "dinov3_vit": _class_token_and_registers,
    "clip_vision_model": _class_token,
    "siglip_vision_model": _nothing,
    "ijepa": _nothing,
    "aimv2_vision_model": _nothing,
    "altclip_vision_model": _class_token,
    "chinese_clip_vision_model": _class_token,
    "clipseg_vision_model": _class_token,
    "git_vision_model": _class_token,
    "internvl_vision": _class_token,
    "janus_vision_model": _nothing,
    "metaclip_2_vision_model": _class_token,
    "mlcd_vision_model": _class_token,
    "owlvit_vision_model": _class_token,
    "owlv2_vision_model": _class_token,
    "pixio": lambda config: {"num_prefix_tokens": config.n_cls_tokens},  # all of them are class tokens
    "radio": lambda config: {"num_prefix_tokens": config.num_cls_tokens + config.num_registers},
    "tipsv2_vision_model": _class_token_and_registers,
    "vitpose_backbone": _nothing,
}

_RECORD = "qkvit.analysis.record gives its queries, keys and values in Python"

# Known, and no such layout: why, and what to do instead.
_OTHERWISE = {
    "vit_mae": "it leaves patches out at random and shuffles the others; its encoder on whole images is what"
    " qkvit convert MODEL FOLDER makes",
    "yolos": f"its detection tokens come after the patches; {_RECORD}",
    "eomt": f"its queries join the patches in the last layers; {_RECORD}",
    "siglip2_vision_model": f"each image has a grid of its own (spatial_shapes); {_RECORD}",
    "videomae": f"its patches are of several frames; {_RECORD}",
    "vivit": f"its patches are of several frames; {_RECORD}",
}
