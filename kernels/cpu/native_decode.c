/* Attention of decode rows, one token each, that reads what several rows share once. Included per vector width.
 *
 *   rows in the order of their page lists      blocks of KV, 32 positions each
 *     a   [ 0 | 1 | 2 | 3 | 4 . ]              0, 1: the queries of a, b, c together
 *     b   [ 0 | 1 | 2 | 5 | . ]                2: those of a and b
 *     c   [ 0 | 1 | 6 | . ]                    the rest each alone
 *
 * Every query vector goes through its blocks first to last, with the operations of native_attention.c in their order,
 * whoever goes along: what is shared saves reading and turning keys and does not show in the result.
 */

typedef struct {
    Attention *a;
    const int32_t *order;                      /* rows, neighbours with long common beginnings */
    float *qt, *acc, *sums, *max, *kt, *values, *s; /* qt [heads][D][stride]; acc, sums, max [heads][queries][..] */
    int first, queries, stride, padded, low, high; /* first: place in `order` of query 0; low, high: KV heads */
} NAME(Group);

/* Offsets in bytes of positions [from, to) of a row in the pools, KV head 0; other lanes get those of `from`. */
INLINE void NAME(offsets)(Attention *a, int row, int from, int to, int origin, size_t element, int64_t *at) {
    const int32_t *table = a->table + row * a->table_stride;
    const int64_t page_bytes = a->page_stride * element, token_bytes = a->dim * element;
    const int slots = a->page;
    int bad = 0;
    if (slots == 1) {
        for (int p = from; p < to; p++) {
            uint32_t number = (uint32_t)table[p];
            bad |= number >= (uint32_t)a->pages;
            at[p - origin] = number >= (uint32_t)a->pages ? 0 : (int64_t)number * page_bytes;
        }
    } else {
        int page = from / slots, offset = from % slots;
        for (int p = from; p < to; p++) {
            uint32_t number = (uint32_t)table[page];
            bad |= number >= (uint32_t)a->pages;
            at[p - origin] = number >= (uint32_t)a->pages ? 0 : (int64_t)number * page_bytes + offset * token_bytes;
            if (++offset == slots) offset = 0, page++;
        }
    }
    if (bad) a->failed = BAD_PAGE;
    for (int t = 0; t < from - origin; t++) at[t] = at[from - origin];
    for (int t = to - origin; t < BLOCK; t++) at[t] = at[from - origin];
}

/* Which cache lines of the block at `next` to fetch while head `h` of the `heads` is done with this one: pages of one
 * token hold its heads side by side, so each head fetches whole tokens; larger pages hold them apart. */
INLINE Ahead NAME(share)(const Attention *a, const char *pool, const int64_t *next, int h, int low, int high, size_t element,
                         const char **rows) {
    const int whole = a->page == 1 && a->head_stride == a->dim, heads = high - low;
    const int from = whole ? BLOCK * (h - low) / heads : 0, to = whole ? BLOCK * (h - low + 1) / heads : BLOCK;
    const char *base = pool + (whole ? low : h) * a->head_stride * (int64_t)element;
    for (int t = 0; t < BLOCK; t++) rows[t] = base + next[t];
    return (Ahead){rows, from, to, 0, (int)((whole ? heads : 1) * a->dim * element)};
}

/* Block `b` of the rows order[low .. high), all of whose queries see exactly its positions [from, to). next: offsets of
 * the block that follows, or NULL. */
