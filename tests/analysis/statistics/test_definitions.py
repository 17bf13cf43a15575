"""What each number means, written out token by token in numbers of 60 digits; every backend gives it."""

import itertools

import mpmath
import pytest
import torch

from qkvit.analysis import TokenLayout, attention_statistics

LAYOUT = TokenLayout(grid=(2, 3), has_class_token=True, num_register_tokens=2)
TOKENS = range(LAYOUT.num_tokens)
PATCHES = TOKENS[LAYOUT.num_prefix :]
PLACES = dict(zip(PATCHES, itertools.product(range(2), range(3)), strict=True))


@pytest.fixture(autouse=True)
def _many_digits():
    with mpmath.workdps(60):
        yield


def given_scores(scores):
    """Query and key of one head whose product is exactly these scores: the queries are unit vectors."""
    return torch.eye(len(scores))[None, None], scores.T.contiguous()[None, None]


def map_of(scores):
    rows = []
    for row in scores.tolist():
        powers = [mpmath.exp(score) for score in row]
        rows.append([power / mpmath.fsum(powers) for power in powers])
    return rows


def by_hand(weights):
    """Name -> numbers for each token, of one map given as rows."""
    found = {name: [] for name in ("entropy", "maximum", "on_neighbours", "on_self", "distance", "centre", "spread")}
    for i, row in enumerate(weights):
        found["entropy"].append(-mpmath.fsum(p * mpmath.log(p) for p in row))
        found["maximum"].append(max(row))
        found["on_self"].append(row[i])
        on_patches = mpmath.fsum(row[j] for j in PATCHES)
        centre = [mpmath.fsum(row[j] * PLACES[j][axis] for j in PATCHES) / on_patches for axis in range(2)]
        variance = mpmath.fsum(
            row[j] * sum((PLACES[j][axis] - centre[axis]) ** 2 for axis in range(2)) for j in PATCHES
        )
        found["centre"].append(centre)
        found["spread"].append(mpmath.sqrt(variance / on_patches))
        if i not in PATCHES:
            found["distance"].append(mpmath.nan)
            found["on_neighbours"].append(mpmath.nan)
            continue
        steps = {j: [abs(PLACES[i][axis] - PLACES[j][axis]) for axis in range(2)] for j in PATCHES}
        found["distance"].append(mpmath.fsum(row[j] * mpmath.hypot(*steps[j]) for j in PATCHES) / on_patches)
        found["on_neighbours"].append(mpmath.fsum(row[j] for j in PATCHES if max(steps[j]) == 1))
    found["on_class_token"] = [row[0] for row in weights]
    found["on_registers"] = [row[1] + row[2] for row in weights]
    found["on_prefix"] = [row[0] + row[1] + row[2] for row in weights]
    found["on_patches"] = [mpmath.fsum(row[j] for j in PATCHES) for row in weights]
    found["received"] = [mpmath.fsum(row[j] for row in weights) for j in TOKENS]
    return {
        name: torch.tensor([numbers(value) for value in values], dtype=torch.float64) for name, values in found.items()
    }


def numbers(value):
    return [float(part) for part in value] if isinstance(value, list) else float(value)


