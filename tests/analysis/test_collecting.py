"""What `collect` takes of a batch where layers wait for each other, as on a GPU, and on a GPU itself."""

import gc
import weakref

import pytest
import torch

from qkvit.analysis import TokenLayout, collecting
from qkvit.analysis.statistics import layers_together
from qkvit.analysis.tally import Tally

NUM_IMAGES = 7


@pytest.mark.parametrize("at_once", [1, 2 * 7 * 2 * 18**2, 10**9], ids=["each", "two", "all"])
@pytest.mark.parametrize("maps", [0, 400], ids=["runs again", "maps"])
def test_layers_that_are_taken_together_have_the_same_numbers(
    model, source, over, quiet, assert_same, monkeypatch, at_once, maps
):
    """Few tokens are little work."""
    monkeypatch.setattr(collecting, "TOKENS_FOR_MAPS", maps)
    monkeypatch.setattr(collecting, "OUTLIER", 1.0)  # else there is none, and each image has a contrast of its own
    monkeypatch.setattr(layers_together, "pays_to_wait", lambda query, value=None: False)
    alone = quiet(model, over(source, NUM_IMAGES), rollout=True)
    monkeypatch.setattr(layers_together, "pays_to_wait", lambda query, value=None: True)
    monkeypatch.setattr(layers_together, "SCORES_AT_ONCE", {"cuda": at_once, "cpu": at_once})
    together = quiet(model, over(source, NUM_IMAGES), rollout=True)
    assert_same(together, alone)
    assert alone.mean("outlier_contrast").isfinite().all()
    assert together._tally.cells == alone._tally.cells  # in the same order: a run may go on on another device


@pytest.fixture
def waiting(monkeypatch):
    monkeypatch.setattr(layers_together, "pays_to_wait", lambda query, value=None: True)


@pytest.mark.parametrize("maps", [0, 400], ids=["runs again", "maps"])
def test_a_layer_that_runs_twice_is_refused_for_rollout_while_layers_wait(
    model, source, over, quiet, monkeypatch, raises_sentence, waiting, maps
):
    monkeypatch.setattr(collecting, "TOKENS_FOR_MAPS", maps)

    def twice(model, pixels):
        model(pixels)
        return model(pixels)

    with raises_sentence(ValueError, "layer 0 runs twice"):
        quiet(model, over(source), rollout=True, forward=twice)


def test_a_run_that_fails_in_the_middle_leaves_nothing(model, source, over, waiting):
    """Neither layers that wait, nor the model itself: nothing refers back to who collects."""
    session = collecting.Collecting(model, None, None, Tally(3))
    (batch,) = over(source, NUM_IMAGES)
    session.begin(0, TokenLayout.from_config(model.config), batch["pixel_values"])

    def fail(module, args):
        raise RuntimeError("no memory")

    model.layers[2].mlp.register_forward_pre_hook(fail)
    with torch.no_grad(), session, pytest.raises(RuntimeError, match="no memory"):
        session.run(lambda: model(batch["pixel_values"]))
    assert not list(session.together.flush())


def test_a_session_goes_when_nobody_has_it(model):
    session = collecting.Collecting(model, None, None, Tally(3))
    gone = weakref.ref(session)
    gc.disable()
    try:
        del session
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("maps", [0, 400], ids=["runs again", "maps"])
def test_a_gpu_gives_the_numbers_of_the_cpu(model, source, over, quiet, monkeypatch, maps):
    monkeypatch.setattr(collecting, "TOKENS_FOR_MAPS", maps)
    here = quiet(model, over(source, NUM_IMAGES), rollout=True)
    there = quiet(model.cuda(), over(source, NUM_IMAGES), rollout=True)
    assert there._tally.cells == here._tally.cells
    for statistic in here.statistics:
        torch.testing.assert_close(
            there.mean(statistic), here.mean(statistic), rtol=1e-4, atol=1e-5, equal_nan=True, msg=statistic
        )
