"""Peak memory of converting a large checkpoint: `python benchmarks/convert_memory.py [--gigabytes 1] [--bin]`.

Writes a random bfloat16 checkpoint of the width of ViT-g into a temporary folder, converts it, saves it and exports it
again, each in a process of its own, and prints the peak of resident memory beside the size of the checkpoint. What
Python, torch and transformers need before anything is read is stated apart.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYER_BYTES = 2 * (4 * 1408**2 + 2 * 1408 * 6144)  # bfloat16, the large matrices


def make(folder: Path, gigabytes: float, as_bin: bool) -> None:
    """A dinov2 checkpoint of random numbers, written tensor by tensor from the shapes alone."""
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=1408,
        num_hidden_layers=max(1, round(gigabytes * 1e9 / LAYER_BYTES)),
        num_attention_heads=16,
        mlp_ratio=4,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Dinov2Model(config).state_dict().items()}
    tensors = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    if as_bin:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def measure(source: str, destination: str, what: str) -> None:
    """Do one thing and print the peaks of this process in bytes, and the seconds it took."""
    import torch

    import qkvit
    from qkvit.modeling.conversion import convert_folder, load_own

    torch.set_grad_enabled(False)
    before, start = peak(), time.perf_counter()
    if what == "qkvit convert":
        convert_folder(source, Path(destination))
    elif what == "export":
        qkvit.export(load_own(source), destination, family="dinov2")
    else:
        model = qkvit.convert(source)
        if what == "convert and save":
            model.save_pretrained(destination)
    print(json.dumps({"before": before, "peak": peak(), "seconds": time.perf_counter() - start}))


def peak() -> int:
    """The largest resident memory of this process so far."""
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--bin", action="store_true", help="a file of torch instead of safetensors")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(Path(arguments.make), arguments.gigabytes, arguments.bin)
        return
    if arguments.child:
        measure(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make", str(source)], check=True)
        size = sum(file.stat().st_size for file in source.iterdir())
        print(f"checkpoint: {size / 1e9:.2f} GB, bfloat16, {'.bin' if arguments.bin else 'safetensors'}")
        for what in ("convert", "convert and save", "qkvit convert", "export"):
            place = str(source) if what != "export" else str(Path(scratch, "convert and save"))
            child = [sys.executable, __file__, "--child", place, str(Path(scratch, what)), what]
            printed = subprocess.run(child, check=True, capture_output=True, text=True).stdout
            found = json.loads(printed.splitlines()[-1])
            ratio = (found["peak"] - found["before"]) / size
            print(
                f"{what:18s} {ratio:.2f} x the checkpoint's size above {found['before'] / 1e9:.2f} GB of imports"
                f" (peak {found['peak'] / 1e9:.2f} GB), {found['seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
