"""What a configuration may hold, and the one sentence about the rest; `configuration_qkvit.py` calls it.

Like that file it travels with every saved model, and imports nothing outside its folder.
"""

import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers.activations import ACT2FN

from .errors_qkvit import shown

# Keys that transformers itself reads from, or writes into, a config.json beside the fields of a config.
_LIBRARY_KEYS = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "out_features",
        "out_indices",
        "output_attentions",
        "quantization_config",
        "stage_names",
        "tie_last_hidden_states",
        "tie_word_embeddings",
        "torch_dtype",
        "use_cache",
    }
)

# Fields and keys of every transformers configuration that transformers takes as they come: what they must be, or None.
_INHERITED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "architectures": ("a list of names", lambda value: isinstance(value, (list, tuple)) and _are_names(value)),
    # An image processor may have two classes.
    "auto_map": (
        "a mapping of names",
        lambda value: isinstance(value, Mapping) and all(_are_names(_as_list(name)) for name in value.values()),
    ),
    "chunk_size_feed_forward": ("an integer", lambda value: type(value) is int),
    "is_encoder_decoder": ("True or False", lambda value: isinstance(value, bool)),
    "tie_word_embeddings": ("True or False", lambda value: isinstance(value, bool)),
    "transformers_version": ("a name", lambda value: isinstance(value, str)),
    "use_cache": ("True or False", lambda value: isinstance(value, bool)),
}

_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_POSITIVE_INTEGERS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "intermediate_size",
    "num_channels",
    "pooler_size",
)
_PROBABILITIES = (
    "drop_path_rate",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "patch_drop_rate",
    "label_smoothing",
)


def pair(value: int | list | tuple) -> tuple[int, int]:
    """`16` -> `(16, 16)`; `(height, width)` stays."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _are_names(values: Iterable) -> bool:
    return all(isinstance(value, (str, types.NoneType)) for value in values)


def _as_index(key: Any) -> int | None:
    """`3` and `"3"` -> `3`, for JSON has no other keys than names; None for what is no integer."""
    try:
        return None if isinstance(key, (bool, float)) else int(key)
    except (TypeError, ValueError):
        return None


def labels_agree(id2label: Mapping, label2id: Mapping) -> bool:
    """Whether `label2id` gives each name an index that has this name in `id2label`."""
    names = {_as_index(key): name for key, name in id2label.items()}
    indices = {name: _as_index(index) for name, index in label2id.items()}
    return all(index in names and names[index] == name for name, index in indices.items())


def _id2label_of(label2id: Mapping) -> dict[int, Any]:
    """The inverse of `label2id`."""
    names = {_as_index(index): name for name, index in label2id.items()}
    count = len(label2id)
    if names.keys() != set(range(count)):
        raise ValueError(
            f"label2id={shown(label2id)} does not have each index from 0 to {count - 1} once; pass such as"
            " label2id={'cat': 0, 'dog': 1}"
        )
    return {index: names[index] for index in range(count)}


def is_known(config_class: Any, name: str) -> bool:
    """Whether a field or one of transformers' keys has that name."""
    # Private names are the libraries' own bookkeeping in saved files.
    return name in config_class.__dataclass_fields__ or name in _LIBRARY_KEYS or name.startswith("_")


def refuse_unknown(config_class: Any, extra: dict[str, Any], near_misses_only: bool = False) -> None:
    """Refuse arguments that are no fields, with the field that may have been meant.

    Args:
        near_misses_only: Refuse names that are all but a field's; others may be meant for somebody else.
    """
    if extra.get("per_layer_config") is not None:
        raise ValueError(
            f"per_layer_config={shown(extra['per_layer_config'])} is not supported, since all layers are alike;"
            " leave it out"
        )
    extra.pop("per_layer_config", None)
    for name in extra:
        if not is_known(config_class, name):
            fields = [*config_class.__dataclass_fields__, *_LIBRARY_KEYS]
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.8 if near_misses_only else 0.6)
            if near_misses_only and not close:
                continue
            hint = f"did you mean {close[0]!r}?" if close else "take it out; the fields are in QKViTConfig's help"
            raise ValueError(f"{name}={shown(extra[name])} is not a field of QKViTConfig: {hint}")


