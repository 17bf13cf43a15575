"""The facts equal their formulas, computed one row at a time in float64."""

import math

import pytest
import torch

from qkvit import QKViTConfig, QKViTForImageClassification
from qkvit.analysis.head_facts import HeadFacts, facts_of_maps, head_facts, uniform_facts
from qkvit.analysis.token_layout import TokenLayout

LAYOUT = TokenLayout(grid=(2, 3), has_class_token=True, num_register_tokens=1)


def random_maps(seed=0, dtype=torch.float32):
    scores = 3 * torch.randn(4, 2, LAYOUT.num_tokens, LAYOUT.num_tokens, generator=torch.Generator().manual_seed(seed))
    return scores.softmax(dim=-1).to(dtype)


def facts_by_hand(weights):
    """Of one map (N, N), with lists and loops."""
    rows = weights.double().tolist()
    first = LAYOUT.num_prefix
    places = [(row, column) for row in range(LAYOUT.grid[0]) for column in range(LAYOUT.grid[1])]
    patch_rows = rows[first:]
    distances = [
        sum(p * math.dist(here, there) for p, there in zip(row[first:], places, strict=True)) / sum(row[first:])
        for row, here in zip(patch_rows, places, strict=True)
    ]
    entropy = sum(-sum(p * math.log(p) for p in row if p > 0) for row in rows) / len(rows)
    return {
        "entropy": entropy,
        "entropy_share": entropy / math.log(len(rows)),
        "distance": sum(distances) / len(distances),
        "on_class_token": sum(row[0] for row in patch_rows) / len(patch_rows),
        "on_itself": sum(row[first + index] for index, row in enumerate(patch_rows)) / len(patch_rows),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_facts_of_a_map_equal_their_formulas(dtype):
    weights = random_maps(dtype=dtype)
    facts = facts_of_maps(weights, LAYOUT)
    for image in range(4):
        for head in range(2):
            expected = facts_by_hand(weights[image, head])
            found = {name: value[image, head].item() for name, value in facts.items()}
            assert found == pytest.approx(expected, abs=1e-12)


def test_a_head_that_looks_at_one_token_has_no_entropy():
    facts = facts_of_maps(torch.eye(LAYOUT.num_tokens)[None, None], LAYOUT)
    assert {name: value.item() for name, value in facts.items()} == {
        "entropy": 0,
        "entropy_share": 0,
        "distance": 0,
        "on_itself": 1,
        "on_class_token": 0,
    }


def test_a_row_without_weight_on_patches_does_not_spoil_the_distance():
    weights = random_maps()
    expected = facts_of_maps(weights, LAYOUT)["distance"]
    weights[0, 0, LAYOUT.num_prefix] = torch.eye(LAYOUT.num_tokens)[0]
    distance = facts_of_maps(weights, LAYOUT)["distance"]
    assert distance.isfinite().all()
    assert (distance != expected).nonzero().tolist() == [[0, 0]]


def test_a_uniform_head_has_the_facts_of_one():
    facts = uniform_facts(LAYOUT)
    assert facts["entropy_share"] == pytest.approx(1)
    assert facts["on_class_token"] == facts["on_itself"] == pytest.approx(1 / LAYOUT.num_tokens)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = QKViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        initializer_range=0.5,
    )
    return QKViTForImageClassification(config).eval()


def test_the_facts_of_a_model_are_the_means_over_its_images(model):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    layout = TokenLayout.from_config(model.config)
    facts = head_facts(model, images.split(2))
    assert [(fact.layer, fact.head) for fact in facts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with torch.no_grad():
        attentions = model(images, output_attentions=True).attentions
    for fact in facts:
        entropy = facts_of_maps(attentions[fact.layer], layout)["entropy"][:, fact.head]
        assert fact.images == 5
        assert fact.entropy == pytest.approx(entropy.mean().item(), abs=1e-6)
        assert fact.entropy_error == pytest.approx((entropy.std() / math.sqrt(5)).item(), abs=1e-6)


def test_how_images_are_batched_changes_nothing(model):
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for one, other in zip(head_facts(model, [images]), head_facts(model, images.split(1)), strict=True):
        assert vars(one) == pytest.approx(vars(other), abs=1e-6)


def test_one_image_has_no_standard_error(model):
    (fact, *_) = head_facts(model, [torch.rand(1, 3, 16, 16)])
    assert isinstance(fact, HeadFacts)
    assert fact.entropy_error is None


def test_without_a_class_token_there_is_no_weight_on_it():
    config = QKViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        use_class_token=False,
        pooling="mean",
    )
    (fact, _) = head_facts(QKViTForImageClassification(config).eval(), [torch.rand(2, 3, 16, 16)])
    assert fact.on_class_token is None


def test_no_images_are_refused(model):
    with pytest.raises(ValueError, match="no images"):
        head_facts(model, [])


def test_a_layout_of_another_size_is_refused(model):
    with pytest.raises(ValueError, match=r"the layout has 10 tokens .* the tensor 5"):
        head_facts(model, [torch.rand(1, 3, 16, 16)], TokenLayout(grid=(3, 3), has_class_token=True))
