"""What `dinov2` and `dinov2_with_registers` share: names of tensors, width of the SwiGLU. No family itself."""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Rule, Source, conv_patches, one, plain_config, plain_fields, same, split, when

_LAYER = "encoder.layer.{layer}"
_NAMES = {
    "attention_norm": "norm1",
    "mlp_norm": "norm2",
}
# Ours -> theirs, as transformers 4 writes it and transformers 5 does too, and as transformers 5 has it in memory.
_ATTENTION_4 = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
_ATTENTION_5 = {f"attention.{name}": f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


def _gated(config: QKViTConfig) -> bool:
    return config.mlp_type == "swiglu"


def _plain(config: QKViTConfig) -> bool:
    return config.mlp_type == "mlp"


def _layer(names: dict[str, str]) -> tuple[Rule, ...]:
    rules = [rule for ours, name in names.items() for rule in same(f"{_LAYER}.{name}", f"layers.{{layer}}.{ours}")]
    for index, branch in ((1, "attention"), (2, "mlp")):
        rules += one(f"{_LAYER}.layer_scale{index}.lambda1", f"layers.{{layer}}.{branch}_residual.layer_scale")
    return tuple(rules)


def _mlp(ours: str, theirs: str) -> tuple[Rule, ...]:
    return same(f"{_LAYER}.mlp.{theirs}", f"layers.{{layer}}.mlp.{ours}")


def layouts(*others: Rule) -> dict[str, tuple[Rule, ...]]:
    """Both ways to name the tensors; `others` stand in both."""

    def mask_shape(config: QKViTConfig) -> tuple[int, ...]:
        return (1, config.hidden_size)

    shared = (
        *others,
        *one("embeddings.cls_token", "embeddings.class_token"),
        *one("embeddings.position_embeddings", "embeddings.position_embeddings"),
        *one("embeddings.mask_token", "embeddings.mask_token", shape=mask_shape),
        *conv_patches("embeddings.patch_embeddings.projection"),
        *when(_plain, (*_mlp("up_proj", "fc1"), *_mlp("down_proj", "fc2"))),
        *same("layernorm", "norm"),
        *same("classifier", "classifier"),
    )
    fused = split(f"{_LAYER}.mlp.weights_in", "layers.{layer}.mlp.gate_proj", "layers.{layer}.mlp.up_proj")
    apart = [rule for name in ("gate_proj", "up_proj", "down_proj") for rule in _mlp(name, name)]
    return {
        "transformers-4": (
            *_layer({**_NAMES, **_ATTENTION_4}),
            *shared,
            *when(_gated, (*fused, *_mlp("down_proj", "weights_out"))),
        ),
        "transformers-5": (*_layer({**_NAMES, **_ATTENTION_5}), *shared, *when(_gated, apart)),
    }


def intermediate_size(hidden_size: int, mlp_ratio: float, gated: bool) -> int:
    """Width of the MLP; a SwiGLU has two thirds of it, rounded up to a multiple of 8."""
    width = int(hidden_size * mlp_ratio)
    return (int(width * 2 / 3) + 7) // 8 * 8 if gated else width


def fields(source: Source) -> dict[str, Any]:
    """The fields that both families have."""
    theirs = source.config
    gated = bool(theirs["use_swiglu_ffn"])
    last = [theirs["num_hidden_layers"]]
    stages = theirs.get("out_indices")
    if not _square(theirs["image_size"]):
        raise ValueError(
            f"image_size={theirs['image_size']} of {source.where} is not square, and their own model takes a square"
            " grid of positions alone; pass a checkpoint with one number there"
        )
    return {
        **plain_fields(theirs),
        "intermediate_size": intermediate_size(theirs["hidden_size"], theirs["mlp_ratio"], gated),
        "mlp_type": "swiglu" if gated else "mlp",
        "hidden_act": "silu" if gated else theirs["hidden_act"],
        "layer_scale_init_value": theirs["layerscale_value"],
        "drop_path_rate": theirs["drop_path_rate"],
        "apply_layernorm": theirs["apply_layernorm"],
        "reshape_hidden_states": theirs["reshape_hidden_states"],
        "out_indices": None if stages is None or list(stages) == last else list(stages),
        "use_mask_token": source.has("embeddings.mask_token"),
        "position_float32": True,
        "pooling": "class_mean" if source.has("classifier.weight") else "class",
    }


def _square(size: Any) -> bool:
    return isinstance(size, int) or len(set(size)) == 1


def source_config(config: QKViTConfig) -> dict[str, Any]:
    """The inverse of `fields`."""
    height, width = config.image_shape
    if height != width:
        raise ValueError(
            f"image_size=({height}, {width}) is not square, which a model in DINOv2's layout needs; export to another"
            " family"
        )
    gated = config.mlp_type == "swiglu"
    ratios = range(1, 33)
    fitting = [
        ratio for ratio in ratios if intermediate_size(config.hidden_size, ratio, gated) == config.intermediate_size
    ]
    theirs = plain_config(config)
    theirs.pop("intermediate_size")
    scale = config.layer_scale_init_value
    return {
        **theirs,
        "mlp_ratio": fitting[0] if fitting else 4,
        "use_swiglu_ffn": gated,
        "hidden_act": "gelu" if gated else config.hidden_act,
        "layerscale_value": 1.0 if scale is None else float(scale),
        "drop_path_rate": config.drop_path_rate,
        "apply_layernorm": config.apply_layernorm,
        "reshape_hidden_states": config.reshape_hidden_states,
        "out_indices": list(config.out_indices),
    }
