"""What a user sees when a folder is no model, or its tensors are not those of the configuration."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.modeling.loading_qkvit import plain_load_errors

# ---- folders that are no model


def test_a_folder_without_weights(raises_sentence, folder, load):
    (folder / "model.safetensors").unlink()
    with raises_sentence(OSError, str(folder), "no weights", "save the model there again"):
        load(folder)


def test_weights_without_a_configuration(raises_sentence, folder):
    """transformers goes on with the default configuration, whose shapes do not fit."""
    (folder / "config.json").unlink()
    with raises_sentence(OSError, str(folder), "no config.json"), plain_load_errors(folder):
        raise RuntimeError("size mismatch")


@pytest.mark.parametrize("files", [[], ["readme.txt"]])
def test_a_folder_without_a_configuration(raises_sentence, tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("not a model")
    with raises_sentence(OSError, str(tmp_path), "no config.json", "save_pretrained"):
        QKViTForImageClassification.from_pretrained(tmp_path)
    with pytest.raises((OSError, ValueError), match=r"config\.json") as caught:  # transformers' own words
        AutoModel.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_does_not_exist(raises_sentence, tmp_path):
    with raises_sentence(OSError, str(tmp_path / "nowhere"), "no folder here", "save_pretrained"):
        QKViTModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(OSError, match="nowhere"):  # transformers' own words
        AutoModel.from_pretrained(tmp_path / "nowhere")


def test_an_error_that_has_another_reason_passes_as_it_is(saved):
    error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory") as caught, plain_load_errors(saved):
        raise error
    assert caught.value is error
    with pytest.raises(OSError, match="connection") as caught, plain_load_errors("someone/something"):
        raise OSError("no connection")


def test_a_subfolder_is_looked_into(raises_sentence, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "inner")
    QKViTModel.from_pretrained(tmp_path, subfolder="inner")
    (tmp_path / "inner" / "model.safetensors").write_bytes(b"")
    with raises_sentence(OSError, str(tmp_path / "inner" / "model.safetensors"), "0 bytes"):
        QKViTModel.from_pretrained(tmp_path, subfolder="inner")


@pytest.mark.parametrize(
    "field", [{"xyzzy": 1}, {"hidden_size": "big"}, {"patch_size": 5}, {"pooling": None}, {"hidden_act": "gelo"}]
)
def test_a_wrong_field_in_the_configuration_file(raises_sentence, folder, load, field):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **field}))
    ((name, value),) = field.items()
    with raises_sentence(ValueError, name, str(value)):
        load(folder)


@pytest.mark.parametrize("text", ["[1]", "3", '{"model_type": "qkvit",', ""])
@pytest.mark.parametrize("model_class", [QKViTModel, QKViTForImageClassification])
def test_a_configuration_file_that_is_no_json_object(raises_sentence, folder, model_class, text):
    (folder / "config.json").write_text(text)
    with raises_sentence(OSError, str(folder / "config.json"), "copy, download or save it again"):
        model_class.from_pretrained(folder)


def test_a_folder_that_is_not_here_while_the_hub_does_not_answer(raises_sentence):
    words = ("'nodir' is no folder here", "Hub does not answer", "save_pretrained")
    with raises_sentence(OSError, *words), plain_load_errors("nodir"):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nCheck your connection.")


# ---- tensors that do not fit


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Give tensors of a saved model other values, as a tool that knows no sums; None takes one out."""
    (folder / "SHA256SUMS").unlink()
    changed = load_file(folder / "model.safetensors") | {name.replace("__", "."): new for name, new in tensors.items()}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor_is_named_with_how_many_are_missing(raises_sentence, folder, load):
    change(folder, qkvit__norm__weight=None, qkvit__norm__bias=None, qkvit__norm__wait=torch.ones(32))
    words = (str(folder), "norm.bias", "one of 2 missing tensors", "copy, download or save")
    with raises_sentence(OSError, *words):
        load(folder)
    model, report = QKViTForImageClassification.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"qkvit.norm.weight", "qkvit.norm.bias"}
    assert set(report["unexpected_keys"]) == {"qkvit.norm.wait"}
    assert torch.equal(model.qkvit.norm.weight, torch.ones(32))


def test_a_classifier_for_other_labels_is_refused_with_the_way_out(raises_sentence, saved):
    for load in (QKViTForImageClassification.from_pretrained, AutoModelForImageClassification.from_pretrained):
        words = ("classifier.bias", "(7,) in the model", "ignore_mismatched_sizes=True to start with a new classifier")
        with raises_sentence(RuntimeError, *words) as caught:
            load(saved, num_labels=7)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert load(saved, num_labels=7, ignore_mismatched_sizes=True).classifier.out_features == 7


def test_learned_positions_for_another_size_are_refused_with_the_way_out(raises_sentence, saved):
    words = ("embeddings.position_embeddings", "in the file", "leave image_size out")
    with raises_sentence(RuntimeError, *words):
        QKViTForImageClassification.from_pretrained(saved, image_size=32)


def test_a_tensor_of_another_shape_is_an_error(raises_sentence, folder, load):
    change(folder, qkvit__norm__weight=torch.ones(33))
    words = ("norm.weight", "(33,) in the file", "(32,) in the model", "another configuration", str(folder))
    with raises_sentence(RuntimeError, *words):
        load(folder)


def test_who_asks_for_the_report_is_told_what_is_missing_and_not_refused(folder):
    change(folder, qkvit__layers__0__attention__q_proj__weight=None)
    _, info = QKViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {"qkvit.layers.0.attention.q_proj.weight"}
