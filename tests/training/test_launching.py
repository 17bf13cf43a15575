"""Launchers: the configuration files of accelerate, what is refused, and how processes end when one of them dies."""

import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from qkvit.training import Recipe, TrainingRefusedError, train
from qkvit.training.arguments import training_arguments
from qkvit.training.command import main
from qkvit.training.processes import last_words
from qkvit.training.processes.sharded_trainer import layer_classes, settle_fsdp
from qkvit.training.processes.world import as_launched, check_world
from qkvit.training.trainer import RecipeTrainer
from qkvit.training.watching.stops import StopOnRequest

FILES = sorted((Path(__file__).resolve().parents[2] / "training" / "accelerate").glob("*.yaml"))


def launch_options(*options):
    """What accelerate's own parser makes of `accelerate launch OPTIONS -m qkvit.training.train digits`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    args = launch_command_parser().parse_args([*options, "-m", "qkvit.training.train", "digits"])
    return _validate_launch_command(args)[0]


class TestConfigurationFiles:
    def test_all_four_are_there(self):
        assert [path.stem for path in FILES] == ["ddp", "deepspeed-zero2", "deepspeed-zero3", "fsdp2"]

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_accelerate_knows_every_key(self, path):
        """It refuses unknown ones at the top and takes no notice of those below."""
        from accelerate.commands.config.config_args import load_config_from_file
        from accelerate.commands.launch import launch_command_parser

        config = load_config_from_file(str(path))
        known = {action.dest for action in launch_command_parser()._actions}
        assert set(config.fsdp_config) | set(config.deepspeed_config) <= known
        assert config.num_processes == -1, "no number that nobody said: accelerate then asks for --num_processes"
        assert config.mixed_precision == "no", "precision is the recipe's"

    def test_ddp(self):
        args = launch_options("--config_file", str(FILES[0]), "--num_processes", "4")
        assert (args.multi_gpu, args.use_fsdp, args.use_deepspeed) == (True, False, False)

    def test_fsdp2_gives_the_plugin_that_is_meant(self, monkeypatch, tiny_model):
        from accelerate.utils import FullyShardedDataParallelPlugin
        from accelerate.utils.launch import prepare_multi_gpu_env
        from torch.distributed.fsdp import MixedPrecisionPolicy
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        args = launch_options("--config_file", str(FILES[3]), "--num_processes", "4", "--main_process_port", "0")
        for name, value in prepare_multi_gpu_env(args).items():
            monkeypatch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is True
        assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
        assert not plugin.cpu_ram_efficient_loading
        model = tiny_model()
        assert plugin.transformer_cls_names_to_wrap == layer_classes(model) == ["QKViTLayer"]
        assert set(layer_classes(model)) < set(model._no_split_modules)
        plugin.set_mixed_precision("bf16")
        settle_fsdp(plugin, model)
        assert isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy)
        assert str(plugin.mixed_precision_policy.param_dtype) == "torch.bfloat16"
        assert str(plugin.mixed_precision_policy.reduce_dtype) == "torch.float32", "as DDP sums gradients"

    @pytest.mark.parametrize(("path", "stage"), [(FILES[1], "2"), (FILES[2], "3")], ids=["zero2", "zero3"])
    def test_deepspeed_asks_for_its_stage(self, path, stage):
        from accelerate.utils.launch import prepare_deepspeed_cmd_env

        args = launch_options("--config_file", str(path), "--num_processes", "4", "--main_process_port", "0")
        args.deepspeed_fields_from_accelerate_config = ""
        assert args.use_deepspeed
        environment = prepare_deepspeed_cmd_env(args)[1]
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false", "weights are read before they are cut"
        for chosen_by_the_recipe in ("GRADIENT_ACCUMULATION_STEPS", "GRADIENT_CLIPPING"):
            assert f"ACCELERATE_{chosen_by_the_recipe}" not in environment

    @pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
    def test_deepspeed_gives_the_plugin_that_is_meant(self, monkeypatch):
        from accelerate.utils import DeepSpeedPlugin
        from accelerate.utils.launch import prepare_deepspeed_cmd_env

        args = launch_options("--config_file", str(FILES[2]), "--num_processes", "4", "--main_process_port", "0")
        args.deepspeed_fields_from_accelerate_config = ""
        for name, value in prepare_deepspeed_cmd_env(args)[1].items():
            monkeypatch.setenv(name, value)
        plugin = DeepSpeedPlugin()
        assert plugin.zero_stage == 3
        assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
        assert plugin.deepspeed_config["gradient_clipping"] == "auto"


class TestRefused:
    def test_accelerate_that_starts_one_process_for_two(self, monkeypatch, raises_sentence):
        from accelerate.utils.launch import prepare_simple_launcher_cmd_env

        there = ("--main_process_ip", "localhost")
        for count, address, refused in ((1, (), False), (1, there, False), (2, (), True), (2, there, True)):
            args = launch_options("--cpu", "--num_processes", str(count), "--num_machines", "1", *address)
            with monkeypatch.context() as patch:
                for name, value in prepare_simple_launcher_cmd_env(args)[1].items():
                    patch.setenv(name, value)
                if refused:
                    with raises_sentence(TrainingRefusedError, "accelerate launch", "torchrun --nproc_per_node N"):
                        check_world(None, 1)
                    with raises_sentence(TrainingRefusedError, "torchrun --nproc_per_node 2"):
                        check_world(2, 1)
                else:
                    check_world(None, 1)

    def test_an_address_that_torchrun_set_is_none_of_accelerates(self, monkeypatch):
        for name, value in {"MASTER_ADDR": "a", "ACCELERATE_MIXED_PRECISION": "no", "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WORLD_SIZE", "1")
        check_world(None, 1)

    @pytest.mark.parametrize(
        ("name", "value", "settings", "words"),
        [
            ("ACCELERATE_MIXED_PRECISION", "bf16", [], ["bf16=true"]),
            ("ACCELERATE_MIXED_PRECISION", "fp8", ["bf16=true"], ["fp8", "--mixed_precision no"]),
            ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", [], ["torch_compile=true"]),
        ],
    )
    def test_what_the_launcher_wants_and_the_recipe_does_not_say(
        self, tiny, tmp_path, monkeypatch, raises_sentence, name, value, settings, words
    ):
        monkeypatch.setenv(name, value)
        with raises_sentence(TrainingRefusedError, value.lower(), *words):
            train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}), settings)

    def test_what_an_earlier_run_left_in_the_environment_is_not_the_launchers(self, monkeypatch):
        monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
        with as_launched({"torch_compile": True}):
            os.environ["ACCELERATE_DYNAMO_BACKEND"] = "inductor"  # as TrainingArguments does
        with as_launched({}):
            assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ

    @pytest.mark.parametrize("name", ["fsdp", "fsdp_config", "deepspeed"])
    def test_sharding_in_the_recipe(self, tiny, name, raises_sentence):
        with raises_sentence(TrainingRefusedError, f"arguments.{name}", "accelerate launch --config_file"):
            train(tiny({"arguments": {name: "x"}}), dry_run=True)

    def test_activation_checkpointing_that_draws_dropout_twice(self, tiny_model, raises_sentence):
        class Plugin:
            fsdp_version, activation_checkpointing = 2, True

        with raises_sentence(TrainingRefusedError, "gradient_checkpointing=true"):
            settle_fsdp(Plugin(), tiny_model())

    def test_the_first_version_of_fsdp(self, tiny_model, raises_sentence):
        class Plugin:
            fsdp_version, activation_checkpointing = 1, False

        with raises_sentence(TrainingRefusedError, "fsdp_version: 2"):
            settle_fsdp(Plugin(), tiny_model())


def test_a_dry_run_says_what_is_spread(tiny, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    train(tiny({"processes": 4}), dry_run=True)
    assert "FSDP is asked for: weights, gradients, optimizer and average take 1/4" in capsys.readouterr().out


def test_accelerate_launch_trains(tiny, tmp_path, monkeypatch):
    """accelerate runs here, and starts the training in another process."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    recipe = tmp_path / "recipe.yaml"
    made = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_strategy": "no"}})
    recipe.write_text(json.dumps(made))  # JSON is YAML
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--cpu", "--num_processes", "1", "--num_machines", "1", "-m", "qkvit.training.train", str(recipe)]
    launch_command(launch_command_parser().parse_args(options))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 2


