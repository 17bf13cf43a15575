"""The check of the saved model fails loudly when it should."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from qkvit import QKViTConfig, QKViTForImageClassification, load_without_qkvit
from qkvit.errors import UserError
from qkvit.quickstart import check_saved_model, classify, train_model
from qkvit.training import TrainingRefusedError, TrainingStoppedError
from qkvit.training.errors import TrainingTerminatedError
from qkvit.training.images.mnist5k import Digits


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    config = QKViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7, num_labels=10
    )
    model = QKViTForImageClassification(config).eval()
    folder = tmp_path_factory.mktemp("model with a space")
    model.save_pretrained(folder)
    random = np.random.default_rng(0)
    digits = Digits(random.integers(0, 256, (20, 28, 28)).astype(np.uint8), random.integers(0, 10, 20))
    return folder, digits, classify(model, digits)


def test_a_saved_model_gives_the_same_logits_without_qkvit(saved):
    folder, digits, logits = saved
    assert check_saved_model(folder, digits.images, digits.labels, logits) < 1e-5


class OnlyWithTorchvision:
    """`transformers.AutoImageProcessor` of 5.17, where torchvision is not installed."""

    def __getattr__(self, name):
        raise ImportError("AutoImageProcessor requires the Torchvision library but it was not found")


def test_the_image_processor_loads_with_transformers_5_17_and_without_torchvision(saved, tmp_path, monkeypatch):
    folder, digits, logits = saved
    np.save(tmp_path / "images.npy", digits.images)
    monkeypatch.setattr("transformers.AutoImageProcessor", OnlyWithTorchvision())
    monkeypatch.delitem(sys.modules, "qkvit")  # it asks that this is not loaded
    load_without_qkvit.main(str(folder), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy"))
    assert np.abs(np.load(tmp_path / "logits.npy") - logits).max() < 1e-5


def test_a_folder_without_a_model_does_not_load(saved, tmp_path, monkeypatch):
    _, digits, _ = saved
    np.save(tmp_path / "images.npy", digits.images)
    monkeypatch.delitem(sys.modules, "qkvit")
    with pytest.raises(OSError, match=r"config\.json"):
        load_without_qkvit.main(str(tmp_path), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy"))


def test_another_accuracy_is_an_error(saved, monkeypatch):
    folder, digits, logits = saved
    labels = logits.argmax(axis=1)

    def load(command, **_):
        np.save(command[-1], logits)
        return subprocess.CompletedProcess(command, returncode=0)

    monkeypatch.setattr(subprocess, "run", load)
    with pytest.raises(RuntimeError, match=r"gets 100.0% right .* and 0.0% in"):
        check_saved_model(folder, digits.images, labels, -logits)


def test_a_model_that_does_not_load_is_an_error(saved, tmp_path, monkeypatch):
    _, digits, logits = saved
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RuntimeError, match="does not load in a process without qkvit"):
        check_saved_model(tmp_path, digits.images, digits.labels, logits)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingTerminatedError("saved in run/checkpoint-3"), 143, "\nstopped\n"),
        (TrainingStoppedError("the loss is NaN in step 3"), 1, "\nerror: the loss is NaN in step 3\n"),
    ],
)
def test_why_training_stopped_is_told(tmp_path, monkeypatch, capsys, error, code, said):
    def stop(self):
        raise error

    monkeypatch.setattr("qkvit.training.run.Run.train", stop)
    with pytest.raises(SystemExit) as exit_:
        train_model(tmp_path, seed=0, settings=["images=512"])
    assert exit_.value.code == code
    assert capsys.readouterr().err == said


def test_why_training_is_refused_is_told(tmp_path, monkeypatch):
    def refuse(self):
        raise TrainingRefusedError("there is no room")

    monkeypatch.setattr("qkvit.training.run.Run.train", refuse)
    with pytest.raises(UserError, match="there is no room"):
        train_model(tmp_path, seed=0, settings=["images=512"])
