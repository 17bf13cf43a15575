"""Compiled models and graphs may bypass the door: they are refused, or raise, and work again afterwards."""

import threading

import pytest
import torch
from torch import nn

from qkvit import QKViTModel
from qkvit.analysis import Zero, intervene, record


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_model_is_refused(tiny_model, raises_sentence):
    model = tiny_model(QKViTModel)
    compiled = torch.compile(model, backend="eager")
    part = tiny_model(QKViTModel)
    part.layers[1].compile(backend="eager")
    for given, name in ((compiled, "QKViTModel"), (nn.DataParallel(compiled), "QKViTModel"), (part, "QKViTLayer")):
        with raises_sentence(ValueError, f"{name} is compiled"):
            record(given)
        with raises_sentence(ValueError, f"{name} is compiled"):
            intervene(given, {(0, "key"): Zero()})


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("fullgraph", "before"), [(False, True), (True, False)])  # compiled before, or inside
def test_the_compiled_twin_of_an_edited_model_raises_and_runs_again_afterwards(tiny_model, pixels, fullgraph, before):
    model = tiny_model(QKViTModel)
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        if before:
            torch.testing.assert_close(compiled(pixels).last_hidden_state, expected)
        for enter in (lambda: record(model), lambda: intervene(model, {(0, "key"): Zero()})):
            with pytest.raises(Exception, match=r"before torch\.compile"), enter():
                compiled(pixels)
        torch.testing.assert_close(compiled(pixels).last_hidden_state, expected)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_the_compiled_twin_runs_in_another_thread_unless_it_must_be_one_graph(tiny_model, pixels, fullgraph):
    model = tiny_model(QKViTModel)
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    found = []

    def elsewhere():
        try:
            with torch.no_grad():
                found.append(compiled(pixels).last_hidden_state)
        except Exception as error:
            found.append(error)

    with torch.no_grad():
        expected = model(pixels).last_hidden_state
    with record(model):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    if fullgraph:
        assert "before torch.compile" in str(found[0])
    else:
        torch.testing.assert_close(found[0], expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_graph_that_bypasses_the_door_raises(tiny_model, pixels, raises_sentence):
    model = tiny_model(QKViTModel)
    traced = torch.jit.trace(model, pixels, strict=False)
    words = "never reached the computation (key of layer 0)"
    with torch.no_grad(), raises_sentence(ValueError, words), intervene(model, {(0, "key"): Zero()}):
        traced(pixels)
