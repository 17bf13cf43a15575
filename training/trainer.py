"""transformers' Trainer with exact batches, exact resume and honest numbers.

What is drawn in a step follows from (seed, step, micro-batch) and the images' keys; nothing depends on what was drawn
before. So a checkpoint holds weights, optimiser, schedule and average, and no random state.
"""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from ..modeling.losses_qkvit import classification_loss
from .augmentation.counter_random import Purpose, seed_of
from .augmentation.pipeline import Augmenter
from .checkpoint_trainer import CheckpointTrainer, MissedEvaluation
from .epochs import Epochs
from .evaluation import EvaluationCutError, evaluate
from .images.bad_images import BadImageList, check_usable
from .images.batches import EpochBatches, EvaluationImages, TrainingImages, as_it_is
from .images.loader import Loader
from .models import LossSettings
from .optimisation.asked_settings import asked_settings, put_back
from .optimisation.distillation import Teacher
from .optimisation.dropout_by_image import DropoutByImage
from .optimisation.optimizers import make_optimizer
from .optimisation.parameter_groups import frozen_statistics
from .optimisation.schedule import make_schedule
from .optimisation.weight_average import WeightAverage
from .recipe import Optimisation
from .watching.attention_health import AttentionHealth
from .watching.best import EarlyStopping
from .watching.meter import Meter
from .watching.stops import StopOnRequest


