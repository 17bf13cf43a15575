"""transformers' `vit_mae`, the encoder (He et al. 2021, arXiv 2111.06377), on whole images.

The decoder is left out: it is a second transformer over patches in a random order. Of the mask ratio nothing depends.
"""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from .family import Family, Source, plain_config, plain_fields
from .vit_layout import embeddings_rules, layouts


def fields(source: Source) -> dict[str, Any]:
    return {**plain_fields(source.config), "pooling": "class"}


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    return plain_config(config)


FAMILY = Family(
    name="vit_mae",
    model_types=("vit_mae",),
    config_class="ViTMAEConfig",
    prefixes=("vit.",),
    architectures={"model": "ViTMAEModel"},
    fields=fields,
    source_config=source_config,
    layouts=layouts(*embeddings_rules()),
    left_out=(r"decoder\.",),
)
