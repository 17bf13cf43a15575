"""Compiles the Triton kernels of the statistics for GPUs that need not be there, and prints what they take.

    python benchmarks/compile_kernels.py --capabilities 80 90 --widths 64 128

One line of JSON for each kernel, type, width of a head and compute capability: registers of a thread, bytes of its
stack (registers that were spilled), bytes of shared memory of a program (a device has 99 KB at the least), instructions
of each loop for every score of a tile, and the seconds that compiling took. Nothing runs. The kernels are compiled as
`fused_gpu` launches them for all statistics of a float32 or 16-bit layer, or for the cheap ones, in which strides and
sizes are no multiples of 16 unless the widths make them.

A thread's instruction counts as one. The loops of `row_kernel` are that for the largest scores, that over the patches
around a query, which is gone through nine times in all, and that for the sums; those of `product_kernel` are that of a
group of three heads with itself, and that of two groups, whose tile has the scores of six heads.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is first imported; an interpreted kernel cannot be compiled

import torch

from qkvit.analysis import TokenLayout
from qkvit.analysis.statistics import fused_gpu
from qkvit.analysis.statistics.groups import FUSED, GROUPS
from qkvit.analysis.statistics.inputs import AttentionInputs

LAYOUT = TokenLayout(grid=(14, 14), has_class_token=True, num_register_tokens=4)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def launches(
    dtype: torch.dtype, width: int, masked: bool = False, groups: Iterable[str] = GROUPS
) -> Iterator[fused_gpu.Launch]:
    """All kernels as they are launched on a GPU; the tensors here have no memory."""
    device = torch.device("meta")
    shape = (2, 6, LAYOUT.num_tokens, width)
    query, key, value = (torch.empty(shape, dtype=dtype, device=device) for _ in range(3))
    mask = torch.empty(2, 1, 1, LAYOUT.num_tokens, dtype=torch.bool, device=device) if masked else None
    attention = fused_gpu.Attention(query, key, mask, 0.125)
    inputs = AttentionInputs(query, key, LAYOUT, 0.125, value)
    norms = torch.empty(shape[:3], device=device) if "values" in groups else None
    rows, _ = fused_gpu.row_launch(attention, frozenset(groups), inputs, norms)
    log_sums, *row_weights = rows.arguments["state"]
    columns = fused_gpu.column_launch(attention, log_sums, *row_weights)
    yield from (rows, fused_gpu.log_sum_launch(attention), columns, fused_gpu.product_launch(attention, log_sums))


def compiled(launch: fused_gpu.Launch, capability: int) -> Any:
    """What Triton makes of a launch for NVIDIA GPUs of a compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = launch.function()
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    multiples: dict[tuple[int], list[list[Any]]] = {}
    for place, parameter in enumerate(kernel.params):
        given = launch.arguments[parameter.name]
        special = isinstance(given, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (special and given == 1):  # Triton makes a constant of every 1
            signature[parameter.name], constants[(place,)] = "constexpr", given
            continue
        if isinstance(given, torch.Tensor):
            signature[parameter.name] = POINTERS[given.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(given, float) else "i32"
        if isinstance(given, torch.Tensor) or (special and given % 16 == 0):
            multiples[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=constants, attrs=multiples)
    options = {"num_warps": launch.num_warps, "num_stages": fused_gpu.NUM_STAGES}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def read_off(binary: bytes, tool: str, option: str) -> str:
    """What a program that comes with Triton says of a compiled kernel."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([path, option, file.name], check=True, capture_output=True, text=True).stdout


def registers_and_stack(binary: bytes) -> tuple[int, int]:
    """Of a thread."""
    text = read_off(binary, "cuobjdump", "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def instructions_of_loops(binary: bytes) -> list[int]:
    """From each label that is jumped back to, to the last such jump; a few instructions that wait are left out."""
    places: dict[str, int] = {}
    ends: dict[int, int] = {}
    count = 0
    for line in read_off(binary, "nvdisasm", "-c").splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            places[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            count += 1
            jump = re.search(r"\bBRA\b.*?(\.L_x_\d+)", instruction[1])
            if jump and jump[1] in places:
                ends[places[jump[1]]] = count
    return [end - start for start, end in sorted(ends.items()) if end - start > 20]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", nargs="+", type=int, default=[80, 90])
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--cheap", action="store_true", help="without distances, similarities and values")
    parser.add_argument("--masked", action="store_true", help="with a mask of True and False")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # compiled anew each time
        for capability in args.capabilities:
            for name in args.dtypes:
                for width in args.widths:
                    for launch in launches(DTYPES[name], width, args.masked, FUSED if args.cheap else GROUPS):
                        start = time.perf_counter()
                        binary = compiled(launch, capability)
                        seconds = time.perf_counter() - start
                        registers, stack = registers_and_stack(binary.asm["cubin"])
                        row = {"kernel": launch.kernel, "capability": capability, "dtype": name, "width": width}
                        row |= {"registers": registers, "stack": stack, "shared": binary.metadata.shared}
                        tile = launch.arguments["BLOCK_M"] * launch.arguments["BLOCK_N"]
                        loops = instructions_of_loops(binary.asm["cubin"])
                        row["instructions"] = [round(it * launch.num_warps * 32 / tile, 1) for it in loops]
                        print(json.dumps(row | {"seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