def check_inherited(config: Any, extra: dict[str, Any]) -> None:
    """Check the fields of every transformers configuration that matter here; transformers takes what it gets."""
    num_labels = extra.get("num_labels", 2)
    if not isinstance(num_labels, int) or isinstance(num_labels, bool) or num_labels < 0:
        raise ValueError(f"num_labels={shown(num_labels)} is not a count; pass num_labels=10, say, or 0 for no head")
    if config.id2label is None and config.label2id and isinstance(config.label2id, Mapping):
        config.id2label = _id2label_of(config.label2id)
    check_labels(config, extra.get("num_labels"))
    if config.id2label and config.label2id is not None and not labels_agree(config.id2label, config.label2id):
        raise ValueError(
            f"label2id={shown(config.label2id)} is not the inverse of id2label={shown(config.id2label)}; leave"
            " label2id out"
        )
    for name, (words, fits) in _INHERITED.items():
        value = extra.get(name, getattr(config, name, None))
        if not (value is None or fits(value)):
            raise ValueError(f"{name}={shown(value)} is not {words}; leave {name} out for its default")
    _check_outputs(config, extra.get("output_attentions"), extra.get("tie_last_hidden_states"))
    for name, value in (("dtype", config.dtype), ("torch_dtype", extra.get("torch_dtype"))):
        dtype = getattr(torch, value, ...) if isinstance(value, str) else value
        if not (dtype is None or isinstance(dtype, torch.dtype)):
            raise ValueError(f"{name}={shown(value)} is no data type of torch; pass {name}='bfloat16', say")
    implementations = ("attn_implementation", "experts_implementation")
    for name in (*implementations, *(f"_{name}" for name in implementations)):
        value = extra.get(name)
        if not (value is None or isinstance(value, (str, Mapping))):  # a mapping is for models of several parts
            raise ValueError(f"{name}={shown(value)} is not a name; pass {name}='eager', say, or leave it out")
    quantization = extra.get("quantization_config")
    if not (quantization is None or isinstance(quantization, Mapping) or hasattr(quantization, "to_dict")):
        raise ValueError(
            f"quantization_config={shown(quantization)} is no mapping; take it out, or save the quantised model again"
        )


def check_given_later(config: Any) -> None:
    """Check the fields of every transformers configuration that may have been set since it was made."""
    check_labels(config, None)  # label2id may be that of before: nothing reads it, and a file's is made anew
    _check_outputs(config, config.output_attentions, getattr(config, "tie_last_hidden_states", None))


def _check_outputs(config: Any, maps: Any, tied: Any) -> None:
    if config.problem_type not in (None, *_PROBLEM_TYPES):
        choices = ", ".join(map(repr, _PROBLEM_TYPES))
        raise ValueError(f"problem_type={shown(config.problem_type)} is not known; pass one of {choices}, or None")
    if not isinstance(config.return_dict, bool):
        raise ValueError(f"return_dict={shown(config.return_dict)} is not True or False; pass return_dict=True, say")
    if tied is not None and tied is not False:
        raise ValueError(
            f"tie_last_hidden_states={shown(tied)} is not supported, since hidden states stand before the last"
            " normalisation; leave it out"
        )
    states = config.output_hidden_states
    if not all(type(index) in (bool, int, types.NoneType) for index in _as_list(states)):
        raise ValueError(
            f"output_hidden_states={shown(states)} is not True or False or an integer or a list of integers; pass"
            " output_hidden_states=True, say"
        )
    layers = [] if maps is None or isinstance(maps, bool) else _as_list(maps)
    if not all(
        type(layer) is int and -config.num_hidden_layers <= layer < config.num_hidden_layers for layer in layers
    ):
        raise ValueError(
            f"output_attentions={shown(maps)} names no layers of this model; pass True, False, or indices from"
            f" {-config.num_hidden_layers} to {config.num_hidden_layers - 1}"
        )


