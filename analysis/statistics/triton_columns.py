"""The kernels of the fused GPU path that sum over rows: columns, and products of heads. `fused_gpu` launches them.

Both compute the scores again and make weights of them with the L_i that `row_kernel` or `log_sum_kernel` has left:
p_ij = 2^(s_ij - L_i). Importing this file imports Triton.

Shapes: N tokens, D width of a head; BLOCK_M queries and BLOCK_N keys of a tile.
"""

import triton
import triton.language as tl

from .triton_tiles import place_of_program, scores_of


@triton.jit
def log_sum_kernel(
    query, key, mask, log_sums,
    base, hidden, heads, tokens,
    q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
    MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """L_i = log2 sum_j 2^s_ij for BLOCK_M queries i of one image and head, where nothing else is asked of rows."""
    image_head, image, head, block = place_of_program(tl.cdiv(tokens, BLOCK_M), heads)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = i < tokens
    layer = (
        query, key, mask, base, hidden,
        (q_image, q_head, q_token), (k_image, k_head, k_token), (m_image, m_head, m_query, m_key),
    )  # fmt: skip

    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # for each place of a tile by itself, as in `row_kernel`
    highest = sums - 1e38  # not -inf, which would be subtracted from itself where nothing is seen
    for start in range(0, tokens, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        there = j < tokens
        scores = scores_of(layer, image, head, i, exists, j, there, MASK, D, WIDEN, BLOCK_D, CHUNK)
        scores = tl.where(there[None, :], scores, float("-inf"))
        step = scores - highest
        u = tl.exp2(-tl.abs(step))  # one power: that of the larger of the two scores is 1
        sums = tl.where(step > 0, sums * u + 1, sums + u)
        highest = tl.maximum(highest, scores)
    largest = tl.max(highest, axis=1)
    total = tl.sum(sums * tl.exp2(highest - largest[:, None]), axis=1)
    tl.store(log_sums + image_head * tokens + i, largest + tl.log2(total), mask=exists)


@triton.jit
def column_kernel(
    query, key, mask, log_sums, row_weights, sums,
    base, hidden, heads, tokens, plane, r_image, r_head,
    q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
    PLAIN: tl.constexpr, WEIGHTED: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """sum_i p_ij, if it is to be PLAIN, and sum_i r_i p_ij, if WEIGHTED, for BLOCK_N keys j of one image and head."""
    image_head, image, head, block = place_of_program(tl.cdiv(tokens, BLOCK_N), heads)
    j = block * BLOCK_N + tl.arange(0, BLOCK_N)
    there = j < tokens
    layer = (
        query, key, mask, base, hidden,
        (q_image, q_head, q_token), (k_image, k_head, k_token), (m_image, m_head, m_query, m_key),
    )  # fmt: skip

    plain = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # reduced to columns at the end
    weighted = plain
    log_sums += image_head * tokens
    row_weights += image * r_image + head * r_head
    for start in range(0, tokens, BLOCK_M):
        i = start + tl.arange(0, BLOCK_M)
        exists = i < tokens
        scores = scores_of(layer, image, head, i, exists, j, there, MASK, D, WIDEN, BLOCK_D, CHUNK)
        p = tl.exp2(scores - tl.load(log_sums + i, mask=exists, other=float("inf"))[:, None])
        if PLAIN:
            plain += p
        if WEIGHTED:
            weighted += p * tl.load(row_weights + i, mask=exists, other=0.0)[:, None]
    at = sums + image_head * tokens + j
    if PLAIN:
        tl.store(at, tl.sum(plain, axis=0), mask=there)
        at += plane
    if WEIGHTED:
        tl.store(at, tl.sum(weighted, axis=0), mask=there)


@triton.jit
def _weights(
    layer, log_sums, heads, tokens, i, j, image, head,
    MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """p_ij of one head, 0 for a head that is not there: (BLOCK_M, BLOCK_N)."""
    present = tl.where(head < heads, tokens, 0)
    exists, there = i < present, j < present
    scores = scores_of(layer, image, head, i, exists, j, there, MASK, D, WIDEN, BLOCK_D, CHUNK)
    log_sum = tl.load(log_sums + (image * heads + head) * tokens + i, mask=exists, other=float("inf"))
    return tl.exp2(tl.where(there[None, :], scores - log_sum[:, None], float("-inf")))


@triton.jit
def _three_weights(
    layer, log_sums, heads, tokens, i, j, image, first,
    MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Those of the heads of a group, from its first on."""
    p0 = _weights(layer, log_sums, heads, tokens, i, j, image, first, MASK, D, WIDEN, BLOCK_D, CHUNK)
    p1 = _weights(layer, log_sums, heads, tokens, i, j, image, first + 1, MASK, D, WIDEN, BLOCK_D, CHUNK)
    p2 = _weights(layer, log_sums, heads, tokens, i, j, image, first + 2, MASK, D, WIDEN, BLOCK_D, CHUNK)
    return p0, p1, p2


@triton.jit
def _store(products, at, one, other, heads):
    """The sum of a tile, for two heads that are there, on both sides of the diagonal."""
    found = tl.sum(tl.sum(products, axis=1), axis=0)
    inside = (one < heads) & (other < heads)
    tl.store(at + one * heads + other, found, mask=inside)
    tl.store(at + other * heads + one, found, mask=inside)


@triton.jit
def _products_of_groups(
    layer, log_sums, heads, tokens, at, i, image, p_first, q_first,
    SAME: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Those of two groups of heads, or of a group with itself, which has the SAME maps on both sides."""
    s00 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # reduced at the end
    s01, s02, s10, s11, s12, s20, s21, s22 = s00, s00, s00, s00, s00, s00, s00, s00
    for start in range(0, tokens, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        p0, p1, p2 = _three_weights(
            layer, log_sums, heads, tokens, i, j, image, p_first, MASK, D, WIDEN, BLOCK_D, CHUNK
        )
        q0, q1, q2 = p0, p1, p2
        if not SAME:
            q0, q1, q2 = _three_weights(
                layer, log_sums, heads, tokens, i, j, image, q_first, MASK, D, WIDEN, BLOCK_D, CHUNK
            )
            s10 += p1 * q0
            s20 += p2 * q0
            s21 += p2 * q1
        s00 += p0 * q0
        s01 += p0 * q1
        s02 += p0 * q2
        s11 += p1 * q1
        s12 += p1 * q2
        s22 += p2 * q2
    _store(s00, at, p_first, q_first, heads)
    _store(s01, at, p_first, q_first + 1, heads)
    _store(s02, at, p_first, q_first + 2, heads)
    _store(s11, at, p_first + 1, q_first + 1, heads)
    _store(s12, at, p_first + 1, q_first + 2, heads)
    _store(s22, at, p_first + 2, q_first + 2, heads)
    if not SAME:
        _store(s10, at, p_first + 1, q_first, heads)
        _store(s20, at, p_first + 2, q_first, heads)
        _store(s21, at, p_first + 2, q_first + 1, heads)


@triton.jit(do_not_specialize=["heads"])  # Triton 3.6 fails where a 1 makes constants of groups and pairs
def product_kernel(
    query, key, mask, log_sums, found_products,
    base, hidden, heads, tokens,
    q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
    MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """sum_ij p_ij q_ij for BLOCK_M queries i of one image, with p the map of each head of a group and q of another's.

    A group has three heads, whose maps are computed once for each other group: 12 maps for 6 heads, 48 for 12.

    Writes into `found_products` (images, blocks of queries, heads, heads), on both sides of the diagonal.
    """
    blocks, groups = tl.cdiv(tokens, BLOCK_M), tl.cdiv(heads, 3)
    pairs = groups * (groups + 1) // 2
    pair = tl.program_id(0) % pairs
    block = (tl.program_id(0) // pairs) % blocks
    image = (tl.program_id(0) // pairs // blocks).to(tl.int64)
    group = 0
    while (group + 1) * (group + 2) // 2 <= pair:
        group += 1
    p_first, q_first = 3 * group, 3 * (pair - group * (group + 1) // 2)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    at = found_products + (image * blocks + block) * heads * heads
    layer = (
        query, key, mask, base, hidden,
        (q_image, q_head, q_token), (k_image, k_head, k_token), (m_image, m_head, m_query, m_key),
    )  # fmt: skip
    if p_first == q_first:  # here, and not within the loop, where it would keep loads from running ahead
        _products_of_groups(
            layer, log_sums, heads, tokens, at, i, image, p_first, q_first,
            True, MASK, D, WIDEN, BLOCK_M, BLOCK_N, BLOCK_D, CHUNK,
        )  # fmt: skip
    else:
        _products_of_groups(
            layer, log_sums, heads, tokens, at, i, image, p_first, q_first,
            False, MASK, D, WIDEN, BLOCK_M, BLOCK_N, BLOCK_D, CHUNK,
        )  # fmt: skip
