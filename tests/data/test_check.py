"""A check of a data set finds what was put into it, and nothing else."""

import json

import numpy as np
import pytest
from PIL import Image

from qkvit.cli import main
from qkvit.data import open_images
from qkvit.data.check import check
from qkvit.data.check_report import as_text
from qkvit.data.inspection import inspect
from qkvit.data.opening import splits_in


def picture(seed, size=(48, 40)):
    """A smooth picture, as photographs are: noise has no outline that survives compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def zoo(tmp_path):
    """Two splits of two classes, six different images each."""
    for number in range(12):
        path = tmp_path / "zoo" / ("train", "test")[number // 6] / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "zoo"


def said(found, problem=True):
    return [finding.what for finding in found.findings if finding.problem == problem]


def test_a_clean_data_set(zoo, capsys):
    found = check(zoo, image_size=32)
    assert found.findings == []
    assert found.splits["train"] == {
        "images": 6,
        "unusable": 0,
        "kinds": {"PNG RGB": 6},
        "smallest": [48, 40],
        "median": [48, 40],
        "largest": [48, 40],
    }
    assert found.classes == {"cat": {"train": 3, "test": 3}, "dog": {"train": 3, "test": 3}}
    with pytest.raises(SystemExit) as left:
        main(["data", "check", str(zoo)])
    assert left.value.code == 0
    assert "No problems" in capsys.readouterr().out


def test_problems_end_with_code_1_also_as_json(zoo, capsys):
    (zoo / "train" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(SystemExit) as left:
        main(["data", "check", str(zoo), "--json", "--splits", "train"])
    assert left.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert found["splits"].keys() == {"train"}
    assert found["findings"][0]["what"] == "1 image of train cannot be used"


def test_without_a_command_there_is_help_and_no_empty_error(capsys):
    with pytest.raises(SystemExit) as left:
        main(["data"])
    assert left.value.code in {0, 2}  # 2 from click 8.2 on
    printed = capsys.readouterr()
    assert "check" in printed.out + printed.err
    assert "error" not in printed.err


def test_what_cannot_be_opened_ends_with_code_2(tmp_path, capsys):
    for arguments in ([str(tmp_path / "no/where")], [str(tmp_path)]):
        with pytest.raises(SystemExit) as left:
            main(["data", "check", *arguments])
        assert left.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_used_are_named(zoo, workers):
    (zoo / "test" / "dog" / "7.png").write_bytes(b"broken")
    found = check(zoo, num_workers=workers)
    (problem,) = found.problems
    assert problem.what == "1 image of test cannot be used"
    assert "dog/7.png" in problem.examples[0]
    assert "skip" in problem.training


def test_the_same_pixels_in_two_splits_whatever_the_file(zoo):
    picture(0).save(zoo / "test" / "cat" / "copy.bmp")
    found = check(zoo)
    assert said(found) == ["1 image of test is also in train, pixel by pixel"]
    assert found.problems[0].examples == ["cat/0.png = cat/copy.bmp"]


def test_the_same_pixels_under_two_labels_and_twice_in_a_split(zoo):
    picture(1).save(zoo / "train" / "cat" / "copy.png")
    found = check(zoo)
    twice = "1 image is in train more than once, pixel by pixel"
    assert said(found) == ["1 picture occurs with different labels", twice]  # there is no split for validation
    assert "data.held_out may part copies" in found.problems[1].training
    (zoo / "test").rename(zoo / "validation")
    assert twice in said(check(zoo), problem=False)


def test_a_label_that_is_none_of_the_classes_is_named_with_its_row(parquet, png, raises_sentence):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = parquet("train.parquet", [png(0), png(1), png(2)], [0, 1, 1])
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(1, rows.schema.field("label"), pa.array([0, 1, 7])), path)
    with raises_sentence(ValueError, "row 2 has the label 7", "'label' has names for 2 classes"):
        check(path)
    for streaming in (False, True):
        with raises_sentence(ValueError, "row 2 has the label 7"):
            _ = open_images(path, streaming=streaming).labels


def test_the_same_picture_smaller_and_compressed(zoo):
    picture(2, (96, 80)).save(zoo / "test" / "cat" / "large.jpg", quality=80)
    found = check(zoo)
    assert said(found) == []
    (note,) = [finding for finding in found.findings if "looks like" in finding.what]
    assert note.examples == ["cat/2.png ~ cat/large.jpg"]


def test_the_same_outline_in_other_colours_is_another_picture(zoo):
    grey = picture(40).convert("L")
    dark = grey.point(lambda value: value * 0.6)
    grey.convert("RGB").save(zoo / "train" / "cat" / "grey.png")
    Image.merge("RGB", (grey, dark, dark)).save(zoo / "test" / "cat" / "tinted.png")
    assert check(zoo, image_size=32).findings == []


def test_classes_that_differ_are_empty_or_small(zoo):
    (zoo / "test" / "dog").rename(zoo / "test" / "owl")
    assert any("test has other classes than train: dog, owl" in what for what in said(check(zoo)))
    (zoo / "test" / "owl").rename(zoo / "test" / "dog")
    for split in ("train", "test"):
        (zoo / split / "bird").mkdir()
    found = check(zoo)
    assert said(found) == ["1 of 3 classes have no image in train: bird"]
    for number in range(100, 130):
        picture(number).save(zoo / "train" / "cat" / f"{number}.png")
    assert "train is uneven: 33 of cat, 3 of dog" in said(check(zoo), problem=False)


@pytest.mark.parametrize(("kind", "name"), [("int64", "-1"), ("float64", "-1.0")])
def test_a_class_called_minus_one_is_said(tmp_path, kind, name):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    rows = {"image": [picture(i) for i in range(4)], "label": [0, -1, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert said(check(tmp_path / "train.parquet")) == [f"a class of train is called {name}"]


def test_what_is_converted_is_said(zoo):
    picture(20).convert("L").save(zoo / "train" / "cat" / "grey.png")
    picture(21).convert("RGBA").save(zoo / "train" / "cat" / "clear.png")
    exif = Image.Exif()
    exif[274] = 6
    picture(22).save(zoo / "train" / "cat" / "turned.jpg", exif=exif)
    notes = said(check(zoo, image_size=64), problem=False)
    assert "not RGB: 1 PNG L, 1 PNG RGBA" in notes
    assert "1 with transparency" in notes
    assert "1 with an EXIF orientation" in notes
    assert "15 of 15 images are smaller than 64 pixels along a side" in notes


def test_images_without_labels(tmp_path):
    (tmp_path / "flat").mkdir()
    picture(0).save(tmp_path / "flat" / "0.png")
    assert said(check(tmp_path / "flat")) == ["there are no labels"]


def test_several_labels_an_image(tmp_path):
    datasets = pytest.importorskip("datasets")
    feature = datasets.List(datasets.ClassLabel(names=["cat", "dog", "owl"]))
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = {"image": [picture(i) for i in range(3)], "label": [[0, 1], [], None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    found = check(tmp_path / "train.parquet")
    assert found.multi_label
    assert found.classes["dog"] == {"train": 1}
    assert said(found) == ["1 of 3 classes have no image in train: owl"]
    assert "1 image of train has no label" in said(found, problem=False)


def test_splits_of_every_kind_of_source(zoo, shard, parquet, png, tmp_path):
    assert splits_in(zoo) == ["test", "train"]
    assert splits_in(zoo / "train") == [None]
    assert splits_in(shard("s/train-000.tar", {"a.png": png()}).parent) == ["train"]
    assert splits_in(parquet("val.parquet", [png()], [0]).parent) == ["validation"]


def test_the_split_to_train_on_comes_first_whatever_it_is_called(zoo):
    (zoo / "train").rename(zoo / "training")
    (zoo / "test").rename(zoo / "dev")
    assert list(check(zoo).splits) == ["training", "dev"]
    assert splits_in(zoo) == ["dev", "training"]


def test_the_text_names_what_is_not_shown(zoo):
    for number in range(7):
        (zoo / "train" / "cat" / f"bad{number}.png").write_bytes(b"")
    text = as_text(check(zoo))
    assert "... 2 more" in text
    assert "1 problem" in text
    assert max(map(len, text.splitlines())) < 130


def test_files_that_are_passed_over_are_said(zoo):
    for name in ("a.heic", "b.HEIC", "n0001", ".hidden", "README", "Thumbs.db"):
        (zoo / "train" / "cat" / name).write_bytes(b"")
    (zoo / "train" / "classes.txt").write_bytes(b"")
    found = check(zoo, image_size=32)
    assert said(found) == []
    assert said(found, problem=False) == ["3 files of train are passed over: .heic 2, without ending 1"]
    assert "Training: left out; the name of an image ends in .jpg" in as_text(found)


def test_files_beside_images_without_labels_are_said(tmp_path):
    (tmp_path / "flat").mkdir()
    picture(0).save(tmp_path / "flat" / "0.png")
    (tmp_path / "flat" / "1.heic").write_bytes(b"")
    assert "1 file of all is passed over: .heic 1" in said(check(tmp_path / "flat"), problem=False)


def test_images_of_a_shard_that_belong_to_no_sample_are_a_problem(shard, png):
    files = {
        f"{number}.{ending}": content
        for number in range(2)
        for ending, content in (("png", png(number)), ("cls", b"%d" % number))
    }
    path = shard("train-0.tar", files | {"a.v1.png": png(2), "a.v2.png": png(3)})
    (problem,) = check(path).problems
    assert problem.what == "2 files of train are passed over: .png 2"
    assert "no dot in NAME" in problem.training


def test_memory_does_not_hold_images(zoo):
    found = inspect(open_images(zoo, split="train"))
    held = sum(array.nbytes for array in (found.sizes, found.digests, found.outlines, found.thumbnails))
    assert held / 6 <= 100


def test_images_of_one_class(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for number in range(3):
        picture(number).save(tmp_path / "photos" / "cat" / f"{number}.png")
    assert said(check(tmp_path / "photos")) == ["there is one class alone: cat"]
