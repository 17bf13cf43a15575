"""A model that is pushed to the Hub is whole there, and loads from there, with the package and without it."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from transformers.utils import SAFE_WEIGHTS_NAME as WEIGHTS

from qkvit.modeling.checksums_qkvit import SUMS
from qkvit.modeling.shipping import AUTO_MAP, flat_sources

MEAN = [0.1, 0.2, 0.3]

PUSH = """
from qkvit import QKViTForImageClassification

QKViTForImageClassification.from_pretrained("first").push_to_hub("me/pushed")
second = QKViTForImageClassification.from_pretrained("second")
second.save_pretrained("again", push_to_hub=True, repo_id="me/pushed")
second.save_pretrained("another", push_to_hub=True, repo_id="me/another")
"""

LOAD = """
import sys
import torch
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForImageClassification

first, trust = sys.argv[1], {"trust_remote_code": True} if sys.argv[2] == "shipped" else {}
pixels = torch.load("pixels.pt")
with torch.no_grad():
    model = AutoModelForImageClassification.from_pretrained("me/pushed", **trust)
    base = AutoModel.from_pretrained("me/pushed", **trust)
    backbone = AutoBackbone.from_pretrained("me/pushed", out_indices=[1, 3], **trust)
    found = {
        "logits": model(pixels).logits,
        "tokens": base(pixels).last_hidden_state,
        "maps": backbone(pixels).feature_maps,
        "earlier": AutoModelForImageClassification.from_pretrained("me/pushed", revision=first, **trust)(pixels).logits,
        "mean": list(AutoImageProcessor.from_pretrained("me/pushed", **trust).image_mean),
        "classes": [f"{type(each).__module__}.{type(each).__qualname__}" for each in (model, base, backbone)],
        "imported": [name for name in sys.modules if name.partition(".")[0] == "qkvit"],
    }
AutoModel.from_pretrained("me/pushed", revision=first, cache_dir="cache", **trust).save_pretrained("kept")
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def models(tiny_model):
    return [tiny_model(seed=seed, out_indices=[1, 3]) for seed in (0, 1)]


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pushed(hub, models, python, tmp_path_factory) -> Path:
    """The folder of the process that pushed two models, one after the other, as me/pushed."""
    work = tmp_path_factory.mktemp("push")
    for name, model in zip(("first", "second"), models, strict=True):
        model.save_pretrained(work / name)
        processor = work / name / "preprocessor_config.json"
        processor.write_text(json.dumps(json.loads(processor.read_text()) | {"image_mean": MEAN}))
    python(work, PUSH)
    return work


@pytest.fixture(scope="module", params=["shipped", "installed"])
def loaded(request, hub, pushed, pixels, python, tmp_path_factory) -> tuple[str, dict]:
    """What a process with an empty cache loads, by the code that came with the model, or by the package."""
    work = tmp_path_factory.mktemp("load")
    torch.save(pixels, work / "pixels.pt")
    script = LOAD if request.param == "shipped" else f"import qkvit\n{LOAD}"
    first = hub.commits["models", "me/pushed"][1].id
    python(work, script, first, request.param, installed=request.param == "installed")
    kept = json.loads((work / "kept" / "preprocessor_config.json").read_text())
    return request.param, torch.load(work / "found.pt") | {"kept mean": kept["image_mean"]}


# ---- what is there


@pytest.mark.parametrize("name", ["me/pushed", "me/another"])
def test_what_is_pushed_is_whole(hub, pushed, name):
    files = hub.files(name)
    assert files.keys() >= {*flat_sources(), "config.json", WEIGHTS, SUMS, "preprocessor_config.json", "README.md"}
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert json.loads(files["preprocessor_config.json"])["image_mean"] == MEAN


def test_the_sums_are_those_of_the_weights_in_each_commit(hub, pushed):
    """Where a model is pushed over another one, its sums are too."""
    _, first, second = hub.commits["models", "me/pushed"]
    for commit in (first, second):
        assert hub.content(commit.files[SUMS]).decode() == f"{commit.files[WEIGHTS]}  {WEIGHTS}\n"
    assert first.files[WEIGHTS] != second.files[WEIGHTS]
    assert sha256((pushed / "second" / WEIGHTS).read_bytes()).hexdigest() == second.files[WEIGHTS]


# ---- what loads


def test_logits_features_and_maps_are_the_same_from_the_hub(loaded, models, pixels):
    found, (first, second) = loaded[1], models
    with torch.no_grad():
        expected = {
            "logits": second(pixels).logits,
            "tokens": second.qkvit(pixels).last_hidden_state,
            "earlier": first(pixels).logits,
        }
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    assert [tuple(features.shape) for features in found["maps"]] == [(2, 32, 4, 4)] * 2
    assert not torch.equal(found["logits"], found["earlier"])


def test_the_image_processor_comes_along(loaded):
    assert loaded[1]["mean"] == loaded[1]["kept mean"] == MEAN


def test_the_code_is_the_shipped_one_or_the_installed_one(loaded):
    way, found = loaded
    start = "qkvit.modeling." if way == "installed" else "transformers_modules."
    assert all(name.startswith(start) for name in found["classes"])
    names = [name.rpartition(".")[2] for name in found["classes"]]
    assert names == ["QKViTForImageClassification", "QKViTModel", "QKViTBackbone"]
    assert bool(found["imported"]) == (way == "installed")
