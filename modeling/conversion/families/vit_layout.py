"""What the families that grew out of transformers' `vit` share: names of tensors, pooler, decoder. No family itself."""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Rule, Source, conv_patches, one, same


def embeddings_rules(*tokens: tuple[str, str]) -> tuple[Rule, ...]:
    """The embeddings of the families that grew out of `vit`; `tokens` are further (theirs, ours)."""
    pairs = (("cls_token", "class_token"), ("position_embeddings", "position_embeddings"), *tokens)
    rules = [rule for theirs, ours in pairs for rule in one(f"embeddings.{theirs}", f"embeddings.{ours}")]
    return (*rules, *conv_patches("embeddings.patch_embeddings.projection"))


def layer_rules(names: dict[str, str], theirs: str) -> tuple[Rule, ...]:
    """The modules of a layer: ours -> theirs below `theirs`, such as "layers.{layer}"."""
    return tuple(rule for ours, name in names.items() for rule in same(f"{theirs}.{name}", f"layers.{{layer}}.{ours}"))


# Ours -> theirs, as transformers 4 writes it and transformers 5 does too, and as transformers 5 has it in memory.
LAYER_4 = {
    "attention_norm": "layernorm_before",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
}
LAYER_5 = {
    "attention_norm": "layernorm_before",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.o_proj": "attention.o_proj",
    "mlp_norm": "layernorm_after",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}


def decoder_rules() -> tuple[Rule, ...]:
    """SimMIM's decoder, a convolution of one pixel and a pixel shuffle: our linear layer, in the same order."""

    def shape(config: QKViTConfig) -> tuple[int, ...]:
        height, width = config.patch_shape
        return (config.num_channels * height * width, config.hidden_size, 1, 1)

    return (*one("decoder.0.weight", "decoder.weight", shape=shape), *one("decoder.0.bias", "decoder.bias"))


def encoder_stride(config: QKViTConfig, kind: str) -> int:
    """The side of what their decoder makes of a patch, a square."""
    height, width = config.patch_shape
    if kind == "masked_image_modeling" and height != width:
        raise ValueError(
            f"patch_size={config.patch_size} is no square, and the decoder of this family makes squares of patches;"
            " save the model with save_pretrained instead"
        )
    return height


def layouts(*others: Rule) -> dict[str, tuple[Rule, ...]]:
    """Both ways to name the tensors of a `vit`, and the rules that they share."""
    shared = (*others, *same("layernorm", "norm"), *same("pooler.dense", "pooler.dense"))
    return {
        "transformers-4": (*layer_rules(LAYER_4, "encoder.layer.{layer}"), *shared),
        "transformers-5": (*layer_rules(LAYER_5, "layers.{layer}"), *shared),
    }


def pooler_fields(source: Source) -> dict[str, Any]:
    """The pooler, where the tensors have one and no head passes it by."""
    if not source.has("pooler.dense.weight") or source.has("classifier.weight", "cls_classifier.weight"):
        return {"pooler_act": None, "pooler_size": None}
    return {"pooler_act": source.config["pooler_act"], "pooler_size": source.config["pooler_output_size"]}


def pooler_config(config: QKViTConfig) -> dict[str, Any]:
    """The inverse of `pooler_fields`."""
    if config.pooler_act is None:
        return {}
    return {"pooler_act": config.pooler_act, "pooler_output_size": config.pooler_size or config.hidden_size}
