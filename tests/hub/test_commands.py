"""Commands whose model and data are ids on the Hub."""

import json

import pytest
import torch

import qkvit

pytestmark = pytest.mark.slow

STATISTICS = ["statistics", "me/tiny", "--data", "me/photos", "--output", "out", "--split"]
PLACE = "hf://datasets/me/photos"
COMMANDS = {
    "statistics": [*STATISTICS, "train", "--images", "6"],
    "streamed": [*STATISTICS, "test", "--images", "4", "--streaming"],
    "in place": ["statistics", "me/tiny", "--data", PLACE, "--output", "out", "--split", "test", "--streaming"],
    "evaluate": ["evaluate", "me/tiny", "--data", "me/photos", "--split", "test", "--output", "out"],
    "convert": ["convert", "me/vit", "ours"],
    "check": ["data", "check", PLACE],
}


@pytest.fixture(scope="module")
def answers(tiny, photos, qkvit_commands, tmp_path_factory):
    found = dict(zip(COMMANDS, qkvit_commands(tmp_path_factory.mktemp("commands"), [*COMMANDS.values()]), strict=True))
    assert all(answer.code == 0 for answer in found.values()), found
    return found


@pytest.fixture(scope="module")
def data_commit(hub, photos) -> str:
    return hub.find("datasets", "me/photos").id


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("statistics", {"split": "train", "images": 18, "drawn": 6}),
        ("streamed", {"split": "test", "images": "streamed", "drawn": 4}),
        ("in place", {"split": "test", "images": 6}),
        ("evaluate", {"split": "test", "images": 6}),
    ],
)
def test_what_is_recorded_names_the_commits_of_model_and_data(answers, tiny, data_commit, command, said):
    name = "results.json" if command == "evaluate" else "provenance.json"
    record = json.loads((answers[command].folder / "out" / name).read_text())
    assert (record["model"]["name"], record["model"]["revision"]) == ("me/tiny", tiny)
    source = PLACE if command == "in place" else "me/photos"
    said = said | {"source": source, "revision": data_commit, "classes": ["blue", "red"]}
    assert {name: record["data"][name] for name in said} == said


def test_statistics_say_which_images_they_are_of(answers):
    assert answers["statistics"].output.startswith("me/tiny over 6 drawn of me/photos (train): 18 images, 2 classes")
    assert answers["streamed"].output.startswith("me/tiny over the first 4 of me/photos (test)")


def test_every_image_is_classified(answers):
    record = json.loads((answers["evaluate"].folder / "out" / "results.json").read_text())
    assert record["metrics"]["images"] == 6


def test_a_model_of_transformers_is_converted_with_its_image_processor(answers, hub, pixels, tmp_path):
    from transformers import ViTForImageClassification

    for name, content in hub.files("me/vit").items():
        (tmp_path / name).write_bytes(content)
    folder = answers["convert"].folder / "ours"
    with torch.no_grad():
        ours = qkvit.QKViTForImageClassification.from_pretrained(folder)(pixels).logits
        theirs = ViTForImageClassification.from_pretrained(tmp_path)(pixels).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}


def test_a_check_reads_every_split_in_place(answers):
    assert answers["check"].output.startswith("hf://datasets/me/photos: 24 images, 2 classes\n")
