"""The layout says what each token is, for every kind of model that the configuration allows."""

import dataclasses

import pytest
import torch
import transformers

from qkvit import QKViTConfig, QKViTModel
from qkvit.analysis import record
from qkvit.analysis.token_layout import TokenLayout


@pytest.mark.parametrize("image_size", [32, (32, 48)])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_distillation_token": True},
        {"num_register_tokens": 4},
        {"use_class_token": False, "pooling": "mean"},
        {"use_class_token": False, "pooling": "mean", "num_register_tokens": 2},
    ],
)
def test_the_layout_of_a_configuration_counts_the_tokens_of_its_model(fields, image_size):
    config = QKViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=image_size, patch_size=8, **fields
    )
    layout = TokenLayout.from_config(config)
    tokens = QKViTModel(config)(torch.zeros(1, 3, 8 * layout.grid[0], 8 * layout.grid[1])).last_hidden_state
    layout.check(tokens.shape[1])
    assert layout.num_prefix_tokens == config.num_prefix_tokens
    assert layout.class_token == (0 if config.use_class_token else None)


def test_the_layout_follows_the_size_of_the_input():
    config = QKViTConfig(image_size=32, patch_size=(8, 4))
    assert TokenLayout.from_config(config, (64, 32)).grid == (8, 8)


def test_patches_that_are_not_square_are_known():
    assert TokenLayout.from_config(QKViTConfig(image_size=32, patch_size=(8, 4))).patch_size == (8, 4)
    square = TokenLayout.from_config(QKViTConfig(image_size=32, patch_size=8))
    assert square.patch_size == TokenLayout(grid=(4, 4), patch_size=[8, 8]).patch_size == (8, 8)
    assert square == TokenLayout((4, 4), None, True)
    assert hash(square) == hash(TokenLayout((4, 4), None, True))
    squares = [TokenLayout(grid=(4, 4), patch_size=size).has_square_patches for size in (None, (8, 8), (8, 4))]
    assert squares == [True, True, False]


def test_a_count_of_tokens_of_unknown_kind_makes_no_class_token():
    layout = TokenLayout(num_prefix_tokens=5, grid=(16, 16))
    assert layout.class_token is None
    assert layout.patches == slice(5, 261)


def test_distances_are_euclidean_between_centres():
    layout = TokenLayout(grid=(2, 3))
    places = [(row, column) for row in range(2) for column in range(3)]
    expected = [[((r - s) ** 2 + (c - d) ** 2) ** 0.5 for s, d in places] for r, c in places]
    torch.testing.assert_close(layout.distances(), torch.tensor(expected, dtype=torch.float64))


