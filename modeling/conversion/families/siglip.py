"""The vision tower of transformers' `siglip` (Zhai et al. 2023, arXiv 2303.15343), alone, or out of the whole model.

It has no class token; a learned query attends over the tokens. `SiglipForImageClassification` takes the mean of the
tokens instead: it may have that head and does not use it, so it does not come along.
"""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Rule, Source, one, plain_fields, same, split
from .vision_tower import LEFT_OUT, PREFIX, labels, square, tower_config, tower_rules, whole_config


def head_rules() -> tuple[Rule, ...]:
    """The attention pooling, whose queries, keys and values are one matrix there."""
    ours = "pooler.attention"
    names = {"attention.out_proj": "o_proj", "layernorm": "norm", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    projections = [f"{ours}.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    return (
        *one("head.probe", f"{ours}.probe"),
        *split("head.attention.in_proj", *projections, parts=("_weight", "_bias")),
        *(rule for theirs, name in names.items() for rule in same(f"head.{theirs}", f"{ours}.{name}")),
    )


def fields(source: Source) -> dict[str, Any]:
    config = tower_config(source, "SiglipVisionConfig")
    head = source.has("head.probe") and not source.has("classifier.weight")
    return {
        **plain_fields(config),
        "attention_probs_dropout_prob": config["attention_dropout"],
        "use_class_token": False,
        "pooling": "attention" if head else "mean",
        **labels(source),
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    if kind == "classification" and not config.num_labels:
        raise ValueError(
            "num_labels=0: transformers cannot load a SigLIP classifier without labels; export the base model instead"
        )
    tower = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_channels": config.num_channels,
        **square(config, "siglip"),
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "attention_dropout": config.attention_probs_dropout_prob,
        "vision_use_head": config.pooling == "attention",
        "model_type": "siglip_vision_model",
    }
    return whole_config(config, "siglip", tower) if kind == "classification" else tower


FAMILY = Family(
    name="siglip",
    model_types=("siglip_vision_model", "siglip"),
    prefixes=(PREFIX,),
    architectures={"model": "SiglipVisionModel", "classification": "SiglipForImageClassification"},
    fields=fields,
    source_config=source_config,
    layouts={"transformers-4": (*tower_rules(), *head_rules())},
    left_out=(*LEFT_OUT, r"head\."),
    written_prefix=lambda kind: PREFIX,
)
