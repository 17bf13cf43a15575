"""A run that is stopped anywhere ends as if it had not been: every weight is the same to the bit."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qkvit.training import TrainingRefusedError, checkpoint_trainer, checkpoints, train, trainer
from qkvit.training import run as training_run
from qkvit.training.optimisation.weight_average import WeightAverage
from qkvit.training.trainer import RecipeTrainer
from qkvit.training.watching.stops import outlast_a_request

# Where a run is killed: what is called there, in a step or while saving (every second step).
MOMENTS = {
    "in a step": (RecipeTrainer, "compute_loss"),
    "before the weights change": (RecipeTrainer, "_norm"),
    "after a step": (WeightAverage, "on_step_end"),
    "before a checkpoint": (RecipeTrainer, "_save_checkpoint"),
    "before it is sealed": (checkpoint_trainer, "seal"),
    "before it is renamed": (checkpoint_trainer, "publish"),
    "before old ones are removed": (checkpoint_trainer, "prune"),
}
POINTS = [
    (moment, step) for number, moment in enumerate(MOMENTS) for step in (range(1, 9) if number < 3 else range(2, 9, 2))
]


def kill_at(moment, step):
    """End this process without notice the first time that it comes to this moment in this step."""
    owner, name = MOMENTS[moment]
    original, began = getattr(owner, name), RecipeTrainer._seed_step
    running = [0]

    def begins(self):
        running[0] = self.state.global_step + 1
        return began(self)

    def dies(*arguments, **keywords):
        if running[0] + (name == "compute_loss") == step:  # which begins a step
            if os.environ.get("WORLD_SIZE"):  # else they keep the connections, and the other process waits for them
                for worker in multiprocessing.active_children():
                    worker.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    RecipeTrainer._seed_step = begins
    setattr(owner, name, dies)


@pytest.fixture
def recipe(tiny, busy, tmp_path):
    return lambda folder, *parts: tiny(busy, *parts, {"arguments": {"output_dir": str(tmp_path / folder)}})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_with_the_same_bits(recipe, run_in_processes, weights, tmp_path, processes):
    """Five random points in each of the four cases; `benchmarks/kill_test.py` kills at random times."""
    alone = {"arguments": {"per_device_train_batch_size": 8 // processes}}
    assert set(run_in_processes(processes, lambda: train(recipe("whole", alone)))) == {0}
    points = [
        (workers, point) for workers in (0, 2) for point in random.Random(10 * processes + workers).sample(POINTS, 5)
    ]
    for number, (workers, point) in enumerate(points):
        made = recipe(f"killed-{number}", alone, {"arguments": {"dataloader_num_workers": workers}})

        def killed(made=made, point=point):
            kill_at(*point)
            train(made)

        assert run_in_processes(processes, killed)[0] == -signal.SIGKILL, point
        assert set(run_in_processes(processes, lambda made=made: train(made, resume=True))) == {0}, point
        assert weights(tmp_path / f"killed-{number}") == weights(tmp_path / "whole"), point
        assert not (tmp_path / f"killed-{number}" / checkpoints.ASIDE).exists(), point


def test_sigterm_saves_and_leaves(recipe, in_a_child, weights, tmp_path):
    def first():
        update = WeightAverage.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            update(self, args, state, control, **kwargs)
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        WeightAverage.on_step_end = on_step_end
        try:
            train(recipe("stopped"))
        except RuntimeError as error:
            raise SystemExit(error.code) from error

    assert in_a_child(first) == 143
    assert checkpoints.newest_whole(tmp_path / "stopped")[0] is not None
    assert in_a_child(lambda: train(recipe("stopped"), resume=True)) == 0
    assert in_a_child(lambda: train(recipe("whole"))) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore")
def test_sigterm_to_the_workers_too_saves_and_leaves(recipe, in_a_child, weights, tmp_path):
    """torchrun and schedulers of clusters send it to all processes of a run."""
    loading = {"arguments": {"dataloader_num_workers": 2, "eval_strategy": "steps", "eval_steps": 3}}

    def first():
        os.setsid()
        measure, asked = trainer.evaluate, []

        def evaluate(*arguments, **settings):  # after step 3
            if not asked:
                os.killpg(0, signal.SIGTERM)
            asked.append(True)
            return measure(*arguments, **settings)

        trainer.evaluate = evaluate
        try:
            train(recipe("stopped", loading))
        except RuntimeError as error:
            raise SystemExit(getattr(error, "code", 1)) from error

    assert in_a_child(first) == 143
    assert in_a_child(lambda: train(recipe("stopped", loading), resume=True)) == 0
    assert in_a_child(lambda: train(recipe("whole", loading))) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_saves_and_leaves_and_twice_leaves_at_once(recipe, in_a_child, weights, tmp_path, capfd, workers):
    def interrupted(name, times):
        def first():
            os.setsid()  # a terminal sends ctrl-C to the workers too
            signal.signal(signal.SIGINT, signal.default_int_handler)
            update = WeightAverage.on_step_end

            def on_step_end(self, args, state, control, **kwargs):
                update(self, args, state, control, **kwargs)
                if state.global_step == 3:
                    for _ in range(times):
                        os.killpg(0, signal.SIGINT)
                        time.sleep(0.2)  # two at once may be one

            WeightAverage.on_step_end = on_step_end
            try:
                train(recipe(name, {"arguments": {"dataloader_num_workers": workers}}))
            except KeyboardInterrupt as error:
                print(error)
                raise SystemExit(130) from error

        return first

    assert in_a_child(interrupted("once", 1)) == 130
    told = capfd.readouterr()
    assert told.err.count("finishing this step and saving it; ctrl-C again stops at once") == 1
    assert "stopped by ctrl-C; with --resume it goes on after step 4" in told.out  # the step after is finished
    assert in_a_child(interrupted("twice", 2)) == 130
    assert "goes on after step 2" in capfd.readouterr().out  # saved every second step
    assert in_a_child(lambda: train(recipe("once"), resume=True)) == 0
    assert in_a_child(lambda: train(recipe("whole"))) == 0
    assert weights(tmp_path / "once") == weights(tmp_path / "whole")


def damaged(folder):
    file = folder / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [damaged, lambda folder: (folder / "scheduler.pt").unlink()])
def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path, weights, capsys, damage):
    def recipe(folder):
        return tiny({"arguments": {"output_dir": str(tmp_path / folder), "save_total_limit": 10}})

    train(recipe("whole"))
    train(recipe("run"))
    (tmp_path / "run" / "metrics.json").unlink()
    newest, _ = checkpoints.newest_whole(tmp_path / "run")
    damage(newest)
    train(recipe("run"), resume=True)
    assert f"{newest.name} is not whole" in capsys.readouterr().err
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_checkpoint_is_read_through_once_to_see_that_it_is_whole(tiny, tmp_path, monkeypatch):
    """And once more where it is the best one, which may have been written again by then."""
    keeps = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 9}
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 8, **keeps}})
    train(recipe)
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    look, read = checkpoints._hash, []
    monkeypatch.setattr(checkpoints, "_hash", lambda path: read.append(path.relative_to(tmp_path)) or look(path))
    assert train(recipe, resume=True)["steps"] == 8
    state = json.loads((tmp_path / "run" / "checkpoint-8" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"]).name
    for path in (tmp_path / "run").glob("checkpoint-?/optimizer.pt"):
        times = read.count(path.relative_to(tmp_path))
        assert times == (path.parent.name == "checkpoint-6") + (path.parent.name == best), path


def test_a_checkpoint_of_the_last_step_of_an_epoch_has_the_evaluation_that_decides(tiny, tmp_path, weights):
    """Here the rate: each evaluation makes it a tenth. An epoch has 12 steps."""
    rate = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}
    rate["lr_scheduler_kwargs"] = {"patience": 0, "factor": 0.1, "threshold": 0.9, "mode": "min"}
    times = {"max_steps": -1, "num_train_epochs": 2.5, "eval_strategy": "epoch", "save_steps": 6, "save_total_limit": 9}
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "whole"), **rate, **times}})
    train(recipe)
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path / "whole")] == [30, 24, 18, 12, 6]
    log = (tmp_path / "whole" / "checkpoint-30" / "trainer_state.json").read_text()
    for step in (12, 30):
        run = tmp_path / f"killed-{step}"
        shutil.copytree(tmp_path / "whole", run)
        for name in ("metrics.json", "model.safetensors"):
            (run / name).unlink()
        for path in checkpoints.checkpoints(run):
            if checkpoints.step_of(path) > step:
                shutil.rmtree(path)
        train(recipe, [f"output_dir={run}"], resume=True)
        assert weights(run) == weights(tmp_path / "whole")
        mine = (run / "checkpoint-30" / "trainer_state.json").read_text()
        assert mine.count('"eval_loss"') == log.count('"eval_loss"') == 3


def test_a_run_goes_on_with_other_steps_between_its_checkpoints_evaluations_and_lines(tiny, tmp_path):
    def steps(name):
        return {f"{each}_steps": count for each, count in zip(("save", "eval", "logging"), name, strict=True)}

    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "eval_strategy": "steps", "max_steps": 8}})
    recipe["arguments"] |= {"save_total_limit": 9, **steps((4, 4, 4))}
    train(recipe)
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    train(recipe, [f"{name}={count}" for name, count in steps((0.25, 1, 3)).items()], resume=True)
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path / "run")] == [8, 6, 4]
    log = json.loads((tmp_path / "run" / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [4, 5, 6, 7, 8]
    assert [entry["step"] for entry in log if "loss" in entry] == [4, 6]


def test_a_run_that_came_first_while_the_data_were_opened_is_left_alone(tiny, tmp_path, monkeypatch, raises_sentence):
    opened, arrived = training_run.open_splits, []

    def another_comes_first(data):
        if not arrived:
            arrived.append(True)
            train(recipe)
        return opened(data)

    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "save_total_limit": 9}})
    monkeypatch.setattr(training_run, "open_splits", another_comes_first)
    with raises_sentence(TrainingRefusedError, "holds a finished run already"):
        train(recipe, ["seed=7"])
    assert "seed: 5" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_weights_that_are_not_those_that_were_saved_are_refused(tiny, tmp_path, monkeypatch, raises_sentence):
    """As transformers' Trainer leaves the encoder of a ViT unloaded, without a word."""
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run")}})
    train(recipe)
    (tmp_path / "run" / "metrics.json").unlink()
    load = checkpoint_trainer.load_weights

    def all_but_one_bit(model, folder):
        load(model, folder)
        model.classifier.bias.data.view(torch.int32)[0] ^= 1

    monkeypatch.setattr(checkpoint_trainer, "load_weights", all_but_one_bit)
    with raises_sentence(TrainingRefusedError, "checkpoint-9 are not those that were saved"):
        train(recipe, resume=True)


