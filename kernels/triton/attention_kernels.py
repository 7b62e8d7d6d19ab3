"""Attention over paged keys and values in Triton: one sweep that serves every kind of tile, and the merge of its parts.

Knows: tiles as attention_plan lays them out, strides, number formats. Must not know: how rows became tiles, requests.
Sources: Dao, "FlashAttention-2", 2023 (online softmax); Dao et al., "Flash-Decoding", 2023 (merge by log-sum-exp).

A tile is up to HEIGHT // G tokens; with the G query heads of one key head they are the rows of one matrix, row m being
token m // G, head m % G. Softmax is in base 2. A loop's first part, seen whole by every token, goes without masks.
"""

from __future__ import annotations

from branchwork.kernels.triton.language import jit, tl

PLAIN, INT8, FP8 = 0, 1, 2  # what a pool holds: q's type; integers and a scale per row; e4m3 bytes


@jit
def _numbers(raw, KV: tl.constexpr, dtype: tl.constexpr):
    """A pool's elements as the other operand's type. e4m3 bytes come out divided by 256: as float16 with their bits."""
    if KV == 2:
        bits = raw.to(tl.int16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return half.to(tl.float16, bitcast=True).to(dtype)
    else:
        return raw.to(dtype)


@jit
def _sweep(
    total,  # [HEIGHT, DP], with top and weight the state of the online softmax
    top,
    weight,
    q,
    at,
    words_low,
    words_high,
    keys,
    values,
    key_scales,
    value_scales,
    pages,
    page_step,
    slot_step,
    scale_page_step,
    scale_slot_step,
    first,
    last,
    before,
    window,
    scale,
    cap,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAGE: tl.constexpr,
    KV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TREE: tl.constexpr,
):
    """Positions first .. last added to the state. Without MASKED every token sees all of them, and BLOCK_N divides."""
    column = tl.arange(0, DP)
    for start in range(first, last, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        if MASKED:
            held = position < last
            page = tl.load(pages + position // PAGE, mask=held, other=0).to(tl.int64)
            here = held[:, None] & (column < D)[None, :]
        else:
            page = tl.load(pages + position // PAGE).to(tl.int64)
            here = (column < D)[None, :]
        offset = page * page_step + (position % PAGE).to(tl.int64) * slot_step
        if KV == 1:  # rows of D + 8 bytes: what the strides of 16-bit pools say by themselves
            offset = tl.multiple_of(offset, 8)
        if MASKED or DP != D:
            k = tl.load(keys + offset[:, None] + column[None, :], mask=here, other=0)
            v = tl.load(values + offset[:, None] + column[None, :], mask=here, other=0)
        else:
            k = tl.load(keys + offset[:, None] + column[None, :])
            v = tl.load(values + offset[:, None] + column[None, :])
        k = _numbers(k, KV, q.dtype)
        v = _numbers(v, KV, q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if KV == 1:
            row = page * scale_page_step + (position % PAGE).to(tl.int64) * scale_slot_step
            if MASKED:
                key_scale = tl.load(key_scales + row, mask=held, other=0.0)
                value_scale = tl.load(value_scales + row, mask=held, other=0.0)
            else:
                key_scale = tl.load(key_scales + row)
                value_scale = tl.load(value_scales + row)
            scores = scores * key_scale[None, :]
        if CAPPED:  # cap * tanh(scores / cap): `scale` held 2 log2(e) / cap, `cap` holds cap * log2(e)
            scores = cap - 2.0 * cap / (1.0 + tl.exp2(scores))
        if MASKED:
            seen = position[None, :] <= at[:, None]
            if TREE:
                bit = position - before
                low = words_low[:, None] >> (bit & 31)[None, :]
                high = words_high[:, None] >> (bit & 31)[None, :]
                chosen = tl.where((bit < 32)[None, :], low, high) & 1
                seen = tl.where((bit < 0)[None, :], seen, chosen != 0)
            if WINDOWED:
                near = position[None, :] > at[:, None] - window
                if TREE:
                    near = near | (position >= before)[None, :]
                seen = seen & near
            seen = seen & held[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        base = higher
        if MASKED:  # a token that has seen nothing yet: -inf - -inf would be NaN
            base = tl.where(higher == float("-inf"), 0.0, higher)
        decay = tl.exp2(top - base)
        shares = tl.exp2(scores - base[:, None])
        weight = weight * decay + tl.sum(shares, axis=1)
        if KV == 1:
            shares = shares * value_scale[None, :]
        total = total * decay[:, None] + tl.dot(shares.to(q.dtype), v, input_precision="ieee")
        top = higher
    return total, top, weight


@jit(do_not_specialize=["window"])
def attend(
    q_base,
    k_pool,
    v_pool,
    key_scales,
    value_scales,
    out_base,
    parts,
    parts_top,
    page_list,
    tiles,
    order,
    at_base,
    words,
    scale,
    cap,
    q_token_step,
    q_head_step,
    out_token_step,
    page_step,
    head_step,
    slot_step,
    scale_page_step,
    scale_head_step,
    scale_slot_step,
    window,
    KVH: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAGE: tl.constexpr,
    KV: tl.constexpr,
    HEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TREE: tl.constexpr,
):
    """One tile for one key head; grid (tiles * KVH). A tile of no tokens does nothing: it may pad a captured launch.

    q_base [T, H, D]; out_base [T, H, D]; parts [slots, H, D] and parts_top [slots, H] float32: a part's own softmax and
    the base-2 logarithm of its sum. tiles [n, 8], order, at_base [T], words [T, 2]: see attention_plan.
    """
    program = tl.program_id(0)
    head = program % KVH
    tile = tiles + (program // KVH) * 8
    count = tl.load(tile + 2)
    if count == 0:
        return
    first = tl.load(tile + 3)
    last = tl.load(tile + 4)
    open_to = tl.load(tile + 5)
    before = tl.load(tile + 6)
    slot = tl.load(tile + 7)

    m = tl.arange(0, HEIGHT)
    held = m < count * G
    token = tl.load(order + tl.load(tile + 1) + m // G, mask=held, other=0)
    at = tl.load(at_base + token, mask=held, other=-1)
    if TREE:
        words_low = tl.load(words + token * 2, mask=held, other=0)
        words_high = tl.load(words + token * 2 + 1, mask=held, other=0)
    else:
        words_low = at
        words_high = at
    column = tl.arange(0, DP)
    here = held[:, None] & (column < D)[None, :]
    query_head = head * G + m % G
    q_at = token.to(tl.int64) * q_token_step + query_head.to(tl.int64) * q_head_step
    q = tl.load(q_base + q_at[:, None] + column[None, :], mask=here, other=0.0)

    keys = k_pool + head.to(tl.int64) * head_step
    values = v_pool + head.to(tl.int64) * head_step
    key_scales += head.to(tl.int64) * scale_head_step
    value_scales += head.to(tl.int64) * scale_head_step
    pages = page_list + tl.load(tile)

    total = tl.zeros([HEIGHT, DP], tl.float32)
    top = tl.full([HEIGHT], float("-inf"), tl.float32)
    weight = tl.zeros([HEIGHT], tl.float32)
    masked_from = first
    if not WINDOWED:
        masked_from = first + tl.maximum(tl.minimum(open_to, last) - first, 0) // BLOCK_N * BLOCK_N
        total, top, weight = _sweep(
            total, top, weight, q, at, words_low, words_high, keys, values, key_scales, value_scales, pages,
            page_step, slot_step, scale_page_step, scale_slot_step, first, masked_from, before, window, scale, cap,
            D, DP, PAGE, KV, BLOCK_N, False, WINDOWED, CAPPED, TREE,
        )  # fmt: skip
    total, top, weight = _sweep(
        total, top, weight, q, at, words_low, words_high, keys, values, key_scales, value_scales, pages,
        page_step, slot_step, scale_page_step, scale_slot_step, masked_from, last, before, window, scale, cap,
        D, DP, PAGE, KV, BLOCK_N, True, WINDOWED, CAPPED, TREE,
    )  # fmt: skip

    mixed = total / tl.where(weight > 0.0, weight, 1.0)[:, None]
    if KV == 2:
        mixed = mixed * 256.0
    if slot < 0:
        out_at = token.to(tl.int64) * out_token_step + query_head.to(tl.int64) * D
        tl.store(out_base + out_at[:, None] + column[None, :], mixed.to(out_base.dtype.element_ty), mask=here)
    else:
        part = (slot + m // G).to(tl.int64) * (KVH * G) + query_head
        tl.store(parts + (part * D)[:, None] + column[None, :], mixed, mask=here)
        tl.store(parts_top + part, top + tl.log2(tl.where(weight > 0.0, weight, 1.0)), mask=held)


@jit
def merge(
    parts,
    parts_top,
    out_base,
    tokens,
    cuts,
    slots,
    out_token_step,
    H: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    HEADS: tl.constexpr,
):
    """One token's parts added up, each weighted by its share of the softmax; grid (tokens, ceil(H / HEADS)).

    Token tokens[i] of out_base [T, H, D] has the parts slots[cuts[i] : cuts[i + 1]], added in that order. An entry with
    none does nothing: it may pad a captured launch.
    """
    entry = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, DP)
    held = head < H
    here = held[:, None] & (column < D)[None, :]
    first = tl.load(cuts + entry)
    last = tl.load(cuts + entry + 1)
    if first == last:
        return
    total = tl.zeros([HEADS, DP], tl.float32)
    top = tl.full([HEADS], float("-inf"), tl.float32)
    weight = tl.zeros([HEADS], tl.float32)
    for i in range(first, last):
        part = tl.load(slots + i).to(tl.int64) * H + head
        its_top = tl.load(parts_top + part, mask=held, other=float("-inf"))
        its_mix = tl.load(parts + (part * D)[:, None] + column[None, :], mask=here, other=0.0)
        higher = tl.maximum(top, its_top)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        decay = tl.exp2(top - base)
        share = tl.exp2(its_top - base)
        total = total * decay[:, None] + its_mix * share[:, None]
        weight = weight * decay + share
        top = higher
    mixed = total / tl.where(weight > 0.0, weight, 1.0)[:, None]
    out_at = tl.load(tokens + entry).to(tl.int64) * out_token_step + head * D
    tl.store(out_base + out_at[:, None] + column[None, :], mixed.to(out_base.dtype.element_ty), mask=here)