INLINE void NAME(decode_block)(const NAME(Group) *g, int low, int high, const int64_t *at, const int64_t *next, int from,
                               int to, const int bf16) {
    Attention *a = g->a;
    const size_t element = bf16 ? 2 : 4;
    const int D = a->dim, group = a->heads / a->kv_heads, begin = (low - g->first) * group, count = (high - low) * group;
    const int copy = g->padded != D || (bf16 && count > 8), paired = NAME(paired)(bf16);
    const float scale = a->scale * 1.44269504088896341f;
    for (int h = g->low; h < g->high; h++) {
        const int64_t head = h * a->head_stride * (int64_t)element;
        const char *k[BLOCK], *v[BLOCK], *key = (const char *)a->k + head, *value = (const char *)a->v + head;
        for (int t = 0; t < BLOCK; t++) k[t] = key + at[t];
        for (int t = 0; t < BLOCK; t++) v[t] = value + at[t];
        const char *key_rows[BLOCK], *value_rows[BLOCK];
        Ahead keys = {0}, values = {0};
        if (next) {
            keys = NAME(share)(a, a->k, next, h, g->low, g->high, element, key_rows);
            values = NAME(share)(a, a->v, next, h, g->low, g->high, element, value_rows);
        }
        NAME(turn_keys)(k, from, to, D, g->kt, bf16, paired);
        if (copy)
            for (int t = from; t < to; t++) {
                fetch(&values, (int)(D * element + 63) / 64);
                NAME(copy_row)(v[t], D, g->values + t * g->padded, bf16);
                v[t] = (const char *)(g->values + t * g->padded);
            }
        const int64_t from_query = (int64_t)(h - g->low) * g->queries + begin;
        const float *qt = g->qt + (int64_t)(h - g->low) * D * g->stride + begin;
        float *acc = g->acc + from_query * g->padded, *sums = g->sums + from_query * VW, *max = g->max + from_query;
        int u = 0;
#define PART(n)                                                                                                     \
    do {                                                                                                            \
        NAME(score)(qt + u, g->stride, g->kt, D, g->s, scale, u ? NULL : &keys, n, bf16, paired);                                              \
        for (int i = 0; i < n; i++)                                                                                 \
            NAME(soften)(g->s + i * BLOCK, from, to, max + u + i, (vf *)(sums + (u + i) * VW), acc + (u + i) * g->padded, \
                         g->padded);                                                                                \
        if (copy)                                                                                                   \
            NAME(gather_all)(g->s, v, NULL, from, to, g->padded, acc + u * g->padded, n, 0);                        \
        else                                                                                                        \
            NAME(gather_all)(g->s, v, u ? NULL : &values, from, to, g->padded, acc + u * g->padded, n, bf16);                  \
    } while (0)
#if VW == 16 || defined(__aarch64__)
        for (; u + 8 <= count; u += 8) PART(8);
#endif
        for (; u + 4 <= count; u += 4) PART(4);
        for (; u + 2 <= count; u += 2) PART(2);
        for (; u < count; u++) PART(1);
#undef PART
    }
}

static void NAME(decode_f32)(const NAME(Group) *g, int low, int high, const int64_t *at, const int64_t *next, int from, int to) {
    NAME(decode_block)(g, low, high, at, next, from, to, 0);
}
static void NAME(decode_bf16)(const NAME(Group) *g, int low, int high, const int64_t *at, const int64_t *next, int from, int to) {
    NAME(decode_block)(g, low, high, at, next, from, to, 1);
}

/* Whether two rows have the whole of block `b` in common. */
static int NAME(together)(const Attention *a, int one, int other, int b) {
    if (MIN(a->len[one], a->len[other]) < (b + 1) * BLOCK) return 0;
    const int first = b * BLOCK / a->page, last = ((b + 1) * BLOCK - 1) / a->page;
    return !memcmp(a->table + one * a->table_stride + first, a->table + other * a->table_stride + first,
                   sizeof(int32_t) * (last - first + 1));
}

/* Rows order[low .. high), which have the blocks before `b` in common and done. */
static void NAME(decode_rows)(const NAME(Group) *g, int low, int high, int b, int bf16) {
    Attention *a = g->a;
    const size_t element = bf16 ? 2 : 4;
    const int row = g->order[low], alone = high - low == 1;
    const int begin = a->window > 0 ? MAX(0, a->len[row] - a->window) : 0, end = a->len[row];
    int64_t at[2][BLOCK];
    int last = b, now = 0; /* the blocks before `last` are done here */
    if (alone) {
        b = MAX(b, begin / BLOCK);
        last = (end + BLOCK - 1) / BLOCK;
    } else {
        while (NAME(together)(a, row, g->order[high - 1], last)) {
            int i = low + 1; /* rows between them have the same pages, and may be shorter */
            while (i < high && a->len[g->order[i]] >= (last + 1) * BLOCK) i++;
            if (i < high) break;
            last++;
        }
    }
    for (int i = b; i < last; i++, now ^= 1) {
        const int origin = i * BLOCK, from = MAX(begin - origin, 0), to = MIN(end - origin, BLOCK);
        if (i == b) NAME(offsets)(a, row, origin + from, origin + to, origin, element, at[now]);
        if (i + 1 < last) NAME(offsets)(a, row, origin + BLOCK, MIN(end, origin + 2 * BLOCK), origin + BLOCK, element, at[!now]);
        (bf16 ? NAME(decode_bf16) : NAME(decode_f32))(g, low, high, at[now], i + 1 < last ? at[!now] : NULL, from, to);
    }
    if (alone) return;
    for (int first = low, i = low + 1; i <= high; i++)
        if (i == high || !NAME(together)(a, g->order[i - 1], g->order[i], last)) {
            NAME(decode_rows)(g, first, i, last, bf16);
            first = i;
        }
}

