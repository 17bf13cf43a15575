"""A run of `collect` that was stopped goes on from what was kept, and from that of no other run."""

import itertools
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from transformers import ViTImageProcessorPil

from qkvit import QKViTModel
from qkvit.analysis import TokenLayout, Zero, intervene, record
from qkvit.analysis.progress_file import ProgressFile
from qkvit.analysis.tally import Tally
from qkvit.data import batches, open_images
from qkvit.data.batching import ImageDataset, collate


class _StoppedError(Exception):
    pass


def stopping(forward_calls):
    """A forward that is stopped in the middle of the batch of that number."""
    calls = iter(range(100))

    def forward(model, pixel_values):
        model(pixel_values)
        if next(calls) == forward_calls:
            raise _StoppedError

    return forward


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_run_goes_on(model, source, tmp_path, after, over, quiet, assert_same):
    folder = tmp_path / "progress"
    (tmp_path / "pets" / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(_StoppedError):
        quiet(model, over(source, 1), progress_folder=folder, forward=stopping(after))
    source.bad_images.clear()
    seen = []

    def counting(model, pixel_values):
        seen.append(len(pixel_values))
        model(pixel_values)

    resumed = quiet(model, over(source, 1), progress_folder=folder, forward=counting)
    assert sum(seen) == 6 - after  # of seven, one is broken
    assert_same(resumed, quiet(model, over(source)))
    assert [bad["name"] for bad in resumed.bad_images] == ["cat/0.png"]
    assert not folder.exists()


def test_a_stopped_run_over_any_dataloader_goes_on(model, tmp_path, quiet):
    images = torch.rand(5, 3, 16, 16).split(1)
    with pytest.raises(_StoppedError):
        quiet(model, images, progress_folder=tmp_path, forward=stopping(2))
    resumed = quiet(model, images, progress_folder=tmp_path)
    torch.testing.assert_close(resumed.mean("entropy"), quiet(model, images).mean("entropy"), rtol=1e-9, atol=0)


def test_a_process_that_waits_for_the_others_has_kept_its_share(model, tmp_path, quiet, monkeypatch):
    def stopped(*arguments):
        raise _StoppedError

    module = sys.modules["qkvit.analysis.collect"]  # as an attribute of the package it is the function
    monkeypatch.setattr(module, "processes", lambda: (0, 2))
    monkeypatch.setattr(module, "refuse_in_all", lambda *_: None)
    monkeypatch.setattr(module, "merged", stopped)
    images = torch.rand(3, 3, 16, 16).split(1)
    for forward in (None, pytest.fail):  # nothing runs again
        with pytest.raises(_StoppedError):
            quiet(model, images, progress_folder=tmp_path, forward=forward)


def shuffled(images, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(images, 1, shuffle=True, generator=generator)


def test_an_order_that_does_not_come_again_is_refused(model, tmp_path, raises_sentence, quiet):
    images = torch.rand(5, 3, 16, 16)
    by_batch = DataLoader(images, batch_sampler=BatchSampler(RandomSampler(images), 2, False))
    for loader in (shuffled(images), by_batch):
        assert quiet(model, loader).images == 5
        with raises_sentence(ValueError, "RandomSampler", "another order each time"):
            quiet(model, loader, progress_folder=tmp_path)


def test_a_shuffled_run_goes_on_in_its_own_order(model, tmp_path, raises_sentence, quiet):
    images = torch.rand(5, 3, 16, 16)
    loader = shuffled(images, seed=0)
    with pytest.raises(_StoppedError):
        quiet(model, loader, progress_folder=tmp_path, forward=stopping(2))
    for other in (loader, shuffled(images, seed=1)):  # its generator has drawn
        with raises_sentence(ValueError, "another run (order"):
            quiet(model, other, progress_folder=tmp_path)
    resumed = quiet(model, shuffled(images, seed=0), progress_folder=tmp_path)
    torch.testing.assert_close(resumed.mean("entropy"), quiet(model, images.split(1)).mean("entropy"))


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"statistics": "entropy"}, {"layers": 0}, {"images": 3}])
def test_progress_of_another_run_is_refused(model, source, tmp_path, raises_sentence, change, over, quiet):
    with pytest.raises(_StoppedError):
        quiet(model, over(source, 1), progress_folder=tmp_path / "p", forward=stopping(2))
    plan = {"batch_size": 1} | {name: value for name, value in change.items() if name in ("batch_size", "images")}
    options = {name: value for name, value in change.items() if name not in plan}
    with raises_sentence(ValueError, "another run", "delete"):
        quiet(model, over(source, **plan), progress_folder=tmp_path / "p", **options)


