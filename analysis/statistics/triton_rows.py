"""The kernel of the fused GPU path that reads rows, in Triton. `fused_gpu` launches it.

Importing this file imports Triton. As in `tile.py`, the patches and the tokens before them have a softmax of their own
each and are joined by the share c that falls on the patches: p_ij = c_i w_ij for a patch j. No program writes where
another does and nothing is added atomically, so results do not depend on timing.

Shapes: N tokens, P patches, X tokens before them, D width of a head, D_V of a value; BLOCK_M queries and BLOCK_N keys
of a tile.
"""

import triton
import triton.language as tl

from .triton_tiles import LN_2, masked, part_of_layer, place_of_program, scores_of, vectors

FURTHEST = tl.constexpr(1e4)  # 2 to the power of minus this is 0; 0 times infinity would be NaN


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, exact also where 1 + x has lost x."""
    series = x * (1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x / 6)))))
    return tl.where(x < 0.05, series, tl.log(1 + x))


@triton.jit
def _mixture(log_odds):
    """Shares c and 1 - c, and the entropy of which of the two, from log(c / (1 - c))."""
    small = tl.exp(-tl.abs(log_odds))
    larger, smaller = 1 / (1 + small), small / (1 + small)
    share = tl.where(log_odds >= 0, larger, smaller)
    other = tl.where(log_odds >= 0, smaller, larger)
    # H(c) = -log(larger) + smaller * |log_odds|
    distance = tl.where(tl.abs(log_odds) == float("inf"), 0.0, tl.abs(log_odds))
    return share, other, _log1p(small) + smaller * distance


@triton.jit
def _add_16_bits(left, right, sums, WIDEN: tl.constexpr):
    if WIDEN:  # the interpreter has no such product
        sums = tl.dot(left.to(tl.float32), right.to(tl.float32), sums, input_precision="ieee")
    else:
        sums = tl.dot(left, right, sums)
    return sums


@triton.jit
def _add_product(u, vectors, sums, WIDEN: tl.constexpr):
    """sums + u v, with u in float32. Of 16-bit vectors by products of bfloat16, to some 16 bits of each u.

    Not of float16, which has nothing between 0 and 6e-8: beside a u of 1 whose v is 0, that would be the whole sum.
    """
    if vectors.dtype == tl.float32:
        sums = tl.dot(u, vectors, sums, input_precision="ieee")
    else:
        high = u.to(tl.bfloat16)
        low = (u - high.to(tl.float32)).to(tl.bfloat16)
        most = vectors.to(tl.bfloat16)
        sums = _add_16_bits(low, most, _add_16_bits(high, most, sums, WIDEN), WIDEN)
        if vectors.dtype == tl.float16:  # three bits more than bfloat16 has
            rest = (vectors.to(tl.float32) - most.to(tl.float32)).to(tl.bfloat16)
            sums = _add_16_bits(high, rest, sums, WIDEN)
    return sums


@triton.jit
def _one_key_each(
    layer, image, head, i, j, there,
    MASK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The score of each query i with one key j of its own: (BLOCK_M,)."""
    query, q_token, key, k_token, mask, m_query, m_key, base, hidden = part_of_layer(layer, image, head)
    found = tl.zeros([i.shape[0]], tl.float32)
    for first in tl.static_range(0, BLOCK_D, 16):
        left = vectors(query, i, q_token, there, first, D, 16, True)
        found += tl.sum(left * vectors(key, j, k_token, there, first, D, 16, True), axis=1)
    return masked(base * found, mask, i, j, there, m_query, m_key, hidden, MASK)


