"""Parquet files read where they lie give what a copy would give."""

import os
import pickle
import shutil

import numpy as np
import pytest

from qkvit.data import BadImageError, SourceUnreachableError, batches, open_images
from qkvit.data.inspection import inspect
from qkvit.data.parquet_source import ParquetSource
from qkvit.data.splits import split_of


@pytest.fixture
def rows(parquet, png):
    """Two files of 7 and 4 rows, in row groups of 3."""
    import pyarrow.parquet as pq

    for number, count in enumerate((7, 4)):
        path = parquet(f"train-{number:05d}-of-00002.parquet", [png(10 * number + i) for i in range(count)], [0, 1] * 5)
        table = pq.read_table(path).slice(0, count)
        pq.write_table(table, path, row_group_size=3)
    return path.parent


@pytest.fixture
def parquet(parquet):
    def write(name, files, labels, **options):
        return parquet(name, files, labels[: len(files)], **options)

    return write


def test_rows_are_those_of_the_copy(rows):
    lazy, copied = open_images(rows, streaming=True), open_images(rows)
    assert isinstance(lazy, ParquetSource)
    assert lazy.labels.tolist() == copied.labels.tolist()
    assert lazy.class_names == copied.class_names
    for one, other in zip(lazy, copied, strict=True):
        assert (one.name, one.label) == (other.name, other.label)
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert lazy.group_ends.tolist() == [3, 6, 7, 10, 11]


