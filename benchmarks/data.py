"""Images a second on one core: what a worker process of training does, beside plain PIL, on the same files.

    python benchmarks/data.py --photos SOURCE --output benchmarks/results/cpu-data.json

Every round runs each of these on the same files, in turn, in one thread; a ratio is PIL's time over ours in the same
round. Time is that of the processor (`time.process_time`), so that other programs on the machine matter little.

    PIL                decode, convert to RGB, resize the whole picture to 224 (bicubic), as an array
    PIL, random crop   the same with a random resized crop
    ours               what a worker does: decode, random resized crop, a batch of bytes
    ours, augmented    with flip, normalisation and random erasing on the same core (on a GPU, that is done there)
    ours, jittered     with colour jitter too
    control            PIL once more: what its ratio differs from 1 by is noise

Files: photographs of SOURCE as they are (anything that `open_images` opens; left out without it), and drawn ones of
500 x 375 pixels (a usual size in ImageNet; about 90 kB a file) and of 3000 x 2000.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from report import heading, write
from turns import ratios, take_turns

from qkvit.data import open_images
from qkvit.data.image_source import Encoded, ImageSource
from qkvit.training.augmentation.pipeline import Augmenter
from qkvit.training.images.batches import TrainingImages
from qkvit.training.images.sources import SourceSplit
from qkvit.training.recipe import Augmentation

SIZE = 224
LIGHT = Augmentation(crop="resized", flip=0.5, erasing=0.25)
JITTERED = replace(LIGHT, brightness=0.3, contrast=0.3, saturation=0.3)
BATCH = 16


class Files(ImageSource):
    """Encoded images in memory."""

    def __init__(self, files: list[bytes]) -> None:
        super().__init__("files", class_names=("picture",))
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self), dtype=np.int64)

    def encoded(self, index: int) -> Encoded:
        return Encoded(self.files[index], 0, f"file {index}")


def drawn(width: int, height: int, count: int, quality: int) -> list[bytes]:
    """JPEG files of noise in octaves: about as much detail at each scale as photographs have."""
    files = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        picture = np.zeros((height, width, 3))
        side = 2
        while side < max(width, height):
            noise = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
            layer = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) - 127.5
            picture += layer / side**0.35
            side *= 2
        picture = 127.5 + 60 * picture / picture.std()
        file = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=quality)
        files.append(file.getvalue())
    return files


def pipelines(files: list[bytes]) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    images = TrainingImages(SourceSplit(Files(files)), (SIZE, SIZE), LIGHT, seed=0)
    indices = range(len(files))
    chunks = [[(0, index, 0) for index in indices[start : start + BATCH]] for start in indices[::BATCH]]
    random = np.random.default_rng(0)

    def pil() -> object:
        opened = (Image.open(io.BytesIO(file)).convert("RGB") for file in files)
        return [np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in opened]

    def pil_crop() -> object:
        found = []
        for file in files:
            image = Image.open(io.BytesIO(file)).convert("RGB")
            width, height = (side * np.sqrt(random.uniform(0.08, 1)) for side in image.size)
            left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
            box = (left, top, left + width, top + height)
            found.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)))
        return found

    def ours() -> object:
        return [images.__getitems__(keys) for keys in chunks]

    def augmented(settings: Augmentation) -> Callable[[], object]:
        augmenter = Augmenter(settings, 0, (0.5,) * 3, (0.5,) * 3, num_labels=1)

        def run() -> object:
            batches = map(images.__getitems__, chunks)
            return [augmenter(batch["images"], batch["labels"], batch["keys"]) for batch in batches]

        return run

    return {
        "PIL": pil,
        "PIL, random crop": pil_crop,
        "ours": ours,
        "ours, augmented": augmented(LIGHT),
        "ours, jittered": augmented(JITTERED),
        "control": pil,
    }


def measure(name: str, files: list[bytes], seconds: float) -> dict:
    """One row of the table."""
    times = take_turns(pipelines(files), seconds, at_least=5, clock=time.process_time, warm_up=1)
    first = Image.open(io.BytesIO(files[0]))
    row = {
        "files": name,
        "count": len(files),
        "first size": first.size,
        "kilobytes": round(sum(map(len, files)) / len(files) / 1000, 1),
        "rounds": len(times["PIL"]),
        "images per second per core": {each: round(len(files) / median(values), 1) for each, values in times.items()},
        "PIL / it": {
            each: [round(value, 3) for value in ratios(times["PIL"], values)]
            for each, values in times.items()
            if each != "PIL"
        },
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a data set with photographs")
    parser.add_argument("--split", help="of the data set")
    parser.add_argument("--seconds", type=float, default=14.0, help="for each kind of file")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {}
    if args.photos:
        source = open_images(args.photos, split=args.split, streaming=True)
        chosen = np.linspace(0, len(source) - 1, 64).astype(int)
        found = [source.encoded(int(index)).file for index in chosen]
        kinds[f"photographs ({Path(args.photos).name})"] = [
            file if isinstance(file, bytes) else Path(file).read_bytes() for file in found
        ]
    kinds["drawn, 500 x 375"] = drawn(500, 375, 48, 95)
    kinds["drawn, 3000 x 2000"] = drawn(3000, 2000, 6, 92)
    result = {
        **heading("cpu", "PIL", command=f"python benchmarks/data.py --seconds {args.seconds:g}"),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "PIL / it": "processor time of PIL over its own in the same round, quartiles over rounds",
        "rows": [measure(name, files, args.seconds) for name, files in kinds.items()],
    }
    write(args.output, result)


if __name__ == "__main__":
    main()
