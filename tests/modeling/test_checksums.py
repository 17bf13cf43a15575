"""The sums beside saved weights."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from qkvit.modeling.checksums_qkvit import changed_weights, file_digest, write_sums

WEIGHTS = ("model-00001-of-00002.safetensors", "model.fp16.safetensors", "model.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in (*WEIGHTS, "other.safetensors"):
        (tmp_path / name).write_bytes(name.encode() * 200_000)
    write_sums(tmp_path)
    return tmp_path


def test_a_digest_is_sha256(folder):
    assert file_digest(folder / WEIGHTS[0]) == hashlib.sha256((folder / WEIGHTS[0]).read_bytes()).hexdigest()


def test_every_weight_file_has_a_line_and_no_other(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in lines] == list(WEIGHTS)
    assert not list(folder.glob(".*")), "what was written aside is gone"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_reads_them(folder):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    (folder / WEIGHTS[1]).write_bytes(b"changed")
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_changed_file_is_found(folder, name):
    assert changed_weights(folder) is None
    (folder / name).write_bytes(b"changed")
    assert changed_weights(folder) == folder / name


def test_files_without_a_sum_and_sums_without_a_file_are_let_be(folder):
    (folder / "model.int8.safetensors").write_bytes(b"new")
    (folder / WEIGHTS[0]).unlink()
    assert changed_weights(folder) is None
    (folder / "SHA256SUMS").unlink()
    assert changed_weights(folder) is None


@pytest.mark.parametrize("text", ["", "no sums\n", "\xff\x00", f"{'0' * 64}  ../outside.safetensors\n", "0  \n"])
def test_other_text_in_their_place_is_let_be(folder, text):
    (folder.parent / "outside.safetensors").write_bytes(b"of somebody else")
    (folder / "SHA256SUMS").write_bytes(text.encode("latin-1"))
    assert changed_weights(folder) is None


def test_line_ends_of_other_systems_and_marks_of_binary_files(folder):
    text = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_bytes(text.replace("  ", " *").replace("\n", "\r\n").encode())
    assert changed_weights(folder) is None
    (folder / "model.safetensors").write_bytes(b"changed")
    assert changed_weights(folder) == folder / "model.safetensors"


def test_sums_without_weights_are_removed(folder):
    for name in WEIGHTS:
        (folder / name).unlink()
    write_sums(folder)
    assert not (folder / "SHA256SUMS").exists()


def test_a_file_in_the_place_of_the_folder_is_named(tiny_model, tmp_path, raises_sentence):
    (tmp_path / "taken").write_text("mine")
    with raises_sentence(NotADirectoryError, "taken is a file", "pass a folder"):
        tiny_model().save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
