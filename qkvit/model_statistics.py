"""`qkvit statistics`: what every attention head of a model does over a data set, and what its weights alone say.

The folder it writes:

    statistics.parquet     a row for each layer, head and statistic: mean, deviation, n, 95 % interval, quantiles; with
                           --control, mean and interval for random weights
    statistics.csv         the same
    classes.parquet        the same for each class, where there are classes, with quantiles up to 100 classes or with
                           --class-quantiles; no CSV, since 1,000 classes make 2 million rows
    vectors.safetensors    mean and second moment of each head's queries, keys, values and output; maps of received
                           attention and, with --rollout, of rollout
    weights.parquet        with --weights: a row for each layer, head and statistic, beside random weights
    weights.csv            the same
    singular_values.parquet
                           with --weights: a row for each singular value of W_Q^T W_K ("qk") and W_O W_V ("ov") of every
                           layer and head, index 0 the largest, beside random weights
    singular_values.csv    the same
    pictures/              heads, distance, sinks, places, rollout, weights
    provenance.json        model, data, versions, seed, command
"""

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .device import usable_device
from .errors import UserError, sentences
from .finished_folder import check_target, check_writable, finished_folder
from .packages import check_packages
from .pretrained import load_image_processor, load_pretrained
from .provenance import command_line, in_a_line, provenance
from .startup import load_models
from .training.quiet import quiet_libraries

# pandas and pyarrow come with datasets.
NEEDED = {"datasets": "datasets", "pandas": "datasets", "pyarrow": "datasets", "matplotlib": "matplotlib"}
RECORD = "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command, which `qkvit statistics --help` explains."""

    model: str
    data: str | None = None
    split: str | None = None
    layers: str | None = None
    images: int | None = None
    control: bool = False
    rollout: bool = False
    class_quantiles: bool = False
    weights: bool = False
    output: Path = Path("statistics")
    on_bad_image: str = "stop"
    only: str | None = None
    label: str | None = None
    streaming: bool = False
    batch_size: int = 16
    num_workers: int = 0
    device: str = "auto"
    trust_remote_code: bool = False
    seed: int = 0
    force: bool = False

    @property
    def command(self) -> str:
        """What can be typed to get the same."""
        options = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("model", "force")
            and (field.name == "seed" or getattr(self, field.name) != field.default)
        }
        return command_line("statistics", self.model, options)

    @property
    def groups(self) -> list[str] | None:
        """The statistics of `only`."""
        return None if self.only is None else [name.strip() for name in self.only.split(",")]

    @property
    def progress(self) -> Path:
        """Where an unfinished run keeps what it has."""
        output = self.output.absolute()
        return output.with_name(f".{output.name}-progress")

    @property
    def control_progress(self) -> Path:
        """The same for the model with random weights."""
        return self.progress.with_name(f"{self.progress.name}-control")


def run_statistics(request: Request) -> None:
    """All of it, from the model's name to the folder.

    Raises:
        UserError: the request cannot be met; it says why.
    """
    if request.data is None and not request.weights:
        raise UserError("there is nothing to measure; pass --data SOURCE, --weights, or both")
    layers = _layers(request.layers)
    if request.control and request.data is None:
        raise UserError("--control runs over images; pass --data SOURCE too (--weights has a control of its own)")
    for option in ("rollout", "class_quantiles"):
        if getattr(request, option) and request.data is None:
            raise UserError(f"--{option.replace('_', '-')} runs over images; pass --data SOURCE too")
    check_packages(NEEDED)
    load_models()
    from .analysis import weight_statistics
    from .analysis.progress_file import remove_progress
    from .analysis.statistics.groups import GROUPS, asked_groups
    from .data.hub_names import look_for

    with sentences():
        asked_groups(request.groups, has_value=True, among=GROUPS)
    with quiet_libraries(), _processes(request.device) as (rank, device), _full_disk(request):
        check_target(request.output, marker=RECORD, force=request.force, what="qkvit statistics")
        if rank == 0:
            check_writable(request.output)
        start = time.perf_counter()
        with sentences():
            look_for(request.model, "model")
            if request.data is not None:
                look_for(request.data, "dataset")
        model = load_model(request.model, device, trust_remote_code=request.trust_remote_code)
        record = _record_of(request, model)
        weights = collected = None
        if request.weights and rank == 0:
            with sentences():
                weights = weight_statistics(model, seed=request.seed)
        if request.data is not None:
            collected = _collect(request, model, layers, record, rank)
        if rank == 0:
            with sentences(), finished_folder(request.output) as folder:
                _write(request, weights, collected, record, folder, start)
            _farewell(request, collected)
        if collected is not None:
            _wait()  # what was measured is kept until the result is written
            for folder in (request.progress, request.control_progress):
                remove_progress(folder, rank, record["processes"])


