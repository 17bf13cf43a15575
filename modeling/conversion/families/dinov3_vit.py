"""transformers' `dinov3_vit` (Simeoni et al. 2025, arXiv 2508.10104): rotary positions, registers, a gated MLP in some.

What it does to positions in training alone (shift, jitter, rescale) does not come along, and its stochastic depth is
the same in every layer, where ours grows from 0 to the same rate in the last.
"""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Rule, Source, conv_patches, empty, one, plain_fields, plain_sizes, same

# Ours -> theirs.
LAYER = {
    "attention_norm": "norm1",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.o_proj": "attention.o_proj",
    "mlp_norm": "norm2",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
BIASES = {
    "query_bias": "query_bias",
    "key_bias": "key_bias",
    "value_bias": "value_bias",
    "output_bias": "proj_bias",
    "mlp_bias": "mlp_bias",
}


def rules(layers: str) -> tuple[Rule, ...]:
    """The rules, with the layers below a name such as "layer.{layer}"."""
    in_layer = [
        rule for ours, theirs in LAYER.items() for rule in same(f"{layers}.{theirs}", f"layers.{{layer}}.{ours}")
    ]
    scales = {"layer_scale1": "attention_residual", "layer_scale2": "mlp_residual"}
    for theirs, ours in scales.items():
        in_layer += one(f"{layers}.{theirs}.lambda1", f"layers.{{layer}}.{ours}.layer_scale")
    return (
        *one("embeddings.cls_token", "embeddings.class_token"),
        *one("embeddings.mask_token", "embeddings.mask_token"),
        *one("embeddings.register_tokens", "embeddings.register_tokens"),
        *empty("embeddings.register_tokens", shape=lambda config: (1, config.num_register_tokens, config.hidden_size)),
        *conv_patches("embeddings.patch_embeddings"),
        *in_layer,
        *same("norm", "norm"),
    )


def fields(source: Source) -> dict[str, Any]:
    config = source.config
    return {
        **plain_fields(config),
        **{ours: config[theirs] for ours, theirs in BIASES.items()},
        "attention_probs_dropout_prob": config["attention_dropout"],
        "mlp_type": "swiglu" if config["use_gated_mlp"] else "mlp",
        "layer_scale_init_value": config["layerscale_value"],
        "drop_path_rate": config["drop_path_rate"],
        "num_register_tokens": config["num_register_tokens"],
        "position_embedding": "rope2d",
        "rope_theta": config["rope_theta"],
        "use_mask_token": source.has("embeddings.mask_token"),
        "pooling": "class",
        "apply_layernorm": config["apply_layernorm"],
        "reshape_hidden_states": config["reshape_hidden_states"],
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_channels": config.num_channels,
        **plain_sizes(config),
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "attention_dropout": config.attention_probs_dropout_prob,
        "drop_path_rate": config.drop_path_rate,
        "layerscale_value": config.layer_scale_init_value,
        "num_register_tokens": config.num_register_tokens,
        "rope_theta": config.rope_theta,
        "use_gated_mlp": config.mlp_type == "swiglu",
        "apply_layernorm": config.apply_layernorm,
        "reshape_hidden_states": config.reshape_hidden_states,
        **{theirs: getattr(config, ours) for ours, theirs in BIASES.items()},
    }


FAMILY = Family(
    name="dinov3_vit",
    model_types=("dinov3_vit",),
    config_class="DINOv3ViTConfig",
    architectures={"model": "DINOv3ViTModel"},
    fields=fields,
    source_config=source_config,
    layouts={"transformers-4": rules("layer.{layer}"), "transformers-5": rules("model.layer.{layer}")},
)
