"""Several processes collect what one does, each its own share, also when they were stopped."""

import multiprocessing
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qkvit
from qkvit.analysis.tally import Tally
from qkvit.data import open_images


@settings(max_examples=8)
@given(world=st.integers(1, 9), batch_size=st.integers(1, 7), workers=st.just(0))
def test_shares_merge_to_the_whole(model, source, world, batch_size, workers, over, quiet, assert_same):
    whole = quiet(model, over(source), rollout=True)
    total = Tally(3, class_quantiles=True)
    for rank in range(world):
        share = over(source, batch_size, shard=(rank, world), num_workers=workers)
        if share.indices:
            total.merge(Tally.from_state(*quiet(model, share, rollout=True)._tally.state()))
        else:
            total.merge(Tally.from_state(*Tally(3, class_quantiles=True).state()))
    assert_same(type(whole).from_tally(total, source.class_names), whole)


def _one_process(rank, world, folder, quiet, over, meet="meet", **options):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{meet}-{world}", rank=rank, world_size=world)
    model = qkvit.QKViTModel.from_pretrained(f"{folder}/model")
    source = open_images(f"{folder}/pets", on_bad_image="skip")
    collected = quiet(model, over(source, 2, shard=(rank, world)), **options)
    torch.save((*collected._tally.state(), len(collected.bad_images)), f"{folder}/result-{world}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("world", [2, 9])
def test_processes_get_the_numbers_of_one(model, source, tmp_path, world, over, quiet, assert_same):
    """Also with a bad image, a last batch that is uneven, and more processes than images."""
    (tmp_path / "pets" / "cat" / "3.png").write_bytes(b"broken")
    model.save_pretrained(tmp_path / "model")
    whole = quiet(model, over(source))
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_one_process, args=(rank, world, tmp_path, quiet, over)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
        assert process.exitcode == 0
    for rank in range(world):
        *state, bad = torch.load(tmp_path / f"result-{world}-{rank}.pt")
        assert_same(type(whole).from_tally(Tally.from_state(*state), source.class_names), whole)
        assert bad == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.filterwarnings("ignore")
def test_processes_that_were_stopped_go_on_to_the_numbers_of_one(model, source, tmp_path, over, quiet, assert_same):
    """The second of two dies in its second batch, while the first has finished and waits for it."""
    model.save_pretrained(tmp_path / "model")
    context = multiprocessing.get_context("fork")

    def failing(model, pixel_values):
        if len(pixel_values) == 1:
            raise RuntimeError("stopped")
        model(pixel_values)

    def refused(model, pixel_values):
        raise RuntimeError("these images were seen")

    for meet, forwards, codes in (("stop", (None, failing), {1}), ("go on", (refused, None), {0})):
        processes = [
            context.Process(
                target=_one_process,
                args=(rank, 2, tmp_path, quiet, over, meet),
                kwargs={"forward": forward, "progress_folder": tmp_path / "progress"},
            )
            for rank, forward in enumerate(forwards)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=240)
        assert {process.exitcode for process in processes} == codes
    assert not (tmp_path / "progress").exists()
    whole = quiet(model, over(source))
    for rank in range(2):
        *state, _ = torch.load(tmp_path / f"result-2-{rank}.pt")
        assert_same(type(whole).from_tally(Tally.from_state(*state), source.class_names), whole)


def _whole_in_a_process(rank, folder, quiet, over):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = qkvit.QKViTModel.from_pretrained(f"{folder}/model")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    quiet(model, images[rank::2].split(1), statistics="entropy")
    for _ in range(2):  # the second time all is in the progress
        with pytest.raises(ValueError, match="processes 0 and 1 ran the same 4 images"):
            quiet(model, images.split(2), statistics="entropy", progress_folder=f"{folder}/progress")
    with pytest.raises(ValueError, match=r"process 1 of 2 was given the batches of shard \(0, 2\)"):  # in both
        quiet(model, over(open_images(f"{folder}/pets"), shard=(0, 2)), statistics="entropy")


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.filterwarnings("ignore")
def test_a_loader_that_gives_each_process_all_images_is_refused(model, source, tmp_path, quiet, over):
    model.save_pretrained(tmp_path / "model")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_whole_in_a_process, args=(rank, tmp_path, quiet, over)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0, 0]
