"""The command line answers with one sentence and the right exit code, whatever it is given."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import qkvit
from qkvit.cli import main


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def leave(capsys, *arguments):
    """Exit code, standard output and standard error of `qkvit ARGUMENTS`, in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return exit_.value.code, *capsys.readouterr()


def assert_one_sentence(errors):
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1


def test_help_says_what_there_is(capsys):
    code, output, _ = leave(capsys, "--help")
    assert code == 0
    assert "quickstart" in output


def test_help_of_a_command_says_its_options(capsys):
    code, output, _ = leave(capsys, "quickstart", "--help")
    assert code == 0
    for option in ("--output", "--seed", "--force", "--quick"):
        assert option in output


def test_version(capsys):
    assert leave(capsys, "--version") == (0, f"qkvit {qkvit.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quickstart", "--sead", "1"], "--sead"),
        (["quickstart", "--seed", "one"], "--seed"),
        (["quickstart", "--seed", "-1"], "--seed"),
        (["quickstart", "extra"], "extra"),
        (["quickstart", "--output"], "--output"),
        (["kwickstart"], "kwickstart"),
        (["train", "digits", "--set", "a=1", "b=2"], "(b=2): each setting is --set KEY=VALUE, with a --set of its own"),
        (["train", "digits", "--set", "learning_rate", "1e-3"], "--set KEY=VALUE"),
    ],
)
def test_a_wrong_argument_is_one_sentence_that_names_it(capsys, arguments, words):
    code, _, errors = leave(capsys, *arguments)
    assert code == 2
    assert_one_sentence(errors)
    assert words in errors


def test_images_that_are_nowhere_are_said_to_be_neither_here_nor_on_the_hub(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for arguments in (["data", "check", "photo"], ["train", "digits", "--set", "data.source=photo"]):
        code, _, errors = leave(capsys, *arguments)
        first, second = errors.splitlines()
        assert code == 2
        assert first == "There is no photo here (did you mean photos?); looking for it on the Hub."
        assert second.startswith("error: there is no folder or file photo here (did you mean photos?), and the Hub")


def test_a_missing_package_is_one_sentence_that_says_what_to_install(capsys, monkeypatch, tmp_path):
    from qkvit import quickstart

    monkeypatch.setattr(quickstart, "NEEDED", {"json": "json", "not_a_package": "its-name"})
    code, _, errors = leave(capsys, "quickstart", "--output", tmp_path / "x")
    assert code == 2
    assert_one_sentence(errors)
    assert "not_a_package" in errors
    assert "pip install its-name" in errors
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = leave(capsys, "quickstart", "--output", tmp_path / "file" / "x")
    assert code == 2
    assert_one_sentence(errors)
    assert str(tmp_path / "file" / "x") in errors


def test_a_full_disk_is_one_sentence(capsys, monkeypatch, tmp_path):
    from qkvit import quickstart

    def full(*_, **__):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(quickstart, "_run", full)
    code, _, errors = leave(capsys, "quickstart", "--output", tmp_path / "x")
    assert (code, errors) == (2, "error: No space left on device: model.safetensors\n")
    assert list(tmp_path.iterdir()) == []


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    from qkvit import quickstart

    def broken(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr(quickstart, "_run", broken)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="a defect"):
            main(["quickstart", "--output", str(tmp_path / "x")])
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT between processes on Windows")
def test_a_run_that_is_stopped_with_ctrl_c_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "qkvit", "quickstart", "--output", str(tmp_path / "run")]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process whose parent runs in the background is born deaf to ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stdout:
            if line.startswith("Training"):
                break
        assert any(tmp_path.iterdir())  # it is writing, but not yet where a finished run would be
        assert not (tmp_path / "run").exists()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "stopped"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
