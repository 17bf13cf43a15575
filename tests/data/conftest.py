"""Small data sets on the disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def write_image():
    """`write_image(path, seed=0, size=(6, 5))`: a picture of noise; its folder is made."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def class_folders(tmp_path, write_image) -> Path:
    """Three classes of 3, 1 and 2 images."""
    for name, count in {"cat": 3, "dog": 1, "owl": 2}.items():
        for index in range(count):
            write_image(tmp_path / "pets" / name / f"{index}.png", seed=index)
    return tmp_path / "pets"


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """`parquet(name, files, labels, class_names)`: a Parquet file as `datasets` writes them; the cache is apart."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name: str, files: list[bytes | None], labels: list, class_names=("cat", "dog")) -> Path:
        label = datasets.Value("string") if class_names is None else datasets.ClassLabel(names=list(class_names))
        features = datasets.Features({"image": datasets.Image(), "label": label})
        images = [None if file is None else {"bytes": file, "path": None} for file in files]
        path = tmp_path / "tables" / name
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)
        return path

    datasets.disable_progress_bars()
    yield write
    datasets.enable_progress_bars()


@pytest.fixture
def row_stream():
    """`row_stream(path)`: a Parquet file as a Hub id is streamed: row by row, without index and length."""
    import datasets

    from qkvit.data.table_source import StreamingSource

    def open_stream(path: Path, **options):
        table = datasets.load_dataset("parquet", data_files={"rows": str(path)}, split="rows", streaming=True)
        return StreamingSource(table, name=str(path), label=None, **options)

    return open_stream


@pytest.fixture
def png():
    """`png(seed)`: the bytes of a small picture."""
    import io

    def encode(seed: int = 0) -> bytes:
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()

    return encode


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A transform that worker processes can be given."""
    return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1) / 255


@pytest.fixture
def transform():
    return to_tensor


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """`shard("shards/train-000.tar", {"a.png": b"...", "a.cls": b"1"})`: a tar file; the index's cache is apart."""
    import io
    import tarfile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))

    def write(name: str, files: dict[str, bytes]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for inside, content in files.items():
                info = tarfile.TarInfo(inside)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write
