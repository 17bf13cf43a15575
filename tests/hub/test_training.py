"""A run that takes its images and first weights from the Hub, and leaves its finished model there."""

import json

import pytest
import torch
from safetensors.torch import load

from qkvit.modeling.checksums_qkvit import SUMS
from qkvit.modeling.shipping import flat_sources

WEIGHTS = "model.safetensors"

RECIPE = """
data: {source: me/photos, train_split: train, validation_split: test, streaming: true}
model: {start: me/tiny}
optimisation: {trainable: only head, average_decay: 0.9}
distillation: {teacher: me/tiny, kind: soft}
arguments:
  output_dir: run
  max_steps: 4
  per_device_train_batch_size: 6
  save_strategy: steps
  save_steps: 2
  eval_strategy: "no"
  learning_rate: 1.0e-2
  push_to_hub: true
  hub_model_id: me/trained
"""


@pytest.fixture(scope="module")
def run(tiny, photos, qkvit_command, tmp_path_factory):
    """The folder of a run of four steps with two checkpoints, whose teacher is on the Hub as well."""
    work = tmp_path_factory.mktemp("train")
    (work / "recipe.yaml").write_text(RECIPE)
    done = qkvit_command(work, "train", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("And on the Hub: me/trained.\n")
    return work / "run"


def test_a_run_starts_from_the_weights_on_the_hub(run, hub):
    before = load(hub.files("me/tiny")[WEIGHTS])
    after = load((run / WEIGHTS).read_bytes())
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert json.loads((run / "metrics.json").read_text())["validation"]["images"] == 6


def test_the_finished_model_is_pushed_and_nothing_of_the_way_there(run, hub):
    """Trainer would push checkpoints in its place, with files that are being written."""
    assert [commit.title for commit in hub.commits["models", "me/trained"]] == [
        "initial commit",
        "Upload the finished model",
    ]
    files = hub.files("me/trained")
    assert files.keys() >= {*flat_sources(), "config.json", "preprocessor_config.json", "recipe.yaml", "metrics.json"}
    assert files[WEIGHTS] == (run / WEIGHTS).read_bytes()
    assert files[SUMS] == (run / SUMS).read_bytes()
    assert files[f"averaged/{WEIGHTS}"] == (run / "averaged" / WEIGHTS).read_bytes()
    way_there = ("checkpoint", "training_args", "run.json", ".unfinished", ".running")
    assert not [name for name in files if name.startswith(way_there)]
    assert (run / "checkpoint-4").is_dir()


def test_the_card_has_the_results(run, hub):
    card = hub.files("me/trained")["README.md"].decode()
    assert "library_name: transformers" in card
    assert "| validation | 6 |" in card
