"""What the tests of `clip` and `siglip` share: the vision tower inside a whole model."""

from pathlib import Path

import torch
from harness import KEY_BIAS, Case, Outputs, assert_same_tensors, called, difference, flat, images
from torch import nn

from qkvit.modeling.conversion import convert, export

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Tensors of a whole model that its vision tower does not have.
WHOLE = (KEY_BIAS, r"text_", "visual_projection", "logit_")


def tower_outputs(model: nn.Module, pixels: torch.Tensor, mask: torch.Tensor | None) -> Outputs:
    """Outputs of the classifier, or of the vision tower inside a model."""
    if hasattr(model, "classifier"):
        return flat(model(pixels, output_hidden_states=True, interpolate_pos_encoding=True))
    return called(model.vision_model, pixels, mask)


def check_whole_model_round_trip(case: Case, folder: Path, *, apart: str) -> None:
    """All tensors but those that match `apart` come back."""
    case.model(torch.float32).save_pretrained(folder / "source")
    ours = convert(folder / "source")
    assert_same_tensors(folder / "source", export(ours, folder / "out"), apart=apart)


def check_exported_loads(case: Case, model_class, folder: Path, *, missing: set[str]) -> None:
    """Their class reads what is exported, lacks nothing but `missing`, and gives the same outputs."""
    theirs = case.model()
    export(convert(theirs), folder / "out")
    again, report = model_class.from_pretrained(folder / "out", output_loading_info=True, dtype=torch.float64)
    assert {name.removeprefix("vision_model.") for name in report["missing_keys"]} == missing
    assert not report["unexpected_keys"]
    again.eval()
    pixels = images(*case.sizes[1])
    with torch.no_grad():
        found = tower_outputs(again, pixels, None) if hasattr(again, "classifier") else called(again, pixels, None)
    assert difference(found, case.theirs(theirs, pixels)) < 1e-12
