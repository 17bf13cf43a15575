"""The Python of docs/analysis.md runs from top to bottom, but for what reads photographs."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"


def test_what_the_page_shows_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        if "open_images(" not in code:
            exec(compile(code, PAGE.name, "exec"), names)
    assert names["recording"][-1].query.shape == (2, 6, 197, 64)
    assert names["edited"].isfinite().all()
