"""Every image in its place, whatever the number of processes, workers and micro-batches."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ViTImageProcessorPil

from qkvit.data import BadImageError, SourceUnreachableError
from qkvit.training.errors import TrainingRefusedError
from qkvit.training.evaluation import evaluate
from qkvit.training.images import batches
from qkvit.training.images.bad_images import UnreachableImagesError, Unusable, check_usable, usable
from qkvit.training.images.batches import EpochBatches, EvaluationImages, TrainingImages
from qkvit.training.images.sources import SourceSplit, held_out_indices, open_splits
from qkvit.training.recipe import Augmentation, Data


def steps(images, batch, *, accumulation=1, world=1, epoch=0, **options):
    """The images of each optimisation step, in their order over micro-batches and processes."""
    ranks = []
    for rank in range(world):
        sampler = EpochBatches(images, batch, accumulation=accumulation, rank=rank, world=world, **options)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
    assert len({len(each) for each in ranks}) == 1
    rows = [list(chain(*micro)) for micro in zip(*ranks, strict=True)]
    return [list(chain(*rows[i : i + accumulation])) for i in range(0, len(rows), accumulation)]


@given(st.integers(1, 80), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(0, 5))
def test_a_step_has_the_same_images_in_the_same_order(images, world, accumulation, epoch):
    batch = 8 // world // accumulation or 1
    expected = steps(images, batch * world * accumulation, epoch=epoch)
    assert steps(images, batch, accumulation=accumulation, world=world, epoch=epoch) == expected


@given(st.integers(1, 80), st.integers(1, 9))
def test_each_image_once_and_nothing_but_a_rest_left_out(images, batch):
    seen = [index for step in steps(images, batch) for _, index, _ in step]
    assert len(seen) == len(set(seen)) == images // batch * batch


def test_every_epoch_and_seed_has_its_order():
    orders = [str(steps(40, 8, epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_repeats_meet_in_a_step_and_each_is_mixed_with_another_image(repeats):
    images = 8 * repeats**2
    keys = steps(images, 2 * repeats**2, repeats=repeats)
    for step in keys:
        assert len(set(step)) == len(step)
        assert len({index for _, index, _ in step}) == len(step) // repeats
        pairs = {frozenset((one[1], other[1])) for one, other in zip(step[::2], step[1::2], strict=True)}
        assert len(pairs) == len(step) // 2, "no two alike"
        assert all(len(pair) == 2 for pair in pairs), "none with itself"
    assert len(keys) == 4


class WithHoles:
    """Six images, of which some cannot be used."""

    labels = torch.arange(6).numpy()

    def __init__(self, bad, unreachable=()):
        self.bad = bad
        self.unreachable = unreachable

    def __len__(self):
        return 6

    def image(self, index):
        from PIL import Image

        if index in self.unreachable:
            raise SourceUnreachableError(f"image {index} cannot be read now (no answer); try again")
        if index in self.bad:
            raise BadImageError(f"image {index}: broken")
        return Image.new("RGB", (4, 4), (index, 0, 0))

    def name(self, index):
        return f"image {index}"


def test_an_unusable_image_is_replaced_by_the_next_and_named():
    images = TrainingImages(WithHoles({1, 2}), (4, 4), Augmentation(), 0, skip_bad=True)
    batch = images.__getitems__([(0, 1, 0), (0, 5, 0)])
    assert batch["labels"].tolist() == [3, 5]
    assert batch["images"][:, 0, 0, 0].tolist() == [3, 5]
    assert [name for name, _ in batch["bad"]] == ["image 1", "image 2"]


def test_an_unusable_image_stops_where_it_may_not_be_skipped():
    with pytest.raises(BadImageError, match="image 1"):
        TrainingImages(WithHoles({1}), (4, 4), Augmentation(), 0)[(0, 1, 0)]


def test_an_image_that_cannot_be_reached_stops_a_run_that_skips_bad_ones(raises_sentence):
    split = WithHoles({1}, {2})
    words = ("image 2 cannot be read now", "try again, with --resume")
    batch = TrainingImages(split, (4, 4), Augmentation(), 0, skip_bad=True).__getitems__([(0, 1, 0)])
    with raises_sentence(UnreachableImagesError, *words):
        check_usable([batch])
    held = EvaluationImages(split, lambda **given: {"pixel_values": torch.zeros(1, 3, 4, 4)}, skip_bad=True)
    with raises_sentence(UnreachableImagesError, *words):
        usable([held[0], held[2]], held)
    assert held.bad == {}


@pytest.mark.parametrize("together", [0, 40, 10**6])
def test_images_are_processed_together_as_they_are_alone(monkeypatch, together):
    class OfAllSizes(WithHoles):
        def image(self, index):
            return super().image(index).resize((4 + index, 9 - index))

    monkeypatch.setattr(batches, "PIXELS_TOGETHER", together)
    calls = []

    def processor(images, **given):
        calls.append(len(images))
        return transformers_processor(images=images, **given)

    transformers_processor = ViTImageProcessorPil(size={"height": 5, "width": 5})
    held = EvaluationImages(OfAllSizes({1, 5}), processor, skip_bad=True)
    found = held.__getitems__([4, 1, 0, 0, 5, 3, 2])
    assert calls == {0: [1] * 5, 40: [2, 2, 1], 10**6: [5]}[together]
    assert [isinstance(each, Unusable) for each in found] == [False, True, False, False, True, False, False]
    for index, each in zip([4, 0, 0, 3, 2], [each for each in found if not isinstance(each, Unusable)], strict=True):
        pixels, label = held[index]
        assert label == each[1] == index
        assert torch.equal(each[0], pixels)


def test_data_that_cannot_be_reached_are_not_taken_for_others(raises_sentence):
    class Unanswered:
        labels = torch.zeros(3, dtype=torch.int64).numpy()
        sizes_digest = ""

        def encoded(self, index):
            raise SourceUnreachableError(f"image {index} cannot be read now (no answer); try again")

    with raises_sentence(TrainingRefusedError, "image 0 cannot be read now"):
        SourceSplit(Unanswered()).digest()


def test_held_out_images_are_the_same_share_of_each_class_and_never_change():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3).numpy()
    kept, held = held_out_indices(labels, 0.2)
    assert sorted([*kept, *held]) == list(range(73))
    assert [int((labels[held] == label).sum()) for label in range(3)] == [10, 4, 1]
    assert held.tolist() == held_out_indices(labels, 0.2)[1].tolist()


def test_no_class_is_held_out_whole(raises_sentence):
    labels = torch.tensor([0] * 10 + [1] + [2] * 2).numpy()
    for share, held_of_each in ((0.2, [2, 0, 1]), (0.9, [9, 0, 1])):
        _, held = held_out_indices(labels, share)
        assert [int((labels[held] == label).sum()) for label in range(3)] == held_of_each
    with raises_sentence(TrainingRefusedError, "data.held_out=1", "train on"):
        held_out_indices(labels, 1.0)
    with raises_sentence(TrainingRefusedError, "data.held_out=0.2", "validate on"):
        held_out_indices(labels[10:11], 0.2)


def test_fewer_images_are_as_many_of_each_class():
    pytest.importorskip("sklearn")
    splits = open_splits(Data("digits", images=30))
    assert torch.bincount(torch.from_numpy(splits.train.labels)).tolist() == [3] * 10


class Constant(torch.nn.Module):
    """Says 1, whatever it sees."""

    def forward(self, pixel_values):
        logits = torch.zeros(len(pixel_values), 6)
        logits[:, 1] = 1
        return type("Out", (), {"logits": logits})()

    config = type("Config", (), {"num_labels": 6})()


@pytest.mark.parametrize("world", [1, 2, 4, 9])
def test_every_image_is_counted_once_also_with_more_processes_than_images(world):
    class Processed(EvaluationImages):
        def __getitems__(self, indices):
            return [(torch.zeros(3, 4, 4), int(self.split.labels[index])) for index in indices]

    images = Processed(WithHoles(set()), None)
    total, right = 0, 0.0
    reduce = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor: None
    try:
        for rank in range(world):
            measured = evaluate(Constant(), images, batch_size=2, rank=rank, world=world)
            total += measured["images"]
            right += measured.get("accuracy", 0) * measured["images"]
    finally:
        torch.distributed.all_reduce = reduce
    assert (total, right) == (6, 1)
