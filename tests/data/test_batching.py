"""Every image is in exactly one batch, whatever the batch size, the workers and the processes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qkvit.data import BadImageError, ImageDataset, SourceUnreachableError, batches, open_images


class _BreaksOff:
    """The first three rows of a table."""

    def __init__(self, table):
        self.table = table

    def __iter__(self):
        yield from itertools.islice(self.table, 3)
        raise RuntimeError("the server went away")  # each library has a kind of its own


def seen(plan):
    return [index for batch in plan for index in batch["index"].tolist()]


@given(batch_size=st.integers(1, 9), world=st.integers(1, 9), images=st.none() | st.integers(1, 9))
def test_every_image_is_in_exactly_one_batch(class_folders, transform, batch_size, world, images):
    source = open_images(class_folders)
    found = []
    for rank in range(world):  # also more processes than images
        plan = batches(source, transform, batch_size, shard=(rank, world), images=images)
        assert len(list(plan)) == len(plan)
        found += seen(plan)
    assert len(found) == min(images or 6, 6)
    assert len(set(found)) == len(found)
    assert sorted(found) == sorted(seen(batches(source, transform, 6, images=images)))


def test_a_batch_holds_what_the_source_gives(class_folders, transform):
    source = open_images(class_folders)
    first, last = batches(source, transform, batch_size=4)
    assert first["pixel_values"].shape == (4, 3, 4, 4)
    assert torch.equal(first["pixel_values"][2], transform(source[2].image))
    assert first["labels"].tolist() == [0, 0, 0, 1]
    assert last["index"].tolist() == [4, 5]
    assert last["name"] == ["owl/0.png", "owl/1.png"]


def test_images_without_labels(tmp_path, write_image, transform):
    write_image(tmp_path / "images" / "a.png")
    (batch,) = batches(open_images(tmp_path / "images"), transform)
    assert batch["labels"].tolist() == [-100]


def test_workers_give_the_same_batches(class_folders, transform):
    (class_folders / "cat" / "1.png").write_bytes(b"broken")
    source = open_images(class_folders, on_bad_image="skip")
    alone = list(batches(source, transform, batch_size=2))
    source.bad_images.clear()
    for one, other in zip(alone, batches(source, transform, batch_size=2, num_workers=2), strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["name"] == other["name"]
    assert [bad.name for bad in source.bad_images] == ["cat/1.png"]  # also those that a worker saw


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_stops_with_one_sentence(class_folders, transform, raises_sentence, workers):
    (class_folders / "cat" / "1.png").write_bytes(b"broken")
    with raises_sentence(BadImageError, "cat/1.png"):
        list(batches(open_images(class_folders), transform, num_workers=workers))


def test_a_batch_of_bad_images_is_left_out(class_folders, transform):
    for index in (0, 1):
        (class_folders / "owl" / f"{index}.png").write_bytes(b"")
    source = open_images(class_folders, on_bad_image="skip")
    assert seen(batches(source, transform, batch_size=2)) == [0, 1, 2, 3]
    assert len(source.bad_images) == 2


@given(first=st.integers(0, 5))
def test_a_start_in_the_middle(class_folders, transform, first):
    plan = batches(open_images(class_folders), transform, batch_size=2, shard=(0, 1))
    later = plan.starting_at(first)
    assert seen(later) == seen(plan)[2 * first :]
    assert len(later) == len(list(later))
    assert [number for number, _ in later.numbered()] == list(range(3))[first:]


def test_images_are_drawn_by_the_seed(class_folders, transform):
    source = open_images(class_folders)
    draws = [tuple(seen(batches(source, transform, images=3, seed=seed))) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1
    assert all(list(draw) == sorted(draw) for draw in draws)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_rows_in_batches_and_shares(row_stream, parquet, png, transform, workers):
    source = row_stream(parquet("a.parquet", [png(i) for i in range(7)], [0] * 7))
    shares = [seen(batches(source, transform, 2, workers, shard=(rank, 2))) for rank in (0, 1)]
    assert shares == [[0, 2, 4, 6], [1, 3, 5]]
    assert seen(batches(source, transform, 2, workers, images=5)) == [0, 1, 2, 3, 4]
    assert seen(batches(source, transform, 2, workers).starting_at(2)) == [4, 5, 6]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_breaks_off_ends_in_one_sentence(
    row_stream, parquet, png, transform, workers, raises_sentence, monkeypatch
):
    source = row_stream(parquet("a.parquet", [png(i) for i in range(7)], [0] * 7), on_bad_image="skip")
    monkeypatch.setattr(source, "_table", _BreaksOff(source._table))
    words = ("a.parquet[3]", "the server went away", "try again")
    with raises_sentence(ValueError, *words):
        seen(batches(source, transform, 2, workers))
    with raises_sentence(SourceUnreachableError, *words):
        list(source)
    assert source.bad_images == []
    assert seen(batches(source, transform, 2, workers, images=3)) == [0, 1, 2]


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_an_image_processor_and_pictures_of_every_shape(tmp_path, backend):
    if backend == "torchvision":
        pytest.importorskip("torchvision")
    from transformers import ViTImageProcessor, ViTImageProcessorPil

    (tmp_path / "images").mkdir()
    for size in ((1, 1), (3, 40), (40, 3), (1, 3), (30, 30)):
        Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "images" / f"{size[0]}x{size[1]}.png")
    kind = ViTImageProcessorPil if backend == "pil" else ViTImageProcessor
    processor = kind(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    (batch,) = batches(open_images(tmp_path / "images"), processor)
    expected = torch.tensor([1.0, -1, -1])[None, :, None, None].expand(5, 3, 8, 8)
    assert torch.allclose(batch["pixel_values"], expected)


def test_a_transform_that_fails_names_the_image(class_folders, raises_sentence):
    def broken(image):
        raise RuntimeError("no.\nsecond line")

    with raises_sentence(ValueError, "cat/0.png", "6 x 5", "no"):
        list(batches(open_images(class_folders, on_bad_image="skip"), broken))


def test_pictures_of_two_sizes_in_one_batch(tmp_path, write_image, raises_sentence):
    write_image(tmp_path / "images" / "a.png", size=(4, 4))
    write_image(tmp_path / "images" / "b.png", size=(4, 5))

    def as_it_is(image):
        return torch.zeros(3, image.height, image.width)

    with raises_sentence(ValueError, "sizes", "batch_size=1"):
        list(batches(open_images(tmp_path / "images"), as_it_is))


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"num_workers": -1}, {"images": 0}, {"shard": (2, 2)}, {"shard": (-1, 2)}]
)
def test_wrong_arguments(class_folders, transform, raises_sentence, wrong):
    with raises_sentence(ValueError, next(iter(wrong))):
        batches(open_images(class_folders), transform, **wrong)


def test_a_dataset_for_a_trainer(class_folders, transform):
    dataset = ImageDataset(open_images(class_folders), transform)
    assert len(dataset) == 6
    assert dataset[3]["labels"] == 1
    assert dataset[3]["pixel_values"].shape == (3, 4, 4)
