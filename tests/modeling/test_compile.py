"""torch.compile(fullgraph=True): one graph for every option, with the output of the eager model."""

import pytest
import torch

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel

# `test_compile_options.py` has every value of every field, with a backend that compiles nothing.
OPTIONS = {
    "plain": {},
    "rotary, QK-norm, registers": {"position_embedding": "rope2d", "qk_norm": True, "num_register_tokens": 2},
    "sine, RMSNorm, SwiGLU, class and mean": {
        "position_embedding": "sincos2d",
        "norm_type": "rmsnorm",
        "mlp_type": "swiglu",
        "pooling": "class_mean",
    },
    "attention pooling, no positions": {"pooling": "attention", "use_class_token": False, "position_embedding": "none"},
}
ASKED = {"output_attentions": [0, -1], "output_qkv": True}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def one_graph(model: torch.nn.Module, backend: str = "aot_eager"):
    return torch.compile(model, fullgraph=True, backend=backend)


def assert_same(found, expected) -> None:
    assert list(found.keys()) == list(expected.keys())
    for name in expected:
        pairs = [(found[name], expected[name])]
        if isinstance(expected[name], tuple):
            pairs = list(zip(found[name], expected[name], strict=True))
        for first, second in pairs:
            assert (first is None) == (second is None)
            if second is not None:
                torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_models_compile_to_one_graph(tiny_model, pixels, options):
    model = tiny_model(num_hidden_layers=2, **OPTIONS[options])
    with torch.no_grad():
        assert_same(one_graph(model)(pixels, **ASKED), model(pixels, **ASKED))


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_other_implementations_compile_to_one_graph(tiny_model, pixels, implementation):
    model = tiny_model(num_hidden_layers=2)
    with torch.no_grad():
        expected = model(pixels, **ASKED)
        model.set_attn_implementation(implementation)
        assert_same(one_graph(model)(pixels, **ASKED), expected)


def test_antialiased_positions_compile_to_one_graph(tiny_model):
    model, pixels = tiny_model(num_hidden_layers=2, position_antialias=True), torch.rand(2, 3, 8, 24)
    with torch.no_grad():
        assert_same(one_graph(model)(pixels), model(pixels))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_mask_and_another_size_compile_to_one_graph(tiny_model, implementation):
    model = tiny_model(num_hidden_layers=2)
    model.set_attn_implementation(implementation)
    pixels, mask = torch.rand(2, 3, 8, 24), torch.arange(12) < torch.tensor([[7], [12]])
    with torch.no_grad():
        assert_same(one_graph(model)(pixels, attention_mask=mask), model(pixels, attention_mask=mask))


@pytest.mark.parametrize("model_class", [QKViTModel, QKViTBackbone])
def test_base_model_and_backbone_compile_to_one_graph(tiny_model, pixels, model_class):
    model = tiny_model(model_class, num_hidden_layers=2)
    with torch.no_grad():
        # The first call that asks for hidden states installs transformers' hooks, which takes a lock: not compiled.
        expected = model(pixels, output_hidden_states=True, **ASKED)
        assert_same(one_graph(model)(pixels, output_hidden_states=True, **ASKED), expected)


def by_name(out) -> list:
    return [out[name] for name in out.keys()]  # noqa: SIM118


# What a caller may do with an output within the graph.
USES = {
    "return_dict=False": lambda model, pixels: model(pixels, return_dict=False, output_qkv=True),
    "an index": lambda model, pixels: model(pixels)[0],
    "to_tuple()": lambda model, pixels: model(pixels, output_qkv=True).to_tuple(),
    "keys()": lambda model, pixels: by_name(model(pixels)),
    "keys() beside keys": lambda model, pixels: by_name(model(pixels, output_qkv=True)),
    "values()": lambda model, pixels: list(model(pixels).values()),
    "keys and values": lambda model, pixels: [*(out := model(pixels, output_qkv=True)).keys, *out.values],
}


@pytest.mark.parametrize("use", USES)
def test_an_output_is_taken_apart_within_the_graph(tiny_model, pixels, use):
    model = tiny_model(num_hidden_layers=1)
    with torch.no_grad():
        found = torch.compile(USES[use], fullgraph=True, backend="eager")(model, pixels)
        torch.testing.assert_close(found, USES[use](model, pixels))


# transformers' variable that says what is captured, which it sets back.
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
def test_strict_export_takes_an_output_apart(tiny_model, pixels):
    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.model(pixels)[0]

    model = tiny_model(num_hidden_layers=1)
    exported = torch.export.export(Logits(model), (pixels,), strict=True).module()
    torch.testing.assert_close(exported(pixels), model(pixels).logits)


def test_masked_image_modeling_compiles_to_one_graph(tiny_model, pixels):
    model = tiny_model(QKViTForMaskedImageModeling, num_hidden_layers=2)
    masked = torch.rand(2, 16) < 0.5
    with torch.no_grad():
        assert_same(one_graph(model)(pixels, bool_masked_pos=masked), model(pixels, bool_masked_pos=masked))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_compiles_to_one_graph_with_the_same_gradients(tiny_model, pixels, checkpointing):
    model = tiny_model(QKViTForImageClassification, num_hidden_layers=2).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    labels = torch.tensor([1, 3])
    gradients = []
    for runner in (model, one_graph(model)):
        model.zero_grad()
        runner(pixels, labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_training_with_every_kind_of_dropout_compiles_to_one_graph(tiny_model, pixels):
    model = tiny_model(
        num_hidden_layers=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        drop_path_rate=0.2,
        patch_drop_rate=0.25,
        position_embedding="rope2d",
    ).train()
    loss = one_graph(model)(pixels, labels=torch.tensor([1, 3]), **ASKED).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bad_input_is_refused_in_a_compiled_model_too(tiny_model):
    compiled = torch.compile(tiny_model(num_hidden_layers=1), backend="eager")
    with torch.no_grad(), pytest.raises(Exception, match="4 channels"):
        compiled(torch.rand(1, 4, 16, 16))


@pytest.mark.slow
def test_the_default_compiler_gives_the_output_of_the_eager_model(tiny_model, pixels):
    model = tiny_model(num_hidden_layers=1, position_embedding="rope2d", qk_norm=True, num_register_tokens=2)
    with torch.no_grad():
        asked = {"output_attentions": True, "output_qkv": True}
        assert_same(one_graph(model, "inductor")(pixels, **asked), model(pixels, **asked))
