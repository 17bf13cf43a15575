"""timm's vision transformers against timm, where it is installed and can be imported."""

from types import SimpleNamespace

import pytest
import torch
from harness import assert_same_tensors, difference, flat, images, randomised

from qkvit import QKViTConfig, QKViTForImageClassification, QKViTModel
from qkvit.modeling.conversion import convert, export
from qkvit.modeling.conversion.families.family import Source
from qkvit.modeling.conversion.families.timm import FAMILY

try:
    import timm
except Exception as error:  # it needs torchvision, which fails to load in more ways than by an ImportError
    timm = None
    pytestmark = pytest.mark.skip(f"timm cannot be imported ({type(error).__name__})")

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
ARCHITECTURES = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch16_224_miil": {},
    "vit_small_patch16_36x1_224": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "flexivit_small": {},
    "eva_large_patch14_196": {},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch16_gap_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_so400m_patch16_siglip_256": {},
    "vit_so400m_patch16_siglip_gap_256": {},
    "vit_medium_patch16_reg4_gap_256": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_so150m2_patch16_reg1_gap_256": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {},
    "vit_base_patch14_reg1_tipsv2": {},
    "vit_base_patch16_radio_v3": {},
    "vit_intern300m_patch14_448": {},
    "test_vit2": {},
    "test_vit3": {},
    "test_vit4": {},
    "vit_small_patch16_224": {"qk_norm": True, "act_layer": "gelu_tanh", "norm_layer": "rmsnorm", "init_values": 0.1},
    "vit_small_patch16_384": {"img_size": (16, 32), "patch_size": (4, 8), "global_pool": "avg", "proj_bias": False},
    "vit_small_patch8_224": {"pos_embed": "none", "final_norm": False},
    "vit_small_patch32_224": {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2, "mlp_ratio": 2.3},
}


def made(name: str, **options) -> torch.nn.Module:
    """A small model of timm with weights of which none is 0 or 1, float64."""
    torch.manual_seed(0)
    model = timm.create_model(
        name, pretrained=False, dynamic_img_size=True, **{**SMALL, **ARCHITECTURES[name], **options}
    )
    return randomised(model).double().eval()


def saved(model: torch.nn.Module, folder):
    """As timm saves a model for the Hub."""
    from timm.models._hub import save_for_hf

    save_for_hf(model, folder, safe_serialization=True)
    return folder


def outputs(model: torch.nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """timm's outputs, under our names; hidden states with all tokens."""
    states: list[torch.Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda block, arguments: states.append(arguments[0]))]
    hooks += [
        block.register_forward_hook(lambda block, arguments, output: states.append(output)) for block in model.blocks
    ]
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        out = {"last_hidden_state": tokens, "hidden_states": states}
        if not hasattr(model, "dist_token"):
            out["pooler_output"] = model.forward_head(tokens, pre_logits=True)
        if model.num_classes:
            out["logits"] = model.forward_head(tokens)
    for hook in hooks:
        hook.remove()
    return flat(out)