class RecipeTrainer(CheckpointTrainer):
    """Trains a classifier as a recipe says.

    Args:
        model: Gives `logits` for `pixel_values`.
        args: What transformers wants to know.
        optimisation: What it does not.
        augmenter: From bytes to pixels and targets.
        train_images, validation_images: The data sets.
        repeats: Repeated augmentation.
        flops: Of one image, forward and backward.
        processor: Saved with the model.
    """

    model: Any
    train_dataset: Any
    processing_class: Any
    eval_dataset: Any

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        optimisation: Optimisation,
        augmenter: Augmenter,
        train_images: TrainingImages,
        validation_images: EvaluationImages,
        repeats: int = 1,
        flops: int = 0,
        processor: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.optimisation = optimisation
        self.average_decay = optimisation.average_decay
        self.augmenter = augmenter
        self.meter = Meter(flops)
        self.health = AttentionHealth(self, optimisation.attention_health_steps)
        self.batches = EpochBatches(
            len(train_images),
            args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            world=args.world_size,
            repeats=repeats,
            seed=args.seed,
            order=getattr(train_images.split, "order", None),
        )
        self.bad_images = validation_images.bad
        self.checkpoints_kept = args.save_total_limit
        self.stop = StopOnRequest()
        self._micro_batch = (-1, 0)  # step, number in it
        self._frozen = frozen_statistics(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_images,
            eval_dataset=validation_images,
            data_collator=as_it_is,
            processing_class=processor,
            callbacks=[
                Epochs(self.batches),
                self.meter,
                self.health,
                BadImageList(self.bad_images),
                self.stop,
            ]
            + (callbacks or []),
        )
        # `compute_loss` gives the mean of a micro-batch, of whatever model: Trainer has to divide by their number.
        self.model_accepts_loss_kwargs = False
        self.teacher: Teacher | None = None
        self.loader: Loader | None = None
        self.early_stopping = EarlyStopping(optimisation)
        self.add_callback(self.early_stopping)
        self.average: WeightAverage | None = None
        if optimisation.average_decay is not None:
            self.average = WeightAverage(model, optimisation.average_decay)
            self.add_callback(self.average)
        self.add_callback(MissedEvaluation(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, which after the training would remove the newest checkpoint where one alone is kept."""
        self.args.save_total_limit = None
        try:
            return super().train(*args, **kwargs)
        except EvaluationCutError:  # with which the run was to go on: what it went on from is there, and it leaves
            return None
        finally:
            self.args.save_total_limit = self.checkpoints_kept
            if self.loader is not None:
                self.loader.close()

    # ---- data

    def get_train_dataloader(self) -> Loader:
        """One process's batches, not wrapped by accelerate: the sampler knows about processes."""
        workers = self.args.dataloader_num_workers
        self.loader = Loader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=as_it_is,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )
        return self.loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the time that is waited is counted."""
        with self.meter.waiting():
            batches, count = super().get_batch_samples(*args, **kwargs)
        check_usable(batches)
        return batches, count

    # ---- a step

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Augment, run the model, and stop where the loss is not finite."""
        for name, reason in inputs.get("bad", ()):
            self.bad_images.setdefault(name, reason)
        seed = self._seed_step()
        keys = inputs["keys"]
        self._step_images.append(keys[:, 1])
        pixels, targets = self.augmenter(inputs["images"], inputs["labels"], keys)
        outputs = self._forward(model, pixels, keys)
        settings = LossSettings(self.model.config)
        if self.teacher is not None:
            loss = self.teacher.loss(outputs, pixels, targets, settings)
        else:
            loss = classification_loss(outputs.logits, targets, settings)
        if self.in_any_process(not torch.isfinite(loss.detach())):
            torch.manual_seed(seed)
            self._stop_not_finite(float(loss.detach()), pixels, keys[:, 1].tolist())
        self.meter.count(outputs.logits, targets)
        self.health.note(pixels)
        return (loss, outputs) if return_outputs else loss

    def _seed_step(self) -> int:
        """Seed dropout for this micro-batch, so that it does not depend on what happened before."""
        step = self.state.global_step
        number = self._micro_batch[1] + 1 if self._micro_batch[0] == step else 0
        if not number:
            self._step_images = []
        self._micro_batch = (step, number)
        seed = seed_of(self.args.seed, Purpose.STEP, step, number, self.args.process_index)
        torch.manual_seed(seed)
        return seed

    def _forward(self, model: nn.Module, pixels: torch.Tensor, keys: torch.Tensor) -> Any:
        for module in self._frozen:
            module.eval()  # Trainer has put all of the model into training mode
        if self.optimisation.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        if not self.optimisation.dropout_by_image:
            return model(pixel_values=pixels)
        with DropoutByImage(self.args.seed, keys):
            return model(pixel_values=pixels)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of what is computed: where layers are frozen, less than three times the forward pass."""
        return self.meter.flops * len(inputs["keys"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers, with the numbers of the interval beside its loss."""
        if "loss" in logs:
            logs |= self.meter.numbers(self.args.device, self.args.world_size)
        super().log(logs, start_time)

    # ---- optimisation

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Groups by role and layer, for any optimiser class of transformers."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self.optimisation, self.args)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' schedules, with warm-up and cool-down also in epochs."""
        if self.lr_scheduler is None:
            scheduled: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = make_schedule(
                scheduled, self.args, self.optimisation, num_training_steps, self.batches.steps
            )
            self._created_lr_scheduler = True
            self._asked = asked_settings(scheduled)
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._created_lr_scheduler:  # and not DeepSpeed, by a schedule of its own
            put_back(self._asked, self.optimizer, self.lr_scheduler)

    # ---- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and accuracy, every image once; of the averaged weights too where they are kept."""
        images = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics = self._measure(images, metric_key_prefix)
        if self.average is not None:
            with self.average.applied():
                metrics |= self._measure(images, f"{metric_key_prefix}_average")
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measure(self, images: Any, prefix: str) -> dict[str, float]:
        if self.args.world_size > 1 and not self.sharded:
            for buffer in self.model.buffers():  # statistics of a process's own images; those of the first are saved
                torch.distributed.broadcast(buffer, src=0)
        measured = evaluate(
            self.model,
            images,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            device=self.args.device,
            rank=self.args.process_index,
            world=self.args.world_size,
            autocast=self.accelerator.autocast,
            in_step=self.sharded,
            cut=self._cut,
        )
        return {f"{prefix}_{name}": value for name, value in measured.items()}
