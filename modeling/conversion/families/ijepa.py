"""transformers' `ijepa` (Assran et al. 2023, arXiv 2301.08243): patches alone, and their mean for the classifier.

A pooler, which no released checkpoint has, would read the first patch; it is left out.
"""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Source, plain_config, plain_fields, same
from .vit_layout import embeddings_rules, layouts


def fields(source: Source) -> dict[str, Any]:
    return {
        **plain_fields(source.config),
        "use_mask_token": source.has("embeddings.mask_token"),
        "use_class_token": False,
        "pooling": "mean",
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    return plain_config(config)


FAMILY = Family(
    name="ijepa",
    model_types=("ijepa",),
    config_class="IJepaConfig",
    prefixes=("ijepa.",),
    architectures={"model": "IJepaModel", "classification": "IJepaForImageClassification"},
    fields=fields,
    source_config=source_config,
    layouts=layouts(*embeddings_rules(("mask_token", "mask_token")), *same("classifier", "classifier")),
    left_out=(r"pooler\.",),
)
