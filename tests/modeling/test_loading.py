"""Saving and loading on this machine, and what a user sees when a saved model is damaged or is none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from qkvit.modeling.loading_qkvit import plain_load_errors

EVERYTHING = {
    "position_embedding": "rope2d",
    "use_distillation_token": True,
    "num_register_tokens": 2,
    "layer_scale_init_value": 0.1,
    "qk_norm": True,
    "image_size": (16, 24),
}
HEADS = {
    QKViTModel: AutoModel,
    QKViTForImageClassification: AutoModelForImageClassification,
    QKViTForMaskedImageModeling: AutoModelForMaskedImageModeling,
}


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory) -> Path:
    """A saved classifier; nobody writes here."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected = second.state_dict()
    assert first.state_dict().keys() == expected.keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# ---- what is saved comes back


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("loader", ["its class", "the Auto class"])
def test_a_saved_model_comes_back_to_the_bit(tiny_model, tmp_path, model_class, loader):
    model = tiny_model(model_class, **EVERYTHING)
    model.save_pretrained(tmp_path)
    load = (model_class if loader == "its class" else HEADS[model_class]).from_pretrained
    loaded = load(tmp_path)
    assert type(loaded) is model_class
    assert not loaded.training
    assert_same_weights(loaded, model)
    pixels = torch.rand(1, 3, 16, 24)
    torch.testing.assert_close(loaded(pixels).to_tuple()[0], model(pixels).to_tuple()[0])


def test_a_backbone_comes_back_with_its_stages(tiny_model, tmp_path):
    model = tiny_model(QKViTBackbone, out_features=["stage1", "stage3"])
    model.save_pretrained(tmp_path)
    loaded = QKViTBackbone.from_pretrained(tmp_path)
    assert loaded.out_features == ["stage1", "stage3"]
    assert_same_weights(loaded, model)
    again = AutoBackbone.from_config(loaded.config)
    assert type(again) is QKViTBackbone


def test_a_base_model_goes_into_a_head_and_back(tiny_model, tmp_path):
    base = tiny_model(QKViTModel, **EVERYTHING)
    base.save_pretrained(tmp_path / "base")
    with_head = AutoModelForImageClassification.from_pretrained(tmp_path / "base", num_labels=7)
    assert with_head.classifier.weight.shape == (7, 32)
    assert_same_weights(with_head.qkvit, base)
    with_head.save_pretrained(tmp_path / "head")
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "head"), base)
    backbone = QKViTBackbone.from_pretrained(tmp_path / "head")
    assert_same_weights(backbone.layers, base.layers)


def test_a_head_for_other_labels_is_made_anew(saved):
    model = QKViTForImageClassification.from_pretrained(saved, num_labels=9, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 9
    assert_same_weights(model.qkvit, QKViTModel.from_pretrained(saved))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_loads_in_half_precision_and_remembers_it(tiny_model, tmp_path, dtype):
    model = tiny_model(**EVERYTHING)
    model.save_pretrained(tmp_path / "full")
    half = AutoModelForImageClassification.from_pretrained(tmp_path / "full", dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert_same_weights(half, model.to(dtype))
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "half")
    assert again.dtype == dtype
    assert_same_weights(again, half)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_a_model_loads_with_a_device_map(saved, pixels, device_map):
    model = QKViTForImageClassification.from_pretrained(saved, device_map=device_map)
    expected = QKViTForImageClassification.from_pretrained(saved)
    assert_same_weights(model, expected)
    torch.testing.assert_close(model(pixels).logits, expected(pixels).logits)


@pytest.mark.parametrize("fields", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_model_is_saved_in_shards_and_comes_back(tiny_model, tmp_path, fields):
    model = tiny_model(**fields)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_weights(AutoModelForImageClassification.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_the_attention_implementation_is_chosen_when_a_model_is_loaded(saved, implementation):
    model = AutoModelForImageClassification.from_pretrained(saved, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    assert model.qkvit.layers[0].attention.config._attn_implementation == implementation


def test_sdpa_is_the_default(saved):
    assert AutoModel.from_pretrained(saved).config._attn_implementation == "sdpa"


# ---- damaged files

LOADERS = {
    "QKViTForImageClassification": QKViTForImageClassification.from_pretrained,
    "QKViTModel": QKViTModel.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained,
}


@pytest.fixture(params=LOADERS)
def load(request):
    return LOADERS[request.param]


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


def test_a_configuration_in_hand_stands_in_for_one_in_the_folder(folder, pixels):
    expected = QKViTForImageClassification.from_pretrained(folder)
    (folder / "config.json").unlink()
    model = QKViTForImageClassification.from_pretrained(folder, config=expected.config)
    assert_same_weights(model, expected)


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


def test_the_report_is_given_to_who_asks_for_it(saved):
    model, report = AutoModelForImageClassification.from_pretrained(saved, output_loading_info=True)
    assert type(model) is QKViTForImageClassification
    assert not report["missing_keys"]


@pytest.mark.parametrize("source", [*HEADS, QKViTBackbone])
@pytest.mark.parametrize("target", [*HEADS, QKViTBackbone])
@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"pooling": "attention"}], ids=["plain", "everything", "pooled"])
def test_every_model_loads_from_every_other(tiny_model, tmp_path, source, target, fields):
    model = tiny_model(source, **fields)
    model.save_pretrained(tmp_path)
    loaded = target.from_pretrained(tmp_path)
    assert_same_weights(loaded.base_model.layers, model.base_model.layers)


def test_a_state_dict_in_hand_may_lack_tensors(saved):
    config = QKViTModel.from_pretrained(saved).config
    model = QKViTModel.from_pretrained(None, config=config, state_dict={"norm.weight": torch.full((32,), 2.0)})
    assert (model.norm.weight == 2).all()


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


class WithAHeadOfItsOwn(QKViTForImageClassification):
    def __init__(self, config):
        super().__init__(config)
        self.segmentation_head = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        self.post_init()


def test_a_head_of_the_user_s_own_may_be_new(folder):
    assert WithAHeadOfItsOwn.from_pretrained(folder).segmentation_head[1].out_features == 2
