/* Paged attention with online softmax (Flash-Decoding's block loop without its split). Included per vector width.
 *
 *   row's query vectors, u = token * G + head in group        KV positions of the row
 *   [ tile 0: 64 vectors | tile 1 | ... ]  one task = tile x kv head    [ block 0 | block 1 | ... ]  32 tokens each
 *
 * Blocks stand at absolute positions and every query vector goes through the same operations in the same order
 * whatever shares its tile: its result depends on nothing but its own query and KV, not on batch, chunk or threads.
 * Only positions that some query of the tile attends to are ever read.
 */

/* Addresses of the K and V rows of block `b` within [begin, end); other lanes get `zeros`, which is a row of zeros. */
INLINE void NAME(locate)(Attention *a, const int32_t *table, int head, int b, int begin, int end,
                         const char *zeros, const char **k, const char **v, const int bf16) {
    int from = MAX(begin, b * BLOCK), to = MIN(end, (b + 1) * BLOCK), slots = a->page;
    const int64_t cell = NAME(cell)(a->kv8, bf16), row = NAME(row)(a->dim, a->kv8, bf16);
    int page = from / slots, offset = from % slots;
    for (int t = 0; t < BLOCK; t++) k[t] = v[t] = zeros;
    for (int p = from; p < to; p++) {
        uint32_t number = (uint32_t)table[page];
        if (number < (uint32_t)a->pages) {
            int64_t at = ((int64_t)number * a->page_stride + head * a->head_stride) * cell + offset * row;
            k[p - b * BLOCK] = (const char *)a->k + at;
            v[p - b * BLOCK] = (const char *)a->v + at;
        } else {
            a->failed = BAD_PAGE;
        }
        if (++offset == slots) offset = 0, page++;
    }
}

/* kt[d * BLOCK + t] = K of token t: tokens become lanes. A bfloat16 row is moved as pairs, and stays so when `paired`. */
INLINE void NAME(turn_keys)(const char *const *k, int from, int to, int dim, float *kt, const int bf16, const int paired) {
    const int words = bf16 ? dim / 2 : dim, split = bf16 && !paired;
    for (int group = from / VW * VW; group < to; group += VW)
        for (int word = 0; word < words; word += VW) {
            vu r[VW];
            if (word + VW <= words) {
                for (int t = 0; t < VW; t++) r[t] = *(const vu *)(k[group + t] + word * 4);
            } else {
                memset(r, 0, sizeof r);
                for (int t = 0; t < VW; t++) memcpy(&r[t], k[group + t] + word * 4, (words - word) * 4);
            }
            NAME(transpose)(r);
            const int count = MIN(VW, words - word);
            float *at = kt + (split ? 2 : 1) * word * BLOCK + group;
            if (split)
                for (int j = 0; j < count; j++) {
                    *(vu *)(at + 2 * j * BLOCK) = r[j] << 16;
                    *(vu *)(at + (2 * j + 1) * BLOCK) = r[j] & 0xffff0000u;
                }
            else if (count == VW)
                for (int j = 0; j < VW; j++) *(vu *)(at + j * BLOCK) = r[j];
            else
                for (int j = 0; j < count; j++) *(vu *)(at + j * BLOCK) = r[j];
        }
}

/* Column of a query in qt: its floats, scaled. */
INLINE void NAME(put_query)(const void *q, int dim, float scale, float *to, int stride, const int bf16) {
    for (int d = 0; d < dim; d++) to[d * stride] = NAME(load1)(q, d, bf16) * scale;
}

/* s[u][t] for `count` query vectors: qt is [dim][tile], kt is [dim][BLOCK]. Meanwhile the next block's K rows are
 * fetched, a cache line or two per step. */
