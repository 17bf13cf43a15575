"""LoRA (Hu et al. 2021, arXiv 2106.09685) on any of Q, K and V, by PEFT: trains, saves, loads, merges."""

import copy
import itertools

import pytest
import torch

from qkvit import QKViTForImageClassification

peft = pytest.importorskip("peft", reason="peft is not installed")

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(PROJECTIONS, count)]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT before 0.21, of a model that was not loaded from anywhere.
    pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning"),
]


def adapted(model, subset, **options):
    """A copy of the model with adapters of rank 4 on the projections of `subset`."""
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=list(subset), **options)
    return peft.get_peft_model(copy.deepcopy(model), config)


def train(model, pixels, steps: int = 15) -> list[float]:
    """The loss at each step of a few on two images."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = model(pixels, labels=torch.tensor([1, 3])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def own_weights(model) -> dict[str, torch.Tensor]:
    """The weights that are not adapters."""
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_any_subset_of_q_k_and_v_trains_saves_loads_and_merges(tiny_model, pixels, subset, tmp_path):
    model = tiny_model(num_hidden_layers=2)
    learner = adapted(model, subset)
    wrapped = {
        name.rsplit(".", 1)[-1] for name, layer in learner.named_modules() if isinstance(layer, peft.tuners.lora.Linear)
    }
    assert wrapped == set(subset)

    before = own_weights(learner)
    losses = train(learner, pixels)
    assert losses[-1] < 0.7 * losses[0]
    after = own_weights(learner)
    assert all(torch.equal(after[name], before[name]) for name in before)

    with torch.no_grad():
        logits = learner.eval()(pixels).logits
        assert (logits - model(pixels).logits).abs().max() > 0.1
        learner.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
        torch.testing.assert_close(loaded(pixels).logits, logits, rtol=0, atol=0)
        merged = loaded.merge_and_unload()
        assert type(merged) is QKViTForImageClassification
        assert merged.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(merged(pixels).logits, logits, rtol=0, atol=1e-5)


def test_a_merged_model_is_a_plain_one_that_saves_and_loads(tiny_model, pixels, tmp_path):
    learner = adapted(tiny_model(num_hidden_layers=2), PROJECTIONS)
    train(learner, pixels, steps=3)
    merged = learner.merge_and_unload().eval()
    merged.save_pretrained(tmp_path)
    loaded = QKViTForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, merged(pixels).logits, rtol=0, atol=0)


def test_a_new_classifier_trains_beside_the_adapters_and_is_saved_with_them(tiny_model, pixels, tmp_path):
    model = tiny_model(num_hidden_layers=2)
    learner = adapted(model, ("q_proj", "v_proj"), modules_to_save=["classifier"])
    train(learner, pixels, steps=3)
    learner.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, learner.eval()(pixels).logits, rtol=0, atol=0)
        merged = loaded.merge_and_unload()
    assert not torch.equal(merged.classifier.weight, model.classifier.weight)


def test_an_adapted_model_gives_q_k_v_and_maps_and_switching_adapters_off_gives_the_model_back(tiny_model, pixels):
    model = tiny_model(num_hidden_layers=2)
    learner = adapted(model, ("q_proj",))
    train(learner, pixels, steps=3)
    asked = {"output_attentions": True, "output_qkv": True}
    with torch.no_grad():
        plain, changed = model(pixels, **asked), learner.eval()(pixels, **asked)
        assert torch.equal(changed.keys[0], plain.keys[0])
        assert torch.equal(changed.values[0], plain.values[0])
        assert not torch.equal(changed.queries[0], plain.queries[0])
        assert not torch.equal(changed.attentions[0], plain.attentions[0])
        with learner.disable_adapter():
            assert torch.equal(learner(pixels).logits, plain.logits)
