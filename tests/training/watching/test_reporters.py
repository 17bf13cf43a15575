"""The numbers of a run in TensorBoard and trackio."""

import pytest
from transformers.integrations import integration_utils

from qkvit.training import TrainingRefusedError, train


@pytest.fixture
def run(tiny, tmp_path):
    def start(name):
        arguments = {"output_dir": str(tmp_path / "run"), "max_steps": 3, "save_strategy": "no", "report_to": name}
        return train(tiny({"arguments": arguments}))

    return start


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_missing_package_is_named_before_anything_is_written(run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: False)
    with pytest.raises(TrainingRefusedError, match=f"report_to={name} needs .* pip install {name}"):
        run(name)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_one_is_refused_with_the_nearest(run):
    with pytest.raises(TrainingRefusedError, match="did you mean trackio"):
        run("tracio")


def test_tensorboard_gets_loss_speed_and_attention(run, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("tensorboard")
    (file,) = (tmp_path / "run").rglob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    for name in ("loss", "accuracy", "images_per_second", "utilisation"):
        assert [scalar.step for scalar in events.Scalars(f"train/{name}")] == [1, 2, 3]
    assert "train/attention_health/layer_01/entropy" in events.Tags()["scalars"]


def test_trackio_gets_a_run_in_the_recipes_project(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed")
    run("trackio")
    (database,) = (tmp_path / "trackio").glob("*.db")
    assert database.stem == "tiny"
    assert b"attention_health" in b"".join(path.read_bytes() for path in (tmp_path / "trackio").glob("tiny.db*"))
