"""What the tests share: tiny models, seeded; processes that begin quickly; the quick settings of hypothesis."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import multiprocessing.forkserver
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:  # see pytest_configure
    import torch

    import qkvit

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")  # torch.compile need not try three kinds of vectors first
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # nor start processes for so few kernels
if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):
    # Triton kernels run on the CPU, interpreted. Triton reads this when it is imported, as it is by transformers.
    os.environ.setdefault("TRITON_INTERPRET", "1")

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


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it hands the tests out and runs none: all would wait until it has imported torch
    import torch
    import transformers

    torch.set_num_threads(1)  # the tensors are tiny, and the last bit of a sum may depend on how many threads share it
    transformers.utils.logging.disable_progress_bar()


def set_aside_what_lives_on() -> None:
    """What the imports made lives as long as the process: no collection of garbage has to look at it."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    set_aside_what_lives_on()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """A file of tests, too, leaves behind caches, and modules that it was the first to import."""
    yield
    if nextitem is None or nextitem.path != item.path:
        set_aside_what_lives_on()


def seed_torch(seed: int) -> None:
    """As `torch.manual_seed`, which on a machine without a GPU writes down its caller's stack for each kind of GPU."""
    import torch

    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seed_torch(0)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., qkvit.QKViTConfig]:
    """`tiny_config(**fields)`: 3 layers, 2 heads, width 32, 4 x 4 patches."""

    import qkvit

    def make(**fields) -> qkvit.QKViTConfig:
        return qkvit.QKViTConfig(**{**TINY, **fields})

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> Callable[..., torch.nn.Module]:
    """`tiny_model(model_class, **fields)`, in eval mode: the same weights for the same arguments, none of them 0.

    Biases, LayerScale and the mask token are given random values: a test would not see what it forgets of them.
    """

    import torch

    import qkvit

    made = {}

    def make(model_class=qkvit.QKViTForImageClassification, *, seed: int = 0, **fields) -> torch.nn.Module:
        arguments = repr((model_class, seed, sorted(fields.items())))
        if arguments not in made:
            with torch.random.fork_rng():
                seed_torch(seed)
                model = model_class(tiny_config(**fields))
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.std() == 0 or parameter.numel() == 1:
                            parameter.add_(torch.randn_like(parameter), alpha=0.3)
            made[arguments] = model.eval()
        return copy.deepcopy(made[arguments])  # a third of the time

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two images of 16 x 16."""
    import torch

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
def code_of_models(tmp_path, monkeypatch) -> Iterator[None]:
    """Code that comes with a model is copied into a folder of this test and imported from there, and then forgotten."""

    def imported() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]

    kept = {name: sys.modules.pop(name) for name in imported()}
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code of models"))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "transformers_modules").is_dir()])
    yield
    for name in imported():
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def uncompiled_flex() -> Iterator[None]:
    """FlexAttention without its compilation of ten seconds: the same mathematics, unfused."""
    import torch

    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


@pytest.fixture
def flash_attention(monkeypatch) -> list[str]:
    """A stand-in for the package flash-attn, on any device: which implementations were loaded, by their names.

    transformers' own part is what runs: how it takes padding out of a batch, and which functions it calls with what.
    """
    import torch
    from transformers import modeling_flash_attention_utils as utils

    loaded = []

    def attend(query, key, value, scale):  # (B, N, H, D)
        scores = scale * torch.einsum("bnhd,bmhd->bhnm", query, key)
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), value)

    def whole(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert not causal
        return attend(q, k, v, softmax_scale)

    def pieces(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        assert not causal
        ends = cu_seqlens_q.tolist()
        parts = [slice(*pair) for pair in itertools.pairwise(ends)]
        return torch.cat([attend(q[None, part], k[None, part], v[None, part], softmax_scale)[0] for part in parts])

    def load(implementation, *args, **kwargs):
        loaded.append(implementation)
        return whole, pieces, None, utils._pad_input, utils._unpad_input

    monkeypatch.setattr(utils, "_lazy_imports", load)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    return loaded


# Two thirds of the time that a process takes to import a model. Nothing here looks at the Hub or its environment.
PRELOADED = ["torch._dynamo", "torch.distributed.tensor", "torch.distributed._composable.fsdp", "scipy.optimize"]
PRELOADED += ["sklearn.linear_model", "sklearn.metrics", "pandas", "pyarrow.dataset", "aiohttp"]

# Makes of a process with those imported what `python ARGUMENTS` is.
BEGIN = """
import atexit, os, runpy, sys, threading

os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
for number, path in ((1, output), (2, errors)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
way, *rest = arguments
# The path is that of the tests, to which they add.
sys.path[:] = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
try:
    if way in ("-c", "-m"):
        sys.path.insert(0, "")
        sys.argv = [way, *rest[1:]] if way == "-c" else rest
        if way == "-c":
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(way))
        sys.argv = arguments
        runpy.run_path(way, run_name="__main__")
finally:
    threading._shutdown()
    atexit._run_exitfuncs()
"""


@pytest.fixture(scope="session")
def start_python(tmp_path_factory) -> Callable[..., Callable[[], subprocess.CompletedProcess[str]]]:
    """`start_python("-m", "qkvit", ..., folder=here, environment={...})()`: a Python process, and what came of it.

    As `subprocess.run([sys.executable, ...], capture_output=True)`, where torch is imported already. Called a second
    time, it starts a second process before one waits for the first.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    kept, numbers = tmp_path_factory.mktemp("processes"), itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is imported
        multiprocessing.forkserver.ensure_running()

    def start(
        *arguments: object, folder: Path | None = None, environment: dict[str, str] | None = None, seconds: float = 300
    ) -> Callable[[], subprocess.CompletedProcess[str]]:
        number = next(numbers)
        files = {"output": kept / f"{number}.out", "errors": kept / f"{number}.err"}
        words = [str(argument) for argument in arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if environment is None else environment
        begin = {"arguments": words, "folder": folder or Path.cwd(), "environment": environment, **files}
        process = server.Process(target=exec, args=(BEGIN, begin))
        process.start()

        def ended() -> subprocess.CompletedProcess[str]:
            process.join(seconds)
            output, errors = (path.read_text(encoding="utf-8") for path in files.values())
            if process.exitcode is None:
                process.kill()
                raise subprocess.TimeoutExpired(words, seconds, output, errors)
            return subprocess.CompletedProcess(words, process.exitcode, output, errors)

        return ended

    return start
