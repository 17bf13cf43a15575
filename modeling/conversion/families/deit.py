"""transformers' `deit`: a class and a distillation token (Touvron et al. 2021, arXiv 2012.12877).

With a teacher there are two classifiers, and the logits are their mean; without, the distillation token has none.
"""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Source, plain_config, plain_fields, same, when
from .vit_layout import decoder_rules, embeddings_rules, encoder_stride, layouts, pooler_config, pooler_fields


def with_teacher(config: QKViTConfig) -> bool:
    return config.use_distillation_classifier


def without_teacher(config: QKViTConfig) -> bool:
    return not config.use_distillation_classifier


def fields(source: Source) -> dict[str, Any]:
    return {
        **plain_fields(source.config),
        **pooler_fields(source),
        "use_mask_token": source.has("embeddings.mask_token"),
        "use_distillation_token": True,
        "use_distillation_classifier": source.has("distillation_classifier.weight"),
        "pooling": "class",
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    theirs = {**plain_config(config), **pooler_config(config), "encoder_stride": encoder_stride(config, kind)}
    if kind == "classification" and config.use_distillation_classifier:
        theirs["architectures"] = ["DeiTForImageClassificationWithTeacher"]
    return theirs


FAMILY = Family(
    name="deit",
    model_types=("deit",),
    config_class="DeiTConfig",
    prefixes=("deit.",),
    architectures={
        "model": "DeiTModel",
        "classification": "DeiTForImageClassification",
        "masked_image_modeling": "DeiTForMaskedImageModeling",
    },
    fields=fields,
    source_config=source_config,
    layouts=layouts(
        *embeddings_rules(("distillation_token", "distillation_token"), ("mask_token", "mask_token")),
        *decoder_rules(),
        *when(without_teacher, same("classifier", "classifier")),
        *when(with_teacher, same("cls_classifier", "classifier")),
        *when(with_teacher, same("distillation_classifier", "distillation_classifier")),
    ),
    left_out=(r"pooler\.", r"decoder\."),
)
