"""What each parameter is for, which of them are trained, and with which weight decay and learning rate."""

import fnmatch
import re
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import TrainingRefusedError
from ..recipe import Optimisation

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")
_BEFORE = re.compile(r"(?:^|\.)(?:pre_norm|pre_layrnorm|conv_stem)\.")  # with the embeddings, whatever else they are
_POOLER = re.compile(r"(?:^|\.)pooler\.")  # after the layers, though it may have a token of its own

# Role -> parts of a parameter's name, in QKViT and in transformers' vision models.
_PARTS = {
    "q": ("q_proj", "query", "query_proj", "q_norm"),
    "k": ("k_proj", "key", "key_proj", "k_norm"),
    "v": ("v_proj", "value", "value_proj"),
    "o": ("o_proj", "out_proj", "attention.output"),
    "mlp": ("mlp", "intermediate", "fc1", "fc2"),
    "token": (
        *("class_token", "cls_token", "class_embedding", "distillation_token", "register_tokens", "mask_token"),
        "probe",
    ),
    "position": (
        *("position_embeddings", "position_embedding", "pos_embed"),
        *("relative_position_bias_table", "continuous_position_bias_mlp"),
    ),
    "scale": (
        *("layer_scale", "layer_scale1", "layer_scale2", "layer_scale_1", "layer_scale_2", "layer_scale_parameter"),
        *("lambda1", "lambda_1", "lambda_2", "logit_scale"),
    ),
    "head": ("classifier", "distillation_classifier", "cls_classifier", "head", "fc_norm"),
    "embeddings": ("embeddings",),
}
ROLES = (*_PARTS, "norm", "bias", "layer.N")


def roles(model: nn.Module) -> dict[str, set[str]]:
    """Parameter name -> what it is: q, k, v, o, mlp, norm, bias, scale, token, position, embeddings, head, layer.N.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForImageClassification
    >>> model = QKViTForImageClassification(QKViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    >>> sorted(roles(model)["qkvit.layers.0.attention.q_proj.bias"])
    ['bias', 'layer.0', 'q']

    ```
    """
    norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    found: dict[str, set[str]] = {}
    for name, _ in model.named_parameters():
        dotted = f".{name}."
        tags = {role for role, parts in _PARTS.items() if any(f".{part}." in dotted for part in parts)}
        if ".output.dense." in dotted and "o" not in tags:  # after "intermediate"
            tags.add("mlp")
        if name.rpartition(".")[0] in norms:
            tags.add("norm")
        if name.endswith("bias"):
            tags.add("bias")
        layer = _LAYER.search(name)
        if layer:
            tags.add(f"layer.{layer[1]}")
        found[name] = tags
    return found


def set_trainable(model: nn.Module, rule: str) -> list[str]:
    """Freeze what `rule` does not name; gives the names of the parameters that are trained.

    Args:
        rule: "all", "only A, B" or "all but A, B", where A and B are roles, layers ("layer.3"), or patterns of
            parameters' names ("*.mlp.up_proj.*").

    Raises:
        TrainingRefusedError: the rule is none of these, or names what the model does not have.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForImageClassification
    >>> model = QKViTForImageClassification(QKViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    >>> set_trainable(model, "only q, head")[-1]
    'classifier.bias'

    ```
    """
    text = " ".join(rule.split())
    parsed = re.fullmatch(r"(all)|(only|all but) (.+)", text)
    if parsed is None:
        raise TrainingRefusedError(f'trainable={rule!r} is not understood; write "all", "only q, head" or "all but k"')
    tags = roles(model)
    named: set[str] = set()
    for wanted in (part.strip() for part in (parsed[3] or "").split(",") if part.strip()):
        matching = {name for name, of in tags.items() if wanted in of or fnmatch.fnmatchcase(name, wanted)}
        if not matching:
            raise TrainingRefusedError(
                f"trainable={rule!r}: the model has no parameters called {wanted!r}; write {', '.join(ROLES)}, or a"
                " pattern of a name"
            )
        named |= matching
    trained = []
    for name, parameter in model.named_parameters():
        chosen = parsed[1] is not None or (name in named) == (parsed[2] == "only")
        parameter.requires_grad_(chosen)
        if chosen:
            trained.append(name)
    if not trained:
        raise TrainingRefusedError(f"trainable={rule!r} leaves nothing to train; name fewer")
    return trained