/* All queries of rows order[first .. last) and KV heads [low, high). */
static int NAME(decode_part)(Attention *a, const int32_t *order, int first, int last, int low, int high, int bf16) {
    const int D = a->dim, group = a->heads / a->kv_heads, lanes = bf16 ? 2 * VW : VW, heads = high - low;
    const int padded = (D + lanes - 1) / lanes * lanes, queries = (last - first) * group;
    const int stride = ((queries + 15) / 16 | 1) * 16; /* an odd number of cache lines: columns do not share a set */
    const int64_t all = (int64_t)heads * queries;
    float *memory = scratch_for(FOR_DECODE, sizeof(float) * (size_t)(all * (padded + VW + 1) + (int64_t)heads * D * stride +
                                                                     2 * BLOCK * padded + 8 * BLOCK) + 64);
    if (!memory) return NO_MEMORY;
    const float scale = a->scale * 1.44269504088896341f;
    NAME(Group) g = {.a = a, .order = order, .first = first, .queries = queries, .stride = stride, .padded = padded,
                     .low = low, .high = high};
    g.s = memory;
    g.kt = g.s + 8 * BLOCK;
    g.values = g.kt + BLOCK * padded;
    g.sums = g.values + BLOCK * padded;
    g.acc = g.sums + all * VW;
    g.qt = g.acc + all * padded;
    g.max = g.qt + (int64_t)heads * D * stride;
    memset(g.values, 0, sizeof(float) * BLOCK * padded);
    memset(g.sums, 0, sizeof(float) * all * (VW + padded));
    for (int64_t i = 0; i < all; i++) g.max[i] = -1e30f;
    for (int h = 0; h < heads; h++)
        for (int u = 0; u < queries; u++) {
            const char *q = (const char *)a->q +
                            NAME(query)(a, order[first + u / group], low + h, u % group, a->q_stride) * (bf16 ? 2 : 4);
            float *to = g.qt + (int64_t)h * D * stride + u;
            if (bf16)
                NAME(put_query)(q, D, scale, to, stride, 1, NAME(paired)(1));
            else
                NAME(put_query)(q, D, scale, to, stride, 0, 0);
        }
    if (a->window > 0)
        for (int i = first; i < last; i++) NAME(decode_rows)(&g, i, i + 1, 0, bf16);
    else
        for (int from = first, i = first + 1; i <= last; i++)
            if (i == last || !NAME(together)(a, order[i - 1], order[i], 0)) {
                NAME(decode_rows)(&g, from, i, 0, bf16);
                from = i;
            }
    for (int64_t i = 0; i < all; i++) {
        const int h = (int)(i / queries), u = (int)(i % queries);
        char *out = (char *)a->out + NAME(query)(a, order[first + u / group], low + h, u % group, (int64_t)a->heads * D) *
                                         (bf16 ? 2 : 4);
        const float factor = 1.0f / NAME(sum)(*(vf *)(g.sums + i * VW));
        if (bf16)
            NAME(write_row)(g.acc + i * padded, factor, D, out, 1);
        else
            NAME(write_row)(g.acc + i * padded, factor, D, out, 0);
    }
    return 0;
}

static int NAME(by_pages)(const Attention *a, int one, int other) {
    const int pages[2] = {(a->len[one] + a->page - 1) / a->page, (a->len[other] + a->page - 1) / a->page};
    const int found = memcmp(a->table + one * a->table_stride, a->table + other * a->table_stride,
                             sizeof(int32_t) * MIN(pages[0], pages[1]));
    return found ? found : pages[0] - pages[1];
}

/* The rows of one token, sorted (merge sort) by their page lists, into order[0 ..]; room for twice the rows. */
static int NAME(sorted_rows)(const Attention *a, int32_t *order) {
    int count = 0;
    for (int r = 0; r < a->rows; r++)
        if (a->cu[r + 1] - a->cu[r] == 1) order[count++] = r;
    int32_t *from = order, *to = order + a->rows;
    for (int width = 1; width < count && a->window <= 0; width *= 2) {
        for (int low = 0; low < count; low += 2 * width) {
            const int middle = MIN(low + width, count), high = MIN(low + 2 * width, count);
            for (int i = low, j = middle, n = low; n < high; n++)
                to[n] = j >= high || (i < middle && NAME(by_pages)(a, from[i], from[j]) <= 0) ? from[i++] : from[j++];
        }
        int32_t *other = from;
        from = to;
        to = other;
    }
    if (from != order) memcpy(order, from, sizeof(int32_t) * count);
    return count;
}
