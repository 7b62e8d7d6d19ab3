/* Draw one token a row. Included per vector width.
 *
 * The order of a row is by logit, highest first, ties by id; top_k, top_p and min_p each keep a prefix of it and the draw
 * inverts the prefix's cumulative weight at `uniform`. The row is never sorted as a whole if a few tokens decide: those
 * with probability >= 2^-11 (at most 2^11 of them) are sorted first, then 2^-15 and so on until they are enough.
 */

/* Sort keys ascending, stable in the low half: (inverted order of the float) << 32 | id. `spare` holds n too. */
static uint64_t *NAME(sort_keys)(uint64_t *keys, uint64_t *spare, int64_t n) {
    if (n <= 40) {
        for (int64_t i = 1; i < n; i++) {
            uint64_t key = keys[i];
            int64_t j = i;
            for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
            keys[j] = key;
        }
        return keys;
    }
    for (int shift = 32; shift < 64; shift += 8) {
        int64_t count[257] = {0};
        for (int64_t i = 0; i < n; i++) count[(keys[i] >> shift & 255) + 1]++;
        if (count[(keys[0] >> shift & 255) + 1] == n) continue;
        for (int d = 0; d < 256; d++) count[d + 1] += count[d];
        for (int64_t i = 0; i < n; i++) spare[count[keys[i] >> shift & 255]++] = keys[i];
        uint64_t *swap = keys;
        keys = spare;
        spare = swap;
    }
    return keys;
}

INLINE uint64_t NAME(key_of)(float x, int64_t id) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if (u == 0x80000000u) u = 0; /* -0 ties with 0 */
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (uint64_t)~u << 32 | (uint64_t)id;
}

/* Keys of the tokens whose logit is at least `cut`, ids ascending. */
static int64_t NAME(at_least)(const float *x, int64_t n, float cut, uint64_t *keys) {
    int64_t found = 0, i = 0;
    for (; i + 4 * VW <= n; i += 4 * VW) {
        vi hit = {0};
        for (int j = 0; j < 4; j++) hit |= *(const vf *)(x + i + j * VW) >= cut;
        int64_t any = 0;
        const int64_t *half = (const int64_t *)&hit;
        for (int j = 0; j < VW / 2; j++) any |= half[j];
        if (!any) continue;
        for (int64_t j = i; j < i + 4 * VW; j++)
            if (x[j] >= cut) keys[found++] = NAME(key_of)(x[j], j);
    }
    for (; i < n; i++)
        if (x[i] >= cut) keys[found++] = NAME(key_of)(x[i], i);
    return found;
}

/* The largest value; NaN when the row holds NaN or +inf. */
static float NAME(peak)(const float *x, int64_t n) {
    vf top0 = NAME(splat)(-INFINITY), top1 = top0;
    vi odd = {0};
    int64_t i = 0;
    for (; i + 2 * VW <= n; i += 2 * VW) {
        vf a = *(const vf *)(x + i), b = *(const vf *)(x + i + VW);
        odd |= (a != a) | (b != b);
        top0 = NAME(larger)(a, top0);
        top1 = NAME(larger)(b, top1);
    }
    float top = NAME(maximum)(NAME(larger)(top0, top1));
    int bad = 0;
    for (int j = 0; j < VW; j++) bad |= odd[j];
    for (; i < n; i++) {
        bad |= x[i] != x[i];
        top = x[i] > top ? x[i] : top;
    }
    return bad || top == INFINITY ? NAN : top;
}

static int64_t NAME(first_equal)(const float *x, int64_t n, float value) {
    int64_t i = 0;
    for (; i + VW <= n; i += VW) {
        vi hit = *(const vf *)(x + i) == value;
        int any = 0;
        for (int j = 0; j < VW; j++) any |= hit[j];
        if (any) break;
    }
    while (i < n - 1 && x[i] != value) i++;
    return i;
}