def test_progress_over_a_changed_picture_is_refused(model, source, tmp_path, raises_sentence, over, quiet):
    with pytest.raises(_StoppedError):
        quiet(model, over(source, 1), progress_folder=tmp_path / "p", forward=stopping(2))
    changed = open_images(source.name)
    with changed.encoded(len(changed) - 1).file.open("ab") as file:
        file.write(b"!")
    with raises_sentence(ValueError, "another run (data: sizes", "delete"):
        quiet(model, over(changed, 1), progress_folder=tmp_path / "p")


def test_progress_of_another_model_is_refused(tiny_model, source, tmp_path, raises_sentence, over, quiet):
    with pytest.raises(_StoppedError):
        quiet(tiny_model(), over(source, 1), progress_folder=tmp_path / "p", forward=stopping(2))
    with raises_sentence(ValueError, "another run (model"):
        quiet(tiny_model(seed=1), over(source, 1), progress_folder=tmp_path / "p")


def test_progress_of_the_same_weights_in_another_model_is_refused(model, tiny_model, tmp_path, raises_sentence, quiet):
    images = torch.rand(3, 3, 16, 16).split(1)
    with pytest.raises(_StoppedError):
        quiet(model, images, progress_folder=tmp_path, forward=stopping(1))
    other = tiny_model(QKViTModel, num_register_tokens=1, hidden_act="relu")
    other.load_state_dict(model.state_dict())
    with raises_sentence(ValueError, "another run (config: hidden_act was 'gelu' and is 'relu' now)", "delete"):
        quiet(other, images, progress_folder=tmp_path)
    model.save_pretrained(tmp_path / "model")
    loaded = QKViTModel.from_pretrained(tmp_path / "model", attn_implementation="eager", dtype="float32").eval()
    assert quiet(loaded, images, progress_folder=tmp_path).images == 3


def test_an_edited_model_has_no_progress(model, tmp_path, raises_sentence, quiet):
    images = torch.rand(3, 3, 16, 16).split(1)
    with intervene(model, {(0, "query"): Zero()}):
        with raises_sentence(ValueError, "leave it out inside intervene"):
            quiet(model, images, progress_folder=tmp_path)
        quiet(model, images)
    with record(model):  # changes nothing
        assert quiet(model, images, progress_folder=tmp_path).images == 3


def test_batches_that_are_cut_otherwise_are_refused(model, tmp_path, raises_sentence, quiet):
    images = torch.rand(6, 3, 16, 16)
    with pytest.raises(_StoppedError):
        quiet(model, images.split(2), progress_folder=tmp_path, forward=stopping(2))
    for other, held in ((images.split(1), 2), (images.split(3), 6), (images[:2].split(2), 2)):
        with raises_sentence(ValueError, f"the first 2 batches hold {held} images, and held 4", "delete"):
            quiet(model, other, progress_folder=tmp_path)
    assert quiet(model, images.split(2), progress_folder=tmp_path).images == 6


def test_progress_of_other_preprocessing_is_refused(model, source, tmp_path, raises_sentence, quiet):
    """Every lambda has the same name."""
    transforms = [
        lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1,
        lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255,
    ]
    for other, is_ours in itertools.product(transforms, (True, False)):
        plan = batches(source, transforms[0], 1)
        loader = plan if is_ours else DataLoader(ImageDataset(source, transforms[0]), 1, collate_fn=collate)
        folder = tmp_path / str(is_ours)
        with pytest.raises(_StoppedError):
            quiet(model, loader, progress_folder=folder, forward=stopping(2))
        again = batches(source, other, 1)
        again = again if is_ours else DataLoader(ImageDataset(source, other), 1, collate_fn=collate)
        if other is transforms[0]:
            assert quiet(model, again, progress_folder=folder).images == 7
        else:
            with raises_sentence(ValueError, "another run (transform was '<function", "delete"):
                quiet(model, again, progress_folder=folder)


