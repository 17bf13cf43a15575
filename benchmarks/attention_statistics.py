"""Cost of the statistics of all layers of a model, in time and in memory, beside the plain forward pass.

    python benchmarks/attention_statistics.py --output benchmarks/results/cpu-2-cores-statistics.json

The model is QKViT small/16 with 12 layers, float32; one image of 197, 1,025 and 4,097 tokens, and eight of 197. What
takes turns:

    plain         the forward pass (sdpa)
    cheap         the forward pass with the cheap statistics (FUSED) of every layer, and rollout
    everything    the forward pass with all statistics of every layer, values included, and rollout; both keep, up to
                  400 tokens, the layers' maps (mean of heads), as `collect` does; of more, queries and keys of all
                  layers, as `collect` does where they weigh no more than half of the model, up to 2,000 tokens
    cheap_6       as cheap, but rollout keeps six layers at a time: the model's first half runs again
    everything_6  as everything, with six layers at a time, as `collect` does with one image of 4,097 tokens
    collect       (memory alone) `collect` with rollout: as everything_6, but each layer's numbers are summed up at once
    eager         transformers' ViT of the same size, attn_implementation="eager", output_attentions=True
    blockwise     with --blockwise, on a GPU: as everything, block by block in place of the Triton kernels

Ratios are of times in the same round, medians and quartiles over the rounds. "with forward" counts the pass that the
statistics ride on; "alone" is without it. Memory is the peak of what torch allocates beyond weights and input
(torch's profiler), and, in a process of its own each, the largest resident set.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import transformers
from peak_memory import device_peak, exponent, peak_bytes, resident_bytes
from report import heading, write
from turns import quartiles, take_turns

import qkvit
from qkvit.analysis import (
    FUSED,
    AttentionStatistics,
    PreparedProjection,
    TokenLayout,
    attention_statistics,
    collect,
    map_rollout,
    model_rollout,
    record,
    rollout,
)
from qkvit.analysis.collecting import TOKENS_FOR_MAPS
from qkvit.analysis.recording import Recording
from qkvit.analysis.statistics import fused_gpu
from qkvit.analysis.statistics.cpu_library import library
from qkvit.analysis.statistics.groups import GROUPS
from qkvit.analysis.statistics.layers_together import LayersTogether, Taken

PATCH_SIZE, SIZE = 16, "small"
MEMORY = ("plain", "cheap", "cheap_6", "everything", "everything_6", "collect", "eager")
STEPS = ("plain", "cheap", "cheap_6", "everything", "everything_6", "eager")


class Bench:
    """A model, an image, and what is measured of them."""

    def __init__(
        self, grid: int, device: str, images: int = 1, dtype: torch.dtype = torch.float32, **fields: Any
    ) -> None:
        torch.manual_seed(0)
        self.grid, self.device, self.dtype = grid, device, dtype
        fields = {"image_size": grid * PATCH_SIZE, "patch_size": PATCH_SIZE, "attn_implementation": "sdpa"} | fields
        config = qkvit.QKViTConfig.from_size(SIZE, **fields)
        self.model = qkvit.QKViTModel(config).eval().to(device, dtype)
        self.layout = TokenLayout.from_config(config)
        heads = config.num_attention_heads  # prepared once, as `collect` does it
        self.projections: dict[tuple[int, ...], PreparedProjection] = {
            (number,): PreparedProjection.of(layer.attention.o_proj, heads)
            for number, layer in enumerate(self.model.layers)
        }
        self.image = torch.randn(images, 3, *config.image_shape, device=device, dtype=dtype)

    def plain(self) -> None:
        self.model(self.image)

    def cheap(self) -> None:
        self._rolled_out(FUSED, with_values=False)

    def everything(self) -> None:
        self._rolled_out(GROUPS, with_values=True)

    def blockwise(self) -> None:
        with mock.patch.object(fused_gpu, "_has_triton", return_value=False):
            self.everything()

    def cheap_6(self) -> None:
        self._statistics(FUSED, with_values=False, kept=(), layers_at_once=6)

    def everything_6(self) -> None:
        self._statistics(GROUPS, with_values=True, kept=(), layers_at_once=6)

    def collect(self) -> None:
        collect(self.model, [self.image], rollout=True, show_progress=False)

    def _rolled_out(self, groups: Iterable[str], with_values: bool) -> None:
        if self.layout.num_tokens > TOKENS_FOR_MAPS:
            recording, _ = self._statistics(groups, with_values, kept=("query", "key"))
            rollout(recording, layout=self.layout)
            return
        _, found = self._statistics([*groups, "mean_map"], with_values, kept=())
        maps = [mean_map for taken, layers in found for mean_map in taken.by_layer(layers.mean_map)]
        map_rollout(maps, layout=self.layout)

    def _statistics(
        self, groups: Iterable[str], with_values: bool, kept: tuple[str, ...], layers_at_once: int | None = None
    ) -> tuple[Recording, list[tuple[Taken, AttentionStatistics]]]:
        """The layers' statistics while the model runs; of the layers' tensors, those that are `kept`.

        With `layers_at_once`, rollout runs the model, and statistics are taken the first time.
        """
        modules = list(self.model.layers)
        held: dict[str, torch.Tensor] = {}
        found: list[tuple[Taken, AttentionStatistics]] = []
        seen = 0

        together = LayersTogether()

        def take(ready: Iterable[Taken]) -> None:
            for taken in ready:
                found.append((taken._replace(tensors={}), self._statistics_of(taken, with_values)))

        def hold(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
            def keep(tensor: torch.Tensor) -> torch.Tensor | None:
                nonlocal held, seen
                if seen == len(modules):
                    return None
                held[name] = tensor
                if name == names[-1]:
                    take(together.add(seen, held, modules[seen].attention.scaling, None, frozenset(groups)))
                    held = {}
                    seen += 1
                    if seen == len(modules):
                        take(together.flush())
                return tensor if name in kept else None

            return keep

        names = ("query", "key", "value", "output") if with_values else ("query", "key")
        with record(self.model, tensors=names, reduce={name: hold(name) for name in names}) as recording:
            if layers_at_once is None:
                self.model(self.image)
            else:
                model_rollout(self.model, self.image, layout=self.layout, layers_at_once=layers_at_once)
        return recording, found

    def _statistics_of(self, taken: Taken, with_values: bool) -> AttentionStatistics:
        projection = None
        if with_values:
            if taken.layers not in self.projections:
                prepared = [self.projections[layer,] for layer in taken.layers]
                self.projections[taken.layers] = PreparedProjection.together(prepared)
            projection = self.projections[taken.layers]
        return attention_statistics(
            taken.tensors["query"],
            taken.tensors["key"],
            self.layout,
            scaling=taken.scaling,
            value=taken.tensors.get("value"),
            output=taken.tensors.get("output"),
            output_projection=projection,
            statistics=taken.groups,
        )

    def eager(self) -> None:
        self.eager_model(self.image, output_attentions=True)

    def make_eager(self) -> None:
        width, depth, heads, mlp = qkvit.NAMED_SIZES[SIZE]
        config = transformers.ViTConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=mlp,
            image_size=self.grid * PATCH_SIZE,
            patch_size=PATCH_SIZE,
            attn_implementation="eager",
        )
        self.eager_model = transformers.ViTModel(config, add_pooling_layer=False).eval().to(self.device, self.dtype)

    @property
    def maps_bytes(self) -> int:
        _, depth, heads, _ = qkvit.NAMED_SIZES[SIZE]
        return len(self.image) * depth * heads * self.layout.num_tokens**2 * 4


# ---- time


def time_row(bench: Bench, rounds: int, free_memory: float, blockwise: bool = False) -> dict[str, Any]:
    """Milliseconds of each step and their ratios, from rounds in which all take turns."""
    steps = {name: getattr(bench, name) for name in STEPS}
    if blockwise:
        steps["blockwise"] = bench.blockwise
    if 2.5 * bench.maps_bytes > free_memory:
        del steps["eager"]
    else:
        bench.make_eager()
    with torch.inference_mode():
        times = take_turns(steps, at_least=rounds, device=bench.device, warm_up=1)
        peaks = {name: device_peak(step) for name, step in steps.items()} if bench.device == "cuda" else {}
    row: dict[str, Any] = {"tokens": bench.layout.num_tokens, "images": len(bench.image), "rounds": rounds}
    row["milliseconds"] = {name: round(1000 * median(values), 2) for name, values in times.items()}

    def ratio(over: str, under: str, less: str | None = None) -> list[float]:
        lesser = times[less] if less else [0.0] * rounds
        return quartiles([(a - c) / b for a, b, c in zip(times[over], times[under], lesser, strict=True)])

    row["cheap with forward / plain"] = ratio("cheap", "plain")
    row["cheap alone / plain"] = ratio("cheap", "plain", less="plain")
    row["everything with forward / plain"] = ratio("everything", "plain")
    row["cheap_6 with forward / plain"] = ratio("cheap_6", "plain")
    row["everything_6 with forward / plain"] = ratio("everything_6", "plain")
    if blockwise:
        row["everything alone / plain"] = ratio("everything", "plain", less="plain")
        row["blockwise alone / plain"] = ratio("blockwise", "plain", less="plain")
    if peaks:
        weights = sum(parameter.nbytes for parameter in bench.model.parameters())
        whole = {name: peak + weights for name, peak in peaks.items()}
        row["megabytes, weights included"] = {name: round(bytes_ / 1e6, 1) for name, bytes_ in whole.items()}
        row["memory, x plain"] = {name: round(bytes_ / whole["plain"], 3) for name, bytes_ in whole.items()}
    if "eager" in steps:
        row["everything with forward / eager"] = ratio("everything", "eager")
        row["everything alone / eager"] = ratio("everything", "eager", less="plain")
        row["everything_6 with forward / eager"] = ratio("everything_6", "eager")
        row["everything_6 alone / eager"] = ratio("everything_6", "eager", less="plain")
        row["eager / plain"] = ratio("eager", "plain")
    return row


# ---- memory


def memory_of(name: str, grid: int) -> dict[str, float]:
    """Run in a process of its own: resident set and torch's peak, in MB."""
    bench = Bench(grid, "cpu")
    if name == "eager":
        bench.make_eager()
    step = getattr(bench, name)
    with torch.inference_mode():
        step()
        resident = resident_bytes()
        peak = peak_bytes(step)
    weights = sum(parameter.nbytes for parameter in bench.model.parameters())
    return {
        "torch": round(peak / 1e6, 1),
        "torch with weights": round((peak + weights) / 1e6, 1),
        "resident": round(resident / 1e6, 1),
    }


