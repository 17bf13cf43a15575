"""What a run leaves for the eye."""

import pytest
from PIL import Image

from qkvit.training import report
from qkvit.training.curves import draw_curves

LOG = [
    {
        "step": step,
        "loss": 1 / step,
        "accuracy": 0.1 * step,
        "learning_rate": 0.1,
        "eval_loss": 1.0,
        "eval_accuracy": 0.5,
    }
    for step in range(1, 5)
]


def test_a_panel_more_where_attention_was_looked_at(tmp_path):
    pytest.importorskip("matplotlib")
    watched = [*LOG, {"step": 2, "attention_health/layer_00/entropy_share": 0.9}]
    widths = []
    for name, log in (("plain", LOG), ("watched", watched), ("empty", [])):
        assert draw_curves(tmp_path / f"{name}.png", log)
        with Image.open(tmp_path / f"{name}.png") as picture:
            widths.append(picture.size[0])
    assert widths[1] > widths[0] == widths[2] > 1000


def test_a_short_run_has_whole_steps_below_its_curves(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn = []
    monkeypatch.setattr(figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    assert draw_curves(tmp_path / "curves.png", [*LOG, {"step": 1, "attention_health/layer_00/entropy_share": 0.9}])
    panels = drawn[0].axes[:4]
    assert len({panel.get_xlim() for panel in panels}) == 1
    assert all(float(tick).is_integer() for panel in panels for tick in panel.get_xticks())


def test_results_name_the_run_and_show_the_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_curves", lambda path, log: True)
    metrics = {"validation": {"loss": 0.1, "accuracy": 0.975, "images": 359}, "steps": 1200, "bad_images": {}}
    assert report.write_report(tmp_path, metrics, LOG) == ["results.md", "curves.png", "metrics.json"]
    text = (tmp_path / "results.md").read_text()
    assert text.startswith(f"# {tmp_path.name}\n\n| weights and split")
    for part in ("| validation | 359 | 97.5 % | 0.1000 |", "| steps | 1,200 |", "(curves.png)"):
        assert part in text
    assert "could not be used" not in text