def test_a_run_that_is_ended_leaves_nothing(capfd, monkeypatch, tmp_path):
    from qkvit import quickstart

    monkeypatch.setattr(quickstart, "_run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    code, _, errors = leave(capfd, "quickstart", "--output", tmp_path / "run")
    assert (code, errors) == (143, "\nstopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_ended_while_it_trains_leaves_nothing(capsys, monkeypatch, tmp_path):
    from qkvit.training.errors import TrainingTerminatedError
    from qkvit.training.run import Run

    def ended(self, **_):
        self.output.mkdir()
        raise TrainingTerminatedError("stopped by SIGTERM: go on with --resume")

    monkeypatch.setattr(Run, "train", ended)
    code, _, errors = leave(capsys, "quickstart", "--quick", "--output", tmp_path / "run")
    assert (code, errors) == (143, "\nstopped\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_a_training_run_says_where_it_goes_on(capsys, monkeypatch):
    from qkvit.training.run import Run

    def interrupted(self, **_):
        raise KeyboardInterrupt("stopped by ctrl-C; with --resume it goes on from the beginning")

    monkeypatch.setattr(Run, "train", interrupted)
    code, _, errors = leave(capsys, "train", "digits")
    assert (code, errors) == (130, "error: stopped by ctrl-C; with --resume it goes on from the beginning\n")


def test_an_option_that_is_not_there_sends_one_to_the_help_of_its_command(capsys):
    code, _, errors = leave(capsys, "train", "digits", "--rezume")
    assert code == 2
    assert "--rezume" in errors
    assert errors.endswith("; see qkvit train --help\n")


@pytest.fixture(scope="module")
def finished(start_python, tmp_path_factory):
    """A whole run, with few steps."""
    folder = tmp_path_factory.mktemp("here")
    return folder, start_python("-m", "qkvit", "quickstart", "--quick", folder=folder, environment=environment())()


def test_a_run_ends_with_where_everything_is(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert str(folder / "quickstart") in done.stdout
    contents = {path.name for path in (folder / "quickstart").iterdir()}
    assert contents == {"model", "pictures", "digits", "head_facts.csv", "recipe.yaml", "run.json"}
    assert all(name in done.stdout for name in contents)
    assert [path.name for path in folder.iterdir()] == ["quickstart"]


def test_a_run_puts_nothing_on_the_screen_that_a_newcomer_would_not_understand(finished):
    errors = finished[1].stderr.replace("\r", "\n")
    assert [line for line in errors.splitlines() if line.strip() and not re.match(r" *\d+ % \|", line)] == []


def test_a_run_names_commands_that_measure_its_model(finished, capsys, monkeypatch):
    folder, done = finished
    assert len(list((folder / "quickstart" / "digits").glob("[0-9]/*.png"))) == 1000
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  ") and "--data" in line]
    assert [arguments[0] for arguments in told] == ["evaluate", "statistics"]
    monkeypatch.chdir(folder)
    for arguments in told:
        fewer = ["--images", 50] if arguments[0] == "statistics" else []
        code, _, errors = leave(capsys, *arguments, *fewer, "-o", arguments[0])
        assert code == 0, errors
        shutil.rmtree(folder / arguments[0])
    assert f'classify("{Path("quickstart", "digits", "7", "0.png")}")' in done.stdout


def test_a_run_records_what_it_was(finished):
    record = json.loads((finished[0] / "quickstart" / "run.json").read_text())
    assert record["command"] == "qkvit quickstart --quick --seed 0"
    assert record["versions"]["qkvit"] == qkvit.__version__
    assert record["accuracy"].keys() == {"QKViT", "3 nearest neighbours", "logistic regression"}
    assert record["data"]["held out"] == 1000


def test_nothing_that_a_run_writes_names_a_folder_of_this_machine(finished):
    for path in (finished[0] / "quickstart").rglob("*.*"):
        assert str(finished[0]).encode() not in path.read_bytes(), path.name


def test_a_run_draws_every_layer(finished):
    record = json.loads((finished[0] / "quickstart" / "run.json").read_text())
    pictures = finished[0] / "quickstart" / "pictures"
    layers = range(record["model"]["num_hidden_layers"])
    expected = {f"{kind}_layer_{layer}.png" for kind in ("attention", "qkv") for layer in layers}
    assert {path.name for path in pictures.iterdir()} == expected | {"training.png"}
    with Image.open(pictures / "attention_layer_0.png") as picture:
        assert record["date"] in picture.info["Description"]


def test_a_run_has_facts_about_every_head(finished):
    model = json.loads((finished[0] / "quickstart" / "run.json").read_text())["model"]
    with (finished[0] / "quickstart" / "head_facts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * model["num_hidden_layers"] * model["num_attention_heads"]
    assert all(0 <= float(row["entropy_share"]) <= 1 for row in rows)
    assert {row["weights"] for row in rows} == {"trained", "untrained"}
    assert all(0 < float(row["distance_error"]) < float(row["distance"]) for row in rows)


def test_what_to_try_next_works(finished, start_python):
    folder, done = finished
    code = done.stdout.partition(" and type\n")[2].partition("\nor ")[0]
    tried = start_python(
        "-c",
        "\n".join(line.strip() for line in code.splitlines()),
        folder=folder,
        environment={**environment(), "HF_MODULES_CACHE": str(folder.parent / "modules")},
    )()
    assert tried.returncode == 0, tried.stderr
    assert "'label'" in tried.stdout


def test_a_second_run_asks_for_force_and_force_replaces(finished, capsys, monkeypatch):
    from qkvit import quickstart

    folder, _ = finished
    code, _, errors = leave(capsys, "quickstart", "--output", folder / "quickstart")
    assert code == 2
    assert_one_sentence(errors)
    assert "--force" in errors

    record = json.loads((folder / "quickstart" / "run.json").read_text())
    monkeypatch.setattr(quickstart, "_run", lambda part, **_: record | {"date": "later"})
    code, *_ = leave(capsys, "quickstart", "--output", folder / "quickstart", "--force")
    assert code == 0
    assert json.loads((folder / "quickstart" / "run.json").read_text())["date"] == "later"
    assert [path.name for path in (folder / "quickstart").iterdir()] == ["run.json"]