@triton.jit
def row_kernel(
    query, key, value, norms, mask, rows, centres, tokens_of_largest, state, output,
    base, hidden, heads, tokens, columns, plane,
    q_image, q_head, q_token, k_image, k_head, k_token, v_image, v_head, v_token, m_image, m_head, m_query, m_key,
    PREFIX: tl.constexpr, CLASS: tl.constexpr, REGISTERS: tl.constexpr, MASK: tl.constexpr,
    ENTROPY: tl.constexpr, MAXIMUM: tl.constexpr, PLACE: tl.constexpr, MASSES: tl.constexpr, DISTANCE: tl.constexpr,
    VALUES: tl.constexpr, OUTPUT: tl.constexpr, STATE: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """What is read off rows: BLOCK_M queries of one image and head against all keys, twice.

    First for the largest score m of each row and the patch that has it; then for sums over the other patches of
    u_j = 2^(s_j - m) times what is asked for. All is kept for each place of a tile by itself until the end: to reduce a
    tile to its rows takes longer than to fill it.

    Writes, for each row, the planes that `fused_gpu.planes` names into `rows`; and into `state` L_i, with which
    p_ij = 2^(s_ij - L_i), and, with VALUES, 1 / sum_k p_ik ||v_k W||.
    """
    image_head, image, head, block = place_of_program(tl.cdiv(tokens, BLOCK_M), heads)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = i < tokens
    layer = (
        query, key, mask, base, hidden,
        (q_image, q_head, q_token), (k_image, k_head, k_token), (m_image, m_head, m_query, m_key),
    )  # fmt: skip
    value += image * v_image + head * v_head
    norms += image_head * tokens

    patches = tokens - PREFIX
    me = i - PREFIX  # which patch the query is; below 0 for a token before the patches
    is_prefix = me < 0
    my_row, my_column = me // columns, me % columns
    in_tile = tl.arange(0, BLOCK_N)
    none = tl.zeros([BLOCK_M], tl.float32)
    nothing = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)

    highest, came = nothing + float("-inf"), tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, patches, BLOCK_N):
        j = start + in_tile
        there = j < patches
        scores = scores_of(layer, image, head, i, exists, PREFIX + j, there, MASK, D, WIDEN, BLOCK_D, CHUNK)
        higher = there[None, :] & (scores > highest)
        highest = tl.where(higher, scores, highest)
        came = tl.where(higher, start, came)
    largest = tl.max(highest, axis=1)
    best = tl.min(tl.where(highest == largest[:, None], came + in_tile[None, :], patches - 1), axis=1)
    blind = largest == float("-inf")  # may see no patch
    level = tl.where(blind, 0.0, largest)
    of_best = tl.where(blind, 0.0, 1.0)  # the best patch's u, which is in no sum: 1e-9 beside it would be lost
    left_out = tl.where(blind, -1, best)  # NaN is never the best, and is left out of no sum

    best_row, best_column = (best // columns).to(tl.float32), (best % columns).to(tl.float32)
    down_from, across_from = my_row.to(tl.float32), my_column.to(tl.float32)
    own, around = none, none
    if MASSES or VALUES:
        for step in range(0 if MASSES else 4, 9 if MASSES else 5):  # the query's own patch and the eight around it
            at_row, at_column = my_row + step // 3 - 1, my_column + step % 3 - 1
            there = exists & (me >= 0) & (at_row >= 0) & (at_column >= 0) & (at_column < columns)
            j = PREFIX + at_row * columns + at_column
            there &= j < tokens
            score = _one_key_each(layer, image, head, i, j, there, MASK, D, BLOCK_D)
            u = tl.where(there, tl.exp2(score - level), 0.0)
            if step == 4:
                own = u
            else:
                around += u

    others, falls = nothing, nothing  # sums of u_j, and of u_j (m - s_j)
    down, across, squares = nothing, nothing, nothing  # moments about the best patch
    far, weighted = nothing, nothing
    if OUTPUT:
        summed = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    row, column = (in_tile // columns).to(tl.float32), (in_tile % columns).to(tl.float32)
    for start in range(0, patches, BLOCK_N):
        j = start + in_tile
        there = j < patches
        scores = scores_of(layer, image, head, i, exists, PREFIX + j, there, MASK, D, WIDEN, BLOCK_D, CHUNK)
        counts = there[None, :] & (j[None, :] != left_out[:, None])
        fall = tl.where(counts, level[:, None] - scores, FURTHEST)
        u = tl.exp2(-fall)
        others += u
        if ENTROPY:
            falls += u * tl.minimum(fall, FURTHEST)
        if PLACE:
            steps_down, steps_across = row[None, :] - best_row[:, None], column[None, :] - best_column[:, None]
            u_down, u_across = u * steps_down, u * steps_across
            down += u_down
            across += u_across
            squares += u_down * steps_down + u_across * steps_across
        if DISTANCE:
            steps_down, steps_across = row[None, :] - down_from[:, None], column[None, :] - across_from[:, None]
            far += u * tl.sqrt(steps_down * steps_down + steps_across * steps_across)
        if VALUES:
            weighted += u * tl.load(norms + PREFIX + j, mask=there, other=0.0)[None, :]
        if OUTPUT:
            v = vectors(value, PREFIX + j, v_token, there, 0, D_V, BLOCK_V, False)
            summed = _add_product(u, v, summed, WIDEN)
        column += BLOCK_N % columns  # where the next tile's keys are in the grid, without a division
        over = column >= columns
        column -= tl.where(over, columns, 0).to(tl.float32)
        row += BLOCK_N // columns + tl.where(over, 1, 0)

    beside_best = tl.sum(others, axis=1)
    total = beside_best + of_best + (level - level)  # of infinite scores, NaN
    if PREFIX == 0:
        total = tl.where(total == 0, float("nan"), total)  # sees nothing at all
    divisor = tl.where(total == 0, 1.0, total)
    entropy = _log1p(beside_best) + LN_2 * tl.sum(falls, axis=1) / divisor
    share = 1 + (total - total)  # 1, or NaN

    log_all = level + tl.log2(divisor)
    if PREFIX > 0:
        x = tl.arange(0, BLOCK_X)
        before_patches = x < PREFIX
        scores = scores_of(layer, image, head, i, exists, x, before_patches, MASK, D, WIDEN, BLOCK_D, CHUNK)
        scores = tl.where(before_patches[None, :], scores, float("-inf"))
        largest_x = tl.max(scores, axis=1)
        best_x = tl.min(tl.where(scores == largest_x[:, None], x[None, :], PREFIX - 1), axis=1)
        blind_x = largest_x == float("-inf")
        level_x = tl.where(blind_x, 0.0, largest_x)
        u = tl.exp2(scores - level_x[:, None])
        others_x = tl.sum(tl.where(x[None, :] == best_x[:, None], 0.0, u), axis=1)
        total_x = others_x + tl.where(blind_x, 0.0, 1.0) + (level_x - level_x)
        divisor_x = tl.where(total_x == 0, 1.0, total_x)
        log_odds = LN_2 * ((level - level_x) + (tl.log2(divisor) - tl.log2(divisor_x)))
        # Nothing on one side: all is on the other. NaN, if that is or has nothing too.
        log_odds = tl.where(total_x == 0, total / total_x, log_odds)
        log_odds = tl.where(total == 0, -total_x / total, log_odds)
        share, share_x, which = _mixture(log_odds)
        of_x = (share_x / divisor_x)[:, None] * u  # (BLOCK_M, BLOCK_X), their weights in the row
        log_all = tl.where(share >= share_x, log_all - tl.log2(share), level_x + tl.log2(divisor_x) - tl.log2(share_x))
        if ENTROPY:
            falls_x = LN_2 * tl.sum(u * tl.minimum(level_x[:, None] - scores, FURTHEST), axis=1)
            entropy = which + share * entropy + share_x * (_log1p(others_x) + falls_x / divisor_x)
    factor = share / divisor  # makes u_j the weight in the row

    place = rows + image_head * tokens + i
    if ENTROPY:
        tl.store(place, entropy, mask=exists)
        place += plane
    if MAXIMUM:
        maximum, token = factor, best + PREFIX
        if PREFIX > 0:
            maximum_x = share_x / divisor_x
            token = tl.where(maximum >= maximum_x, token, best_x)
            maximum = tl.maximum(maximum, maximum_x)
        tl.store(place, maximum, mask=exists)
        tl.store(tokens_of_largest + image_head * tokens + i, token.to(tl.int64), mask=exists)
        place += plane
    if PLACE:
        unseen = tl.where(total == 0, float("nan"), 0.0)
        mean_down, mean_across = tl.sum(down, axis=1) / divisor, tl.sum(across, axis=1) / divisor
        variance = tl.sum(squares, axis=1) / divisor - mean_down * mean_down - mean_across * mean_across
        tl.store(place, tl.sqrt(tl.where(variance < 0, 0.0, variance)) + unseen, mask=exists)
        centre = centres + 2 * (image_head * tokens + i)
        tl.store(centre, best_row + mean_down + unseen, mask=exists)
        tl.store(centre + 1, best_column + mean_across + unseen, mask=exists)
        place += plane
    if MASSES:
        on_self = own * factor
        if PREFIX > 0:
            on_self = tl.where(is_prefix, tl.sum(tl.where(x[None, :] == i[:, None], of_x, 0.0), axis=1), on_self)
            tl.store(place, share_x, mask=exists)
        else:
            tl.store(place, none, mask=exists)
        tl.store(place + plane, share, mask=exists)
        tl.store(place + 2 * plane, on_self, mask=exists)
        place += 3 * plane
        if CLASS:
            tl.store(place, tl.sum(tl.where(x[None, :] == 0, of_x, 0.0), axis=1), mask=exists)
            place += plane
        if REGISTERS > 0:
            tl.store(place, tl.sum(tl.where(x[None, :] >= PREFIX - REGISTERS, of_x, 0.0), axis=1), mask=exists)
            place += plane
        tl.store(place, tl.where(is_prefix, float("nan"), around * factor), mask=exists)
        place += plane
    if DISTANCE:
        down_to_best, across_to_best = best_row - down_from, best_column - across_from
        to_best = tl.sqrt(down_to_best * down_to_best + across_to_best * across_to_best)
        mean = (tl.sum(far, axis=1) + of_best * to_best) / divisor
        tl.store(place, tl.where(is_prefix | (total == 0), float("nan"), mean), mask=exists)
        place += plane
    if VALUES:
        norm_of_best = tl.load(norms + PREFIX + best, mask=exists, other=0.0)
        on_patches = (tl.sum(weighted, axis=1) + of_best * norm_of_best) * factor
        whole = on_patches
        my_share = own * factor
        if PREFIX > 0:
            norm = tl.load(norms + x, mask=before_patches, other=0.0)
            of_norms = of_x * norm[None, :]
            on_prefix = tl.sum(of_norms, axis=1)
            whole += on_prefix
            my_share = tl.where(is_prefix, tl.sum(tl.where(x[None, :] == i[:, None], of_x, 0.0), axis=1), my_share)
        my_share *= tl.load(norms + i, mask=exists, other=0.0)
        tl.store(place, whole, mask=exists)
        place += plane
        if PREFIX > 0:
            tl.store(place, on_prefix / whole, mask=exists)
        else:
            tl.store(place, none, mask=exists)
        tl.store(place + plane, on_patches / whole, mask=exists)
        tl.store(place + 2 * plane, my_share / whole, mask=exists)
        place += 3 * plane
        if CLASS:
            tl.store(place, tl.sum(tl.where(x[None, :] == 0, of_norms, 0.0), axis=1) / whole, mask=exists)
            place += plane
        if REGISTERS > 0:
            registers = tl.sum(tl.where(x[None, :] >= PREFIX - REGISTERS, of_norms, 0.0), axis=1)
            tl.store(place, registers / whole, mask=exists)
            place += plane
    if OUTPUT:
        v_of_best = vectors(value, PREFIX + best, v_token, exists, 0, D_V, BLOCK_V, True)
        summed = factor[:, None] * (summed + of_best[:, None] * v_of_best)
        if PREFIX > 0:
            v = vectors(value, x, v_token, before_patches, 0, D_V, BLOCK_V, False)
            summed = _add_product(of_x, v, summed, WIDEN)
        d = tl.arange(0, BLOCK_V)
        at = output + (image_head * tokens + i)[:, None] * D_V + d[None, :]
        tl.store(at, summed, mask=exists[:, None] & (d < D_V)[None, :])
    if STATE > 0:
        place = state + image_head * tokens + i
        tl.store(place, log_all, mask=exists)
        if STATE > 1:
            tl.store(place + plane, 1 / whole, mask=exists)
