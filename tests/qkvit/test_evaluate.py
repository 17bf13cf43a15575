"""`qkvit evaluate`: right numbers in every file, and one sentence for what cannot be evaluated."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from qkvit import QKViTModel
from qkvit.cli import main
from qkvit.training.images.sources import open_splits
from qkvit.training.recipe import Data

CLASSES = ["ant", "bee", "cow", "dog", "elk", "fox"]
PER_CLASS = 3


def leave(capsys, *arguments):
    """Exit code, standard output and standard error of `qkvit evaluate ARGUMENTS`, in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return exit_.value.code, *capsys.readouterr()


def assert_refused(capsys, arguments, *words):
    code, _, errors = leave(capsys, *arguments)
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three pictures of each class, in class folders below a folder for the split."""
    folder, rng = tmp_path_factory.mktemp("animals"), np.random.default_rng(0)
    for name in CLASSES:
        (folder / "test" / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "test" / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def names():
    """The model's labels: another order than the data's, and one more."""
    return ["fox", "Bee", "yak", "ant", "elk", "dog", "cow"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model, names):
    """A QKViT classifier of seven animals."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(id2label=dict(enumerate(names)), num_labels=7).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(saved, images, tmp_path_factory):
    """The folder and the screen of a whole evaluation."""
    import contextlib
    import io

    folder, screen = tmp_path_factory.mktemp("out") / "result", io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(screen), pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(saved), "--data", str(images), "--split", "test", "--batch-size", "4", "-o", str(folder)])
    signal.signal(signal.SIGTERM, handler)
    assert exit_.value.code == 0
    return folder, screen.getvalue()


