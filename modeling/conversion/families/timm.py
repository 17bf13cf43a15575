"""timm's vision_transformer.py and deit.py (Wightman 2019, github.com/huggingface/pytorch-image-models), without timm.

A folder in timm's style has a config.json with "architecture" and what was changed of it ("model_args"), and the
tensors. Widths, depth, tokens, biases, LayerScale and normalisations are read from the tensors; heads, activation and
epsilon from the architecture's name. Export names an architecture and states everything else, so that timm builds the
same model.

A distilled model without its classifiers gives the mean of both tokens in timm, and here the class token.
"""

from collections.abc import Mapping
from typing import Any

from .family import Family, Rule, Source, conv_patches, one, same, split, when
from .timm_architectures import activation, architecture, epsilon, heads, refuse_unlike
from .timm_images import pretrained_cfg, processor_settings

# timm's name -> transformers'.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}
_NORMS = {"layernorm": "layernorm", "rmsnorm": "rmsnorm"}
_POOLING = {"token": "class", "avg": "mean", "map": "attention"}


def rules() -> tuple[Rule, ...]:
    block, layer = "blocks.{layer}", "layers.{layer}"
    names = {
        "norm1": "attention_norm",
        "attn.q_norm": "attention.q_norm",
        "attn.k_norm": "attention.k_norm",
        "attn.proj": "attention.o_proj",
        "norm2": "mlp_norm",
        "mlp.fc2": "mlp.down_proj",
    }
    up, gate = f"{layer}.mlp.up_proj", f"{layer}.mlp.gate_proj"
    return (
        *one("cls_token", "embeddings.class_token"),
        *one("dist_token", "embeddings.distillation_token"),
        *one("reg_token", "embeddings.register_tokens"),
        *one("pos_embed", "embeddings.position_embeddings"),
        *conv_patches("patch_embed.proj"),
        *same("norm_pre", "pre_norm"),
        *split(f"{block}.attn.qkv", *(f"{layer}.attention.{name}_proj" for name in "qkv")),
        *(rule for theirs, ours in names.items() for rule in same(f"{block}.{theirs}", f"{layer}.{ours}")),
        *when(lambda config: config.mlp_type == "mlp", same(f"{block}.mlp.fc1", up)),
        *when(lambda config: config.mlp_type == "swiglu", split(f"{block}.mlp.fc1", gate, up)),
        *one(f"{block}.ls1.gamma", f"{layer}.attention_residual.layer_scale"),
        *one(f"{block}.ls2.gamma", f"{layer}.mlp_residual.layer_scale"),
        *when(lambda config: config.norm_position == "before_pooling", same("norm", "norm")),
        *when(lambda config: config.norm_position == "after_pooling", same("fc_norm", "norm")),
        *one("attn_pool.latent", "pooler.attention.probe"),
        *same("attn_pool.q", "pooler.attention.q_proj"),
        *split("attn_pool.kv", "pooler.attention.k_proj", "pooler.attention.v_proj"),
        *same("attn_pool.proj", "pooler.attention.o_proj"),
        *same("attn_pool.norm", "pooler.attention.norm"),
        *same("attn_pool.mlp.fc1", "pooler.attention.mlp.up_proj"),
        *same("attn_pool.mlp.fc2", "pooler.attention.mlp.down_proj"),
        *same("head", "classifier"),
        *same("head_dist", "distillation_classifier"),
    )


# ---- from timm


def fields(source: Source) -> dict[str, Any]:
    refuse_unlike(source)
    config, shapes, args = source.config, source.shapes, source.config.get("model_args") or {}
    name = architecture(config)
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    inner = shapes["blocks.0.attn.qkv.weight"][0] // 3
    inside = shapes["blocks.0.mlp.fc2.weight"][1]
    packed = shapes["blocks.0.mlp.fc1.weight"][0] == 2 * inside
    qkv, mlp = source.has("blocks.0.attn.qkv.bias"), source.has("blocks.0.mlp.fc1.bias")
    number = args.get("num_heads") or heads(name, width)
    if number is None:
        raise ValueError(
            f"{source.where} is {width} wide, which is none of timm's widths, and does not say its heads; add num_heads"
            " to model_args in its config.json"
        )
    found = {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
        "num_attention_heads": number,
        "head_dim": inner // number,
        "intermediate_size": inside,
        "hidden_act": _named(args, "act_layer", _ACTIVATIONS, source) or activation(name, packed),
        "mlp_type": "swiglu" if packed else "mlp",
        "mlp_bias": mlp,
        "norm_type": "layernorm" if source.has("blocks.0.norm1.bias") else "rmsnorm",
        "layer_norm_eps": 1e-6 if _named(args, "norm_layer", _NORMS, source) else epsilon(name),
        "query_bias": qkv,
        "key_bias": qkv,
        "value_bias": qkv,
        "output_bias": source.has("blocks.0.attn.proj.bias"),
        "qk_norm": source.has("blocks.0.attn.q_norm.weight"),
        "layer_scale_init_value": (args.get("init_values") or 1e-5) if source.has("blocks.0.ls1.gamma") else None,
        "drop_path_rate": args.get("drop_path_rate") or 0.0,
        "attention_probs_dropout_prob": args.get("attn_drop_rate") or 0.0,
        "patch_drop_rate": args.get("patch_drop_rate") or 0.0,
        "patch_size": tuple(patch),
        "num_channels": channels,
        "patch_bias": source.has("patch_embed.proj.bias"),
        "use_class_token": source.has("cls_token"),
        "use_distillation_token": source.has("dist_token"),
        "num_register_tokens": shapes["reg_token"][1] if source.has("reg_token") else 0,
        "use_pre_norm": source.has("norm_pre.weight"),
        "norm_position": _norm_position(source),
        "position_antialias": True,
        "position_float32": True,
    }
    return {
        **found,
        **_positions(source, found),
        **_pooling(source, name, args),
        **_labels(source),
        "converted_from": {"architecture": name},
    }