def test_a_folder_in_use_is_refused(tiny, tmp_path, raises_sentence):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with raises_sentence(TrainingRefusedError, "holds other things"):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "mine")}}))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with raises_sentence(TrainingRefusedError, "a link to what is not there"):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "link")}}))


def test_a_folder_in_which_a_run_is_at_work_is_refused(recipe, tmp_path, weights, raises_sentence):
    """Until that run ends, by `kill -9` too; its workers do not keep the folder."""
    running, wait = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        update = WeightAverage.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            update(self, args, state, control, **kwargs)
            if state.global_step == 5:
                os.write(running[1], b".")
                os.read(wait[0], 1)

        WeightAverage.on_step_end = on_step_end
        try:
            torch.set_num_threads(1)
            train(recipe("run", {"arguments": {"dataloader_num_workers": 1}}))
        finally:
            os._exit(70)
    os.close(running[1])  # so that reading ends where the child does
    try:
        assert os.read(running[0], 1) == b"."
        with raises_sentence(TrainingRefusedError, "another run is at work in"):
            train(recipe("run"), resume=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    train(recipe("run"), resume=True)
    train(recipe("whole"))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize("left", [(), (".running", ".run.json.part"), ("run.json", ".recipe.yaml.part")])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_it_began_can_be_started(tiny, tmp_path, left, resume):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("{}" if name == "run.json" else "")
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 2}})
    assert train(recipe, resume=resume)["steps"] == 2


