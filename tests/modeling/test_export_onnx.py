"""torch.export and ONNX: one graph for any number of images of any size, checked against the model itself."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from qkvit import QKViTBackbone, QKViTForMaskedImageModeling, QKViTModel

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((1, 16, 16), (3, 8, 40), (2, 8, 8), (4, 32, 16))  # images, height, width; 16 x 16 is the trained size
ASKED = {"output_attentions": [0, -1], "output_qkv": [1]}
SHOWN = ["logits", "attentions.0", "attentions.1", "queries.1", "keys.1", "values.1"]
OPTIONS = {
    "plain": {},
    "rotary": {"position_embedding": "rope2d", "qk_norm": True, "num_register_tokens": 2, "mlp_type": "swiglu"},
    "sine": {"position_embedding": "sincos2d", "norm_type": "rmsnorm", "pooling": "class_mean", "pooler_act": "tanh"},
    "distilled": {"use_distillation_token": True, "position_coverage": "all", "position_antialias": True},
    "attention pooling": {"pooling": "attention", "use_class_token": False, "position_embedding": "none"},
}
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


@pytest.fixture(scope="module")
def example():
    """examples/export_onnx.py."""
    spec = importlib.util.spec_from_file_location("export_onnx_example", ROOT / "examples" / "export_onnx.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("options", ["sine", "distilled", "attention pooling"])  # the others go on to ONNX, below
def test_one_exported_program_serves_every_size(tiny_model, example, options):
    model = tiny_model(num_hidden_layers=2, **OPTIONS[options])
    program = example.export_program(model, **ASKED).module()
    for batch, *size in SIZES:
        pixels = torch.rand(batch, 3, *size)
        found = program(pixels)
        with torch.no_grad():
            expected = example.NamedOutputs(model, ASKED)(pixels)
        assert list(found) == list(expected)
        assert set(SHOWN) <= set(found)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("model_class", [QKViTModel, QKViTForMaskedImageModeling, QKViTBackbone])
def test_the_other_models_export_as_they_are(tiny_model, pixels, model_class):
    model = tiny_model(model_class, num_hidden_layers=2)
    model(pixels)  # the first call installs transformers' hooks for hidden states
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (torch.rand(2, 3, 8, 12),), dynamic_shapes={"pixel_values": sizes}).module()
    for batch, *size in SIZES:
        images = torch.rand(batch, 3, *size)
        with torch.no_grad():
            found, expected = program(images), model(images)
        assert type(found) is type(expected)
        torch.testing.assert_close(dict(found.items()), dict(expected.items()))


def test_an_exported_program_refuses_a_size_that_the_patch_does_not_divide(tiny_model, example):
    program = example.export_program(tiny_model(num_hidden_layers=1)).module()
    with pytest.raises(Exception, match="4"):
        program(torch.rand(1, 3, 18, 16))


def test_onnxruntime_computes_the_model_with_maps_and_qkv_at_every_size(tiny_model, example, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = tiny_model(num_hidden_layers=2, **OPTIONS["rotary"])
    names = example.export_onnx(model, tmp_path / "model.onnx", **ASKED)
    assert names == SHOWN
    for batch, *size in SIZES:
        differences = example.largest_difference(model, tmp_path / "model.onnx", torch.rand(batch, 3, *size), **ASKED)
        assert list(differences) == names
        assert max(differences.values()) < 1e-5


def test_the_example_writes_checks_and_says_what_it_wrote(tiny_model, example, tmp_path, monkeypatch, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", str(tmp_path / "model"), str(tmp_path / "model.onnx")])
    example.main()
    first, *checked = capsys.readouterr().out.splitlines()[-3:]
    assert first == f"{tmp_path / 'model.onnx'}: logits"
    for size, line in zip(("1 x 16 x 16", "3 x 20 x 8"), checked, strict=True):
        told, _, difference = line.partition(" by ")
        assert told == f"{size}: onnxruntime differs"
        assert float(difference.split()[0]) < 1e-5


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--attentions"], {"output_attentions": True}),
        (["--attentions", "0,-1", "--qkv"], {"output_attentions": [0, -1], "output_qkv": True}),
        (["--qkv", "-1"], {"output_qkv": [-1]}),
    ],
)
def test_the_example_asks_for_the_layers_that_are_named(tiny_model, example, tmp_path, monkeypatch, options, asked):
    class AskedError(Exception):
        pass

    def export(model, path, **given):
        raise AskedError(given)

    monkeypatch.setattr(example, "export_onnx", export)
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", str(tmp_path / "model"), "model.onnx", *options])
    with pytest.raises(AskedError) as caught:
        example.main()
    assert caught.value.args == (asked,)
