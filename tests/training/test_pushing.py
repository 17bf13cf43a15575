"""A run that cannot be pushed is refused before it starts, and loses nothing at its end; tests/hub pushes one."""

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi

from qkvit.training import TrainingRefusedError, TrainingStoppedError, train

PUSHED = {"arguments": {"push_to_hub": True, "hub_model_id": "me/trained", "max_steps": 2}}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "run"


def recipe(tiny, output, **arguments):
    return tiny(PUSHED, {"arguments": {"output_dir": str(output), **arguments}})


def test_without_a_hub_nothing_starts(tiny, output, raises_sentence):
    with raises_sentence(TrainingRefusedError, "push_to_hub: there cannot be a me/trained on the Hub"):
        train(recipe(tiny, output))
    assert not output.exists()


def test_a_model_that_cannot_be_uploaded_is_kept(tiny, output, raises_sentence, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    with raises_sentence(TrainingStoppedError, f"hf upload me/trained {output}"):
        train(recipe(tiny, output))
    assert (output / "model.safetensors").is_file()
    assert (output / "metrics.json").is_file()


def test_a_run_that_was_stopped_before_it_was_pushed_is_pushed_when_it_goes_on(tiny, output, monkeypatch):
    commits, hubs = [], [True]
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: hubs.pop() and SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "file_exists", lambda *_, **__: True)
    with pytest.raises(TrainingStoppedError):
        train(recipe(tiny, output))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, *content, **_: commits.append(content))
    hubs.append(True)
    metrics = train(recipe(tiny, output), resume=True)
    ((repository, additions),) = commits
    assert repository == "me/trained"
    assert {"model.safetensors", "config.json", "metrics.json"} <= {each.path_in_repo for each in additions}
    assert train(recipe(tiny, output), resume=True) == metrics, "and the Hub is not asked again"
    assert len(commits) == 1


@pytest.mark.parametrize(("name", "value"), [("hub_strategy", "checkpoint"), ("hub_token", "hf_secret")])
def test_another_way_of_pushing_is_refused(tiny, output, raises_sentence, name, value):
    with raises_sentence(TrainingRefusedError, f"arguments.{name} is not for recipes"):
        train(recipe(tiny, output, **{name: value}))
