"""The Python of docs/analysis.md runs from top to bottom, but for what reads a folder of photographs."""

import re
from pathlib import Path

import pytest
import transformers
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_what_the_page_shows_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in blocks()[1:]:
        if "open_images(" not in code:
            exec(compile(code, PAGE.name, "exec"), names)
    assert names["recording"][-1].query.shape == (2, 6, 197, 64)
    assert names["edited"].isfinite().all()


def test_a_photo_becomes_a_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    name = "facebook/dinov2-small"  # a folder of that name is taken first
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
    transformers.Dinov2Model(transformers.Dinov2Config(**fields)).save_pretrained(name)
    size = {"crop_size": {"height": 28, "width": 42}, "size": {"shortest_edge": 28}}
    transformers.BitImageProcessorPil(**size).save_pretrained(name)
    Image.radial_gradient("L").convert("RGB").resize((60, 40)).save("photo.jpg")
    exec(compile(blocks()[0], PAGE.name, "exec"), {})
    with Image.open("attention.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 100
