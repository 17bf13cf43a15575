"""Weights to start from are taken whole, or refused; their classifier is taken for the classes that it has learnt."""

import pytest
import transformers
from safetensors.torch import load_file

from qkvit import QKViTConfig, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from qkvit.training import TrainingRefusedError
from qkvit.training.models import build_model
from qkvit.training.recipe import Recipe

OURS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
THEIRS = {**OURS, "intermediate_size": 32}
SEVERAL = "multi_label_classification"
CLASSES = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4}
STAGES = {"depths": [1, 1], "hidden_sizes": [8, 8]}
TOWERS = {
    "vision_config": THEIRS,
    "text_config": {name: THEIRS[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    | {"intermediate_size": 32, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.fixture
def begin(tmp_path):
    """`begin(model, "abc", num_hidden_layers=3)`: what a run starts with whose classes are a, b and c."""

    def make(saved, classes="abc", said=None, kind=None, multi_label=False, **config):
        saved.save_pretrained(tmp_path / "start")
        section = {"type": kind or saved.config.model_type, "start": str(tmp_path / "start"), "config": config}
        say = [].append if said is None else said.append
        return build_model(Recipe.load({"model": section}), list(classes), multi_label=multi_label, say=say)

    return make


def theirs(name, **fields):
    kind = getattr(transformers, name)
    return kind(kind.config_class(**fields))


@pytest.mark.parametrize(
    ("saved", "changed", "words"),
    [
        ({}, {"num_hidden_layers": 3}, ["lack", "qkvit.layers.2."]),
        ({}, {"qk_norm": True}, ["lack", "qkvit.layers.0.attention.k_norm"]),
        ({}, {"layer_scale_init_value": 0.1}, ["lack", "layer_scale"]),
        ({}, {"num_register_tokens": 2}, ["lack", "qkvit.embeddings.register_tokens"]),
        ({"position_embedding": "rope2d"}, {"position_embedding": "learned"}, ["lack", "position_embeddings"]),
        ({}, {"num_hidden_layers": 1}, ["have", "layers.1."]),
        ({"use_pre_norm": True}, {"use_pre_norm": False}, ["have", "pre_norm"]),
        ({}, {"position_embedding": "sincos2d"}, ["have", "position_embeddings"]),
    ],
)
@pytest.mark.parametrize("kind", [QKViTForImageClassification, QKViTModel])
def test_parts_before_the_classifier_are_neither_new_nor_left_out(begin, raises_sentence, kind, saved, changed, words):
    with raises_sentence(TrainingRefusedError, *words, "model.config"):
        begin(kind(QKViTConfig(**OURS, **saved)), **changed)


@pytest.mark.parametrize(
    ("changed", "word"), [({"num_hidden_layers": 3}, "lack"), ({"qkv_bias": False}, "have vit.layers.0.")]
)
def test_so_it_is_in_models_of_transformers(begin, raises_sentence, changed, word):
    with raises_sentence(TrainingRefusedError, word):
        begin(theirs("ViTForImageClassification", **THEIRS), **changed)


@pytest.mark.parametrize("kind", [QKViTModel, QKViTForMaskedImageModeling])
def test_what_was_trained_for_something_else_is_a_start(begin, kind):
    assert len(begin(kind(QKViTConfig(**OURS)), pooling="attention").config.id2label) == 3


BASES = {
    **dict.fromkeys(("ViTModel", "DeiTModel", "Dinov2Model", "Dinov2Backbone"), THEIRS),
    **dict.fromkeys(("BeitModel", "Data2VecVisionModel", "BeitForMaskedImageModeling"), THEIRS),
    **dict.fromkeys(("ViTForMaskedImageModeling", "DeiTForMaskedImageModeling"), THEIRS | {"encoder_stride": 4}),
    "SwinForMaskedImageModeling": WINDOWS | {"encoder_stride": 4},
    "ResNetModel": STAGES | {"embedding_size": 8},
    "PoolFormerModel": {"depths": [1] * 4, "hidden_sizes": [8] * 4},
    **dict.fromkeys(("CLIPModel", "SiglipModel"), TOWERS),
}


@pytest.mark.parametrize("name", BASES)
def test_so_it_is_with_transformers(begin, name):
    assert len(begin(theirs(name, **BASES[name])).config.id2label) == 3


@pytest.mark.parametrize(
    "model",
    [
        lambda: QKViTForImageClassification(QKViTConfig(**OURS, **CLASSES, use_distillation_token=True)),
        lambda: theirs("ViTForImageClassification", **THEIRS, **CLASSES),
        lambda: theirs("DeiTForImageClassificationWithTeacher", **THEIRS, **CLASSES),
        lambda: theirs("ResNetForImageClassification", **STAGES, embedding_size=8, **CLASSES),
        lambda: theirs("CLIPForImageClassification", **TOWERS, **CLASSES),
    ],
    ids=["qkvit", "vit", "deit", "resnet", "clip"],
)
def test_a_classifier_is_kept_for_the_classes_that_it_learnt_and_for_no_others(begin, tmp_path, model):
    kept = begin(model())
    before = load_file(tmp_path / "start" / "model.safetensors")
    heads = {name for name in before if "classifier" in name and name.endswith("weight")}
    assert heads
    assert all(before[name].equal(tensor) for name, tensor in kept.state_dict().items() if name in before)
    for classes in ("xyz", "acb"):
        said = []
        started = begin(model(), classes, said)
        assert "has learnt other classes, or these in another order: here it is new" in said[0]
        before = load_file(tmp_path / "start" / "model.safetensors")
        assert list(started.config.id2label.values()) == list(classes)
        changed = {
            name for name, tensor in started.state_dict().items() if name in before and not before[name].equal(tensor)
        }
        assert changed - {name.replace("weight", "bias") for name in heads} == heads


@pytest.mark.parametrize(
    "kind",
    [
        lambda: theirs("ViTForImageClassification", **THEIRS, num_labels=3),
        lambda: QKViTForImageClassification(QKViTConfig(**OURS, num_labels=3)),
    ],
)
def test_a_classifier_without_names_of_its_own_is_kept(begin, tmp_path, kind):
    kept, before = begin(kind()), load_file(tmp_path / "start" / "model.safetensors")
    assert before["classifier.weight"].equal(kept.classifier.weight)
    assert kept.config.id2label == CLASSES["id2label"]


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("qkvit", lambda **loss: QKViTForImageClassification(QKViTConfig(**OURS, **loss))),
        ("vit", lambda **loss: theirs("ViTForImageClassification", **THEIRS, **loss)),
        ("qkvit", lambda **loss: theirs("ViTForImageClassification", **THEIRS, **loss)),
    ],
    ids=["qkvit", "vit", "converted"],
)
@pytest.mark.parametrize("several", [False, True])
def test_the_loss_is_that_of_the_data_and_not_that_of_the_start(begin, kind, model, several):
    learnt, wanted = (None, SEVERAL) if several else (SEVERAL, None)
    assert begin(model(problem_type=learnt), kind=kind, multi_label=several).config.problem_type == wanted


def test_a_loss_that_is_asked_for_is_kept(begin):
    start = QKViTForImageClassification(QKViTConfig(**OURS, problem_type=SEVERAL))
    assert begin(start, problem_type="single_label_classification").config.problem_type == "single_label_classification"
