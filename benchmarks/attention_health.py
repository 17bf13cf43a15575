"""Train a small model at rates from good to far too high, with and without normalised Q and K: who is warned, and when?

    python benchmarks/attention_health.py --output health.json

Nothing is timed.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import torch
from report import heading, write

from qkvit.training import Recipe
from qkvit.training.run import Run

RECIPE = {
    "name": "attention-health",
    "data": {"source": "digits"},
    "model": {
        "config": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 2,
            "initializer_range": 0.05,
        }
    },
    "optimisation": {"attention_health_steps": 5},
    "arguments": {
        "max_steps": 200,
        "per_device_train_batch_size": 32,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 200,
        "logging_steps": 5,
        "seed": 3,
    },
}


def one_run(rate: float, qk_norm: bool) -> dict:
    """Loss at the end, the worst that was seen of attention, and the first warning."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        settings = [f"learning_rate={rate}", f"qk_norm={str(qk_norm).lower()}", f"output_dir={folder}/run"]
        run = Run(Recipe.load(RECIPE, settings))
        with contextlib.redirect_stdout(io.StringIO()):
            metrics = run.train()
        log = json.loads(Path(folder, "run", "checkpoint-200", "trainer_state.json").read_text())["log_history"]
    watched = [entry for entry in log if "attention_health/layer_00/entropy" in entry]
    return {
        "learning_rate": rate,
        "qk_norm": qk_norm,
        "loss at the end": metrics["last_training_loss"],
        "accuracy": metrics["validation"]["accuracy"],
        "lowest entropy of a layer": min(
            entry[name] for entry in watched for name in entry if name.endswith("/entropy")
        ),
        "largest score": max(entry[name] for entry in watched for name in entry if name.endswith("/largest_score")),
        "longest tokens, x those of the first step": max(
            entry[name] / watched[0][name] for entry in watched for name in entry if name.endswith("/residual_norm")
        ),
        "first warning": next(iter(metrics["attention_health"]["warnings"]), None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, rows = heading(), []
    for rate in (1e-3, 1e-2, 3e-2, 1e-1, 3e-1):
        for qk_norm in (False, True):
            rows.append(one_run(rate, qk_norm))
            print(rows[-1], flush=True)
        write(options.output, facts | {"recipe": RECIPE, "runs": rows})


if __name__ == "__main__":
    main()
