"""What a run leaves, refuses and says."""

import importlib.util
import json
import os
import socket

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from qkvit.training import Recipe, TrainingRefusedError, TrainingStoppedError, train
from qkvit.training.command import main
from qkvit.training.cost import activation_bytes, forward_flops
from qkvit.training.images import sources
from qkvit.training.images.sources import open_splits
from qkvit.training.processes.world import check_world
from qkvit.training.recipe import Data
from qkvit.training.report import draw_curves  # the one of the package: runs in these tests draw nothing
from qkvit.training.trainer import RecipeTrainer


@pytest.fixture(scope="module")
def run(tiny, busy, tmp_path_factory):
    """A busy run that has ended: its folder and metrics."""
    tmp_path = tmp_path_factory.mktemp("ended")
    recipe = tiny(busy, {"arguments": {"output_dir": str(tmp_path / "run"), "eval_strategy": "steps", "eval_steps": 4}})
    return tmp_path / "run", train(recipe)


def test_a_run_leaves_a_model_checkpoints_and_its_record(run):
    folder, metrics = run
    for name in ("model.safetensors", "config.json", "modeling_qkvit.py", "preprocessor_config.json", "results.md"):
        assert (folder / name).is_file(), name
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-9"}, "two are kept"
    assert not list(folder.rglob("training_args.bin")), "a pickle with this machine's paths"
    assert not list(folder.glob(".unfinished"))
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    record = json.loads((folder / "run.json").read_text())
    assert {"qkvit", "torch", "transformers"} <= record["versions"].keys()
    assert record["processes"] == 1
    assert Recipe.load(folder / "recipe.yaml").augmentation.mixup == 0.8


def test_the_saved_model_has_the_accuracy_that_was_measured(run):
    folder, metrics = run
    validation = open_splits(Recipe.load(folder / "recipe.yaml").data).validation
    for where, name in ((folder, "validation"), (folder / "averaged", "validation, averaged weights")):
        model, processor = (
            AutoModelForImageClassification.from_pretrained(where),
            AutoImageProcessor.from_pretrained(where),
        )
        images = [validation.image(index) for index in range(len(validation))]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            right = (model.eval()(pixels).logits.argmax(-1).numpy() == validation.labels).mean()
        assert right == pytest.approx(metrics[name]["accuracy"])
        assert metrics[name]["images"] == len(validation)


def test_a_recipe_learns(tiny, tmp_path):
    recipe = tiny({"data": {"images": 300}, "arguments": {"output_dir": str(tmp_path / "run"), "save_strategy": "no"}})
    metrics = train(recipe, ["max_steps=120", "learning_rate=5e-3", "per_device_train_batch_size=32"])
    assert metrics["validation"]["accuracy"] > 0.3  # chance is 0.1


def test_operations_are_counted_by_the_image(run):
    _, metrics = run
    assert metrics["total_flops"] == metrics["flops_per_image"] * 9 * 16
    assert 2.9 < metrics["flops_per_image"] / metrics["flops_forward_per_image"] < 3


def test_a_dry_run_writes_nothing(tiny, tmp_path, capsys):
    plan = train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}), dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert (plan["steps"], plan["steps_per_epoch"], plan["left_out"], plan["global_batch"]) == (9, 12, 4, 8)
    output = capsys.readouterr().out
    for word in ("parameters", "operations", "processes", "memory"):
        assert word in output


def test_a_trial_of_a_few_steps_says_that_it_is_all_warm_up(tiny, capsys):
    for steps, said in ((20, True), (60, False)):
        train(tiny({"optimisation": {"warmup_epochs": 4}}), [f"max_steps={steps}"], dry_run=True)  # 48 steps
        assert ("20 of warm-up: the learning rate only rises" in capsys.readouterr().out) == said
    with pytest.raises(TrainingRefusedError, match="a warm-up of 48 steps leaves nothing of the run of 36"):
        train(tiny({"optimisation": {"warmup_epochs": 4}}), ["max_steps=-1", "num_train_epochs=3"], dry_run=True)


def test_a_dry_run_needs_no_data(capsys):
    known = ["data.source=nowhere", "known_images=45000", "known_classes=10"]
    plan = train("cifar10-scratch", known, dry_run=True)
    assert (plan["images"], plan["classes"]) == (45000, 10)
    said = capsys.readouterr().out
    assert "nowhere" in said
    assert "Planned with what the recipe says" in said


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_teacher_that_is_not_there_is_said_before_the_data_are_opened(tiny, tmp_path, monkeypatch, dry_run):
    monkeypatch.setattr("qkvit.training.run.open_splits", lambda data: pytest.fail("the data were opened"))
    monkeypatch.setattr("qkvit.training.run.planned_data", lambda *_: pytest.fail("the data were planned with"))
    recipe = tiny({"distillation": {"teacher": "./no-teacher"}, "arguments": {"output_dir": str(tmp_path / "run")}})
    with pytest.raises(TrainingRefusedError, match=r"the teacher \./no-teacher cannot be read: there is no folder"):
        train(recipe, dry_run=dry_run)


