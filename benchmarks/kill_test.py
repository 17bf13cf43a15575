"""Kill training runs without notice at random times, go on with them, and compare the weights to the bit.

    python benchmarks/kill_test.py --kills 20 --output kills.json

Every run has mixup, CutMix, an average of the weights, dropout and accumulation, and saves every three steps, so that
kills also hit the saving. A run is killed up to five times before it may end. Counted are kills of runs that had a
checkpoint, and how many of them came while one was being written; those before the first one only make a run begin
anew. A run that fails by itself is not started again. Nothing is timed.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import heading, write

from qkvit.training import run as _run  # noqa: F401  # imported before processes are forked, once for all of them
from qkvit.training import train
from qkvit.training.checkpoints import ASIDE

RECIPE = {
    "name": "kill-test",
    "data": {"source": "digits", "images": 200},
    "model": {
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 2,
            "hidden_dropout_prob": 0.1,
            "drop_path_rate": 0.1,
        }
    },
    "augmentation": {"crop": "resized", "flip": 0.5, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.25},
    "optimisation": {"average_decay": 0.99, "warmup_epochs": 1.0},
    "arguments": {
        "max_steps": 40,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 3,
        "seed": 11,
    },
}


def start(recipe: dict, folder: Path, processes: int, *, resume: bool) -> list[int]:
    """Fork the processes of a run; gives their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            if processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(processes)}
            silent = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            status = 1
            try:
                os.setpgid(0, 0)
                train(recipe, [f"output_dir={folder}"], resume=resume)
                status = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                os._exit(status)
        children.append(child)
    return children


def wait(children: list[int]) -> bool:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return not any(codes)


def kill(children: list[int], seconds: float) -> str:
    """What has become of it after so long: "killed", where it was still going on, "ended" or "failed"."""
    time.sleep(seconds)
    ended = [os.waitpid(child, os.WNOHANG) for child in children]
    for child, (gone, _) in zip(children, ended, strict=True):
        if not gone:
            os.killpg(child, signal.SIGKILL)  # its workers too
            os.waitpid(child, 0)
    if any(gone and status for gone, status in ended):
        return "failed"
    return "ended" if all(gone for gone, _ in ended) else "killed"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes() + (folder / "averaged" / "model.safetensors").read_bytes()


def one_case(case: dict, kills: int, chance: random.Random, scratch: Path) -> dict:
    """So many kills of runs with these workers and processes; counts of what became of them."""
    workers, processes = case["workers"], case["processes"]
    arguments = RECIPE["arguments"] | {"dataloader_num_workers": workers, "per_device_train_batch_size": 8 // processes}
    recipe = RECIPE | {"arguments": arguments}
    reference = scratch / "reference"
    begun = time.monotonic()
    assert wait(start(recipe, reference, processes, resume=False)), (scratch / "reference.log").read_text()
    lasts = time.monotonic() - begun
    counts = {**case, "kills": 0, "while saving": 0, "runs": 0, "equal": 0, "different": 0, "failed": 0}
    counts["killed before a checkpoint"] = 0
    while counts["kills"] < kills:
        folder = scratch / f"run-{counts['runs']}"
        counts["runs"] += 1
        became = ""
        for _ in range(min(5, kills - counts["kills"])):
            had = any(folder.glob("checkpoint-*"))
            became = kill(start(recipe, folder, processes, resume=True), chance.uniform(0.1, 0.8) * lasts)
            if became != "killed":
                break
            counts["while saving"] += any((folder / ASIDE).glob("*"))
            counts["kills" if had or any(folder.glob("checkpoint-*")) else "killed before a checkpoint"] += 1
        finished = became == "ended" or (became != "failed" and wait(start(recipe, folder, processes, resume=True)))
        if not finished:
            counts["failed"] += 1
            print((scratch / f"{folder.name}.log").read_text()[-2000:], file=sys.stderr)
        else:
            counts["equal" if weights(folder) == weights(reference) else "different"] += 1
        print(counts, flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each case")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["1x0", "1x2", "2x0", "2x2"],
        help="processes x workers of each, all of them if left out",
    )
    parser.add_argument("--output", type=Path, help="write the counts as JSON, after each case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = heading()
    results = []
    for name in options.cases:
        processes, workers = (int(number) for number in name.split("x"))
        chance = random.Random(f"{options.seed} {name}")
        scratch = Path(tempfile.mkdtemp(prefix="kill-test-"))
        try:
            results.append(one_case({"processes": processes, "workers": workers}, options.kills, chance, scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        write(options.output, facts | {"cases": results})
    sys.exit(any(case["different"] or case["failed"] for case in results))


if __name__ == "__main__":
    main()