def frozen_statistics(model: nn.Module) -> list[nn.Module]:
    """The batch norms that have parameters and none that is trained; their running means are to stay as they are too.

    They do in evaluation mode alone.
    """
    found: list[nn.Module] = []
    for module in model.modules():
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if isinstance(module, _BatchNorm) and trained and not any(trained):
            found.append(module)
    return found


def parameter_groups(
    model: nn.Module, settings: Optimisation, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: by weight decay, and by layer where learning rates differ; the highest rate first.

    With `layer_decay` d, the head and the last norm have the learning rate, layer l of L has d^(L - l) of it, and the
    embeddings d^(L + 1) (Clark et al. 2020, arXiv 2003.10555; BEiT, arXiv 2106.08254). With the optimiser "muon", each
    group says under "matrices" whether it is of matrices of the layers.
    """
    tags = roles(model)
    for role in settings.no_decay:
        if role not in ROLES:
            raise TrainingRefusedError(f"no_decay={role!r} is no role; write {', '.join(ROLES[:-1])}")
    depth = max((at for name, of in tags.items() if (at := _depth(name, of)) < _AFTER), default=0)
    grouped: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        below = 0 if settings.layer_decay is None else depth + 1 - min(_depth(name, tags[name]), depth + 1)
        scale = (1.0 if settings.layer_decay is None else settings.layer_decay) ** below
        decays = not tags[name] & set(settings.no_decay)
        matrix = settings.optimizer == "muon" and _is_matrix_of_a_layer(parameter, tags[name])
        group = grouped.setdefault(
            (scale, decays, matrix),
            {"params": [], "names": [], "lr": learning_rate * scale, "weight_decay": weight_decay if decays else 0.0}
            | ({"matrices": matrix} if settings.optimizer == "muon" else {}),
        )
        group["params"].append(parameter)
        group["names"].append(name)
    groups = [grouped[key] for key in sorted(grouped, reverse=True)]
    check_groups(model, groups)
    return groups


def check_layers(model: Any) -> None:
    """Refuse a model for `layer_decay` whose layers, by their names, do not come one after the other: with layers in
    stages, a number says nothing of the depth."""
    layers = {name: found for name, _ in model.named_parameters() if (found := _LAYER.search(name))}
    nested = [
        name
        for name, found in layers.items()
        if re.search(r"\.\d+\.", name[: found.start() + 1]) or _LAYER.search(name, found.end() - 1)
    ]
    if nested or not layers:
        has = f"layers within layers or stages ({nested[0]})" if nested else "no layers that can be told by their names"
        raise TrainingRefusedError(
            f"optimisation.layer_decay needs layers that are numbered from first to last, and {model.config.model_type}"
            f" has {has}; leave it out (--set layer_decay=null)"
        )


def check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Assert that every trained parameter is in exactly one group, and no other is in any."""
    seen: dict[int, int] = {}
    for group in groups:
        for parameter in group["params"]:
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if seen.get(id(parameter), 0) != int(parameter.requires_grad)
    ]
    strangers = len(seen.keys() - {id(parameter) for parameter in model.parameters()})
    assert not wrong, f"not in exactly one group: {', '.join(wrong)}"
    assert not strangers, f"{strangers} parameters of groups are not of this model"


def _is_matrix_of_a_layer(parameter: nn.Parameter, tags: set[str]) -> bool:
    return parameter.ndim == 2 and any(tag.startswith("layer.") for tag in tags) and not tags & {"token", "position"}


def _depth(name: str, tags: set[str]) -> int:
    """0 for the embeddings, l + 1 for layer l, a large number for what comes after the layers."""
    for tag in tags:
        if tag.startswith("layer."):
            return int(tag.removeprefix("layer.")) + 1
    if _POOLER.search(name) or "head" in tags:
        return _AFTER
    return 0 if tags & {"embeddings", "token", "position"} or _BEFORE.search(name) else _AFTER


_AFTER = 10**6
