"""WebDataset shards are read by index, like everything else."""

import errno
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from qkvit.data import BadImageError, SourceUnreachableError, batches, open_images, shard_index
from qkvit.data.shard_index import expanded


def samples(png, labels, start=0):
    files = {}
    for number, label in enumerate(labels, start):
        files |= {f"{number:04d}.png": png(number), f"{number:04d}.cls": str(label).encode()}
    return files


@pytest.fixture
def shards(shard, png):
    """Three training shards of two images, one of validation."""
    for number in range(3):
        shard(f"pets/train-{number:04d}.tar", samples(png, [number % 2, 2], start=2 * number))
    return shard("pets/val-0000.tar", samples(png, [2, 1])).parent


def test_samples_have_the_pixels_and_labels_that_were_written(shards):
    source = open_images(shards, split="train")
    assert source.labels.tolist() == [sample.label for sample in source] == [0, 2, 1, 2, 0, 2]
    assert source.class_names == ("0", "1", "2")
    assert source[3].name == "train-0001.tar/0003.png"
    pixels = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(source[3].image), pixels)


def test_sizes_are_those_of_the_images_in_the_shards(shards):
    source = open_images(shards, split="train")
    assert source.stored_sizes().tolist() == [len(source.encoded(index).file) for index in range(6)]


def test_a_pattern_a_file_and_a_folder_with_splits(shards, raises_sentence):
    assert len(open_images(f"{shards}/train-{{0000..0002}}.tar")) == 6
    assert len(open_images(shards / "train-0001.tar")) == 2
    assert len(open_images(shards, split="validation")) == 2
    with raises_sentence(ValueError, "train, validation"):
        open_images(shards)
    with raises_sentence(ValueError, "train-0003.tar", "correct the numbers"):
        open_images(f"{shards}/train-{{0000..0003}}.tar")


def test_endings_may_be_written_in_capitals(shard, png):
    path = shard("pets/TRAIN-0000.TAR", samples(png, [0, 1]))
    assert [len(open_images(source, split="train")) for source in (path, path.parent)] == [2, 2]
    assert len(open_images(f"{path.parent}/TRAIN-{{0000..0000}}.TAR")) == 2


def test_files_with_several_dots_in_their_names(shard, png, raises_sentence):
    with raises_sentence(ValueError, "holds no images", "no dot in NAME"):
        open_images(shard("a.tar", {"cat.1.png": png(1), "cat.2.png": png(2)}))


def test_patterns():
    assert expanded("a-{0..1}/{09..10}.tar") == ["a-0/09.tar", "a-0/10.tar", "a-1/09.tar", "a-1/10.tar"]
    assert expanded("a.tar") == ["a.tar"]


def test_names_of_classes_come_from_a_file_beside_the_shards(shards, raises_sentence):
    (shards / "classes.txt").write_text("cat\ndog\nowl\nfox\n")
    source = open_images(shards, split="train")
    assert source.class_counts == {"cat": 2, "dog": 1, "owl": 3, "fox": 0}
    (shards / "classes.txt").write_text("cat\ndog\ncat\n")
    with raises_sentence(ValueError, "names the class cat twice"):
        open_images(shards, split="train")
    (shards / "classes.txt").write_text("cat\ndog\n")
    with raises_sentence(ValueError, "label 2", "classes.txt has 2 lines"):
        open_images(shards, split="train")


def test_labels_as_text_are_names(shard, png):
    source = open_images(shard("a.tar", samples(png, ["owl", "cat", "owl"])))
    assert (source.class_names, source.labels.tolist()) == (("cat", "owl"), [1, 0, 1])


def test_labels_in_json_files(shard, png, raises_sentence):
    files = {}
    for number, label in enumerate([1, 0]):
        files |= {f"{number}.png": png(number), f"{number}.json": json.dumps({"label": label, "kind": "x"}).encode()}
    path = shard("a.tar", files)
    assert open_images(path).labels.tolist() == [1, 0]
    assert open_images(path, label="kind").class_names == ("x",)
    with raises_sentence(ValueError, "'other'", "kind, label"):
        open_images(path, label="other")
    with raises_sentence(ValueError, "0.png", ".json"):
        open_images(shard("b.tar", {"0.png": png(), "0.json": b"{"}))


@pytest.mark.parametrize("label", [{"id": 1}, [[1]], 0.5])
def test_what_is_no_label_in_a_json_file(shard, png, raises_sentence, label):
    files = {"0.png": png(), "0.json": json.dumps({"label": label}).encode()}
    with raises_sentence(ValueError, "a.tar/0.png", json.dumps(label), "a whole number, text or a list"):
        open_images(shard("a.tar", files), multi_label=True)


def test_rows_of_zeros_and_ones_are_not_taken_for_indices(shard, png, raises_sentence):
    files = {}
    for number, labels in enumerate([[0, 0, 1], [1, 0, 1]]):
        files |= {f"{number}.png": png(number), f"{number}.json": json.dumps({"label": labels}).encode()}
    with raises_sentence(ValueError, "rows of 3 zeros and ones", "[0, 2] for [1, 0, 1]"):
        open_images(shard("a.tar", files), multi_label=True)


