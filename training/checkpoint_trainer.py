"""The part of the Trainer that saves and loads: whole checkpoints, at the moments from which a run can go on."""

import contextlib
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from ..modeling.tensor_digest import tensor_digest
from .checkpoints import ASIDE, prune, publish, seal, sealed_facts
from .errors import TrainingRefusedError
from .evaluation import EvaluationCutError
from .images.batches import EpochBatches
from .optimisation.weight_average import WeightAverage
from .processes.sharded import load_whole_state_dict, unsharded_class
from .processes.world import barrier
from .recipe import Optimisation
from .run_folder import BY_EVALUATIONS
from .watching.best import best_checkpoints
from .watching.finite_trainer import FiniteTrainer
from .watching.stops import StopOnRequest


class CheckpointTrainer(FiniteTrainer):
    """Writes checkpoints aside and seals them; loads what is whole, and checks it to the bit."""

    model: Any
    optimisation: Optimisation
    batches: EpochBatches
    average: WeightAverage | None
    stop: StopOnRequest
    checkpoints_kept: int | None
    found_whole: Path | None = None  # a checkpoint whose files this process has just compared with their hashes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._saved = (-1, 0)  # the step that was saved last, and how long its log was
        self._waits = False  # a checkpoint, for the evaluation at the end of the epoch
        self._folder: str | None = None
        self._cut: Callable[[], bool] | None = None  # says whether the evaluation is to be broken off
        super().__init__(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers; a run that is to stop is saved without its evaluation, which is broken off.

        Not without one that decides something: the run that goes on from there would not have it. Where that one comes
        at the end of the epoch whose last step this is, what is to be saved waits for it.
        """
        evaluates = self.control.should_evaluate
        if not evaluates and self._evaluations_decide and self._epoch_ends_with_evaluation:
            self._waits, self.control.should_save = self.control.should_save, False
            return super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        self._waits, self.control.should_save = False, self.control.should_save or self._waits
        try:
            with self._broken_off_if_asked():
                super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except EvaluationCutError:
            self.control.should_evaluate = False
            self.control = self.stop.stop_if_asked(self.args, self.state, self.control)
        if self.stop.stopped:
            self._save_once(model, trial)
        return None

    @contextlib.contextmanager
    def _broken_off_if_asked(self) -> Iterator[None]:
        """Inside, evaluations end where the run is asked to stop, if nothing follows from them and it is not over."""
        if not (self._evaluations_decide or self.sharded or self.state.global_step >= self.state.max_steps):
            self._cut = lambda: bool(self.stop.asked)
        try:
            yield
        finally:
            self._cut = None

    def make_up_for_evaluation(self) -> None:
        """Evaluate where the run was stopped before it did: after the step that was saved last.

        Raises:
            EvaluationCutError: it is asked to stop again; another step would leave this evaluation behind.
        """
        step = self.state.global_step
        is_due = self._epoch_ends_with_evaluation
        if self.args.eval_strategy == "steps":
            is_due = self.args.eval_delay <= step and step % self.state.eval_steps == 0
        is_there = any("eval_loss" in entry and entry["step"] == step for entry in self.state.log_history)
        if step and is_due and not is_there:
            try:
                with self._broken_off_if_asked():
                    self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)
            except EvaluationCutError:
                self.control = self.stop.stop_if_asked(self.args, self.state, self.control)
                raise

    @property
    def _epoch_ends_with_evaluation(self) -> bool:
        """Whether this step is the last of its epoch or of the run, and is evaluated as such."""
        by_epoch = self.args.eval_strategy == "epoch" and self.args.eval_delay <= (self.state.epoch or 0)
        step = self.state.global_step
        return by_epoch and (step % self.batches.steps == 0 or step >= self.state.max_steps)

    @property
    def _evaluations_decide(self) -> bool:
        kind = str(getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type))
        return bool(
            self.args.load_best_model_at_end
            or self.optimisation.early_stopping is not None
            or self.args.save_strategy == "best"
            or kind in BY_EVALUATIONS
        )

    def _save_once(self, model: nn.Module, trial: Any) -> None:
        if self._saved != (self.state.global_step, len(self.state.log_history)):
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _get_output_dir(self, trial: Any) -> str:
        return self._folder or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write aside, seal, rename; then remove what is over `save_total_limit`."""
        self.check_weights_finite()
        output, step = Path(str(self.args.output_dir)), self.state.global_step
        aside = output / ASIDE
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        barrier(self.args.world_size)
        self._folder = str(aside)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._folder = None
        barrier(self.args.world_size)
        part = aside / f"checkpoint-{step}"
        weights = self.whole_weights()
        if self.average is not None:
            self.average.save(part, write=self.args.should_save)
        if self.args.should_save:
            self._name_best(part, output)
            (part / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says it in plain text
            seal(part, {"step": step, "weights": tensor_digest(weights.items())})
            publish(part, output / f"checkpoint-{step}")
            aside.rmdir()
            self._remove_old(output)
        barrier(self.args.world_size)
        self._saved = (step, len(self.state.log_history))

    def _name_best(self, part: Path, output: Path) -> None:
        if self.state.best_global_step:
            best = output / f"checkpoint-{self.state.best_global_step}"
            if best.is_dir() or self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(best)
                self.state.save_to_json(str(part / "trainer_state.json"))

    def _remove_old(self, output: Path) -> None:
        keep = best_checkpoints(output, self.state.log_history, self.optimisation.keep_best, self.args)
        written = output / f"checkpoint-{self.state.global_step}"
        prune(output, self.checkpoints_kept, keep, self.best_checkpoint, written)

    def _save_rng_state(self, output_dir: str) -> None:
        pass  # each step seeds itself

    def _load_rng_state(self, checkpoint: str | None) -> None:
        pass

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights, and check that they are those that were saved, to the bit."""
        folder = Path(resume_from_checkpoint)
        self._load_checked(folder)
        if self.average is not None:
            self.average.load(folder)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.best_checkpoint))

    def _load_checked(self, folder: Path) -> None:
        facts = sealed_facts(folder, compare=folder != self.found_whole)
        self.found_whole = None  # another of that step may be written
        if facts is None:
            raise TrainingRefusedError(
                f"{folder} is not whole: a file is missing or damaged; remove it and resume again"
            )
        try:
            load_weights(self.bare_model, folder)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            reason = textwrap.shorten(str(error).splitlines()[1].rstrip("."), 200, placeholder=" ...")
            raise TrainingRefusedError(
                f"the model of this recipe does not take the weights of {folder} ({reason}): make what was changed the"
                " same, or train it in another output_dir"
            ) from error
        self._check_weights(folder, facts)

    @property
    def best_checkpoint(self) -> Path | None:
        """Where it is now: the state has the path that it had when it was written, and a run may be moved."""
        best = self.state.best_model_checkpoint
        return None if best is None else Path(str(self.args.output_dir)) / Path(best).name


class MissedEvaluation(TrainerCallback):
    """Has a run that goes on begin with the evaluation that it was stopped before, when all else is set up."""

    def __init__(self, trainer: CheckpointTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.eval_on_start = args.eval_on_start and not state.global_step  # the start of the run, not of its rest
        self.trainer.make_up_for_evaluation()


def load_weights(model: nn.Module, folder: Path) -> None:
    """Give a model the weights of a folder that `save_pretrained` wrote, all of them and no others.

    Through `from_pretrained`, which knows under which names transformers' models were saved.
    """
    dtype = next(model.parameters()).dtype
    kind: Any = unsharded_class(model)
    saved = kind.from_pretrained(folder, dtype=dtype)
    load_whole_state_dict(model, saved.state_dict())
