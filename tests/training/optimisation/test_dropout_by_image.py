"""Dropout drawn by image does not depend on which images share a batch, in models of other families too."""

import pytest
import torch
import transformers

from qkvit.training import TrainingRefusedError
from qkvit.training.optimisation.dropout_by_image import DropoutByImage

KEYS = torch.tensor([[0, index, 0] for index in (4, 9, 2, 7)])


@pytest.mark.parametrize(
    "draw",
    [
        lambda count: torch.rand(count, 3),
        lambda count: torch.rand((count, 3)),
        lambda count: torch.rand(torch.Size([count, 3])),
        lambda count: torch.rand(size=(count, 3)),
        lambda count: torch.empty(count, 3).bernoulli_(0.5),
        lambda count: torch.nn.functional.dropout(torch.ones(count, 3), 0.5),
    ],
)
def test_numbers_are_those_of_the_image(draw):
    with DropoutByImage(3, KEYS):
        together = draw(4)
    with DropoutByImage(3, KEYS[2:]):
        apart = draw(2)
    assert together[2:].equal(apart)
    assert len(together.unique()) > 1


def test_numbers_that_are_not_of_images_are_left_alone():
    torch.manual_seed(0)
    wanted = torch.rand(5, 3)
    torch.manual_seed(0)
    with DropoutByImage(3, KEYS):
        assert torch.rand((5, 3)).equal(wanted)


def test_rows_that_are_of_no_image_are_refused(raises_sentence):
    with DropoutByImage(3, KEYS), raises_sentence(TrainingRefusedError, "4 images", "(6, 3)", "dropout_by_image=false"):
        torch.nn.functional.dropout(torch.ones(6, 3), 0.5)


@pytest.mark.parametrize("family", ["Beit", "Swin", "Dinov2", "ConvNextV2"])
def test_dropout_and_stochastic_depth_of_other_families(family):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    if family == "Swin":
        sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
        sizes |= {"hidden_dropout_prob": 0.1}  # of windows
    if family == "ConvNextV2":
        sizes = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}
    config = getattr(transformers, f"{family}Config")(
        image_size=32,
        patch_size=4 if family in ("Swin", "ConvNextV2") else 8,
        drop_path_rate=0.5,
        num_labels=3,
        **sizes,
    )
    model = getattr(transformers, f"{family}ForImageClassification")(config).train()
    pixels = torch.randn(4, 3, 32, 32)

    def logits(rows):
        with DropoutByImage(3, KEYS[rows]), torch.no_grad():
            return model(pixel_values=pixels[rows]).logits

    apart = torch.cat([logits(slice(0, 2)), logits(slice(2, 4))])
    torch.testing.assert_close(logits(slice(0, 4)), apart, rtol=1e-5, atol=1e-6)
    model.eval()
    assert not torch.allclose(logits(slice(0, 4)), apart, atol=1e-4)  # something was left out