INLINE void NAME(score)(const float *qt, int tile, const float *kt, int dim, float *s, Ahead *next, const int count,
                        const int bf16) {
    for (int t = 0; t < BLOCK; t += 2 * VW) {
        vf x[8], y[8];
        for (int u = 0; u < count; u++) x[u] = y[u] = (vf){0};
        for (int d = 0; d < dim; d++) {
            if (next) fetch(next, bf16 ? 1 : 2);
            vf k0 = *(const vf *)(kt + d * BLOCK + t), k1 = *(const vf *)(kt + d * BLOCK + t + VW);
            for (int u = 0; u < count; u++) {
                float q = qt[d * tile + u];
                x[u] += q * k0;
                y[u] += q * k1;
            }
        }
        for (int u = 0; u < count; u++) {
            *(vf *)(s + u * BLOCK + t) = x[u];
            *(vf *)(s + u * BLOCK + t + VW) = y[u];
        }
    }
}

/* One query's scores of a block to weights; the running maximum, the lanes' sum and the accumulator follow it. */
INLINE void NAME(soften)(float *s, int from, int to, float *max, vf *sum, float *acc, int padded) {
    vf x[BLOCK / VW], top = NAME(splat)(*max);
    for (int i = 0; i < BLOCK / VW; i++) {
        x[i] = *(vf *)(s + i * VW);
        if (from > 0 || to < BLOCK) {
            vi lane = (vi)LANES + i * VW;
            x[i] = NAME(pick)((lane >= from) & (lane < to), x[i], NAME(splat)(-INFINITY));
        }
        top = NAME(larger)(x[i], top);
    }
    float new = NAME(maximum)(top);
    if (new > *max) {
        float shrink = NAME(exp2_1)(*max - new);
        *max = new;
        *sum *= shrink;
        for (int d = 0; d < padded; d += VW) *(vf *)(acc + d) *= shrink;
    }
    for (int i = 0; i < BLOCK / VW; i++) {
        vf e = NAME(exp2)(x[i] - new);
        *sum += e;
        *(vf *)(s + i * VW) = e;
    }
}

/* acc[u][d] += s[u][t] * V[t][d] for `count` query vectors and `wide` vectors of dims from d on (2 for bfloat16, whose
 * accumulators keep the order of load2 until the end). */
INLINE void NAME(gather)(const float *s, const char *const *v, Ahead *next, int from, int to, int d, int padded, float *acc,
                         const int count, const int wide, const int bf16) {
    vf o[8][2];
    for (int u = 0; u < count; u++)
        for (int i = 0; i < wide; i++) o[u][i] = *(vf *)(acc + u * padded + d + i * VW);
    for (int t = from; t < to; t++) {
        vf x[2];
        if (wide == 2)
            NAME(load2)(v[t], d, x, x + 1, bf16);
        else
            x[0] = NAME(load)(v[t], d, bf16);
        if (next) fetch(next, bf16 ? 1 : 2);
        for (int u = 0; u < count; u++)
            for (int i = 0; i < wide; i++) o[u][i] += s[u * BLOCK + t] * x[i];
    }
    for (int u = 0; u < count; u++)
        for (int i = 0; i < wide; i++) *(vf *)(acc + u * padded + d + i * VW) = o[u][i];
}

INLINE void NAME(gather_all)(const float *s, const char *const *v, Ahead *next, int from, int to, int padded, float *acc,
                             const int count, const int bf16) {
    int d = 0;
    for (; d + 2 * VW <= padded; d += 2 * VW) NAME(gather)(s, v, next, from, to, d, padded, acc, count, 2, bf16);
    if (!bf16 && d < padded) NAME(gather)(s, v, next, from, to, d, padded, acc, count, 1, 0);
}

/* One row of V as `padded` floats in the order of the accumulators; the tail beyond D is zero already. */
INLINE void NAME(copy_row)(const char *v, int dim, float *out, const int bf16) {
    int d = 0;
    vf a, b;
    for (; d + 2 * VW <= dim; d += 2 * VW) {
        NAME(load2)(v, d, &a, &b, bf16);
        NAME(store2)(out, d, a, b, 0);
    }
    if (bf16 && d < dim) {
        uint16_t tail[2 * VW] = {0};
        memcpy(tail, v + 2 * d, 2 * (dim - d));
        NAME(load2)(tail, 0, &a, &b, 1);
        NAME(store2)(out, d, a, b, 0);
    }
    if (!bf16) memcpy(out + d, v + 4 * d, 4 * (dim - d));
}

