"""What a recipe may hold: ranges of its values, and which of them go together."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .errors import TrainingRefusedError

# At least 0, and finite.
_AMOUNTS = (
    *(f"augmentation.{name}" for name in ("mixup", "cutmix", "brightness", "contrast", "saturation", "crop_padding")),
    *(f"augmentation.{name}" for name in ("randaugment_operations", "randaugment_spread")),
    *(f"optimisation.{name}" for name in ("warmup_epochs", "cooldown_epochs")),
    *(f"arguments.{name}" for name in ("learning_rate", "weight_decay", "max_grad_norm", "num_train_epochs")),
    *(f"arguments.{name}" for name in ("eval_steps", "save_steps", "logging_steps")),
)
# At least 1.
_COUNTS = (
    "processes",
    *(f"data.{name}" for name in ("images", "repeats", "shuffle_window", "known_images", "known_classes")),
    *(f"arguments.{name}" for name in ("per_device_train_batch_size", "per_device_eval_batch_size")),
    "arguments.gradient_accumulation_steps",
)

# What is without effect where its switch is off: section, fields, the switch as it is set, and whether it is on.
_SWITCHED: tuple[tuple[str, tuple[str, ...], str, Callable[[Any], Any]], ...] = (
    ("data", ("shuffle_window",), "streaming", lambda its: its.streaming),
    ("augmentation", ("crop_scale", "crop_ratio"), "crop=resized", lambda its: its.crop == "resized"),
    ("augmentation", ("crop_padding",), "crop=simple", lambda its: its.crop == "simple"),
    (
        "augmentation",
        ("randaugment_magnitude", "randaugment_spread", "randaugment_table"),
        "randaugment_operations",
        lambda its: its.randaugment_operations,
    ),
    ("augmentation", ("erasing_fill",), "erasing", lambda its: its.erasing),
    ("augmentation", ("mix_probability", "mixed_labels"), "mixup or cutmix", lambda its: its.mixup or its.cutmix),
    ("optimisation", ("early_stopping_delta",), "early_stopping", lambda its: its.early_stopping is not None),
    ("distillation", ("kind", "alpha", "temperature", "match_labels"), "teacher", lambda its: its.teacher is not None),
    ("distillation", ("temperature",), "kind=soft", lambda its: its.kind == "soft"),
)


def check(recipe: Any) -> None:
    """Refuse a recipe, with one sentence.

    Args:
        recipe: A `Recipe`.

    Raises:
        TrainingRefusedError: one of its values is out of range, or two do not go together.
    """
    _check_ranges(recipe)
    _check_distillation(recipe.distillation)
    _check_progressive(recipe.data.progressive)
    _check_twice(recipe.optimisation, recipe.arguments)
    _check_schedule(recipe.optimisation, recipe.arguments)
    _check_best(recipe.optimisation, recipe.arguments)
    _check_switched(recipe)


def _check_ranges(recipe: Any) -> None:
    shares = {
        "data.held_out": recipe.data.held_out,
        "augmentation.flip": recipe.augmentation.flip,
        "augmentation.erasing": recipe.augmentation.erasing,
        "augmentation.mix_probability": recipe.augmentation.mix_probability,
        "optimisation.average_decay": recipe.optimisation.average_decay,
        "optimisation.layer_decay": recipe.optimisation.layer_decay,
    }
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise TrainingRefusedError(f"{name}={value} is outside [0, 1]; write a number in it")
    for name in _AMOUNTS:
        value = _value(recipe, name)
        if value is not None and not 0 <= value < math.inf:
            reason = "negative" if value < 0 else "no finite number"
            raise TrainingRefusedError(f"{name}={value} is {reason}; write 0 or more")
    if recipe.optimisation.attention_health_steps < 0:
        raise TrainingRefusedError(
            f"optimisation.attention_health_steps={recipe.optimisation.attention_health_steps} is negative; write 0"
            " (never) or more"
        )
    for name in _COUNTS:
        count = _value(recipe, name)
        if count is not None and count < 1:
            raise TrainingRefusedError(f"{name}={count} is less than 1; write 1 or more")
    if recipe.arguments.get("max_steps") == 0:
        raise TrainingRefusedError("arguments.max_steps=0 would train for num_train_epochs; write 1 or more, or -1")
    _check_pixels(recipe.data)
    for name in ("crop_scale", "crop_ratio"):
        low, high = getattr(recipe.augmentation, name)
        if not 0 < low <= high:
            raise TrainingRefusedError(
                f"augmentation.{name}=[{low}, {high}] is no range above 0; write the lower end first"
            )
    if recipe.augmentation.crop_scale[1] > 1:
        raise TrainingRefusedError(
            f"augmentation.crop_scale={list(recipe.augmentation.crop_scale)} ends above the whole image;"
            " write 1 or less"
        )
    if not 0 <= recipe.augmentation.randaugment_magnitude <= 10:
        raise TrainingRefusedError(
            f"augmentation.randaugment_magnitude={recipe.augmentation.randaugment_magnitude} is outside [0, 10]; write"
            " a number in it"
        )
    if not 0 <= recipe.arguments.get("seed", 42) < 2**32:
        raise TrainingRefusedError(
            f"arguments.seed={recipe.arguments['seed']} is outside [0, 2^32); write a number in it"
        )
    batch = recipe.arguments.get("per_device_train_batch_size", 8)
    if (recipe.augmentation.mixup or recipe.augmentation.cutmix) and batch % 2:
        raise TrainingRefusedError(
            f"per_device_train_batch_size={batch} is odd, and mixup and cutmix mix pairs of a batch; write an even"
            " number"
        )


def _value(recipe: Any, name: str) -> Any:
    """Of a field; None where the recipe does not say it."""
    section, _, field = name.rpartition(".")
    if section == "arguments":
        return recipe.arguments.get(field)
    return getattr(getattr(recipe, section) if section else recipe, field)


def _check_pixels(data: Any) -> None:
    size = data.image_size
    sides = size if isinstance(size, list) else [1 if size is None else size] * 2
    if len(sides) != 2 or min(sides) < 1:
        raise TrainingRefusedError(f"data.image_size={size} is no size; write pixels, or [height, width]")
    for name in ("mean", "std"):
        values = getattr(data, name)
        if values is not None and len(values) != 3:
            raise TrainingRefusedError(f"data.{name}={values} is not of three channels; write three numbers")
        if values is not None and not all(map(math.isfinite, values)):
            raise TrainingRefusedError(f"data.{name}={values} holds a number that is not finite; write others")
    if data.std is not None and not min(data.std) > 0:
        raise TrainingRefusedError(f"data.std={data.std} holds a number that is not above 0; write others")
    if data.evaluation_crop is not None and not 0 < data.evaluation_crop <= 1:
        raise TrainingRefusedError(
            f"data.evaluation_crop={data.evaluation_crop} is outside (0, 1]; write a number in it"
        )


def _check_twice(optimisation: Any, arguments: dict[str, Any]) -> None:
    """What can be said in two places is said in one."""
    for ours, theirs in (("optimizer", ("optim",)), ("warmup_epochs", ("warmup_steps", "warmup_ratio"))):
        value, said = getattr(optimisation, ours), [name for name in theirs if arguments.get(name)]
        if value is not None and said:
            raise TrainingRefusedError(
                f"optimisation.{ours}={value} and arguments.{said[0]}={arguments[said[0]]} say the same thing twice;"
                f" leave one of them out (--set {ours}=null)"
            )


def without_effect(recipe: Any) -> Iterator[tuple[str, str, str]]:
    """What is set where its switch is off: section, field, switch."""
    for section, names, switch, is_on in _SWITCHED:
        settings = getattr(recipe, section)
        for name in names:
            if getattr(settings, name) != getattr(type(settings), name) and not is_on(settings):
                yield section, name, switch


def switch_off(recipe: Any, useless: set[tuple[str, str, str]], said: list[str]) -> None:
    """What depends on a switch goes with it, where a setting turns that off: nobody has said the one without the other.

    Args:
        useless: What was without effect before.
        said: The names of the settings.
    """
    for section, name, switch in list(without_effect(recipe)):
        if (section, name, switch) not in useless and name not in said:
            settings = getattr(recipe, section)
            setattr(recipe, section, replace(settings, **{name: getattr(type(settings), name)}))


def _check_switched(recipe: Any) -> None:
    for section, name, switch in without_effect(recipe):
        settings = getattr(recipe, section)
        value, default = getattr(settings, name), getattr(type(settings), name)
        value, default = (list(one) if isinstance(one, tuple) else one for one in (value, default))
        raise TrainingRefusedError(
            f"{section}.{name}={value} is without effect without {section}.{switch}; set that too, or leave it"
            f' out (--set "{section}.{name}={default}")'
        )


def _check_distillation(settings: Any) -> None:
    if not 0 <= settings.alpha <= 1:
        raise TrainingRefusedError(f"distillation.alpha={settings.alpha} is outside [0, 1]; write a number in it")
    if not settings.temperature > 0:
        raise TrainingRefusedError(
            f"distillation.temperature={settings.temperature} is not above 0; write a positive number"
        )


def _check_progressive(stages: list[list[float]] | None) -> None:
    if stages is None:
        return
    shape = "write pairs such as [[0, 96], [0.5, 128]]: from which share of the run on, and how many pixels"
    if not stages or any(len(stage) != 2 for stage in stages):
        raise TrainingRefusedError(f"data.progressive={stages} is no list of pairs; {shape}")
    shares = [share for share, _ in stages]
    if shares[0] != 0 or sorted(set(shares)) != shares or shares[-1] >= 1:
        raise TrainingRefusedError(f"data.progressive={stages} does not begin at 0 and rise below 1; {shape}")
    if any(pixels < 1 or pixels != int(pixels) for _, pixels in stages):
        raise TrainingRefusedError(f"data.progressive={stages} has a size that is no whole number above 0; {shape}")


_WITHOUT_WARMUP = {  # transformers gives them none, whatever is asked for
    "constant": "write constant_with_warmup, or leave it out",
    "reduce_lr_on_plateau": "leave it out",
    "greedy": "leave it out",
}


def _check_schedule(optimisation: Any, arguments: dict[str, Any]) -> None:
    """What the schedule does not do, and what is said in epochs; the rest is checked when the steps are known."""
    kind = arguments.get("lr_scheduler_type", "linear")
    warmups = [("optimisation.warmup_epochs", optimisation.warmup_epochs)]
    warmups += [(f"arguments.{name}", arguments.get(name)) for name in ("warmup_steps", "warmup_ratio")]
    for name, value in warmups:
        if value and kind in _WITHOUT_WARMUP:
            raise TrainingRefusedError(
                f"{name}={value:g} asks for a warm-up, and lr_scheduler_type={kind} has none; {_WITHOUT_WARMUP[kind]}"
                f" (--set {name}=0)"
            )
    if kind != "warmup_stable_decay" and optimisation.cooldown_epochs:
        raise TrainingRefusedError(
            f"optimisation.cooldown_epochs={optimisation.cooldown_epochs:g} is for"
            f" lr_scheduler_type=warmup_stable_decay, and this is {kind}; write that, or leave it out (--set"
            " cooldown_epochs=null)"
        )
    if kind != "warmup_stable_decay" or arguments.get("max_steps", -1) > 0:
        return
    warmup, cooldown = optimisation.warmup_epochs or 0, optimisation.cooldown_epochs or 0
    epochs = arguments.get("num_train_epochs", 3)
    if warmup + cooldown > epochs:
        raise TrainingRefusedError(
            f"optimisation.warmup_epochs={warmup:g} and cooldown_epochs={cooldown:g} are longer than"
            f" arguments.num_train_epochs={epochs:g}; shorten one of them, or train for longer"
        )


def _check_best(optimisation: Any, arguments: dict[str, Any]) -> None:
    for name in ("early_stopping", "keep_best"):
        count = getattr(optimisation, name)
        if count is not None and count < 1:
            raise TrainingRefusedError(f"optimisation.{name}={count} is less than 1; write 1 or more, or leave it out")
    if optimisation.early_stopping_delta < 0:
        raise TrainingRefusedError(
            f"optimisation.early_stopping_delta={optimisation.early_stopping_delta} is negative; write 0 or more"
        )
    wanted = [name for name in ("early_stopping", "keep_best") if getattr(optimisation, name) is not None]
    evaluation = arguments.get("eval_strategy", "epoch")
    if wanted and evaluation == "no":
        raise TrainingRefusedError(
            f"optimisation.{wanted[0]} needs evaluations; set arguments.eval_strategy to epoch or steps"
        )
    if optimisation.keep_best is not None and not _saved_where_evaluated(arguments, evaluation):
        raise TrainingRefusedError(
            "optimisation.keep_best needs a checkpoint where the model is evaluated; give save_strategy and save_steps"
            " the values of eval_strategy and eval_steps"
        )


def _saved_where_evaluated(arguments: dict[str, Any], evaluation: str) -> bool:
    if arguments.get("save_strategy", "epoch") != evaluation:
        return False
    if evaluation != "steps":
        return True
    save, every = arguments.get("save_steps", 500), arguments.get("eval_steps")
    every = every or arguments.get("logging_steps", 10)  # as TrainingArguments has it
    if min(save, every) < 1:  # shares of a run whose steps are not known yet
        return save > 0
    return save % every == 0
