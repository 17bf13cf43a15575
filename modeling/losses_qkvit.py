"""Losses of classification: cross-entropy with label smoothing, soft targets, binary, multi-label, regression.

Shapes: B batch, K labels.
"""

from typing import Any

import torch
from torch import nn

from .checks_qkvit import may_look_at_values


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> torch.Tensor:
    """The mean loss of a batch; which one follows from the labels and the configuration.

    - integer labels (B,): cross-entropy, with `config.label_smoothing`; with `config.classification_loss =
      "binary_cross_entropy"` the sum over labels of BCE against (smoothed) one-hot targets, as big_vision has it
      (DeiT III, arXiv 2204.07118, takes the mean over labels). -100 leaves a sample out.
    - float labels (B, K): cross-entropy against them, for which their rows sum to 1 (mixup, distillation), or BCE.
    - `config.problem_type = "multi_label_classification"`: labels (B, K) in [0, 1], mean BCE.
    - `config.problem_type = "regression"`, or a single label: mean squared error.

    Args:
        logits: (B, K).

    Raises:
        ValueError: the labels have the wrong shape or type, or one is out of range or not a number.

    Example:

    ```python
    >>> from qkvit import QKViTConfig
    >>> logits = torch.zeros(2, 4)
    >>> round(classification_loss(logits, torch.tensor([0, 3]), QKViTConfig(num_labels=4)).item(), 4)  # log 4
    1.3863

    ```
    """
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"labels is a {type(labels).__name__}; pass a tensor, such as torch.tensor([3, 7])")
    labels = labels.to(logits.device)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    num_labels = logits.shape[-1]
    if config.problem_type == "regression" or (config.problem_type is None and num_labels == 1):
        return nn.functional.mse_loss(logits, _as_targets(labels, logits))
    if config.problem_type == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, _as_shares(labels, logits))
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"problem_type={config.problem_type!r} is not known; set it to 'single_label_classification',"
            " 'multi_label_classification' or 'regression', or None"
        )
    if labels.is_floating_point():
        targets = _as_shares(labels, logits)
        if config.classification_loss == "binary_cross_entropy":
            return _summed_bce(logits, targets, config.label_smoothing)
        sums = targets.sum(dim=-1)
        _refuse_others(
            (sums - 1).abs() < 0.01,
            sums,
            "is the sum of an image's soft targets, not 1: pass probabilities, or a config with"
            " problem_type='multi_label_classification'",
        )
        return nn.functional.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)

    check_class_labels(labels, len(logits), num_labels)
    labels = labels.reshape(-1).long()
    counted = labels != -100
    if config.classification_loss == "binary_cross_entropy":
        targets = nn.functional.one_hot(labels.clamp(min=0), num_labels).to(logits.dtype)
        return _summed_bce(logits, targets, config.label_smoothing, counted)
    # The mean by hand, because torch's is 0 / 0 where every sample is left out.
    summed = nn.functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="sum")
    return summed / counted.sum().clamp(min=1)


def _summed_bce(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """BCE summed over the labels, mean over the samples."""
    targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=-1)  # (B,)
    return loss.mean() if counted is None else (loss * counted).sum() / counted.sum().clamp(min=1)


def _as_targets(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Labels as float targets (B, K), or an error that names both shapes."""
    fits = labels.shape == logits.shape or (logits.shape[-1] == 1 and labels.numel() == logits.numel())
    if not fits:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)};"
            " pass one number per sample and label"
        )
    return labels.reshape(logits.shape).to(logits.dtype)


def _as_shares(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The same for targets that are probabilities."""
    targets = _as_targets(labels, logits)
    _refuse_others((targets >= 0) & (targets <= 1), targets, "is outside [0, 1]: pass each label's probability")
    return targets


def check_class_labels(labels: torch.Tensor, batch_size: int, num_labels: int) -> None:
    """Refuse class labels that are not one integer in [0, num_labels) per image (-100 leaves a sample out)."""
    if labels.dtype == torch.bool or labels.numel() != batch_size:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} for {batch_size} images; pass one class"
            f" index per image, or floats of shape ({batch_size}, {num_labels}) for soft targets"
        )
    valid = ((labels >= 0) & (labels < num_labels)) | (labels == -100)
    _refuse_others(
        valid, labels, f"is outside [0, {num_labels}): pass labels of that range, or a config with more num_labels"
    )


def _refuse_others(valid: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    """Raise where a label is not valid; the first such label opens the message."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if labels.device.type == "cpu":
        if not may_look_at_values(labels):
            return
        if not valid.all():
            raise ValueError(f"label {labels[~valid][0].item()} {message}")
    else:  # no waiting for the device in the middle of a training step
        torch._assert_async(valid.all(), f"a label {message}")