def check_labels(config: Any, num_labels: int | None) -> None:
    example = "pass such as id2label={0: 'cat', 1: 'dog'}"
    for name in ("id2label", "label2id"):
        value = getattr(config, name)
        if not (value is None or isinstance(value, Mapping)):
            way_out = example if name == "id2label" else "pass such as label2id={'cat': 0, 'dog': 1}"
            raise ValueError(f"{name}={shown(value)} is no mapping; {way_out}")
    if config.id2label is None:
        return
    for key in config.id2label:
        if _as_index(key) is None:
            raise ValueError(
                f"id2label={shown(config.id2label)} has the key {shown(key)}, which is no integer; {example}"
            )
    count = len(config.id2label)
    if {_as_index(key) for key in config.id2label} != set(range(count)):
        raise ValueError(
            f"id2label={shown(config.id2label)} does not have each key from 0 to {count - 1} once; {example}"
        )
    for name in config.id2label.values():
        if not isinstance(name, str):
            raise ValueError(
                f"id2label={shown(config.id2label)} has the label {shown(name)}, which is no name; {example}"
            )
    if num_labels is not None and num_labels != count:
        raise ValueError(
            f"num_labels={num_labels} and id2label={shown(config.id2label)} of {count} labels"
            " contradict each other; pass one of them"
        )


def check_ranges(config: Any) -> None:
    """Check each field by itself."""
    for name in _POSITIVE_INTEGERS:
        value = getattr(config, name)
        if value is not None and (isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}={value} is not a positive integer; pass {name}=1 or more")
    if isinstance(config.num_register_tokens, bool) or config.num_register_tokens < 0:
        raise ValueError(f"num_register_tokens={config.num_register_tokens} is not a count; pass 0 or more")
    for name in _PROBABILITIES:
        value = getattr(config, name)
        if isinstance(value, bool) or not 0 <= value < 1:
            raise ValueError(f"{name}={value} is not in [0, 1); pass a fraction such as {name}=0.1")
    for name in ("layer_norm_eps", "initializer_range", "rope_theta"):
        value = getattr(config, name)
        if isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value} is not a positive number; the default is a good one to take")
    scale = config.layer_scale_init_value
    if scale is not None and (isinstance(scale, bool) or not math.isfinite(scale)):
        raise ValueError(f"layer_scale_init_value={scale} is not a finite number; pass 1e-5, say, or None")
    for name, examples in (("hidden_act", "'gelu' or 'silu'"), ("pooler_act", "'tanh' or 'gelu'")):
        value = getattr(config, name)
        if value is not None and value not in ACT2FN:
            raise ValueError(f"{name}={value!r} is not known; pass one such as {examples}")
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        sides = [value] if isinstance(value, int) else list(value)
        if isinstance(value, bool) or len(sides) not in (1, 2) or any(side < 1 for side in sides):
            raise ValueError(f"{name}={value} is not a size; pass a number of pixels or (height, width)")
        if not isinstance(value, int) and len(sides) != 2:
            raise ValueError(f"{name}={value} has one number in a list; pass {name}={sides[0]} or (height, width)")


def whole_head_dim(config: Any) -> int:
    """hidden_size / num_attention_heads, which must divide."""
    if config.hidden_size % config.num_attention_heads:
        below = config.hidden_size // config.num_attention_heads * config.num_attention_heads
        choices = [str(size) for size in (below, below + config.num_attention_heads) if size]
        raise ValueError(
            f"num_attention_heads={config.num_attention_heads} does not divide hidden_size={config.hidden_size};"
            f" pass hidden_size={' or '.join(choices)}, or head_dim"
        )
    return config.hidden_size // config.num_attention_heads


