"""What is demanded of every family: a `Case` is a model of theirs with weights of which none is 0 or 1.

A test file makes its cases and hands them to the checks below; `report.py` prints the largest differences of all cases.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from qkvit.modeling.conversion import convert, export
from qkvit.modeling.conversion.checkpoint_reader import ModelInMemory
from qkvit.modeling.conversion.importing import Conversion

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
MLP = {"intermediate_size": 24}
KEY_BIAS = r"(k_proj|key)\.bias$"  # adds the same to every score of a row, which softmax removes
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One model of theirs.

    Attributes:
        make: Their model, with any weights.
        sizes: Image sizes (height, width) at which both are compared; the first is used where one is enough.
        masked: Hide some patches, so that the mask token matters.
        still: Patterns of the tensors of theirs that move no output.
        run: Their model's outputs, where they do not come by calling it.
    """

    family: str
    option: str
    make: Callable[[], nn.Module]
    sizes: tuple[tuple[int, int], ...] = ((16, 16), (24, 24), (16, 28))
    masked: bool = False
    still: tuple[str, ...] = (KEY_BIAS,)
    run: Callable[[nn.Module, torch.Tensor, torch.Tensor | None], Outputs] = field(default=None)  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.family}-{self.option}"

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Their model, drawn so that every parameter matters."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return randomised(self.make()).to(dtype).eval()

    def theirs(self, model: nn.Module, pixels: torch.Tensor) -> Outputs:
        """Outputs of their model, by name."""
        with torch.no_grad():
            return (self.run or called)(model, pixels, self.mask(pixels))

    def ours(self, model: nn.Module, pixels: torch.Tensor) -> Outputs:
        """Outputs of our model, by name."""
        mask = self.mask(pixels)
        with torch.no_grad():
            out = model(pixels, output_hidden_states=True, **({} if mask is None else {"bool_masked_pos": mask}))
        return flat(out)

    def mask(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """The same patches of every image, if the case hides some."""
        if not self.masked:
            return None
        count = pixels.shape[-2] * pixels.shape[-1] // 16
        return (torch.arange(count) % 3 == 0).expand(len(pixels), -1)


def randomised(model: nn.Module) -> nn.Module:
    """Weights near those of a trained model, none of them 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1 and parameter.shape[0] > 1:
                parameter.copy_(1.5 * noise / (parameter.numel() / parameter.shape[0]) ** 0.5)
            elif parameter.ndim == 1 and (parameter == 1).all():
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.4 * noise)
    return model


def images(height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Two images."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


def called(model: nn.Module, pixels: torch.Tensor, mask: torch.Tensor | None, **arguments) -> Outputs:
    """Outputs of a model of transformers."""
    known = inspect.signature(model.forward).parameters
    size = model.config.image_size
    trained = (size, size) if isinstance(size, int) else tuple(size)
    if "interpolate_pos_encoding" in known and tuple(pixels.shape[-2:]) != trained:
        arguments["interpolate_pos_encoding"] = True
    if mask is not None:
        arguments["bool_masked_pos"] = mask
    return flat(model(pixels, output_hidden_states=True, **arguments))


def flat(out) -> Outputs:
    """Name -> tensor, for the outputs that are compared."""
    names = ("last_hidden_state", "pooler_output", "logits", "distillation_logits", "reconstruction")
    named = {name: out[name] for name in names if out.get(name) is not None}
    return {**named, **{f"hidden_states[{index}]": state for index, state in enumerate(out["hidden_states"])}}


def difference(ours: Outputs, theirs: Outputs) -> float:
    """The largest difference of any common output, relative to the largest entry of theirs."""
    common = ours.keys() & theirs.keys()
    assert {name for name in theirs if name.startswith("hidden_states")} <= common
    assert len(common) > len([name for name in common if name.startswith("hidden_states")])
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in common)


# ---- the checks


def check_outputs(case: Case, dtype: torch.dtype) -> float:
    """Hidden states of every layer, pooled output, logits at every size; the largest difference."""
    theirs = case.model(dtype)
    ours = convert(theirs)
    largest = 0.0
    for height, width in case.sizes:
        pixels = images(height, width, dtype)
        found = difference(case.ours(ours, pixels), case.theirs(theirs, pixels))
        assert found < LIMITS[dtype], f"{case} differs by {found:.1e} at {height} x {width}"
        largest = max(largest, found)
    return largest


def check_attention(case: Case) -> float:
    """Q, K, V of the computation, and the maps of their own eager attention; the largest difference of Q, K, V."""
    theirs, pixels = case.model(), images(*case.sizes[0])
    ours = convert(theirs)
    mask = case.mask(pixels)
    with torch.no_grad():
        out = ours(
            pixels,
            output_qkv=True,
            output_attentions=True,
            **({} if mask is None else {"bool_masked_pos": mask}),
        )
    with recorded(theirs) as triples:
        case.theirs(theirs, pixels)
    with eager(theirs) as maps:
        case.theirs(theirs, pixels)
    largest = 0.0
    for layer, triple in enumerate(triples):
        for own, other in zip((out.queries[layer], out.keys[layer], out.values[layer]), triple, strict=True):
            largest = max(largest, float((own - other).abs().max() / other.abs().max()))
    assert len(triples) == len(out.queries) == len(maps)
    assert largest < LIMITS[torch.float64]
    for own, other in zip(out.attentions, maps, strict=True):
        assert own.shape == other.shape
        # Some of their eager attentions take the softmax in float32, whatever the precision of the model.
        assert float((own - other).abs().max()) < 1e-6
    return largest


def check_every_tensor(case: Case) -> None:
    """Perturb each tensor of theirs: our outputs move as theirs do, which do unless mathematics says they cannot."""
    theirs, pixels = case.model(), images(*case.sizes[0])
    before = case.theirs(theirs, pixels)
    conversion = Conversion.plan_for(ModelInMemory(theirs))  # made of names and shapes, whatever the numbers are
    moved: dict[str, bool] = {}
    for name, tensor in theirs.state_dict().items():
        if not tensor.is_floating_point():
            continue
        original = tensor.clone()
        with torch.no_grad():
            tensor.add_(
                torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2), dtype=tensor.dtype), alpha=0.1
            )
        after = case.theirs(theirs, pixels)
        found = difference(case.ours(conversion.model(progress=False), pixels), after)
        assert found < LIMITS[torch.float64], f"{case}: with another {name}, the outputs differ by {found:.1e}"
        moved[name] = difference(after, before) > 1e-9
        tensor.copy_(original)
    still = {name for name, it_moved in moved.items() if not it_moved}
    expected = {name for name in moved if any(re.search(pattern, name) for pattern in case.still)}
    assert still == expected


def check_round_trip(case: Case, folder: Path, *, dtype: torch.dtype = torch.float32, **saving) -> None:
    """Every tensor of the source comes back, equal to the bit, with its name, shape and data type."""
    source, saved, out = folder / "source", folder / "saved", folder / "out"
    theirs = case.model(dtype)
    theirs.save_pretrained(source, **saving)
    ours = convert(source)
    for name, tensor in convert(theirs).state_dict().items():  # whose outputs are those of the source
        assert torch.equal(bits(ours.state_dict()[name]), bits(tensor)), name
    assert_same_tensors(source, export(ours, out))
    ours.save_pretrained(saved)
    assert_same_tensors(source, export(type(ours).from_pretrained(saved), folder / "again"))


def assert_same_tensors(left: Path, right: Path, *, apart: str | None = None) -> None:
    """Two folders hold the same tensors to the bit; `apart` is a pattern of those that only `left` has."""
    expected, found = (load_file(folder / "model.safetensors") for folder in (left, right))
    expected = {name: tensor for name, tensor in expected.items() if apart is None or not re.search(apart, name)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, so that NaN equals NaN and -0 does not equal 0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


CHECKS: dict[str, Callable[[Case, Path], object]] = {
    "outputs in float64": lambda case, folder: check_outputs(case, torch.float64),
    "outputs in float32": lambda case, folder: check_outputs(case, torch.float32),
    "queries, keys, values and maps": lambda case, folder: check_attention(case),
    "every tensor": lambda case, folder: check_every_tensor(case),
    "back to the bit": lambda case, folder: check_round_trip(case, folder),
    "back to the bit, bfloat16, transformers 5's names": lambda case, folder: check_round_trip(
        case, folder, dtype=torch.bfloat16, save_original_format=False
    ),
}


# ---- their attention


_names = (f"recording_{index}" for index in itertools.count())


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """Q, K and V of every call of a model's attention."""
    name, calls = next(_names), []

    def attention(module, query, key, value, attention_mask, **kwargs):
        calls.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    with implementation(model, name):
        yield calls


@contextmanager
def eager(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The maps that their own eager attention gives, one for each call."""
    maps: list[torch.Tensor] = []

    def keep(module, arguments, output):
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], torch.Tensor):
            maps.append(output[1])

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if hasattr(module, "scaling") or hasattr(module, "scale")
    ]
    try:
        with implementation(model, "eager"):
            yield maps
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Their model with another implementation of attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
