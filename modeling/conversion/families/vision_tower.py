"""What the vision towers of image-text models (`clip`, `siglip`) share: names, and a config inside another."""

from collections.abc import Mapping
from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Rule, Source, conv_patches, one, plain_fields, same

PREFIX = "vision_model."

# Ours -> theirs.
LAYER = {
    "attention_norm": "layer_norm1",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
# The text tower, what joins the two, and a count of positions that older versions saved.
LEFT_OUT = (r"text_model\.", r"text_projection\.", r"visual_projection\.", r"logit_(scale|bias)$", r".*position_ids$")


def tower_rules() -> tuple[Rule, ...]:
    """Patches, positions, layers and the final normalisation; the classifier that may stand on them."""
    layers = (rule for ours, theirs in LAYER.items() for rule in same(f"{{}}.{theirs}", f"{{}}.{ours}"))

    def positions(config: QKViTConfig) -> tuple[int, ...]:
        rows, columns = config.grid
        return (config.num_placed_tokens + rows * columns, config.hidden_size)

    return (
        *conv_patches("embeddings.patch_embedding"),
        *one("embeddings.position_embedding.weight", "embeddings.position_embeddings", shape=positions),
        *(
            rule.named(lambda name: name.format("encoder.layers.{layer}"), lambda name: name.format("layers.{layer}"))
            for rule in layers
        ),
        *same("post_layernorm", "norm"),
        *same("classifier", "classifier"),
    )


def tower_config(source: Source, config_class: str) -> dict[str, Any]:
    """The vision tower's config, alone or inside that of the whole model, with what it leaves out."""
    import transformers

    nested = source.config.get("vision_config", source.config)
    if not isinstance(nested, Mapping):
        raise ValueError(f"vision_config of {source.where} is no mapping of fields; correct its config.json")
    # transformers 4 wrote some fields under a second name, which stands over the first.
    nested = {**nested, **(source.config.get("vision_config_dict") or {})}
    return getattr(transformers, config_class).from_dict(nested).to_dict()


def labels(source: Source) -> dict[str, Any]:
    """The labels of a classifier, which are fields of the whole model's config."""
    if not source.has("classifier.weight"):
        return {}
    names = source.config.get("id2label")
    if not names:
        return {"num_labels": source.shapes["classifier.weight"][0]}
    fields = plain_fields({"id2label": names})
    return {name: fields[name] for name in ("id2label", "label2id") if name in fields}


def whole_config(config: Any, model_type: str, tower: dict[str, Any]) -> dict[str, Any]:
    """The config of the whole model, with the tower's inside and the labels of a classifier."""
    names = {"id2label": dict(config.id2label), "label2id": dict(config.label2id) if config.label2id else None}
    return {"model_type": model_type, "vision_config": tower, **names}


def square(config: QKViTConfig, family: str) -> dict[str, int]:
    """`image_size` and `patch_size` as one number each, which is all that these families take."""
    sizes = {}
    for name, (height, width) in (("image_size", config.image_shape), ("patch_size", config.patch_shape)):
        if height != width:
            raise ValueError(
                f"{name}=({height}, {width}) is not square, which a {family!r} model needs; export to another family"
            )
        sizes[name] = height
    return sizes
