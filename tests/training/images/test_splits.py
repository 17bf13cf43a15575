"""What a run trains on is not what it is measured on, and all of its splits have the same classes."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from qkvit.training import TrainingRefusedError
from qkvit.training.images.sources import open_splits
from qkvit.training.recipe import Data

SPLITS = {"train": (0, 1, 0, 1, 2), "validation": (0, 1)}  # labels; the third class is rare
CLASSES = ("blue", "green", "red")


def picture(number):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def folders(tmp_path):
    for split, labels in SPLITS.items():
        for number, label in enumerate(labels):
            path = tmp_path / "folders" / split / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    return tmp_path / "folders"


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    (tmp_path / "shards").mkdir()
    for split, labels in SPLITS.items():
        with tarfile.open(tmp_path / "shards" / f"{split}-0000.tar", "w") as tar:
            for number, label in enumerate(labels):
                for ending, content in (("png", picture(number)), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{number}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return tmp_path / "shards"


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """`tables(feature)`: Parquet files whose labels are of that feature of datasets."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(feature):
        shutil.rmtree(tmp_path / "tables", ignore_errors=True)
        (tmp_path / "tables").mkdir()
        for split, labels in SPLITS.items():
            rows = {"image": [{"bytes": picture(each), "path": None} for each in range(len(labels))], "label": labels}
            features = datasets.Features({"image": datasets.Image(), "label": feature})
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(tmp_path / "tables" / f"{split}.parquet")
        return tmp_path / "tables"

    return write


def opened(source, streaming=False, **fields):
    splits = {"train_split": "train", "validation_split": "validation"} | fields
    return open_splits(Data(str(source), streaming=streaming, **splits))


def test_a_class_folder_that_a_split_lacks(folders, raises_sentence):
    with raises_sentence(TrainingRefusedError, "(red)", "if need be an empty one"):
        opened(folders)
    (folders / "validation" / "red").mkdir()
    assert opened(folders).class_names == list(CLASSES)


def test_a_class_that_shards_of_a_split_lack(shards, raises_sentence):
    with raises_sentence(TrainingRefusedError, "(2)", "classes.txt beside the shards"):
        opened(shards)
    (shards / "classes.txt").write_text("\n".join(CLASSES))
    assert opened(shards).class_names == list(CLASSES)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_class_that_tables_of_a_split_lack(tables, raises_sentence, streaming):
    datasets = pytest.importorskip("datasets")
    with raises_sentence(TrainingRefusedError, "(2)", "ClassLabel"):
        opened(tables(datasets.Value("int64")), streaming)
    assert opened(tables(datasets.ClassLabel(names=list(CLASSES))), streaming).class_names == list(CLASSES)


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("split", ["train", "training"])
def test_no_run_is_measured_on_the_images_that_it_trains_on(folders, raises_sentence, part, split):
    (folders / "validation" / "red").mkdir()
    with raises_sentence(TrainingRefusedError, f"data.{part}_split={split}", "trains on", f"--set {part}_split=null"):
        opened(folders, **{f"{part}_split": split})


@pytest.mark.parametrize(
    ("fields", "ways"),
    [
        ({"source": "digits", "validation_split": "test"}, "--set validation_split=null"),
        ({"source": "digits", "train_split": "a", "label": "b"}, "--set train_split=null --set label=null"),
        ({"source": "mnist5k", "held_out": 0.1}, "--set held_out=0.2"),
        ({"source": "mnist5k", "streaming": True}, "--set streaming=false"),
    ],
)
def test_what_a_packages_data_would_not_follow_is_refused(raises_sentence, fields, ways):
    with raises_sentence(TrainingRefusedError, f"is not for {fields['source']}", ways):
        open_splits(Data(**fields))


def test_the_images_that_decide_are_not_those_of_the_test(folders, raises_sentence):
    (folders / "validation" / "red").mkdir()
    with raises_sentence(TrainingRefusedError, "data.test_split=val", "validated on", "--set test_split=null"):
        opened(folders, test_split="val")
    shutil.copytree(folders / "train", folders / "test")
    assert len(opened(folders, test_split="test").test) == len(SPLITS["train"])
