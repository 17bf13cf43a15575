"""A source gives the same samples whatever the images lie in."""

import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from qkvit.data import BadImageError, open_images
from qkvit.data.chosen_source import ChosenSource
from qkvit.data.opening import splits_in


def test_class_folders(class_folders):
    source = open_images(class_folders)
    assert source.class_names == ("cat", "dog", "owl")
    assert len(source) == 6
    assert [sample.label for sample in source] == [0, 0, 0, 1, 2, 2]
    assert source.labels.tolist() == [0, 0, 0, 1, 2, 2]
    assert source[3].name == "dog/0.png"
    assert source[-1].name == "owl/1.png"
    assert source[-1].index == 5
    assert source[0].image.mode == "RGB"
    assert source.class_counts == {"cat": 3, "dog": 1, "owl": 2}


def test_images_in_deeper_folders_belong_to_the_class_above(tmp_path, write_image):
    write_image(tmp_path / "pets" / "cat" / "indoors" / "1.png")
    (sample,) = open_images(tmp_path / "pets")
    assert (sample.name, sample.label) == ("cat/indoors/1.png", 0)


def test_a_class_without_images_keeps_its_place(class_folders):
    (class_folders / "bird").mkdir()
    source = open_images(class_folders)
    assert source.class_counts == {"bird": 0, "cat": 3, "dog": 1, "owl": 2}
    assert source[0].label == 1


def test_hidden_files_and_other_files_are_passed_over(class_folders, write_image):
    (class_folders / "cat" / "notes.txt").write_text("")
    write_image(class_folders / "cat" / ".thumbnail.png")
    write_image(class_folders / ".cache" / "1.png")
    assert len(open_images(class_folders)) == 6