@pytest.fixture(scope="module")
def expected(saved, images, names):
    """The model's probabilities for each image, one image at a time, and its index for the image's class."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(saved)
    processor = AutoImageProcessor.from_pretrained(saved)
    rows = {}
    for path in sorted((images / "test").rglob("*.png")):
        with Image.open(path) as image, torch.no_grad():
            logits = model(**processor(image.convert("RGB"), return_tensors="pt")).logits[0]
        right = [name.lower() for name in names].index(path.parent.name)
        rows[f"{path.parent.name}/{path.name}"] = (logits.softmax(0).numpy(), right)
    return rows


def test_the_folder_has_all_files_and_the_screen_says_where(finished):
    folder, screen = finished
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "confusion.png",
        "predictions.parquet",
        "predictions.csv",
    }
    assert str(folder) in screen
    assert "accuracy" in screen


def test_the_metrics_are_those_of_the_model_on_these_images(finished, expected):
    from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

    found = json.loads((finished[0] / "results.json").read_text())["metrics"]
    scores = np.stack([row for row, _ in expected.values()])
    right, best = np.array([label for _, label in expected.values()]), scores.argmax(1)
    assert found["images"] == len(CLASSES) * PER_CLASS
    assert found["accuracy"] == pytest.approx(accuracy_score(right, best))
    assert found["top_5_accuracy"] == pytest.approx(top_k_accuracy_score(right, scores, k=5, labels=range(7)))
    assert found["macro_f1"] == pytest.approx(f1_score(right, best, average="macro"))
    assert 0 < found["expected_calibration_error"] < 1


def test_every_image_has_its_prediction(finished, expected, names):
    from pyarrow import parquet

    rows = parquet.read_table(finished[0] / "predictions.parquet").to_pylist()
    assert len(rows) == len(expected)
    data_name = {name.lower(): name.lower() for name in names}
    for row in rows:
        scores, right = next(value for name, value in expected.items() if row["name"].endswith(name))
        assert row["class"] == names[right].lower()
        assert row["prediction"] == data_name[names[scores.argmax()].lower()]
        assert row["right"] == (scores.argmax() == right)
        assert row["probability"] == pytest.approx(scores.max(), abs=1e-5)
        assert row["probability of the class"] == pytest.approx(scores[right], abs=1e-5)
    with (finished[0] / "predictions.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]


def test_the_record_says_what_the_numbers_come_from(finished, saved, images):
    record = json.loads((finished[0] / "results.json").read_text())
    assert record["model"]["class"] == "QKViTForImageClassification"
    assert record["model"]["labels"] == 7
    assert record["data"]["classes"] == CLASSES
    assert record["data"]["split"] == "test"
    assert record["seed"] == 0
    assert record["versions"].keys() >= {"qkvit", "torch", "transformers", "evaluate"}
    assert f"evaluate {saved} --data {images} --split test --batch-size 4" in record["command"]
    assert record["command"].endswith("--seed 0")
    assert "--by-index" not in record["command"]
    with Image.open(finished[0] / "confusion.png") as picture:
        assert record["command"] in picture.info["Description"]


def test_a_model_of_transformers_is_evaluated_too_and_few_labels_have_no_top_5(capsys, images, tmp_path):
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16)
    config.patch_size, config.id2label = 8, {0: "bee", 1: "ant"}
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    for name in ("ant", "bee"):
        (tmp_path / "two" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "two" / name / "1.png")
    code, screen, _ = leave(capsys, tmp_path / "vit", "--data", tmp_path / "two", "-o", tmp_path / "out")
    assert code == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["metrics"]["top_5_accuracy"] is None
    assert record["metrics"]["accuracy"] == 0.5  # two equal pictures of two classes
    assert "top-5 accuracy" in screen


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_model_that_gives_nan_is_refused_with_the_image(capsys, images, tiny_model, names, tmp_path):
    model = tiny_model(id2label=dict(enumerate(names)), num_labels=7)
    with torch.no_grad():
        model.classifier.bias[3] = torch.nan
    model.save_pretrained(tmp_path / "model")
    arguments = (tmp_path / "model", "--data", images, "--split", "test", "-o", tmp_path / "out")
    code, _, errors = leave(capsys, *arguments)
    assert code == 2
    assert "gives NaN or infinity for ant/0.png; look at its weights" in errors.splitlines()[-1]


def test_a_defect_in_the_models_pass_is_no_users_error(capsys, images, saved, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr("qkvit.QKViTForImageClassification.forward", fail)
    with pytest.raises(RuntimeError, match="ours"):
        main(["evaluate", str(saved), "--data", str(images), "--split", "test", "-o", str(tmp_path / "out")])


def test_labels_without_names_are_taken_by_index_where_the_user_says_so(capsys, images, tiny_model, tmp_path):
    tiny_model(num_labels=6).save_pretrained(tmp_path / "model")
    arguments = [tmp_path / "model", "--data", images, "--split", "test", "-o", tmp_path / "out"]
    assert_refused(capsys, arguments, "LABEL_0", "--by-index")
    assert not (tmp_path / "out").exists()
    code, *_ = leave(capsys, *arguments, "--by-index")
    assert code == 0


def test_other_classes_are_refused_by_name(capsys, saved, tmp_path):
    for name in ("ant", "unicorn"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / name / "1.png")
    assert_refused(capsys, [saved, "--data", tmp_path / "data", "-o", tmp_path / "out"], "unicorn", "fox")


def test_a_model_without_a_classifier_is_refused(capsys, images, tiny_model, tmp_path):
    tiny_model(QKViTModel, id2label=dict(enumerate(CLASSES)), num_labels=6).save_pretrained(tmp_path / "base")
    arguments = [tmp_path / "base", "--data", images, "--split", "test", "-o", tmp_path / "out"]
    assert_refused(capsys, arguments, "classifier.weight", "train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "no/such/model/here"}, "no/such/model/here"),
        ({"--data": "no/such/data/here"}, "no/such/data/here"),
        ({"--data": "digits", "--split": "validation"}, "digits is the data of a recipe"),
        ({"--split": "tset"}, "tset"),
        ({"--device": "abacus"}, "--device abacus"),
        ({"--on-bad-image": "ignore"}, "ignore"),
        ({"--batch-size": "0"}, "--batch-size"),
    ],
)
def test_a_wrong_argument_is_one_sentence_that_names_it(capsys, saved, images, tmp_path, change, words):
    options = {"--data": images, "--split": "test", "-o": tmp_path / "out"} | change
    model = options.pop("model", saved)
    assert_refused(capsys, [model, *(word for option in options.items() for word in option)], words)
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_refused(capsys, saved, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "1.png")
    assert_refused(capsys, [saved, "--data", tmp_path / "data", "-o", tmp_path / "out"], "labels")


def test_a_bad_image_stops_or_is_left_out_and_listed(capsys, saved, tmp_path):
    for name in ("ant", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / name / "1.png")
    (tmp_path / "data" / "ant" / "2.png").write_bytes(b"no picture")
    arguments = [saved, "--data", tmp_path / "data", "-o", tmp_path / "out"]
    assert_refused(capsys, arguments, "2.png", "or pass --on-bad-image skip")
    assert not (tmp_path / "out").exists()
    code, *_ = leave(capsys, *arguments, "--on-bad-image", "skip")
    assert code == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["metrics"]["images"] == 2
    assert [bad["name"] for bad in record["data"]["left out"]] == ["ant/2.png"]


def test_an_earlier_result_is_replaced_with_force_alone(capsys, finished, saved, images):
    arguments = [saved, "--data", images, "--split", "test", "-o", finished[0]]
    assert_refused(capsys, arguments, "--force")
    code, *_ = leave(capsys, *arguments, "--force")
    assert code == 0


def test_a_models_own_training_images_are_said_to_be_that(capsys, saved, images, tmp_path):
    model = tmp_path / "run"
    shutil.copytree(saved, model)
    (model / "recipe.yaml").write_text(f"data: {{source: {images}, train_split: test, held_out: 0.25}}")
    code, said, _ = leave(capsys, model, "--data", images, "--split", "test", "-o", tmp_path / "out")
    assert code == 0
    assert f"trains on 75 % of {images}" in said
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "trains on 75 %" in record["data"]["seen in training"]


def test_an_address_is_read_in_place(capsys, saved, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cow", "fox"])})
    rows = {"image": [Image.new("RGB", (16, 16))] * 3, "label": [0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    code, said, errors = leave(capsys, saved, "--data", f"file://{tmp_path}/test.parquet", "-o", tmp_path / "out")
    assert code == 0, errors
    assert "3 images" in said


def test_the_images_that_the_models_own_run_held_out_are_measured_alone(capsys, saved, images, tmp_path):
    model = tmp_path / "run"
    shutil.copytree(saved, model)
    (model / "recipe.yaml").write_text(f"data: {{source: {images / 'test'}, held_out: 0.4}}")
    seen = open_splits(Data(str(images / "test"), held_out=0.4)).fingerprint()
    (model / "run.json").write_text(json.dumps({"data": seen}))
    arguments = [model, "--data", images / "test", "--split", "validation", "-o", tmp_path / "out"]
    code, said, _ = leave(capsys, *arguments)
    assert code == 0
    assert "trains on" not in said
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (record["metrics"]["images"], record["data"]["split"]) == (len(CLASSES), "validation")
