"""How attention fares while a model is trained: entropy, largest score and norms of every layer, and warnings.

Two things are known to come before a run of a ViT diverges. The entropy of attention collapses: each token looks at
one other alone, and softmax passes on no gradient (Zhai et al. 2023, arXiv 2303.06296). And attention scores grow
without bound (Dehghani et al. 2023, arXiv 2302.05442, who met it in large ViTs and cured it by normalising Q and K:
`qk_norm`).

It is measured in a pass of its own over a few images of the batch, without dropout and gradients. That changes no
weight and no random state, so a run ends with the same bits with it and without.

Shapes: B images, H heads, N tokens, D width of a head, C width of the model.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

IMAGES = 8
# A weight of 0.98 and the rest on one other token is an entropy of 0.098 nats, and less entropy needs a greater weight.
# There softmax passes on p (1 - p) = 0.02 of a change of a score, where it can pass on 0.25.
LOWEST_ENTROPY = 0.1
# Rounding q and k to bfloat16 (relative error 2^-9 each) may then move a score by 256 * 2 * 2^-9 = 1, and with it the
# ratio of two weights by e: the map is no longer that of the weights.
HIGHEST_SCORE = 256.0
# How many times longer tokens may be than after the first step. In 200 steps of a small model they became up to 2 times
# as long where it learnt, and 29 to 1,700 times at rates from 10 times too high (docs/training.md).
HIGHEST_GROWTH = 30.0

_LAYER, _WARNING = "attention_health/layer_", "attention_health/warning"
_NAME, _FIELD = "qkvit_health", "_attn_implementation_internal"
_seen: ContextVar[list[dict[str, float]] | None] = ContextVar("qkvit_health_seen", default=None)


@torch.no_grad()
def row_statistics(
    query: torch.Tensor, key: torch.Tensor, scaling: float, bias: torch.Tensor | None = None, block: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact entropy and largest score of each row of softmax(scaling * Q K^T + bias), `block` rows at a time.

    With s_ij the scores and p_ij their softmax: entropy_i = log sum_j exp(s_ij) - sum_j p_ij s_ij, in nats, from 0 (one
    token) to log N (all alike). The largest score is max_j s_ij - mean_j s_ij: softmax does not see what a whole row
    has in common (a bias of the keys, say).

    Args:
        query, key: (B, H, N, D).
        bias: Added to the scores; broadcast to (B, H, N, N).

    Returns:
        Entropy and largest score, (B, H, N) each, computed in float32 at least.

    Example:

    ```python
    >>> entropy, largest = row_statistics(torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2), scaling=1.0)
    >>> entropy[0, 0], largest[0, 0]
    (tensor([1.3863, 1.3863, 1.3863, 1.3863]), tensor([0., 0., 0., 0.]))

    ```
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    entropies, largest = [], []
    with torch.autocast(query.device.type, enabled=False):
        keys = key.to(precise).transpose(-1, -2)
        for start in range(0, query.shape[-2], block):
            rows = slice(start, start + block)
            scores = query[..., rows, :].to(precise) * scaling @ keys
            if bias is not None:
                scores = scores + (bias[..., rows, :] if bias.shape[-2] > 1 else bias).to(precise)
            highest = scores.amax(-1, keepdim=True)
            largest.append((highest - scores.mean(-1, keepdim=True)).squeeze(-1))
            scores = scores - highest  # at most 0: nothing overflows, little is lost to rounding
            weights = scores.softmax(-1)
            entropies.append(scores.logsumexp(-1) - (weights * scores).sum(-1))
    return torch.cat(entropies, -1), torch.cat(largest, -1)


def attention_health(model: nn.Module, pixels: torch.Tensor) -> list[dict[str, float]]:
    """Measure each layer of any transformers model whose attention goes through its `AttentionInterface`.

    Args:
        pixels: (B, 3, height, width).

    Returns:
        For each layer, in their order: `entropy`, the mean over images, heads and tokens, in nats; `entropy_share`, of
        log N; `lowest_head_entropy`; `largest_score`, of all rows; `query_norm` and `key_norm`, mean lengths of a
        head's vectors (neither is a property of the model: W_Q M and W_K M^-T give the same attention, for any M);
        `residual_norm`, the mean length of the tokens (C) that enter the layer. Empty where no attention of the model
        goes through the interface.
    """
    seen: list[dict[str, float]] = []
    was_training = {module: module.training for module in model.modules()}
    token = _seen.set(seen)
    model.eval()
    try:
        with _asked_for(model), as_written(model), torch.no_grad():
            outputs = model(pixel_values=pixels, output_hidden_states=True)
    finally:
        _seen.reset(token)
        for module, training in was_training.items():
            module.training = training
    hidden = getattr(outputs, "hidden_states", None) or ()
    for layer, entering in zip(seen, hidden, strict=False):  # one more than there are layers
        if isinstance(entering, torch.Tensor):
            layer["residual_norm"] = entering.float().flatten(2).norm(dim=-1).mean().item()
    return seen


def problems(layers: list[dict[str, float]], first: list[dict[str, float]] | None = None) -> list[tuple[int, str, str]]:
    """What bodes ill: (layer, kind, sentence).

    Args:
        layers: As `attention_health` measures them.
        first: What it measured after the first step, to see growth.

    Example:

    ```python
    >>> problems([{"entropy": 2.0, "largest_score": 9.0}, {"entropy": 0.02, "largest_score": 40.0}])[0][:2]
    (1, 'entropy')

    ```
    """
    found = []
    for number, layer in enumerate(layers):
        entropy, score = layer["entropy"], layer["largest_score"]
        if not (math.isfinite(entropy) and math.isfinite(score)):
            found.append((number, "finite", f"queries and keys of layer {number} are not finite"))
            continue
        if entropy < LOWEST_ENTROPY:
            found.append(
                (
                    number,
                    "entropy",
                    f"attention of layer {number} collapses: its mean entropy is {entropy:.2g} nats (below"
                    f" {LOWEST_ENTROPY:g}, each token looks at one other alone)",
                )
            )
        if score > HIGHEST_SCORE:
            found.append(
                (
                    number,
                    "score",
                    f"attention scores of layer {number} grow: the largest is {score:.0f} above its row's mean (over"
                    f" {HIGHEST_SCORE:g}, bfloat16 rounds them by 1)",
                )
            )
        growth = layer.get("residual_norm", 0.0) / (first[number].get("residual_norm") or math.inf) if first else 0.0
        if growth > HIGHEST_GROWTH:
            found.append(
                (
                    number,
                    "norm",
                    f"tokens that enter layer {number} grow: they are {growth:.0f} times as long (over"
                    f" {HIGHEST_GROWTH:g}) as after the first step",
                )
            )
    return found


class AttentionHealth(TrainerCallback):
    """Measures attention after the first step and after every `every` steps, logs it, and warns once of each trouble.

    Args:
        trainer: Whose model is looked at, and whose log is written to.
        every: Steps; 0: never.
    """

    def __init__(self, trainer: Any, every: int) -> None:
        self.trainer = trainer
        self.every = every
        self._pixels: torch.Tensor | None = None

    def note(self, pixels: torch.Tensor) -> None:
        """A micro-batch as the model gets it; a few of its images are kept where the step is to be looked at."""
        step = self.trainer.state.global_step + 1
        if self.every and (step == 1 or step % self.every == 0):
            self._pixels = pixels[:IMAGES].detach().clone()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._pixels is None:
            return
        pixels, self._pixels = self._pixels, None
        model = self.trainer.model  # with what FSDP2 has put around it
        layers = attention_health(model, pixels)
        if not layers:
            self.every = 0
            self._tell(f"attention health is off: attention of {type(model).__name__} is out of sight")
            return
        wanted = control.should_log  # logging takes this back: the loss of the step would not be logged
        self.trainer.log(
            {
                f"{_LAYER}{number:02}/{name}": float(f"{value:.5g}")
                for number, layer in enumerate(layers)
                for name, value in layer.items()
            }
        )
        control.should_log = wanted
        found = problems(layers, _measured(state.log_history))
        told = [entry[_WARNING][:2] for entry in state.log_history if _WARNING in entry] if found else []
        for number, kind, sentence in found:
            if [number, kind] not in told:
                text = (
                    f"warning: step {state.global_step}: {sentence}; lower learning_rate, raise the warm-up, or set"
                    " qk_norm=true"
                )
                # Into the log alone, which a checkpoint holds: a run that goes on knows what was told.
                state.log_history.append({"step": state.global_step, _WARNING: [number, kind, text]})
                self._tell(text)

    def summary(self) -> dict[str, Any]:
        """For metrics.json: what was last measured, and the warnings, of the whole run."""
        log = self.trainer.state.log_history
        layers = _measured(reversed(log))
        warnings = [entry[_WARNING][2] for entry in log if _WARNING in entry]
        return {"attention_health": {"layers": layers, "warnings": warnings}} if layers else {}

    def _tell(self, text: str) -> None:
        if self.trainer.args.process_index == 0:
            tqdm.write(text, file=sys.stderr)  # above the progress line


def _measured(log: Iterable[dict[str, Any]]) -> list[dict[str, float]]:
    """What the first such entry of a log says of each layer."""
    layers: dict[str, dict[str, float]] = {}
    entry = next((each for each in log if f"{_LAYER}00/entropy" in each), {})
    for name, value in entry.items():
        if name.startswith(_LAYER):
            layer, _, what = name.removeprefix(_LAYER).partition("/")
            layers.setdefault(layer, {})[what] = value
    return [layers[each] for each in sorted(layers, key=int)]


@contextmanager
def _asked_for(model: nn.Module) -> Iterator[None]:
    """The model's attention modules call `_noting` inside."""
    if _NAME not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(_NAME, _noting)
        AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    configs = {
        id(config): config for module in model.modules() if hasattr(config := getattr(module, "config", None), _FIELD)
    }
    before = {number: getattr(config, _FIELD) for number, config in configs.items()}
    for config in configs.values():
        setattr(config, _FIELD, _NAME)  # of this config alone: the property sets those inside too
    try:
        yield
    finally:
        for number, config in configs.items():
            setattr(config, _FIELD, before[number])


def as_written(model: nn.Module) -> Any:
    """No compiled graphs inside: neither hooks nor another attention function would be called in them."""
    modules = list(model.modules())
    compiled = any(getattr(each, "_compiled_call_impl", None) or hasattr(each, "_orig_mod") for each in modules)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _noting(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    seen = _seen.get()
    if seen is not None and (attention_mask is None or attention_mask.is_floating_point()):
        groups = query.shape[1] // key.shape[1]  # queries that share keys
        keys = key.repeat_interleave(groups, 1) if groups > 1 else key
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        entropy, largest = row_statistics(query, keys, scale, attention_mask)
        seen.append(
            {
                "entropy": entropy.mean().item(),
                "entropy_share": entropy.mean().item() / math.log(max(key.shape[-2], 2)),
                "lowest_head_entropy": entropy.mean((0, 2)).min().item(),
                "largest_score": largest.max().item(),
                "query_norm": query.float().norm(dim=-1).mean().item(),
                "key_norm": key.float().norm(dim=-1).mean().item(),
            }
        )
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)
