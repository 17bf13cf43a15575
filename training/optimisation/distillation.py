"""Learning from another model: hard and soft distillation, with DeiT's distillation token where the model has one.

Shapes: B images, K labels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ...configuration.hub_errors import hub_sentences
from ...configuration.reasons import in_one_line
from ...data.hub_names import look_for
from ...modeling.losses_qkvit import classification_loss
from ...modeling.tensor_digest import tensor_digest
from ..errors import TrainingRefusedError
from ..models import is_plain, normalisation
from ..recipe_distillation import Distillation


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor, settings: Distillation) -> torch.Tensor:
    """What the teacher's share of the loss is of, a mean over the images.

    - "hard": cross-entropy with the teacher's choice (Touvron et al. 2021, arXiv 2012.12877, eq. 3).
    - "soft": tau^2 KL(softmax(teacher / tau) || softmax(logits / tau)) (Hinton et al. 2015, arXiv 1503.02531). DeiT's
      program divides it by B K instead of B.

    Args:
        logits, teacher: (B, K).

    Example:

    ```python
    >>> distillation_loss(torch.zeros(1, 4), torch.tensor([[0.0, 9.0, 0.0, 0.0]]), Distillation()).exp()
    tensor(4.)

    ```
    """
    logits, teacher = logits.float(), teacher.float()
    if settings.kind == "hard":
        return F.cross_entropy(logits, teacher.argmax(-1))
    tau = settings.temperature
    wanted, given = (teacher / tau).log_softmax(-1), (logits / tau).log_softmax(-1)
    return tau**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)


def parts(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that learn from the labels, and those that learn from the teacher: of the class token and of the
    distillation token, or both times the logits of a model that has no such token."""
    distilled = getattr(outputs, "distillation_logits", None)
    if distilled is None:
        return outputs.logits, outputs.logits
    # The model gives the mean of both. Its gradient reaches the other classifier as 2 / 2 - 1 = 0, exactly.
    return 2 * outputs.logits.float() - distilled.float(), distilled


class Teacher:
    """A classifier that is asked and never trained.

    It sees the pixels that the student sees, augmented and mixed, with its own normalisation and in its own size.

    Args:
        model: Of the teacher.
        processor: Its image processor: mean, standard deviation, size.
        settings: The recipe's.
        order: The teacher's class for each of ours; `None`: the same.
    """

    def __init__(
        self, model: nn.Module, processor: Any, settings: Distillation, order: list[int] | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.settings = settings
        self.order = order
        self.size = _size(model.config, processor)
        self.theirs = normalisation(processor)
        self.ours = self.theirs
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def prepare(self, processor: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> "Teacher":
        """Learn how the student's pixels are normalised, and in which precision to compute."""
        self.ours, self.autocast = normalisation(processor), autocast
        return self

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in the order of our classes, of the student's pixels (B, 3, height, width)."""
        if next(self.model.parameters()).device != pixels.device:
            self.model.to(pixels.device)
        with self.autocast():
            logits = self.model(pixel_values=self.view(pixels)).logits
        return logits if self.order is None else logits[:, self.order]

    def view(self, pixels: torch.Tensor) -> torch.Tensor:
        """The student's pixels as the teacher wants them."""
        if self.ours != self.theirs:
            (mean, std), (their_mean, their_std) = (
                tuple(pixels.new_tensor(values).view(1, -1, 1, 1) for values in each)
                for each in (self.ours, self.theirs)
            )
            pixels = (pixels * std + mean - their_mean) / their_std
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", align_corners=False, antialias=True)
        return pixels

    def loss(self, outputs: Any, pixels: torch.Tensor, targets: torch.Tensor, config: Any) -> torch.Tensor:
        """(1 - alpha) loss of the labels + alpha loss of the teacher.

        Args:
            outputs: The student's.
            config: See `classification_loss`.
        """
        own, distilled = parts(outputs)
        alpha = self.settings.alpha
        taught = distillation_loss(distilled, self(pixels), self.settings)
        return (1 - alpha) * classification_loss(own, targets, config) + alpha * taught

    def fingerprint(self) -> dict[str, str]:
        """What has to be the same when a run goes on."""
        return {"teacher": tensor_digest(self.model.state_dict().items())[:16]}


def check_teacher(settings: Distillation) -> None:
    """Refuse a teacher that is neither here nor on the Hub."""
    if settings.teacher is not None:
        try:
            look_for(settings.teacher, "model")
        except ValueError as error:
            raise _unreadable(settings.teacher, error) from error


def open_teacher(settings: Distillation, class_names: list[str], *, multi_label: bool = False) -> Teacher | None:
    """The teacher of a recipe, or None.

    Raises:
        TrainingRefusedError: it cannot be read, has no classifier of its own or other classes.
    """
    if settings.teacher is None:
        return None
    if multi_label:
        raise TrainingRefusedError("distillation is for one label an image; leave distillation.teacher out")
    check_teacher(settings)
    try:
        with hub_sentences(settings.teacher):
            model, info = AutoModelForImageClassification.from_pretrained(
                settings.teacher, output_loading_info=True, dtype="float32"
            )
            processor = AutoImageProcessor.from_pretrained(settings.teacher, backend="pil")
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise _unreadable(settings.teacher, error) from error
    if info["missing_keys"]:
        raise TrainingRefusedError(
            f"the teacher {settings.teacher} lacks {min(info['missing_keys'])}: give one that was trained to classify"
        )
    if not is_plain(processor):
        raise TrainingRefusedError(
            f"the image processor of the teacher {settings.teacher} does not make (x / 255 - mean) / std of each pixel,"
            " in RGB, as training does; give another teacher"
        )
    return Teacher(model, processor, settings, _order(settings, model.config, class_names))


def _unreadable(teacher: str, error: Exception) -> TrainingRefusedError:
    reason = in_one_line(error)
    return TrainingRefusedError(f"the teacher {teacher} cannot be read: {reason}")


def _order(settings: Distillation, config: Any, class_names: list[str]) -> list[int] | None:
    theirs = [str(config.id2label[index]) for index in range(config.num_labels)]
    if len(theirs) != len(class_names):
        raise TrainingRefusedError(
            f"the teacher {settings.teacher} has {len(theirs)} classes and the data {len(class_names)}: give a teacher"
            " of the same classes"
        )
    if settings.match_labels == "by_order" or theirs == class_names:
        return None
    if sorted(theirs) != sorted(class_names) or len(set(theirs)) < len(theirs):
        odd = sorted(set(class_names) - set(theirs)) or class_names
        raise TrainingRefusedError(
            f"the teacher {settings.teacher} has no class called {odd[0]!r} (its first one is {theirs[0]!r}): give a"
            " teacher of the same classes, or set distillation.match_labels to by_order if its classes have our order"
        )
    return [theirs.index(name) for name in class_names]


def _size(config: Any, processor: Any) -> tuple[int, int]:
    """(height, width) that the model was made for, or else that its processor makes."""
    size = getattr(config, "image_size", None)
    if size is None:
        given = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        size = (given["height"], given["width"]) if "height" in given else given["shortest_edge"]
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