def ours(model: torch.nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found = flat(model(pixels, output_hidden_states=True))
        base = getattr(model, "qkvit", model)(pixels)
    return {**found, "pooler_output": base.pooler_output, "last_hidden_state": base.last_hidden_state}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_outputs_are_timms_at_every_size(name, tmp_path):
    theirs = made(name)
    converted = convert(saved(theirs, tmp_path / "source"))
    width = theirs.patch_embed.patch_size[1]
    for size in (theirs.patch_embed.img_size, (24, 3 * width), (8, 7 * width)):
        pixels = images(*size)
        found = difference(ours(converted, pixels), outputs(theirs, pixels))
        assert found < 1e-10, f"{found:.1e} at {size}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_single_precision_is_timms(name, tmp_path):
    theirs = made(name).float()
    converted, pixels = convert(saved(theirs, tmp_path / "source")), images(16, 32, torch.float32)
    assert difference(ours(converted, pixels), outputs(theirs, pixels)) < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_queries_keys_values_and_maps_are_timms(name, tmp_path):
    theirs = made(name)
    pixels = images(*theirs.patch_embed.img_size)
    seen: list[dict[str, torch.Tensor]] = []

    def watch(attention: torch.nn.Module) -> None:
        entry: dict[str, torch.Tensor] = {}
        seen.append(entry)
        attention.fused_attn = False
        attention.q_norm.register_forward_hook(lambda module, arguments, output: entry.update(queries=output))
        attention.k_norm.register_forward_hook(lambda module, arguments, output: entry.update(keys=output))
        attention.attn_drop.register_forward_hook(lambda module, arguments, output: entry.update(attentions=output))

        def values(module, arguments, output):
            batch, count, _ = output.shape
            qkv = output.reshape(batch, count, 3, attention.num_heads, attention.head_dim)
            entry.update(values=qkv[:, :, 2].transpose(1, 2))

        attention.qkv.register_forward_hook(values)

    converted = convert(saved(theirs, tmp_path / "source"))
    for block in theirs.blocks:
        watch(block.attn)
    with torch.no_grad():
        theirs(pixels)
        found = converted(pixels, output_qkv=True, output_attentions=True)
    for layer, entry in enumerate(seen):
        for kind, tensor in entry.items():
            torch.testing.assert_close(found[kind][layer], tensor, rtol=0, atol=1e-10)
        assert len(entry) == 4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_loads_what_is_exported(name, tmp_path):
    theirs = made(name)
    source = saved(theirs, tmp_path / "source")
    folder = export(convert(source), tmp_path / "out")
    assert_same_tensors(source, folder)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True, dynamic_img_size=True).double().eval()
    pixels = images(16, 32)
    assert difference(outputs(again, pixels), outputs(theirs, pixels)) < 1e-12


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_distillation_token": True},
        {"mlp_type": "swiglu", "layer_scale_init_value": 0.5},
        {"layer_norm_eps": 1e-5, "use_pre_norm": True, "patch_bias": False, "hidden_act": "quick_gelu"},
        {"pooling": "attention", "use_class_token": False, "num_register_tokens": 2, "position_coverage": "all"},
        {"pooling": "mean", "norm_position": "after_pooling", "norm_type": "rmsnorm", "intermediate_size": 71},
        {"position_embedding": "none", "norm_position": "none", "image_size": (16, 24), "patch_size": (4, 8)},
    ],
)
def test_timm_loads_a_model_of_our_own(tiny_model, tmp_path, fields):
    fields = {"position_antialias": True, "position_float32": True, **fields}
    own = tiny_model(QKViTForImageClassification, **fields).double()
    again = timm.create_model(
        f"local-dir:{export(own, tmp_path / 'out', family='timm')}", pretrained=True, dynamic_img_size=True
    )
    pixels = images(24, 24)
    found = outputs(again.double().eval(), pixels)
    assert difference(found, ours(own, pixels)) < 1e-10


def test_every_architecture_is_read_as_timm_builds_it_or_refused():
    activations = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
    pooling = {"token": "class", "avg": "mean", "map": "attention"}
    refused = []
    for name in timm.list_models(module="vision_transformer") + timm.list_models(module="deit"):
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        config = {"architecture": name, "pretrained_cfg": {"input_size": model.pretrained_cfg["input_size"]}}
        if model.global_pool:
            config["global_pool"] = model.global_pool
        source = Source(config, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}, name)
        try:
            found = QKViTConfig(**FAMILY.fields(source))
        except ValueError:
            refused.append(name)
            continue
        block = SimpleNamespace(attn=model.blocks[0].attn, norm=model.blocks[0].norm1, act=model.blocks[0].mlp.act)
        height, width = (
            side // patch * patch
            for side, patch in zip(model.patch_embed.img_size, model.patch_embed.patch_size, strict=True)
        )
        expected = {
            "num_attention_heads": block.attn.num_heads,
            "num_hidden_layers": len(model.blocks),
            "hidden_act": activations[type(block.act).__name__],
            "layer_norm_eps": block.norm.eps,
            "pooling": pooling[model.global_pool],
            "num_prefix_tokens": model.num_prefix_tokens,
            "image_shape": (height, width),
        }
        assert {key: getattr(found, key) for key in expected} == expected, name
        if found.pooling != "class":
            assert found.pooling_coverage == ("all" if model.pool_include_prefix else "patches")
        with torch.device("meta"):  # it has as many numbers
            own = (QKViTForImageClassification if model.num_classes else QKViTModel)(found)
        assert own.num_parameters() == sum(parameter.numel() for parameter in model.parameters()), name
    unlike = ("aimv2", "beit3", "_xp_", "18x2", "_rpn_", "dlittle", "dwee", "pwee")
    assert all(any(word in name for word in unlike) for name in refused), refused
