"""It is known when a forward pass begins and ends, and of how many images it is."""

import contextvars
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl

from qkvit import QKViTModel
from qkvit.analysis import OtherImage, intervene, record


def test_several_calls_of_a_layer_in_one_forward_pass_are_all_kept_or_refused(raises_sentence):
    """Of each image of its own size there is one."""
    config = configuration_qwen2_vl.Qwen2VLVisionConfig(
        depth=2, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=4, temporal_patch_size=1
    )
    model = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config).eval()
    sizes = torch.tensor([[1, 4, 4], [1, 6, 4]])
    patches = torch.rand(16 + 24, 3 * 4 * 4)
    with torch.no_grad(), record(model, keep="all") as recording:
        model(patches, grid_thw=sizes)
    assert [call.query.shape[2] for call in recording.calls[1]] == [16, 24]
    with torch.no_grad(), record(model, 1) as recording:
        with raises_sentence(ValueError, "layer 1 is called several times in one forward pass", "keep='all'"):
            model(patches, grid_thw=sizes)
        for size in (sizes[:1], sizes[1:]):  # one pass after the other, also after one that was cut short
            model(patches[: size.prod()], grid_thw=size)
    assert recording[1].query.shape[2] == 24


def test_layers_that_are_called_by_hand_are_recorded(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    tokens = torch.rand(2, 17, 32)
    with torch.no_grad(), record(model, 0) as recording:
        for shown in (tokens, tokens[:1]):
            model.layers[0](shown)
    assert recording[0].query.shape[0] == 1


def test_what_is_computed_again_belongs_to_no_pass(tiny_model):
    """The pass of two images is computed again after one of three."""
    model = tiny_model(QKViTModel).train()
    model.gradient_checkpointing_enable()
    with intervene(model, {(1, "value"): OtherImage()}), record(model, 1) as recording:
        first = model(torch.rand(2, 3, 16, 16)).last_hidden_state
        model(torch.rand(3, 3, 16, 16))
        first.square().sum().backward()
    assert len(recording[1].query) == 3
    assert model.layers[1].attention.v_proj.weight.grad.isfinite().all()


def test_an_encoder_that_a_model_runs_twice_is_not_recorded_in_part(raises_sentence):
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPSegConfig(
        text_config={**tower, "vocab_size": 9, "eos_token_id": 8, "bos_token_id": 7},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=8,
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
        extract_layers=[0],
    )
    model, pixels = CLIPSegForImageSegmentation(config).eval(), torch.rand(2, 1, 3, 16, 16)
    images = {"pixel_values": pixels[0], "conditional_pixel_values": pixels[1]}
    refused = raises_sentence(ValueError, "layer 0 is called several times in one forward pass")
    with torch.no_grad(), record(model, 0), refused:
        model(**images)
    with torch.no_grad(), record(model, 0, keep="all") as recording:
        model(**images)
    assert len(recording.calls[0]) == 2


def test_threads_that_share_a_context_have_passes_of_their_own(tiny_model):
    model = tiny_model(QKViTModel)

    def passes(count):
        for _ in range(15):
            model(torch.rand(count, 3, 16, 16))

    with torch.inference_mode(), intervene(model, {(0, "value"): OtherImage()}), ThreadPoolExecutor(2) as threads:
        running = [threads.submit(contextvars.copy_context().run, passes, count) for count in (2, 5)]
        for each in running:
            each.result()


def test_a_context_that_is_refused_a_second_time_keeps_what_it_did(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    edits = intervene(model, {(0, "key"): OtherImage()})
    with edits:
        model(pixels)
        with pytest.raises(ValueError, match="open already"), edits:
            pass
