"""transformers' `vit` (Dosovitskiy et al. 2021, arXiv 2010.11929), and DINO v1 and MAE in its layout."""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Source, plain_config, plain_fields, same
from .vit_layout import decoder_rules, embeddings_rules, encoder_stride, layouts, pooler_config, pooler_fields


def fields(source: Source) -> dict[str, Any]:
    return {
        **plain_fields(source.config),
        **pooler_fields(source),
        "use_mask_token": source.has("embeddings.mask_token"),
        "pooling": "class",
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    return {**plain_config(config), **pooler_config(config), "encoder_stride": encoder_stride(config, kind)}


FAMILY = Family(
    name="vit",
    model_types=("vit",),
    config_class="ViTConfig",
    prefixes=("vit.",),
    architectures={
        "model": "ViTModel",
        "classification": "ViTForImageClassification",
        "masked_image_modeling": "ViTForMaskedImageModeling",
    },
    fields=fields,
    source_config=source_config,
    layouts=layouts(
        *embeddings_rules(("mask_token", "mask_token")), *decoder_rules(), *same("classifier", "classifier")
    ),
    left_out=(r"pooler\.", r"decoder\."),
)
