"""QKViT: a Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) that shows its queries, keys and values.

The attention product is in `attention_qkvit.py`, a layer's two residual lines in `layers_qkvit.py`.

Shapes: B batch, N tokens, P patches, C width, H heads, D width of a head, L layers.
"""

from typing import Any

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_qkvit import QKViTConfig
from .attention_qkvit import QKViTAttention
from .checks_qkvit import check_arguments, check_pixels, chosen_layers, masked_patches_from, token_mask_from
from .embeddings_qkvit import QKViTEmbeddings
from .layers_qkvit import QKViTLayer
from .losses_qkvit import classification_loss
from .normalization_qkvit import make_norm
from .outputs_qkvit import (
    QKViTBackboneOutput,
    QKViTClassifierOutput,
    QKViTMaskedImageModelingOutput,
    QKViTModelOutput,
)
from .pooling_qkvit import QKViTPooling
from .precision_qkvit import conversions_of_a_pass
from .pretrained_qkvit import QKViTPreTrainedModel


class QKViTModel(QKViTPreTrainedModel):
    """The transformer without a head: tokens and one pooled vector an image.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> model = QKViTModel(QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2))
    >>> out = model(torch.rand(1, 3, 32, 32), output_attentions=True, output_qkv=-1)
    >>> out.attentions[0].shape  # (batch, heads, query tokens, key tokens)
    torch.Size([1, 3, 17, 17])
    >>> out.queries[0] is None, out.queries[1].shape  # only the last layer was asked for
    (True, torch.Size([1, 3, 17, 64]))

    ```
    """

    def __init__(self, config: QKViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        self.embeddings = QKViTEmbeddings(config, use_mask_token=use_mask_token)
        self.pre_norm = make_norm(config) if config.use_pre_norm else nn.Identity()
        self.layers = nn.ModuleList([QKViTLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.Identity() if config.norm_position == "none" else make_norm(config)
        self.pooler = QKViTPooling(config) if add_pooling_layer else None
        self.post_init()
        self.settle()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | int | list[int] | None = None,
        output_qkv: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> QKViTModelOutput:
        """Run the model.

        Args:
            pixel_values: (B, channels, height, width) floats, of any height and width that the patch divides:
                positions are interpolated.
            bool_masked_pos: (B, P), True where the mask token stands in for a patch (`use_mask_token`).
            attention_mask: (B, P) for the patches, or (B, N) for all tokens: 1 where a token is seen.
            output_attentions: Give the attention maps: True, a layer index, or a list of them (negative ones count
                from the end). Works with every attention implementation and changes no other output by a bit; in
                all but "eager" the maps are computed beside it, without gradients.
            output_qkv: Give queries, keys and values, likewise. They are the tensors of the computation itself,
                with gradients.
            output_hidden_states, return_dict: as everywhere in transformers.

        Raises:
            ValueError: the input's shape, type or values are not what the model takes.
            TypeError: an argument is unknown.
        """
        check_arguments(kwargs)
        tokens, token_mask, rotation = self._embed(pixel_values, bool_masked_pos, attention_mask)
        last_hidden_state, captured = self._encode(tokens, token_mask, rotation, output_attentions, output_qkv)
        pooled_norm = None
        if self.config.norm_position == "after_pooling":
            pooled_norm = self.norm
        else:
            last_hidden_state = self.norm(last_hidden_state)
        return QKViTModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(last_hidden_state, token_mask, pooled_norm),
            **captured,
        )

    def _embed(self, pixel_values: Any, bool_masked_pos: Any, attention_mask: Any) -> tuple:
        embeddings, config = self.embeddings, self.config
        check_pixels(pixel_values, config.num_channels, embeddings.patch_size)
        weight = getattr(embeddings.patch_projection, "weight", None)  # torch.ao's quantised layers have a method
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():  # bitsandbytes' weights are integers
            pixel_values = pixel_values.to(weight.dtype)
        batch_size = pixel_values.shape[0]
        num_patches = (pixel_values.shape[2] // embeddings.patch_size[0]) * (
            pixel_values.shape[3] // embeddings.patch_size[1]
        )
        if bool_masked_pos is not None and embeddings.mask_token is None:
            raise ValueError(
                "bool_masked_pos was given but the model has no mask token; use QKViTForMaskedImageModeling, or a"
                " config with use_mask_token=True"
            )
        masked = masked_patches_from(bool_masked_pos, batch_size, num_patches, pixel_values.device)
        token_mask = token_mask_from(
            attention_mask, batch_size, num_patches, config.num_prefix_tokens, pixel_values.device
        )
        return embeddings(pixel_values, masked, token_mask)

    def _encode(
        self,
        tokens: torch.Tensor,
        token_mask: torch.Tensor | None,
        rotation: Any,
        output_attentions: Any,
        output_qkv: Any,
    ) -> tuple[torch.Tensor, dict[str, tuple]]:
        """All layers; what was asked for of each layer, by name."""
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        shown_maps = chosen_layers(output_attentions, len(self.layers), "output_attentions")
        shown_qkv = chosen_layers(output_qkv, len(self.layers), "output_qkv")
        # Without a mask nothing is built: flex_attention would get a block mask, which torch.compile cannot trace.
        attention_mask = None if token_mask is None else create_bidirectional_mask(config, tokens, token_mask)

        hidden_states = self.pre_norm(tokens)
        maps, triples = [], []
        with conversions_of_a_pass(tokens):
            for index, layer in enumerate(self.layers):
                hidden_states, weights, *qkv = layer(
                    hidden_states,
                    attention_mask=attention_mask,
                    rotation=rotation,
                    token_mask=token_mask,
                    output_attentions=index in shown_maps,
                )
                maps.append(weights)
                triples.append(qkv if index in shown_qkv else [None, None, None])

        captured: dict[str, tuple] = {}
        if shown_maps:
            captured["attentions"] = tuple(maps)
        if shown_qkv:
            captured["queries"], captured["keys"], captured["values"] = zip(*triples, strict=True)
        return hidden_states, captured


class QKViTForImageClassification(QKViTPreTrainedModel):
    """QKViT with a linear classifier on the pooled tokens.

    With a distillation token there are two classifiers; `logits` is the mean of both (DeiT, arXiv 2012.12877), unless
    the configuration leaves out the second one.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForImageClassification
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2, num_labels=10)
    >>> out = QKViTForImageClassification(config)(torch.rand(2, 3, 32, 32), labels=torch.tensor([1, 7]))
    >>> out.logits.shape, out.loss.ndim
    (torch.Size([2, 10]), 0)

    ```
    """

    def __init__(self, config: QKViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.qkvit = QKViTModel(config)
        self.classifier = self._make_classifier(config.pooled_size)
        self.distillation_classifier = (
            self._make_classifier(config.hidden_size)
            if config.use_distillation_token and config.use_distillation_classifier
            else None
        )
        self.post_init()

    def _make_classifier(self, size: int) -> nn.Module:
        return nn.Linear(size, self.num_labels) if self.num_labels else nn.Identity()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | int | list[int] | None = None,
        output_qkv: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> QKViTClassifierOutput:
        """Classify images; the arguments are those of `QKViTModel.forward`, and:

        Args:
            labels: Integers (B,), or floats (B, labels) for soft or multi-label targets: `classification_loss`.
        """
        if labels is not None and not self.num_labels:
            raise ValueError("labels were given to a model with num_labels=0; pass a config with num_labels=10, say")
        outputs = self.qkvit(
            pixel_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_qkv=output_qkv,
            return_dict=True,  # the configuration may say otherwise
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)  # (B, labels)
        distillation_logits = None
        if self.distillation_classifier is not None:
            distillation_logits = self.distillation_classifier(outputs.last_hidden_state[:, 1])
            logits = (logits + distillation_logits) / 2
        return QKViTClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            logits=logits,
            distillation_logits=distillation_logits,
            **_shown(outputs),
        )


class QKViTForMaskedImageModeling(QKViTPreTrainedModel):
    """QKViT that paints in masked patches: SimMIM (Xie et al. 2022, arXiv 2111.09886).

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForMaskedImageModeling
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> hidden = torch.rand(1, 16) < 0.6
    >>> out = QKViTForMaskedImageModeling(config)(torch.rand(1, 3, 32, 32), bool_masked_pos=hidden)
    >>> out.reconstruction.shape
    torch.Size([1, 3, 32, 32])

    ```
    """

    def __init__(self, config: QKViTConfig) -> None:
        super().__init__(config)
        self.qkvit = QKViTModel(config, add_pooling_layer=False, use_mask_token=True)
        patch_height, patch_width = self.qkvit.embeddings.patch_size
        self.decoder = nn.Linear(config.hidden_size, config.num_channels * patch_height * patch_width)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | int | list[int] | None = None,
        output_qkv: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> QKViTMaskedImageModelingOutput:
        """Reconstruct images; the arguments are those of `QKViTModel.forward`.

        The loss, given with `bool_masked_pos`, is the mean absolute difference over the pixels of masked patches.
        """
        self._refuse_patch_dropout("masked image modeling")
        outputs = self.qkvit(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_qkv=output_qkv,
            return_dict=True,  # the configuration may say otherwise
            **kwargs,
        )
        patch_height, patch_width = self.qkvit.embeddings.patch_size
        rows, columns = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
        tokens = outputs.last_hidden_state
        if self.config.norm_position == "after_pooling":  # there is no pooling that would apply it
            tokens = self.qkvit.norm(tokens)
        decoded = self.decoder(tokens[:, self.config.num_prefix_tokens :])
        decoded = decoded.unflatten(1, (rows, columns)).unflatten(-1, (-1, patch_height, patch_width))
        # (B, rows, columns, channels, patch height, patch width) -> (B, channels, height, width)
        reconstruction = decoded.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

        loss = None
        if bool_masked_pos is not None:
            hidden = bool_masked_pos.to(reconstruction.device).bool().reshape(-1, 1, rows, columns)
            hidden = hidden.repeat_interleave(patch_height, 2).repeat_interleave(patch_width, 3)
            difference = (reconstruction - pixel_values.to(reconstruction)).abs() * hidden
            # float16 ends at 65,504, which a sum over pixels soon passes.
            summed = difference.sum(dtype=torch.promote_types(difference.dtype, torch.float32))
            loss = summed / (hidden.sum() * self.config.num_channels).clamp(min=1)
        return QKViTMaskedImageModelingOutput(loss=loss, reconstruction=reconstruction, **_shown(outputs))


class QKViTBackbone(BackboneMixin, QKViTModel):
    """QKViT as a backbone: feature maps of chosen layers ("stem", "stage1", ..., "stageL").

    Example:

    ```python
    >>> from qkvit import QKViTBackbone, QKViTConfig
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, out_features=["stage3", "stage12"])
    >>> [tuple(feature_map.shape) for feature_map in QKViTBackbone(config)(torch.rand(1, 3, 32, 48)).feature_maps]
    [(1, 192, 4, 6), (1, 192, 4, 6)]

    ```
    """

    def __init__(self, config: QKViTConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | int | list[int] | None = None,
        output_qkv: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> QKViTBackboneOutput:
        """Feature maps of `config.out_features`; the arguments are those of `QKViTModel.forward`."""
        self._refuse_patch_dropout("whole feature maps")
        outputs = QKViTModel.forward(  # not super(): BackboneMixin has a forward that only says to write one
            self,
            pixel_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_qkv=output_qkv,
            **{**kwargs, "output_hidden_states": True, "return_dict": True},
        )
        patch_height, patch_width = self.embeddings.patch_size
        grid = (pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width)
        feature_maps = []
        for stage, hidden_states in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            tokens = self.norm(hidden_states) if self.config.apply_layernorm else hidden_states
            if self.config.reshape_hidden_states:
                patches = tokens[:, self.config.num_prefix_tokens :].transpose(1, 2)  # (B, C, P)
                tokens = patches.unflatten(-1, grid).contiguous()  # (B, C, rows, columns)
            feature_maps.append(tokens)
        return QKViTBackboneOutput(feature_maps=tuple(feature_maps), **_shown(outputs))


def _shown(outputs: QKViTModelOutput) -> dict[str, Any]:
    """What a model with a head hands on from the base model's output."""
    return {
        name: outputs[name] for name in ("hidden_states", "attentions", "queries", "keys", "values") if name in outputs
    }


__all__ = [
    "QKViTAttention",
    "QKViTBackbone",
    "QKViTForImageClassification",
    "QKViTForMaskedImageModeling",
    "QKViTLayer",
    "QKViTModel",
    "QKViTPreTrainedModel",
]
