"""Looking for a micro-batch that fits: the global batch, its images and their pairs stay as they are."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments, ViTConfig

from qkvit import QKViTForImageClassification
from qkvit.training import Recipe, TrainingRefusedError, TrainingStoppedError, train
from qkvit.training.optimisation import batch_size
from qkvit.training.optimisation.batch_size import find_batch_size
from qkvit.training.trainer import RecipeTrainer


@pytest.fixture
def memory(monkeypatch):
    """`memory(4)`: no more than four images at once are trained on; `memory.tried` says which were."""

    def limit(images):
        limit.tried = []
        forward = QKViTForImageClassification.forward

        def bounded(self, pixel_values, **kwargs):
            if self.training and len(pixel_values) > 1:  # one image alone is for the plan
                limit.tried.append(len(pixel_values))
                if len(pixel_values) > images:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, pixel_values, **kwargs)

        monkeypatch.setattr(QKViTForImageClassification, "forward", bounded)

    return limit


@pytest.fixture
def recipe(tiny, busy, tmp_path):
    def make(folder, **optimisation):
        arguments = {"output_dir": str(tmp_path / folder), "gradient_accumulation_steps": 1, "max_steps": 4}
        method = {"dropout_by_image": True, **optimisation}
        return tiny(busy, {"optimisation": method, "arguments": arguments})

    return make


def losses(folder):
    log = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_a_smaller_micro_batch_trains_the_same(recipe, memory, tmp_path):
    """With mixup, CutMix, dropout and stochastic depth."""
    train(recipe("whole"))
    memory(2)
    train(recipe("halved", find_batch_size=True))
    assert memory.tried[:3] == [8, 4, 2]
    assert set(memory.tried[3:]) == {2}
    plan = json.loads((tmp_path / "halved" / "run.json").read_text())["plan"]
    assert (plan["micro_batch"], plan["accumulation"], plan["global_batch"]) == (2, 4, 8)
    assert losses(tmp_path / "halved") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)  # logged to 4 digits
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halved"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=0)


def test_the_same_images_meet_in_the_same_pairs(recipe, monkeypatch):
    """What a step is trained on, to the bit."""
    seen = {}
    forward = RecipeTrainer._forward

    def watched(self, model, pixels, keys):
        seen.setdefault((len(pixels), self.state.global_step), []).append(pixels)
        return forward(self, model, pixels, keys)

    monkeypatch.setattr(RecipeTrainer, "_forward", watched)
    train(recipe("whole"))
    train(recipe("quarters"), ["per_device_train_batch_size=2", "gradient_accumulation_steps=4"])
    for step in range(4):
        assert torch.equal(torch.cat(seen[8, step]), torch.cat(seen[2, step]))


def test_a_resumed_run_keeps_its_micro_batch(recipe, memory, tmp_path, weights):
    memory(4)
    train(recipe("whole", find_batch_size=True, dropout_by_image=False))
    train(recipe("run", find_batch_size=True, dropout_by_image=False))
    (tmp_path / "run" / "checkpoint-4" / "whole.json").unlink()
    (tmp_path / "run" / "metrics.json").unlink()
    memory(100)  # now there is room for all of it
    train(recipe("run", find_batch_size=True, dropout_by_image=False), resume=True)
    assert set(memory.tried) == {4}
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("asked", "mixup", "before", "found"),
    [
        ((8, 1), 0.0, (2, 4), (2, 4)),
        ((4, 1), 0.0, (8, 1), (4, 1)),  # on two processes; the micro-batch of 8 was one process's
        ((8, 3), 0.0, (4, 2), (4, 6)),
        ((6, 1), 0.0, (2, 3), (3, 2)),
        ((6, 1), 0.8, (2, 3), (6, 1)),  # pairs
    ],
)
def test_what_was_found_before_does_not_change_the_global_batch(tiny_model, tmp_path, asked, mixup, before, found):
    recipe = Recipe.load({"augmentation": {"mixup": mixup}})
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=asked[0],
        gradient_accumulation_steps=asked[1],
    )
    plan = {"micro_batch": before[0], "accumulation": before[1]}
    find_batch_size(recipe, args, tiny_model(), (16, 16), before=plan)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == found


@pytest.mark.parametrize(("mixup", "smallest", "words"), [(0.0, 3, "halved"), (0.8, 6, "mixed in pairs")])
def test_where_nothing_fits_it_is_said(tiny_model, memory, tmp_path, raises_sentence, mixup, smallest, words):
    memory(0)
    recipe = Recipe.load({"augmentation": {"mixup": mixup}})
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=12)
    with raises_sentence(TrainingRefusedError, f"micro-batch of {smallest}", words):
        find_batch_size(recipe, args, tiny_model(), (16, 16))


def test_trying_leaves_the_model_and_the_random_numbers_as_they_are(tiny_model, memory, tmp_path):
    memory(2)
    model = tiny_model(hidden_dropout_prob=0.5)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    find_batch_size(Recipe.load({}), args, model, (16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_trying_leaves_running_means_as_they_are(tmp_path):
    class Normed(torch.nn.Module):
        config = ViTConfig(num_channels=3)

        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.norm(pixel_values + 1).mean((2, 3)))

    model = Normed()
    find_batch_size(Recipe.load({}), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), model, (4, 4))
    assert not model.norm.running_mean.any()
    assert not model.norm.num_batches_tracked.any()


def test_all_processes_take_what_the_fullest_needs(tiny_model, memory, tmp_path, monkeypatch):
    """This one has room; the other says no twice."""
    memory(100)
    answers = iter([1.0, 1.0, 0.0])
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    monkeypatch.setattr(type(args), "world_size", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag, op: flag.clamp_(min=next(answers)))
    find_batch_size(Recipe.load({}), args, tiny_model(), (16, 16))
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)


def test_another_error_is_not_taken_for_a_lack_of_memory(tiny_model, tmp_path, monkeypatch):
    def broken(self, pixel_values, **kwargs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(QKViTForImageClassification, "forward", broken)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        find_batch_size(Recipe.load({}), args, tiny_model(), (16, 16))


def test_sharded_training_is_refused(tiny_model, tmp_path, monkeypatch, raises_sentence):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with raises_sentence(TrainingRefusedError, "find_batch_size", "FSDP"):
        batch_size.find_batch_size(Recipe.load({}), args, tiny_model(), (16, 16))


def test_memory_that_ends_in_the_middle_of_a_run_is_one_sentence(recipe, monkeypatch):
    def full(self, model, pixels, keys):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(RecipeTrainer, "_forward", full)
    with pytest.raises(TrainingStoppedError, match="micro-batches of 8: train anew with find_batch_size"):
        train(recipe("run"))
