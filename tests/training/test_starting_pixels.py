"""Training, evaluation and the saved image processor make the same of a picture, whatever a start's processor does."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    EfficientNetImageProcessorPil,
    MobileViTImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from qkvit.training import TrainingRefusedError
from qkvit.training.augmentation.pipeline import Augmenter
from qkvit.training.models import build_processor
from qkvit.training.recipe import Augmentation, Data

SIZE = {"height": 12, "width": 12}
PICTURE = Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))


@pytest.fixture
def start(tmp_path):
    """`start(processor)`: a model without weights, and the folder of that processor."""

    def make(processor):
        processor.save_pretrained(tmp_path / "start")
        config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=12, patch_size=4)
        return ViTForImageClassification(config), str(tmp_path / "start")

    return make


def trained_on(processor):
    settings = Augmenter(Augmentation(), 0, tuple(processor.image_mean), tuple(processor.image_std), 2)
    images = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None]
    return settings(images, torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64))[0]


@pytest.mark.parametrize("fields", [{}, {"evaluation_crop": 1.0}, {"image_size": 12}, {"mean": [0.1, 0.2, 0.3]}])
@pytest.mark.parametrize(
    "kept", [{"do_normalize": False}, {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}]
)
def test_all_three_agree(start, tmp_path, kept, fields):
    processor = build_processor(Data(**fields), *start(ViTImageProcessorPil(size=SIZE, **kept)))
    processor.save_pretrained(tmp_path / "saved")
    saved = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    for each in (processor, saved):
        pixels = each(images=PICTURE, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels, trained_on(processor), atol=1e-5, rtol=0)
    mean = [0.0] * 3 if "do_normalize" in kept else kept["image_mean"]
    assert processor.image_mean == fields.get("mean", mean), "the start's own, unless the recipe says another"


@pytest.mark.parametrize(
    "odd",
    [
        ViTImageProcessorPil(size=SIZE, rescale_factor=1 / 127.5),
        ViTImageProcessorPil(size=SIZE, do_rescale=False),
        MobileViTImageProcessorPil(size=SIZE, crop_size=SIZE),  # BGR
        EfficientNetImageProcessorPil(size=SIZE, crop_size=SIZE),  # normalises twice
    ],
    ids=["factor", "bytes", "BGR", "twice"],
)
def test_one_that_training_cannot_follow_is_refused_unless_the_recipe_says_how(start, raises_sentence, odd):
    given = start(odd)
    with raises_sentence(TrainingRefusedError, given[1], "data.mean and data.std"):
        build_processor(Data(mean=[0.5] * 3), *given)
    processor = build_processor(Data(mean=[0.1, 0.2, 0.3], std=[0.5] * 3), *given)
    pixels = processor(images=PICTURE, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, trained_on(processor), atol=1e-5, rtol=0)
