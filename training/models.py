"""The model of a recipe, and the image processor that is saved with it."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..configuration.configuration_qkvit import QKViTConfig
from ..configuration.hub_errors import hub_sentences
from ..configuration.reasons import in_one_line
from ..data.hub_names import look_for
from ..modeling import QKViTForImageClassification
from .errors import TrainingRefusedError
from .recipe import Data, Recipe
from .recipe_types import unknown

_SEVERAL = "multi_label_classification"
_LOSS: dict[str, Any] = {"problem_type": None, "classification_loss": "cross_entropy", "label_smoothing": 0.0}


class LossSettings:
    """What `classification_loss` asks of a configuration, for models of other families too."""

    problem_type: str | None
    classification_loss: str
    label_smoothing: float

    def __init__(self, config: Any) -> None:
        for name, default in _LOSS.items():
            setattr(self, name, getattr(config, name, default))


def check_start(recipe: Recipe) -> None:
    """Refuse weights to start from that are neither here nor on the Hub."""
    if recipe.model.start is not None:
        try:
            look_for(recipe.model.start, "model")
        except ValueError as error:
            raise TrainingRefusedError(f"the model cannot be made: {error}") from error


def build_model(
    recipe: Recipe,
    class_names: list[str],
    *,
    multi_label: bool = False,
    say: Callable[[str], Any] = lambda sentence: None,
) -> nn.Module:
    """A classifier of these classes: new, or from other weights.

    Args:
        multi_label: An image may have several of them: binary cross-entropy for each.
        say: Is told where a classifier that was there is not taken.

    Raises:
        TrainingRefusedError: the configuration is refused, or the weights cannot be read.
    """
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    given = recipe.model.config.get("num_labels", len(class_names))
    if given != len(class_names):
        raise TrainingRefusedError(
            f"model.config.num_labels={given}, and {recipe.data.source} has {len(class_names)} classes; leave it out"
        )
    fields = {name: value for name, value in recipe.model.config.items() if name != "num_labels"}
    asked = fields.get("problem_type")
    if asked is not None and (asked == _SEVERAL) != multi_label:
        raise TrainingRefusedError(
            f"model.config.problem_type={asked!r}, and {recipe.data.source} has"
            f" {'lists of labels' if multi_label else 'one label an image'}; leave it out"
        )
    fields["problem_type"] = _SEVERAL if multi_label else asked  # also in the place of what a start was trained with
    try:
        model = _started(recipe, fields, labels, say) if recipe.model.start else _new(recipe, fields, labels)
    except TrainingRefusedError:
        raise
    except (ValueError, TypeError, OSError, KeyError) as error:
        reason = in_one_line(error)
        raise TrainingRefusedError(f"the model cannot be made: {reason}") from error
    if recipe.model.stochastic_depth == "uniform":
        _drop_uniformly(model)
    return model


def _drop_uniformly(model: nn.Module) -> None:
    config: Any = model.config
    dropping: list[Any] = [module for module in model.modules() if hasattr(module, "drop_path_rate")]
    if not dropping:
        raise TrainingRefusedError(
            f"model.stochastic_depth='uniform' is for qkvit, and this model is {config.model_type!r}; leave it out"
        )
    if not config.drop_path_rate:
        raise TrainingRefusedError(
            "model.stochastic_depth='uniform' is without effect without model.config.drop_path_rate; set that, or leave"
            " it out (--set stochastic_depth=linear)"
        )
    for module in dropping:
        module.drop_path_rate = config.drop_path_rate


def _check_fields(config: Any, fields: dict[str, Any]) -> None:
    """Refuse what a configuration of transformers does not know: it would keep it, and nothing would follow it."""
    known = {*config.to_dict(), *config.attribute_map, *_LOSS, "attn_implementation"}
    for name in fields:
        if name not in known:
            raise unknown(name, known, "model.config")
    QKViTConfig(**{name: value for name, value in fields.items() if name in _LOSS})  # refuses other values


def _new(recipe: Recipe, fields: dict[str, Any], labels: dict[str, Any]) -> nn.Module:
    if recipe.model.type != "qkvit":
        _check_fields(AutoConfig.for_model(recipe.model.type), fields)
    size = recipe.data.image_size
    if size is not None:
        fields = {"image_size": size, **fields}
    if recipe.model.type == "qkvit":
        config = QKViTConfig.from_size(recipe.model.size, **fields, **labels) if recipe.model.size else None
        return QKViTForImageClassification(config or QKViTConfig(**fields, **labels))
    if recipe.model.size:
        raise TrainingRefusedError(
            f"model.size={recipe.model.size!r} is for qkvit; write model.config for another type"
        )
    return AutoModelForImageClassification.from_config(AutoConfig.for_model(recipe.model.type, **fields, **labels))


def _started(recipe: Recipe, fields: dict[str, Any], labels: dict[str, Any], say: Callable[[str], Any]) -> nn.Module:
    start = str(recipe.model.start)
    look_for(start, "model")
    with hub_sentences(start):
        config = AutoConfig.from_pretrained(start)
        if recipe.model.type == "qkvit" and config.model_type != "qkvit":
            return _converted(start, fields, labels, say)
        if recipe.model.type != config.model_type:
            raise TrainingRefusedError(
                f"model.type={recipe.model.type!r}, and the weights of {start} are of {config.model_type!r}; write that"
            )
        if config.model_type == "qkvit":
            of_loss: dict[str, Any] = {}
        else:
            _check_fields(config, fields)
            of_loss = {name: value for name, value in fields.items() if name in _LOSS}
            fields = {name: value for name, value in fields.items() if name not in _LOSS}
        model, found = AutoModelForImageClassification.from_pretrained(
            start, **fields, **labels, ignore_mismatched_sizes=True, dtype="float32", output_loading_info=True
        )
    for name, value in of_loss.items():
        setattr(model.config, name, value)
    _check_whole(model, found, start, has_head=any("For" in name for name in config.architectures or ()))
    odd = sorted(
        name
        for name, before, now in found["mismatched_keys"]
        if before[1:] != now[1:] or now[0] != len(labels["id2label"])
    )
    if odd:
        raise TrainingRefusedError(f"model.config does not fit the weights of {start}: {', '.join(odd[:5])}; change it")
    new = {*found["missing_keys"], *(name for name, _, _ in found["mismatched_keys"])}
    if not _learnt(config, labels) and _forget_classes(model, new):
        say(_FORGOTTEN.format(start))
    return model


_FORGOTTEN = "The classifier of {} has learnt other classes, or these in another order: here it is new."


def _learnt(config: Any, labels: dict[str, Any]) -> bool:
    """Whether a model has learnt these classes; names that transformers made, LABEL_0, ..., may stand for any."""
    names = [config.id2label[index] for index in sorted(config.id2label)]
    made = [f"LABEL_{index}" for index in range(len(labels["id2label"]))]
    return names in (made, list(labels["id2label"].values()))


def _check_whole(model: Any, found: dict[str, Any], start: str, *, has_head: bool) -> None:
    """Refuse weights that lack a part before the classifier, which would be new, or have one that would be left out."""
    for what, names, why in (
        ("lack", found["missing_keys"], "the model has before its classifier"),
        ("have", found["unexpected_keys"], "the model has no place for"),
    ):
        headless = what == "have" and not has_head
        odd = sorted(name for name in names if _in_trunk(model, name, headless) and not _MAY_DIFFER.search(name))
        if odd:
            raise TrainingRefusedError(
                f"the weights of {start} {what} {odd[0]}, one of {len(odd)} tensors that {why}: leave out of"
                " model.config what differs from theirs, or start from other weights"
            )


# What a classifier may have anew or do without: a pooler, a mask token, and numbers that are no weights.
_MAY_DIFFER = re.compile(
    r"(^|\.)(pooler|mask_token|position_ids|relative_position_index|relative_coords_table|num_batches_tracked)(\.|$)"
)
_HEADS = ("classifier", "fc", "head")


def _in_trunk(model: Any, name: str, headless: bool = False) -> bool:
    """Whether a tensor stands before the classifier.

    Args:
        name: In the model, or in the file of a model.
        headless: The file is of a model without a head: its names lack the first part.
    """
    first, prefix = name.partition(".")[0], model.base_model_prefix
    base = getattr(model, prefix, None)
    if base is None:  # CLIP and others have their parts beside the classifier
        return hasattr(model, first) and first not in _HEADS
    return first == prefix or (headless and hasattr(base, first))


@torch.no_grad()
def _forget_classes(model: Any, new: set[str]) -> bool:
    """Give the layers that answer with classes their first values, but for those that are `new` already; whether there
    were others."""
    found = False
    for name, module in model.named_modules():
        answers = isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
        if answers and not _in_trunk(model, name) and f"{name}.weight" not in new:
            for parameter in module.parameters():
                parameter._is_hf_initialized = False  # transformers spares what it has loaded
            model._init_weights(module)
            found = True
    return found


def _converted(start: str, fields: dict[str, Any], labels: dict[str, Any], say: Callable[[str], Any]) -> nn.Module:
    """Weights of another family in a classifier of ours; its classifier comes along for the classes that it learnt."""
    from ..modeling.conversion import convert

    source = convert(start, dtype="float32")
    values = {name: value for name, value in source.config.to_diff_dict().items() if name not in _NOT_FIELDS}
    config = QKViTConfig(**{**values, **fields, **labels})
    config.image_processor_settings = getattr(source.config, "image_processor_settings", None)
    model = QKViTForImageClassification(config)
    base = getattr(source, "qkvit", source)
    ours, theirs = model.qkvit.state_dict(), base.state_dict()
    odd = sorted(name for name in ours.keys() ^ theirs.keys() if not name.startswith("pooler"))
    odd += sorted(name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape)
    if odd:
        raise TrainingRefusedError(f"model.config does not fit the weights of {start}: {', '.join(odd[:5])}; change it")
    model.qkvit.load_state_dict(theirs, strict=False)
    head = getattr(source, "classifier", None)
    if isinstance(head, nn.Linear) and _learnt(source.config, labels):
        model.classifier.load_state_dict(head.state_dict())
    elif isinstance(head, nn.Linear):
        say(_FORGOTTEN.format(start))
    model.settle()
    return model


_NOT_FIELDS = ("id2label", "label2id", "architectures", "auto_map", "model_type", "transformers_version", "dtype")


def image_size(data: Data, config: Any) -> tuple[int, int]:
    """(height, width) that the model is trained at."""
    size = data.image_size if data.image_size is not None else getattr(config, "image_size", 224)
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


@contextmanager
def taking(size: tuple[int, int]) -> Iterator[None]:
    """Inside, where a model first sees images of that size, one that does not take them is refused."""
    try:
        yield
    except TrainingRefusedError:
        raise
    except ValueError as error:
        reason = in_one_line(error)
        raise TrainingRefusedError(
            f"the model does not take images of {size[0]} x {size[1]} pixels: {reason}; change data.image_size"
        ) from error


def build_processor(data: Data, model: nn.Module, start: str | None) -> Any:
    """What makes of an image file what the model wants, in evaluation and once it is saved.

    It is the one of the weights that the model starts from, or resizes to the model's size and scales to [-1, 1]; the
    recipe's size, mean, standard deviation and crop go before. Training sees the same pixels.

    Raises:
        TrainingRefusedError: the processor of the start does something else to pixels than training can.
    """
    height, width = image_size(data, model.config)
    kept = _processor_of(model.config, start)
    if kept is not None and not is_plain(kept):
        if data.mean is None or data.std is None:
            raise TrainingRefusedError(
                f"the image processor of {start} does not make (x / 255 - mean) / std of each pixel, in RGB, as"
                " training does; set data.mean and data.std to train and evaluate with these"
            )
        kept = None
    mean, std = ((0.5,) * 3,) * 2 if kept is None else normalisation(kept)
    processor: Any
    if data.evaluation_crop is not None:
        from transformers import BitImageProcessorPil

        if height != width:
            raise TrainingRefusedError("data.evaluation_crop is for square images; leave it out")
        processor = BitImageProcessorPil(
            size={"shortest_edge": round(height / data.evaluation_crop)},
            crop_size={"height": height, "width": width},
            resample=3,
        )
    elif kept is not None and data.image_size is None and _gives(kept, height, width):
        processor = kept
    else:
        from transformers import ViTImageProcessorPil

        processor = ViTImageProcessorPil(size={"height": height, "width": width}, resample=3)
    processor.do_convert_rgb = processor.do_normalize = True
    processor.image_mean, processor.image_std = list(data.mean or mean), list(data.std or std)
    return processor


def normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by which a processor normalises pixels in [0, 1]: 0 and 1 if it does not."""
    if not getattr(processor, "do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3
    half = [0.5] * 3
    return (
        tuple(getattr(processor, "image_mean", None) or half),
        tuple(getattr(processor, "image_std", None) or half),
    )


def is_plain(processor: Any) -> bool:
    """Whether a processor makes (x / 255 - mean) / std of each pixel, in RGB: seen on a picture of one colour, because
    each family has other switches (another factor, BGR, a second normalisation)."""
    colour = (255, 0, 64)
    pixels = np.asarray(processor(images=Image.new("RGB", (64, 64), colour))["pixel_values"][0])
    mean, std = (np.array(values) for values in normalisation(processor))
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        return False
    middle = pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2]  # around it may be padding
    return np.allclose(middle, (np.array(colour) / 255 - mean) / std, atol=1e-4)


def _processor_of(config: Any, start: str | None) -> Any:
    settings = getattr(config, "image_processor_settings", None)
    if settings is not None:
        return _from_settings(settings)
    if start is None:
        return None
    try:
        return AutoImageProcessor.from_pretrained(start, backend="pil")
    except (OSError, ValueError, ImportError, TypeError):
        return None


def _from_settings(settings: dict[str, Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
        try:
            return AutoImageProcessor.from_pretrained(folder, backend="pil")
        except (OSError, ValueError, ImportError, TypeError):
            return None


def _gives(processor: Any, height: int, width: int) -> bool:
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    return size is not None and (size.get("height"), size.get("width")) == (height, width)
