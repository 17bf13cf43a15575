"""Progressive resizing: the size follows from the epoch, and from nothing else."""

import math
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkvit.training import Recipe, TrainingRefusedError, train
from qkvit.training.images.progressive import Progression, make_progression
from qkvit.training.trainer import RecipeTrainer


@pytest.fixture
def seen(monkeypatch):
    """(epoch, pixels) of every batch that a model was trained on."""
    found = []
    forward = RecipeTrainer._forward

    def watched(self, model, pixels, keys):
        found.append((int(keys[0, 0]), pixels.shape[-1]))
        return forward(self, model, pixels, keys)

    monkeypatch.setattr(RecipeTrainer, "_forward", watched)
    return found


PROGRESSIVE = {"data": {"images": 32, "progressive": [[0, 4], [0.5, 6], [0.75, 8]]}, "arguments": {"max_steps": 16}}


@pytest.mark.parametrize("kind", ["learned", "rope2d", "vit"])
def test_images_grow_with_the_epochs(tiny, tmp_path, seen, kind):
    recipe = tiny(PROGRESSIVE, {"arguments": {"output_dir": str(tmp_path / "run")}})
    if kind == "vit":
        config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        recipe["model"] = {"type": "vit", "config": config | {"image_size": 8, "patch_size": 2}}
    else:
        recipe["model"]["config"]["position_embedding"] = kind
    metrics = train(recipe)
    assert seen == [(epoch, size) for epoch, size in enumerate([4, 4, 6, 8]) for _ in range(4)]
    assert metrics["validation"]["images"] == 90
    assert metrics["total_flops"] == pytest.approx(metrics["flops_per_image"] * 16 * 8, rel=1e-6), "of each size"


def test_workers_that_read_ahead_and_a_resume_change_nothing(tiny, busy, tmp_path, weights):
    def recipe(folder, **arguments):
        arguments |= {"output_dir": str(tmp_path / folder), "save_steps": 6, "save_total_limit": 5}
        return tiny(busy, PROGRESSIVE, {"arguments": {"gradient_accumulation_steps": 1, **arguments}})

    train(recipe("whole"))
    before = set(multiprocessing.active_children())
    train(recipe("run", dataloader_num_workers=1, dataloader_persistent_workers=True))
    assert set(multiprocessing.active_children()) <= before, "those that load images live on"
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    for name in ("checkpoint-16", "checkpoint-12"):
        (tmp_path / "run" / name / "whole.json").unlink()
    (tmp_path / "run" / "metrics.json").unlink()
    train(recipe("run"), resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@given(st.integers(1, 300), st.integers(1, 20), st.sets(st.integers(1, 99), max_size=4))
def test_every_epoch_has_the_size_of_its_share_of_the_run(steps, per_epoch, shares):
    from transformers import ViTConfig

    model = type("Model", (), {"config": ViTConfig(patch_size=4)})()
    stages = [[share / 100, 4 * (share + 1)] for share in sorted(shares | {0})]
    epochs = math.ceil(steps / per_epoch)
    try:
        sizes = make_progression(stages, model, steps, per_epoch)
    except TrainingRefusedError:
        firsts = [math.ceil(share * epochs - 1e-9) for share, _ in stages]
        assert len(set(firsts)) < len(firsts) or firsts[-1] >= epochs
        return
    for epoch in range(epochs):
        pixels = next(size for share, size in reversed(stages) if epoch / epochs >= share - 1e-9)
        assert sizes.at(epoch) == (pixels, pixels)
    assert {sizes.at(epoch)[0] for epoch in range(epochs)} == {size for _, size in stages}


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([[0, 4], [0.5, 7]], ["7 pixels", "patches of 2", "write 8"]),
        ([[0, 4], [0.9, 6]], ["without an epoch"]),
        ([[0.1, 4]], ["begin at 0"]),
        ([[0, 4], [0.5, 6], [0.5, 8]], ["rise"]),
        ([[0, 4, 5]], ["pairs"]),
        ([[0, 0]], ["whole number above 0"]),
        ([], ["pairs"]),
    ],
)
def test_sizes_that_cannot_be_are_refused(tiny, tmp_path, raises_sentence, stages, words):
    with raises_sentence(TrainingRefusedError, "data.progressive", *words):
        train(tiny(PROGRESSIVE, {"data": {"progressive": stages}, "arguments": {"output_dir": str(tmp_path / "run")}}))
    assert not (tmp_path / "run").exists()


def test_it_can_be_set_on_the_command_line():
    assert Recipe.load("digits", ["progressive=[[0, 4], [0.5, 8]]"]).data.progressive == [[0, 4], [0.5, 8]]


def test_an_image_costs_what_it_costs_at_the_size_of_its_epoch():
    sizes = Progression(((0, (4, 4)), (2, (8, 8))), flops=(10, 40))
    assert [sizes.flops_at(epoch) for epoch in range(4)] == [10, 10, 40, 40]
