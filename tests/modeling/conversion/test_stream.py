"""Converting from folder to folder gives the files that converting and saving gives."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification

from qkvit.modeling.conversion import convert, convert_folder
from qkvit.modeling.conversion.stream import write_safetensors

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def models():
    yield ViTForImageClassification(ViTConfig(**SIZE, intermediate_size=24, num_labels=3))
    yield Dinov2Model(Dinov2Config(**SIZE, use_swiglu_ffn=True)).to(torch.bfloat16)


@pytest.mark.parametrize("theirs", models(), ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_folder_is_the_same(theirs, dtype, tmp_path):
    theirs.save_pretrained(tmp_path / "source")
    expected, found = tmp_path / "expected", tmp_path / "found"
    found.mkdir()
    model = convert(tmp_path / "source", dtype=dtype)
    model.save_pretrained(expected)
    assert convert_folder(tmp_path / "source", found, dtype=dtype) == type(model).__name__
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in expected.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_file_is_that_of_the_library(tmp_path):
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(7).to(torch.bfloat16),
        "whole numbers": torch.arange(3),
        "one": torch.tensor(2.0),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False, True]),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "ours", shapes, dtypes, list(tensors.items())[::-1])
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
