"""What is recorded is what an independent tool sees in the same model, where that tool is installed."""

import pytest
import torch

from qkvit import QKViTModel
from qkvit.analysis import record

attribution = pytest.importorskip("captum.attr", reason="captum is not installed")

PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


@pytest.fixture
def model(tiny_model) -> QKViTModel:
    return tiny_model(QKViTModel).double()


@pytest.fixture
def images(model) -> torch.Tensor:
    height, width = model.config.image_shape
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_queries_keys_and_values_are_what_captum_sees_of_the_projections(model, images, layer, name):
    with torch.no_grad(), record(model) as recording:
        model(images)
    projection = getattr(model.layers[layer].attention, PROJECTIONS[name])
    seen = attribution.LayerActivation(model, projection).attribute(images)  # (B, N, H * D)
    recorded = getattr(recording[layer], name).transpose(1, 2).flatten(2)
    torch.testing.assert_close(recorded, seen, rtol=1e-12, atol=1e-12)


def test_gradients_with_respect_to_the_values_are_those_of_captum(model, images):
    """captum's gradient times activation, against the gradient of the same number with respect to the record."""

    def first_feature(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values).pooler_output[:, 0]

    projection = model.layers[0].attention.v_proj
    expected = attribution.LayerGradientXActivation(first_feature, projection).attribute(images)
    with record(model, layers=0, tensors="value", detach=False) as recording:
        number = first_feature(images).sum()
    value = recording[0].value
    (gradient,) = torch.autograd.grad(number, value)
    product = (gradient * value.detach()).transpose(1, 2).flatten(2)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)
