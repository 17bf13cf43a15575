"""What a run says of itself while it goes on."""

import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit.training import TrainingStoppedError, train
from qkvit.training.cost import forward_flops, training_flops
from qkvit.training.optimisation.parameter_groups import set_trainable
from qkvit.training.trainer import RecipeTrainer
from qkvit.training.watching.machine_rate import matrix_product_rate
from qkvit.training.watching.meter import Meter
from qkvit.training.watching.progress import _BEFORE, numbers_line

FULL = {
    "loss": 2.31,
    "accuracy": 1.0,
    "learning_rate": 1.25e-5,
    "images_per_second": 98_765.0,
    "waiting_for_data": 0.99,
    "flops_per_second": 9.87e14,
    "utilisation": 0.99,
    "memory_gib": 79.9,
}


@pytest.fixture
def meter():
    return Meter(flops=1000)


def step(meter, *, images=2, seconds=0.0):
    meter.on_step_begin(None, None, None)
    meter.count(torch.zeros(images, 3), torch.zeros(images, dtype=torch.int64))
    time.sleep(seconds)
    meter.on_step_end(None, None, None)


class TestAccuracy:
    def test_of_labels(self, meter):
        meter.count(torch.eye(4), torch.tensor([0, 1, 0, 0]))
        assert meter.numbers()["accuracy"] == 0.5

    def test_of_mixed_images_the_heavier_label_counts(self, meter):
        logits = torch.tensor([[9.0, 1, 0], [1.0, 9, 0]])
        meter.count(logits, torch.tensor([[0.7, 0.3, 0.0], [0.7, 0.3, 0.0]]))
        assert meter.numbers()["accuracy"] == 0.5

    def test_of_two_present_labels_either_counts(self, meter):
        meter.count(torch.eye(3), torch.tensor([1.0, 1.0, 0.0]).expand(3, 3))
        assert meter.numbers()["accuracy"] == pytest.approx(2 / 3, abs=1e-3)

    def test_an_image_without_a_label_is_not_right(self, meter):
        meter.count(torch.eye(2), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        assert meter.numbers()["accuracy"] == 0.5

    def test_each_interval_starts_anew(self, meter):
        meter.count(torch.eye(2), torch.tensor([0, 1]))
        meter.numbers()
        meter.count(torch.eye(2), torch.tensor([1, 0]))
        assert meter.numbers()["accuracy"] == 0
        assert meter.numbers() == {}


class TestSpeed:
    def test_numbers_belong_together(self, meter):
        meter.rate = 4000.0
        with meter.waiting():
            time.sleep(0.02)
        step(meter, seconds=0.02)
        found = meter.numbers()
        assert found["flops_per_second"] == pytest.approx(1000 * found["images_per_second"], rel=1e-3)
        assert found["utilisation"] == pytest.approx(found["flops_per_second"] / 4000, rel=1e-3)
        assert 0 < found["waiting_for_data"] < 1
        assert found["memory_gib"] > 0.01

    def test_time_between_steps_does_not_count(self, meter):
        step(meter)
        time.sleep(0.3)  # an evaluation, say
        step(meter)
        assert meter.numbers()["images_per_second"] > 4 / 0.3

    def test_a_rate_is_measured_without_random_numbers(self):
        before = torch.get_rng_state()
        assert matrix_product_rate("cpu", torch.bfloat16) > 0
        assert torch.get_rng_state().equal(before)


def test_frozen_layers_cost_no_backward_pass(tiny_model):
    model = tiny_model(num_hidden_layers=3)
    size = (16, 16)
    forward, all_trained = forward_flops(model, size), training_flops(model, size)
    assert 2.5 * forward < all_trained < 3 * forward
    set_trainable(model, "only head")
    assert forward < training_flops(model, size) < 1.1 * forward
    assert all(parameter.grad is None for parameter in model.parameters())


class TestLine:
    @given(st.integers(0, 200), st.sets(st.sampled_from(sorted(set(FULL) - {"loss"}))))
    def test_fits_where_it_can_and_begins_with_the_loss(self, width, missing):
        line = numbers_line({name: value for name, value in FULL.items() if name not in missing}, width)
        assert line.startswith("loss 2.310")
        assert len(line) <= max(width, len("loss 2.310"))

    def test_everything_fits_into_124_columns(self):
        assert numbers_line(FULL, 124 - _BEFORE).endswith("GiB")

    def test_is_written_by_a_run_and_stands_in_its_log(self, tiny, tmp_path, capfd):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 3, "save_steps": 3}}))
        state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
        entries = [entry for entry in state["log_history"] if "loss" in entry]
        assert len(entries) == 3
        for entry in entries:
            assert FULL.keys() <= entry.keys()
        line = capfd.readouterr().err.strip().splitlines()[-1]
        for part in ("100 %", "loss", "acc", "lr", "img/s", "wait", "FLOP/s", "GiB"):
            assert part in line

    def test_ends_with_its_line_where_the_run_is_stopped(self, tiny, tmp_path, monkeypatch, capfd):
        def stops(self, *_):
            raise TrainingStoppedError("in the middle")

        monkeypatch.setattr(RecipeTrainer, "_forward", stops)
        with pytest.raises(TrainingStoppedError):
            train(tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 3}}))
        assert capfd.readouterr().err.endswith("\n")
