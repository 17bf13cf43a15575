"""The schedules of the recipes that were not run here are those of their sources, value by value.

- vit-s16-in1k-90ep: arXiv 2205.01580, section 2, and big_vision/configs/vit_s16_i1k.py: randaug(2, 10) of its
  pp/autoaugment.py, and flax's GELU, which is the approximation by tanh. Its weight decay of 1e-4 is not multiplied by
  the learning rate of 1e-3; AdamW's is: 1e-4 / 1e-3.
- deit3-b16-in1k: README_revenge.md of facebookresearch/deit, deit_base_patch16_LS (8 GPUs, batch 256), and the defaults
  of its main.py (min_lr 1e-5, colour jitter, crops); LayerScale of 1e-4 from its models_v2.py. Its optimiser, apex's
  FusedLAMB, clips to 1 by itself, with an epsilon of 1e-8 (main.py); our loss is 1,000 times its own, and so are they.
- mae-finetune-b16: FINETUNE.md of facebookresearch/mae (lr = 5e-4 * 1024 / 256), and the defaults of its
  main_finetune.py (5 epochs of warm-up, min_lr 1e-6, label smoothing 0.1, rand-m9-mstd0.5-inc1, erasing with noise;
  a classifier of standard deviation 2e-5), and the epsilon of its models_vit.py.
"""

import math
import re

import pytest
import torch
from transformers import get_scheduler

from qkvit.training import Recipe, train
from qkvit.training.arguments import training_arguments
from qkvit.training.optimisation.lamb import Lamb
from qkvit.training.optimisation.schedule import schedule_steps
from qkvit.training.recipe import SHIPPED

# steps an epoch, epochs, global batch, base rate, warm-up steps, lowest rate, weight decay, clipping, images
PUBLISHED = {
    "vit-s16-in1k-90ep": (1238, 90, 1024, 1e-3, 10_000, 0.0, 0.1, 1.0, 1_268_355),
    "deit3-b16-in1k": (625, 800, 2048, 3e-3, 5 * 625, 1e-5, 0.05, 1e3 * 1.0, 1_281_167),
    "mae-finetune-b16": (1251, 100, 1024, 5e-4 * 1024 / 256, 5 * 1251, 1e-6, 0.05, 0.0, 1_281_167),
}