def test_progress_of_another_image_processor_is_refused_with_what_differs(
    model, source, tmp_path, raises_sentence, quiet
):
    def plan(**changes):
        size = {"height": 16, "width": 16}
        return batches(source, ViTImageProcessorPil(size=size, **changes), 1)

    with pytest.raises(_StoppedError):
        quiet(model, plan(), progress_folder=tmp_path / "p", forward=stopping(2))
    with raises_sentence(ValueError, "another run (transform: do_normalize was True and is False now)", "delete"):
        quiet(model, plan(do_normalize=False), progress_folder=tmp_path / "p")
    assert quiet(model, plan(), progress_folder=tmp_path / "p").images == 7


def test_progress_of_another_layout_or_of_other_class_names_is_refused(
    model, source, tmp_path, raises_sentence, over, quiet
):
    layout = TokenLayout.from_config(model.config)
    first = {"layout": layout, "class_names": ["cat", "dog", "owl"]}
    with pytest.raises(_StoppedError):
        quiet(model, over(source, 1), progress_folder=tmp_path / "p", forward=stopping(2), **first)
    other = TokenLayout(grid=(4, 4), num_prefix_tokens=3)
    with raises_sentence(ValueError, "another run (layout: num_prefix_tokens was 2 and is 3 now)", "delete"):
        quiet(model, over(source, 1), progress_folder=tmp_path / "p", **first | {"layout": other})
    with raises_sentence(ValueError, "another run (class names was ['cat', 'dog', 'owl'] and is ['a', 'b', 'c'] now)"):
        quiet(model, over(source, 1), progress_folder=tmp_path / "p", **first | {"class_names": "abc"})
    assert quiet(model, over(source, 1), progress_folder=tmp_path / "p", **first).images == 7


def test_progress_of_an_earlier_version_which_knew_less_of_its_run_is_taken(tmp_path):
    ProgressFile(tmp_path, {"model": "a"}).save(Tally())
    assert ProgressFile(tmp_path, {"model": "a", "transform": "b"}).load() is not None
    tensors, values = Tally(3).state()
    del values["class quantiles"]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("class_quantiles/")}
    assert Tally.from_state(tensors, values).num_classes == 3


def test_progress_of_another_number_of_processes_is_refused(tmp_path, raises_sentence):
    ProgressFile(tmp_path, {}, rank=1, world=2).save(Tally())
    with raises_sentence(ValueError, "2 processes"):
        ProgressFile(tmp_path, {}).load()


def test_a_broken_progress_file_is_refused(tmp_path, raises_sentence):
    file = ProgressFile(tmp_path, {})
    file.save(Tally())
    file.path.write_bytes(file.path.read_bytes()[:20])
    with raises_sentence(ValueError, "cannot be read", "delete"):
        file.load()


def test_progress_can_be_kept_until_the_result_is_written(model, source, tmp_path, over, quiet, assert_same):
    whole = quiet(model, over(source), progress_folder=tmp_path / "p", keep_progress=True)
    again = quiet(model, over(source), progress_folder=tmp_path / "p", forward=lambda *_: 1 / 0)
    assert_same(again, whole)
    assert not (tmp_path / "p").exists()


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.fixture(params=[OSError(28, "No space left on device"), SafetensorError(FULL)], ids=["OSError", "safetensors"])
def full(request):
    """What takes the place of `save_file` on a full disk."""

    def save_file(tensors, path, metadata):
        path.write_bytes(b"half")
        raise request.param

    return save_file


def test_a_full_disk_leaves_the_progress_of_before(tmp_path, monkeypatch, full):
    file = ProgressFile(tmp_path, {})
    tally = Tally()
    tally.images = 5
    file.save(tally)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    tally.images = 6
    with pytest.raises(OSError, match="No space"):
        file.save(tally)
    monkeypatch.undo()
    assert file.load().images == 5
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt, _StoppedError])
def test_a_full_disk_does_not_hide_what_stopped_the_run(
    model, source, tmp_path, over, quiet, monkeypatch, full, stopped_by
):
    def stop(model, pixel_values):
        model(pixel_values)
        if calls.pop():
            raise stopped_by

    folder, calls = tmp_path / "progress", [True, False, False]
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(stopped_by):
        quiet(model, over(source, 1), progress_folder=folder, forward=stop)
    assert not folder.exists()  # nothing could be kept