class TestAnEndTogether:
    """torchrun's own agent, with forked processes; a hang ends by an alarm, and fails."""

    @pytest.fixture
    def torchrun(self, tiny, tmp_path, in_a_child, capfd):
        """`torchrun(before)`: the exit status of a run on two processes, and what they said."""

        def run(before, *arguments):
            recipe = tmp_path / "recipe.yaml"
            # A run of many steps: none of these ends before it is stopped.
            made = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 10**6, "ddp_timeout": 40}})
            recipe.write_text(json.dumps(made))

            def worker():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and not the agent's, as in a program that it starts
                last_words.PATIENCE = 1.0
                before()
                main([str(recipe), *arguments])

            def agent():
                from torch.distributed.launcher.api import LaunchConfig, elastic_launch

                signal.alarm(90)
                os.environ["OMP_NUM_THREADS"] = "1"
                options = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test", "max_restarts": 0}
                elastic_launch(LaunchConfig(1, 1, 2, start_method="fork", **options), worker)()

            status = in_a_child(agent)
            return status, "".join(capfd.readouterr())

        return run

    @staticmethod
    def at_step(step, act):
        original = StopOnRequest.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step and args.process_index == 1:
                act()
            return original(self, args, state, control, **kwargs)

        StopOnRequest.on_step_end = on_step_end

    def test_an_error_of_one_process_ends_all_and_is_said_once(self, torchrun):
        def act():
            raise RuntimeError("the moon is made of cheese")

        status, said = torchrun(lambda: self.at_step(3, act))
        assert status > 0
        assert said.count("RuntimeError: the moon is made of cheese") == 1
        assert said.count("process 1 of 2: failed:\nTraceback (most recent call last)") == 1
        assert "process 0 of 2" not in said, "the one that is left says nothing; the launcher's tracebacks are its own"

    def test_a_process_that_is_killed_ends_all(self, torchrun):
        status, said = torchrun(lambda: self.at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        assert status > 0
        assert "SIGKILL" in said, "the launcher's summary"
        assert "in on_step_end" not in said, "no traceback of the one that is left"

    def test_a_process_that_does_not_answer_is_not_waited_for_longer_than_the_recipe_says(self, run_in_processes):
        """transformers would wait 30 minutes on a CPU, whatever `ddp_timeout` is."""

        def waits():
            training_arguments(Recipe.load("digits", ["ddp_timeout=2"]))
            if os.environ["RANK"] == "1":
                time.sleep(5)
                return
            with pytest.raises(RuntimeError, match="2000ms") as caught:
                torch.distributed.barrier()
            assert last_words.lost_another(caught.value)

        assert run_in_processes(2, waits, limit=30) == [0, 0]

    def test_what_all_refuse_is_said_once(self, torchrun):
        status, said = torchrun(lambda: None, "--set", "learning_rat=1")
        assert status > 0
        assert said.count("did you mean learning_rate?") == 1

    def test_what_the_first_refuses_for_all_is_said_once(self, torchrun, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("dear")
        status, said = torchrun(lambda: None)
        assert status > 0
        assert said.count("holds other things already") == 1

    def test_what_one_process_alone_refuses_is_said(self, torchrun):
        original = RecipeTrainer.__init__

        def refuses(self, **kwargs):
            if os.environ["RANK"] == "1":
                raise TrainingRefusedError("this machine has no images: copy them")
            original(self, **kwargs)

        def patch():
            RecipeTrainer.__init__ = refuses

        status, said = torchrun(patch)
        assert status > 0
        assert said.count("error: process 1 of 2: this machine has no images: copy them") == 1
