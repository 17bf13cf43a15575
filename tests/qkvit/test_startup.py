"""The command's first seconds: help without torch, ctrl-C without a traceback."""

import os
import signal
import subprocess
import sys

import pytest

from qkvit import startup


def python(*words):
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A process whose parent runs in the background is born deaf to ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["statistics", "--help"], ["convert"]])
def test_help_loads_no_torch(words):
    done = python("-X", "importtime", "-m", "qkvit", *words)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "qkvit.cli" in loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub"}


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT between processes on Windows")
def test_ctrl_c_while_the_command_loads_is_one_word():
    begin = "import os, signal, sys; sys.argv = ['/usr/bin/qkvit']; import qkvit.cli;"
    done = python("-c", begin + "os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stderr) == (130, "\nstopped\n")


def test_in_the_command_everything_is_there_when_it_is_needed():
    code = (
        "import sys; sys.argv = ['qkvit']\n"
        "import qkvit\n"
        "assert 'torch' not in sys.modules\n"
        "print(*(getattr(qkvit, name) is not None for name in qkvit.__all__))\n"
        "qkvit.startup.load_models()\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('qkvit').model_type)\n"
    )
    done = python("-c", code)
    assert done.stdout.split() == ["True"] * 9 + ["qkvit"], done.stderr


@pytest.mark.parametrize(
    ("seen", "typed", "answer"),
    [
        (["/usr/bin/qkvit", "train"], ["python", "/usr/bin/qkvit", "train"], True),
        (["-m", "train"], ["python", "-X", "dev", "-m", "qkvit", "train"], True),
        (["-m", "digits"], ["python", "-m", "qkvit.training.train", "digits"], False),
        (["pytest.py", "qkvit"], ["python", "-m", "pytest", "qkvit"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_only_the_command_is_taken_for_it(monkeypatch, seen, typed, answer):
    monkeypatch.setattr(sys, "argv", seen)
    monkeypatch.setattr(sys, "orig_argv", typed)
    assert startup.is_command() is answer


def test_a_process_that_the_command_starts_is_no_command(monkeypatch):
    """Spawned ones have its arguments."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/qkvit", "evaluate"])
    assert startup.is_command()
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    assert not startup.is_command()


@pytest.mark.parametrize("own", [signal.SIG_IGN, signal.SIG_DFL])
def test_only_pythons_own_handler_is_replaced_and_is_put_back(own):
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, own)
        startup.stop_at_once()
        startup.load_models()
        assert signal.getsignal(signal.SIGINT) is own
        signal.signal(signal.SIGINT, signal.default_int_handler)
        startup.stop_at_once()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        startup.load_models()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