def load_model(name: str, device: str, *, trust_remote_code: bool = False) -> Any:
    """The encoder of a checkpoint, in float32 and in eval mode.

    Raises:
        UserError: there is none of that name, or weights of its layers are missing.
    """
    from transformers import AutoModel

    model, missing = load_pretrained(AutoModel, name, device, trust_remote_code=trust_remote_code)
    of_layers = sorted(key for key in missing if re.search(r"\.\d+\.", key))
    if of_layers:
        raise UserError(f"{name} has no weights for {', '.join(of_layers[:3])}; pass a checkpoint that was saved whole")
    return model


def _collect(request: Request, model: Any, layers: list[int] | None, record: dict[str, Any], rank: int) -> Any:
    from .analysis import collect
    from .analysis.random_control import with_random_weights
    from .data import batches, open_images
    from .data.hub_names import revision_of
    from .data.table_source import StreamingSource

    assert request.data is not None
    processor = load_image_processor(request.model, trust_remote_code=request.trust_remote_code)
    with sentences():
        source = open_images(
            request.data,
            split=request.split,
            label=request.label,
            on_bad_image=request.on_bad_image,  # type: ignore[arg-type]
            streaming=request.streaming,
        )
        size: Any = None if isinstance(source, StreamingSource) else len(source)
        world = record["processes"]
        plan = batches(
            source,
            processor,
            request.batch_size,
            request.num_workers,
            (rank, world),
            images=request.images,
            seed=request.seed,
        )
        if rank == 0:
            goes_on = ", going on where it was stopped" if any(request.progress.glob("progress-*")) else ""
            processes = "1 process" if world == 1 else f"{world} processes"
            images = str(source)[1:-1].partition(" ")[2]  # without the name of the class
            if size is None and request.images is not None:
                images = f"the first {request.images} of {images}"
            elif request.images is not None and request.images < size:
                images = f"{request.images} drawn of {images}"
            print(f"{request.model} over {images}, on {device_name(model)}, {processes}{goes_on}", flush=True)

        def over(some_model: Any, progress: Path) -> Any:
            return collect(
                some_model,
                plan,
                layers=layers,
                statistics=request.groups,
                rollout=request.rollout,
                class_quantiles=request.class_quantiles or None,
                progress_folder=progress,
                keep_progress=True,
            )

        try:
            collected = over(model, request.progress)
            if request.control:
                if rank == 0:
                    print("the same with random weights", flush=True)
                control = over(with_random_weights(model, request.seed), request.control_progress)
                collected = replace(collected, control=control)
        except KeyboardInterrupt:
            if rank == 0 and _is_kept(request):
                print("\nwhat was measured is kept; the same command goes on from there", flush=True)
            raise
    drawn = request.images if size is None or request.images is None else min(request.images, size)
    record["data"] = source.describe() | {
        "revision": revision_of(request.data, "dataset"),
        "drawn": drawn,
        "left out": collected.bad_images,
    }
    record["image processor"] = json.loads(processor.to_json_string())
    return collected


