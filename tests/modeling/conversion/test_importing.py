"""Reading a checkpoint: its files, what comes along with the weights, and the one sentence where it cannot be read."""

import json
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, ViTModel

import qkvit
from qkvit import QKViTForImageClassification
from qkvit.modeling.conversion import convert

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
LABELS = {0: "cat", 1: "dog", 2: "owl"}


def classifier(dtype=torch.float32):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZE, id2label=LABELS)).to(dtype).eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A classifier in transformers' own layout."""
    classifier().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def logits(model):
    with torch.no_grad():
        return model(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))).logits


def as_torch_file(folder: Path, wrap=lambda tensors: tensors) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(wrap(tensors), folder / "pytorch_model.bin")


# ---- every form of file


def test_safetensors_torch_files_shards_and_models_in_memory_give_the_same_model(folder, tmp_path):
    expected = logits(classifier())
    forms = {name: tmp_path / name for name in ("shards", "torch", "nested", "torch shards")}
    for name, form in forms.items():
        shutil.copytree(folder, form)
        if name.startswith(("torch", "nested")):
            as_torch_file(form, (lambda tensors: {"state_dict": tensors, "epoch": 3}) if name == "nested" else dict)
    classifier().save_pretrained(forms["shards"], max_shard_size="5KB")
    (forms["shards"] / "model.safetensors").unlink()
    tensors = torch.load(forms["torch shards"] / "pytorch_model.bin")
    (forms["torch shards"] / "pytorch_model.bin").unlink()
    weight_map = {name: f"pytorch_model-{index % 2}.bin" for index, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        torch.save(part, forms["torch shards"] / file)
    (forms["torch shards"] / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    for source in (classifier(), folder, str(folder), *forms.values()):
        assert torch.allclose(logits(convert(source)), expected, atol=1e-6)


def test_a_file_of_torch_from_before_its_zip_format_is_read(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.allclose(logits(convert(folder)), logits(classifier()), atol=1e-6)


def test_the_weights_are_no_part_of_the_source(folder):
    theirs = classifier()
    ours = convert(theirs)
    before = logits(ours)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert torch.equal(logits(ours), before)
    ours = convert(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert torch.equal(logits(ours), before)


# ---- what comes along


def test_labels_come_along(folder):
    config = convert(folder).config
    assert config.id2label == LABELS
    assert config.label2id == {"cat": 0, "dog": 1, "owl": 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_data_type_is_kept(dtype, tmp_path):
    classifier(dtype).save_pretrained(tmp_path)
    model = convert(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.config.dtype == dtype


def test_another_data_type_can_be_asked_for(folder, raises_sentence):
    assert convert(folder, dtype="bfloat16").qkvit.norm.weight.dtype == torch.bfloat16
    assert convert(folder, dtype="bf16").qkvit.norm.weight.dtype == torch.bfloat16
    for wrong in ("int8", "bf17"):
        with raises_sentence(ValueError, f"dtype='{wrong}'"):
            convert(folder, dtype=wrong)


def test_tensors_that_are_not_finite_come_along(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    assert convert(folder).classifier.bias.isnan().tolist() == [False, True, False]


def test_the_image_processor_of_a_model_from_the_hub_comes_along(folder, tmp_path, monkeypatch):
    """Where the files are in the Hub's cache, the model in memory knows its name alone."""
    ViTImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    theirs = ViTForImageClassification.from_pretrained(folder)
    theirs.config._name_or_path = "some/model"

    def cached(name, file, **at):
        assert (name, at["local_files_only"]) == ("some/model", True)
        return str(folder / file)

    monkeypatch.setattr("transformers.utils.cached_file", cached)
    assert convert(theirs).config.image_processor_settings["image_mean"] == [0.1, 0.2, 0.3]


def test_the_image_processor_comes_along_and_back(folder, tmp_path):
    settings = {"size": {"height": 20, "width": 20}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    ViTImageProcessorPil(**settings, resample=1).save_pretrained(folder)
    expected = json.loads((folder / "preprocessor_config.json").read_text())
    model = convert(folder)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)  # what was read is remembered
    again = QKViTForImageClassification.from_pretrained(tmp_path / "saved")
    again.save_pretrained(tmp_path / "again")
    qkvit.export(again, tmp_path / "out")
    for place in ("saved", "again", "out"):
        assert json.loads((tmp_path / place / "preprocessor_config.json").read_text()) == expected


def test_a_converted_model_saves_and_loads_as_any_other(folder, tmp_path):
    ours = convert(folder)
    ours.save_pretrained(tmp_path / "saved")
    again = QKViTForImageClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(ours))
    assert again.config.converted_from["family"] == "vit"


def test_a_model_of_transformers_with_a_head_beside_a_pooler_drops_the_pooler_and_says_so(folder, caplog):
    tensors = load_file(folder / "model.safetensors")
    tensors["vit.pooler.dense.weight"], tensors["vit.pooler.dense.bias"] = torch.ones(16, 16), torch.ones(16)
    save_file(tensors, folder / "model.safetensors")
    assert torch.allclose(logits(convert(folder)), logits(classifier()), atol=1e-6)
    assert "pooler.dense.weight" in caplog.text


# ---- what cannot be read


def test_missing_misshapen_and_unknown_tensors_are_all_named(folder, raises_sentence):
    tensors = load_file(folder / "model.safetensors")
    del tensors["vit.layernorm.weight"], tensors["vit.encoder.layer.1.output.dense.bias"]
    tensors["vit.encoder.layer.0.layernorm_after.bias"] = torch.zeros(5)
    tensors["vit.embeddings.surprise"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    with raises_sentence(
        ValueError,
        "missing: encoder.layer.1.output.dense.bias, layernorm.weight",
        "misshapen: encoder.layer.0.layernorm_after.bias is 5 instead of 16",
        "unknown: embeddings.surprise",
    ):
        convert(folder)


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(folder, tmp_path, new_format, raises_sentence):
    written = tmp_path / "written"
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save({"vit.layernorm.bias": Evil(written)}, file, _use_new_zipfile_serialization=new_format)
    with raises_sentence(ValueError, str(file), "could run code"):
        convert(folder)
    file.write_bytes(pickle.dumps({"vit.layernorm.bias": Evil(written)}))
    with raises_sentence(ValueError, str(file)):
        convert(folder)
    assert not written.exists()
    pickle.loads(file.read_bytes())  # it would have
    assert written.exists()


def test_a_file_of_other_things_than_tensors_is_refused(folder, raises_sentence):
    as_torch_file(folder, lambda tensors: {**tensors, "epoch": 3})
    with raises_sentence(ValueError, "pytorch_model.bin", "tensors alone"):
        convert(folder)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"PK\x03\x04 not really"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_is_named(folder, name, content, raises_sentence):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with raises_sentence(ValueError, str(folder / name)):
        convert(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_told_from_weights(folder, name, raises_sentence):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with raises_sentence(ValueError, str(folder / name), "Git LFS pointer", "git lfs pull"):
        convert(folder)


def test_a_file_that_is_cut_short_is_named(folder, raises_sentence):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with raises_sentence(ValueError, str(file), "damaged"):
        convert(folder)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(folder, name, raises_sentence):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with raises_sentence(ValueError, name):
        convert(folder)


@pytest.mark.parametrize("content", ["", "[1]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_a_damaged_index_is_named(folder, content, raises_sentence):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with raises_sentence(ValueError, "model.safetensors.index.json"):
        convert(folder)


def test_a_missing_shard_is_named(folder, raises_sentence):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with raises_sentence(ValueError, "one.safetensors"):
        convert(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": "vit", "hidden_size": "wide"}'])
def test_a_damaged_config_is_named(folder, content, raises_sentence):
    (folder / "config.json").write_text(content)
    with raises_sentence(ValueError, "config.json"):
        convert(folder)


def test_a_folder_without_config_or_without_weights_is_refused(folder, tmp_path, raises_sentence):
    (folder / "model.safetensors").unlink()
    with raises_sentence(ValueError, "no weights"):
        convert(folder)
    (tmp_path / "empty").mkdir()
    with raises_sentence(ValueError, "no config.json"):
        convert(tmp_path / "empty")


@pytest.mark.parametrize("source", ["no/such/folder", "./nothing", "somebody/no-such-model", "x" * 300])
def test_a_source_that_is_not_there_is_named(source, raises_sentence):
    with raises_sentence(ValueError, source[:50]):
        convert(source)


def test_a_file_and_a_bare_module_are_no_sources(folder, raises_sentence):
    with raises_sentence(ValueError, "a file"):
        convert(folder / "model.safetensors")
    with raises_sentence(ValueError, "Linear"):
        convert(torch.nn.Linear(2, 2))


JUNK = st.sampled_from(
    [None, -1, 0, 3, 7, 1.5, "", "wide", [], [3], [4, 4], {}, {"a": 1}, {"0": "cat"}, True, float("nan")]
)
FIELDS = [*SIZE, "hidden_act", "qkv_bias", "num_channels", "layer_norm_eps", "id2label", "label2id", "pooler_act"]


@given(st.dictionaries(st.sampled_from(FIELDS), JUNK, min_size=1, max_size=2))
@settings(max_examples=60)
def test_whatever_a_config_holds_it_converts_or_is_one_sentence(folder, junk):
    config = json.loads((folder / "config.json").read_text())
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "model.safetensors", place)
        Path(place, "config.json").write_text(json.dumps({**config, **junk}))
        try:
            convert(place)
            message = "it converts: the value was as good as the old one"
        except ValueError as error:
            message = str(error)
    assert "\n" not in message
    assert len(message) > 20


# ---- the front door


def test_convert_and_export_are_qkvit_s():
    assert qkvit.convert is convert
    assert {"convert", "export"} <= set(qkvit.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        qkvit.no_such_name  # noqa: B018


def test_the_progress_bar_shows_when_it_is_asked_for(folder, capfd):
    convert(folder)
    assert "converting" not in capfd.readouterr().err
    convert(folder, progress=True)
    assert "converting" in capfd.readouterr().err


def test_the_names_in_memory_and_on_disk_give_the_same(folder):
    theirs = ViTModel(ViTConfig(**SIZE)).eval()
    names = {name.partition(".")[0] for name in theirs.state_dict()}
    assert "layers" in names, "in memory, transformers 5 has another layout than it writes"
    assert any("encoder.layer.0" in name for name in load_file(folder / "model.safetensors"))
    assert convert(theirs).config.converted_from["layout"] == "transformers-5"
    assert convert(folder).config.converted_from["layout"] == "transformers-4"