SCORES = {
    "ordinary": torch.randn(9, 9, generator=torch.Generator().manual_seed(0)),
    "uniform": torch.zeros(9, 9),
    "one token each, logits of 80": 160 * torch.eye(9).roll(1, dims=1) - 80,
    "a patch each": 30 * torch.eye(9).roll(4, dims=0),
    "all on the class token": torch.randn(9, 9, generator=torch.Generator().manual_seed(1)) + 60 * torch.eye(9)[0],
    "all on a register": torch.randn(9, 9, generator=torch.Generator().manual_seed(2)) + 40 * torch.eye(9)[2],
    "two alike": 50 * (torch.eye(9)[0] + torch.eye(9)[5]).expand(9, 9),
    "equal but far": torch.full((9, 9), 80.0),
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_every_number_is_its_formula(scores, backend, device, assert_as_exact):
    query, key = (tensor.to(device) for tensor in given_scores(scores))
    s = attention_statistics(query, key, LAYOUT, scaling=1.0, backend=backend)
    exact = by_hand(map_of(scores))
    assert_as_exact({name: getattr(s, name)[0, 0] for name in exact}, exact)
    assert scores.gather(-1, s.argmaximum[0, 0].cpu()[:, None]).flatten().tolist() == scores.amax(dim=-1).tolist()


def test_a_row_with_all_its_weight_in_one_place_keeps_the_digits_of_its_entropy(backend, device):
    """There 1 + x is 1 for what the other places have, in numbers of 16 digits too."""
    scores = torch.zeros(LAYOUT.num_tokens, LAYOUT.num_tokens)
    for row, gap in enumerate([10.0, 20.0, 30.0, 35.0, 37.0, 40.0, 50.0, 60.0, 80.0]):
        scores[row, PATCHES[row % len(PATCHES)]] = gap
    scores[:, : LAYOUT.num_prefix] = -100.0
    query, key = (tensor.to(device) for tensor in given_scores(scores))
    s = attention_statistics(query, key, LAYOUT, scaling=1.0, statistics="entropy", backend=backend)
    exact = torch.tensor([float(h) for h in by_hand(map_of(scores))["entropy"]], dtype=torch.float64)
    torch.testing.assert_close(s.entropy[0, 0].double().cpu(), exact, rtol=1e-4, atol=0)


def test_sinks_are_the_heaviest_hundredth_of_the_tokens(backend, device):
    layout = TokenLayout(grid=(11, 11))  # 121 tokens: a hundredth is two of them
    scores = torch.zeros(121, 121)
    scores[:, 7], scores[:, 70] = 3.0, 2.0
    query, key = (tensor.to(device) for tensor in given_scores(scores))
    s = attention_statistics(query, key, layout, scaling=1.0, statistics="received", backend=backend)
    exact = (mpmath.e**3 + mpmath.e**2) / (mpmath.e**3 + mpmath.e**2 + 119)
    assert s.sink_share.item() == pytest.approx(float(exact), rel=1e-5)


def test_similar_heads_are_the_cosine_of_their_maps(backend, device):
    layout, scores = TokenLayout(grid=(2, 2)), torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    query, key = torch.eye(4).expand(1, 3, 4, 4), scores.transpose(1, 2)[None]
    s = attention_statistics(query.to(device), key.to(device), layout, scaling=1.0, backend=backend)
    flat = scores.double().softmax(dim=-1).flatten(1)
    exact = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    torch.testing.assert_close(s.head_similarity[0].double().cpu(), exact, rtol=1e-5, atol=0)


def test_values_weigh_what_arrives(random_attention, backend, device, assert_as_exact):
    """Every part p_ij v_j W of the output is built, as nobody should."""
    inputs = random_attention(LAYOUT, batch=1, heads=2)
    tensors = (inputs.query, inputs.key, inputs.value, inputs.output_projection)
    query, key, value, projection = (tensor.to(device) for tensor in tensors)
    s = attention_statistics(
        query,
        key,
        LAYOUT,
        scaling=inputs.scaling,
        value=value,
        output_projection=projection,
        statistics="values",
        backend=backend,
    )
    weights = (query.double() @ key.double().transpose(-1, -2) * inputs.scaling).softmax(dim=-1).cpu()
    blocks = inputs.output_projection.double().view(20, 2, 8).permute(1, 2, 0)  # (H, D, C)
    parts = weights[..., None] * (inputs.value.double() @ blocks)[:, :, None]  # (B, H, N, N, C)
    sizes = parts.norm(dim=-1)
    shares = sizes / sizes.sum(dim=-1, keepdim=True)
    outputs = parts.sum(dim=3)  # (B, H, N, C)
    along = (outputs * outputs.sum(dim=1, keepdim=True)).sum(dim=(2, 3))
    exact = {
        "value_norm": (inputs.value.double() @ blocks).norm(dim=-1),
        "weighted_sum": sizes.sum(dim=-1),
        "weighted_on_class_token": shares[..., 0],
        "weighted_on_registers": shares[..., 1:3].sum(dim=-1),
        "weighted_on_prefix": shares[..., :3].sum(dim=-1),
        "weighted_on_patches": shares[..., 3:].sum(dim=-1),
        "weighted_on_self": shares.diagonal(dim1=-2, dim2=-1),
        "weighted_received": shares.sum(dim=-2),
        "output_norm": outputs.norm(dim=-1),
        "output_share": along / along.sum(dim=-1, keepdim=True),
    }
    assert_as_exact({name: getattr(s, name) for name in exact}, exact)


def test_without_a_projection_the_values_are_weighed_themselves(random_attention, backend, device, assert_as_exact):
    inputs = random_attention(LAYOUT, heads=2)
    tensors = [tensor.to(device) for tensor in (inputs.query, inputs.key, inputs.value)]
    identity = torch.eye(16, device=device)
    given = {"scaling": inputs.scaling, "value": tensors[2], "statistics": "values", "backend": backend}
    without = attention_statistics(*tensors[:2], LAYOUT, **given)
    with_identity = attention_statistics(*tensors[:2], LAYOUT, output_projection=identity, **given)
    assert_as_exact(dict(without.items()), dict(with_identity.items()))


def test_the_share_of_the_output_is_that_of_the_projected_output(random_attention, backend, device):
    """A head whose part is minus another's, but half as long, has a negative share."""
    inputs = random_attention(LAYOUT, heads=1)
    query, key, value = (torch.cat([it, it], dim=1).to(device) for it in (inputs.query, inputs.key, inputs.value))
    block = inputs.output_projection
    s = attention_statistics(
        query,
        key,
        LAYOUT,
        scaling=inputs.scaling,
        value=value,
        output_projection=torch.cat([block, -block / 2], dim=1).to(device),
        statistics="values",
        backend=backend,
    )
    torch.testing.assert_close(
        s.output_share.double().cpu(), torch.tensor([[2.0, -1.0]] * 2).double(), rtol=1e-4, atol=0
    )
