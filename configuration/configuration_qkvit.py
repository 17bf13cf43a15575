"""The configuration of QKViT: every choice of the architecture, annotated, validated and named.

The file imports nothing outside its folder, because it travels with every saved model: see `modeling/shipping.py`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .errors_qkvit import check_config_file, shown, with_plain_errors
from .overrides_qkvit import is_override, with_overrides
from .preprocessing_qkvit import save_image_processor, without_companions
from .validation_qkvit import (
    check_given_later,
    check_inherited,
    check_loss,
    check_pooling,
    check_positions,
    check_ranges,
    check_sizes,
    check_tokens,
    is_known,
    pair,
    refuse_unknown,
    whole_head_dim,
)

# hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, and where the size was named.
NAMED_SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (192, 12, 3, 768),  # DeiT-Ti: Touvron et al. 2021, arXiv 2012.12877
    "small": (384, 12, 6, 1536),  # DeiT-S: the same
    "base": (768, 12, 12, 3072),  # ViT-B: Dosovitskiy et al. 2021, arXiv 2010.11929
    "large": (1024, 24, 16, 4096),  # ViT-L: the same
    "so400m": (1152, 27, 16, 4304),  # SoViT-400m: Alabdulmohsin et al. 2023, arXiv 2305.13035
    "huge": (1280, 32, 16, 5120),  # ViT-H: Dosovitskiy et al. 2021
    "giant": (1408, 40, 16, 6144),  # ViT-g: Zhai et al. 2022, arXiv 2106.04560
}


@with_plain_errors
@strict
class QKViTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of a QKViT model; the defaults are ViT-B/16 at 224 pixels.

    Args:
        hidden_size: Width C of the residual stream.
        num_hidden_layers: Depth L.
        num_attention_heads: Heads H of every layer.
        head_dim: Width D of one head. `None`: `hidden_size // num_attention_heads`, which must divide.
        intermediate_size: Width of the MLP. `None`: `4 * hidden_size` for "mlp"; for "swiglu" two thirds of
            that, rounded up to a multiple of 8, so that both have the same number of parameters.
        hidden_act: Activation, a name in `transformers.activations.ACT2FN`. `None`: "gelu" for "mlp", "silu" for
            "swiglu".
        mlp_type: "mlp" is `down(act(up(x)))`; "swiglu" is `down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv
            2002.05202).
        norm_type: "layernorm" or "rmsnorm" (Zhang and Sennrich 2019, arXiv 1910.07467).
        layer_norm_eps: Epsilon of every normalisation.
        query_bias, key_bias, value_bias, output_bias: One switch for each projection's bias. A key bias adds the
            same number to every score of a row, which softmax removes: it changes nothing, unless `qk_norm` or rotary
            positions come in between.
        mlp_bias: Biases of the MLP.
        qk_norm: Normalise queries and keys per head, before positions and softmax (Dehghani et al. 2023, arXiv
            2302.05442).
        layer_scale_init_value: Initial value of LayerScale (Touvron et al. 2021, arXiv 2103.17239). `None`: none.
        drop_path_rate: Stochastic depth (Huang et al. 2016, arXiv 1603.09382) of the last layer; it grows linearly
            from 0 in the first layer.
        hidden_dropout_prob: Dropout on the embeddings and on the output of each branch.
        attention_probs_dropout_prob: Dropout on the attention weights.
        patch_drop_rate: Fraction of the patches left out in each training step (Liu et al. 2022, arXiv
            2208.07220).
        image_size: Pixels of the images it is trained on, a number or (height, width). Others are accepted too.
        patch_size: Pixels of a patch, a number or (height, width).
        num_channels: Channels of an image. transformers' pipelines convert every image to RGB: they need 3.
        patch_bias: Bias of the patch projection (CLIP has none).
        position_embedding: "learned"; "sincos2d", fixed (Beyer et al. 2022, arXiv 2205.01580); "rope2d", rotary, on
            queries and keys (as DINOv3: Simeoni et al. 2025, arXiv 2508.10104); "none".
        position_coverage: Which tokens learned positions cover beside the patches: "patches" none (as DeiT III),
            "class" the class and the distillation token (as ViT, DeiT, DINOv2), "all" the registers too.
        position_antialias: Low-pass learned positions before they are resampled to a smaller grid (as timm).
        position_float32: Resample learned positions in float32 in a float64 model too (as DINOv2 and timm).
        rope_theta: Base of the rotary frequencies.
        use_class_token: Put a learned token before the patches (\[CLS\]).
        use_distillation_token: Put a second one after it, with a classifier of its own (DeiT, arXiv 2012.12877).
        use_distillation_classifier: `False` leaves that classifier out, and `logits` to the class token alone.
        num_register_tokens: Registers (Darcet et al. 2024, arXiv 2309.16588), between those and the patches.
        use_mask_token: Have a mask token (as DINOv2); `QKViTForMaskedImageModeling` has one always.
        use_pre_norm: Normalise the embeddings before the first layer (as CLIP).
        norm_position: Where the final normalisation stands: "before_pooling", on all tokens (as ViT);
            "after_pooling", on the pooled vector, so that `last_hidden_state` is not normalised (as CLIP, and timm's
            `fc_norm`; for "class_mean" on each half); "none".
        pooling: "class" takes the class token, "mean" the mean of the patches, "class_mean" both, concatenated
            (2 C wide), "attention" a learned query's attention over all tokens (as SigLIP, arXiv 2303.15343).
        pooling_coverage: Which tokens the mean is of, or the attention over: "patches", or "all", those before them
            too. `None`: "all" for "attention", else "patches".
        pooler_act: After pooling and normalisation, a dense layer and this activation (ViT's and DeiT's pooler:
            "tanh"). `None`: none.
        pooler_size: Width of that layer. `None`: the width of what it is given.
        classification_loss: For integer labels: "cross_entropy", or "binary_cross_entropy" of one-hot targets (as
            DeiT III, arXiv 2204.07118). Float labels: see `QKViTForImageClassification`.
        label_smoothing: Share of the target spread evenly over the classes (Szegedy et al. 2016, arXiv 1512.00567).
        initializer_range: Standard deviation of the truncated normal that initialises the weights.
        apply_layernorm: `QKViTBackbone`: normalise the feature maps.
        reshape_hidden_states: `QKViTBackbone`: give feature maps as (batch, C, height, width) of the patches; or
            else as the tokens (batch, N, C).
        converted_from: What `qkvit.convert` made the model from, its family and how its tensors were named, so that
            `qkvit.export` writes the same names. It changes nothing in the model.

    Raises:
        ValueError: a field is unknown, has the wrong type or is out of range, or two of them do not go together.

    Example:

    ```python
    >>> config = QKViTConfig.from_size("small", patch_size=16, num_labels=10)
    >>> config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.head_dim
    (384, 12, 6, 64)
    >>> QKViTConfig(hidden_size=100, num_attention_heads=12)
    Traceback (most recent call last):
    ...
    ValueError: num_attention_heads=12 does not divide hidden_size=100; pass hidden_size=96 or 108, or head_dim

    ```
    """

    model_type = "qkvit"
    keys_to_ignore_at_inference = ["distillation_logits", "hidden_states", "attentions", "queries", "keys", "values"]  # noqa: RUF012

    # How a saved model gets its code: set by the installed package (modeling/shipping.py), None in code that came
    # with a model, whose flat files transformers copies by itself.
    ship_code: ClassVar[Callable[..., None] | None] = None
    # The sentence about a checkpoint that `qkvit convert` reads, likewise (modeling/conversion/refusals.py).
    how_to_convert: ClassVar[Callable[[dict[str, Any], str], str | None] | None] = None

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str | None = None
    mlp_type: Literal["mlp", "swiglu"] = "mlp"
    mlp_bias: bool = True
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    layer_norm_eps: float | int = 1e-6
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    output_bias: bool = True
    qk_norm: bool = False
    layer_scale_init_value: float | int | None = None
    drop_path_rate: float | int = 0.0
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    patch_drop_rate: float | int = 0.0
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    patch_bias: bool = True
    position_embedding: Literal["learned", "sincos2d", "rope2d", "none"] = "learned"
    position_coverage: Literal["patches", "class", "all"] = "class"
    position_antialias: bool = False
    position_float32: bool = False
    rope_theta: float | int = 100.0
    use_class_token: bool = True
    use_distillation_token: bool = False
    use_distillation_classifier: bool = True
    num_register_tokens: int = 0
    use_mask_token: bool = False
    use_pre_norm: bool = False
    norm_position: Literal["before_pooling", "after_pooling", "none"] = "before_pooling"
    pooling: Literal["class", "mean", "class_mean", "attention"] = "class"
    pooling_coverage: Literal["patches", "all"] | None = None
    pooler_act: str | None = None
    pooler_size: int | None = None
    classification_loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    label_smoothing: float | int = 0.0
    initializer_range: float | int = 0.02
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    converted_from: dict[str, str] | None = None

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown(type(self), kwargs)
        check_inherited(self, kwargs)
        if isinstance(kwargs.get("output_attentions"), tuple):
            kwargs["output_attentions"] = list(kwargs["output_attentions"])
        check_ranges(self)
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            setattr(self, name, value if isinstance(value, int) else (value[0], value[1]))
        if self.head_dim is None:
            self.head_dim = whole_head_dim(self)
        if self.hidden_act is None:
            self.hidden_act = "gelu" if self.mlp_type == "mlp" else "silu"
        if self.intermediate_size is None:
            self.intermediate_size = (
                4 * self.hidden_size if self.mlp_type == "mlp" else 8 * math.ceil(self.hidden_size / 3)
            )
        if self.pooler_act is not None and self.pooler_size is None:
            self.pooler_size = self.pooled_tokens_size
        kwargs.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **fields: Any) -> "QKViTConfig":
        """The configuration of a named size of the literature; `fields` add to it or override it.

        Args:
            size: One of "tiny", "small", "base", "large", "so400m", "huge", "giant" (`NAMED_SIZES`).

        Raises:
            ValueError: no size has that name.

        Example:

        ```python
        >>> QKViTConfig.from_size("giant").intermediate_size
        6144

        ```
        """
        if size not in NAMED_SIZES:
            raise ValueError(f"size={size!r} is not known; pass one of {', '.join(NAMED_SIZES)}")
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = NAMED_SIZES[size]
        named = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
        }
        # A SwiGLU has three matrices where an MLP has two: its width follows from the default of the field.
        if fields.get("mlp_type", "mlp") == "mlp":
            named["intermediate_size"] = intermediate_size
        return cls(**{**named, **fields})

    # ---- what follows from the fields

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of an image of `image_size`, as (height, width)."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return height // patch_height, width // patch_width

    @property
    def image_shape(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        return pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """`patch_size` as (height, width)."""
        return pair(self.patch_size)

    @property
    def stage_names(self) -> list[str]:
        """What `QKViTBackbone` calls the embeddings and each layer's output."""
        return ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.use_class_token) + int(self.use_distillation_token) + self.num_register_tokens

    @property
    def num_placed_tokens(self) -> int:
        """Tokens before the patches that learned positions cover."""
        tokens = {"patches": 0, "class": self.num_prefix_tokens - self.num_register_tokens}
        return tokens.get(self.position_coverage, self.num_prefix_tokens)

    @property
    def pools_prefix(self) -> bool:
        """Whether the tokens before the patches are pooled too: `pooling_coverage`, or what its absence means."""
        return (self.pooling_coverage or ("all" if self.pooling == "attention" else "patches")) == "all"

    @property
    def pooled_tokens_size(self) -> int:
        """Width of the pooled tokens, before the pooler: C, or 2 C for `pooling="class_mean"`."""
        return self.hidden_size * (2 if self.pooling == "class_mean" else 1)

    @property
    def pooled_size(self) -> int:
        """Width of the pooled output: `pooler_size`; without a pooler C, or 2 C for `pooling="class_mean"`."""
        return self.pooler_size or self.pooled_tokens_size

    # ---- outputs: maps are given on every attention implementation, for all layers or for chosen ones

    @property
    def output_attentions(self) -> bool | int | list[int] | None:
        """Default of the forward argument of that name: a flag, a layer index or a list of them."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | int | list[int] | tuple[int, ...] | None) -> None:
        self._output_attentions = list(value) if isinstance(value, tuple) else value  # type: ignore[assignment]  # transformers knows flags alone

    # ---- loading and saving

    def to_dict(self) -> dict[str, Any]:
        """The fields; attributes that others hung onto the config are left out, since loading would refuse them."""
        left_out = {"_last_stage_only"}
        if self._last_stage_only:  # nobody chose it: it follows the depth, also where that is changed on loading
            left_out |= {"out_features", "out_indices"}
        fields = {
            name: value
            for name, value in super().to_dict().items()
            if is_known(type(self), name) and name not in left_out
        }
        if isinstance(self.id2label, Mapping):  # label2id may be that of before, and a file may have it alone
            fields["label2id"] = {name: index for index, name in self.id2label.items()}
        return fields

    def set_output_features_output_indices(self, out_features: list | None, out_indices: list | None) -> None:
        """Choose the backbone's feature maps by name or by index; the last layer's where neither is given."""
        self._last_stage_only = out_features is None and out_indices is None
        super().set_output_features_output_indices(out_features, out_indices)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict]:
        """As transformers has it; refuses a folder without a sound config.json, for which it takes the defaults."""
        folder = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        if folder.is_dir() and not kwargs.get("gguf_file"):
            check_config_file(folder / kwargs.get("_configuration_file", "config.json"))
        elif folder.is_file() and folder.suffix == ".json":
            check_config_file(folder)
        fields, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        way_in = None if cls.how_to_convert is None else cls.how_to_convert(fields, str(pretrained_model_name_or_path))
        if way_in is not None:
            raise ValueError(way_in)
        return fields, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers has it; refuses the configuration of another kind of model, which it takes with a warning.

        Fields in `kwargs` take the place of the file's before anything is checked; a name that is no field is refused.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"model_type={shown(model_type)} is another kind of model than {cls.model_type!r}; load it with"
                " AutoModel or its own class"
            )
        # transformers would set them one by one on a finished config, where nothing is checked and nothing follows.
        given = {name: kwargs.pop(name) for name in list(kwargs) if is_override(cls, name)}
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        if not wants_unused:
            # Through AutoConfig, which gives `name_or_path`, pipelines hand over the arguments of the model's loader.
            refuse_unknown(cls, kwargs, near_misses_only="name_or_path" in kwargs)
        fields = with_overrides(cls, config_dict, given)
        return super().from_dict(fields, return_unused_kwargs=wants_unused, **kwargs)

    def verify_out_features_out_indices(self) -> None:
        """As transformers has it, with a way out."""
        try:
            super().verify_out_features_out_indices()
        except ValueError as error:
            reason = str(error) if "stages" in str(error) else str(error).replace("stage_names", "the stages")
            raise ValueError(
                f"{reason}; pass stages of this model in order, each once, such as"
                f" out_indices=[0, {self.num_hidden_layers}] or out_features=['stem', 'stage{self.num_hidden_layers}']"
            ) from error

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save as transformers does, with the model's code and an image processor beside it.

        `PreTrainedModel.save_pretrained` calls this before it uploads, so all of it reaches the Hub as well.
        """
        ship_code = type(self).ship_code
        if ship_code is not None:
            ship_code(self, save_directory)
        save_image_processor(self, save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: dict[str, float], *args: Any, **kwargs: Any
    ) -> Any:
        times = without_companions(files_timestamps)
        return super()._upload_modified_files(working_dir, repo_id, times, *args, **kwargs)

    # ---- validation

    def validate_output_attentions(self) -> None:
        """Take the place of the check that allows maps with the eager implementation alone."""

    def validate_architecture(self) -> None:
        """Check each range and each combination of fields; runs when a config is made, used or saved."""
        check_given_later(self)
        check_ranges(self)
        if self._last_stage_only:
            self.set_output_features_output_indices(None, None)
        check_sizes(self)
        check_tokens(self)
        check_pooling(self)
        check_positions(self)
        check_loss(self)


__all__ = ["NAMED_SIZES", "QKViTConfig"]
