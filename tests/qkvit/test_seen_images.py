"""A model's own training images do not pass for new ones."""

import json

import pytest
import yaml
from PIL import Image

from qkvit.errors import UserError
from qkvit.seen_images import held_out_images, said_of_seen_images
from qkvit.training.images.sources import open_splits
from qkvit.training.recipe import Data


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()

    def trained(**data):
        (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
        return "run"

    return trained


@pytest.mark.parametrize(
    ("data", "asked", "share"),
    [
        ({"source": "photos", "held_out": 0.2}, ("photos", None), "trains on 80 % of "),
        ({"source": "photos", "held_out": 0.2}, ("./photos/", None), "trains on 80 % of "),
        ({"source": "photos", "held_out": 0.2, "images": 50}, ("photos", None), "trains on some of "),
        ({"source": "photos", "train_split": "train", "held_out": 0.2}, ("photos", "train"), "trains on 80 % of "),
        (
            {"source": "photos", "validation_split": "test", "held_out": 0.2},
            ("photos", None),
            "of the split 'test' is in",
        ),
    ],
)
def test_the_same_images_are_said_to_be(model, data, asked, share):
    said = said_of_seen_images(model(**data), *asked)
    assert share in said
    assert said.endswith(("metrics.json", "metrics.json, and --split validation measures on them alone"))
    assert ("--split" in said) is (data.keys() <= {"source", "held_out", "images"})


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ({"source": "photos", "held_out": 0.2}, ("others", None)),
        ({"source": "photos", "train_split": "train", "held_out": 0.2}, ("photos", "test")),
        ({"source": "digits", "held_out": 0.2}, ("digits", None)),
        ({"held_out": 0.2}, ("photos", None)),
        ({"source": "photos", "held_out": "much"}, ("photos", None)),
    ],
)
def test_of_others_nothing_is_said(model, data, asked):
    assert said_of_seen_images(model(**data), *asked) is None


@pytest.mark.parametrize("inside", ["checkpoint-5", "averaged"])
def test_a_model_inside_the_runs_folder_is_the_runs(model, inside):
    said = said_of_seen_images(f"{model(source='photos', held_out=0.2)}/{inside}", "photos", None)
    assert said == said_of_seen_images("run", "photos", None)


def test_a_recipe_beside_another_model_is_not_its_own(model, tmp_path):
    """As where models and runs lie in one folder."""
    model(source="photos", held_out=0.2)
    (tmp_path / "run" / "recipe.yaml").rename(tmp_path / "recipe.yaml")
    for name in ("good", "run", "someone/good"):
        assert said_of_seen_images(name, "photos", None) is None
        assert held_out_images(name, "photos", "validation", "skip") is None


def test_without_a_recipe_nothing_is_said(tmp_path):
    assert said_of_seen_images(str(tmp_path), "photos", None) is None
    (tmp_path / "recipe.yaml").write_text("data: [")
    assert said_of_seen_images(str(tmp_path), "photos", None) is None


@pytest.fixture
def photos(tmp_path):
    """Ten different pictures in two classes, beside the run."""
    for i in range(10):
        path = tmp_path / "photos" / ("cat" if i < 5 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def record(tmp_path):
    """Write what `qkvit train` writes of the data as they are now."""

    def write(**data):
        (tmp_path / "run" / "run.json").write_text(json.dumps({"data": open_splits(Data(**data)).fingerprint()}))

    return write


@pytest.mark.parametrize("split", ["validation", "val"])
def test_the_images_that_a_run_held_out_are_had_by_the_name_validation(model, photos, record, split):
    name = model(source=str(photos), held_out=0.4, images=3)
    record(source=str(photos), held_out=0.4, images=3)
    held = held_out_images(f"{name}/averaged", "photos", split, "skip")
    expected = open_splits(Data(str(photos), held_out=0.4)).validation
    assert [held.name_of(index) for index in range(len(held))] == [expected.name(index) for index in range(4)]
    assert held.labels.tolist() == expected.labels.tolist() == [0, 0, 1, 1]
    assert held[3].image.getpixel((0, 0)) == expected.image(3).getpixel((0, 0))
    assert (held.class_names, held.split, held.on_bad_image) == (("cat", "dog"), "validation", "skip")


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ({}, ("photos", None)),
        ({}, ("photos", "test")),
        ({}, ("others", "validation")),
        ({"train_split": "train"}, ("photos", "validation")),
        ({"validation_split": "validation"}, ("photos", "validation")),
    ],
)
def test_for_all_else_the_data_are_asked(model, photos, data, asked):
    assert held_out_images(model(source="photos", **data), *asked) is None


def test_data_that_have_changed_since_are_refused(model, photos, record, raises_sentence):
    name = model(source="photos", held_out=0.4)
    with raises_sentence(UserError, "no run.json in run", "leave --split out"):
        held_out_images(name, "photos", "validation")
    record(source="photos", held_out=0.4)
    assert len(held_out_images(name, "photos", "validation")) == 4
    for path in photos.rglob("*.png"):
        Image.new("RGB", (8, 8), (0, 0, 9)).save(path)
    with raises_sentence(UserError, "photos has changed since the run in run began"):
        held_out_images(name, "photos", "validation")