INLINE void NAME(write_row)(const float *acc, float factor, int dim, void *out, const int bf16) {
    int d = 0;
    for (; d + 2 * VW <= dim; d += 2 * VW)
        NAME(store2)(out, d, *(const vf *)(acc + d) * factor, *(const vf *)(acc + d + VW) * factor, bf16);
    if (bf16 && d < dim) {
        uint16_t tail[2 * VW];
        NAME(store2)(tail, 0, *(const vf *)(acc + d) * factor, *(const vf *)(acc + d + VW) * factor, 1);
        memcpy((uint16_t *)out + d, tail, 2 * (dim - d));
    }
    if (!bf16)
        for (; d < dim; d++) ((float *)out)[d] = acc[d] * factor;
}

#if VW == 16 || defined(__aarch64__)
#define EIGHT(call) for (; u + 8 <= count; u += 8) call(8)
#else
#define EIGHT(call) /* sixteen registers hold four query vectors' sums */
#endif
#define IN_GROUPS(call)                     \
    do {                                    \
        int u = 0;                          \
        EIGHT(call);                        \
        for (; u + 4 <= count; u += 4) call(4); \
        for (; u + 2 <= count; u += 2) call(2); \
        for (; u < count; u++) call(1);     \
    } while (0)

/* Element offset of a row's query vector u in a tensor [T, H, D] with this stride between tokens. */
INLINE int64_t NAME(query)(const Attention *a, int row, int head, int u, int64_t stride) {
    const int group = a->heads / a->kv_heads;
    return (a->cu[row] + u / group) * stride + (int64_t)(head * group + u % group) * a->dim;
}