FIELDS = {
    "vit-s16-in1k-90ep": {
        "augmentation.crop": "resized",
        "augmentation.crop_scale": (0.05, 1.0),
        "augmentation.flip": 0.5,
        "augmentation.randaugment_operations": 2,
        "augmentation.randaugment_magnitude": 10,
        "augmentation.randaugment_spread": 0.0,
        "augmentation.randaugment_table": "big_vision",
        "augmentation.mixup": 0.2,
        "augmentation.cutmix": 0.0,
        "arguments.adam_beta2": 0.999,
        "model.config.position_embedding": "sincos2d",
        "model.config.pooling": "mean",
        "model.config.use_class_token": False,
        "model.config.pooler_act": "tanh",
        "model.config.hidden_act": "gelu_pytorch_tanh",
        "data.evaluation_crop": 224 / 256,
    },
    "deit3-b16-in1k": {
        "augmentation.crop": "resized",
        "augmentation.crop_scale": (0.08, 1.0),
        "augmentation.flip": 0.5,
        "augmentation.mixup": 0.8,
        "augmentation.cutmix": 1.0,
        "augmentation.three_augment": True,
        "augmentation.randaugment_operations": 0,
        "augmentation.brightness": 0.3,
        "augmentation.contrast": 0.3,
        "augmentation.saturation": 0.3,
        "augmentation.erasing": 0.0,
        "augmentation.mixed_labels": "present",
        "data.repeats": 3,
        "data.evaluation_crop": 1.0,
        "model.config.image_size": 192,
        "model.config.drop_path_rate": 0.2,
        "model.config.layer_scale_init_value": 1e-4,
        "model.config.classification_loss": "binary_cross_entropy",
        "model.config.label_smoothing": 0.0,
        "model.stochastic_depth": "uniform",
        "optimisation.optimizer": "lamb",
        "arguments.adam_epsilon": 1e3 * 1e-8,
    },
    "mae-finetune-b16": {
        "augmentation.crop": "resized",
        "augmentation.crop_scale": (0.08, 1.0),
        "augmentation.flip": 0.5,
        "augmentation.mixup": 0.8,
        "augmentation.cutmix": 1.0,
        "augmentation.erasing": 0.25,
        "augmentation.erasing_fill": "noise",
        "augmentation.randaugment_operations": 2,
        "augmentation.randaugment_magnitude": 9,
        "augmentation.randaugment_spread": 0.5,
        "augmentation.randaugment_table": "timm",
        "optimisation.layer_decay": 0.65,
        "model.config.drop_path_rate": 0.1,
        "model.config.pooling": "mean",
        "model.config.norm_position": "after_pooling",
        "model.config.layer_norm_eps": 1e-6,
        "model.config.initializer_range": 2e-5,
        "model.config.label_smoothing": 0.1,
        "data.evaluation_crop": 224 / 256,
        "arguments.adam_beta2": 0.999,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_learning_rate_of_every_part_of_the_schedule(name):
    per_epoch, epochs, global_batch, base, warmup, lowest, decay, clipping, images = PUBLISHED[name]
    recipe = Recipe.load(name, ["use_cpu=true"])
    args = training_arguments(recipe)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * recipe.processes
    assert batch == global_batch
    assert recipe.data.known_images == images
    assert images // batch == per_epoch
    assert args.num_train_epochs == epochs
    assert args.learning_rate == pytest.approx(base)
    assert args.weight_decay == pytest.approx(decay)
    assert args.max_grad_norm == clipping
    total = per_epoch * epochs
    steps, options = schedule_steps(args, recipe.optimisation, total, per_epoch)
    assert steps == warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, num_warmup_steps=steps, num_training_steps=total,
        scheduler_specific_kwargs=options,
    )  # fmt: skip
    rate_at = schedule.lr_lambdas[0]
    for step in [0, 1, warmup // 2, warmup, *range(warmup, total, total // 50), total - 1, total]:
        if step < warmup:
            expected = base * step / warmup
        else:
            expected = lowest + (base - lowest) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        assert base * rate_at(step) == pytest.approx(expected, rel=1e-9, abs=1e-12), step


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in FIELDS.items() for field in fields])
def test_every_other_value(name, field):
    value = Recipe.load(name)
    for part in field.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == FIELDS[name][field]


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_recipes_that_were_measured_keep_the_table_that_they_were_measured_with(name):
    expected = FIELDS.get(name, {}).get("augmentation.randaugment_table", "standard")
    assert Recipe.load(name).augmentation.randaugment_table == expected


def test_lamb_sees_no_factor_of_the_loss_where_epsilon_and_clipping_have_it_too():
    """The sum over 1,000 classes in the place of the mean."""
    ended = []
    for factor in (1.0, 1000.0):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3))
        optimizer = Lamb([weight], lr=0.1, eps=1e-8 * factor, weight_decay=0.05)
        for step in range(3):
            weight.grad = factor * torch.randn(4, 3) * (10 if step == 1 else 0.1)
            torch.nn.utils.clip_grad_norm_([weight], 1.0 * factor)
            optimizer.step()
        ended.append(weight.detach())
    torch.testing.assert_close(*ended)


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_the_head_of_a_recipe_has_its_source_its_result_and_the_cost_that_a_dry_run_reckons(name):
    text = (SHIPPED / f"{name}.yaml").read_text()
    head = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert head.startswith("Source: ")
    assert re.search(r"(Result|Result here|Expected): ", head)
    found = re.search(r"Cost: ([\d.]+) ([MG])FLOPs forward an image.*?, ([\d.]+) ([TPE])FLOPs in all", head)
    units = {"M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
    plan = train(name, [], dry_run=True)
    assert plan["flops"] == pytest.approx(float(found[1]) * units[found[2]], rel=0.005)
    in_all = plan["training_flops"] * plan["steps"] * plan["global_batch"]
    assert in_all == pytest.approx(float(found[3]) * units[found[4]], rel=0.005)
