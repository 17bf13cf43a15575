"""The door: what it sees of which model, thread and process, and that it leaves everything as it was."""

import copy
import os
import socket
import threading
from contextlib import ExitStack

import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.analysis import Apply, Noise, OtherImage, Zero, intervene, record
from qkvit.analysis.attention_layers import unwrapped
from qkvit.analysis.recording import TENSORS

EDITS = {(0, "key"): Zero(), (1, "attention"): OtherImage(heads=0), (2, "value"): Noise(seed=3, tokens=slice(1, None))}


def state_of(model: nn.Module) -> list:
    """What a session may change of a model."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    found: list = [(key, config._attn_implementation) for key, config in configs.items()]
    for module in model.modules():
        found += [(id(module), name, id(value)) for name, value in vars(module).items() if callable(value)]
        found += [(id(module), len(module._forward_hooks), len(module._forward_pre_hooks))]
    return found


# ---- leaving


def test_after_the_context_and_after_an_exception_the_model_is_as_it_was(family, family_model, pixels):
    model = family_model(family)
    model(pixels, output_hidden_states=True)  # transformers installs hooks of its own at this first asking
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
    before = state_of(model)
    with record(model), intervene(model, {(0, "key"): Zero()}):
        model(pixels)
        assert state_of(model) != before
    assert state_of(model) == before
    with pytest.raises(KeyboardInterrupt), record(model), intervene(model, {(0, "key"): Zero()}):
        raise KeyboardInterrupt
    assert state_of(model) == before


def test_contexts_may_be_left_in_any_order(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    expected = model(pixels).last_hidden_state
    first, second = record(model), intervene(model, {(1, "value"): Zero()})
    recording = first.__enter__()
    second.__enter__()
    assert not torch.equal(model(pixels).last_hidden_state, expected)
    first.__exit__(None, None, None)
    query = recording[2].query
    assert not torch.equal(model(pixels).last_hidden_state, expected)
    second.__exit__(None, None, None)
    assert torch.equal(model(pixels).last_hidden_state, expected)
    assert recording[2].query is query  # nothing is recorded after the context
    assert model.config._attn_implementation == "sdpa"


def test_a_context_that_is_open_is_not_entered_again(tiny_model, pixels, raises_sentence):
    model = tiny_model(QKViTModel)
    context = intervene(model, {(0, "query"): Zero()})
    with torch.no_grad(), context:
        edited = model(pixels).last_hidden_state
        with raises_sentence(ValueError, "this context is open already"), context:
            pass
        assert torch.equal(model(pixels).last_hidden_state, edited)
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    with torch.no_grad(), context:  # one after the other
        assert torch.equal(model(pixels).last_hidden_state, edited)


@pytest.mark.parametrize("implementation", [None, "eager", "sdpa", "theirs"])
def test_every_implementation_is_put_back(tiny_model, pixels, implementation):
    calls = []

    def theirs(module, *args, **kwargs):
        calls.append(module)
        return transformers.AttentionInterface()["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("theirs", theirs)
    try:
        model = tiny_model(QKViTModel)
        model.config._attn_implementation = implementation
        expected = model(pixels).last_hidden_state
        with record(model) as recording:
            assert torch.equal(model(pixels).last_hidden_state, expected)
        assert model.config._attn_implementation == implementation
        assert recording[2].query.shape == (2, 2, 17, 16)
        assert len(calls) == (6 if implementation == "theirs" else 0)
    finally:
        del AttentionInterface._global_mapping["theirs"]


@pytest.mark.parametrize("context", [record, lambda model: intervene(model, {(0, "key"): Zero()})])
def test_setting_another_implementation_inside_is_kept_and_said(tiny_model, pixels, raises_sentence, context):
    model = tiny_model(QKViTModel)
    with raises_sentence(ValueError, "QKViTModel", "was set inside the context"), context(model):
        model(pixels)
        model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_an_error_is_not_hidden_by_an_implementation_that_was_set_before_it(tiny_model, pixels):
    model = tiny_model(QKViTModel)

    def fails(tensor):
        model.set_attn_implementation("eager")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), record(model, reduce=fails):
        model(pixels)


def test_the_eager_function_is_the_one_that_the_module_names(pixels):
    """Beside Llama 4's vision tower stands the eager function of its text model."""
    if not hasattr(transformers, "Llama4VisionConfig"):
        pytest.skip("this transformers has no Llama 4")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    widths = dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32)
    config = transformers.Llama4VisionConfig(**sizes, **widths, image_size=16, patch_size=4)
    model = transformers.Llama4VisionModel(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        with record(model, tensors=("attention", "value", "output")) as recording:
            assert torch.equal(model(pixels).last_hidden_state, expected)
    torch.testing.assert_close(recording[0].attention @ recording[0].value, recording[0].output)


@pytest.mark.parametrize("masked", [False, True])
def test_flash_attention_is_seen_and_edited(tiny_model, pixels, flash_attention, masked):
    """It loads the kernels that the model's config names, and knows none of the name that is there meanwhile."""
    model = tiny_model(QKViTModel)
    seen = torch.arange(16) < torch.tensor([[16], [9]]) if masked else None
    edits = {(1, "value"): Zero(heads=0), (2, "key"): Apply(lambda key: 2 * key)}
    with torch.no_grad():
        with record(model, tensors=TENSORS) as expected, intervene(model, edits):
            model(pixels, attention_mask=seen)
        model.config._attn_implementation = "flash_attention_2"
        with record(model, tensors=TENSORS) as recording, intervene(model, edits):
            model(pixels, attention_mask=seen)
    assert set(flash_attention) == {"flash_attention_2"}
    real = slice(None) if seen is None else torch.cat([torch.ones(2, 1, dtype=torch.bool), seen], dim=1)
    for layer in range(3):
        for name in ("query", "output", "attention"):
            found, same = (getattr(it[layer], name).transpose(1, 2)[real] for it in (recording, expected))
            torch.testing.assert_close(found, same)
    assert model.config._attn_implementation == "flash_attention_2"


# ---- nesting, models, threads, processes


def test_a_record_shows_what_is_left_after_edits_in_either_order(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    edits = {(1, "key"): Apply(lambda key: 2 * key), (1, "attention"): Zero(key_tokens=0)}
    with torch.no_grad():
        with record(model, 1, ("key", "attention")) as plain:
            model(pixels)
        with intervene(model, edits), record(model, 1, ("key", "attention")) as inner:
            model(pixels)
        with record(model, 1, ("key", "attention")) as outer, intervene(model, edits):
            model(pixels)
    for recording in (inner, outer):
        assert torch.equal(recording[1].key, 2 * plain[1].key)
        assert (recording[1].attention[..., 0] == 0).all()


def test_nested_edits_are_applied_from_the_outside_in(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    double, more = Apply(lambda tensor: 2 * tensor), Apply(lambda tensor: tensor + 1)
    with torch.no_grad(), record(model, 0, "value") as recording:
        model(pixels)
        plain = recording[0].value
        with intervene(model, {(0, "value"): double}), intervene(model, {(0, "value"): more}):
            model(pixels)
        assert torch.equal(recording[0].value, 2 * plain + 1)
        with intervene(model, {(0, "value"): [more, double]}):
            model(pixels)
        assert torch.equal(recording[0].value, 2 * (plain + 1))


def test_two_models_that_share_a_config_do_not_see_each_other(tiny_config, pixels):
    config = tiny_config()
    one, other = QKViTModel(config).eval(), QKViTModel(config).eval()
    assert one.config is other.config
    expected = other(pixels).last_hidden_state
    with record(one) as recording, intervene(one, {(0, "key"): Zero()}):
        assert torch.equal(other(pixels).last_hidden_state, expected)
        assert not recording.calls[0]
        with record(other) as of_other:
            other(pixels)
        assert of_other[0].key.abs().sum() > 0
        one(pixels)


def test_a_copy_made_inside_the_context_works_after_it(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    expected = model(pixels).last_hidden_state
    with record(model):
        other = copy.deepcopy(model)
        model(pixels)
    assert torch.equal(other(pixels).last_hidden_state, expected)
    with record(other) as recording:
        assert torch.equal(other(pixels).last_hidden_state, expected)
    assert recording[0].query.shape == (2, 2, 17, 16)
    assert other.config._attn_implementation == "sdpa"


def test_two_threads_on_one_model_see_their_own_forward_passes_alone(tiny_model):
    model = tiny_model(QKViTModel)
    images = torch.rand(3, 2, 3, 16, 16)
    with torch.no_grad():
        plain = [model(pixels, output_qkv=True) for pixels in images]
        with intervene(model, {(0, "key"): Zero()}):
            edited = model(images[0]).last_hidden_state
    together = threading.Barrier(3)
    failures: list = []

    def run(number: int) -> None:
        try:
            for _ in range(10):
                with torch.no_grad(), ExitStack() as stack:
                    together.wait()
                    if number == 0:
                        stack.enter_context(intervene(model, {(0, "key"): Zero()}))
                    if number < 2:
                        recording = stack.enter_context(record(model, keep="all"))
                    out = model(images[number]).last_hidden_state
                    assert torch.equal(out, edited if number == 0 else plain[number].last_hidden_state)
                    if number < 2:
                        (call,) = recording.calls[0]
                        assert torch.equal(call.query, plain[number].queries[0])
        except BaseException as error:
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert model.config._attn_implementation == "sdpa"


PROCESS = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from qkvit import QKViTConfig, QKViTForImageClassification
from qkvit.analysis import Zero, intervene, record

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = QKViTForImageClassification(QKViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    image_size=16, patch_size=4, num_labels=3, initializer_range=0.2)).eval()
pixels = torch.rand(4, 3, 16, 16)
expected = model(pixels, output_qkv=True)
wrapped = DistributedDataParallel(model)
mine = slice(2 * rank, 2 * rank + 2)
with record(wrapped) as recording:
    logits = wrapped(pixels[mine]).logits
torch.testing.assert_close(logits, expected.logits[mine])
torch.testing.assert_close(recording[1].key, expected.keys[1][mine])
with intervene(wrapped, {(0, "key"): Zero()}), record(wrapped, 0) as recording:
    wrapped(pixels[mine]).logits.sum().backward()
assert (recording[0].key == 0).all()
gradient = model.qkvit.layers[0].attention.k_proj.weight.grad
assert gradient is None or gradient.abs().sum() == 0, "the edit cuts the keys off"
dist.barrier()
dist.destroy_process_group()
print("done", rank)
"""


def test_in_two_processes_each_sees_its_own_images(start_python, tmp_path):
    (tmp_path / "script.py").write_text(PROCESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    script = tmp_path / "script.py"
    started = [start_python(script, environment={**shared, "RANK": str(rank)}) for rank in range(2)]
    for rank, ended in enumerate([end() for end in started]):
        assert f"done {rank}" in ended.stdout, ended.stderr


# ---- ways to run a model


def test_in_inference_mode_tensors_are_recorded_and_edited(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    with torch.no_grad(), record(model, tensors=TENSORS) as plain, intervene(model, EDITS):
        expected = model(pixels).last_hidden_state
    with torch.inference_mode(), record(model, tensors=TENSORS) as recording, intervene(model, EDITS):
        assert torch.equal(model(pixels).last_hidden_state, expected)
    assert torch.equal(recording[2].attention, plain[2].attention)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_output_is_the_same_and_the_record_that_of_the_computation(tiny_model, pixels, dtype):
    model = tiny_model(position_embedding="rope2d", qk_norm=True)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        expected = model(pixels, output_qkv=True, output_attentions=True)
        with record(model, tensors=TENSORS) as recording:
            assert torch.equal(model(pixels).logits, expected.logits)
        with intervene(model, {(0, "attention"): Apply(lambda weights: weights), (1, "scores"): Apply(lambda s: s)}):
            torch.testing.assert_close(model(pixels).logits, expected.logits, rtol=0.1, atol=0.1)
    for layer in range(3):
        assert torch.equal(recording[layer].key, expected.keys[layer])
        assert torch.equal(recording[layer].attention, expected.attentions[layer])
        assert recording[layer].scores.dtype == torch.float32


def test_every_family_computes_the_same_to_the_bit_under_autocast_and_in_bfloat16(family, family_model, pixels):
    model = family_model(family)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(pixels).last_hidden_state
            with record(model, tensors=TENSORS):
                assert torch.equal(model(pixels).last_hidden_state, expected)
        model, pixels = model.bfloat16(), pixels.bfloat16()
        expected = model(pixels).last_hidden_state
        with record(model, tensors=TENSORS) as recording:
            assert torch.equal(model(pixels).last_hidden_state, expected)
    assert recording[0].scores.dtype == torch.float32


def test_a_trainer_and_a_data_parallel_model_are_unwrapped(tiny_model, pixels, tmp_path):
    model = tiny_model()
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = transformers.Trainer(model, arguments)
    for wrapped in (trainer, nn.DataParallel(model)):
        assert unwrapped(wrapped) is model
        with record(wrapped) as recording:
            model(pixels)
        assert recording[2].query.shape == (2, 2, 17, 16)


def test_data_parallel_on_several_devices_is_refused(tiny_model, raises_sentence):
    wrapped = nn.DataParallel(tiny_model())
    wrapped.device_ids = [0, 1]
    with raises_sentence(ValueError, "copies of QKViTForImageClassification"):
        record(wrapped)


def test_a_model_with_the_code_that_came_with_it_is_recorded_and_edited(tiny_model, pixels, tmp_path, code_of_models):
    model = tiny_model(QKViTForImageClassification)
    model.save_pretrained(tmp_path / "model")
    remote_class = get_class_from_dynamic_module("modeling_qkvit.QKViTForImageClassification", str(tmp_path / "model"))
    assert remote_class is not QKViTForImageClassification
    remote = remote_class.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        expected = model(pixels, output_qkv=True)
        for implementation in ("sdpa", "eager"):
            remote.set_attn_implementation(implementation)
            plain = remote(pixels).logits
            with record(remote) as recording:
                assert torch.equal(remote(pixels).logits, plain)
            torch.testing.assert_close(recording[1].key, expected.keys[1])
            with intervene(remote, EDITS):
                found = remote(pixels).logits
            with intervene(model, EDITS):
                torch.testing.assert_close(found, model(pixels).logits)


def test_a_model_that_passes_the_mask_by_its_name_is_seen():
    config = transformers.Blip2VisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = transformers.Blip2VisionModel(config).eval()
    pixels = torch.rand(1, 3, 16, 16)
    plain = model(pixels).last_hidden_state
    with record(model) as recording:
        assert torch.equal(model(pixels).last_hidden_state, plain)
    assert recording[1].query.shape == (1, 2, 5, 8)