/* `count` query vectors from `first` on of one row, all of one KV head. Returns 0 or NO_MEMORY. */
INLINE int NAME(attend)(Attention *a, int row, int head, int first, int count, const int bf16) {
    const int D = a->dim, group = a->heads / a->kv_heads, lanes = bf16 ? 2 * VW : VW,
              padded = (D + lanes - 1) / lanes * lanes;
    const size_t element = bf16 ? 2 : 4;
    const int base = a->len[row] - (a->cu[row + 1] - a->cu[row]);
    const int start = base + first / group, end = base + (first + count - 1) / group + 1;
    const int begin = a->window > 0 ? MAX(0, start - a->window + 1) : 0;
    const int copy = padded != D || (bf16 && count > 8); /* V as padded floats, when it is read often or has a tail */
    const int row_bytes = (int)NAME(row)(D, a->kv8, bf16);
    float *memory = scratch(sizeof(float) * (size_t)(2 * TILE * padded + TILE * BLOCK + 2 * BLOCK * padded + 2 * padded +
                                                     TILE * (VW + 1)) + sizeof(NAME(Wide)) + 2 * BLOCK * D * element + 128);
    if (!memory) return NO_MEMORY;
    float *sums = memory, *qt = sums + TILE * VW, *acc = qt + TILE * padded, *s = acc + TILE * padded;
    float *kt = s + TILE * BLOCK, *values = kt + BLOCK * padded, *zeros = values + BLOCK * padded, *max = zeros + 2 * padded;
    NAME(Wide) *wide = (NAME(Wide) *)(max + TILE);
    memset(zeros, 0, sizeof(float) * 2 * padded);
    memset(acc, 0, sizeof(float) * count * padded);
    memset(sums, 0, sizeof(float) * count * VW);
    for (int u = 0; u < count; u++) {
        const char *q = (const char *)a->q + NAME(query)(a, row, head, first + u, a->q_stride) * element;
        NAME(put_query)(q, D, a->scale * LOG2_E, qt + u, count, bf16);
        max[u] = -1e30f;
    }
    const char *k[2][BLOCK], *v[2][BLOCK], *copied[BLOCK];
    for (int t = 0; t < BLOCK; t++) copied[t] = (const char *)(values + t * padded);
    if (copy) memset(values, 0, sizeof(float) * BLOCK * padded);
    const int32_t *table = a->table + row * a->table_stride;
    const int last = (end - 1) / BLOCK;
    NAME(locate)(a, table, head, begin / BLOCK, begin, end, (char *)zeros, k[0], v[0], bf16);
    for (int b = begin / BLOCK, now = 0; b <= last; b++, now ^= 1) {
        const int origin = b * BLOCK, from = MAX(begin - origin, 0), to = MIN(end - origin, BLOCK);
        if (b < last) NAME(locate)(a, table, head, b + 1, begin, end, (char *)zeros, k[!now], v[!now], bf16);
        Ahead keys = {k[!now], 0, BLOCK, 0, row_bytes}, next_values = {v[!now], 0, BLOCK, 0, row_bytes};
        if (a->kv8) NAME(widen)(wide, k[now], v[now], from, to, D, bf16);
        NAME(turn_keys)(k[now], from, to, D, kt, bf16, 0);
#define SCORE(n) NAME(score)(qt + u, count, kt, D, s + u * BLOCK, b < last && u == 0 ? &keys : NULL, n, bf16)
        IN_GROUPS(SCORE);
#undef SCORE
        for (int u = 0; u < count; u++) { /* the lanes of the block that this query sees */
            int at = base + (first + u) / group, low = a->window > 0 ? at - a->window + 1 : 0;
            int lane = MAX(from, MIN(low - origin, BLOCK)), limit = MAX(0, MIN(to, at + 1 - origin));
            if (a->kv8) NAME(times)(s + u * BLOCK, wide->key_scale);
            NAME(soften)(s + u * BLOCK, lane, limit, max + u, (vf *)(sums + u * VW), acc + u * padded, padded);
            if (a->kv8) NAME(times)(s + u * BLOCK, wide->value_scale);
        }
        if (copy) {
            for (int t = from; t < to; t++) {
                if (b < last) fetch(&next_values, (row_bytes + 63) / 64);
                NAME(copy_row)(v[now][t], D, values + t * padded, bf16);
            }
#define GATHER(n) NAME(gather_all)(s + u * BLOCK, copied, NULL, from, to, padded, acc + u * padded, n, 0)
            IN_GROUPS(GATHER);
#undef GATHER
        } else {
#define GATHER(n) NAME(gather_all)(s + u * BLOCK, v[now], b < last && u == 0 ? &next_values : NULL, from, to, padded, acc + u * padded, n, bf16)
            IN_GROUPS(GATHER);
#undef GATHER
        }
    }
    for (int u = 0; u < count; u++) {
        char *out = (char *)a->out + NAME(query)(a, row, head, first + u, (int64_t)a->heads * D) * element;
        NAME(write_row)(acc + u * padded, 1.0f / NAME(sum)(*(vf *)(sums + u * VW)), D, out, bf16);
    }
    return 0;
}
#undef IN_GROUPS
#undef EIGHT

#include "native_attend_pairs.c"

static int NAME(attend_f32)(Attention *a, int row, int head, int u, int n) { return NAME(attend)(a, row, head, u, n, 0); }
static int NAME(attend_bf16)(Attention *a, int row, int head, int u, int n) {
    return NAME(paired)(1) ? NAME(attend_pairs)(a, row, head, u, n) : NAME(attend)(a, row, head, u, n, 1);
}

#include "native_decode.c"

static int NAME(check_rows)(const Attention *a) {
    if (a->cu[0] != 0 || a->cu[a->rows] != a->tokens) return BAD_LENGTH;
    for (int r = 0; r < a->rows; r++) {
        int n = a->cu[r + 1] - a->cu[r];
        if (n < 0 || n > a->len[r] || a->len[r] > (int64_t)a->columns * a->page) return BAD_LENGTH;
    }
    return 0;
}

