"""transformers' `dinov2_with_registers` (Darcet et al. 2024, arXiv 2309.16588)."""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from . import dinov2_layout
from .family import Family, Source, empty, one


def registers(config: QKViTConfig) -> tuple[int, ...]:
    return (1, config.num_register_tokens, config.hidden_size)


def fields(source: Source) -> dict[str, Any]:
    return {
        **dinov2_layout.fields(source),
        "num_register_tokens": source.config["num_register_tokens"],
        "position_antialias": True,
    }


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    return {**dinov2_layout.source_config(config), "num_register_tokens": config.num_register_tokens}


FAMILY = Family(
    name="dinov2_with_registers",
    model_types=("dinov2_with_registers",),
    config_class="Dinov2WithRegistersConfig",
    prefixes=("dinov2_with_registers.",),
    architectures={
        "model": "Dinov2WithRegistersModel",
        "classification": "Dinov2WithRegistersForImageClassification",
    },
    fields=fields,
    source_config=source_config,
    layouts=dinov2_layout.layouts(
        *one("embeddings.register_tokens", "embeddings.register_tokens"),
        *empty("embeddings.register_tokens", shape=registers),
    ),
)
