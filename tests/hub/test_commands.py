"""Commands whose model and data are ids on the Hub."""

import json

import pytest
import torch

import qkvit


def assert_done(run):
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def data_commit(hub, photos) -> str:
    return hub.find("datasets", "me/photos").id


def test_statistics_of_a_model_over_a_data_set(tiny, data_commit, qkvit_command, tmp_path):
    options = ("--data", "me/photos", "--split", "train", "--images", "6", "--output", "out")
    run = qkvit_command(tmp_path, "statistics", "me/tiny", *options)
    assert_done(run)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (record["model"]["name"], record["model"]["revision"]) == ("me/tiny", tiny)
    said = {"source": "me/photos", "split": "train", "images": 18, "drawn": 6, "revision": data_commit}
    assert {name: record["data"][name] for name in said} == said
    assert record["data"]["classes"] == ["blue", "red"]


def test_evaluation_of_a_model_on_a_data_set(tiny, data_commit, qkvit_command, tmp_path):
    run = qkvit_command(tmp_path, "evaluate", "me/tiny", "--data", "me/photos", "--split", "test", "--output", "out")
    assert_done(run)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (record["model"]["name"], record["model"]["revision"]) == ("me/tiny", tiny)
    said = {"source": "me/photos", "split": "test", "images": 6, "revision": data_commit}
    assert {name: record["data"][name] for name in said} == said
    assert record["metrics"]["images"] == 6


def test_conversion_of_a_model_of_transformers(hub, photos, qkvit_command, tmp_path, pixels):
    from transformers import ViTForImageClassification

    run = qkvit_command(tmp_path, "convert", "me/vit", "ours")
    assert_done(run)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name, content in hub.files("me/vit").items():
        (theirs / name).write_bytes(content)
    ours = qkvit.QKViTForImageClassification.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        expected = ViTForImageClassification.from_pretrained(theirs)(pixels).logits
        torch.testing.assert_close(ours(pixels).logits, expected, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())["size"]["height"] == 16
