"""transformers' `vit_msn` (Assran et al. 2022, arXiv 2204.07141): `vit` without a pooler."""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Source, plain_config, plain_fields, same
from .vit_layout import embeddings_rules, layouts


def fields(source: Source) -> dict[str, Any]:
    return {
        **plain_fields(source.config),
        "use_mask_token": source.has("embeddings.mask_token"),
        "pooling": "class",
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    return plain_config(config)


FAMILY = Family(
    name="vit_msn",
    model_types=("vit_msn",),
    config_class="ViTMSNConfig",
    prefixes=("vit.",),
    architectures={"model": "ViTMSNModel", "classification": "ViTMSNForImageClassification"},
    fields=fields,
    source_config=source_config,
    layouts=layouts(*embeddings_rules(("mask_token", "mask_token")), *same("classifier", "classifier")),
)