@pytest.mark.parametrize("ending", ["jfif", "jpe", "JFIF"])
def test_every_ending_of_jpeg_is_an_image(tmp_path, write_image, ending):
    write_image(tmp_path / "pets" / "cat" / "1.jpg").rename(tmp_path / "pets" / "cat" / f"1.{ending}")
    assert [sample.name for sample in open_images(tmp_path / "pets")] == [f"cat/1.{ending}"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("back", ["pets", "pets/cat"])
def test_links_to_folders_are_followed_once_and_none_that_leads_back(tmp_path, write_image, back):
    write_image(tmp_path / "elsewhere" / "1.png")
    write_image(tmp_path / "pets" / "dog" / "0.png")
    cat = write_image(tmp_path / "pets" / "cat" / "0.png").parent
    for name, target in {"more": "elsewhere", "again": "elsewhere", "back": back}.items():
        (cat / name).symlink_to(tmp_path / target)
    assert [sample.name for sample in open_images(tmp_path / "pets")] == ["cat/0.png", "cat/again/1.png", "dog/0.png"]


def test_a_folder_of_images_has_no_labels(tmp_path, write_image):
    for name in ("b.png", "a.JPG"):
        write_image(tmp_path / "images" / name)
    source = open_images(tmp_path / "images")
    assert source.class_names is None
    assert [(sample.name, sample.label) for sample in source] == [("a.JPG", None), ("b.png", None)]
    assert source.class_counts == {}


def test_names_of_every_alphabet(tmp_path, write_image):
    write_image(tmp_path / "images" / "قطة 猫.png")
    write_image(tmp_path / "images" / "a.png")
    assert [sample.name for sample in open_images(tmp_path / "images")] == ["a.png", "قطة 猫.png"]


def test_splits_of_class_folders(tmp_path, write_image, raises_sentence):
    for split in ("train", "test"):
        write_image(tmp_path / "pets" / split / "cat" / f"{split}.png")
    (sample,) = open_images(tmp_path / "pets", split="test")
    assert sample.name == "cat/test.png"
    with raises_sentence(ValueError, "test, train"):
        open_images(tmp_path / "pets")
    with raises_sentence(ValueError, "'extra'", "test, train"):
        open_images(tmp_path / "pets", split="extra")
    with raises_sentence(ValueError, "'trian'", "did you mean train?"):
        open_images(tmp_path / "pets", split="trian")


def test_the_only_split_of_class_folders_is_opened_and_not_one_class_of_its_name(tmp_path, write_image):
    for animal in ("cat", "dog"):
        write_image(tmp_path / "pets" / "train" / animal / "1.png")
    source = open_images(tmp_path / "pets")
    assert (source.class_names, source.split) == (("cat", "dog"), "train")
    (tmp_path / "tests" / "exam").mkdir(parents=True)
    for name in ("test", "exam"):  # a class that is called as a split is
        write_image(tmp_path / "tests" / name / "1.png")
    assert open_images(tmp_path / "tests").class_names == ("exam", "test")
    write_image(tmp_path / "one" / "test" / "1.png")
    assert open_images(tmp_path / "one").class_names == ("test",)


def test_a_folder_of_a_split_is_found_by_the_splits_usual_name(tmp_path, write_image):
    for split in ("train", "val"):
        write_image(tmp_path / "pets" / split / "cat" / f"{split}.png")
    source = open_images(tmp_path / "pets", split="validation")
    assert (source.split, source[0].name) == ("val", "cat/val.png")


@pytest.mark.parametrize("names", [("Train", "Val"), ("TRAIN", "VALIDATION")])
def test_folders_of_splits_may_be_written_in_capitals(tmp_path, write_image, names):
    for name in names:
        write_image(tmp_path / "pets" / name / "cat" / f"{name}.png")
    source = open_images(tmp_path / "pets", split="validation")
    assert (source.split, source.class_names, source[0].name) == (names[1], ("cat",), f"cat/{names[1]}.png")


@pytest.mark.parametrize("split", ["Val", "val", "validation"])
def test_splits_of_a_saved_data_set_may_be_written_in_capitals(tmp_path, png, split):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": png(), "path": None}], "label": [0]}, features=features)
    datasets.DatasetDict({"Train": rows, "Val": rows}).save_to_disk(tmp_path / "saved")
    assert open_images(tmp_path / "saved", split=split).split == "Val"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_label_of_floats_is_missing_where_it_is_not_a_number(tmp_path, png, streaming):
    from datasets import Dataset, Features, Image, Value

    features = Features({"image": Image(), "label": Value("float64")})
    rows = {"image": [{"bytes": png(seed)} for seed in range(3)], "label": [2.0, float("nan"), 7.0]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "gaps.parquet")
    source = open_images(tmp_path / "gaps.parquet", streaming=streaming)
    assert source.class_names == ("2.0", "7.0")
    assert source.labels.tolist() == [0, -1, 1]
    assert source[1].label is None


def test_labels_of_a_table_are_read_once(parquet, png):
    source = open_images(parquet("train.parquet", [png(0), png(1)], [1, 0]))
    assert source.labels is source.labels


def test_parquet(parquet, png):
    path = parquet("test-00000-of-00001.parquet", [png(0), png(1), png(2)], [1, 0, 1])
    source = open_images(path)
    assert source.class_names == ("cat", "dog")
    assert source.split == "test"
    assert [sample.label for sample in source] == source.labels.tolist() == [1, 0, 1]
    assert source[2].name == "test-00000-of-00001.parquet[2]"
    assert np.array_equal(
        np.asarray(source[1].image), np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_endings_may_be_written_in_capitals(parquet, png, streaming):
    folder = parquet("TRAIN.PARQUET", [png(0)], [1]).parent
    parquet("VAL.PARQUET", [png(1), png(2)], [0, 1])
    assert splits_in(folder) == ["train", "validation"]
    assert [len(open_images(folder, split=split, streaming=streaming)) for split in splits_in(folder)] == [1, 2]
    assert len(open_images(folder / "VAL.PARQUET", streaming=streaming)) == 2


def test_a_folder_of_parquet_files_has_splits(parquet, png, raises_sentence):
    parquet("train-00000-of-00002.parquet", [png(0)], [0])
    parquet("train-00001-of-00002.parquet", [png(1), png(2)], [0, 1])
    folder = parquet("validation.parquet", [png(3)], [1]).parent
    source = open_images(folder, split="train")
    assert [sample.name for sample in source] == [
        "train-00000-of-00002.parquet[0]",
        "train-00001-of-00002.parquet[0]",
        "train-00001-of-00002.parquet[1]",
    ]
    assert len(open_images(folder, split="val")) == 1
    with raises_sentence(ValueError, "train, validation"):
        open_images(folder)
    with raises_sentence(ValueError, "'test'", "train, validation"):
        open_images(folder, split="test")


def test_parquet_labels_without_names_are_sorted(parquet, png):
    source = open_images(parquet("a.parquet", [png(0), png(1), png(2)], ["owl", "cat", None], class_names=None))
    assert source.class_names == ("cat", "owl")
    assert [sample.label for sample in source] == [1, 0, None]
    assert source.labels.tolist() == [1, 0, -1]


def test_another_column_of_labels(parquet, png, raises_sentence):
    path = parquet("a.parquet", [png()], [1])
    assert open_images(path, label="label")[0].label == 1
    with raises_sentence(ValueError, "'kind'", "image, label"):
        open_images(path, label="kind")


def test_a_stream_of_rows_gives_the_same_samples(row_stream, parquet, png):
    path = parquet("a.parquet", [png(0), b"broken", png(2), None], [1, 0, 1, 0])
    stream = row_stream(path, on_bad_image="skip")
    table = open_images(path, on_bad_image="skip")
    for _ in range(2):
        for one, other in zip(stream, table, strict=True):
            assert (one.index, one.label) == (other.index, other.label)
            assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert [bad.index for bad in stream.bad_images] == [1, 3]
    with pytest.raises(TypeError, match="streaming=False"):
        len(stream)


def test_a_source_can_be_pickled(class_folders, parquet, png):
    for source in (open_images(class_folders), open_images(parquet("a.parquet", [png(0), png(1)], [0, 1]))):
        copy = pickle.loads(pickle.dumps(source))
        assert [sample.name for sample in copy] == [sample.name for sample in source]
        assert copy.class_names == source.class_names


@pytest.mark.parametrize("kind", ["folders", "table", "chosen"])
def test_sizes_are_known_without_reading_the_images(class_folders, parquet, png, kind, monkeypatch):
    with (class_folders / "owl" / "0.png").open("ab") as file:
        file.write(b"!")
    source = open_images(class_folders)
    if kind == "table":
        source = open_images(parquet("a.parquet", [png(i) + bytes(i) for i in range(4)] + [None], [0, 1, 0, 1, 0]))
    if kind == "chosen":
        source = ChosenSource(source, [4, 1], split="mine")
    files = [source.encoded(index).file for index in range(len(source))]
    wanted = [-1 if file is None else len(file if isinstance(file, bytes) else file.read_bytes()) for file in files]
    monkeypatch.setattr("builtins.open", None)
    assert source.stored_sizes().tolist() == wanted
    assert len(set(wanted)) > 1


def test_a_picture_of_another_size_is_seen_wherever_it_is(class_folders):
    before = open_images(class_folders).sizes_digest
    assert open_images(class_folders).sizes_digest == before
    with (class_folders / "dog" / "0.png").open("ab") as file:
        file.write(b"!")
    assert open_images(class_folders).sizes_digest != before
    (class_folders / "dog" / "0.png").unlink()
    assert len(open_images(class_folders).sizes_digest) == 16


def test_sizes_are_of_the_rows_that_were_taken(parquet, png, tmp_path):
    from datasets import load_from_disk

    whole = open_images(parquet("a.parquet", [png(i) + bytes(i) for i in range(4)], [0, 1, 0, 1]))
    whole._table.select([2, 0]).save_to_disk(tmp_path / "some")
    assert open_images(tmp_path / "some").stored_sizes().tolist() == whole.stored_sizes()[[2, 0]].tolist()
    whole._table = whole._table.select([3, 1])
    assert whole.stored_sizes().tolist() == [len(png(3)) + 3, len(png(1)) + 1]
    assert load_from_disk(tmp_path / "some").num_rows == 2


def test_a_bad_image_stops_and_is_named(class_folders, raises_sentence):
    (class_folders / "cat" / "1.png").write_bytes(b"not a png")
    source = open_images(class_folders)
    assert source[0].label == 0
    with raises_sentence(BadImageError, "cat/1.png", "on_bad_image='skip'"):
        list(source)


def test_a_bad_image_is_left_out_and_listed_once(class_folders):
    (class_folders / "cat" / "1.png").write_bytes(b"not a png")
    source = open_images(class_folders, on_bad_image="skip")
    for _ in range(2):
        assert [sample.index for sample in source] == [0, 2, 3, 4, 5]
    (bad,) = source.bad_images
    assert (bad.index, bad.name) == (1, "cat/1.png")
    assert "not known" in bad.reason
    with pytest.raises(BadImageError):  # an index cannot be left out
        source[1]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("folder", [".", "cat"], ids=["flat", "of classes"])
def test_a_link_to_nothing_is_a_bad_image(tmp_path, write_image, folder):
    write_image(tmp_path / "pets" / folder / "0.png")
    (tmp_path / "pets" / folder / "1.png").symlink_to(tmp_path / "gone.png")
    source = open_images(tmp_path / "pets", on_bad_image="skip")
    assert len(source) == 2
    assert len(list(source)) == 1
    (bad,) = source.bad_images
    assert bad.name.endswith("1.png")


def test_an_index_that_is_not_there(class_folders):
    with pytest.raises(IndexError):
        open_images(class_folders)[6]


def test_what_is_no_source_is_refused(tmp_path, write_image, parquet, raises_sentence):
    (tmp_path / "empty").mkdir()
    with raises_sentence(ValueError, "holds no images"):
        open_images(tmp_path / "empty")
    with raises_sentence(ValueError, "no folder or file"):
        open_images(tmp_path / "gone")
    with raises_sentence(ValueError, "not Parquet"):
        open_images(write_image(tmp_path / "a.png"))
    with raises_sentence(ValueError, "no rows"):
        open_images(parquet("none.parquet", [], []))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with raises_sentence(ValueError, "broken.parquet", "Parquet"):
        open_images(tmp_path / "broken.parquet")
    write_image(tmp_path / "mixed" / "a.png")
    write_image(tmp_path / "mixed" / "cat" / "b.png")
    with raises_sentence(ValueError, "both images and folders"):
        open_images(tmp_path / "mixed")
    with raises_sentence(ValueError, "on_bad_image='ignore'"):
        open_images(tmp_path / "mixed" / "cat", on_bad_image="ignore")


def test_a_parquet_file_without_images(tmp_path, parquet, raises_sentence):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "text.parquet")
    with raises_sentence(ValueError, "text, label"):
        open_images(tmp_path / "text.parquet")


def test_parquet_without_the_metadata_of_datasets(tmp_path, parquet, png):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"image": [{"bytes": png(0)}, {"bytes": png(1)}], "label": [7, 3]}
    pq.write_table(pa.table(rows), tmp_path / "plain.parquet")
    source = open_images(tmp_path / "plain.parquet")
    assert source.class_names == ("3", "7")
    assert [sample.label for sample in source] == [1, 0]


def test_nothing_is_decoded_before_it_is_asked_for(class_folders, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", refuse)
    source = open_images(class_folders)
    assert source.labels.tolist() == [0, 0, 0, 1, 2, 2]
    assert source.encoded(0).label == 0
