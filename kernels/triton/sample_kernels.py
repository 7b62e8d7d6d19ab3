"""One row's draw without a sort: what a token weighs, its head of likely tokens, and searches over float bits.

Knows: the rule of kernels.reference.sample. Must not know: tensors, launches, which chip this is.

A row's order is by logit, highest first, ties by id. Each filter keeps a prefix of that order and the draw is a place
in it, so all of them are the same question: at which logit does a sum over the higher ones pass a goal? The bits of a
float, read as an integer, keep its order; the answer is found digit by digit, 15 thresholds at a time.
The head kernel reads the row three times: for its maximum; for the sum of all weights, counting tokens by how far below
the maximum they are; and to list the longest head that fits the list. The draw kernel searches that list. Only where
the answer lies further down does it search the row itself: rare for what models give, and right in any case.
"""

from __future__ import annotations

from branchwork.kernels.triton.language import jit, tl
from branchwork.kernels.triton.mask import bits

CAPACITY = 4096  # tokens of a head's list
SUMMARY = 5  # floats: maximum, weight of all tokens, of the head, a bound on any other's; tokens of the head, or -1
_STEP = tl.constexpr(2.0) if tl else 2.0  # heads end a multiple of this many temperatures below the maximum,
_LAST = tl.constexpr(15) if tl else 15  # at most at this one: others weigh less than e**-30 of the first
_LOWEST = tl.constexpr(-(2**31)) if tl else 0
_NOTHING = tl.constexpr(-0x7F800001) if tl else 0  # -inf as `ordered`


@jit
def ordered(value):
    """int32 that compare as the floats do; both zeros are one."""
    raw = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    return tl.where(raw < 0, raw ^ 0x7FFFFFFF, raw)


@jit
def tile(logits, words, at, live, use_mask, MASKED: tl.constexpr):
    """Logits of tokens `at`; -inf where the mask forbids them."""
    value = tl.load(logits + at, mask=live, other=float("-inf"))
    if MASKED:  # noqa: SIM102  only this one is decided when compiling
        if use_mask:
            value = tl.where(bits(words, at, live), value, float("-inf"))
    return value


