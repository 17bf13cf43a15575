"""Everything that a recipe can ask for: each alone does something in three steps, and any of it goes together."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qkvit.training import train

SHORT = {
    "data": {"images": 16, "held_out": 0.02},
    "arguments": {"max_steps": 3, "save_strategy": "no", "weight_decay": 0.1, "learning_rate": 0.01},
}


def model(**fields):
    return {"model": {"config": fields}}


def augmentation(**fields):
    return {"augmentation": fields}


def optimisation(**fields):
    return {"optimisation": fields}


def arguments(**fields):
    return {"arguments": fields}


# Other weights than without.
CHANGES = {
    "RandAugment": augmentation(randaugment_operations=2),
    "AutoAugment": augmentation(autoaugment="cifar10"),
    "3-Augment": augmentation(three_augment=True),
    "simple crop": augmentation(crop="simple", crop_padding=2),
    "resized crop": augmentation(crop="resized"),
    "flips": augmentation(flip=0.5),
    "colour jitter": augmentation(brightness=0.3, contrast=0.3, saturation=0.3),
    "erasing": augmentation(erasing=0.9),
    "warp": augmentation(warp=True),
    "mixup": augmentation(mixup=0.8),
    "CutMix": augmentation(cutmix=1.0),
    "both": augmentation(mixup=0.8, cutmix=1.0, mix_probability=0.8),
    "repeated augmentation": {"data": {"repeats": 2}},
    "patch dropout": model(patch_drop_rate=0.5),
    "label smoothing": model(label_smoothing=0.1),
    "binary cross-entropy": model(classification_loss="binary_cross_entropy"),
    "stochastic depth": model(drop_path_rate=0.5),
    "uniform stochastic depth": {"model": {"config": {"drop_path_rate": 0.5}, "stochastic_depth": "uniform"}},
    "LayerScale": model(layer_scale_init_value=0.1),
    "LAMB": optimisation(optimizer="lamb"),
    "Muon": optimisation(optimizer="muon"),
    "Adafactor": arguments(optim="adafactor"),
    "cosine": arguments(lr_scheduler_type="cosine"),
    "warm-up, stable, decay": arguments(lr_scheduler_type="warmup_stable_decay", warmup_steps=1),
    "other groups": optimisation(no_decay=[]),
    "layer-wise decay": optimisation(layer_decay=0.5),
    "clipping": arguments(max_grad_norm=0.01),
    "only q": optimisation(trainable="only q, head"),
    "all but k": optimisation(trainable="all but k"),
    "progressive resizing": {"data": {"progressive": [[0, 4], [0.5, 8]]}},
    "bf16": arguments(bf16=True),
    "hard distillation": {"distillation": {"teacher": "TEACHER", "kind": "hard"}},
    "soft distillation": {"distillation": {"teacher": "TEACHER", "kind": "soft", "temperature": 3.0}},
    "a distillation token": model(use_distillation_token=True) | {"distillation": {"teacher": "TEACHER"}},
}

# The same weights, but for rounding.
KEEPS = {
    "fused AdamW": arguments(optim="adamw_torch"),  # which is not fused, as the default is
    "gradient checkpointing": arguments(gradient_checkpointing=True),
    "accumulation": arguments(per_device_train_batch_size=4, gradient_accumulation_steps=2),
    "channels last": optimisation(channels_last=True),
    "finding a batch size": optimisation(find_batch_size=True),
    "compilation": arguments(torch_compile=True, torch_compile_backend="aot_eager"),
    "an average of the weights": optimisation(average_decay=0.9),
    "early stopping": optimisation(early_stopping=9) | arguments(eval_strategy="steps", eval_steps=2),
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """`run(part, ...)`: the weights after three steps of the tiny recipe with these parts."""
    made: list[str] = []
    folder = tmp_path_factory.mktemp("methods")

    def trained(*parts):
        place = folder / str(len(made))
        made.append(str(place))
        recipe = tiny(SHORT, *parts, {"arguments": {"output_dir": str(place)}})
        if recipe.get("distillation", {}).get("teacher") == "TEACHER":
            recipe["distillation"]["teacher"] = teacher()
        metrics = train(recipe)
        assert metrics["steps"] == 3
        assert metrics["validation"]["images"] > 0
        return load_file(place / "model.safetensors")

    @functools.cache
    def teacher():
        trained(arguments(seed=9))
        return made[-1]

    return trained


@pytest.fixture(scope="module")
def plain(run):
    return run()


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_run(run, plain, name):
    weights = run(CHANGES[name])
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert any(name not in plain or not tensor.equal(plain[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("name", KEEPS)
def test_what_only_computes_it_in_another_way(run, plain, name):
    weights = run(KEEPS[name])
    assert weights.keys() == plain.keys()
    for key, tensor in weights.items():
        if key.endswith("k_proj.bias"):  # its gradient is 0, and AdamW takes the rounding for one
            continue
        torch.testing.assert_close(tensor, plain[key], atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


@settings(max_examples=4)
@given(st.sets(st.sampled_from(sorted(CHANGES.keys() | KEEPS.keys() - {"compilation"})), min_size=8, max_size=20))
def test_all_of_it_goes_together(run, names):
    if names & {"LAMB", "Muon"}:
        names -= {"Adafactor", "fused AdamW"}  # two optimisers are refused
    weights = run(*({**CHANGES, **KEEPS}[name] for name in sorted(names)))
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_two_processes_do_all_of_it_as_one(tiny, busy, run_in_processes, tmp_path):
    """The losses of six steps, and which checkpoints are the best."""
    train(tiny(SHORT, arguments(seed=9, output_dir=str(tmp_path / "teacher"))))
    method = optimisation(optimizer="muon", dropout_by_image=True, keep_best=1, early_stopping=9, find_batch_size=True)
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1, "max_steps": 6}
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        recipe = tiny(
            busy,
            method | augmentation(autoaugment="imagenet"),
            {"data": {"images": 24, "held_out": 0.1, "progressive": [[0, 4], [0.5, 8]]}},
            {"distillation": {"teacher": str(tmp_path / "teacher"), "kind": "soft"}},
            arguments(per_device_train_batch_size=8 // processes, gradient_accumulation_steps=1, **every),
            arguments(output_dir=str(folder)),
        )
        assert run_in_processes(processes, lambda recipe=recipe: train(recipe)) == [0] * processes
        log = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        losses = torch.tensor([entry["loss"] for entry in log if "loss" in entry])
        found.append((losses, sorted(path.name for path in folder.glob("checkpoint-*"))))
    assert len(found[0][0]) == 6
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=0)  # Muon's products are in bfloat16
    assert found[0][1] == found[1][1]