def test_a_picture_of_another_size_is_seen_in_the_sizes_of_the_row_groups(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = open_images(rows, streaming=True)
    assert len(source.stored_sizes()) == len(source.group_ends)
    assert (source.stored_sizes() > 0).all()
    path = sorted(rows.glob("*.parquet"))[1]
    table = pq.read_table(path).to_pylist()
    table[2]["image"]["bytes"] += b"!"
    pq.write_table(pa.Table.from_pylist(table, schema=pq.read_schema(path)), path, row_group_size=3)
    changed = open_images(rows, streaming=True)
    assert np.flatnonzero(changed.stored_sizes() != source.stored_sizes()).tolist() == [3]
    assert changed.sizes_digest != source.sizes_digest


def test_only_so_many_groups_are_in_memory(rows):
    source = open_images(rows, streaming=True)
    for _ in source:
        assert len(source._kept) <= source.kept_groups == 2
    copy = pickle.loads(pickle.dumps(source))
    assert not copy._kept
    assert copy[10].name == source[10].name


def test_nothing_is_copied(rows, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", None)
    assert len(list(open_images(rows, streaming=True))) == 11
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_shares_and_workers(rows, transform, workers):
    source = open_images(rows, streaming=True)
    found = [
        index
        for rank in (0, 1)
        for batch in batches(source, transform, 2, workers, shard=(rank, 2))
        for index in batch["index"].tolist()
    ]
    assert sorted(found) == list(range(11))


def test_addresses_of_other_file_systems(rows, raises_sentence):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for file in os.listdir(rows):
        memory.pipe(f"/pets/{file}", (rows / file).read_bytes())
    try:
        source = open_images("memory://pets", streaming=True)
        assert [sample.label for sample in source] == open_images(rows).labels.tolist()
        for file in os.listdir(rows):
            memory.mv(f"/pets/{file}", f"/pets/{file.upper()}")
        assert len(open_images("memory://pets", streaming=True)) == len(source)
        with raises_sentence(ValueError, "streaming"):
            open_images("memory://pets")
        with raises_sentence(ValueError, "no Parquet files"):
            open_images("memory://elsewhere", streaming=True)
        with raises_sentence(ValueError, "nonsense"):
            open_images("nonsense://pets", streaming=True)
    finally:
        memory.rm("/pets", recursive=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_part_of_a_set_is_refused_unless_it_is_named_or_renamed(rows, streaming, raises_sentence):
    first, second = sorted(rows.glob("*.parquet"))
    second.unlink()
    with raises_sentence(ValueError, "1 file train-...-of-00002 and not 2", "complete the set", "rename the files"):
        open_images(rows, streaming=streaming)
    assert len(open_images(first, streaming=streaming)) == 7
    first.rename(rows / "train-0.parquet")
    assert len(open_images(rows, streaming=streaming)) == 7


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_left_of_another_set_is_refused_and_another_split_is_not(rows, streaming, raises_sentence):
    first, second = sorted(rows.glob("*.parquet"))
    shutil.copy(first, rows / "test-00000-of-00003.parquet")
    assert len(open_images(rows, "train", streaming=streaming)) == 11
    shutil.copy(second, rows / "train-00000-of-00001.parquet")
    with raises_sentence(ValueError, "3 files train-...-of-0000"):
        open_images(rows, "train", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_sets_in_two_folders_are_not_joined(parquet, png, tmp_path, streaming, raises_sentence):
    path = parquet("train-00000-of-00001.parquet", [png(0)], [0])
    for name in ("full", "mini"):
        (tmp_path / "sets" / name).mkdir(parents=True)
        shutil.copy(path, tmp_path / "sets" / name)
    with raises_sentence(
        ValueError, path.name, f"name one of {tmp_path / 'sets' / 'full'}, {tmp_path / 'sets' / 'mini'}"
    ):
        open_images(tmp_path / "sets", streaming=streaming)
    assert len(open_images(tmp_path / "sets" / "mini", streaming=streaming)) == 1


@pytest.mark.parametrize("folders", [("year=2020", "year=2021"), ("chunk-000", "chunk-001")])
def test_a_set_that_is_cut_by_a_column_or_into_numbered_folders_is_one(parquet, png, tmp_path, folders):
    name = "data-00000-of-00001.parquet" if "=" in folders[0] else "file-000.parquet"
    path = parquet(name, [png(0)], [0])
    for folder in folders:
        (tmp_path / "set" / folder).mkdir(parents=True)
        shutil.copy(path, tmp_path / "set" / folder)
    assert len(open_images(tmp_path / "set", streaming=True)) == 2


def test_sets_in_two_folders_are_not_joined_at_an_address_either(rows, raises_sentence):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    content = (rows / "train-00000-of-00002.parquet").read_bytes()
    for name in ("full", "mini"):
        memory.pipe(f"/sets/{name}/train-00000-of-00001.parquet", content)
    try:
        with raises_sentence(ValueError, "name one of memory:///sets/full, memory:///sets/mini"):
            open_images("memory://sets", streaming=True)
        assert len(open_images("memory://sets/mini", streaming=True)) == 7
        memory.mv("/sets/mini/train-00000-of-00001.parquet", "/sets/mini/train-00000-of-00002.parquet")
        with raises_sentence(ValueError, "1 file train-...-of-00002 and not 2"):
            open_images("memory://sets/mini", streaming=True)
        assert len(open_images("memory://sets/mini/train-00000-of-00002.parquet", streaming=True)) == 7
    finally:
        memory.rm("/sets", recursive=True)


def test_labels_without_names_are_read_once(parquet, png, monkeypatch):
    path = parquet("a.parquet", [png(0), png(1)], ["owl", "cat"], class_names=None)
    asked, read = [], ParquetSource._label_cells
    monkeypatch.setattr(ParquetSource, "_label_cells", lambda *args: asked.append(args) or read(*args))
    assert open_images(path, streaming=True).labels.tolist() == [1, 0]
    assert len(asked) == 1


class RefusedError(Exception):
    """As the errors of HTTP clients: no OSError."""


@pytest.fixture
def far(rows):
    """The rows behind a file system that can be made to fail, or to lose its files."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for file in os.listdir(rows):
        memory.pipe(f"/far/{file}", (rows / file).read_bytes())
    yield memory
    if memory.exists("/far"):
        memory.rm("/far", recursive=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error",
    [TimeoutError("no answer"), ConnectionResetError("reset"), RefusedError("503"), OSError(116, "Stale file handle")],
)
def test_an_outage_is_no_bad_image(far, transform, monkeypatch, raises_sentence, workers, error):
    source = open_images("memory://far", streaming=True, on_bad_image="skip")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(type(far), "_open", fail)
    words = ("[0] cannot be read now", "try again when its storage answers")
    with raises_sentence(SourceUnreachableError, *words):
        source[0]
    with raises_sentence(ValueError, *words):
        list(batches(source, transform, 2, workers))
    with raises_sentence(SourceUnreachableError, *words):
        inspect(source, workers)
    assert source.bad_images == []


def test_a_file_that_is_gone_is_no_outage(far):
    source = open_images("memory://far", streaming=True, on_bad_image="skip")
    far.rm("/far", recursive=True)
    assert list(source) == []
    assert len(source.bad_images) == len(source)


def test_damage_behind_a_network_is_no_outage(far, rows):
    source = open_images("memory://far", streaming=True, on_bad_image="skip")
    content = bytearray((rows / "train-00000-of-00002.parquet").read_bytes())
    content[4:200] = bytes(196)
    far.pipe("/far/train-00000-of-00002.parquet", bytes(content))
    assert len(list(source)) == 8
    assert [bad.index for bad in source.bad_images] == [0, 1, 2]


def test_a_row_group_that_is_damaged_is_a_bad_image(rows, transform):
    path = rows / "train-00000-of-00002.parquet"
    source = open_images(path, streaming=True, on_bad_image="skip")
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=r"\[0\]"):
        source[0]
    for workers in (0, 2):
        kept = [index for batch in batches(source, transform, 2, workers) for index in batch["index"].tolist()]
        assert kept == [3, 4, 5, 6]
    assert len(list(source)) == 4


def test_labels_without_names_and_lists(parquet, png, tmp_path, raises_sentence):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"image": [{"bytes": png(i)} for i in range(3)], "label": [["owl", "cat"], [], None]}
    pq.write_table(pa.table(rows), tmp_path / "sets.parquet")
    for streaming in (False, True):
        source = open_images(tmp_path / "sets.parquet", streaming=streaming, multi_label=True)
        assert (source.class_names, source.multi_label) == (("cat", "owl"), True)
        assert [sample.label for sample in source] == [(1, 0), (), None]
        assert source.labels[0].tolist() == [1, 1]
        assert source.class_counts == {"cat": 1, "owl": 1}
        with raises_sentence(ValueError, "'label'", "several for an image"):
            open_images(tmp_path / "sets.parquet", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["int8", "float32", "bool_"])
def test_rows_of_zeros_and_ones_are_not_taken_for_indices(parquet, png, tmp_path, raises_sentence, streaming, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sets = pa.array([[0, 0, 1], [1, 0, 1]]).cast(pa.list_(getattr(pa, kind)()))
    rows = {"image": [{"bytes": png(i)} for i in range(2)], "label": sets}
    pq.write_table(pa.table(rows), tmp_path / "sets.parquet")
    with raises_sentence(ValueError, "rows of 3 zeros and ones", "[0, 2] for [1, 0, 1]"):
        open_images(tmp_path / "sets.parquet", streaming=streaming, multi_label=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("label", [{"id": 1}, [[1]]])
def test_a_column_that_holds_no_labels(parquet, png, tmp_path, raises_sentence, streaming, label):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [{"bytes": png()}], "label": [label]}), tmp_path / "a.parquet")
    with raises_sentence(ValueError, "column 'label'", "neither numbers nor text"):
        open_images(tmp_path / "a.parquet", streaming=streaming, multi_label=True)


def test_multi_hot_labels_in_batches(png, tmp_path, transform):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=["cat", "dog", "owl"]))}
    )
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": [[2, 0], [], None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    source = open_images(tmp_path / "saved", multi_label=True)
    (batch,) = batches(source, transform)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [-100, -100, -100]]


def test_arrow_files_and_saved_data_sets(parquet, png, tmp_path, raises_sentence):
    import datasets

    path = parquet("a.parquet", [png(i) for i in range(5)], [0, 1, 0, 1, 1])
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    table.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": table, "test": table.select([4])}).save_to_disk(tmp_path / "two")
    expected = [sample.label for sample in open_images(path)]
    assert [sample.label for sample in open_images(tmp_path / "one")] == expected
    assert open_images(tmp_path / "two", split="test")[0].label == 1
    with raises_sentence(ValueError, "train, test"):
        open_images(tmp_path / "two")
    (tmp_path / "loose").mkdir()
    for file in (tmp_path / "one").glob("*.arrow"):
        file.rename(tmp_path / "loose" / file.name.replace("data", "train"))
    source = open_images(tmp_path / "loose")
    assert [sample.label for sample in source] == expected
    assert source[4].name == "train-00001-of-00002.arrow[1]"
    (tmp_path / "broken.arrow").write_bytes(b"no")
    with raises_sentence(ValueError, "broken.arrow"):
        open_images(tmp_path / "broken.arrow")


def test_the_split_of_a_file():
    assert [split_of(name) for name in ("fold_1.parquet", "fold_2.parquet")] == ["fold_1", "fold_2"]
    assert split_of("data/dev/0000.parquet") == "validation"
    assert split_of("train-00000-of-00001-0123abcd.parquet") == "train"


def test_cells_that_hold_a_path_or_no_file(tmp_path, png):
    (tmp_path / "0.png").write_bytes(png(0))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = {"path": [str(tmp_path / "0.png"), str(tmp_path / "1.png")], "pixels": [[1, 2], [3, 4]]}
    for name, images in cells.items():
        pq.write_table(pa.table({"image": images, "label": ["a", "b"]}), tmp_path / f"{name}.parquet")
        source = open_images(tmp_path / f"{name}.parquet", streaming=True, on_bad_image="skip")
        assert len(list(source)) == (name == "path")
        assert source.encoded(0).file == (tmp_path / "0.png" if name == "path" else None)