def test_a_layout_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenLayout(grid=(2, 2)).num_register_tokens = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": (0, 4)}, "is no .rows, columns. of patches"),
        ({"grid": (4,)}, "is no .rows, columns. of patches"),
        ({"grid": (4, 4), "num_register_tokens": -1}, "num_register_tokens=-1 is not a count"),
        ({"grid": (4, 4), "num_prefix_tokens": 3, "has_class_token": True}, "num_prefix_tokens=3, but .* make 1"),
        ({"grid": (4, 4), "patch_size": (8, 0)}, "patch_size=.8, 0. is no .height, width. of pixels"),
        ({"grid": (4, 4), "has_distillation_token": True}, "needs has_class_token=True"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(**fields)


def tokens_of(model, pixels) -> int:
    """How many tokens attention sees."""
    with torch.no_grad(), record(model, layers=0, tensors="query") as recording:
        model(pixels)
    return recording[0].query.shape[2]


def test_the_layout_of_each_family_counts_the_tokens_of_its_model(family, family_model, prefix_tokens):
    model = family_model(family)
    layout = TokenLayout.from_model(model)
    assert layout.grid == (4, 4)
    assert layout.num_prefix_tokens == prefix_tokens[family]
    layout.check(tokens_of(model, torch.rand(1, 3, 16, 16)))
    assert TokenLayout.from_model(torch.nn.DataParallel(model)) == layout


def test_the_layout_of_a_family_says_which_token_is_which(family, family_model, prefix_tokens):
    model = family_model(family)
    # Among the tokens: AIMv2 has one in its pooling head.
    names = {name for name, _ in model.named_parameters() if not name.startswith("head.")}
    layout = TokenLayout.from_config(model.config)
    assert layout.has_class_token == any("cls_token" in name or "class_embedding" in name for name in names)
    assert layout.has_distillation_token == any("distillation_token" in name for name in names)
    assert layout.num_register_tokens == getattr(model.config, "num_register_tokens", 0)


def test_the_layout_follows_images_of_other_sizes_through_dinov2(family_model):
    model = family_model("DINOv2 with registers", num_register_tokens=2)
    layout = TokenLayout.from_model(model, (20, 14))  # 14 is no multiple of 4: two columns of pixels are left out
    assert layout.grid == (5, 3)
    layout.check(tokens_of(model, torch.rand(1, 3, 20, 14)))


# Config class, model class, further fields, tokens before the patches, whether images of other sizes are taken.
OTHERS = {
    "AltCLIP vision": ("AltCLIPVisionConfig", "AltCLIPVisionModel", {}, 1, False),
    "Chinese CLIP vision": ("ChineseCLIPVisionConfig", "ChineseCLIPVisionModel", {}, 1, False),
    "CLIPSeg vision": ("CLIPSegVisionConfig", "CLIPSegVisionModel", {}, 1, True),
    "GIT vision": ("GitVisionConfig", "GitVisionModel", {}, 1, False),
    "InternVL vision": ("InternVLVisionConfig", "InternVLVisionModel", {}, 1, True),
    "Janus vision": ("JanusVisionConfig", "JanusVisionModel", {}, 0, False),
    "MetaCLIP 2 vision": ("MetaClip2VisionConfig", "MetaClip2VisionModel", {}, 1, False),
    "MLCD": ("MLCDVisionConfig", "MLCDVisionModel", {}, 1, True),
    "OWL-ViT vision": ("OwlViTVisionConfig", "OwlViTVisionModel", {}, 1, False),
    "OWLv2 vision": ("Owlv2VisionConfig", "Owlv2VisionModel", {}, 1, False),
    "Pixio": ("PixioConfig", "PixioModel", {"n_cls_tokens": 3}, 3, True),
    "RADIO": ("RadioConfig", "RadioModel", {"num_cls_tokens": 2, "num_registers": 3}, 5, True),
    "TIPSv2": ("Tipsv2VisionConfig", "Tipsv2VisionModel", {"num_register_tokens": 2}, 3, True),
    "ViTPose": ("VitPoseBackboneConfig", "VitPoseBackbone", {"image_size": (48, 32)}, 0, False),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize("name", OTHERS)
def test_each_patch_is_where_the_layout_of_another_model_says(name):
    """Another value of the pixel in its middle changes this token alone of those that the first layer sees."""
    config_class, model_class, more, prefix, takes_other_sizes = OTHERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**{**SMALL, "image_size": 32, "patch_size": 8, **more})
    model = getattr(transformers, model_class)(config).eval()
    for size in (None, (24, 40)) if takes_other_sizes else (None,):
        layout = TokenLayout.from_model(model, size)
        assert layout.num_prefix_tokens == prefix
        rows, columns = layout.grid
        images = torch.rand(1, 3, 8 * rows, 8 * columns).repeat(2, 1, 1, 1)
        images[1, :, 8 * 1 + 4, 8 * 2 + 4] += 1
        with torch.no_grad(), record(model, tensors="query") as recording:
            model(images)
        for layer in range(config.num_hidden_layers):
            layout.check(recording[layer].query.shape[2])
        changed = (recording[0].query[0] != recording[0].query[1]).any(dim=-1).any(dim=0)
        assert changed.nonzero().flatten().tolist() == [prefix + columns + 2]


@pytest.mark.parametrize(
    ("config_class", "message"),
    [
        ("ViTMAEConfig", "'vit_mae' .* leaves patches out at random .* qkvit convert MODEL FOLDER makes"),
        ("YolosConfig", "'yolos' .* detection tokens come after the patches; qkvit.analysis.record"),
        ("EomtConfig", "'eomt' .* its queries join the patches in the last layers"),
        ("Siglip2Config", "'siglip2_vision_model' .* a grid of its own"),
        ("VideoMAEConfig", "'videomae' .* of several frames"),
        ("VivitConfig", "'vivit' .* of several frames"),
    ],
)
def test_tokens_that_are_no_grid_after_others_are_refused_with_another_way(config_class, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout.from_config(getattr(transformers, config_class)())


@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
def test_the_layout_of_two_towers_is_that_of_the_one_that_sees(two_towers, family):
    model = two_towers(family)
    assert TokenLayout.from_model(model) == TokenLayout.from_config(model.config.vision_config)


def test_a_configuration_of_another_model_is_refused():
    from transformers import SwinConfig

    with pytest.raises(ValueError, match=r"no token layout is known for model_type='swin'; .* pass it to collect"):
        TokenLayout.from_config(SwinConfig())
    with pytest.raises(ValueError, match="Linear has no config to take a token layout from"):
        TokenLayout.from_model(torch.nn.Linear(2, 2))


def test_an_image_smaller_than_a_patch_is_refused(family_model):
    with pytest.raises(ValueError, match=r"does not divide image_size \(3, 16\)"):
        TokenLayout.from_model(family_model("DINOv2"), (3, 16))


def test_an_image_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"does not divide image_size .30, 32."):
        TokenLayout.from_config(QKViTConfig(image_size=32, patch_size=8), (30, 32))