@jit
def head_kernel(
    logits,
    masks,
    whole,
    floats,
    summary,
    values,
    ids,
    tokens,
    row_stride,
    mask_stride,
    count,
    vocab,
    MASKED: tl.constexpr,
    CAP: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row: its maximum, its weights and its head. Rows that need no search (greedy, faulty) are drawn here."""
    draw = tl.program_id(0)
    row = tl.load(whole + draw).to(tl.int64)
    which = tl.load(whole + count + draw).to(tl.int64)
    temperature = tl.load(floats + 3 * count + draw)
    logits += row * row_stride
    words = masks + tl.maximum(which, 0) * mask_stride
    lane = tl.arange(0, TILE)
    best = tl.full([TILE], float("-inf"), tl.float32)
    first = tl.full([TILE], 0, tl.int32)
    odd = tl.full([TILE], 0, tl.int32)
    for start in range(0, vocab, TILE):
        at = start + lane
        value = tile(logits, words, at, at < vocab, which >= 0, MASKED)
        odd |= ((value != value) | (value == float("inf"))).to(tl.int32)
        better = value > best
        first = tl.where(better, at, first)
        best = tl.where(better, value, best)
    top = tl.max(best, axis=0)
    wrong = tl.max(odd, axis=0) > 0
    token = tl.min(tl.where(best == top, first, 2147483647), axis=0)
    token = tl.where(wrong, -1, tl.where(top == float("-inf"), -2, token))
    tl.store(tokens + draw, token.to(tl.int64))
    summary += draw * 5
    if (temperature <= 0.0) | (token < 0):
        tl.store(summary + 4, -1.0)
    else:
        total = tl.zeros([TILE], tl.float32)
        counts = tl.zeros([16], tl.int32)
        for start in range(0, vocab, TILE):
            at = start + lane
            depth = (tile(logits, words, at, at < vocab, which >= 0, MASKED) - top) / temperature
            total += tl.exp(depth)
            counts += tl.histogram(tl.minimum(depth / -_STEP, 15.0).to(tl.int32), 16)
        step = tl.arange(0, 16)
        fits = (tl.cumsum(counts, axis=0) <= CAP) & (step < _LAST)
        steps = tl.sum(fits.to(tl.int32), axis=0)
        inner = tl.zeros([TILE], tl.float32)
        found = tl.zeros([], tl.int32)
        if steps > 0:
            for start in range(0, vocab, TILE):
                at = start + lane
                value = tile(logits, words, at, at < vocab, which >= 0, MASKED)
                depth = (value - top) / temperature
                near = tl.minimum(depth / -_STEP, 15.0).to(tl.int32) < steps
                flag = near.to(tl.int32)
                here = tl.sum(flag, axis=0)
                if here > 0:
                    place = draw * CAP + found + tl.cumsum(flag, axis=0) - 1
                    tl.store(values + place, value, mask=near)
                    tl.store(ids + place, at, mask=near)
                    inner += tl.where(near, tl.exp(depth), 0.0)
                found += here
        tl.store(summary, top)
        tl.store(summary + 1, tl.sum(total, axis=0))
        tl.store(summary + 2, tl.sum(inner, axis=0))
        tl.store(summary + 3, tl.where(steps == _LAST, 0.0, tl.exp(steps * -_STEP)))
        tl.store(summary + 4, found.to(tl.float32))


@jit
def source(values, logits, words, start, size, far, use_mask, MASKED: tl.constexpr, TILE: tl.constexpr):
    """The next tile of what is searched: the head's list, or with `far` the row itself. Past the end: -inf."""
    at = start + tl.arange(0, TILE)
    live = at < size
    value = tl.load(values + at, mask=live & (far == 0), other=float("-inf"))
    if far:
        value = tile(logits, words, at, live, use_mask, MASKED)
    return value


@jit
def passed(
    goal,
    values,
    logits,
    words,
    size,
    far,
    use_mask,
    top,
    temperature,
    COUNT: tl.constexpr,
    MASKED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The highest logit (as `ordered`) down to which the weight (with COUNT: the number) of tokens reaches `goal`."""
    digit = tl.arange(0, 16)
    base = tl.full([1], _LOWEST, tl.int32)
    for turn in range(8):
        shift = 28 - 4 * turn
        step = base + (digit << shift)
        sums = tl.zeros([16], tl.float32)
        for start in range(0, size, TILE):
            value = source(values, logits, words, start, size, far, use_mask, MASKED, TILE)
            weight = tl.exp((value - top) / temperature)
            if COUNT:
                weight = (value > float("-inf")).to(tl.float32)
            reached = ordered(value)[None, :] >= step[:, None]
            sums += tl.sum(tl.where(reached, weight[None, :], 0.0), axis=1)
        digits = tl.sum(((sums >= goal) & (digit > 0)).to(tl.int32), axis=0)
        base += digits << shift
    return tl.max(base, axis=0)


@jit
def around(
    key,
    values,
    logits,
    words,
    size,
    far,
    use_mask,
    top,
    temperature,
    MASKED: tl.constexpr,
    TILE: tl.constexpr,
):
    """(weight of the tokens above logit `key`, their number, how many stand at it)."""
    weight_above = tl.zeros([TILE], tl.float32)
    above = tl.zeros([TILE], tl.float32)
    level = tl.zeros([TILE], tl.float32)
    for start in range(0, size, TILE):
        value = source(values, logits, words, start, size, far, use_mask, MASKED, TILE)
        place = ordered(value)
        higher = place > key
        weight_above += tl.where(higher, tl.exp((value - top) / temperature), 0.0)
        above += higher.to(tl.float32)
        level += (place == key).to(tl.float32)
    return tl.sum(weight_above, axis=0), tl.sum(above, axis=0), tl.sum(level, axis=0)


@jit
def weight_at(key, top, temperature):
    """The weight of a token whose logit is `key`, as `ordered`."""
    raw = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    return tl.exp((raw.to(tl.float32, bitcast=True) - top) / temperature)


@jit
def draw_kernel(
    logits,
    masks,
    whole,
    floats,
    summary,
    values,
    ids,
    tokens,
    row_stride,
    mask_stride,
    count,
    vocab,
    MASKED: tl.constexpr,
    CAP: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row: the tightest prefix that a filter leaves, as its last logit and how many stand there; then the draw."""
    draw = tl.program_id(0)
    summary += draw * 5
    found = tl.load(summary + 4).to(tl.int32)
    if found >= 0:
        use_mask = tl.load(whole + count + draw) >= 0
        which = tl.maximum(tl.load(whole + count + draw), 0).to(tl.int64)
        top_k = tl.load(whole + 2 * count + draw)
        temperature = tl.load(floats + 3 * count + draw)
        top_p = tl.load(floats + 4 * count + draw)
        min_p = tl.load(floats + 5 * count + draw)
        uniform = tl.load(floats + 6 * count + draw)
        top = tl.load(summary)
        total = tl.load(summary + 1)
        inner = tl.load(summary + 2)
        outer = tl.load(summary + 3)
        logits += tl.load(whole + draw).to(tl.int64) * row_stride
        words = masks + which * mask_stride
        values += draw * CAP
        ids += draw * CAP
        # what no list holds has no weight that counts: then a top_k beyond the list keeps everything
        limited = (top_k > 0) & ((top_k < found) | (outer > 0.0)) & (top_k < vocab)
        far = (found == 0) | (limited & (top_k > found))
        size = tl.where(far, vocab, found)

        last = tl.full([], _LOWEST, tl.int32)  # the prefix ends at this logit,
        many = tl.full([], 2147483647.0, tl.float32)  # with this many tokens of it
        if limited:
            end = passed(
                top_k.to(tl.float32), values, logits, words, size, far, use_mask, top, temperature, True, MASKED, TILE
            )
            if end > _NOTHING:  # else the row has no more tokens than that
                weight, above, level = around(
                    end, values, logits, words, size, far, use_mask, top, temperature, MASKED, TILE
                )
                last = end
                many = tl.minimum(top_k.to(tl.float32) - above, level)
                total = weight + many * weight_at(last, top, temperature)
        kept = total
        if top_p < 1.0:
            goal = tl.maximum(top_p, 0.0) * total
            far = far | (goal > inner * 0.999999)
            size = tl.where(far, vocab, found)
            end = passed(goal, values, logits, words, size, far, use_mask, top, temperature, False, MASKED, TILE)
            end = tl.minimum(end, ordered(top))  # a goal of nothing still keeps the first
            weight, above, level = around(
                end, values, logits, words, size, far, use_mask, top, temperature, MASKED, TILE
            )
            one = weight_at(end, top, temperature)
            some = tl.minimum(tl.maximum(tl.ceil((goal - weight) / one), 1.0), level)
            if (end > last) | ((end == last) & (some < many)):
                last = end
                many = some
                kept = weight + some * one
        if min_p > 0.0:
            far = far | (min_p < outer)
            size = tl.where(far, vocab, found)
            lowest = tl.full([TILE], 2147483647, tl.int32)
            for start in range(0, size, TILE):
                value = source(values, logits, words, start, size, far, use_mask, MASKED, TILE)
                enough = tl.exp((value - top) / temperature) >= min_p
                lowest = tl.minimum(lowest, tl.where(enough, ordered(value), 2147483647))
            end = tl.minimum(tl.min(lowest, axis=0), ordered(top))
            if end > last:
                weight, above, level = around(
                    end, values, logits, words, size, far, use_mask, top, temperature, MASKED, TILE
                )
                last = end
                many = level
                kept = weight + level * weight_at(end, top, temperature)

        target = uniform * kept
        far = far | (target >= inner * 0.999999)
        size = tl.where(far, vocab, found)
        beyond = (target.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)  # the sum must exceed the target
        beyond = tl.maximum(beyond, 1e-37)
        key = passed(beyond, values, logits, words, size, far, use_mask, top, temperature, False, MASKED, TILE)
        key = tl.minimum(tl.maximum(key, last), ordered(top))
        weight, above, level = around(key, values, logits, words, size, far, use_mask, top, temperature, MASKED, TILE)
        rank = tl.floor((target - weight) / weight_at(key, top, temperature))
        rank = tl.minimum(rank, tl.where(key == last, many, level) - 1.0)
        rank = tl.maximum(tl.minimum(rank, level - 1.0), 0.0).to(tl.int32)

        seen = 0
        token = tl.full([TILE], -1, tl.int32)
        for start in range(0, size, TILE):
            value = source(values, logits, words, start, size, far, use_mask, MASKED, TILE)
            at = start + tl.arange(0, TILE)
            equal = (ordered(value) == key) & (at < size)
            flag = equal.to(tl.int32)
            hit = equal & (seen + tl.cumsum(flag, axis=0) - 1 == rank)
            name = tl.load(ids + at, mask=hit & (far == 0), other=0)
            token = tl.maximum(token, tl.where(hit, tl.where(far, at, name), -1))
            seen += tl.sum(flag, axis=0)
        tl.store(tokens + draw, tl.max(token, axis=0).to(tl.int64))


@jit
def penalty_kernel(logits, packed, size, frequency, presence, repetition, BLOCK: tl.constexpr):
    """packed [2, size]: distinct token ids, and how often each occurs in the answer (0: in the prompt alone)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    token = tl.load(packed + at, mask=live, other=0)
    times = tl.load(packed + size + at, mask=live, other=0).to(tl.float32)
    value = tl.load(logits + token, mask=live, other=0.0).to(tl.float32)
    value = tl.where(value > 0, value / repetition, value * repetition)
    value -= tl.where(times > 0, times * frequency + presence, 0.0)
    tl.store(logits + token, value.to(logits.dtype.element_ty), mask=live)
