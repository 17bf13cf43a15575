"""Write a model as ONNX, for any number of images of any size that the patch divides, and check it with onnxruntime.

    pip install ".[onnx]"
    python examples/export_onnx.py MODEL vit.onnx
    python examples/export_onnx.py MODEL vit.onnx --attentions --qkv -1

MODEL is a QKViT folder or a Hub id. The outputs are named: `logits` (or `last_hidden_state` and `pooler_output`),
`attentions.0`, `attentions.1`, ..., `queries.11`, `keys.11`, `values.11` for the layers that were asked for.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

import qkvit

LAYERS = ("attentions", "queries", "keys", "values")


class NamedOutputs(nn.Module):
    """The model with its tensors in a flat dictionary: what is None is left out."""

    def __init__(self, model: nn.Module, asked: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.asked = asked

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, channels, height, width) -> tensors by name."""
        named = {}
        for name, value in self.model(pixel_values, **self.asked).items():
            if name in LAYERS:
                named |= {f"{name}.{layer}": tensor for layer, tensor in enumerate(value) if tensor is not None}
            else:
                named[name] = value
        return named


def export_program(model: nn.Module, **asked: Any) -> torch.export.ExportedProgram:
    """`torch.export.export` with the number, height and width of the images left open.

    Args:
        model: A QKViT model, in eval mode.
        asked: `output_attentions` and `output_qkv`, as for the model's forward.
    """
    config = model.config
    height, width = (2 * patch for patch in config.patch_shape)  # an example only; a size of 1 would be taken as fixed
    pixel_values = torch.zeros(2, config.num_channels, height, 2 * width)
    sizes = {0: Dim("batch"), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return torch.export.export(NamedOutputs(model, asked), (pixel_values,), dynamic_shapes={"pixel_values": sizes})


def export_onnx(model: nn.Module, path: str | Path, **asked: Any) -> list[str]:
    """Write `path`; the names of the outputs, in their order. The arguments are those of `export_program`."""
    program = export_program(model, **asked)
    height, width = (2 * patch for patch in model.config.patch_shape)
    with torch.no_grad():
        names = list(program.module()(torch.zeros(1, model.config.num_channels, height, width)))
    onnx_program = torch.onnx.export(program, dynamo=True, output_names=names, verbose=False)
    assert onnx_program is not None
    onnx_program.save(path)
    return names


def largest_difference(
    model: nn.Module, path: str | Path, pixel_values: torch.Tensor, **asked: Any
) -> dict[str, float]:
    """What onnxruntime and the model differ by, output by output, relative to the largest number of the output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    found = session.run(None, {argument.name: pixel_values.numpy()})
    with torch.no_grad():
        expected = NamedOutputs(model, asked)(pixel_values)
    names = [output.name for output in session.get_outputs()]
    assert names == list(expected), f"the file has {names}, the model {list(expected)}"
    return {
        name: float((torch.from_numpy(array) - expected[name]).abs().max() / expected[name].abs().max())
        for name, array in zip(names, found, strict=True)
    }


def layers(text: str) -> Any:
    """`"all"` or comma-separated indices, as an argument of the model's forward."""
    return True if text == "all" else [int(index) for index in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a QKViT folder or a Hub id")
    parser.add_argument("path", help="the .onnx file to write")
    parser.add_argument("--attentions", nargs="?", const="all", type=layers, help="all layers, or 0,-1")
    parser.add_argument("--qkv", nargs="?", const="all", type=layers, help="all layers, or 0,-1")
    given = parser.parse_args()
    asked = {"output_attentions": given.attentions, "output_qkv": given.qkv}
    asked = {name: True if value == "all" else value for name, value in asked.items() if value is not None}

    config = qkvit.QKViTConfig.from_pretrained(given.model)
    classifies = "QKViTForImageClassification" in (config.architectures or [])
    model_class = qkvit.QKViTForImageClassification if classifies else qkvit.QKViTModel
    model = model_class.from_pretrained(given.model).float().eval()
    names = export_onnx(model, given.path, **asked)
    print(f"{given.path}: {', '.join(names)}")

    (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
    for batch, size in ((1, (height, width)), (3, (height + patch_height, max(patch_width, width - 2 * patch_width)))):
        images = torch.rand(batch, config.num_channels, *size)
        worst = max(largest_difference(model, given.path, images, **asked).items(), key=lambda item: item[1])
        print(f"{batch} x {size[0]} x {size[1]}: onnxruntime differs by {worst[1]:.1e} at most ({worst[0]})")


if __name__ == "__main__":
    main()
