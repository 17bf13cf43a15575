"""From pixels to tokens: patches, the tokens before them, positions, masking and patch dropout.

Shapes: B batch, N tokens, P patches, C width of the model.
"""

from typing import Any

import torch
from torch import nn

from .positions_qkvit import Grid, Rotation, interpolate_learned, rotary_2d, sincos_2d


def cut_patches(pixel_values: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Images (B, channels, height, width) -> patches row by row (B, P, channels * patch height * patch width).

    A linear layer on these is the strided convolution that a ViT is often written with, and no slower.

    Example:

    ```python
    >>> cut_patches(torch.arange(8.0).view(1, 1, 2, 4), (2, 2))
    tensor([[[0., 1., 4., 5.],
             [2., 3., 6., 7.]]])

    ```
    """
    rows = pixel_values.unflatten(2, (-1, patch_size[0])).unflatten(-1, (-1, patch_size[1]))
    # (B, channels, rows, patch height, columns, patch width) -> (B, rows, columns, channels, height, width)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class QKViTEmbeddings(nn.Module):
    """Tokens, in this order: class token, distillation token, registers, patches row by row.

    `config.position_coverage` says which of those before the patches learned positions cover too.
    """

    def __init__(self, config: Any, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        self.patch_size = config.patch_shape
        self.trained_grid: Grid = config.grid
        self.position_embedding = config.position_embedding
        width = config.hidden_size

        def token(count: int, wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(1, count, width)) if wanted and count else None

        patch_values = config.num_channels * self.patch_size[0] * self.patch_size[1]
        self.patch_projection = nn.Linear(patch_values, width, bias=config.patch_bias)
        self.class_token = token(1, config.use_class_token)
        self.distillation_token = token(1, config.use_distillation_token)
        self.register_tokens = token(config.num_register_tokens, True)
        self.mask_token = token(1, use_mask_token or config.use_mask_token)
        self.num_placed_tokens = config.num_placed_tokens
        num_positions = self.num_placed_tokens + self.trained_grid[0] * self.trained_grid[1]
        self.position_embeddings = token(num_positions, config.position_embedding == "learned")
        self.dropout = nn.Dropout(config.hidden_dropout_prob) if config.hidden_dropout_prob else nn.Identity()

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Rotation | None]:
        """Embed images.

        Args:
            pixel_values: (B, channels, height, width).
            bool_masked_pos: (B, P), True for patches that the mask token replaces.
            token_mask: (B, N), True for tokens that may be attended to.

        Returns:
            Tokens (B, N, C), the token mask and the rotary angles, these two for the patches that are left.
        """
        grid: Grid = (pixel_values.shape[-2] // self.patch_size[0], pixel_values.shape[-1] // self.patch_size[1])
        patches = self.patch_projection(cut_patches(pixel_values, self.patch_size))  # (B, P, C)
        if bool_masked_pos is not None:
            assert self.mask_token is not None, "QKViTModel refuses a mask where there is no mask token"
            patches = torch.where(bool_masked_pos.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)

        before: list[torch.Tensor] = [
            token for token in (self.class_token, self.distillation_token, self.register_tokens) if token is not None
        ]
        prefix = torch.cat(before, dim=1) if before else None  # (1, tokens before the patches, C)
        rotation = None
        if self.position_embeddings is not None:
            on_prefix, on_grid = self.position_embeddings.tensor_split([self.num_placed_tokens], dim=1)
            if prefix is not None and self.num_placed_tokens:
                if prefix.shape[1] > self.num_placed_tokens:
                    on_prefix = nn.functional.pad(on_prefix, (0, 0, 0, prefix.shape[1] - self.num_placed_tokens))
                prefix = prefix + on_prefix
            on_grid = interpolate_learned(
                on_grid, self.trained_grid, grid, self.config.position_antialias, self.config.position_float32
            )
            patches = patches + on_grid
        elif self.position_embedding == "sincos2d":
            table = sincos_2d(self.config.hidden_size, self.trained_grid, grid, patches.device)
            patches = patches + table.to(patches.dtype)
        elif self.position_embedding == "rope2d":
            precise = torch.promote_types(patches.dtype, torch.float32)
            rotation = rotary_2d(self.config.head_dim, grid, patches.device, self.config.rope_theta, precise)

        if self.training and self.config.patch_drop_rate:
            patches, token_mask, rotation = self.drop_patches(patches, token_mask, rotation)
        # (B, N, C)
        tokens = patches if prefix is None else torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.dropout(tokens), token_mask, rotation

    def drop_patches(
        self, patches: torch.Tensor, token_mask: torch.Tensor | None, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, Rotation | None]:
        """PatchDropout (Liu et al. 2022, arXiv 2208.07220): keep a random subset of each image's patches, in order."""
        batch, count, width = patches.shape
        kept_count = max(1, round(count * (1 - self.config.patch_drop_rate)))
        order = torch.rand(batch, count, device=patches.device).argsort(dim=1)
        kept = order[:, :kept_count].sort(dim=1).values  # (B, P kept)
        patches = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, width))
        if token_mask is not None:
            prefix, on_patches = token_mask.tensor_split([token_mask.shape[1] - count], dim=1)
            token_mask = torch.cat([prefix, on_patches.gather(1, kept)], dim=1)
        if rotation is not None:
            cosine, sine = (table[kept].unsqueeze(1) for table in rotation)  # (B, 1, P kept, D)
            rotation = (cosine, sine)
        return patches, token_mask, rotation