def test_a_dry_run_fetches_no_data(monkeypatch, capsys):
    """Of what is on the Hub, a plan needs two numbers that a recipe may say."""
    monkeypatch.setattr(sources, "open_splits", lambda data: pytest.fail("the data were opened"))
    plan = train("vit-s16-in1k-90ep", dry_run=True)
    assert (plan["images"], plan["classes"]) == (1268355, 1000)
    assert "ILSVRC/imagenet-1k is not fetched for a plan" in capsys.readouterr().out


def test_a_dry_run_reads_tables_on_the_hub_in_place(tiny, monkeypatch):
    found, ways = open_splits(Data("digits")), []

    def opened(data):
        ways.append(data.streaming)
        if data.streaming and len(expected) > 1:
            raise TrainingRefusedError("there are no Parquet files")
        return found

    monkeypatch.setattr(sources, "open_splits", opened)
    for expected in ([True], [True, False]):  # the second time, there are no Parquet files
        ways.clear()
        train(tiny({"data": {"source": "nobody/nothing", "images": None}}), dry_run=True)
        assert ways == expected


@pytest.mark.parametrize("settings", [["mixup=0.8", "mixed_labels=present"], ["optim=lion_32bit"]])
def test_a_plan_refuses_what_the_run_would(tiny, settings):
    if "optim=lion_32bit" in settings and importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    for dry_run in (True, False):
        with pytest.raises(TrainingRefusedError):
            train(tiny(), settings, dry_run=dry_run)


def test_binary_cross_entropy_takes_the_whole_labels_of_two_images(tiny, tmp_path):
    settings = ["mixup=0.8", "mixed_labels=present", "classification_loss=binary_cross_entropy", "max_steps=2"]
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "save_strategy": "no"}})
    assert train(recipe, settings)["last_training_loss"] > 0


def test_activations_grow_with_depth(tiny_model):
    shallow, deep = (tiny_model(num_hidden_layers=depth) for depth in (2, 4))
    size = (16, 16)
    assert forward_flops(deep, size) > 1.8 * forward_flops(shallow, size)
    assert activation_bytes(deep, size) > 1.8 * activation_bytes(shallow, size)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["per_device_train_batch_size=200"], ["100 images", "200"]),
        (["num_labels=3"], ["num_labels=3", "10 classes"]),
        (["hidden_size=15"], ["hidden_size"]),
        (["model.config.hiden_size=16"], ["hiden_size"]),
        (["data.source=no/such folder"], ["no/such folder"]),
        (["trainable=only nothing"], ["nothing"]),
        (["num_channels=1"], ["num_channels=1", "images of 3"]),
        (["model.config.problem_type=regression"], ["problem_type='regression'", "leave it out"]),
        (["stochastic_depth=uniform"], ["stochastic_depth='uniform'", "drop_path_rate"]),
        (["data.image_size=9"], ["9 x 9 pixels", "data.image_size"]),
        (["lr_scheduler_kwargs={min_lrr: 1e-5}", "lr_scheduler_type=cosine_with_min_lr"], ["cosine_with_min_lr"]),
        (["lr_scheduler_kwargs=abc"], ["lr_scheduler_kwargs='abc'", "mapping"]),
        (["bf16=true", "fp16=true"], ["TrainingArguments"]),
        (["model.start=/no/such/model"], ["/no/such/model"]),
        (["dropout_by_image=true", "attention_probs_dropout_prob=0.1"], ["attention_probs_dropout_prob"]),
        (["mixup=0.8", "mixed_labels=present"], ["mixed_labels=present", "binary_cross_entropy"]),
        (["optimizer=muon", "optim=adamw_torch"], ["optimizer=muon", "optim=adamw_torch", "--set optimizer=null"]),
        (["warmup_epochs=1", "warmup_steps=5"], ["warmup_epochs=1", "warmup_steps=5", "twice"]),
        (["optim_args=weight_decay=0.3"], ["optim_args", "weight_decay", "adamw_torch_fused"]),
        (["optim=sgd", "optim_args=nonsense=0.9"], ["nonsense", "sgd"]),
        (["optimizer=lamb", "optim_args=eps=1"], ["optim_args=eps=1", "lamb"]),
        (["report_to=null"], ["report_to", "none"]),
        (["crop=resized", "crop_scale=[0.1, 2]"], ["crop_scale=[0.1, 2", "1 or less"]),
        (["adam_beta2=2"], ["arguments.adam_beta2=2.0", "less than 1"]),
        (["adam_epsilon=-1"], ["arguments.adam_epsilon=-1.0", "0 or more"]),
        (["dataloader_num_workers=-1"], ["arguments.dataloader_num_workers=-1", "0 or more"]),
        (["dataloader_num_workers=1", "dataloader_prefetch_factor=0"], ["dataloader_prefetch_factor=0", "1 or more"]),
        (
            ["accelerator_config={gradient_accumulation_kwargs: {num_steps: 2}}"],
            ["num_steps", "use gradient_accumulation_steps"],
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence_before_anything_is_written(tiny, tmp_path, settings, words):
    with pytest.raises(TrainingRefusedError) as caught:
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}), settings)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_step_images_and_layer(tiny, tmp_path, monkeypatch):
    forward = RecipeTrainer._forward

    def breaks(self, model, pixels, keys):
        if self.state.global_step == 3:
            with torch.no_grad():
                self.model.qkvit.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        return forward(self, model, pixels, keys)

    monkeypatch.setattr(RecipeTrainer, "_forward", breaks)
    with pytest.raises(TrainingStoppedError) as caught:
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}))
    message = str(caught.value)
    assert "in step 4, first in qkvit.layers.1.mlp.up_proj" in message
    listed = message[message.index("[") + 1 : message.index("]")].split(", ")
    assert len(listed) == 8
    assert f"(image {listed[0]}, image {listed[1]}, image {listed[2]}, image {listed[3]} and 4 more)" in message


