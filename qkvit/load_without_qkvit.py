"""Load a saved model as somebody does who never installed qkvit, and classify images with it.

    python load_without_qkvit.py MODEL_FOLDER IMAGES.npy LOGITS.npy

Run as a file, in a process of its own: `qkvit` cannot be imported here, so the code that is loaded is the code that
came with the model. Images are (count, height, width) uint8; they go through the saved image processor.
"""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class Absent(MetaPathFinder):
    """Makes a package impossible to import, installed or not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.split(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r} (kept out)", name=fullname)


def main(model_folder: str, images_file: str, logits_file: str) -> None:
    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoModelForImageClassification

    # Not from transformers: 5.17 has it there only where torchvision is installed.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    processor = AutoImageProcessor.from_pretrained(model_folder)
    model = AutoModelForImageClassification.from_pretrained(model_folder, trust_remote_code=True).eval()
    images = [Image.fromarray(image).convert("RGB") for image in np.load(images_file)]
    logits = []
    with torch.no_grad():
        for start in range(0, len(images), 250):
            inputs = processor(images=images[start : start + 250], return_tensors="pt")
            logits.append(model(**inputs).logits)
    assert "qkvit" not in sys.modules
    np.save(logits_file, torch.cat(logits).numpy())


if __name__ == "__main__":
    here = Path(__file__).resolve().parent  # Python puts it on the path; its other files are part of qkvit
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != here]
    sys.meta_path.insert(0, Absent("qkvit"))
    main(*sys.argv[1:])
