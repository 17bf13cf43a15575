"""The kernel of the fused GPU path that reads rows, in Triton. `fused_gpu` launches it.

Importing this file imports Triton. Scores are computed tile by tile and kept nowhere. As in `tile.py`, the patches and
the tokens before them have a softmax of their own each and are joined by the share c that falls on the patches:
p_ij = c_i w_ij for a patch j. No program writes where another does and nothing is added atomically, so results do not
depend on timing.

Shapes: N tokens, P patches, X tokens before them, D width of a head, D_V of a value; BLOCK_M queries and BLOCK_N keys
of a tile.
"""

import triton
import triton.language as tl


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
    """The scores of queries i and keys j with the mask, -inf outside of the tokens; i and j broadcast to the scores.

    The mask is added, not selected by, so that a NaN stays one.
    """
    if MASK > 0:
        at = mask + i.to(tl.int64) * query_step + j * key_step
        if MASK == 1:
            seen = tl.load(at, mask=inside, other=1)
            scores += tl.where(seen != 0, 0.0, float("-inf"))
        else:
            added = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            scores += tl.where(added <= hidden, float("-inf"), added)
    return tl.where(inside, scores, float("-inf"))


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
def row_kernel(
    query, key, value, norms, mask, rows, centres, tokens_of_largest, state, output,
    scaling, hidden, heads, tokens, columns, plane,
    q_image, q_head, q_token, k_image, k_head, k_token, v_image, v_head, v_token, m_image, m_head, m_query, m_key,
    PREFIX: tl.constexpr, CLASS: tl.constexpr, REGISTERS: tl.constexpr, MASK: tl.constexpr,
    ENTROPY: tl.constexpr, MAXIMUM: tl.constexpr, PLACE: tl.constexpr, MASSES: tl.constexpr, DISTANCE: tl.constexpr,
    VALUES: tl.constexpr, OUTPUT: tl.constexpr, STATE: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """What is read off rows: BLOCK_M queries of one image and head, against all keys, in one pass.

    Sums over patches are of u_j = exp(s_j - m), with m the largest score so far; where a larger one comes, they are
    rescaled, and what counts from the patch with the largest score is moved to the new one.

    Writes, for each row, the planes that `fused_gpu.planes` names into `rows`; and into `state` what columns need: for
    patches, and then for the tokens before them, the largest score m and the STATE factors of exp(s_ij - m_i): that
    which makes it p_ij, and that which makes it p_ij / sum_k p_ik ||v_k W||.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = image_head // heads, image_head % heads
    i = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = i < tokens
    query += image * q_image + head * q_head
    key += image * k_image + head * k_head
    value += image * v_image + head * v_head
    mask += image * m_image + head * m_head
    norms += image_head * tokens

    patches = tokens - PREFIX
    me = i - PREFIX  # which patch the query is; below 0 for a token before the patches
    my_row, my_column = me // columns, me % columns

    none = tl.zeros([BLOCK_M], tl.float32)
    largest = none + float("-inf")
    best = tl.zeros([BLOCK_M], tl.int32)
    others, falls = none, none  # sum of u without the best patch's, which is 1; sum of u_j (m - s_j)
    down, across, squares = none, none, none  # moments about the best patch
    own, around, far, weighted = none, none, none, none
    if OUTPUT:
        summed = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    for start in range(0, patches, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        there = j < patches
        scores = scaling * products(
            query, i, q_token, exists, key, PREFIX + j, k_token, there, D, BLOCK_D, CHUNK, WIDEN
        )
        inside = exists[:, None] & there[None, :]
        scores = masked(scores, mask, i[:, None], (PREFIX + j)[None, :], inside, m_query, m_key, hidden, MASK)

        largest_here = tl.max(scores, axis=1)
        place = tl.where(scores == largest_here[:, None], j[None, :], patches - 1)
        moves = largest_here > largest
        new_best = tl.where(moves, tl.min(place, axis=1), best)
        new_largest = tl.where(moves, largest_here, largest)
        level = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        shrink = tl.exp(largest - level)  # 0 where nothing was before
        before = others + 1  # the sum of u so far, where there is any
        u = tl.exp(scores - level[:, None])

        if ENTROPY:
            rise = tl.where(largest == float("-inf"), 0.0, level - largest)
            fall = tl.minimum(level[:, None] - scores, 1e4)  # 0 times infinity would be NaN
            falls = shrink * (falls + rise * before) + tl.sum(u * fall, axis=1)
        row, column = j // columns, j % columns
        if PLACE:
            best_row, best_column = new_best // columns, new_best % columns
            moved_down = (best_row - best // columns).to(tl.float32)
            moved_across = (best_column - best % columns).to(tl.float32)
            moved = moved_down * moved_down + moved_across * moved_across
            squares += moved * before - 2 * (moved_down * down + moved_across * across)
            steps_down = (row[None, :] - best_row[:, None]).to(tl.float32)
            steps_across = (column[None, :] - best_column[:, None]).to(tl.float32)
            steps = steps_down * steps_down + steps_across * steps_across
            squares = shrink * squares + tl.sum(u * steps, axis=1)
            down = shrink * (down - moved_down * before) + tl.sum(u * steps_down, axis=1)
            across = shrink * (across - moved_across * before) + tl.sum(u * steps_across, axis=1)
        others = shrink * tl.where(moves, before, others) + tl.sum(
            tl.where(j[None, :] == new_best[:, None], 0.0, u), axis=1
        )
        if MASSES or DISTANCE:
            from_me_down = (row[None, :] - my_row[:, None]).to(tl.float32)
            from_me_across = (column[None, :] - my_column[:, None]).to(tl.float32)
            squared = from_me_down * from_me_down + from_me_across * from_me_across
        if MASSES:
            near = (squared > 0.5) & (squared < 2.5)  # the eight patches around are at 1 and at the root of 2
            around = shrink * around + tl.sum(tl.where(near, u, 0.0), axis=1)
        if DISTANCE:
            far = shrink * far + tl.sum(u * tl.sqrt(squared), axis=1)
        if MASSES or VALUES:
            own = shrink * own + tl.sum(tl.where(j[None, :] == me[:, None], u, 0.0), axis=1)
        if VALUES:
            norm = tl.load(norms + PREFIX + j, mask=there, other=0.0)
            weighted = shrink * weighted + tl.sum(u * norm[None, :], axis=1)
        if OUTPUT:
            v = vectors(value, PREFIX + j, v_token, there, 0, D_V, BLOCK_V, True)
            summed = tl.dot(u, v, summed * shrink[:, None], input_precision="ieee")
        largest, best = new_largest, new_best

    blind = largest == float("-inf")  # may see no patch
    level = tl.where(blind, 0.0, largest)
    total = others + tl.where(blind, 0.0, 1.0) + (level - level)  # of infinite scores, NaN
    divisor = tl.where(total == 0, 1.0, total)
    is_prefix = i < PREFIX
    entropy = _log1p(others) + falls / divisor
    share = none + 1

    if PREFIX > 0:
        x = tl.arange(0, BLOCK_X)
        before_patches = x < PREFIX
        scores = scaling * products(
            query, i, q_token, exists, key, x, k_token, before_patches, D, BLOCK_D, CHUNK, WIDEN
        )
        inside = exists[:, None] & before_patches[None, :]
        scores = masked(scores, mask, i[:, None], x[None, :], inside, m_query, m_key, hidden, MASK)
        largest_x = tl.max(scores, axis=1)
        best_x = tl.min(tl.where(scores == largest_x[:, None], x[None, :], PREFIX - 1), axis=1)
        blind_x = largest_x == float("-inf")
        level_x = tl.where(blind_x, 0.0, largest_x)
        u = tl.exp(scores - level_x[:, None])
        others_x = tl.sum(tl.where(x[None, :] == best_x[:, None], 0.0, u), axis=1)
        total_x = others_x + tl.where(blind_x, 0.0, 1.0) + (level_x - level_x)
        divisor_x = tl.where(total_x == 0, 1.0, total_x)
        log_odds = (level - level_x) + (tl.log(divisor) - tl.log(divisor_x))
        # Nothing on one side: all is on the other, unless that is NaN.
        log_odds = tl.where(total_x == 0, total * 0 + float("inf"), log_odds)
        log_odds = tl.where(total == 0, total_x * 0 - float("inf"), log_odds)
        share, share_x, which = _mixture(log_odds)
        of_x = (share_x / divisor_x)[:, None] * u  # (BLOCK_M, BLOCK_X), their weights in the row
        if ENTROPY:
            falls_x = tl.sum(u * tl.minimum(level_x[:, None] - scores, 1e4), axis=1)
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
        down, across, squares = down / divisor, across / divisor, squares / divisor
        variance = squares - down * down - across * across
        tl.store(place, tl.sqrt(tl.where(variance < 0, 0.0, variance)) + unseen, mask=exists)
        centre = centres + 2 * (image_head * tokens + i)
        tl.store(centre, best // columns + down + unseen, mask=exists)
        tl.store(centre + 1, best % columns + across + unseen, mask=exists)
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
        tl.store(place, tl.where(is_prefix | (total == 0), float("nan"), far / divisor), mask=exists)
        place += plane
    if VALUES:
        on_patches = weighted * factor
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
        summed *= factor[:, None]
        if PREFIX > 0:
            v = vectors(value, x, v_token, before_patches, 0, D_V, BLOCK_V, True)
            summed = tl.dot(of_x, v, summed, input_precision="ieee")
        d = tl.arange(0, BLOCK_V)
        at = output + (image_head * tokens + i)[:, None] * D_V + d[None, :]
        tl.store(at, summed, mask=exists[:, None] & (d < D_V)[None, :])
    if STATE > 0:
        place = state + image_head * tokens + i
        tl.store(place, level, mask=exists)
        tl.store(place + plane, factor, mask=exists)
        if STATE > 1:
            tl.store(place + 2 * plane, factor / whole, mask=exists)
        if PREFIX > 0:
            place += (1 + STATE) * plane
            tl.store(place, level_x, mask=exists)
            tl.store(place + plane, share_x / divisor_x, mask=exists)
            if STATE > 1:
                tl.store(place + 2 * plane, share_x / divisor_x / whole, mask=exists)
