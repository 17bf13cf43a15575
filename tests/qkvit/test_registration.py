"""`import qkvit` makes the Auto classes know the model."""

import pytest
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    pipeline,
)

import qkvit
from qkvit.registration import register

AUTO_CLASSES = {
    AutoModel: qkvit.QKViTModel,
    AutoModelForImageClassification: qkvit.QKViTForImageClassification,
    AutoModelForMaskedImageModeling: qkvit.QKViTForMaskedImageModeling,
    AutoBackbone: qkvit.QKViTBackbone,
}


@pytest.mark.parametrize("auto_class", AUTO_CLASSES, ids=lambda auto_class: auto_class.__name__)
def test_every_auto_class_makes_our_model(tiny_config, auto_class):
    assert type(auto_class.from_config(tiny_config())) is AUTO_CLASSES[auto_class]


def test_the_auto_configuration_makes_ours_by_its_type():
    config = AutoConfig.for_model("qkvit", num_hidden_layers=2)
    assert type(config) is qkvit.QKViTConfig
    assert config.num_hidden_layers == 2


def test_registering_twice_changes_nothing(tiny_config):
    register()
    register()
    assert type(AutoModel.from_config(tiny_config())) is qkvit.QKViTModel


@pytest.mark.parametrize("name", qkvit.__all__)
def test_every_public_name_is_there(name):
    assert getattr(qkvit, name) is not None


def test_the_pipelines_take_a_saved_model(tiny_model, tmp_path):
    tiny_model(image_size=(16, 24)).save_pretrained(tmp_path)
    images = [Image.new("RGB", (50, 30), "red"), Image.new("L", (20, 40), 128)]
    for answers in pipeline("image-classification", model=str(tmp_path), top_k=2)(images):
        assert len(answers) == 2
        assert {answer["label"] for answer in answers} <= {f"LABEL_{label}" for label in range(5)}
    features = pipeline("image-feature-extraction", model=str(tmp_path))(images[0])
    assert (len(features), len(features[0]), len(features[0][0])) == (1, 1 + 4 * 6, 32)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor(images[0], return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 24)
