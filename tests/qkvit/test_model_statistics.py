"""`qkvit statistics`: tables, pictures and their provenance; the same on two processes; one sentence for an error."""

import json
import math
import os
import shutil
import signal
import socket
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, ViTConfig, ViTModel

import qkvit
from qkvit.analysis import collect, weight_statistics
from qkvit.analysis.accumulators import RELATIVE_ACCURACY
from qkvit.analysis.collected import SHARES
from qkvit.analysis.random_control import with_random_weights
from qkvit.analysis.statistics import groups
from qkvit.cli import main
from qkvit.cli_statistics import GROUPS
from qkvit.data import batches, open_images

pd = pytest.importorskip("pandas")
for package in ("datasets", "matplotlib", "pyarrow"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a tiny model and seven images of two classes, all seen from inside."""
    folder = tmp_path_factory.mktemp("here")
    torch.manual_seed(0)
    config = qkvit.QKViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        initializer_range=0.2,
    )
    qkvit.QKViTModel(config).save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    for name, count in {"cat": 4, "dog": 3}.items():
        (folder / "pets" / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (20, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / name / f"{index}.png")
    return folder


@pytest.fixture
def leave(capsys, monkeypatch, here):
    """`leave("--data", "pets")`: exit code, standard output and standard error of `qkvit statistics model ...`."""
    monkeypatch.chdir(here)

    def run(*arguments, model="model"):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as exit_:
                main(["statistics", model, *map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, handler)
        return exit_.value.code, *capsys.readouterr()

    return run


def assert_one_sentence(result, *words):
    code, _, errors = result
    assert code == 2
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line and not line.startswith("collecting")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_what_a_run_writes(leave, tmp_path):
    code, output, _ = leave(
        "--data", "pets", "--weights", "--layers", "0,-1", "--batch-size", 2, "-o", tmp_path / "out"
    )
    assert code == 0
    assert "7 images, 2 layers" in output
    contents = {path.name for path in (tmp_path / "out").iterdir()}
    assert contents == {
        "statistics.parquet",
        "statistics.csv",
        "classes.parquet",
        "vectors.safetensors",
        "weights.parquet",
        "weights.csv",
        "singular_values.parquet",
        "singular_values.csv",
        "pictures",
        "provenance.json",
    }
    pictures = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert pictures == {"heads.png", "distance.png", "sinks.png", "places.png", "weights.png"}
    table = pd.read_parquet(tmp_path / "out" / "statistics.parquet")
    assert set(table.layer) == {0, 2}
    assert {"layer", "head", "statistic", "mean", "standard_deviation", "n", "low", "high"} <= set(table.columns)
    weights = pd.read_parquet(tmp_path / "out" / "weights.parquet")
    assert set(weights.layer) == {0, 1, 2}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_the_numbers_come_from(leave, tmp_path):
    leave("--data", "pets", "--images", 5, "--seed", 3, "--only", "entropy,received", "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    words = "qkvit statistics model --data pets --images 5 --output"
    assert record["command"].startswith(words)
    assert record["command"].endswith("--only entropy,received --seed 3")
    assert record["images"] == record["data"]["drawn"] == 5
    assert record["data"]["classes"] == ["cat", "dog"]
    assert record["versions"]["qkvit"] == qkvit.__version__
    assert record["model"]["class"] == "QKViTModel"
    table = pd.read_parquet(tmp_path / "out" / "statistics.parquet")
    assert set(table.statistic) >= {"entropy", "sink_share", "outliers"}
    assert "distance" not in set(table.statistic)


def test_rollout_comes_with_its_picture_and_map(leave, tmp_path):
    code, _, _ = leave("--data", "pets", "--rollout", "--only", "entropy", "-o", tmp_path / "out")
    assert code == 0
    table = pd.read_parquet(tmp_path / "out" / "statistics.parquet").query("statistic.str.startswith('rollout_on')")
    np.testing.assert_allclose(table.groupby("layer")["mean"].sum(), 1, rtol=1e-6)
    assert table["head"].isna().all()
    assert load_file(tmp_path / "out" / "vectors.safetensors")["rollout_map"].shape == (3, 17)
    assert (tmp_path / "out" / "pictures" / "rollout.png").is_file()
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["command"].startswith("qkvit statistics model --data pets --rollout --output")


def test_quantiles_of_many_classes_are_an_option(leave, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["qkvit.analysis.collect"], "MANY_CLASSES", 1)
    for options, expected in (([], False), (["--class-quantiles"], True)):
        code, _, _ = leave("--data", "pets", "--only", "entropy", *options, "--force", "-o", tmp_path / "out")
        assert code == 0
        assert ("median" in pd.read_parquet(tmp_path / "out" / "classes.parquet")) == expected


def test_a_control_stands_beside_every_number(leave, here, tmp_path):
    code, output, _ = leave("--data", "pets", "--control", "--seed", 4, "--only", "entropy", "-o", tmp_path / "out")
    assert code == 0
    assert "the same with random weights" in output
    table = pd.read_parquet(tmp_path / "out" / "statistics.parquet")
    assert (table.control_low <= table.control).all()
    assert (table.control <= table.control_high).all()
    assert (table.control_n == 7).all()
    noisy = with_random_weights(qkvit.QKViTModel.from_pretrained("model").eval(), seed=4)
    plan = batches(open_images("pets"), AutoImageProcessor.from_pretrained("model"), 7)
    expected = collect(noisy, plan, statistics="entropy", show_progress=False).mean("entropy")
    entropy = table[table.statistic == "entropy"].sort_values(["layer", "head"])
    np.testing.assert_allclose(entropy.control, expected.flatten().numpy(), rtol=1e-4)
    assert not np.allclose(entropy["mean"], entropy.control, rtol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_alone_need_no_data(leave, tmp_path):
    code, output, _ = leave("--weights", "-o", tmp_path / "out")
    assert code == 0
    assert "singular_values.parquet and .csv" in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "weights.parquet",
        "weights.csv",
        "singular_values.parquet",
        "singular_values.csv",
        "pictures",
        "provenance.json",
    }


def test_the_singular_values_of_every_head_are_written(leave, here, tmp_path):
    assert leave("--weights", "--seed", 3, "-o", tmp_path / "out")[0] == 0
    table = pd.read_parquet(tmp_path / "out" / "singular_values.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "singular_values.csv"), table, check_dtype=False)
    assert list(table.columns) == ["layer", "head", "product", "index", "value", "control"]
    found = weight_statistics(qkvit.QKViTModel.from_pretrained(here / "model"), seed=3)
    for product in ("qk", "ov"):
        rows = table[table["product"] == product].sort_values(["layer", "head", "index"])
        for column, statistics in (("value", found), ("control", found.control)):
            expected = getattr(statistics, f"{product}_singular_values")
            np.testing.assert_allclose(rows[column].to_numpy().reshape(expected.shape), expected.numpy(), rtol=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(leave, here, start_python, tmp_path):
    """Started as torchrun starts them: by their environment."""
    assert leave("--data", "pets", "--batch-size", 2, "-o", tmp_path / "one")[0] == 0
    command = ["-m", "qkvit", "statistics", "model", "--data", "pets", "--batch-size", "3", "--device", "cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = []
    for rank in ("0", "1"):
        environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        started.append(start_python(*command, "-o", tmp_path / "two", folder=here, environment=environment))
    for done in [end() for end in started]:
        assert done.returncode == 0, done.stderr
    one, two = (pd.read_parquet(tmp_path / name / "statistics.parquet") for name in ("one", "two"))
    assert list(one.statistic) == list(two.statistic)
    for column in ("mean", "standard_deviation", "n", "low", "high"):
        numbers = [table[column].to_numpy(dtype=float) for table in (one, two)]
        np.testing.assert_allclose(*numbers, rtol=1e-6, atol=1e-6)
    for column in SHARES:  # where rounding moves a number to the next bin of the sketch, by its accuracy on both sides
        numbers = [table[column].to_numpy(dtype=float) for table in (one, two)]
        np.testing.assert_allclose(*numbers, rtol=2.1 * RELATIVE_ACCURACY, atol=1e-6)
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2


def test_a_run_that_is_stopped_goes_on(leave, monkeypatch, tmp_path):
    from qkvit.analysis import collect as package_name  # noqa: F401 - the function hides the module of its name

    module = sys.modules["qkvit.analysis.collect"]
    forward = module.see_images
    calls = []

    def stopped(model, pixel_values):
        calls.append(len(pixel_values))
        if len(calls) == 3:
            raise KeyboardInterrupt
        forward(model, pixel_values)

    monkeypatch.setattr(module, "see_images", stopped)
    arguments = ("--data", "pets", "--batch-size", 1, "-o", tmp_path / "out")
    code, output, errors = leave(*arguments)
    assert code == 130
    assert "goes on from there" in output
    assert errors.splitlines()[-1] == "stopped"
    assert [path.name for path in tmp_path.iterdir()] == [".out-progress"]

    code, output, _ = leave(*arguments)
    assert code == 0
    assert "going on where it was stopped" in output
    assert sum(calls) == 3 + 5  # two were kept, the third was stopped
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["images"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bad_images_stop_or_are_listed(leave, here, tmp_path):
    shutil.copytree(here / "pets", tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "1.png").write_bytes(b"broken")
    assert_one_sentence(leave("--data", tmp_path / "pets", "-o", tmp_path / "out"), "cat/1.png")
    code, output, _ = leave("--data", tmp_path / "pets", "--on-bad-image", "skip", "-o", tmp_path / "out")
    assert code == 0
    assert "1 images could not be used" in output
    (left_out,) = json.loads((tmp_path / "out" / "provenance.json").read_text())["left out"]
    assert left_out["name"] == "cat/1.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--data"),
        (["--data", "nowhere/at/all"], "nowhere/at/all"),
        (["--data", "model"], "no images"),
        (["--control", "--weights"], "--data"),
        (["--rollout", "--weights"], "--data"),
        (["--class-quantiles", "--weights"], "--class-quantiles runs over images; pass --data"),
        (["--data", "pets", "--layers", "first"], "--layers first"),
        (["--data", "pets", "--layers", "9"], "--layers 9 asks for layer 9"),
        (["--data", "pets", "--layers", "0,1-0"], "1-0 goes backwards; pass 0-1"),
        (["--data", "pets", "--only", "entropie"], "entropie"),
        (["--data", "pets", "--only", "mean_map"], "mean_map"),
        (["--data", "pets", "--on-bad-image", "ignore"], "ignore"),
        (["--data", "pets", "--split", "test"], "test"),
        (["--data", "pets", "--images", "0"], "--images"),
        (["--weights", "--device", "abacus"], "abacus"),
    ],
)
def test_a_wrong_request_is_one_sentence(leave, tmp_path, arguments, words):
    assert_one_sentence(leave(*arguments, "-o", tmp_path / "out"), words)
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_group():
    assert GROUPS.split(", ") == list(groups.GROUPS)


def test_a_name_of_no_statistic_is_told_before_a_folder_in_use_and_before_any_model(leave, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    arguments = ["--data", "pets", "--only", "entrpy", "-o", tmp_path]
    assert_one_sentence(leave(*arguments, model="./no-model"), "statistics entrpy; choose from entropy")


def test_a_model_that_is_not_there_is_one_sentence(leave, tmp_path):
    assert_one_sentence(leave("--weights", "-o", tmp_path / "out", model="./no-model"), "./no-model")


def test_weights_that_are_not_numbers_are_one_sentence(leave, here, tmp_path):
    model = qkvit.QKViTModel.from_pretrained(here / "model")
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "1.attention.k_proj" in name).fill_(math.nan)
    model.save_pretrained(tmp_path / "broken")
    for arguments in (["--data", "pets"], ["--weights"]):
        result = leave(*arguments, "-o", tmp_path / "out", model=str(tmp_path / "broken"))
        assert_one_sentence(result, "1", "NaN")


@pytest.mark.parametrize("family", ["ours", "theirs"])
def test_damaged_weights_are_one_sentence(leave, here, tmp_path, family):
    if family == "ours":
        shutil.copytree(here / "model", tmp_path / "broken")
    else:
        fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        ViTModel(ViTConfig(**fields, image_size=16, patch_size=4)).save_pretrained(tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = leave("--weights", "-o", tmp_path / "out", model=str(tmp_path / "broken"))
    assert_one_sentence(result, "broken", "damaged or cut short", "again")


def test_a_place_that_cannot_be_written_is_told_before_the_images_are_read(leave, tmp_path):
    (tmp_path / "file").write_text("")
    result = leave("--data", "pets", "-o", tmp_path / "file" / "out")
    assert_one_sentence(result, "cannot be written", "--output")
    assert "pets" not in result[1]


def test_weights_that_cannot_be_measured_are_told_before_the_images_are_read(leave, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise ValueError("the projections are one")

    monkeypatch.setattr("qkvit.analysis.weight_statistics", refuse)
    result = leave("--data", "pets", "--weights", "-o", tmp_path / "out")
    assert_one_sentence(result, "the projections are one")
    assert "pets" not in result[1]


def test_more_images_than_there_are_is_all_of_them(leave, tmp_path):
    code, screen, _ = leave("--data", "pets", "--images", 500, "--only", "entropy", "-o", tmp_path / "out")
    assert code == 0
    assert "drawn" not in screen
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["data"]["drawn"] == 7


def test_an_earlier_result_is_kept_without_force(leave, tmp_path):
    assert leave("--weights", "-o", tmp_path / "out")[0] == 0
    assert_one_sentence(leave("--weights", "-o", tmp_path / "out"), "--force")
    assert leave("--weights", "-o", tmp_path / "out", "--force")[0] == 0


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "statistics.parquet"), SafetensorError(FULL)])
def test_a_full_disk_keeps_what_was_measured(leave, monkeypatch, tmp_path, error):
    from qkvit.analysis.collected import Collected

    def full(self, folder, provenance):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Collected, "save", full)
        result = leave("--data", "pets", "-o", tmp_path / "out")
    assert_one_sentence(result, "no space is left for", "what was measured is kept", "the same command again")
    assert [path.name for path in tmp_path.iterdir()] == [".out-progress"]

    monkeypatch.setattr(qkvit.QKViTModel, "forward", None)  # it need not run again
    assert leave("--data", "pets", "-o", tmp_path / "out")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_full_from_the_start_is_told_as_it_is(leave, monkeypatch, tmp_path):
    def full(*arguments, **options):
        raise SafetensorError(FULL)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    result = leave("--data", "pets", "--only", "entropy", "-o", tmp_path / "out")
    assert_one_sentence(result, "no space is left for", "nothing could be kept")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_on_a_full_disk_is_stopped(leave, monkeypatch, tmp_path):
    from qkvit.analysis import collect as package_name  # noqa: F401 - the function hides the module of its name

    def full(*arguments, **options):
        raise SafetensorError(FULL)

    def stopped(model, pixel_values, calls=[2, 1, 0]):  # noqa: B006 - it counts
        model(pixel_values=pixel_values)
        if not calls.pop(0):
            raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(sys.modules["qkvit.analysis.collect"], "see_images", stopped)
    code, output, errors = leave("--data", "pets", "--batch-size", 1, "-o", tmp_path / "out")
    assert (code, errors.splitlines()[-1]) == (130, "stopped")
    assert "is kept" not in output
    assert list(tmp_path.iterdir()) == []
