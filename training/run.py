"""One run: everything between a recipe and the finished model in its folder."""

import contextlib
import dataclasses
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState, set_seed
from transformers.initialization import no_init_weights

from ..modeling.checksums_qkvit import SUMS
from .arguments import training_arguments
from .augmentation.pipeline import Augmenter
from .checkpoints import ASIDE, checkpoints, step_of
from .disk_errors import check_space
from .errors import TrainingRefusedError, TrainingStoppedError, TrainingTerminatedError
from .images.bad_images import gathered, read_list
from .images.batches import EvaluationImages, TrainingImages
from .images.progressive import ProgressiveCost, with_progression
from .images.sources import Splits, open_splits, planned_data
from .models import LossSettings, build_model, build_processor, check_start, image_size, taking
from .optimisation.batch_size import find_batch_size, out_of_memory
from .optimisation.distillation import Teacher, check_teacher, open_teacher
from .optimisation.optimizers import optimizer_class
from .optimisation.parameter_groups import set_trainable
from .optimisation.schedule import check_schedule
from .plan import Plan, make_plan
from .processes.sharded_trainer import said_of_sharing
from .processes.unused_parameters import unused_parameters
from .processes.world import barrier, check_world, of_the_first_process
from .pushing import is_pushed, push, repository_for
from .quiet import quiet_libraries
from .recipe import Recipe
from .report import results_table, write_report
from .run_folder import (
    METRICS,
    changes_since,
    check_changes,
    check_fixed,
    check_new,
    claimed,
    find_checkpoint,
    is_new,
    new_since,
    read_metrics,
    read_record,
    write_record,
)
from .trainer import RecipeTrainer
from .watching.best import check_best
from .watching.progress import TrainingProgress


