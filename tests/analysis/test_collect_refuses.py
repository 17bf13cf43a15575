"""What `collect` cannot take the numbers of is refused, and what looks like it is not."""

import pytest
import torch
import transformers
from torch.utils.data import DataLoader, DistributedSampler

from qkvit.analysis import TokenLayout
from qkvit.analysis.shares import refuse_in_all, wrong_share


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rollout", [False, True])
def test_hidden_tokens_are_refused_and_a_mask_that_hides_nothing_is_not(
    model, quiet, raises_sentence, implementation, rollout
):
    """They would count as queries. Of these implementations, one hides by False and one by the least number."""
    model.set_attn_implementation(implementation)
    images, seen = torch.rand(2, 3, 16, 16), torch.ones(2, 16, dtype=torch.bool)
    options = {"forward": lambda m, pixels: m(pixels, attention_mask=seen), "layers": 1, "rollout": rollout}
    torch.testing.assert_close(
        quiet(model, [images], **options).mean("entropy"), quiet(model, [images], layers=1).mean("entropy")
    )
    seen[1, 12:] = False
    with raises_sentence(ValueError, "the attention mask hides tokens", "without padding"):
        quiet(model, [images], **options)


def test_a_bias_of_relative_positions_hides_nothing(quiet, biased_model):
    model = biased_model
    images = torch.rand(2, 3, 16, 16)
    entropy = quiet(model, [images], rollout=True).mean("entropy")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(model(images, output_attentions=True).attentions).double()  # (layers, B, H, N, N)
    torch.testing.assert_close(entropy, torch.special.entr(maps).sum(-1).mean(dim=(1, 3)), rtol=1e-4, atol=1e-5)


def test_windows_are_not_counted_as_images(quiet, raises_sentence):
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 4}
    model = transformers.SwinModel(transformers.SwinConfig(**sizes)).eval()
    with raises_sentence(ValueError, "layer 0", "12 parts of 3 images"):
        quiet(model, [torch.rand(3, 3, 32, 32)], layout=TokenLayout(grid=(4, 4)))


def test_a_layout_of_another_size_is_refused(model, quiet, raises_sentence):
    with raises_sentence(ValueError, "the layout has 10 tokens"):
        quiet(model, [torch.rand(1, 3, 16, 16)], layout=TokenLayout(grid=(3, 3), has_class_token=True))


def test_a_group_of_whole_maps_is_refused(model, quiet, raises_sentence):
    """`attention_statistics` has it, and there is no mean of it over images."""
    with raises_sentence(ValueError, "there is no group of statistics mean_map"):
        quiet(model, [torch.rand(2, 3, 16, 16)], statistics=["entropy", "mean_map"])


def test_labels_in_a_column_are_those_of_the_images(model, quiet):
    images, labels = torch.rand(3, 3, 16, 16), torch.tensor([[1], [0], [1]])
    found = quiet(model, [(images, labels)], class_names=["cat", "dog"]).class_mean("entropy")
    torch.testing.assert_close(found[1], quiet(model, [images[::2]]).mean("entropy"))


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1.0]), torch.eye(2).long(), torch.tensor([True, False]), [0]])
def test_other_labels_than_one_whole_number_an_image_are_refused(model, quiet, raises_sentence, labels):
    batch = (torch.rand(2, 3, 16, 16), labels)
    with raises_sentence(ValueError, "for 2 images", "one whole number an image", "leave class_names out"):
        quiet(model, [batch], class_names=["cat", "dog"])
    without = quiet(model, [batch], statistics="entropy")
    assert without.images == 2
    with raises_sentence(ValueError, "no means of classes: collect with class names"):
        without.class_mean("entropy")


@pytest.mark.parametrize("options", [{}, {"layers": [0, 2]}, {"layers": 0, "rollout": True}])
def test_a_forward_that_misses_layers_is_refused(model, quiet, raises_sentence, options):
    def until_layer_1(model, pixels):
        for layer in model.layers[:2]:
            layer(torch.rand(len(pixels), 18, 32))

    images = [torch.rand(2, 3, 16, 16)]
    with raises_sentence(ValueError, "did not reach the layers [2]", "forward="):
        quiet(model, images, forward=until_layer_1, **options)
    assert quiet(model, images, forward=until_layer_1, layers=[0, 1]).layers == (0, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_of_another_share_are_refused(source, over, raises_sentence, rank):
    assert wrong_share(over(source), 0, 1) is None
    assert wrong_share(over(source, shard=(rank, 2)), rank, 2) is None
    for shard in ((0, 1), (1 - rank, 2), (rank, 3)):
        with raises_sentence(ValueError, f"process {rank} of 2", f"shard {shard}", f"shard=({rank}, 2)"):
            refuse_in_all(wrong_share(over(source, shard=shard), rank, 2), 1)


def test_a_sampler_that_repeats_images_is_refused(raises_sentence):
    for images, repeats in ((6, False), (7, True)):
        data = [torch.rand(3, 16, 16)] * images
        loader = DataLoader(data, sampler=DistributedSampler(data, num_replicas=2, rank=0))
        if repeats:
            with raises_sentence(ValueError, "DistributedSampler", "8 images of 7"):
                refuse_in_all(wrong_share(loader, 0, 2), 1)
        else:
            assert wrong_share(loader, 0, 2) is None
