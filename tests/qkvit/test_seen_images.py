"""A model's own training images do not pass for new ones."""

import pytest
import yaml

from qkvit.seen_images import said_of_seen_images


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
    assert said.endswith("metrics.json")


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


def test_without_a_recipe_nothing_is_said(tmp_path):
    assert said_of_seen_images(str(tmp_path), "photos", None) is None
    (tmp_path / "recipe.yaml").write_text("data: [")
    assert said_of_seen_images(str(tmp_path), "photos", None) is None