def test_a_short_run_has_curves_unless_the_recipe_says_when_to_log(tiny, tmp_path):
    for name, settings, logged in (("a", [], 9), ("b", ["logging_steps=4"], 2)):
        recipe = tiny({"arguments": {"output_dir": str(tmp_path / name)}})
        del recipe["arguments"]["logging_steps"]
        train(recipe, settings)
        state = json.loads((tmp_path / name / "checkpoint-8" / "trainer_state.json").read_text())
        assert sum("loss" in entry for entry in state["log_history"]) == min(logged, 8)


def test_ctrl_c_says_where_the_run_can_go_on(tiny, tmp_path, monkeypatch):
    forward = RecipeTrainer._forward

    def interrupted(self, model, pixels, keys):
        if self.state.global_step == stop_at:
            raise KeyboardInterrupt
        return forward(self, model, pixels, keys)

    def stopped(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RecipeTrainer, "_forward", interrupted)
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "save_strategy": "steps", "save_steps": 2}})
    stop_at = 1
    with pytest.raises(KeyboardInterrupt, match=r"^stopped by ctrl-C; with --resume it goes on from the beginning$"):
        train(recipe)
    stop_at = 5
    with pytest.raises(KeyboardInterrupt, match=r"^stopped by ctrl-C; with --resume it goes on after step 4$"):
        train(recipe, resume=True)
    stop_at = None
    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "_measure", stopped)
        with pytest.raises(KeyboardInterrupt, match=r"it goes on after step 9$"):
            train(recipe, resume=True)
    assert train(recipe, resume=True)["steps"] == 9


class TestWorld:
    @pytest.mark.parametrize(("asked", "launched", "real"), [(2, "1", 1), (None, "2", 1), (1, "2", 2), (4, "2", 2)])
    def test_a_number_that_nobody_asked_for_is_refused_with_the_command(self, monkeypatch, asked, launched, real):
        monkeypatch.setenv("WORLD_SIZE", launched)
        with pytest.raises(TrainingRefusedError, match="start with"):
            check_world(asked, real)

    @pytest.mark.parametrize(("asked", "launched", "real"), [(None, "1", 1), (2, "2", 2), (None, "2", 2)])
    def test_the_right_number_is_accepted(self, monkeypatch, asked, launched, real):
        monkeypatch.setenv("WORLD_SIZE", launched)
        check_world(asked, real)

    @pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
    def test_processes_of_a_cluster_that_know_nothing_of_each_other_are_refused(self, monkeypatch, name):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        monkeypatch.setenv(name, "1")
        check_world(None, 1)
        monkeypatch.setenv(name, "2")
        with pytest.raises(TrainingRefusedError, match="2 processes were started without a launcher"):
            check_world(None, 1)
        monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun, started by srun on each machine
        check_world(None, 1)

    def test_several_gpus_in_one_process_are_refused(self):
        with pytest.raises(TrainingRefusedError, match="nproc_per_node 4"):
            check_world(None, 1, gpus=4)

    def test_a_recipe_for_two_is_not_started_by_one(self, tiny, tmp_path):
        with pytest.raises(TrainingRefusedError, match="torchrun --nproc_per_node 2"):
            train(tiny({"processes": 2, "arguments": {"output_dir": str(tmp_path / "run")}}))


