"""A model with a parameter that it does not use, on two processes."""

import json

import pytest
from torch import nn

from qkvit.training import TrainingRefusedError, train
from qkvit.training.processes.unused_parameters import unused_parameters


@pytest.fixture
def dinov2(tiny, tiny_vit):
    """transformers' own, whose mask token is for its pretraining."""
    config = {name: value for name, value in tiny_vit["config"].items() if name != "intermediate_size"}
    return lambda folder: (
        tiny({"arguments": {"max_steps": 3, "save_strategy": "no", "output_dir": str(folder)}})
        | {"model": {"type": "dinov2", "config": config}}
    )


def test_its_name_and_two_ways_out_are_said_and_lead_out(dinov2, run_in_processes, raises_sentence, tmp_path):
    def runs():
        only = "trainable=all but dinov2.embeddings.mask_token"
        with raises_sentence(TrainingRefusedError, f'--set "{only}"', "ddp_find_unused_parameters=true"):
            train(dinov2(tmp_path / "stopped"))
        train(dinov2(tmp_path / "without"), [only])
        train(dinov2(tmp_path / "found"), ["ddp_find_unused_parameters=true"])

    assert run_in_processes(2, runs) == [0, 0]
    ended = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("without", "found")]
    assert ended[0]["last_training_loss"] == ended[1]["last_training_loss"]


def test_many_are_not_all_named_and_other_errors_are_none_of_this(raises_sentence):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    page = "Expected to have finished reduction in the prior iteration\nhelp. And more"
    with raises_sentence(TrainingRefusedError, "(0.weight, 0.bias, 1.weight, 2.bias, and 1 more)", "all but PATTERN"):
        raise unused_parameters(
            RuntimeError(f"{page}\nParameter indices which did not receive grad for rank 1: 0 1 2 5 6\n In"), model
        )
    with raises_sentence(TrainingRefusedError, "of the model's parameters, and several processes"):
        raise unused_parameters(RuntimeError(page), model)
    assert unused_parameters(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), model) is None
