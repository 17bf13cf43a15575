"""What the READMEs show runs, and both show the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def without_comments(code: str) -> list[str]:
    return [line.split("#")[0].rstrip() for line in code.splitlines()]


@pytest.mark.parametrize("name", READMES)
def test_the_python_of_a_readme_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in blocks(name, "python"):
        exec(compile(code, name, "exec"), names)
    out = names["out"]
    assert out.attentions[3].shape == (1, 6, 197, 197)
    assert out.queries[-1].shape == (1, 6, 197, 64)
    assert out.keys[5] is None
    assert type(names["model"]).__name__ == "QKViTForImageClassification"


@pytest.mark.parametrize("language", ["python", "bash"])
def test_both_readmes_show_the_same_code(language):
    english, chinese = ([without_comments(code) for code in blocks(name, language)] for name in READMES)
    assert english == chinese


def test_both_readmes_name_the_same_pages():
    english, chinese = (set(re.findall(r"\]\((docs/[^)#]+)", (ROOT / name).read_text("utf-8"))) for name in READMES)
    assert english == chinese != set()


def test_a_readme_opens_with_the_two_commands():
    for name in READMES:
        first = without_comments(blocks(name, "bash")[0])
        assert first == ["make run", "make test"]
        assert blocks(name, "bash")[1].startswith("pip install")


def test_no_page_has_a_blank_left_to_fill_in():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    blanks = [
        f"{page.name}: {blank}" for page in pages for blank in re.findall(r"@[A-Z_0-9]+@", page.read_text("utf-8"))
    ]
    assert not blanks
