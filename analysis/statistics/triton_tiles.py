"""What the Triton kernels of the fused GPU path share: reading vectors, and scores of a tile.

Importing this file imports Triton. Scores are made as powers of 2 (`base` is the scaling times log2 e), since a GPU
takes 2 to a power and not e. They are kept nowhere.

A `layer` is (query, key, mask, base, hidden), their strides over images, heads and tokens, and those of the mask over
images, heads, queries and keys: all that its scores are made of.

Shapes: N tokens, D width of a head; BLOCK_M queries and BLOCK_N keys of a tile.
"""

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def place_of_program(blocks, heads):
    """Image and head as one number, the image, the head, and the block of their tokens."""
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    return image_head, image_head // heads, image_head % heads, tl.program_id(0) % blocks


@triton.jit
def vectors(start, index, step, exists, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WIDEN: tl.constexpr):
    """BLOCK numbers, from the `first` on, of the queries, keys or values of some tokens: (len(index), BLOCK).

    0 beyond the last token and the WIDTH; in float32 if asked to WIDEN.
    """
    d = first + tl.arange(0, BLOCK)
    inside = exists[:, None] & (d < WIDTH)[None, :]
    found = tl.load(start + index[:, None] * step + d[None, :], mask=inside, other=0.0)
    return found.to(tl.float32) if WIDEN else found


@triton.jit
def products(
    rows, i, row_step, row_exists, columns, j, column_step, column_exists,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Inner products of some tokens' vectors with others': (len(i), len(j)).

    CHUNK numbers of the vectors at a time: products of float32 hold their factors in registers.
    """
    found = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    for first in tl.static_range(0, BLOCK, CHUNK):
        left = vectors(rows, i, row_step, row_exists, first, WIDTH, CHUNK, WIDEN)
        right = vectors(columns, j, column_step, column_exists, first, WIDTH, CHUNK, WIDEN)
        found = tl.dot(left, tl.trans(right), found, input_precision="ieee")
    return found


@triton.jit
def masked(scores, mask, i, j, inside, query_step, key_step, hidden, MASK: tl.constexpr):
    """The scores of queries i and keys j with the mask; i and j broadcast to the scores.

    The mask is added, not selected by, so that a NaN stays one.
    """
    if MASK > 0:
        at = mask + i.to(tl.int64) * query_step + j.to(tl.int64) * key_step
        if MASK == 1:
            seen = tl.load(at, mask=inside, other=1)
            scores += tl.where(seen != 0, 0.0, float("-inf"))
        else:
            added = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            scores += tl.where(added <= hidden, float("-inf"), added * LOG2_E)
    return scores


@triton.jit
def part_of_layer(layer, image, head):
    """Where queries, keys and mask of one image and head begin, each with its steps from token to token."""
    query, key, mask, base, hidden, q, k, m = layer
    q_image, q_head, q_token = q
    k_image, k_head, k_token = k
    m_image, m_head, m_query, m_key = m
    query += image * q_image + head * q_head
    key += image * k_image + head * k_head
    mask += image * m_image + head * m_head
    return query, q_token, key, k_token, mask, m_query, m_key, base, hidden


@triton.jit
def scores_of(
    layer, image, head, i, exists, j, there,
    MASK: tl.constexpr, D: tl.constexpr, WIDEN: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Those of queries i and keys j of one image and head, with the mask: (BLOCK_M, BLOCK_N)."""
    query, q_token, key, k_token, mask, m_query, m_key, base, hidden = part_of_layer(layer, image, head)
    found = base * products(query, i, q_token, exists, key, j, k_token, there, D, BLOCK_D, CHUNK, WIDEN)
    inside = exists[:, None] & there[None, :]
    return masked(found, mask, i[:, None], j[None, :], inside, m_query, m_key, hidden, MASK)