class Run:
    """A recipe and what it needs, made step by step.

    Args:
        recipe: Checked.
        name: How the user called it, for the command in messages.
        say: What is told goes there; errors and the progress line do not.
    """

    def __init__(
        self, recipe: Recipe, name: str | Path = "RECIPE.yaml", say: Callable[[str], Any] | None = None
    ) -> None:
        self.say = say or partial(print, flush=True)
        self.recipe = recipe
        self.name = str(name)
        self.args = training_arguments(recipe)
        self.output = Path(str(self.args.output_dir))
        self.progress = TrainingProgress()
        self.repository: str | None = None  # on the Hub

    # ---- planning

    def dry_run(self) -> dict[str, Any]:
        """Print and return the plan; nothing is written, and the data need not be there."""
        check_teacher(self.recipe.distillation)
        several = self.recipe.model.config.get("problem_type") == "multi_label_classification"
        images, names, several = planned_data(self.recipe.data, several, self._say)
        with quiet_libraries(), no_init_weights():  # drawing those of base/16 would take seconds, to no purpose
            start = self.recipe.model.start if self.recipe.model.size is None else None  # a size is a new model
            planned = dataclasses.replace(self.recipe, model=dataclasses.replace(self.recipe.model, start=start))
            model = build_model(planned, names, multi_label=several)
        self._check_model(model)
        plan = self._plan(model, images, len(names), several)
        asked, real = self.recipe.processes, self.args.world_size
        for sentence in said_of_sharing(asked or real):
            self._say(sentence)
        if asked is not None and asked != real:
            self._say(f"This recipe is for {asked} processes; {real} would be running.")
        return dataclasses.asdict(plan)

    def _plan(self, model: nn.Module, images: int, classes: int, several: bool) -> Plan:
        size = image_size(self.recipe.data, model.config)
        with taking(size):
            plan = make_plan(self.recipe, self.args, model, size, images, classes)
        check_schedule(self.args, self.recipe.optimisation, plan.steps, plan.steps_per_epoch)
        plan = with_progression(plan, self.recipe.data.progressive, model)
        self._say("\n".join([f"{self.recipe.name}:", *(f"  {line}" for line in plan.lines())]))
        if plan.steps_per_epoch < 1:
            raise TrainingRefusedError(
                f"{images} images do not fill a global batch of {plan.global_batch}; lower per_device_train_batch_size"
            )
        check_best(self.recipe.optimisation, self.args, plan.steps, classes, multi_label=several)
        return plan

    # ---- training

    def train(self, *, resume: bool = False, allow: tuple[str, ...] = ()) -> dict[str, Any]:
        """Train, measure, save."""
        check_world(self.recipe.processes, self.args.world_size, self.args.n_gpu, self.name)
        fresh = not resume or is_new(self.output)
        if resume and fresh:
            self._say(f"There is nothing to go on with in {self.output}; the run begins.")
        if fresh and self.args.should_save:
            check_new(self.output)
        barrier(self.args.world_size)
        check_start(self.recipe)  # before the data are fetched
        check_teacher(self.recipe.distillation)
        splits = open_splits(self.recipe.data)
        with quiet_libraries():
            teacher = open_teacher(self.recipe.distillation, splits.class_names, multi_label=splits.multi_label)
        data, checkpoint = splits.fingerprint() | (teacher.fingerprint() if teacher else {}), None
        if not fresh:
            changes = changes_since(self.output, self.recipe, data, self.args.world_size)
            finished = read_metrics(self.output)
            if finished is not None and changes:
                raise TrainingRefusedError(
                    f"the run in {self.output} is finished and does not go on with other settings"
                    f" ({', '.join(changes)}); train its model in a run of its own: --set start={self.output}"
                    " --set output_dir=ANOTHER"
                )
            check_fixed(self.output, self.recipe, changes)
            for change in check_changes(changes, allow):
                self._say(f"Changed since the run began: {change}.")
            if finished is not None:
                self._say(f"The run in {self.output} is finished; there is nothing to go on with.")
                if not is_pushed(self.output):  # it was stopped before that, if it was to be
                    self.repository = repository_for(self.args)
                    self._push()
                return finished
            for change in new_since(self.output):
                self._say(f"Since the last start {change}: the weights may come out with other bits.")
        with quiet_libraries(), contextlib.ExitStack() as held:
            model, processor = self._model(splits)
            if self.recipe.optimisation.find_batch_size:
                self._find_batch_size(model, teacher, resumed=not fresh)
            plan = self._plan(model, len(splits.train), len(splits.class_names), splits.multi_label)
            if "logging_steps" not in self.recipe.arguments:  # a short run has curves too
                self.args.logging_steps = min(int(self.args.logging_steps), max(1, plan.steps // 10))
            check_space(self.output, plan.memory)
            self.repository = repository_for(self.args)
            trainer = self._trainer(model, processor, splits, plan)
            trainer.teacher = teacher and teacher.prepare(processor, trainer.accelerator.autocast)
            barrier(self.args.world_size)
            if self.args.should_save:
                held.enter_context(claimed(self.output))
                if fresh:
                    check_new(self.output)  # another run may have begun while the data were opened
                else:
                    checkpoint = trainer.found_whole = find_checkpoint(self.output)
            checkpoint = of_the_first_process(checkpoint, self.args.world_size)
            of_start = (self.output, self.recipe, data, self.args.world_size, dataclasses.asdict(plan))
            record = _Record(partial(write_record, *of_start), wanted=self.args.should_save)
            start = time.perf_counter()
            stop = trainer.stop
            held.callback(stop.restore)
            with self._interruptible():
                self._fit(trainer, checkpoint, plan, record, resumed=not fresh)
                if stop.stopped and stop.asked == signal.SIGINT:
                    raise KeyboardInterrupt
                if stop.stopped:
                    raise TrainingTerminatedError(
                        f"stopped by SIGTERM after step {trainer.state.global_step}, which is saved: go on with"
                        " --resume"
                    )
                return self._finish(trainer, splits, plan, time.perf_counter() - start)

    def _model(self, splits: Splits) -> tuple[nn.Module, Any]:
        set_seed(self.args.seed)
        model = build_model(self.recipe, splits.class_names, multi_label=splits.multi_label, say=self._say)
        self._check_model(model)
        return model, build_processor(self.recipe.data, model, self.recipe.model.start)

    def _find_batch_size(self, model: nn.Module, teacher: Teacher | None, *, resumed: bool) -> None:
        before = read_record(self.output).get("plan") if resumed else None
        size = image_size(self.recipe.data, model.config)
        with taking(size):
            find_batch_size(self.recipe, self.args, model, size, teacher=teacher, before=before)
        batch, steps = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        self._say(f"Micro-batches of {batch} fit; {steps} of them are accumulated.")

    def _check_model(self, model: nn.Module) -> None:
        """Freeze what is not trained, and refuse what the recipe asks for and this model or machine has not."""
        set_trainable(model, self.recipe.optimisation.trainable)
        optimizer_class(model, self.recipe.optimisation, self.args)
        self._check_dropout(model)
        mixing, loss = self.recipe.augmentation, LossSettings(model.config)
        channels: Any = getattr(model.config, "num_channels", 3)
        if channels != 3:
            raise TrainingRefusedError(
                f"the model has num_channels={channels}, and training gives it images of 3 channels, RGB; leave"
                " num_channels out, or start from other weights"
            )
        if loss.problem_type == "regression":
            raise TrainingRefusedError(
                "model.config.problem_type='regression' is for numbers, and training is for classes; leave it out"
            )
        shares = loss.classification_loss == "cross_entropy" and loss.problem_type != "multi_label_classification"
        if (mixing.mixup or mixing.cutmix) and mixing.mixed_labels == "present" and shares:
            raise TrainingRefusedError(
                "augmentation.mixed_labels=present gives an image the whole labels of two, and cross-entropy wants"
                " shares of them; set model.config.classification_loss=binary_cross_entropy, or mixed_labels=shares"
            )

    def _check_dropout(self, model: nn.Module) -> None:
        if not self.recipe.optimisation.dropout_by_image:
            return
        config: Any = model.config
        for name in ("attention_probs_dropout_prob", "attention_dropout"):
            if getattr(config, name, 0) and config._attn_implementation != "eager":
                raise TrainingRefusedError(
                    f"dropout_by_image does not reach dropout inside fused attention: set {name} to 0"
                )
        args = self.args
        if args.torch_compile or args.gradient_checkpointing or getattr(args, "activation_checkpointing", False):
            raise TrainingRefusedError(
                "dropout_by_image needs a pass as it is written: leave compilation and checkpointing out"
            )

    def _trainer(self, model: nn.Module, processor: Any, splits: Splits, plan: Plan) -> RecipeTrainer:
        recipe, args = self.recipe, self.args
        skip = recipe.data.on_bad_image == "skip"
        trainer = RecipeTrainer(
            model=model,
            args=args,
            optimisation=recipe.optimisation,
            augmenter=Augmenter(
                recipe.augmentation,
                args.seed,
                tuple(processor.image_mean),
                tuple(processor.image_std),
                len(splits.class_names),
            ),
            train_images=TrainingImages(
                splits.train, plan.size, recipe.augmentation, args.seed, skip, plan.progression
            ),
            validation_images=EvaluationImages(splits.validation, processor, skip),
            repeats=recipe.data.repeats,
            flops=plan.training_flops,
            processor=processor,
            callbacks=[self.progress],
        )
        if plan.progression is not None:
            trainer.add_callback(ProgressiveCost(plan.progression, trainer))
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer

    def _fit(
        self, trainer: RecipeTrainer, checkpoint: Path | None, plan: Plan, record: "_Record", *, resumed: bool
    ) -> None:
        trainer.callback_handler.callbacks.insert(0, record)  # before others write into the folder
        if checkpoint is None and resumed:
            self._say(f"There is no checkpoint in {self.output}; the run begins anew.")
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self._say(f"Going on after step {state.global_step} of {plan.steps}.")
            trainer.bad_images.update(read_list(self.output))
            ended = state.global_step >= plan.steps or trainer.early_stopping.reached(state, self.args)
            if ended:  # it was stopped between its last step and its end
                trainer.bare_model.to(self.args.device)
                trainer._load_from_checkpoint(str(checkpoint))
                trainer.state = state
                record.write()
                trainer.make_up_for_evaluation()
                if self.args.load_best_model_at_end and trainer.best_checkpoint is not None:
                    trainer._load_best_model()
                return
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except torch.OutOfMemoryError as error:
            raise TrainingStoppedError(out_of_memory(self.args)) from error
        except RuntimeError as error:
            refusal = unused_parameters(error, trainer.bare_model)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self.progress.close()  # what is said next begins a line
        trainer.check_weights_finite()  # after the last step no loss shows it

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Inside, ctrl-C says where the run can go on."""
        try:
            yield
        except KeyboardInterrupt:
            written = checkpoints(self.output)  # whether the newest is whole, is looked at when it is gone on from
            where = f"after step {step_of(written[0])}" if written else "from the beginning"
            raise KeyboardInterrupt(f"stopped by ctrl-C; with --resume it goes on {where}") from None

    def _finish(self, trainer: RecipeTrainer, splits: Splits, plan: Plan, seconds: float) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        images = trainer.eval_dataset
        parts = {"validation": images}
        if splits.test is not None:
            parts["test"] = dataclasses.replace(images, split=splits.test)
        for name, part in parts.items():
            metrics[name] = _bare(trainer._measure(part, name), name)
            if trainer.average is not None:
                with trainer.average.applied():
                    metrics[f"{name}, averaged weights"] = _bare(trainer._measure(part, name), name)
        log = trainer.state.log_history
        losses = [entry["loss"] for entry in log if "loss" in entry]
        metrics |= {
            "steps": trainer.state.global_step,
            "parameters": plan.parameters,
            "flops_forward_per_image": plan.flops,
            "flops_per_image": plan.training_flops,
            "total_flops": trainer.state.total_flos,
            "seconds_since_last_start": round(seconds, 1),
            "images_per_second_since_last_start": round(trainer.meter.images * self.args.world_size / seconds, 1),
            "last_training_loss": losses[-1] if losses else None,
            **trainer.health.summary(),
            "bad_images": gathered(trainer.bad_images),
        }
        self._save(trainer)
        if self.args.should_save:
            files = write_report(self.output, metrics, log)
            self._tell(metrics, files)
        barrier(self.args.world_size)
        self._push()  # after the others have gone: uploading may take longer than they would wait
        return metrics

    def _push(self) -> None:
        if self.repository is not None:
            push(self.output, self.repository, self.args.hub_revision)
            self._say(f"And on the Hub: {self.repository}.")

    def _save(self, trainer: RecipeTrainer) -> None:
        """Write the model aside and move it into its place, the weights late; all processes have parts of it."""
        aside = self.output / ASIDE
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        trainer.save_whole(aside / "model")
        if trainer.average is not None:
            with trainer.average.applied():
                trainer.save_whole(aside / "model" / "averaged")
        if not self.args.should_save:
            return
        for path in sorted((aside / "model").iterdir(), key=_moves_late):
            target = self.output / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        shutil.rmtree(aside)

    def _tell(self, metrics: dict[str, Any], files: list[str]) -> None:
        self._say(f"\n{results_table(metrics)}")
        if metrics["bad_images"]:
            self._say(f"{len(metrics['bad_images'])} images could not be used; they are listed in {METRICS}.")
        self._say(f"In {self.output.absolute()}: the model, its code and image processor; {', '.join(files)}.")

    # ---- between processes

    def _say(self, text: str) -> None:
        if self.args.process_index == 0:
            self.say(text)


class _Record(TrainerCallback):
    """Written when what a run goes on from has been loaded: a run that cannot go on so is left as it was."""

    def __init__(self, write: Callable[[], None], *, wanted: bool) -> None:
        self.write: Callable[[], None] = write if wanted else lambda: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.write()


def _moves_late(path: Path) -> tuple[bool, bool]:
    """The weights after the rest, and their sums after them: weights stand beside no sums of others."""
    return path.name == SUMS, path.suffix == ".safetensors"


def _bare(measured: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(f"{prefix}_"): value for name, value in measured.items()}