def test_two_processes_train_as_one(tiny, busy, tmp_path, in_a_child):
    """Dropout, stochastic depth, augmentation and mixing included: the loss of 20 steps, to 1e-5."""

    def recipe(folder, batch):
        arguments = {"output_dir": str(tmp_path / folder), "max_steps": 20, "per_device_train_batch_size": batch}
        return tiny(busy, {"optimisation": {"dropout_by_image": True}, "arguments": arguments})

    def pair():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        os.environ["OMP_NUM_THREADS"] = "1"  # accelerate warns where it is not said
        other = os.fork()
        rank = "0" if other else "1"
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        train(recipe("two", 4))
        if other and os.waitpid(other, 0)[1]:
            raise SystemExit(3)

    assert in_a_child(lambda: train(recipe("one", 8))) == 0
    assert in_a_child(pair) == 0
    losses = []
    for folder in ("one", "two"):
        log = json.loads((tmp_path / folder / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert len(losses[0]) == 20
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-5, rtol=0)
    metrics = [json.loads((tmp_path / folder / "metrics.json").read_text())["validation"] for folder in ("one", "two")]
    assert metrics[0]["images"] == metrics[1]["images"]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], abs=1e-4)


def test_class_folders_with_a_bad_image(tiny, tmp_path, raises_sentence):
    for split, count in (("train", 8), ("validation", 2)):
        for colour in ("red", "blue"):
            for index in range(count):
                path = tmp_path / "photos" / split / colour / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (12 + index, 10), colour).save(path)
    (tmp_path / "photos" / "train" / "red" / "3.png").write_bytes(b"not an image")
    data = {
        "source": str(tmp_path / "photos"),
        "train_split": "train",
        "validation_split": "validation",
        "images": None,
    }
    recipe = tiny({"data": data, "arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 4}})
    with raises_sentence(TrainingStoppedError, "red/3.png", "--resume --allow data", "on_bad_image=skip"):
        train(recipe)
    Image.new("RGB", (15, 10), "red").save(tmp_path / "photos" / "train" / "red" / "3.png")
    assert train(recipe, resume=True, allow=["data"])["bad_images"] == {}
    (tmp_path / "photos" / "train" / "red" / "3.png").write_bytes(b"not an image")
    metrics = train(recipe, ["on_bad_image=skip", f"output_dir={tmp_path / 'skipped'}"])
    assert list(metrics["bad_images"]) == ["train/red/3.png"]
    assert metrics["validation"]["images"] == 4


def test_only_what_is_named_is_trained(tiny, tmp_path):
    train(tiny({"arguments": {"output_dir": str(tmp_path / "start"), "max_steps": 1}}))
    start = {"model": {"start": str(tmp_path / "start"), "config": {}}}
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run")}}) | start
    train(recipe, ["trainable=only q"])
    before, after = (AutoModelForImageClassification.from_pretrained(tmp_path / name) for name in ("start", "run"))
    moved = {
        name
        for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True)
        if not one.equal(other)
    }
    assert moved
    assert all(".q_proj." in name for name in moved)


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    log = [{"step": step, "loss": 1 / step, "learning_rate": 0.1, "eval_loss": 1.0} for step in range(1, 5)]
    assert draw_curves(tmp_path / "curves.png", log)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no recipe nowhere"),
        (["digits", "--set", "seeed=1"], "seeed"),
        (["digits", "--sett", "seed=1"], "--sett"),
        (["digits", "--set", "seed=1", "hidden_size=8"], "with a --set of its own"),
        ([], "recipe"),
    ],
)
def test_the_module_answers_with_one_sentence_and_exit_code_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert words in errors


def test_the_command_is_there(capsys):
    from qkvit.cli import app

    assert "train" in {command.name or command.callback.__name__ for command in app.registered_commands}


def test_images_of_one_class_are_refused(tiny, tmp_path, raises_sentence):
    """One output would be taken for a regression, and its accuracy is 100 %."""
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photos" / "cat" / f"{number}.png")
    with raises_sentence(TrainingRefusedError, "one class, cat"):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}), [f"data.source={tmp_path / 'photos'}"])
    assert not (tmp_path / "run").exists()
