"""What a user sees when the files of weights are damaged, changed or missing."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.modeling.checksums_qkvit import file_digest


def damage_of(data: bytes) -> dict[str, bytes]:
    return {
        "cut short": data[:-100],
        "cut within the header": data[:1000],
        "a few bytes": data[:5],
        "empty": b"",
        "the header's length flipped": bytes(255 - byte for byte in data[:8]) + data[8:],
        "the header flipped": data[:8] + bytes(255 - byte for byte in data[8:16]) + data[16:],
        "a type that there is not": data.replace(b'"F32"', b'"F31"', 1),
        "a shape that does not fit": data.replace(b"[32,128]", b"[32,129]", 1),
        "too long": data + b"more",
        "a web page": b"<html><body>404: Not Found</body></html>" * 30,
    }


@pytest.mark.parametrize("damage", damage_of(b"\0" * 2000))
def test_a_damaged_weight_file_is_named_with_the_way_out(raises_sentence, folder, load, damage):
    weights = folder / "model.safetensors"
    data = damage_of(weights.read_bytes())[damage]
    weights.write_bytes(data)
    words = (str(weights), "damaged or cut short", f"{len(data):,} bytes", "copy, download or save")
    with raises_sentence(OSError, *words) as caught:
        load(folder)
    assert isinstance(caught.value.__cause__, SafetensorError)


@given(st.data())
def test_a_file_cut_anywhere_is_refused(raises_sentence, saved, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    whole = (saved / "model.safetensors").read_bytes()
    shutil.copy(saved / "config.json", folder)
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with raises_sentence(OSError, "model.safetensors is damaged or cut short"):
        QKViTForImageClassification.from_pretrained(folder)


@given(st.data())
def test_a_bit_changed_anywhere_is_refused(raises_sentence, saved, tmp_path_factory, data):
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("changed") / "model"))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[data.draw(st.integers(0, len(weights) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "model.safetensors").write_bytes(weights)
    with raises_sentence((OSError, RuntimeError), str(folder)):
        QKViTForImageClassification.from_pretrained(folder)


def change_a_weight(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_changed_weights_are_named_with_the_way_out(raises_sentence, folder, load):
    change_a_weight(folder / "model.safetensors")
    words = (str(folder / "model.safetensors"), "not what was saved there", "SHA256SUMS", "if the change was meant")
    with raises_sentence(OSError, *words):
        load(folder)
    (folder / "SHA256SUMS").unlink()
    load(folder)


@pytest.fixture(params=[None, "older"], ids=["main", "a revision"])
def downloaded(request, saved, tmp_path) -> tuple[Path, dict]:
    """The weights of "me/model" as the Hub's client keeps them, and the arguments that find them."""
    repository = tmp_path / "models--me--model"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    for part in (snapshot, blobs, repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / (request.param or "main")).write_text("0" * 40)
    shutil.copy(saved / "config.json", snapshot)
    blob = blobs / file_digest(saved / "model.safetensors")
    shutil.copy(saved / "model.safetensors", blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    return blob, {"cache_dir": tmp_path, "local_files_only": True} | ({"revision": "older"} if request.param else {})


def test_weights_that_were_changed_in_the_cache_of_the_hub_are_named(raises_sentence, downloaded, load):
    blob, where = downloaded
    load("me/model", **where)
    change_a_weight(blob)
    with raises_sentence(OSError, str(blob), "not what the Hub has of me/model", "delete it, and load"):
        load("me/model", **where)


def test_a_cache_without_links_or_sums_is_let_be(downloaded):
    blob, where = downloaded
    change_a_weight(blob)
    file = next(blob.parent.parent.glob("snapshots/*/model.safetensors"))
    file.unlink()
    other = blob.rename(blob.with_name("1" * 40))  # what git names: of a small file, no SHA-256 of it
    file.symlink_to(other)
    QKViTModel.from_pretrained("me/model", **where)
    file.unlink()
    shutil.copy(other, file)
    QKViTModel.from_pretrained("me/model", **where)


def test_files_in_the_cache_that_are_not_loaded_are_let_be(downloaded):
    blob, where = downloaded
    snapshot = next(blob.parent.parent.glob("snapshots/*"))
    other = blob.with_name("2" * 64)
    other.write_bytes(b"an optimiser, changed")
    (snapshot / "optimizer.safetensors").symlink_to(other)
    (snapshot / "model.fp16.safetensors").symlink_to(other)
    QKViTModel.from_pretrained("me/model", **where)
    (snapshot / "model.fp16.safetensors").unlink()
    (snapshot / "model.fp16.safetensors").symlink_to(blob)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other)
    QKViTModel.from_pretrained("me/model", variant="fp16", **where)


