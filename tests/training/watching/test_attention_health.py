"""What is said of attention while a model is trained, and that saying it changes nothing."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from qkvit.analysis import TokenLayout, attention_statistics, record
from qkvit.training import TrainingRefusedError, train
from qkvit.training.watching.attention_health import (
    HIGHEST_SCORE,
    LOWEST_ENTROPY,
    attention_health,
    problems,
    row_statistics,
)

PIXELS = torch.linspace(-1, 1, 3 * 3 * 32 * 32).sin().view(3, 3, 32, 32)


class TestRowStatistics:
    @settings(max_examples=30)
    @given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 30), st.integers(1, 7), st.integers(0, 2**31))
    def test_are_those_of_the_analysis(self, tokens, width, spread, block, seed):
        generator = torch.Generator().manual_seed(seed)
        query, key = spread * torch.randn(2, 2, 3, tokens, width, generator=generator)
        entropy, largest = row_statistics(query, key, 0.3, block=block)
        layout = TokenLayout(num_prefix_tokens=0, grid=(1, tokens))
        exact = attention_statistics(query, key, layout=layout, scaling=0.3)
        torch.testing.assert_close(entropy, exact.entropy, atol=2e-4, rtol=1e-4)
        scores = 0.3 * query.double() @ key.double().mT
        torch.testing.assert_close(
            largest.double(), (scores - scores.mean(-1, keepdim=True)).amax(-1), rtol=1e-3, atol=1e-3
        )

    @given(st.integers(1, 9), st.floats(1, 1e4))
    def test_stay_in_their_range_however_large_the_scores(self, tokens, spread):
        query, key = spread * torch.randn(2, 1, 2, tokens, 4, generator=torch.Generator().manual_seed(tokens))
        entropy, largest = row_statistics(query, key, 1.0)
        assert (entropy >= -1e-5).all()
        assert (entropy <= math.log(tokens) + 1e-5).all()
        assert (largest >= 0).all()

    def test_do_not_see_what_a_row_has_in_common(self):
        query, key = torch.randn(2, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
        shifted = row_statistics(query, key + 3, 1.0)
        for one, other in zip(row_statistics(query, key, 1.0), shifted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class TestModels:
    def test_of_our_model_are_those_of_the_recorded_tensors(self, tiny_model):
        model = tiny_model(num_hidden_layers=3)
        with record(model) as recording, torch.no_grad():
            hidden = model(PIXELS[..., :16, :16], output_hidden_states=True).hidden_states
        found = attention_health(model, PIXELS[..., :16, :16])
        assert len(found) == 3
        for number, layer in enumerate(found):
            query, key = recording[number].query, recording[number].key
            entropy, _ = row_statistics(query, key, query.shape[-1] ** -0.5)
            assert layer["entropy"] == pytest.approx(entropy.mean().item(), abs=1e-5)
            assert layer["lowest_head_entropy"] <= layer["entropy"] + 1e-6
            assert layer["entropy_share"] == pytest.approx(layer["entropy"] / math.log(query.shape[-2]), abs=1e-5)
            assert layer["query_norm"] == pytest.approx(query.norm(dim=-1).mean().item(), rel=1e-4)
            assert layer["residual_norm"] == pytest.approx(hidden[number].norm(dim=-1).mean().item(), rel=1e-4)

    @pytest.mark.parametrize(
        ("kind", "config"), [(ViTForImageClassification, ViTConfig), (BeitForImageClassification, BeitConfig)]
    )
    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_other_families_are_seen_too_and_left_as_they_were(self, kind, config, implementation):
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        torch.manual_seed(0)
        model = kind(config(**sizes, image_size=32, patch_size=8, attn_implementation=implementation)).train()
        model.dropout = nn.Dropout().eval()
        before = torch.get_rng_state()
        found = attention_health(model, PIXELS)
        assert torch.get_rng_state().equal(before)
        assert len(found) == 2
        assert all({"entropy", "largest_score", "residual_norm"} <= layer.keys() for layer in found)
        assert model.config._attn_implementation == implementation
        assert model.training
        assert not model.dropout.training

    def test_a_model_without_the_interface_has_none(self):
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_channels=3)
        assert attention_health(ResNetForImageClassification(config), PIXELS) == []


class TestProblems:
    healthy = {"entropy": 1.0, "largest_score": 10.0}

    def test_a_healthy_layer_has_none(self):
        assert problems([self.healthy] * 3) == []

    @pytest.mark.parametrize(
        ("name", "value", "word"),
        [
            ("entropy", 0.9 * LOWEST_ENTROPY, "collapses"),
            ("largest_score", 1.1 * HIGHEST_SCORE, "grow"),
            ("entropy", math.nan, "not finite"),
        ],
    )
    def test_a_sick_one_is_named(self, name, value, word):
        found = problems([self.healthy, {**self.healthy, name: value}])
        assert len(found) == 1
        assert "layer 1 " in found[0][2]
        assert word in found[0][2]


def test_tokens_that_grow_are_seen_against_the_first_step():
    layer = {"entropy": 2.0, "largest_score": 9.0}
    first = [layer | {"residual_norm": 2.0}, layer | {"residual_norm": 3.0}]
    now = [layer | {"residual_norm": 59.0}, layer | {"residual_norm": 93.0}]
    ((number, kind, sentence),) = problems(now, first)
    assert (number, kind) == (1, "norm")
    assert "31 times as long" in sentence
    assert problems(now) == problems(now, [layer, layer]) == []


class TestRuns:
    @pytest.fixture
    def recipe(self, tiny, busy, tmp_path):
        def make(folder, every, **arguments):
            settings = {"attention_health_steps": every}
            if arguments.get("lr_scheduler_type") == "constant":
                settings["warmup_epochs"] = 0.0  # it has none
            return tiny(
                busy,
                {
                    "optimisation": settings,
                    "arguments": {"output_dir": str(tmp_path / folder), "max_steps": 5, "save_steps": 5, **arguments},
                },
            )

        return make

    def test_no_bit_depends_on_it(self, recipe, weights, tmp_path):
        """With dropout, stochastic depth, mixing, accumulation and an average."""
        for folder, every in (("without", 0), ("with", 1)):
            train(recipe(folder, every))
        assert weights(tmp_path / "with") == weights(tmp_path / "without")
        metrics = json.loads((tmp_path / "with" / "metrics.json").read_text())
        assert len(metrics["attention_health"]["layers"]) == 2
        assert "attention_health" not in json.loads((tmp_path / "without" / "metrics.json").read_text())

    def test_it_is_logged_at_the_interval(self, recipe, tmp_path):
        train(recipe("run", 2))
        state = json.loads((tmp_path / "run" / "checkpoint-5" / "trainer_state.json").read_text())
        entries = [entry for entry in state["log_history"] if "attention_health/layer_01/entropy" in entry]
        assert [entry["step"] for entry in entries] == [1, 2, 4]
        losses = [entry["step"] for entry in state["log_history"] if "loss" in entry]
        assert losses == [1, 2, 3, 4, 5], "none is lost by it"

    def test_a_run_that_goes_wrong_is_told_of_once_for_each_layer(self, recipe, tmp_path, capfd):
        train(recipe("run", 1, learning_rate=3.0, lr_scheduler_type="constant", max_grad_norm=0.0))
        told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: step")]
        assert told
        assert "lower learning_rate" in told[0]
        assert len({(line.split("layer ")[1][0], *line.split()[3:5]) for line in told}) == len(told)
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert metrics["attention_health"]["warnings"] == told

    def test_a_run_that_goes_on_knows_what_was_told(self, recipe, tmp_path, capfd):
        wrong = {"learning_rate": 3.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "save_steps": 2}
        whole = train(recipe("whole", 1, **wrong))["attention_health"]
        assert whole["warnings"]
        train(recipe("run", 1, **wrong))
        shutil.rmtree(tmp_path / "run" / "checkpoint-5")
        (tmp_path / "run" / "metrics.json").unlink()
        capfd.readouterr()
        again = train(recipe("run", 1, **wrong), resume=True)["attention_health"]
        told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: step")]
        assert again == whole
        assert told == [line for line in whole["warnings"] if line.startswith("warning: step 5")]

    def test_a_model_that_cannot_be_seen_is_said_to_be_so(self, tiny, tmp_path, capfd):
        recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_strategy": "no"}})
        recipe["model"] = {
            "type": "resnet",
            "config": {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "num_channels": 3},
        }
        recipe["data"]["image_size"] = 32
        train(recipe, ["attention_health_steps=1"])
        assert capfd.readouterr().err.count("attention health is off") == 1

    def test_a_negative_interval_is_refused(self, recipe):
        with pytest.raises(TrainingRefusedError, match="attention_health_steps=-1 is negative"):
            train(recipe("run", -1))
