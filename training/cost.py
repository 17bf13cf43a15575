"""What a model costs: operations an image, and memory. The model and its weights stay as they are."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(model: nn.Module, size: tuple[int, int]) -> int:
    """Floating-point operations of the matrix products of one image's forward pass, attention included; a
    multiplication and an addition are two.

    Args:
        size: (height, width).

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForImageClassification
    >>> config = QKViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, num_labels=10)
    >>> layer = 2 * 5 * (4 * 64 * 64 + 2 * 64 * 256) + 4 * 5 * 5 * 64  # 5 tokens: projections, MLP, attention
    >>> forward_flops(QKViTForImageClassification(config), (32, 32)) == 2 * layer + 2 * 4 * 768 * 64 + 2 * 64 * 10
    True

    ```
    """

    def run(model: nn.Module) -> None:
        with torch.no_grad():
            model(pixel_values=_image(model, size))

    return _counted(model, size, run)


def training_flops(model: nn.Module, size: tuple[int, int]) -> int:
    """Floating-point operations of the matrix products of one image's forward and backward pass.

    Near three times `forward_flops` where everything is trained; near once where only the head is. What activation
    checkpointing computes twice counts once. Patches that patch dropout leaves out are not counted.

    Args:
        size: (height, width).

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForImageClassification
    >>> config = QKViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, num_labels=10)
    >>> model = QKViTForImageClassification(config)
    >>> patches = 2 * 4 * 768 * 64  # pixels need no gradient
    >>> training_flops(model, (32, 32)) == 3 * forward_flops(model, (32, 32)) - patches
    True

    ```
    """

    def run(model: nn.Module) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for module in model.modules():
            if hasattr(module, "drop_patches"):
                module.training = True  # patch dropout, and nothing else, as in training; not what is inside
        with torch.enable_grad():
            logits = model(pixel_values=_image(model, size)).logits
            if trained and logits.requires_grad:
                torch.autograd.grad(logits, trained, torch.ones_like(logits), allow_unused=True)

    return _counted(model, size, run)


def _counted(model: nn.Module, size: tuple[int, int], run: Callable[[nn.Module], None]) -> int:
    """Operations of the matrix products while `run` runs the model in evaluation mode.

    A copy is run whose tensors have shapes and no numbers: the maps of 4,097 tokens would be 0.8 GB a layer of base/16,
    and the backward pass keeps them all. The model itself is run where it cannot be copied, or its code looks at
    numbers; and where it is small, with a small image, for shapes, worked out in Python, take several times as long.
    """
    is_small = sum(parameter.numel() for parameter in model.parameters()) <= 10**6 and math.prod(size) <= 32**2
    if not is_small:
        # Whatever goes wrong, code of others among it: if the reason is another one, the model itself will tell.
        with suppress(Exception):
            return _operations(_without_numbers(model), run)
    return _operations(model, run)


def _without_numbers(model: nn.Module) -> nn.Module:
    shapes: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        shapes[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, shapes)


def _operations(model: nn.Module, run: Callable[[nn.Module], None]) -> int:
    # torch counts every product of "eager" attention, but not those of all fused kernels.
    config: Any = model.config
    implementation = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        with _mode(model, training=False), FlopCounterMode(display=False) as counter:
            run(model)
    finally:
        config._attn_implementation = implementation
    return int(counter.get_total_flops())


def activation_bytes(model: nn.Module, size: tuple[int, int]) -> int:
    """Bytes that one image's forward pass keeps for the backward pass, weights not counted.

    Batch normalisation runs as in evaluation: it could not normalise one image, and would learn from it.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with _mode(model, training=True), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(pixel_values=_image(model, size))
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return sum(storage.nbytes() for storage in kept.values())


def memory_estimate(
    model: nn.Module, size: tuple[int, int], batch_size: int, *, averaged: bool, moments: int
) -> dict[str, int]:
    """Bytes in float32 on one process, by what they are for.

    An estimate: the allocator's reserve, temporary memory of kernels and the data loader are not in it, and mixed
    precision, compilation and activation checkpointing lower the part of the activations.

    Args:
        batch_size: Of a process.
        averaged: Whether an average of the weights is kept.
        moments: Numbers that the optimiser keeps.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "weights": 4 * total,
        "gradients": 4 * trained,
        "optimizer": 4 * moments,
        "average": 4 * total if averaged else 0,
        "activations": batch_size * activation_bytes(model, size),
    }


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.train(training)
    for module in before:
        if isinstance(module, _BatchNorm):
            module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, was in before.items():
            module.training = was


def _image(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    channels: Any = getattr(model.config, "num_channels", 3)
    return torch.zeros(1, channels, *size, device=next(model.parameters()).device)
