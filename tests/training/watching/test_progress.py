"""The line of a run: how fast it is, what is left, and what it does."""

import io
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from qkvit.training import train
from qkvit.training.watching import progress as progress_module
from qkvit.training.watching.progress import TrainingProgress


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    """What is written to a screen; pytest has a standard error of its own in each phase of a test."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=screen))
    return screen


@pytest.fixture
def state() -> SimpleNamespace:
    return SimpleNamespace(is_world_process_zero=True, global_step=10_000, max_steps=20_000)


def last_line(screen) -> str:
    return screen.getvalue().rsplit("\r", 1)[-1]


def test_the_steps_before_a_run_went_on_are_no_speed(screen, state):
    progress = TrainingProgress()
    progress.on_train_begin(None, state, TrainerControl())
    assert "50 %" in last_line(screen)
    progress.bar.start_t -= 10
    progress.bar.last_print_t -= 10  # the first step took ten seconds
    state.global_step += 1
    progress.on_step_end(None, state, TrainerControl())
    assert progress.bar.n == 10_001
    assert progress.bar.format_dict["rate"] == pytest.approx(0.1, rel=0.1)
    assert "27:4" in last_line(screen)  # 9,999 times ten seconds are left: 27 hours and 47 minutes
    progress.close()


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_while_the_model_is_evaluated_the_line_says_so(screen, state, event):
    progress, control = TrainingProgress(), TrainerControl()
    progress.on_train_begin(None, state, control)
    control.should_evaluate = True
    getattr(progress, event)(None, state, control)
    progress.on_log(None, state, control, logs={"loss": 0.5})  # comes between, and is shown when it is over
    progress.bar.refresh()
    assert "evaluating" in last_line(screen)
    assert "loss" not in last_line(screen)
    control.should_evaluate = False
    progress.on_evaluate(None, state, control)
    assert "loss 0.500" in last_line(screen)
    assert "evaluating" not in last_line(screen)
    progress.close()


@pytest.mark.parametrize("arguments", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 1}])
def test_a_run_says_that_it_evaluates(tiny, tmp_path, screen, arguments):
    train(tiny({"arguments": {"output_dir": str(tmp_path / "run"), **arguments}}))
    assert "evaluating" in screen.getvalue()


def test_other_processes_have_no_line(screen, state):
    progress, control = TrainingProgress(), TrainerControl()
    state.is_world_process_zero = False
    control.should_evaluate = True
    progress.on_train_begin(None, state, control)
    for event in (progress.on_step_end, progress.on_epoch_end, progress.on_evaluate):
        event(None, state, control)
    assert screen.getvalue() == ""