def test_a_changed_shard_in_the_cache_is_named(raises_sentence, tiny_model, tmp_path):
    snapshot = tmp_path / "models--me--model" / "snapshots" / ("0" * 40)
    tiny_model().save_pretrained(snapshot, max_shard_size="20KB")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot.parents[1] / "blobs").mkdir()
    for shard in snapshot.glob("model-*.safetensors"):
        blob = shard.rename(snapshot.parents[1] / "blobs" / file_digest(shard))
        shard.symlink_to(Path("..", "..", "blobs", blob.name))  # as the Hub's client does
    where = {"cache_dir": tmp_path, "local_files_only": True}
    QKViTForImageClassification.from_pretrained("me/model", **where)
    change_a_weight(sorted(snapshot.glob("model-*.safetensors"))[1].resolve())
    with raises_sentence(OSError, "not what the Hub has of me/model"):
        QKViTForImageClassification.from_pretrained("me/model", **where)


def test_a_store_behind_the_cache_may_have_names_of_its_own(downloaded, tmp_path):
    blob, where = downloaded
    blob.symlink_to(blob.rename(tmp_path / ("3" * 64)))
    QKViTModel.from_pretrained("me/model", **where)


def test_a_changed_shard_is_named(raises_sentence, tiny_model, tmp_path, load):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[2]
    change_a_weight(shard)
    with raises_sentence(OSError, str(shard), "not what was saved there"):
        load(tmp_path)


def test_who_asks_for_the_report_sees_other_tensors_and_not_the_refusal_of_other_bytes(folder):
    save_file({"tensor": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    _, report = QKViTModel.from_pretrained(folder, output_loading_info=True)
    assert "layers.0.attention.q_proj.weight" in report["missing_keys"]


def test_changed_weights_are_refused_to_who_asks_for_the_report_too(raises_sentence, folder):
    change_a_weight(folder / "model.safetensors")
    with raises_sentence(OSError, "not what was saved there"):
        QKViTModel.from_pretrained(folder, output_loading_info=True)


def test_weights_of_the_callers_are_not_compared(folder):
    change_a_weight(folder / "model.safetensors")
    state = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    loaded = QKViTForImageClassification.from_pretrained(None, config=folder / "config.json", state_dict=state)
    assert torch.equal(loaded.classifier.weight, state["classifier.weight"])


def test_what_is_saved_over_changed_weights_loads(tiny_model, folder, load):
    change_a_weight(folder / "model.safetensors")
    tiny_model().save_pretrained(folder)
    load(folder)


def test_a_process_that_is_not_the_main_one_writes_no_sums(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "SHA256SUMS").exists()


def test_a_git_lfs_pointer_is_told_from_weights(raises_sentence, folder, load):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with raises_sentence(OSError, "model.safetensors", "Git LFS pointer", "git lfs pull"):
        load(folder)


def test_a_damaged_shard_is_named(raises_sentence, tiny_model, tmp_path, load):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-7])
    with raises_sentence(OSError, str(shard), "damaged or cut short"):
        load(tmp_path)


def test_a_missing_shard_is_named(raises_sentence, tiny_model, tmp_path, load):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    with raises_sentence(OSError, str(shards[1]), "missing", f"one of {len(shards)} files"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(raises_sentence, tiny_model, tmp_path, text):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with raises_sentence(OSError, str(index), "damaged"):
        QKViTModel.from_pretrained(tmp_path)