typedef struct { /* 64 query vectors or fewer of one row, all of one KV head */
    int32_t row, first, count;
} NAME(Tile);

typedef struct { /* what attention is divided into, for all layers of a step alike */
    NAME(Tile) *tiles;
    int32_t *order; /* decode rows, sorted */
    int32_t tiled, decoding, slices; /* slices 0: all decode rows and KV heads are one task */
    int64_t tasks;
} NAME(Division);

/* Prefill tiles, the latest and so longest first, then the decode rows. Valid until this thread divides again. */
static int NAME(divide)(const Attention *a, int threads, NAME(Division) *d) {
    const int group = a->heads / a->kv_heads;
    int64_t tiles = 0, work = 0;
    for (int r = 0; r < a->rows; r++) {
        const int64_t n = a->cu[r + 1] - a->cu[r];
        if (n != 1) tiles += (n * group + TILE - 1) / TILE;
        if (n == 1) work += (int64_t)a->len[r] * a->heads * a->dim;
    }
    char *memory = scratch_for(FOR_ORDER, sizeof(int32_t) * 2 * (size_t)a->rows + sizeof *d->tiles * (size_t)tiles);
    if (!memory) return NO_MEMORY;
    *d = (NAME(Division)){.order = (int32_t *)memory, .tiles = (NAME(Tile) *)((int32_t *)memory + 2 * a->rows)};
    for (int r = 0; r < a->rows; r++) {
        const int n = a->cu[r + 1] - a->cu[r], all = n * group;
        for (int first = (all - 1) / TILE * TILE; n > 1 && first >= 0; first -= TILE)
            d->tiles[d->tiled++] = (NAME(Tile)){r, first, MIN(TILE, all - first)};
    }
    d->decoding = NAME(sorted_rows)(a, d->order);
    if (threads > 1 && work > 300000) d->slices = MIN(d->decoding, (4 * threads + a->kv_heads - 1) / a->kv_heads);
    d->tasks = (int64_t)d->tiled * a->kv_heads + (d->slices ? d->slices * a->kv_heads : d->decoding > 0);
    return 0;
}

/* One task of a division; the same bits whoever runs it and however the rest is divided. */
static int NAME(attend_task)(Attention *a, const NAME(Division) *d, int64_t task, int bf16) {
    const int head = (int)(task % a->kv_heads);
    if (task < (int64_t)d->tiled * a->kv_heads) {
        const NAME(Tile) *tile = d->tiles + task / a->kv_heads;
        return (bf16 ? NAME(attend_bf16) : NAME(attend_f32))(a, tile->row, head, tile->first, tile->count);
    }
    if (!d->slices) return NAME(decode_part)(a, d->order, 0, d->decoding, 0, a->kv_heads, bf16);
    const int64_t slice = task / a->kv_heads - d->tiled;
    const int first = (int)(d->decoding * slice / d->slices), last = (int)(d->decoding * (slice + 1) / d->slices);
    return NAME(decode_part)(a, d->order, first, last, head, head + 1, bf16);
}

static int NAME(paged_attention)(const Attention *call, int bf16) {
    Attention a = *call;
    NAME(Division) d;
    int code = NAME(check_rows)(&a);
    if (!code) code = NAME(divide)(&a, thread_count(), &d);
    if (code) return code;
    int64_t work = 0; /* multiplications */
    for (int r = 0; r < a.rows; r++) work += (int64_t)(a.cu[r + 1] - a.cu[r]) * a.len[r] * a.heads * a.dim;
    (void)work; /* unused without OpenMP */
    a.failed = 0;
#pragma omp parallel for schedule(dynamic, 1) if (work > 300000 && d.tasks > 1)
    for (int64_t i = 0; i < d.tasks; i++) {
        int failed = NAME(attend_task)(&a, &d, i, bf16);
        if (failed) a.failed = failed;
    }
    return a.failed;
}
