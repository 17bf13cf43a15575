"""Writing a model as a checkpoint of another family: what fits, what does not, and where it goes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from qkvit.modeling.conversion import convert, export
from qkvit.modeling.conversion.families import families
from qkvit.modeling.conversion.importing import load_own


def test_a_model_trained_here_becomes_a_vit(tiny_model, pixels, tmp_path):
    ours = tiny_model(QKViTForImageClassification, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    theirs = ViTForImageClassification.from_pretrained(export(ours, tmp_path / "out", family="vit"))
    with torch.no_grad():
        assert torch.allclose(theirs(pixels).logits, ours(pixels).logits, atol=1e-5)
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_masked_images_become_vit_s(tiny_model, pixels, tmp_path):
    ours = tiny_model(QKViTForMaskedImageModeling)
    export(ours, tmp_path / "out", family="vit")
    hidden = torch.arange(16).expand(2, -1) % 3 == 0
    with torch.no_grad():
        expected = ours(pixels, bool_masked_pos=hidden).reconstruction
        found = convert(tmp_path / "out")(pixels, bool_masked_pos=hidden).reconstruction
    assert torch.equal(found, expected)


def test_a_backbone_and_a_model_without_a_pooler_are_exported(tiny_model, tmp_path):
    for name, model in {"a": tiny_model(QKViTBackbone), "b": tiny_model(QKViTModel, pooler_act="tanh")}.items():
        if name == "b":
            model.pooler = None
        _, report = ViTModel.from_pretrained(
            export(model, tmp_path / name, family="vit"), add_pooling_layer=False, output_loading_info=True
        )
        assert not any(report.values())


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("vit", {"num_register_tokens": 2}, ["num_register_tokens=2 (there 0)"]),
        ("vit", {"layer_scale_init_value": 0.1}, ["layer_scale_init_value=0.1 (there None)"]),
        ("vit", {"qk_norm": True}, ["qk_norm=True"]),
        ("vit", {"mlp_type": "swiglu"}, ["mlp_type='swiglu'"]),
        ("vit", {"norm_type": "rmsnorm"}, ["norm_type='rmsnorm'"]),
        ("vit", {"key_bias": False}, ["key_bias=False (there True)"]),
        ("vit", {"output_bias": False, "mlp_bias": False}, ["output_bias=False", "mlp_bias=False"]),
        ("vit", {"pooling": "mean"}, ["pooling='mean' (there 'class')"]),
        ("vit", {"position_embedding": "sincos2d"}, ["position_embedding='sincos2d'"]),
        ("vit", {"use_pre_norm": True}, ["use_pre_norm=True"]),
        ("vit", {"head_dim": 8}, []),
        ("dinov2", {"pooling": "class_mean"}, ["layer_scale_init_value=None"]),
        ("ijepa", {}, ["use_class_token=True (there False)"]),
        ("vit_mae", {}, ["head for classification"]),
    ],
)
def test_what_a_family_has_no_place_for_is_named(tiny_model, tmp_path, family, fields, words, raises_sentence, pixels):
    model = tiny_model(QKViTForImageClassification, **fields)
    if words:
        with raises_sentence(ValueError, repr(family), *words) as caught:
            export(model, tmp_path / "out", family=family)
        assert "None (there None)" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    else:
        again = convert(export(model, tmp_path / "out", family=family))
        assert torch.equal(again(pixels).logits, model(pixels).logits)


def test_what_acts_in_training_alone_is_no_obstacle(tiny_model, tmp_path):
    fields = {"drop_path_rate": 0.1, "patch_drop_rate": 0.2, "label_smoothing": 0.1}
    export(tiny_model(QKViTForImageClassification, **fields), tmp_path / "out", family="vit")


def test_the_layout_can_be_chosen(tiny_model, tmp_path, raises_sentence):
    model = tiny_model(QKViTModel)
    for layout in families()["vit"].layouts:
        again = convert(export(model, tmp_path / layout, family="vit", layout=layout))
        assert again.config.converted_from["layout"] == layout
        _, report = ViTModel.from_pretrained(tmp_path / layout, add_pooling_layer=False, output_loading_info=True)
        assert not any(report.values())
    with raises_sentence(ValueError, "layout='transformers-3'", "transformers-4"):
        export(model, tmp_path / "out", family="vit", layout="transformers-3")


def test_a_family_must_be_known(tiny_model, tmp_path, raises_sentence):
    with raises_sentence(ValueError, "family was not given"):
        export(tiny_model(), tmp_path / "out")
    with raises_sentence(ValueError, "family='resnet'", *families()):
        export(tiny_model(), tmp_path / "out", family="resnet")


def test_only_a_qkvit_is_exported(tmp_path, raises_sentence):
    theirs = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with raises_sentence(ValueError, "ViTModel"):
        export(theirs, tmp_path / "out", family="vit")


def test_a_classifier_added_to_a_converted_model_gives_the_names_that_transformers_expects(tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(**size, image_size=16, patch_size=4), False).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source").save_pretrained(tmp_path / "ours")
    ours = QKViTForImageClassification.from_pretrained(tmp_path / "ours", num_labels=3)
    names = set(load_file(export(ours, tmp_path / "out") / "model.safetensors"))
    assert names == {f"vit.{name}" for name in load_file(tmp_path / "source" / "model.safetensors")} | {
        "classifier.weight",
        "classifier.bias",
    }
    _, report = ViTForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())


def test_the_auto_class_finds_what_is_exported(tiny_model, tmp_path):
    export(tiny_model(QKViTModel, dtype=torch.bfloat16).to(torch.bfloat16), tmp_path / "out", family="vit")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["ViTModel"]
    assert config["dtype"] == "bfloat16"
    assert type(AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)) is ViTModel


# ---- where it goes


def test_a_folder_that_is_not_empty_is_refused_and_force_replaces_the_model_alone(
    tiny_model, tmp_path, raises_sentence
):
    target = tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    (target / "statistics.safetensors").write_text("mine")
    (target / "config.json").write_text('{"model_type": "vit"}')
    (target / "model-00001-of-00002.safetensors").write_text("old")
    with raises_sentence(ValueError, str(target), "force=True"):
        export(tiny_model(), target, family="vit")
    export(tiny_model(), target, family="vit", force=True)
    names = ["config.json", "model.safetensors", "notes.txt", "preprocessor_config.json", "statistics.safetensors"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "files",
    [{"config.json": '{"a": 1}'}, {"config.json": "[]"}, {"config.json": "{"}, {"model.safetensors": ""}],
)
def test_force_does_not_take_the_place_of_what_is_no_model(tiny_model, tmp_path, raises_sentence, files):
    target = tmp_path / "out"
    target.mkdir()
    for name, text in files.items():
        (target / name).write_text(text)
    with raises_sentence(ValueError, str(target), "no model that could be replaced"):
        export(tiny_model(), target, family="vit", force=True)
    assert {path.name: path.read_text() for path in target.iterdir()} == files


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_stops_leaves_nothing(tiny_model, tmp_path, monkeypatch, error):
    def stop(*arguments, **keywords):
        raise error

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"model_type": "old"}')
    monkeypatch.setattr("qkvit.modeling.conversion.exporting.save_file", stop)
    for name in ("new", "old"):
        with pytest.raises(error):
            export(tiny_model(), tmp_path / name, family="vit", force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "config.json"]
    assert (tmp_path / "old" / "config.json").read_text() == '{"model_type": "old"}'


def test_what_is_exported_has_an_image_processor(tiny_model, tmp_path):
    model = tiny_model()
    out = export(model, tmp_path / "out", family="vit")
    processor = AutoImageProcessor.from_pretrained(out)
    assert (processor.size["height"], list(processor.image_mean)) == (16, [0.5, 0.5, 0.5])


def test_an_oblong_model_is_told_of_another_family(tiny_model, tmp_path, raises_sentence):
    with raises_sentence(ValueError, "image_size=(16, 32) is not square", "export to another family"):
        export(tiny_model(image_size=(16, 32), layer_scale_init_value=1.0), tmp_path / "out", family="dinov2")


def test_a_saved_backbone_is_converted_as_the_model_that_it_is(tiny_model, tmp_path):
    tiny_model(QKViTBackbone).save_pretrained(tmp_path / "backbone")
    export(load_own(tmp_path / "backbone"), tmp_path / "out", family="vit")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_classifier_without_labels_is_exported_where_what_pools_is_the_same(tiny_model, pixels, tmp_path):
    model = tiny_model(num_labels=0, layer_scale_init_value=0.1, pooling="class_mean")
    theirs = AutoModelForImageClassification.from_pretrained(export(model, tmp_path / "m", family="dinov2")).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("dinov2", {"layer_scale_init_value": 0.1}, "pooling='class'"),
        ("siglip", {"use_class_token": False, "pooling": "mean"}, "num_labels=0"),
    ],
)
def test_a_classifier_without_labels_that_would_pool_otherwise_is_refused(tiny_model, tmp_path, family, fields, words):
    with pytest.raises(ValueError, match=words):
        export(tiny_model(num_labels=0, **fields), tmp_path / "m", family=family)


@pytest.mark.parametrize("fields", [{"family": "vit"}, {"family": "deit"}])
def test_a_decoder_of_oblong_patches_is_refused(tiny_model, tmp_path, raises_sentence, fields):
    model = tiny_model(
        QKViTForMaskedImageModeling, patch_size=(4, 8), use_distillation_token=fields["family"] == "deit"
    )
    with raises_sentence(ValueError, "patch_size=(4, 8)", "no square"):
        export(model, tmp_path / "m", **fields)