def _write(request: Request, weights: Any, collected: Any, record: dict[str, Any], folder: Path, start: float) -> None:
    from .analysis.pictures import draw_all, draw_weight_maps

    note = in_a_line(record)
    pictures = folder / "pictures"
    name = Path(request.model).name
    if weights is not None:
        _write_weights(weights, folder, record)
        pictures.mkdir()
        title = f"What the weights alone say: {name}"
        draw_weight_maps(weights, pictures / "weights.png", title=title, provenance=note)
    if collected is not None:
        draw_all(collected, pictures, model=name, provenance=note)
    record["seconds"] = round(time.perf_counter() - start, 1)
    if collected is not None:
        collected.save(folder, record)
    else:
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")


def _write_weights(statistics: Any, folder: Path, record: dict[str, Any]) -> None:
    import pandas as pd

    for name, rows in (("weights", statistics.rows()), ("singular_values", statistics.singular_value_rows())):
        table = pd.DataFrame(rows)
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)
    record["caveats"] = list(statistics.caveats)


def _layers(text: str | None) -> list[int] | None:
    """`0,5-8,-1` -> [0, 5, 6, 7, 8, -1].

    Example:

    ```python
    >>> _layers("0,5-8,-1")
    [0, 5, 6, 7, 8, -1]

    ```
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise UserError(f"--layers {text} is no list of layers; pass one such as 0,5-8,-1")
        first, last = int(match[1]), match[2]
        if last is not None and int(last) < first:
            raise UserError(f"--layers {text}: {part.strip()} goes backwards; pass {last}-{first}")
        found += [first] if last is None else range(first, int(last) + 1)
    return found


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, str]]:
    """Join the other processes of torchrun, if there are any; this one's rank and device."""
    import torch.distributed as dist

    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = usable_device(device)
    if device == "cuda" and world > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if world == 1:
        yield 0, device
        return
    # Tables travel between the processes, not gradients: gloo does for every device.
    dist.init_process_group("gloo")
    try:
        yield rank, device
    finally:
        dist.destroy_process_group()


@contextmanager
def _full_disk(request: Request) -> Iterator[None]:
    """Tell a full disk in a sentence that says what is left of the run; of another disk, a cache's, as it is."""
    from .configuration.disk_errors import on_one_disk, place_of

    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if not on_one_disk(place_of(error, request.output), request.output):
            raise
        kept = "what was measured is kept" if _is_kept(request) else "nothing could be kept"
        raise UserError(
            f"no space is left for {request.output}: {kept}; free some and give the same command again"
        ) from error


def _is_kept(request: Request) -> bool:
    return any(any(folder.glob("progress-*")) for folder in (request.progress, request.control_progress))


def _wait() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def device_name(model: Any) -> str:
    """Where the model is."""
    return str(next(model.parameters()).device)


def _record_of(request: Request, model: Any) -> dict[str, Any]:
    from .data.hub_names import revision_of

    return {
        **provenance(request.command, request.seed, device_name(model), packages=("datasets",)),
        "model": {
            "name": request.model,
            "revision": revision_of(request.model, "model"),
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "attention": model.config._attn_implementation,
            "config": json.loads(model.config.to_json_string()),
        },
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _farewell(request: Request, collected: Any) -> None:
    lines = []
    if collected is not None:
        layers = f"{len(collected.layers)} layer{'s' if len(collected.layers) > 1 else ''}"
        lines.append(f"{collected.images:,} images, {layers}")
        if collected.bad_images:
            lines.append(f"{len(collected.bad_images)} images could not be used; they are listed in {RECORD}")
    files = [] if collected is None else ["statistics.parquet and .csv", "vectors.safetensors"]
    files += ["classes.parquet"] if collected is not None and collected.class_names else []
    files += ["weights.parquet and .csv", "singular_values.parquet and .csv"] if request.weights else []
    lines.append(f"{request.output.absolute()} has {', '.join([*files, 'pictures', RECORD])}")
    print("\n" + "\n".join(lines))
