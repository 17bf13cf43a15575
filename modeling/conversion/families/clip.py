"""The vision tower of transformers' `clip` (Radford et al. 2021, arXiv 2103.00020), alone, or out of the whole model.

The tokens are normalised before the first layer; after the last one the class token alone is.
`CLIPForImageClassification` takes the mean of the patches as they are: it has that normalisation and does not use it,
so it does not come along.
"""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Source, one, plain_fields, same
from .vision_tower import LEFT_OUT, PREFIX, labels, square, tower_config, tower_rules, whole_config


def fields(source: Source) -> dict[str, Any]:
    config = tower_config(source, "CLIPVisionConfig")
    head = source.has("classifier.weight")
    return {
        **plain_fields(config),
        "attention_probs_dropout_prob": config["attention_dropout"],
        "patch_bias": False,
        "use_pre_norm": True,
        "norm_position": "none" if head else "after_pooling",
        "pooling": "mean" if head else "class",
        **labels(source),
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    tower = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_channels": config.num_channels,
        **square(config, "clip"),
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "attention_dropout": config.attention_probs_dropout_prob,
        "initializer_range": config.initializer_range,
        "model_type": "clip_vision_model",
    }
    return whole_config(config, "clip", tower) if kind == "classification" else tower


FAMILY = Family(
    name="clip",
    model_types=("clip_vision_model", "clip"),
    prefixes=(PREFIX,),
    architectures={"model": "CLIPVisionModel", "classification": "CLIPForImageClassification"},
    fields=fields,
    source_config=source_config,
    layouts={
        "transformers-4": (
            *tower_rules(),
            *one("embeddings.class_embedding", "embeddings.class_token", shape=lambda config: (config.hidden_size,)),
            *same("pre_layrnorm", "pre_norm"),
        )
    },
    left_out=(*LEFT_OUT, r"post_layernorm\."),
    written_prefix=lambda kind: PREFIX,
)