def test_a_finished_run_is_not_trained_on(tiny, tmp_path, capsys, raises_sentence):
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run")}})
    metrics = train(recipe)
    assert train(recipe, resume=True) == metrics
    assert "is finished" in capsys.readouterr().out
    with raises_sentence(TrainingRefusedError, "a finished run already; remove it, or pass --set output_dir="):
        train(recipe)
    longer = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 12}})
    with raises_sentence(TrainingRefusedError, "is finished and does not go on with other settings", "--set start="):
        train(longer, resume=True)  # and not that --allow would help, which it does not
    with raises_sentence(TrainingRefusedError, "(arguments.max_steps)"):
        train(longer, resume=True, allow=["arguments.max_steps"])


def test_resuming_where_nothing_is_starts_and_says_so(tiny, tmp_path, capsys):
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "new")}})
    assert train(recipe, resume=True)["steps"] == 9
    assert f"There is nothing to go on with in {tmp_path / 'new'}" in capsys.readouterr().out


def test_the_weights_of_another_family_are_loaded_whole(tiny, tiny_vit, tmp_path, weights):
    """transformers' own ViT: its Trainer leaves the encoder unloaded."""

    def recipe(folder):
        made = tiny({"arguments": {"output_dir": str(tmp_path / folder)}})
        return made | {"model": tiny_vit}

    train(recipe("whole"))
    train(recipe("run"))
    for name in ("metrics.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    torch.manual_seed(99)
    train(recipe("run"), resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_what_outlasts_a_request_ends_at_the_second(in_a_child):
    def asked(times):
        outlast_a_request()
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)

    assert in_a_child(lambda: asked(1)) == 0
    assert in_a_child(lambda: asked(2)) == -signal.SIGTERM


def test_a_worker_that_hangs_in_a_library_does_not_hold_a_process_that_ends():
    """Python asks such processes to end, and waits; it is not heard there."""
    program = """
import itertools, time
from torch.utils.data import DataLoader
from qkvit.training.watching.stops import end_workers_at_exit, outlast_a_request
class Images:
    def __len__(self): return 9
    def __getitem__(self, index): return (time.sleep(1), sum(itertools.repeat(1, 10**10))) if index else index
end_workers_at_exit()
loader = iter(DataLoader(Images(), num_workers=1, worker_init_fn=outlast_a_request))
print(int(next(loader)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr
