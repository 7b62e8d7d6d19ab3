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

#define MANY 4 /* rows with common blocks from which on heads are done one after the other */

typedef struct {
    Attention *a;
    const int32_t *order;                      /* rows, neighbours with long common beginnings */
    float *qt, *acc, *sums, *max, *kt, *values, *s; /* qt [heads][D][stride]; acc, sums, max [heads][queries][..] */
    uint32_t *q;                               /* instead of qt, for pair products: [heads][queries][D/2] */
    NAME(Wide) *wide;
    int first, queries, stride, padded, low, high; /* first: place in `order` of query 0; low, high: KV heads */
} NAME(Group);

/* Offsets in bytes of positions [from, to) of a row in the pools, KV head 0; other lanes get those of `from`. */
INLINE void NAME(offsets)(Attention *a, int row, int from, int to, int origin, int64_t *at, const int bf16) {
    const int32_t *table = a->table + row * a->table_stride;
    const int64_t page_bytes = a->page_stride * NAME(cell)(a->kv8, bf16), token_bytes = NAME(row)(a->dim, a->kv8, bf16);
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

static void NAME(offsets_f32)(Attention *a, int row, int from, int to, int origin, int64_t *at) {
    NAME(offsets)(a, row, from, to, origin, at, 0);
}
static void NAME(offsets_bf16)(Attention *a, int row, int from, int to, int origin, int64_t *at) {
    NAME(offsets)(a, row, from, to, origin, at, 1);
}

/* Which cache lines of the block at `next` to fetch while head `h` of the `heads` is done with this one: pages of one
 * token hold its heads side by side, so each head fetches whole tokens; larger pages hold them apart. */
INLINE Ahead NAME(share)(const Attention *a, const char *pool, const int64_t *next, int h, int low, int high,
                         const char **rows, const int bf16) {
    const int64_t head = a->head_stride * NAME(cell)(a->kv8, bf16), row = NAME(row)(a->dim, a->kv8, bf16);
    const int whole = a->page == 1 && head == row, heads = high - low;
    const int from = whole ? BLOCK * (h - low) / heads : 0, to = whole ? BLOCK * (h - low + 1) / heads : BLOCK;
    const char *base = pool + (whole ? low : h) * head;
    for (int t = 0; t < BLOCK; t++) rows[t] = base + next[t];
    return (Ahead){rows, from, to, 0, (int)((whole ? heads : 1) * row)};
}

/* Block of the rows order[low .. high), all of whose queries see exactly its positions [from, to). next: offsets of
 * the block that follows, or NULL. */
INLINE void NAME(decode_block)(const NAME(Group) *g, int low, int high, const int64_t *at, const int64_t *next, int from,
                               int to, const int bf16) {
    Attention *a = g->a;
    const int D = a->dim, group = a->heads / a->kv_heads, begin = (low - g->first) * group, count = (high - low) * group;
    const int copy = g->padded != D || (bf16 && count > 8), paired = NAME(paired)(bf16);
    for (int h = g->low; h < g->high; h++) {
        const int64_t head = h * a->head_stride * NAME(cell)(a->kv8, bf16);
        const char *k[BLOCK], *v[BLOCK], *key = (const char *)a->k + head, *value = (const char *)a->v + head;
        for (int t = 0; t < BLOCK; t++) k[t] = key + at[t];
        for (int t = 0; t < BLOCK; t++) v[t] = value + at[t];
        const char *key_rows[BLOCK], *value_rows[BLOCK];
        Ahead keys = {0}, values = {0};
        if (next) {
            keys = NAME(share)(a, a->k, next, h, g->low, g->high, key_rows, bf16);
            values = NAME(share)(a, a->v, next, h, g->low, g->high, value_rows, bf16);
        }
        const int64_t from_query = (int64_t)(h - g->low) * g->queries + begin;
        float *acc = g->acc + from_query * g->padded, *sums = g->sums + from_query * VW, *max = g->max + from_query;
        if (paired) {
            const uint32_t seen = NAME(bits)(from, to);
            Block block = {.keys = g->kt, .values = (uint32_t *)g->values, .pairs = D / 2, .padded = g->padded,
                           .scale = a->scale * LOG2_E};
            const Queries queries = {g->q + from_query * (D / 2), max, sums, acc, &seen, 0};
            NAME(lay_out)(&block, a, k, v, from, to, g->kt, (uint32_t *)g->values, g->wide, &values);
            pairs_attend(&block, &queries, count, &keys);
            continue;
        }
        if (a->kv8) NAME(widen)(g->wide, k, v, from, to, D, bf16);
        NAME(turn_keys)(k, from, to, D, g->kt, bf16, 0);
        if (copy)
            for (int t = from; t < to; t++) {
                fetch(&values, (int)(NAME(row)(D, a->kv8, bf16) + 63) / 64);
                NAME(copy_row)(v[t], D, g->values + t * g->padded, bf16);
                v[t] = (const char *)(g->values + t * g->padded);
            }
        const float *qt = g->qt + (int64_t)(h - g->low) * D * g->stride + begin;
        int u = 0;
#define PART(n)                                                                                                     \
    do {                                                                                                            \
        NAME(score)(qt + u, g->stride, g->kt, D, g->s, u ? NULL : &keys, n, bf16);                                  \
        for (int i = 0; i < n; i++) {                                                                               \
            if (a->kv8) NAME(times)(g->s + i * BLOCK, g->wide->key_scale);                                          \
            NAME(soften)(g->s + i * BLOCK, from, to, max + u + i, (vf *)(sums + (u + i) * VW), acc + (u + i) * g->padded, \
                         g->padded);                                                                                \
            if (a->kv8) NAME(times)(g->s + i * BLOCK, g->wide->value_scale);                                        \
        }                                                                                                           \
        if (copy)                                                                                                   \
            NAME(gather_all)(g->s, v, NULL, from, to, g->padded, acc + u * g->padded, n, 0);                        \
        else                                                                                                        \
            NAME(gather_all)(g->s, v, u ? NULL : &values, from, to, g->padded, acc + u * g->padded, n, bf16);       \
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

/* Blocks [b, last) of the rows order[low .. high), which see their positions [begin, end). */
static void NAME(decode_run)(const NAME(Group) *g, int low, int high, int b, int last, int begin, int end, int bf16) {
    const int row = g->order[low];
    int64_t at[2][BLOCK];
    for (int i = b, now = 0; i < last; i++, now ^= 1) {
        const int origin = i * BLOCK, from = MAX(begin - origin, 0), to = MIN(end - origin, BLOCK);
        for (int j = i == b ? i : i + 1; j <= MIN(i + 1, last - 1); j++) {
            const int first = MAX(begin, j * BLOCK), limit = MIN(end, (j + 1) * BLOCK);
            (bf16 ? NAME(offsets_bf16) : NAME(offsets_f32))(g->a, row, first, limit, j * BLOCK, at[j == i ? now : !now]);
        }
        (bf16 ? NAME(decode_bf16) : NAME(decode_f32))(g, low, high, at[now], i + 1 < last ? at[!now] : NULL, from, to);
    }
}

/* The part of a group that is one of its KV heads. */
INLINE NAME(Group) NAME(of_head)(const NAME(Group) *g, int h) {
    NAME(Group) one = *g;
    const int64_t queries = (int64_t)(h - g->low) * g->queries;
    one.low = h;
    one.high = h + 1;
    one.qt += (int64_t)(h - g->low) * g->a->dim * g->stride;
    one.q += queries * (g->a->dim / 2);
    one.acc += queries * g->padded;
    one.sums += queries * VW;
    one.max += queries;
    return one;
}

/* Rows order[low .. high), which have the blocks before `b` in common and done. */
static void NAME(decode_rows)(const NAME(Group) *g, int low, int high, int b, int bf16) {
    Attention *a = g->a;
    const int row = g->order[low], alone = high - low == 1;
    const int begin = a->window > 0 ? MAX(0, a->len[row] - a->window) : 0, end = a->len[row];
    int last = b; /* the blocks before it are done here */
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
    if (high - low < MANY)
        NAME(decode_run)(g, low, high, b, last, begin, end, bf16);
    else /* the sums of one head's queries stay in the cache; those of all heads might not */
        for (int h = g->low; h < g->high; h++) {
            const NAME(Group) one = NAME(of_head)(g, h);
            NAME(decode_run)(&one, low, high, b, last, begin, end, bf16);
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
    const size_t element = bf16 ? 2 : 4, turned = (size_t)heads * D * stride;
    float *memory = scratch_for(FOR_DECODE, sizeof(float) * (size_t)(all * (padded + VW + 1) + turned + 2 * BLOCK * padded +
                                                                     8 * BLOCK) + sizeof(NAME(Wide)) + 2 * BLOCK * D * element + 128);
    if (!memory) return NO_MEMORY;
    NAME(Group) g = {.a = a, .order = order, .first = first, .queries = queries, .stride = stride, .padded = padded,
                     .low = low, .high = high};
    g.s = memory;
    g.kt = g.s + 8 * BLOCK;
    g.values = g.kt + BLOCK * padded;
    g.sums = g.values + BLOCK * padded;
    g.acc = g.sums + all * VW;
    g.qt = g.acc + all * padded;
    g.q = (uint32_t *)g.qt;
    g.max = g.qt + turned;
    g.wide = (NAME(Wide) *)(g.max + all);
    memset(g.values, 0, sizeof(float) * BLOCK * padded);
    memset(g.sums, 0, sizeof(float) * all * (VW + padded));
    for (int64_t i = 0; i < all; i++) g.max[i] = -1e30f;
    for (int h = 0; h < heads; h++)
        for (int u = 0; u < queries; u++) {
            const char *q = (const char *)a->q +
                            NAME(query)(a, order[first + u / group], low + h, u % group, a->q_stride) * element;
            float *to = g.qt + (int64_t)h * D * stride + u;
            if (NAME(paired)(bf16))
                memcpy(g.q + ((int64_t)h * queries + u) * (D / 2), q, 2 * D);
            else if (bf16)
                NAME(put_query)(q, D, a->scale * LOG2_E, to, stride, 1);
            else
                NAME(put_query)(q, D, a->scale * LOG2_E, to, stride, 0);
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
        char *out = (char *)a->out + NAME(query)(a, order[first + u / group], low + h, u % group, (int64_t)a->heads * D) * element;
        const float factor = 1.0f / NAME(sum)(*(vf *)(g.sums + i * VW));
        if (NAME(paired)(bf16))
            pairs_write(g.acc + i * padded, factor, D, out);
        else if (bf16)
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
