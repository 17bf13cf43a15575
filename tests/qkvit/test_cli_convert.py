"""`qkvit convert`: there and back, and one sentence where it cannot be done."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import qkvit
from qkvit.cli import main

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}


def leave(capsys, *arguments):
    """Exit code, standard output and standard error of `qkvit convert ARGUMENTS`, in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as exit_:
            main(["convert", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return exit_.value.code, *capsys.readouterr()


@pytest.fixture
def source(tmp_path):
    ViTForImageClassification(ViTConfig(**SIZE, num_labels=3)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_there_and_back(capsys, source, tmp_path):
    code, output, _ = leave(capsys, source, tmp_path / "ours")
    assert code == 0
    assert f'QKViTForImageClassification.from_pretrained("{tmp_path / "ours"}")' in output
    ours = qkvit.QKViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    theirs, pixels = ViTForImageClassification.from_pretrained(source).eval(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(ours(pixels).logits, theirs(pixels).logits, atol=1e-5)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path / "ours")) is type(ours)

    code, output, _ = leave(capsys, tmp_path / "ours", tmp_path / "back", "--to", "vit")
    assert code == 0
    assert str(tmp_path / "back") in output
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_one_family_becomes_another_in_one_step(capsys, source, tmp_path):
    code, _, errors = leave(capsys, source, tmp_path / "out", "--to", "vit_msn", "--layout", "transformers-5")
    assert code == 0, errors
    assert any(".layers.0.attention.q_proj" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_the_data_type_can_be_chosen(capsys, source, tmp_path):
    assert leave(capsys, source, tmp_path / "ours", "--dtype", "bfloat16")[0] == 0
    assert load_file(tmp_path / "ours" / "model.safetensors")["classifier.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{source}", "{source}"], "pass --force to replace"),
        (["nowhere/at/all", "{out}"], "nowhere/at/all"),
        (["nowhere", "{out}"], "no folder or file nowhere here"),
        (["nowhere", "{out}", "--to", "resnet"], "--to resnet"),
        (["nowhere", "{out}", "--to", "vit", "--layout", "x"], "--layout x"),
        (["nowhere", "{out}", "--dtype", "int3"], "--dtype int3"),
        (["{source}", "{out}", "--to", "dinov2"], "has no place for"),
        (["{source}", "{out}", "--dtype", "int3"], "int3"),
        (["{source}", "{out}", "--layout", "transformers-5"], "--to"),
        (["{source}", "{file}"], "not a folder"),
        (["{source}"], "destination"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(capsys, source, tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    places = {"source": source, "out": tmp_path / "out", "file": tmp_path / "file"}
    code, said, errors = leave(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert "nowhere" not in said
    errors = errors.removeprefix("There is no nowhere here; looking for it on the Hub.\n")
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert words.casefold() in errors.casefold()  # an argument is shown as click has it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "vit"]


def test_force_replaces_an_earlier_result(capsys, source, tmp_path):
    assert leave(capsys, source, tmp_path / "ours")[0] == 0
    assert leave(capsys, source, tmp_path / "ours")[0] == 2
    assert leave(capsys, source, tmp_path / "ours", "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "vit"]


def test_ctrl_c_leaves_nothing(source, tmp_path):
    program = (
        "import time, qkvit.modeling.conversion.stream as stream, qkvit.cli\n"
        "write = stream.write_safetensors\n"
        "def slow(*arguments):\n"
        "    write(*arguments)\n"
        "    print('saved', flush=True)\n"
        "    time.sleep(60)\n"
        "stream.write_safetensors = slow\n"
        f"qkvit.cli.main(['convert', {str(source)!r}, {str(tmp_path / 'ours')!r}])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )
    with process:
        assert process.stdout is not None
        assert any("saved" in line for line in process.stdout)
        assert any(path.name.startswith(".ours-unfinished-") for path in tmp_path.iterdir())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]