def memory_row(grid: int, free_memory: float) -> dict[str, Any]:
    names = [name for name in MEMORY if name != "eager" or 2.5 * 12 * 6 * (grid**2 + 1) ** 2 * 4 < free_memory]
    row: dict[str, Any] = {"tokens": grid**2 + 1, "megabytes": {}}
    for name in names:
        command = [sys.executable, __file__, "--memory-of", name, "--grids", str(grid)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row["megabytes"][name] = json.loads(out.splitlines()[-1])
    for kind in ("torch", "torch with weights", "resident"):
        plain = row["megabytes"]["plain"][kind]
        row[f"{kind}, x plain"] = {name: round(row["megabytes"][name][kind] / plain, 3) for name in names}
    return row


def linearity(grids: list[int]) -> dict[str, Any]:
    """How the memory of one layer's statistics, inputs included, grows with the number of tokens."""
    report: dict[str, Any] = {"tokens": [grid**2 + 1 for grid in grids]}
    for name, groups in (("cheap", FUSED), ("everything", None)):
        amounts: list[float] = []
        for grid in grids:
            layout = TokenLayout(grid=(grid, grid), has_class_token=True)

            def step(layout: TokenLayout = layout, groups: Any = groups) -> object:
                query, key, value = (torch.randn(1, 6, layout.num_tokens, 64) for _ in range(3))
                given: dict[str, Any] = {"value": value, "output_projection": torch.randn(384, 384)}
                return attention_statistics(
                    query, key, layout, scaling=0.125, statistics=groups, **(given if groups is None else {})
                )

            amounts.append(peak_bytes(step) / 1e6)
        report[name] = {"megabytes": [round(it, 2) for it in amounts], "exponent": exponent(report["tokens"], amounts)}
    return report


# ---- report


def free_bytes(device: str = "cpu") -> float:
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--grids", nargs="+", type=int, default=[14, 14, 32, 64], help="patches on a side")
    parser.add_argument("--images", nargs="+", type=int, default=[1, 8, 1, 1], help="one number for each grid")
    parser.add_argument("--rounds", nargs="+", type=int, default=[41, 15, 15, 5], help="one number for each grid")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the model")
    parser.add_argument("--blockwise", action="store_true", help="on a GPU: also without the Triton kernels")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="write a JSON file with machine, versions, date and all rows")
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args.grids[0])))
        return
    report: dict[str, Any] = {
        **heading(args.device),
        "compiled kernels": library() is not None,
        "model": f"{SIZE}/16, 12 layers, {args.dtype}",
        "ratios": "quartiles over rounds",
        "time": [],
        "memory": [],
    }

    def keep(what: str, row: Any) -> None:
        if isinstance(report.get(what), list):
            report[what].append(row)
        else:
            report[what] = row
        print(json.dumps({what: row}, indent=1), flush=True)
        write(args.output, report)

    for grid, images, rounds in zip(args.grids, args.images, args.rounds, strict=True):
        bench = Bench(grid, args.device, images, getattr(torch, args.dtype))
        keep("time", time_row(bench, rounds, free_bytes(args.device), args.blockwise))
    if args.device == "cpu" and not args.no_memory:
        grids = sorted(set(args.grids))
        if len(grids) > 1:
            keep("memory of one layer's statistics", linearity(grids))
        for grid in grids:
            keep("memory", memory_row(grid, free_bytes()))


if __name__ == "__main__":
    main()
