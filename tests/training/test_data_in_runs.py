"""What images lie in, and images that cannot be used: a run is the same, and says what it met."""

import io
import json
import multiprocessing
import os
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qkvit.training import TrainingRefusedError, TrainingStoppedError, train
from qkvit.training.augmentation.pipeline import Augmenter
from qkvit.training.command import main
from qkvit.training.evaluation import evaluate
from qkvit.training.images.bad_images import LIST
from qkvit.training.images.window_order import WindowOrder
from qkvit.training.recipe import Augmentation

COLOURS = ("blue", "red")


def png(colour, number):
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 120, (10, 12, 3), dtype=np.uint8)
    noise[..., 2 * COLOURS.index(colour)] += 120
    Image.fromarray(noise).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures():
    """(name, class, bytes), sorted as class folders are."""
    return [(f"{colour}-{i:02d}", COLOURS.index(colour), png(colour, i)) for colour in COLOURS for i in range(12)]


@pytest.fixture
def folders(tmp_path, pictures):
    """The pictures as class folders; every fourth one is for validation."""
    for number, (name, label, content) in enumerate(pictures):
        path = tmp_path / "folders" / ("validation" if number % 4 == 3 else "train") / COLOURS[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folders"


@pytest.fixture
def parquet(tmp_path, pictures, monkeypatch):
    """The pictures in Parquet files with row groups of 3; labels may be lists."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def write(label_of=lambda label: label, feature=None):
        feature = feature or datasets.ClassLabel(names=list(COLOURS))
        features = datasets.Features({"image": datasets.Image(), "label": feature})
        for split, wanted in (("train", (0, 1, 2)), ("validation", (3,))):
            chosen = [each for number, each in enumerate(pictures) if number % 4 in wanted]
            rows = {
                "image": [{"bytes": content, "path": None} for _, _, content in chosen],
                "label": [label_of(label) for _, label, _ in chosen],
            }
            path = tmp_path / "tables" / f"{split}.parquet"
            path.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=3)
        return path.parent

    yield write
    datasets.enable_progress_bars()


@pytest.fixture
def shards(tmp_path, pictures, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.txt").write_text("\n".join(COLOURS))
    for split, wanted in (("train", (0, 1, 2)), ("validation", (3,))):
        chosen = [each for number, each in enumerate(pictures) if number % 4 in wanted]
        with tarfile.open(tmp_path / "shards" / f"{split}-0000.tar", "w") as tar:
            for name, label, content in chosen:
                for file, inside in ((f"{name}.png", content), (f"{name}.cls", str(label).encode())):
                    info = tarfile.TarInfo(file)
                    info.size = len(inside)
                    tar.addfile(info, io.BytesIO(inside))
    return tmp_path / "shards"


@pytest.fixture
def recipe(tiny, busy, tmp_path):
    """`recipe(source, folder, {...})`: the busy recipe on these images."""

    def make(source, folder, *parts):
        data = {"source": str(source), "train_split": "train", "validation_split": "validation", "images": None}
        data |= {"held_out": 0.0}
        where = {"output_dir": str(tmp_path / folder), "max_steps": 4, "per_device_train_batch_size": 4}
        return tiny(busy, {"data": data, "arguments": where | {"gradient_accumulation_steps": 1}}, *parts)

    return make


def workers(count):
    return {"arguments": {"dataloader_num_workers": count}}


# ---- what images lie in


def test_what_the_images_lie_in_does_not_change_a_bit(recipe, folders, parquet, shards, weights, tmp_path):
    table = parquet()
    for folder, source in (("a", folders), ("b", table), ("c", shards)):
        train(recipe(source, folder))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(tmp_path / "c") != b""


STREAMED = {"data": {"streaming": True, "shuffle_window": 6}}


def test_a_hub_id_is_streamed_from_its_parquet_files(recipe, parquet, weights, tmp_path, monkeypatch):
    from qkvit.data import opening
    from qkvit.training.images import sources

    files, asked = sorted(str(file) for file in parquet().glob("*.parquet")), []
    monkeypatch.setattr(opening, "remote_parquet_files", lambda address: asked.append(address) or files)
    monkeypatch.setattr(sources, "look_for", lambda name, kind: None)  # the Hub, which answers that it has it
    train(recipe("me/colours", "hub", STREAMED))
    train(recipe(tmp_path / "tables", "files", STREAMED))
    assert set(asked) == {"hf://datasets/me/colours"}
    assert weights(tmp_path / "hub") == weights(tmp_path / "files") != b""


@pytest.mark.parametrize("count", [0, 2])
def test_a_killed_run_on_parquet_in_place_ends_with_the_same_bits(
    recipe, parquet, in_a_child, weights, tmp_path, count
):
    from qkvit.training.optimisation.weight_average import WeightAverage

    source = parquet()

    def dies():
        update = WeightAverage.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            update(self, args, state, control, **kwargs)
            if state.global_step == 6:  # in the middle of the second epoch
                os.kill(os.getpid(), signal.SIGKILL)

        WeightAverage.on_step_end = on_step_end
        train(recipe(source, "killed", STREAMED, workers(count), {"arguments": {"max_steps": 9}}))

    assert in_a_child(dies) == -signal.SIGKILL
    assert (
        in_a_child(
            lambda: train(
                recipe(source, "killed", STREAMED, workers(count), {"arguments": {"max_steps": 9}}), resume=True
            )
        )
        == 0
    )
    train(recipe(source, "whole", STREAMED, {"arguments": {"max_steps": 9}}))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole") != b""


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 99))
def test_windows_hold_each_image_once_and_few_groups(sizes, window, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    order = WindowOrder(groups, window)
    found = order(torch.Generator().manual_seed(seed))
    assert sorted(found) == list(range(len(groups)))
    assert found == order(torch.Generator().manual_seed(seed))
    last = {group: place for place, group in enumerate(groups[found].tolist())}
    first = {group: place for place, group in reversed(list(enumerate(groups[found].tolist())))}
    for place in range(len(found)):  # groups that have begun and are not over
        assert sum(first[group] <= place <= last[group] for group in first) <= order.most_groups


def test_window_sizes_count_what_is_in_memory_and_not_what_is_trained_on():
    thin = WindowOrder(np.arange(100), window=50, sizes=np.full(100, 10))
    assert thin.most_groups == 5


# ---- images that cannot be used


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_bad_image_stops_with_one_sentence_and_code_2(recipe, folders, raises_sentence, split, count):
    bad = sorted((folders / split / "red").iterdir())[0]
    bad.write_bytes(b"not an image")
    before = multiprocessing.active_children()
    with raises_sentence(TrainingStoppedError, f"red/{bad.name}", "on_bad_image=skip") as caught:
        train(recipe(folders, "run", workers(count)))
    assert caught.value.code == 2
    assert set(multiprocessing.active_children()) <= set(before), "the error keeps those that load images"
    if split == "train" and not count:  # what the sentence says to do
        metrics = train(recipe(folders, "run"), ["on_bad_image=skip"], resume=True, allow=("on_bad_image",))
        assert len(metrics["bad_images"]) == 1


def test_the_command_says_it_without_a_traceback(recipe, folders, tmp_path, capsys):
    import yaml

    sorted((folders / "train" / "red").iterdir())[0].write_bytes(b"")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(folders, "run", workers(1))))
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "recipe.yaml")])
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert "red/" in line


@pytest.mark.parametrize("count", [0, 2])
def test_bad_images_are_counted_and_listed_also_after_going_on(recipe, folders, tmp_path, capsys, count):
    for split in ("train", "validation"):
        sorted((folders / split / "blue").iterdir())[1].write_bytes(b"not an image")
    skip = {"data": {"on_bad_image": "skip"}}
    metrics = train(recipe(folders, "run", skip, workers(count), {"arguments": {"max_steps": 5, "save_steps": 5}}))
    names = ["train/blue/blue-01.png", "validation/blue/blue-07.png"]
    assert list(metrics["bad_images"]) == names
    assert "2 images could not be used" in capsys.readouterr().out
    assert metrics["validation"]["images"] == 5
    assert "train/blue/blue-01.png" in json.loads((tmp_path / "run" / LIST).read_text())
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been stopped between its last step and its end
    again = train(recipe(folders, "run", skip, {"arguments": {"max_steps": 5, "save_steps": 5}}), resume=True)
    assert list(again["bad_images"]) == names


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file systems take no such names")
def test_names_that_are_not_utf_8_stop_no_run(recipe, folders, tmp_path):
    red = os.fsencode(folders / "train" / "red")
    Path(os.fsdecode(red + b"/caf\xe9.png")).write_bytes(b"not an image")
    for split in ("train", "validation"):
        (folders / split / "red").rename(os.fsdecode(os.fsencode(folders / split) + b"/rouge\xe9"))
    skip = {"data": {"on_bad_image": "skip"}, "arguments": {"save_steps": 3}}
    metrics = train(recipe(folders, "run", skip))
    (name,) = metrics["bad_images"]
    assert os.fsencode(name) == b"train/rouge\xe9/caf\xe9.png"
    (tmp_path / "run" / "metrics.json").unlink()
    assert list(train(recipe(folders, "run", skip), resume=True)["bad_images"]) == [name]


# ---- labels


def test_classes_that_differ_between_splits(recipe, folders, raises_sentence):
    (folders / "validation" / "red").rename(folders / "validation" / "green")
    with raises_sentence(TrainingRefusedError, "validation", "green, red"):
        train(recipe(folders, "run"))


def test_classes_in_another_order_and_labels_that_have_no_class(parquet, recipe, raises_sentence):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = parquet()
    path = next(source.glob("validation*"))
    rows = datasets.Dataset.from_parquet(str(path))
    other = datasets.Features({**rows.features, "label": datasets.ClassLabel(names=[*COLOURS][::-1])})
    datasets.Dataset.from_list(rows.to_list(), features=other).to_parquet(path)
    with raises_sentence(TrainingRefusedError, "validation", "in another order"):
        train(recipe(source, "run"))
    path = next(source.glob("train*"))
    table = pq.read_table(path)
    place = table.schema.get_field_index("label")
    labels = [*table["label"].to_pylist()[:-1], 9]
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(labels)), path)
    with raises_sentence(TrainingRefusedError, f"row {len(labels) - 1} has the label 9"):
        train(recipe(source, "run"))


def test_labels_outside_the_models(recipe, folders, raises_sentence):
    with raises_sentence(TrainingRefusedError, "num_labels=5", "2 classes"):
        train(recipe(folders, "run", {"model": {"config": {"num_labels": 5}}}))


def test_several_labels_an_image(recipe, parquet, tmp_path, weights, raises_sentence):
    import datasets
    from transformers import AutoModelForImageClassification

    feature = datasets.List(datasets.ClassLabel(names=[*COLOURS, "bright", "never"]))
    source = parquet(lambda label: [label, 2] if label else [], feature)
    for folder, count in (("alone", 0), ("workers", 2)):
        metrics = train(recipe(source, folder, workers(count)))
    assert weights(tmp_path / "alone") == weights(tmp_path / "workers")
    assert metrics["validation"].keys() == {"loss", "mean_average_precision", "micro_f1", "exact_match", "images"}
    assert "mean average precision" in (tmp_path / "alone" / "results.md").read_text()
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "alone")
    assert model.config.problem_type == "multi_label_classification"
    loss = model(torch.zeros(2, 3, 8, 8), labels=torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 0]])).loss
    assert torch.isfinite(loss)
    with raises_sentence(TrainingRefusedError, "problem_type", "lists of labels"):
        train(recipe(source, "run", {"model": {"config": {"problem_type": "single_label_classification"}}}))


def test_several_labels_are_learnt(recipe, parquet):
    import datasets

    feature = datasets.List(datasets.ClassLabel(names=[*COLOURS, "bright"]))
    source = parquet(lambda label: [label, 2] if label else [0], feature)
    settings = ["mixup=0", "cutmix=0", "randaugment_operations=0", "hidden_dropout_prob=0", "max_steps=60"]
    best = ["eval_strategy=steps", "eval_steps=20", "save_steps=20", "load_best_model_at_end=true"]
    best += ["metric_for_best_model=mean_average_precision", "greater_is_better=true"]
    metrics = train(recipe(source, "run"), [*settings, *best, "learning_rate=5e-3"])
    assert metrics["validation"]["mean_average_precision"] > 0.95


def test_of_several_labels_the_mean_average_precision_decides(recipe, parquet, tmp_path, raises_sentence):
    import datasets

    feature = datasets.List(datasets.ClassLabel(names=[*COLOURS, "bright"]))
    source = parquet(lambda label: [label, 2] if label else [0], feature)
    best = ["keep_best=1", "early_stopping=9", "eval_strategy=steps", "eval_steps=2", "save_strategy=steps"]
    best += ["save_steps=2", "save_total_limit=1", "max_steps=6"]
    train(recipe(source, "run"), best)
    folder = tmp_path / "run"
    log = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    measured = {entry["step"]: entry[name] for entry in log if (name := "eval_mean_average_precision") in entry}
    first = next(step for step, value in measured.items() if value == max(measured.values()))
    assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-{first}", "checkpoint-6"}
    with raises_sentence(TrainingRefusedError, "'accuracy'", "mean_average_precision"):
        train(recipe(source, "other"), [*best, "metric_for_best_model=accuracy"])


@pytest.mark.parametrize("how", ["shares", "present"])
def test_targets_of_several_labels_are_mixed_as_the_pixels_are(how):
    colours = torch.tensor([0, 255]).repeat(4)  # an image is black or white, so that its mean is the partner's share
    images = colours.view(-1, 1, 1, 1).expand(8, 3, 16, 16).to(torch.uint8)
    targets = torch.where(colours.view(-1, 1) > 0, torch.tensor([1.0, 1, 0]), torch.tensor([0.0, 1, 1]))
    keys = torch.tensor([[0, index, 0] for index in range(8)])
    settings = Augmentation(mixup=1.0, cutmix=1.0, mixed_labels=how)
    pixels, mixed = Augmenter(settings, 0, (0.0,) * 3, (1.0,) * 3, num_labels=3)(images, targets, keys)
    white = pixels.mean((1, 2, 3))
    expected = torch.stack([white, torch.ones(8), 1 - white], dim=1)
    assert torch.allclose(mixed, expected if how == "shares" else expected.gt(1e-6).float(), atol=1e-5)
    assert mixed.min() >= 0
    assert mixed.max() <= 1


class TestMultiLabelMetrics:
    @given(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 5))
    def test_they_are_those_of_scikit_learn(self, seed, images, labels):
        metrics = pytest.importorskip("sklearn.metrics")
        from qkvit.training.multi_label import multi_label_metrics

        random = np.random.default_rng(seed)
        logits = random.normal(size=(images, labels)).round(1).astype(np.float32)  # with ties
        targets = random.integers(0, 2, (images, labels))
        measured = multi_label_metrics(logits, targets)
        said = (logits > 0).astype(int)
        assert measured["micro_f1"] == pytest.approx(metrics.f1_score(targets, said, average="micro", zero_division=1))
        assert measured["exact_match"] == pytest.approx(metrics.accuracy_score(targets, said))
        occurring = targets.any(0)
        if occurring.any():
            expected = metrics.average_precision_score(targets[:, occurring], logits[:, occurring], average="macro")
            assert measured["mean_average_precision"] == pytest.approx(expected)
        else:
            assert "mean_average_precision" not in measured

    def test_an_evaluation_without_images(self):
        config = type("Config", (), {"problem_type": "multi_label_classification"})()
        model = torch.nn.Identity()
        model.config = config
        assert evaluate(model, [], batch_size=2) == {"images": 0}