/* Sum of exp((x - top) / temperature) in double over runs of 4096, ids ascending. */
static double NAME(partition)(const float *x, int64_t n, float top, float factor) {
    double total = 0;
    for (int64_t run = 0; run < n; run += 4096) {
        int64_t i = run, end = MIN(n, run + 4096);
        vf a = {0}, b = {0};
        for (; i + 2 * VW <= end; i += 2 * VW) {
            a += NAME(exp2)((*(const vf *)(x + i) - top) * factor);
            b += NAME(exp2)((*(const vf *)(x + i + VW) - top) * factor);
        }
        double rest = 0;
        for (; i < end; i++) rest += NAME(exp2_1)((x[i] - top) * factor);
        total += (double)NAME(sum)(a + b) + rest;
    }
    return total;
}

INLINE float NAME(logit_of)(uint64_t key) {
    uint32_t u = ~(uint32_t)(key >> 32);
    u = u & 0x80000000u ? u & 0x7fffffffu : ~u;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* weight[i] = exp((logit of keys[i] - top) / temperature); returns their sum. */
static double NAME(weigh)(const uint64_t *keys, int64_t n, float top, float factor, float *weight) {
    double total = 0;
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t count = MIN(VW, n - i);
        float x[VW];
        for (int64_t j = 0; j < VW; j++) x[j] = j < count ? NAME(logit_of)(keys[i + j]) : -INFINITY;
        vf e = NAME(exp2)((*(const vf *)x - top) * factor);
        memcpy(weight + i, &e, count * sizeof(float));
        total += NAME(sum)(e);
    }
    return total;
}

typedef struct {
    float temperature, top_p, min_p;
    int top_k;
    double uniform;
} NAME(Shape);

/* The drawn key's index among n sorted keys, or -1 when the filters or the draw may reach beyond them. `base` is the weight
 * top_p is a share of; `whole`: there are no further tokens. */
static int64_t NAME(walk)(const NAME(Shape) *p, const float *weight, int64_t n, double base, int whole) {
    const int64_t limit = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    int64_t kept = 0;
    double mass = 0;
    while (kept < limit && (kept == 0 || ((p->top_p >= 1.0f || mass < p->top_p * base) && weight[kept] >= p->min_p)))
        mass += weight[kept++];
    const int open = kept == n && !whole && kept != p->top_k; /* nothing has ended the prefix yet */
    const int plain = p->top_k <= 0 && p->top_p >= 1.0f && p->min_p <= 0.0f;
    if (open && !plain) return -1;
    const double target = p->uniform * (plain ? base : mass);
    double sum = 0;
    for (int64_t i = 0; i < kept; i++) {
        sum += weight[i];
        if (sum > target) return i;
    }
    return open ? -1 : kept - 1;
}

static int64_t NAME(draw)(const float *x, int64_t n, const NAME(Shape) *p, uint64_t *keys, uint64_t *spare, float *weight) {
    const float top = NAME(peak)(x, n);
    if (top != top) return -1;
    if (top == -INFINITY) return -2;
    if (p->temperature <= 0.0f || p->top_k == 1) return NAME(first_equal)(x, n, top);
    const float factor = (float)(1.44269504088896341 / p->temperature);
    const double total = NAME(partition)(x, n, top, factor);
    const int plain = p->top_k <= 0 && p->top_p >= 1.0f && p->min_p <= 0.0f;
    const double need = total * (plain ? p->uniform : p->top_p);
    for (int bits = 11;; bits += 4) {
        const double least = bits > 27 ? 0.0 : ldexp(total, -bits);
        const int whole = least == 0.0;
        const float cut = whole ? -FLT_MAX : (float)(top + log(least) * p->temperature);
        const int64_t found = NAME(at_least)(x, n, MIN(cut, top), keys);
        const double mass = NAME(weigh)(keys, found, top, factor, weight);
        /* Sorting is what costs: do it when these tokens can be enough. */
        const int likely = p->top_k > 0 ? found >= p->top_k || p->top_p >= 1.0f : mass >= need || least <= p->min_p;
        if (!whole && !likely) {
            if (found > n / 4) bits = 24;
            continue;
        }
        const uint64_t *sorted = NAME(sort_keys)(keys, spare, found);
        NAME(weigh)(sorted, found, top, factor, weight);
        double base = total;
        if (p->top_k > 0) {
            base = 0;
            for (int64_t i = 0; i < found && i < p->top_k; i++) base += weight[i];
            if (!whole && found < p->top_k && p->top_p < 1.0f) continue;
        }
        int64_t at = NAME(walk)(p, weight, found, base, whole);
        if (at >= 0) return (int64_t)(uint32_t)sorted[at];
        if (found > n / 4) bits = 24; /* the next round takes every token */
    }
}