def test_several_labels_in_json_files(shard, png, raises_sentence):
    sets = [[2, 0, 2, None], [], None]
    files = {}
    for number, labels in enumerate(sets):
        files |= {f"{number}.png": png(number), f"{number}.json": json.dumps({"label": labels}).encode()}
    path = shard("a.tar", files)
    source = open_images(path, multi_label=True)
    assert [sample.label for sample in source] == [(2, 0), (), None]
    assert source.labels[0].tolist() == [1, 0, 1]
    assert list(source.class_counts.values()) == [1, 0, 1]
    assert source.labels.known.tolist() == [True, True, False]
    with raises_sentence(ValueError, "several for an image"):
        open_images(path)


def test_other_files_other_orders_and_images_without_labels(shard, png):
    source = open_images(
        shard(
            "a.tar",
            {"README": b"", "x/2.cls": b"1", ".hidden.png": b"", "x/1.png": png(1), "x/2.png": png(2), "x/1.txt": b"a"},
        )
    )
    assert [(sample.name, sample.label) for sample in source] == [("a.tar/x/2.png", 1), ("a.tar/x/1.png", None)]
    assert open_images(shard("b.tar", {"1.png": png()})).class_names is None


@pytest.mark.parametrize("twice", ["x/1.png", "x/1.PNG", "x/1.cls", "x/1.json"])
def test_a_key_that_comes_twice_is_refused(shard, png, raises_sentence, twice):
    path = shard("a.tar", {"x/1.png": png(), "x/1.cls": b"0", "x/1.json": b"{}", "x/1.txt": b"a", "x/1.jpg": png()})
    assert open_images(path).labels.tolist() == [0]
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("x/1.txt"))
    assert len(open_images(path)) == 1
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo(twice))
    with raises_sentence(ValueError, "a.tar", twice.lower(), "a key of its own"):
        open_images(path)


def test_images_of_no_sample_are_counted(shard, png):
    files = {"1.png": png(), "1.mask.png": png(), "2.v1.png": png(), "2.cls": b"0", "3.v2.JPG": png(), ".4.a.png": b""}
    for _ in range(2):  # also from the cache
        assert open_images(shard("a.tar", files)).passed_over == {".png": 1, ".jpg": 1}


def test_bad_images_are_named(shard, png):
    source = open_images(shard("a.tar", {"1.png": b"broken", "1.cls": b"0", "2.cls": b"0", "3.png": png()}))
    for index, word in ((0, "1.png"), (1, "no image")):
        with pytest.raises(BadImageError, match=word):
            source[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_pickles_read_the_same(shards, transform, workers):
    source = pickle.loads(pickle.dumps(open_images(shards, split="train")))
    names = [name for batch in batches(source, transform, 2, workers) for name in batch["name"]]
    assert names == [sample.name for sample in source]


def test_an_archive_beside_the_images_that_came_in_it_is_passed_over(shard, png, tmp_path):
    path = shard("pets/train.tar", samples(png, [0, 1]))
    (path.parent / "cat").mkdir()
    (path.parent / "cat" / "1.png").write_bytes(png(1))
    assert [sample.name for sample in open_images(path.parent)] == ["cat/1.png"]


def test_a_shard_is_scanned_once_and_again_when_it_has_changed(shard, png, monkeypatch):
    path = shard("a.tar", samples(png, [0, 1]))
    before = open_images(path).labels.tolist()
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "_scan", None)
        assert open_images(path).labels.tolist() == before
    shard("a.tar", samples(png, [1, 1, 0]))
    assert open_images(path).labels.tolist() == [1, 1, 0]


def test_shards_that_cannot_be_read(shard, png, tmp_path, raises_sentence):
    whole = shard("a.tar", {"1.png": png(), "2.png": b"x" * 4000})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:2500])
    with raises_sentence(ValueError, "cut.tar", "cut short"):
        open_images(tmp_path / "cut.tar")
    with tarfile.open(tmp_path / "zip.tar", "w:gz") as tar:
        tar.add(whole, "a")
    with raises_sentence(ValueError, "zip.tar", "compressed"):
        open_images(tmp_path / "zip.tar")
    (tmp_path / "no.tar").write_bytes(b"something else" * 100)
    with raises_sentence(ValueError, "no.tar", "tar file"):
        open_images(tmp_path / "no.tar")
    with raises_sentence(ValueError, "holds no images"):
        open_images(shard("empty.tar", {"a.txt": b""}))


def test_a_cache_that_cannot_be_written_does_no_harm(shard, png, tmp_path, monkeypatch):
    path = shard("a.tar", samples(png, [0, 1]))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_images(path)) == 2


def test_large_images_keep_their_limit(shard, tmp_path):
    import io

    content = io.BytesIO()
    Image.new("RGB", (50, 50)).save(content, "png")
    with pytest.raises(BadImageError, match="more than 100"):
        open_images(shard("a.tar", {"1.png": content.getvalue()}), max_pixels=100)[0]


def test_a_shard_on_a_file_system_that_does_not_answer_is_no_bad_image(shard, png, monkeypatch, raises_sentence):
    source = open_images(shard("a.tar", samples(png, [0, 1])))
    for number, expected in ((errno.EHOSTUNREACH, SourceUnreachableError), (errno.EIO, BadImageError)):
        with monkeypatch.context() as patch:
            patch.setattr(
                "pathlib.Path.open", lambda *args, number=number: (_ for _ in ()).throw(OSError(number, "gone"))
            )
            with raises_sentence(expected, "gone"):
                source[0]
