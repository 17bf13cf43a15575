"""What the tests share: tiny models, seeded, and the quick settings of hypothesis."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched

import pytest
import torch

if not torch.cuda.is_available():
    # Triton kernels run on the CPU, interpreted. Triton reads this when it is imported, which transformers' models do.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import transformers
from hypothesis import HealthCheck, settings

import qkvit

torch.set_num_threads(1)  # the tensors are tiny, and the last bit of a sum may depend on how many threads share it
transformers.utils.logging.disable_progress_bar()

# The same examples in every run; no file is written.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
    "initializer_range": 0.2,  # at 0.02 the maps of so small a model are all but uniform
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., qkvit.QKViTConfig]:
    """`tiny_config(**fields)`: 3 layers, 2 heads, width 32, 4 x 4 patches."""

    def make(**fields) -> qkvit.QKViTConfig:
        return qkvit.QKViTConfig(**{**TINY, **fields})

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> Callable[..., torch.nn.Module]:
    """`tiny_model(model_class, **fields)`, in eval mode: the same weights for the same arguments, none of them 0.

    Biases, LayerScale and the mask token are given random values: a test would not see what it forgets of them.
    """

    def make(model_class=qkvit.QKViTForImageClassification, *, seed: int = 0, **fields) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(tiny_config(**fields))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.std() == 0 or parameter.numel() == 1:
                        parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return model.eval()

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two images of 16 x 16."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def raises_sentence() -> Callable[..., contextlib.AbstractContextManager]:
    """`with raises_sentence(ValueError, "field=3"):` an error of one line that holds those words and a way out."""

    @contextlib.contextmanager
    def check(error_class: type[Exception], *words: str) -> Iterator[pytest.ExceptionInfo]:
        with pytest.raises(error_class) as caught:
            yield caught
        message = str(caught.value)
        assert "\n" not in message
        assert not message.endswith(".")
        assert ". " not in message, "one sentence"
        assert ";" in message or ":" in message, "no way out is named"
        for word in words:
            assert word in message

    return check


@pytest.fixture
def uncompiled_flex() -> Iterator[None]:
    """FlexAttention without its compilation of ten seconds: the same mathematics, unfused."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield
