"""The facts equal their formulas, computed one row at a time in float64."""

import math

import pytest
import torch
import transformers

from qkvit import QKViTConfig, QKViTForImageClassification
from qkvit.analysis import Zero, intervene, record
from qkvit.analysis.head_facts import HeadFacts, head_facts, uniform_facts
from qkvit.analysis.token_layout import TokenLayout

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "initializer_range": 0.5,
}
LAYOUT = TokenLayout(grid=(2, 3), has_class_token=True, num_register_tokens=1)


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


def test_a_uniform_head_has_the_facts_of_one():
    facts = uniform_facts(LAYOUT)
    assert facts["entropy_share"] == pytest.approx(1)
    assert [facts["on_class_token"], facts["on_itself"]] == pytest.approx([1 / LAYOUT.num_tokens] * 2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = QKViTConfig(**SIZES, image_size=16)
    return QKViTForImageClassification(config).eval()


def test_the_facts_of_a_model_are_the_means_over_its_images():
    images = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    config = QKViTConfig(**SIZES, image_size=(16, 24), num_register_tokens=1)
    model = QKViTForImageClassification(config).eval()
    facts = head_facts(model, images.split(2))
    assert [(fact.layer, fact.head) for fact in facts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with torch.no_grad():
        attentions = model(images, output_attentions=True).attentions
    for fact in facts:
        of_images = [facts_by_hand(weights) for weights in attentions[fact.layer][:, fact.head]]
        assert fact.images == 5
        for name in of_images[0]:
            numbers = torch.tensor([of_image[name] for of_image in of_images])
            assert getattr(fact, name) == pytest.approx(numbers.mean().item(), rel=1e-4)
            assert getattr(fact, f"{name}_error") == pytest.approx(numbers.std().item() / math.sqrt(5), rel=2e-2)


def test_the_facts_of_another_family(family, family_model):
    images = torch.rand(2, 3, 16, 16)
    model = family_model(family)
    facts = head_facts(model, [images])
    with torch.no_grad(), record(model, 2, "attention") as recording:
        model(pixel_values=images)
    entropy = torch.special.entr(recording[2].attention).sum(-1).mean(dim=(0, 2))
    found = [fact.entropy for fact in facts if fact.layer == 2]
    assert found == pytest.approx(entropy.tolist(), rel=1e-4)


def test_a_bias_of_the_scores_counts(biased_model):
    images = torch.rand(2, 3, 16, 16)
    facts = head_facts(biased_model, [images])
    biased_model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(biased_model(images, output_attentions=True).attentions)  # (layers, B, H, N, N)
    expected = torch.special.entr(maps).sum(-1).mean(dim=(1, 3)).flatten().tolist()
    assert [fact.entropy for fact in facts] == pytest.approx(expected, rel=1e-4)


def test_the_facts_of_an_edited_model_are_those_of_its_edits(model, raises_sentence):
    images = torch.rand(2, 3, 16, 16)
    with intervene(model, {(0, "query"): Zero()}):
        facts = head_facts(model, [images])
    assert [fact.entropy for fact in facts[:2]] == pytest.approx([math.log(5)] * 2)
    assert facts[0].entropy_share == pytest.approx(1)
    edited = {(0, "attention"): Zero(key_tokens=0)}
    with raises_sentence(ValueError, "layer 0", "replaces the attention"), intervene(model, edited):
        head_facts(model, [images])


def test_how_images_are_batched_changes_nothing(model):
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for one, other in zip(head_facts(model, [images]), head_facts(model, images.split(1)), strict=True):
        assert vars(one) == pytest.approx(vars(other), abs=1e-6)


def test_one_image_has_no_standard_error(model):
    (fact, *_) = head_facts(model, [torch.rand(1, 3, 16, 16)])
    assert isinstance(fact, HeadFacts)
    assert fact.entropy_error is None


def test_without_a_class_token_there_is_no_weight_on_it():
    config = QKViTConfig(**SIZES, image_size=16, use_class_token=False, pooling="mean")
    (fact, *_) = head_facts(QKViTForImageClassification(config).eval(), [torch.rand(2, 3, 16, 16)])
    assert fact.on_class_token is None


def test_no_images_are_refused(model):
    with pytest.raises(ValueError, match="no images"):
        head_facts(model, [])


def test_a_layout_of_another_size_is_refused(model):
    with pytest.raises(ValueError, match=r"the layout has 10 tokens .* the tensor 5"):
        head_facts(model, [torch.rand(1, 3, 16, 16)], TokenLayout(grid=(3, 3), has_class_token=True))


def test_windows_are_not_counted_as_images(quiet, raises_sentence):
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 4}
    model = transformers.SwinModel(transformers.SwinConfig(**sizes)).eval()
    images, layout = torch.rand(3, 3, 32, 32), TokenLayout(grid=(4, 4))
    for run in (head_facts, quiet):
        with raises_sentence(ValueError, "layer 0", "12 parts of 3 images"):
            run(model, [images], layout=layout)