def check_sizes(config: Any) -> None:
    """Patches must tile the image."""
    for side, pixels, patch in zip(("height", "width"), pair(config.image_size), pair(config.patch_size), strict=True):
        if pixels % patch:
            near = max(1, round(pixels / patch)) * patch
            divisors = [size for size in range(1, pixels + 1) if pixels % size == 0]
            fitting = min(divisors, key=lambda size: abs(size - patch))
            raise ValueError(
                f"patch_size {patch} does not divide image_size {pixels} ({side}); pass image_size={near} or"
                f" patch_size={fitting}"
            )


def check_tokens(config: Any) -> None:
    """What is pooled must be there."""
    if config.pooling in ("class", "class_mean") and not config.use_class_token:
        raise ValueError(
            f"pooling={config.pooling!r} needs a class token, but use_class_token=False; pass pooling='mean' or"
            " use_class_token=True"
        )
    if config.use_distillation_token and (not config.use_class_token or config.pooling != "class"):
        raise ValueError(
            "use_distillation_token=True stands beside a class token that is pooled, but"
            f" use_class_token={config.use_class_token} and pooling={config.pooling!r}; pass use_class_token=True and"
            " pooling='class', or use_distillation_token=False"
        )


def check_pooling(config: Any) -> None:
    """The normalisation, the pooler and what they stand on."""
    if config.norm_position == "after_pooling" and config.use_distillation_token:
        raise ValueError(
            "norm_position='after_pooling' leaves the distillation token without a normalisation, but"
            " use_distillation_token=True; pass norm_position='before_pooling' or use_distillation_token=False"
        )
    if config.pooler_size is not None and config.pooler_act is None:
        raise ValueError(
            f"pooler_size={config.pooler_size} is the width of a pooler, but pooler_act=None; pass pooler_act='tanh',"
            " say, or leave pooler_size out"
        )
    if config.pooling == "class" and config.pooling_coverage is not None:
        raise ValueError(
            f"pooling_coverage={config.pooling_coverage!r} chooses tokens to pool, but pooling='class' takes one; leave"
            " pooling_coverage out, or pass pooling='mean'"
        )


def check_positions(config: Any) -> None:
    """Rotary and sine-cosine positions need certain widths."""
    assert config.head_dim is not None  # set by __post_init__
    if config.position_embedding == "rope2d" and config.head_dim % 4:
        raise ValueError(
            f"position_embedding='rope2d' rotates pairs along two axes, but head_dim={config.head_dim} is not a"
            f" multiple of 4; pass head_dim={4 * math.ceil(config.head_dim / 4)}"
        )
    if config.position_embedding == "sincos2d" and (config.hidden_size % 4 or config.hidden_size < 8):
        raise ValueError(
            "position_embedding='sincos2d' has a sine and a cosine along two axes, but"
            f" hidden_size={config.hidden_size} is not a multiple of 4 from 8 up; pass"
            f" hidden_size={max(8, 4 * math.ceil(config.hidden_size / 4))}"
        )


def check_loss(config: Any) -> None:
    """The loss must be one that the targets have."""
    if config.problem_type in ("regression", "multi_label_classification"):
        reason = f"problem_type={config.problem_type!r}"
    elif config.problem_type is None and config.num_labels == 1:
        reason = "num_labels=1, which is regression"
    else:
        return
    if config.label_smoothing > 0:
        raise ValueError(
            f"label_smoothing={config.label_smoothing} does not go with {reason}; pass label_smoothing=0.0"
        )
    if config.classification_loss != "cross_entropy":
        other = "pass num_labels=2 or more" if config.problem_type is None else "leave problem_type out"
        raise ValueError(
            f"classification_loss={config.classification_loss!r} does not go with {reason}: that has a loss of its own;"
            f" leave classification_loss out, or {other}"
        )