def _named(args: Mapping[str, Any], key: str, names: Mapping[str, str], source: Source) -> str | None:
    """transformers' name of a layer that the architecture was changed to; None where it was not."""
    value = args.get(key)
    if not value:
        return None
    plain = str(value).lower()
    plain = plain.replace("_", "") if key == "norm_layer" else plain
    if plain not in names:
        raise ValueError(
            f"{key}={value!r} of {source.where} is not supported; convert a model with {' or '.join(names)}"
        )
    return names[plain]


def _norm_position(source: Source) -> str:
    if source.has("fc_norm.weight"):
        return "after_pooling"
    return "before_pooling" if source.has("norm.weight") else "none"


def _positions(source: Source, found: Mapping[str, Any]) -> dict[str, Any]:
    """Size of the images, and which tokens the positions cover: found by counting."""
    config, patch = source.config, found["patch_size"]
    stated = (config.get("model_args") or {}).get("img_size") or _input_size(config)[1:]
    stated = (stated, stated) if isinstance(stated, int) else tuple(stated)
    if not source.has("pos_embed"):
        return {
            "position_embedding": "none",
            "image_size": tuple(s // p * p for s, p in zip(stated, patch, strict=True)),
        }
    count = source.shapes["pos_embed"][1]
    tokens = found["use_class_token"] + found["use_distillation_token"]
    coverages = {
        "all" if found["num_register_tokens"] else "class": tokens + found["num_register_tokens"],
        "patches": 0,
    }
    grid = stated[0] // patch[0], stated[1] // patch[1]
    grids = {grid[0] * grid[1]: grid}
    # A square grid, where the config speaks of another size than the tensors.
    grids = {**{side * side: (side, side) for side in range(1, 257)}, **grids}
    for fitting in ({grid[0] * grid[1]}, set(grids)):
        for coverage, covered in coverages.items():
            if count - covered in fitting:
                rows, columns = grids[count - covered]
                return {"position_coverage": coverage, "image_size": (rows * patch[0], columns * patch[1])}
    raise ValueError(
        f"pos_embed of {source.where} has {count} positions, which is no grid of patches of {stated[0]} x {stated[1]}"
        " pixels; state the right img_size in model_args of its config.json"
    )


def _input_size(config: Mapping[str, Any]) -> tuple[int, int, int]:
    cfg = config.get("pretrained_cfg") or config
    return tuple(cfg.get("input_size") or (3, 224, 224))


def _pooling(source: Source, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    config = source.config
    usual = "map" if source.has("attn_pool.latent") else "token" if source.has("cls_token") else "avg"
    stated = args.get(
        "global_pool", config.get("global_pool") or (config.get("pretrained_cfg") or {}).get("global_pool")
    )
    if stated == "" and not source.has("head.weight"):
        stated = usual  # it gives the tokens
    stated = usual if stated is None else stated
    if stated not in _POOLING:
        raise ValueError(
            f"global_pool={stated!r} of {source.where} is not supported; convert a model with {', '.join(_POOLING)}"
        )
    if _POOLING[stated] == "class":
        return {"pooling": "class"}
    prefix = args.get("pool_include_prefix", name == "test_vit3")
    return {"pooling": _POOLING[stated], "pooling_coverage": "all" if prefix else "patches"}


def _labels(source: Source) -> dict[str, Any]:
    if not source.has("head.weight"):
        return {}
    count = source.shapes["head.weight"][0]
    names = source.config.get("label_names") or (source.config.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and len(names) == count:
        labels = {int(index): str(label) for index, label in names.items()}
        return {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    return {"num_labels": count}


def image_processor(source: Source) -> dict[str, Any]:
    cfg = source.config.get("pretrained_cfg") or source.config
    patch = tuple(source.shapes["patch_embed.proj.weight"][2:])
    tokens = {"use_class_token": source.has("cls_token"), "use_distillation_token": source.has("dist_token")}
    registers = source.shapes["reg_token"][1] if source.has("reg_token") else 0
    size = _positions(source, {**tokens, "num_register_tokens": registers, "patch_size": patch})["image_size"]
    return processor_settings(cfg, size)


# ---- to timm


def source_config(config: Any, kind: str) -> dict[str, Any]:
    _refuse_what_timm_has_not(config, kind)
    labels = config.num_labels if kind == "classification" else 0
    pooling = {ours: theirs for theirs, ours in _POOLING.items()}.get(config.pooling, "token")
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    ratio = config.intermediate_size * (2 if config.mlp_type == "swiglu" else 1) / config.hidden_size
    after = config.norm_position == "after_pooling"
    args: dict[str, Any] = {
        "img_size": list(config.image_shape),
        "patch_size": config.patch_shape[0] if len(set(config.patch_shape)) == 1 else list(config.patch_shape),
        "in_chans": config.num_channels,
        "num_classes": labels,
        "global_pool": pooling,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        # timm takes the whole part of width * ratio.
        "mlp_ratio": ratio if int(config.hidden_size * ratio) == ratio * config.hidden_size else ratio * (1 + 1e-9),
        "qkv_bias": config.query_bias,
        "qk_norm": config.qk_norm,
        "proj_bias": config.output_bias,
        "init_values": None if config.layer_scale_init_value is None else config.layer_scale_init_value or 1e-5,
        "class_token": config.use_class_token,
        "pos_embed": "learn" if config.position_embedding == "learned" else "none",
        "no_embed_class": config.num_placed_tokens == 0 and config.num_prefix_tokens > 0,
        "reg_tokens": config.num_register_tokens,
        "pre_norm": config.use_pre_norm,
        "final_norm": config.norm_position != "none",
        "fc_norm": after,
        "act_layer": activations.get(config.hidden_act),
        "drop_path_rate": config.drop_path_rate,
        "attn_drop_rate": config.attention_probs_dropout_prob,
        "patch_drop_rate": config.patch_drop_rate,
    }
    if config.pooling in ("mean", "attention"):
        args["pool_include_prefix"] = config.pools_prefix and config.num_prefix_tokens > 0
    if config.norm_type == "rmsnorm":
        args["norm_layer"] = "rmsnorm"
    written: dict[str, Any] = {
        "architectures": None,
        "architecture": _architecture(config),
        "num_classes": labels,
        "num_features": config.hidden_size,
        "global_pool": pooling,
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [config.num_channels, *config.image_shape],
            "fixed_input_size": True,
            "custom_load": False,
            "num_classes": labels,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.use_distillation_token else "head",
            **pretrained_cfg(getattr(config, "image_processor_settings", None)),
        },
    }
    names = [config.id2label[index] for index in range(labels)]
    if names != [f"LABEL_{index}" for index in range(labels)]:
        written["label_names"] = names
    return written


def _architecture(config: Any) -> str:
    """That of the source, or one that has what `model_args` cannot state: epsilon, a packed gate, a second token."""
    remembered = (config.converted_from or {}).get("architecture")
    if remembered is not None:
        return remembered
    if config.use_distillation_token:
        return "deit_base_distilled_patch16_224"
    if config.mlp_type == "swiglu":
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if config.layer_norm_eps == 1e-5 else "vit_base_patch16_224"


def _refuse_what_timm_has_not(config: Any, kind: str) -> None:
    """What cannot be seen by reading what would be written, because there the tensors say it."""
    prefix, placed = config.num_prefix_tokens, config.num_placed_tokens
    faults = {
        f"head_dim={config.head_dim}": config.head_dim * config.num_attention_heads != config.hidden_size,
        f"patch_bias={config.patch_bias} beside use_pre_norm={config.use_pre_norm}": config.patch_bias
        == config.use_pre_norm,
        f"mlp_bias={config.mlp_bias} beside output_bias={config.output_bias}": config.mlp_bias != config.output_bias,
        f"key_bias={config.key_bias} beside query_bias={config.query_bias}": not (
            config.query_bias == config.key_bias == config.value_bias
        ),
        f"position_coverage={config.position_coverage!r}": config.position_embedding == "learned"
        and placed not in (0, prefix),
        "num_register_tokens beside use_distillation_token": config.use_distillation_token
        and config.num_register_tokens > 0,
        f"pooling={config.pooling!r} beside mlp_type={config.mlp_type!r}": config.pooling == "attention"
        and (config.mlp_type != "mlp" or not config.mlp_bias),
        "use_distillation_classifier=False": kind == "classification"
        and config.use_distillation_token
        and not config.use_distillation_classifier,
    }
    found = [fault for fault, is_one in faults.items() if is_one]
    if found:
        raise ValueError(f"the family 'timm' has no place for {', '.join(found)}; export to another family instead")


FAMILY = Family(
    name="timm",
    recognises=lambda config: "architecture" in config and config.get("model_type") in (None, "timm_wrapper"),
    architectures={"model": "", "classification": ""},
    fields=fields,
    source_config=source_config,
    layouts={"timm": rules()},
    image_processor=image_processor,
)
