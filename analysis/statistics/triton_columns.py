"""The kernels of the fused GPU path that sum over rows: columns, and products of heads. `fused_gpu` launches them.

Both compute the scores again and make weights of them with what `row_kernel` has left in `state`. Importing this file
imports Triton.

Shapes: N tokens, X tokens before the patches, D width of a head; BLOCK_M queries and BLOCK_N keys of a tile.
"""

import triton
import triton.language as tl

from .triton_kernels import masked, products


@triton.jit
def _keys_of(block, tokens, PREFIX: tl.constexpr, BLOCK_N: tl.constexpr):
    """The keys of a block, which are there, and 1 if they are before the patches: no block has keys of both kinds."""
    before = (PREFIX + BLOCK_N - 1) // BLOCK_N
    is_prefix = block < before
    start = tl.where(is_prefix, block * BLOCK_N, PREFIX + (block - before) * BLOCK_N)
    j = start + tl.arange(0, BLOCK_N)
    return j, j < tl.where(is_prefix, PREFIX, tokens), tl.where(is_prefix, 1, 0)


@triton.jit
def _blocks_of_keys(tokens, PREFIX: tl.constexpr, BLOCK_N: tl.constexpr):
    return (PREFIX + BLOCK_N - 1) // BLOCK_N + tl.cdiv(tokens - PREFIX, BLOCK_N)


@triton.jit
def column_kernel(
    query, key, mask, state, sums,
    scaling, hidden, heads, tokens, plane,
    q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
    PREFIX: tl.constexpr, MASK: tl.constexpr, STATE: tl.constexpr,
    D: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """sum_i f_i exp(s_ij - m_i) for BLOCK_N keys j of one image and head, with each of the STATE factors f."""
    blocks = _blocks_of_keys(tokens, PREFIX, BLOCK_N)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = image_head // heads, image_head % heads
    j, there, kind = _keys_of(tl.program_id(0) % blocks, tokens, PREFIX, BLOCK_N)
    query += image * q_image + head * q_head
    key += image * k_image + head * k_head
    mask += image * m_image + head * m_head
    state += kind.to(tl.int64) * (1 + STATE) * plane + image_head * tokens

    first = tl.zeros([BLOCK_N], tl.float32)
    second = first
    for start in range(0, tokens, BLOCK_M):
        i = start + tl.arange(0, BLOCK_M)
        exists = i < tokens
        scores = scaling * products(
            key, j, k_token, there, query, i, q_token, exists, D, BLOCK_D, CHUNK, WIDEN
        )  # (BLOCK_N, BLOCK_M)
        inside = there[:, None] & exists[None, :]
        scores = masked(scores, mask, i[None, :], j[:, None], inside, m_query, m_key, hidden, MASK)
        u = tl.exp(scores - tl.load(state + i, mask=exists, other=0.0)[None, :])
        first += tl.sum(u * tl.load(state + plane + i, mask=exists, other=0.0)[None, :], axis=1)
        if STATE > 1:
            second += tl.sum(u * tl.load(state + 2 * plane + i, mask=exists, other=0.0)[None, :], axis=1)
    at = sums + image_head * tokens + j
    tl.store(at, first, mask=there)
    if STATE > 1:
        tl.store(at + plane, second, mask=there)


@triton.jit
def _weights(
    query, key, mask, state, i, j, exists, there, image, head, image_head,
    scaling, hidden, tokens, plane,
    q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
    MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """p_ij of one head: (BLOCK_M, BLOCK_N). `state` is where the kind of the keys begins."""
    queries, keys = query + image * q_image + head * q_head, key + image * k_image + head * k_head
    scores = scaling * products(queries, i, q_token, exists, keys, j, k_token, there, D, BLOCK_D, CHUNK, WIDEN)
    at = mask + image * m_image + head * m_head
    inside = exists[:, None] & there[None, :]
    scores = masked(scores, at, i[:, None], j[None, :], inside, m_query, m_key, hidden, MASK)
    row = state + image_head * tokens + i
    level = tl.load(row, mask=exists, other=0.0)
    return tl.exp(scores - level[:, None]) * tl.load(row + plane, mask=exists, other=0.0)[:, None]


@triton.jit
def product_kernel(
    query, key, mask, state, found_products,
    scaling, hidden, heads, tokens, plane,
    q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
    PREFIX: tl.constexpr, MASK: tl.constexpr, STATE: tl.constexpr,
    D: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """sum_ij p_ij q_ij for BLOCK_M queries i of one image, with p a head's map and q that of each head up to it.

    The scores of the other heads are computed anew for each head: the cost grows with the square of the heads.

    Writes into `found_products` (images, blocks of queries, heads, heads), on both sides of the diagonal.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    last = tl.program_id(0) % heads
    block = (tl.program_id(0) // heads) % blocks
    image = (tl.program_id(0) // heads // blocks).to(tl.int64)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = i < tokens
    numbers = tl.arange(0, BLOCK_H)
    found = tl.zeros([BLOCK_H], tl.float32)
    for part in range(_blocks_of_keys(tokens, PREFIX, BLOCK_N)):
        j, there, kind = _keys_of(part, tokens, PREFIX, BLOCK_N)
        of_kind = state + kind.to(tl.int64) * (1 + STATE) * plane
        p = _weights(
            query, key, mask, of_kind, i, j, exists, there, image, last, image * heads + last,
            scaling, hidden, tokens, plane,
            q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
            MASK, D, WIDEN, BLOCK_D, CHUNK,
        )  # fmt: skip
        found += tl.where(numbers == last, tl.sum(tl.sum(p * p, axis=1), axis=0), 0.0)
        for head in range(last):
            other = _weights(
                query, key, mask, of_kind, i, j, exists, there, image, head, image * heads + head,
                scaling, hidden, tokens, plane,
                q_image, q_head, q_token, k_image, k_head, k_token, m_image, m_head, m_query, m_key,
                MASK, D, WIDEN, BLOCK_D, CHUNK,
            )  # fmt: skip
            product = tl.sum(tl.sum(p * other, axis=1), axis=0)
            found += tl.where(numbers == head, product, 0.0)
    at = found_products + (image * blocks + block) * heads * heads
    tl.store(at + last * heads + numbers, found, mask=numbers <= last)
    tl.store(at + numbers * heads + last, found, mask=numbers <= last)
