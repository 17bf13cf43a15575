"""The folder of a run: what it was asked for, with what it was made, and whether it may go on."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from .checkpoints import ASIDE, checkpoints, newest_whole, publish_sealed
from .errors import TrainingRefusedError
from .recipe import Recipe, is_key
from .recipe_types import nearest

RECIPE, RECORD, METRICS = "recipe.yaml", "run.json", "metrics.json"
_RUNNING = ".running"  # locked by the run that works in a folder
_BEFORE = (_RUNNING, f".{RECORD}.part", RECORD, f".{RECIPE}.part")  # written in this order, before RECIPE

# What may change when a run goes on, because the weights do not depend on it.
HARMLESS = frozenset(
    (
        "name",
        "about",
        "data.known_images",
        "data.known_classes",
        "optimisation.keep_best",
        "optimisation.attention_health_steps",
        *(
            f"arguments.{name}"
            for name in (
                *("output_dir", "run_name", "project", "report_to", "disable_tqdm", "log_level", "log_level_replica"),
                *("logging_strategy", "logging_steps", "logging_first_step", "save_strategy", "save_steps"),
                *("save_total_limit", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
                *("per_device_eval_batch_size", "dataloader_num_workers", "dataloader_pin_memory"),
                *("dataloader_persistent_workers", "dataloader_prefetch_factor", "ddp_timeout"),
                *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"),
                # without effect here, and refused by now
                *("dataloader_drop_last", "dataloader_in_order", "dataloader_multiprocessing_context"),
                *("train_sampling_strategy", "bf16_full_eval", "fp16_full_eval", "use_liger_kernel"),
            )
        ),
    )
)

# Except where the evaluations say when a run stops, what the rate is, or which checkpoint becomes the finished model.
EVALUATIONS = frozenset(f"arguments.{name}" for name in ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"))
BY_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")  # schedules
SAVING = frozenset(f"arguments.{name}" for name in ("save_strategy", "save_steps"))


# What no checkpoint is gone on from with: its optimiser has the groups and numbers of these.
FIXED = frozenset(
    (
        "model.type",
        *(f"optimisation.{name}" for name in ("trainable", "no_decay", "layer_decay", "optimizer")),
        *("arguments.optim", "arguments.optim_args"),
    )
)
ADAMW = frozenset((None, "adamw_torch", "adamw_torch_fused"))  # one state, one formula; `None`: the default
# Nor these, where the rate is what evaluations have made of it.
RATE = frozenset(f"arguments.{name}" for name in ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"))


def is_new(output: Path) -> bool:
    """Whether a folder is not there, or holds no more than a run leaves that is killed before it has begun."""
    return not output.exists() or (output.is_dir() and all(path.name in _BEFORE for path in output.iterdir()))


def check_new(output: Path) -> None:
    """Refuse a folder that holds a run, or other things."""
    if output.is_dir() and not is_new(output):
        what, way = "other things", "pass"
        if (output / METRICS).is_file():
            what, way = "a finished run", "remove it, or pass"
        elif (output / RECORD).is_file():
            what, way = "a run", "pass --resume to go on, or"
        raise TrainingRefusedError(f"{output} holds {what} already; {way} --set output_dir=ANOTHER")
    if output.is_symlink() and not output.exists():
        raise TrainingRefusedError(f"{output} is a link to what is not there; pass --set output_dir=ANOTHER")
    if output.exists() and not output.is_dir():
        raise TrainingRefusedError(f"{output} is a file; pass --set output_dir=ANOTHER")


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Inside, no other run works in the folder; `TrainingRefusedError` where one does.

    The lock ends with its process, however that ends, and is not handed on to worker processes.
    """
    output.mkdir(parents=True, exist_ok=True)
    mark = output / _RUNNING
    with mark.open("w", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise TrainingRefusedError(
                f"another run is at work in {output}; wait for its end, or pass --set output_dir=ANOTHER"
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def write_record(output: Path, recipe: Recipe, data: dict[str, Any], world: int, plan: dict[str, Any]) -> None:
    """The resolved recipe, and what the run was started with; a resumed run adds its start to the list."""
    output.mkdir(parents=True, exist_ok=True)
    start = this_start()
    starts = [*read_record(output).get("starts", []), start]
    made_with = {name: start[name] for name in ("versions", "git", "machine")}
    content = {"starts": starts, "processes": world, "data": data, "plan": plan, **made_with}
    write_aside(output / RECORD, json.dumps(content, indent=2) + "\n")
    write_aside(output / RECIPE, recipe.to_yaml())


def note(output: Path, name: str, value: Any) -> None:
    """Add to the record of a run, or replace in it."""
    write_aside(output / RECORD, json.dumps({**read_record(output), name: value}, indent=2) + "\n")


def this_start() -> dict[str, Any]:
    """With what, when and where the run is started or goes on."""
    return {
        "command": command_line(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "git": git_state(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def new_since(output: Path) -> list[str]:
    """What a run that goes on now is made with, and was not at its last start: it may end with other bits.

    Example:

    ```python
    >>> new_since(Path("nowhere"))
    []

    ```
    """
    before, now = (
        _flat({**each, "git": {"commit": (each.get("git") or {}).get("commit")}})
        for each in (read_record(output), this_start())
    )
    return [
        f"{name.partition('.')[2]} was {_said(before[name])} and is {_said(now[name])}"
        for name in sorted(before.keys() & now.keys())
        if name.startswith(("versions.", "git.", "machine.")) and before[name] not in (None, now[name])
    ]


def read_record(output: Path) -> dict[str, Any]:
    """What `write_record` wrote; empty where nothing is."""
    return _read(output / RECORD) or {}


def read_metrics(output: Path) -> dict[str, Any] | None:
    """The results of a finished run; None where it is not finished."""
    return _read(output / METRICS)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def changes_since(output: Path, recipe: Recipe, data: dict[str, Any], world: int) -> dict[str, tuple[Any, Any]]:
    """What has changed since the run began: a field of the recipe, "data (...)" or "processes", before and now."""
    try:
        before = yaml.safe_load((output / RECIPE).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise TrainingRefusedError(f"{output} holds no {RECIPE} to go on with; leave --resume out") from error
    changes = {}
    # A field that is newer than the run had what is its default.
    old, new = _flat(Recipe().to_dict()) | _flat(before), _flat(recipe.to_dict())
    harmless = HARMLESS
    if recipe.optimisation.early_stopping is not None or recipe.arguments.get("lr_scheduler_type") in BY_EVALUATIONS:
        harmless -= EVALUATIONS
    if recipe.arguments.get("load_best_model_at_end"):
        harmless -= EVALUATIONS | SAVING
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and name not in harmless:
            changes[name] = (old.get(name), new.get(name))
    record = read_record(output)
    for part, value in data.items():
        if record.get("data", {}).get(part) != value:
            changes[f"data ({part})"] = (record.get("data", {}).get(part), value)
    if record.get("processes") != world:
        changes["processes"] = (record.get("processes"), world)
    return changes


def check_fixed(output: Path, recipe: Recipe, changes: dict[str, tuple[Any, Any]]) -> None:
    """Refuse of what `changes_since` found what cannot change in the middle of a run, allowed or not."""
    found = checkpoints(output)
    if not found:
        return  # the run begins anew
    schedules = changes.get("arguments.lr_scheduler_type", (recipe.arguments.get("lr_scheduler_type"),))
    fixed = FIXED | RATE if set(schedules) & set(BY_EVALUATIONS) else FIXED
    for name, (was, now) in changes.items():
        if name == "arguments.optim" and {was, now} <= ADAMW:
            continue
        begins_average = name == "optimisation.average_decay" and was is None
        if begins_average or ".".join(name.split(".")[:2]) in fixed:
            raise TrainingRefusedError(
                f"{name} was {_said(was)} when the run began and is {_said(now)} now, and cannot change in the middle"
                f" of a run: make it the same, or train its model in a run of its own: --set start={found[0]} --set"
                " output_dir=ANOTHER"
            )


def check_changes(changes: dict[str, tuple[Any, Any]], allowed: tuple[str, ...]) -> list[str]:
    """What `changes_since` found, as sentences; refuse what is not allowed by name.

    Args:
        allowed: Names of fields (bare or dotted), "data" and "processes".
    """
    meant = {name: {name, name.rpartition(".")[2], name.partition(" (")[0]} for name in changes}
    for name in allowed:
        if name not in {"data", "processes"}.union(*meant.values()) and not is_key(name):
            raise TrainingRefusedError(f"--allow {name} is no field of a recipe{nearest(name, changes)}; leave it out")
    for name, (was, now) in changes.items():
        if not meant[name] & set(allowed):
            shown = name.partition(" (")[0]
            raise TrainingRefusedError(
                f"{name} was {_said(was)} when the run began and is {_said(now)} now: make it the same, or pass --allow"
                f" {shown}"
            )
    return [f"{name}: {_said(was)} before, {_said(now)} now" for name, (was, now) in changes.items()]


def _said(value: Any) -> str:
    return "not set" if value is None else repr(value)


def find_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint; what was being written when the run was stopped is finished or removed."""
    publish_sealed(output)
    shutil.rmtree(output / ASIDE, ignore_errors=True)
    found, broken = newest_whole(output)
    if found is None and checkpoints(output):
        raise TrainingRefusedError(f"none of the checkpoints in {output} is whole; train anew in another output_dir")
    for path in broken:
        print(f"{path.name} is not whole and is passed over.", file=sys.stderr)
    return found


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("qkvit", "torch", "transformers", "accelerate", "datasets", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit and changed files of the working directory, or else of the checkout that qkvit runs from; None if neither
    is a repository."""
    for folder in (Path.cwd(), Path(__file__).parent):
        try:
            commit, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
        except (OSError, subprocess.SubprocessError):
            continue
        return {"commit": commit.strip(), "changed": changed.splitlines()[:100]}
    return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


def command_line() -> str:
    """What was typed."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def write_aside(path: Path, text: str) -> None:
    """Write a file beside its place, then move it there: it is whole or not there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