#ifndef FEW
#define FEW 4096 /* tokens that a mask may allow for its row to be gathered; rows of other masks are copied whole */
#endif

/* out = x at the set bits of the mask, ids theirs, ascending; how many, -1 when they are more than FEW. */
static int64_t NAME(few_of)(const float *x, const uint32_t *mask, int64_t n, float *out, uint32_t *ids) {
    int64_t found = 0;
    for (int64_t w = 0; w * 32 < n; w++)
        for (uint32_t word = mask[w]; word; word &= word - 1) {
            const int64_t id = w * 32 + __builtin_ctz(word);
            if (id >= n) return found;
            if (found == FEW) return -1;
            ids[found] = (uint32_t)id;
            out[found++] = x[id];
        }
    return found;
}

/* out = x where the mask's bit is set, -inf elsewhere. */
static void NAME(masked_row)(const float *x, const uint32_t *mask, int64_t n, float *out) {
    const vf never = NAME(splat)(-INFINITY);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const uint32_t word = mask[i / 32];
        for (int j = 0; j < 32; j += VW) {
            vu bit = ((vu){0} + word) >> ((vu)LANES + j) & 1;
            *(vf *)(out + i + j) = NAME(pick)((vi)(bit != 0), *(const vf *)(x + i + j), never);
        }
    }
    for (; i < n; i++) out[i] = mask[i / 32] >> (i % 32) & 1 ? x[i] : -INFINITY;
}

static int NAME(sample)(const Sampling *a) {
    int code = 0;
    const int64_t n = a->vocab;
#pragma omp parallel for schedule(dynamic, 1) if (a->rows * n > 65536)
    for (int64_t r = 0; r < a->rows; r++) {
        char *memory = scratch((size_t)n * (8 + 8 + 4 + 4) + 256 + FEW * 8);
        if (!memory) {
            code = NO_MEMORY;
            continue;
        }
        uint64_t *keys = (uint64_t *)memory, *spare = keys + n;
        float *weight = (float *)(spare + n);
        const float *x = (const float *)(uintptr_t)a->logits[r];
        const uint32_t *mask = (const uint32_t *)(uintptr_t)a->masks[r];
        const NAME(Shape) shape = {a->temperature[r], a->top_p[r], a->min_p[r], a->top_k[r], a->uniform[r]};
        if (!mask) {
            a->tokens[r] = NAME(draw)(x, n, &shape, keys, spare, weight);
            continue;
        }
        float *copy = weight + n + FEW;
        uint32_t *ids = (uint32_t *)(weight + n);
        const int64_t few = NAME(few_of)(x, mask, n, copy, ids);
        if (few < 0) {
            NAME(masked_row)(x, mask, n, copy);
            a->tokens[r] = NAME(draw)(copy, n, &shape, keys, spare, weight);
        } else {
            const int64_t at = few ? NAME(draw)(copy, few, &shape, keys, spare, weight) : -2;
            a->tokens[r] = at < 0 ? at : (int64_t)ids[at];
        }
    }
    return code;
}
