"""A model that brings code of its own is run when the user says so, and told of in one sentence otherwise."""

import json
import signal

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from qkvit.cli import main
from qkvit.errors import UserError
from qkvit.pretrained import load_image_processor, load_pretrained

CODE = """
from transformers import ViTConfig, ViTForImageClassification


class OwnConfig(ViTConfig):
    model_type = "own_code"


class OwnClassifier(ViTForImageClassification):
    config_class = OwnConfig
"""
NEEDS_TRUST = "brings code of its own, which would run here: read its files, and pass --trust-remote-code if you"


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A classifier of two classes whose type only the code beside it knows."""
    folder = tmp_path_factory.mktemp("brought") / "own"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_code", "id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    config["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForImageClassification": "own_code.OwnClassifier",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_code.py").write_text(CODE)
    return folder


def test_code_is_run_when_trusted(brought, code_of_models):
    model, missing = load_pretrained(AutoModelForImageClassification, str(brought), "cpu", trust_remote_code=True)
    assert type(model).__name__ == "OwnClassifier"
    assert not missing
    assert not model.training
    assert load_image_processor(str(brought), trust_remote_code=True).size["height"] == 16


def test_code_is_not_run_otherwise(brought):
    for auto_class in (AutoModel, AutoModelForImageClassification):
        with pytest.raises(UserError, match=NEEDS_TRUST):
            load_pretrained(auto_class, str(brought), "cpu")


def test_a_command_says_how_to_trust_it(brought, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a command asked a question"))
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "pets" / name / "0.png")

    def leave(*options):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as left:
                main(
                    ["evaluate", str(brought), "--data", str(tmp_path / "pets"), "-o", str(tmp_path / "out"), *options]
                )
        finally:
            signal.signal(signal.SIGTERM, handler)
        return left.value.code, capsys.readouterr().err

    code, errors = leave()
    assert code == 2
    assert NEEDS_TRUST in errors
    assert len(errors.splitlines()) == 1
    code, errors = leave("--trust-remote-code")
    assert code == 0, errors
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["metrics"]["accuracy"] == 0.5
    assert "--trust-remote-code" in record["command"]
