"""timm's vision transformer written down a second time, in a few plain functions on a dictionary of tensors.

It knows nothing of QKViT and needs no timm. Options are those of timm's `VisionTransformer`, where a test uses them.
"""

import math
from typing import Any

import torch
from torch.nn import functional as F

Tensors = dict[str, torch.Tensor]

DEFAULTS: dict[str, Any] = {
    "img_size": (16, 16),
    "patch_size": (4, 4),
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "hidden": 24,
    "num_classes": 3,
    "global_pool": "token",
    "class_token": True,
    "distilled": False,
    "reg_tokens": 0,
    "no_embed_class": False,
    "pos_embed": "learn",
    "pre_norm": False,
    "qkv_bias": True,
    "proj_bias": True,
    "qk_norm": False,
    "layer_scale": False,
    "packed": False,
    "norm": "norm",  # or "fc_norm", or None
    "rms": False,
    "pool_include_prefix": False,
    "act": "gelu",
    "eps": 1e-6,
}


def shapes(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of such a model."""
    o, width = options, options["embed_dim"]
    grid = [side // patch for side, patch in zip(o["img_size"], o["patch_size"], strict=True)]
    prefix = o["class_token"] + o["distilled"] + o["reg_tokens"]
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str, size: int = width) -> None:
        found[f"{name}.weight"] = (size,)
        if not o["rms"]:
            found[f"{name}.bias"] = (size,)

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (out, into)
        if bias:
            found[f"{name}.bias"] = (out,)

    for name, count in (
        ("cls_token", o["class_token"]),
        ("dist_token", o["distilled"]),
        ("reg_token", o["reg_tokens"]),
    ):
        if count:
            found[name] = (1, int(count), width)
    if o["pos_embed"] == "learn":
        found["pos_embed"] = (1, math.prod(grid) + (0 if o["no_embed_class"] else prefix), width)
    found["patch_embed.proj.weight"] = (width, 3, *o["patch_size"])
    if o["pre_norm"]:
        norm("norm_pre")
    else:
        found["patch_embed.proj.bias"] = (width,)
    for index in range(o["depth"]):
        block = f"blocks.{index}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * width, width, o["qkv_bias"])
        if o["qk_norm"]:
            norm(f"{block}.attn.q_norm", width // o["num_heads"])
            norm(f"{block}.attn.k_norm", width // o["num_heads"])
        linear(f"{block}.attn.proj", width, width, o["proj_bias"])
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", o["hidden"] * (2 if o["packed"] else 1), width, o["proj_bias"])
        linear(f"{block}.mlp.fc2", width, o["hidden"], o["proj_bias"])
        if o["layer_scale"]:
            found[f"{block}.ls1.gamma"] = found[f"{block}.ls2.gamma"] = (width,)
    if o["norm"]:
        norm(o["norm"])
    if o["global_pool"] == "map":
        found["attn_pool.latent"] = (1, 1, width)
        linear("attn_pool.q", width, width)
        linear("attn_pool.kv", 2 * width, width)
        linear("attn_pool.proj", width, width)
        norm("attn_pool.norm")
        linear("attn_pool.mlp.fc1", o["hidden"], width)
        linear("attn_pool.mlp.fc2", width, o["hidden"])
    if o["num_classes"]:
        linear("head", o["num_classes"], width)
        if o["distilled"]:
            linear("head_dist", o["num_classes"], width)
    return found


def random_tensors(options: dict[str, Any], seed: int = 0) -> Tensors:
    """Weights of which none is 0 or 1, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1 and shape[0] > 1:
            return 1.5 * noise / math.sqrt(math.prod(shape[1:]))
        return 1 + 0.3 * noise if name.endswith("weight") or "gamma" in name else 0.4 * noise

    return {name: draw(name, shape) for name, shape in shapes(options).items()}


def forward(tensors: Tensors, options: dict[str, Any], pixels: torch.Tensor) -> dict[str, Any]:
    """Hidden states, last hidden state, pooled output, logits; queries, keys, values and maps of every layer."""
    o, t = options, tensors
    hidden = _embedded(t, o, pixels)
    out: dict[str, Any] = {"hidden_states": [hidden], "queries": [], "keys": [], "values": [], "attentions": []}
    for index in range(o["depth"]):
        block = f"blocks.{index}"
        attended, *seen = _attention(t, o, block, _norm(t, o, f"{block}.norm1", hidden))
        for name, tensor in zip(("queries", "keys", "values", "attentions"), seen, strict=True):
            out[name].append(tensor)
        hidden = hidden + attended * t.get(f"{block}.ls1.gamma", torch.tensor(1.0))
        mlp = _mlp(t, o, f"{block}.mlp", _norm(t, o, f"{block}.norm2", hidden), o["packed"])
        hidden = hidden + mlp * t.get(f"{block}.ls2.gamma", torch.tensor(1.0))
        out["hidden_states"].append(hidden)
    if o["norm"] == "norm":
        hidden = _norm(t, o, "norm", hidden)
    out["last_hidden_state"] = hidden
    pooled = _pooled(t, o, hidden)
    out["pooler_output"] = _norm(t, o, "fc_norm", pooled) if o["norm"] == "fc_norm" else pooled
    if o["num_classes"]:
        logits = _linear(t, "head", out["pooler_output"])
        out["logits"] = (logits + _linear(t, "head_dist", hidden[:, 1])) / 2 if o["distilled"] else logits
    return out


def _linear(t: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    y = x @ t[f"{name}.weight"].flatten(1).T
    return y + t[f"{name}.bias"] if f"{name}.bias" in t else y


def _norm(t: Tensors, o: dict[str, Any], name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x if o["rms"] else x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + o["eps"]).sqrt() * t[f"{name}.weight"]
    return scaled if o["rms"] else scaled + t[f"{name}.bias"]


def _act(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if name == "gelu_tanh":
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * torch.sigmoid(x * {"quick_gelu": 1.702, "silu": 1.0}[name])


def _mlp(t: Tensors, o: dict[str, Any], name: str, x: torch.Tensor, packed: bool) -> torch.Tensor:
    up = _linear(t, f"{name}.fc1", x)
    if not packed:
        return _linear(t, f"{name}.fc2", _act(o["act"], up))
    gate, up = up.chunk(2, dim=-1)
    return _linear(t, f"{name}.fc2", _act("silu", gate) * up)


def _embedded(t: Tensors, o: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
    patches = F.conv2d(pixels, t["patch_embed.proj.weight"], t.get("patch_embed.proj.bias"), stride=o["patch_size"])
    grid = patches.shape[-2:]
    patches = patches.flatten(2).transpose(1, 2)
    names = [name for name in ("cls_token", "dist_token", "reg_token") if name in t]
    prefix = [t[name].expand(len(pixels), -1, -1) for name in names]
    if "pos_embed" in t:
        covered = 0 if o["no_embed_class"] else sum(t[name].shape[1] for name in names)
        on_prefix, on_grid = t["pos_embed"][:, :covered], t["pos_embed"][:, covered:]
        trained = [side // patch for side, patch in zip(o["img_size"], o["patch_size"], strict=True)]
        if list(grid) != trained:
            image = on_grid.float().reshape(1, *trained, -1).permute(0, 3, 1, 2)  # timm resamples in float32
            image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
            on_grid = image.flatten(2).transpose(1, 2).to(patches.dtype)
        patches = patches + on_grid
        if covered:
            prefix = [torch.cat(prefix, dim=1) + on_prefix]
    tokens = torch.cat([*prefix, patches], dim=1)
    return _norm(t, o, "norm_pre", tokens) if o["pre_norm"] else tokens


def _attention(t: Tensors, o: dict[str, Any], block: str, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    batch, count, width = x.shape
    qkv = _linear(t, f"{block}.attn.qkv", x).reshape(batch, count, 3, o["num_heads"], -1)
    query, key, value = (qkv[:, :, index].transpose(1, 2) for index in range(3))
    if o["qk_norm"]:
        query, key = _norm(t, o, f"{block}.attn.q_norm", query), _norm(t, o, f"{block}.attn.k_norm", key)
    weights = (query @ key.transpose(-1, -2) / math.sqrt(width // o["num_heads"])).softmax(-1)
    attended = (weights @ value).transpose(1, 2).reshape(batch, count, width)
    return _linear(t, f"{block}.attn.proj", attended), query, key, value, weights


def _pooled(t: Tensors, o: dict[str, Any], hidden: torch.Tensor) -> torch.Tensor:
    if o["global_pool"] == "token":
        return hidden[:, 0]
    prefix = 0 if o["pool_include_prefix"] else o["class_token"] + o["distilled"] + o["reg_tokens"]
    tokens = hidden[:, prefix:]
    if o["global_pool"] == "avg":
        return tokens.mean(dim=1)
    batch, count, width = tokens.shape
    heads = (o["num_heads"], width // o["num_heads"])
    query = _linear(t, "attn_pool.q", t["attn_pool.latent"]).reshape(1, 1, *heads).transpose(1, 2)
    key, value = (
        part.reshape(batch, count, *heads).transpose(1, 2) for part in _linear(t, "attn_pool.kv", tokens).chunk(2, -1)
    )
    weights = (query @ key.transpose(-1, -2) / math.sqrt(heads[1])).softmax(-1)
    pooled = _linear(t, "attn_pool.proj", (weights @ value).transpose(1, 2).reshape(batch, width))
    return pooled + _mlp(t, o, "attn_pool.mlp", _norm(t, o, "attn_pool.norm", pooled), False)
