"""The image processor that a saved model carries."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.configuration.preprocessing_qkvit import FILE_NAME, default_image_processor, save_image_processor


def test_the_default_processor_gives_pixels_in_minus_one_to_one_at_the_models_size(tiny_config):
    config = tiny_config(image_size=(8, 12))
    image = (
        Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 12, axis=1)).convert("RGB").resize((12, 8))
    )
    pixels = default_image_processor(config)(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 8, 12)
    assert pixels.min() == -1
    assert pixels.max() == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_default_processor_normalises_as_many_channels_as_the_model_has(tiny_config, channels):
    processor = default_image_processor(tiny_config(num_channels=channels))
    assert len(processor.image_mean) == len(processor.image_std) == channels


def test_a_saved_model_has_an_image_processor_that_the_auto_class_loads(tiny_model, tmp_path):
    tiny_model(image_size=(16, 24)).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.size["height"], processor.size["width"]) == (16, 24)


def test_an_image_processor_in_the_folder_is_not_overwritten(tiny_config, tmp_path):
    (tmp_path / FILE_NAME).write_text('{"mine": true}')
    save_image_processor(tiny_config(), tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == '{"mine": true}'


def with_own_mean(folder):
    """The settings of a saved model, with a mean of their own."""
    own = json.loads((folder / FILE_NAME).read_text()) | {"image_mean": [0.1, 0.2, 0.3]}
    (folder / FILE_NAME).write_text(json.dumps(own))
    return own


def test_a_loaded_model_takes_its_image_processor_along(tiny_model, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    tiny_model().save_pretrained(first)
    with_own_mean(first)
    QKViTForImageClassification.from_pretrained(first).save_pretrained(second)
    QKViTModel.from_pretrained(second).save_pretrained(third)
    assert json.loads((third / FILE_NAME).read_text())["image_mean"] == [0.1, 0.2, 0.3]


def test_a_model_in_a_subfolder_takes_its_image_processor_along_though_the_folder_is_gone(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "first" / "inner")
    own = with_own_mean(tmp_path / "first" / "inner")
    model = QKViTForImageClassification.from_pretrained(tmp_path / "first", subfolder="inner")
    shutil.rmtree(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / FILE_NAME).read_text()) == own


def size_in(folder):
    size = json.loads((folder / FILE_NAME).read_text())["size"]
    return size["height"], size["width"]


def test_the_image_processor_follows_a_size_given_on_loading(tiny_model, tmp_path):
    tiny_model(position_embedding="rope2d").save_pretrained(tmp_path / "first")
    own = with_own_mean(tmp_path / "first")
    for at, loader in (("model", QKViTModel), ("config", AutoConfig)):
        loader.from_pretrained(tmp_path / "first", image_size=(32, 20)).save_pretrained(tmp_path / at)
        assert size_in(tmp_path / at) == (32, 20)
        assert json.loads((tmp_path / at / FILE_NAME).read_text())["image_mean"] == own["image_mean"]


def test_the_image_processor_follows_a_model_of_another_size_saved_over_the_first(tiny_model, tmp_path):
    for size in ((16, 24), 32, 32, (8, 16)):
        tiny_model(image_size=size).save_pretrained(tmp_path)
        assert size_in(tmp_path) == (size if isinstance(size, tuple) else (size, size))


@pytest.mark.parametrize("chosen", [{"size": {"height": 20, "width": 20}}, {"do_center_crop": True}, {"size": 16}])
def test_another_size_than_the_models_was_chosen_and_stays(tiny_model, tmp_path, chosen):
    tiny_model(position_embedding="rope2d").save_pretrained(tmp_path)
    own = json.loads((tmp_path / FILE_NAME).read_text()) | chosen
    (tmp_path / FILE_NAME).write_text(json.dumps(own))
    QKViTModel.from_pretrained(tmp_path, image_size=32).save_pretrained(tmp_path / "second")
    QKViTModel.from_pretrained(tmp_path, image_size=32).save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "second"):
        assert json.loads((folder / FILE_NAME).read_text()) == own


def test_a_model_of_an_unknown_source_gets_the_default_processor(tiny_config, tmp_path):
    for source in ("", "someone/a-repository", "no/such/folder/here", "../odd name"):
        config = tiny_config()
        config._name_or_path = source
        folder = tmp_path / str(len(source))
        save_image_processor(config, folder)
        assert json.loads((folder / FILE_NAME).read_text())["image_mean"] == [0.5, 0.5, 0.5]


def test_processed_images_go_into_the_model(tiny_model):
    model = tiny_model(image_size=(16, 24))
    images = [Image.new("RGB", (50, 30), "red"), Image.new("RGB", (7, 90), "blue")]
    inputs = default_image_processor(model.config)(images, return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 5)


def test_the_image_processor_follows_another_number_of_channels(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "colour")
    grey = QKViTForImageClassification.from_pretrained(
        tmp_path / "colour", num_channels=1, ignore_mismatched_sizes=True
    )
    grey.save_pretrained(tmp_path / "grey")
    assert json.loads((tmp_path / "grey" / "preprocessor_config.json").read_text())["image_mean"] == [0.5]
