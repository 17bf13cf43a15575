"""`intervene`: put other numbers in the place of queries, keys, values, scores, maps or outputs, while a model runs."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from .attention_door import Session
from .attention_layers import chosen
from .attention_product import AttentionCall
from .recording import TENSORS
from .replacements import MAPS, TARGET_NUMBERS, OtherImage, Replacement

Edits = Mapping[tuple[Any, str], Replacement | Sequence[Replacement]]


def intervene(model: Any, edits: Edits) -> AbstractContextManager[None]:
    """Edit attention in every forward pass inside the context.

    | tensor | what is replaced | the layer's product |
    |---|---|---|
    | "query", "key", "value" | what enters the product: after bias, QK-norm, rotary positions | on its fast backend |
    | "output" | the heads' output P V, before the output projection | on its fast backend |
    | "scores" | S = scaling * Q K^T, before the mask is added | step by step |
    | "attention" | P = softmax(S + mask), before dropout; rows are not normalised again | step by step |

    The replacements: `Zero`, `Given`, `Mean`, `Noise`, `OtherImage`, `Apply`, each for chosen heads and tokens.
    Several on one tensor are applied in their order; of nested contexts, the outer one first.

    Args:
        model: As `record` takes it.
        edits: (layer, tensor) -> a replacement or several. A layer is a number, negative ones from the end, several
            numbers, or `None` for all.

    Raises:
        ValueError: at once, for a layer, name or model that it cannot be; in the forward pass, for heads, tokens,
            shapes or data types that do not fit; and on leaving the context, for an edit that never reached the
            computation.

    An edit is never ignored in silence. A compiled model is refused: edit it as it was before torch.compile. Gradient
    checkpointing (enabled before the context) computes the edited layer again, also after the context was left. The
    model's own `output_attentions` and `output_qkv` may show what was there before an edit: use `record`.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> from qkvit.analysis import OtherImage, Zero, intervene, record
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> model = QKViTModel(config).eval()
    >>> edits = {(0, "key"): OtherImage(heads=[0, 2]), (-1, "attention"): Zero(key_tokens=0)}
    >>> with torch.no_grad(), intervene(model, edits), record(model, tensors="attention") as recording:
    ...     _ = model(torch.rand(2, 3, 32, 32))
    >>> recording[-1].attention[..., 0].abs().max()  # nobody sees the class token in the last layer
    tensor(0.)

    ```
    """
    return _EditSession(model, edits)


class _EditSession(Session):
    alters = True

    def __init__(self, model: Any, edits: Edits) -> None:
        super().__init__(model)
        self.edits: dict[tuple[int, str], tuple[Replacement, ...]] = {}
        if not isinstance(edits, Mapping) or not edits:
            raise ValueError('edits holds nothing to replace; pass {(layer, "key"): Zero()}, for example')
        for place, given in edits.items():
            layers, target = self._checked_place(place)
            replacements = (given,) if isinstance(given, Replacement) else given
            _check_replacements(place, target, replacements)
            for layer in layers:
                self.edits[layer, target] = (*self.edits.get((layer, target), ()), *replacements)
        self.applied: dict[tuple[int, str], int] = {}

    def _checked_place(self, place: Any) -> tuple[list[int], str]:
        if not isinstance(place, tuple) or len(place) != 2:
            raise ValueError(f'edits has the key {place!r}; pass (layer, tensor), such as (0, "key")')
        layers, target = place
        if target not in TENSORS:
            raise ValueError(f"edits has the tensor {target!r}; pass one of {', '.join(TENSORS)}")
        return chosen(layers, self.modules, what="edits: layer"), target

    def __enter__(self) -> None:
        super().__enter__()
        self.applied = dict.fromkeys(self.edits, 0)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if any(error):
            return  # that error says more than that edits are missing
        missed = [f"{target} of layer {layer}" for (layer, target), count in self.applied.items() if not count]
        if missed:
            raise ValueError(
                f"edits of {type(self.model).__name__} never reached the computation ({', '.join(missed)}): run the"
                " model inside the context, as it was before torch.compile, export or tracing"
            )

    def needs_maps(self, layer: int) -> bool:
        return any(self.replaces(layer, target) for target in MAPS)

    def replaces(self, layer: int, target: str) -> bool:
        return (layer, target) in self.edits

    def edit(self, target: str, tensor: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        layer = self.layers[call.module]
        for number, replacement in enumerate(self.edits.get((layer, target), ())):
            try:
                if isinstance(replacement, OtherImage):
                    replacement.check_images(tensor, self.passes.images)
                tensor = replacement.apply(target, tensor, (layer, TARGET_NUMBERS[target], call.number, number))
            except ValueError as error:
                raise ValueError(f"edit of the {target} of layer {layer}: {error}") from None
        if (layer, target) in self.applied:
            self.applied[layer, target] += 1
        return tensor


def _check_replacements(place: Any, target: str, replacements: Any) -> None:
    if not isinstance(replacements, Sequence) or not replacements:
        kind = "a class" if isinstance(replacements, type) else f"a {type(replacements).__name__}"
        raise ValueError(f"edits[{place!r}] is {kind}; pass a replacement such as Zero(), or several")
    for replacement in replacements:
        if not isinstance(replacement, Replacement):
            raise ValueError(
                f"edits[{place!r}] has a {type(replacement).__name__}; pass Zero(), Given(tensor), Mean(tensor),"
                " Noise(), OtherImage() or Apply(function)"
            )
        if replacement.key_tokens is not None and target not in MAPS:
            raise ValueError(
                f"edits[{place!r}] has key_tokens, which scores and attention alone have; choose tokens with tokens="
            )
