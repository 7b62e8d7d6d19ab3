/* Attention of a tile of queries by pair products. Included per vector width; used with vectors of 16 floats. */

/* Whether queries and keys are multiplied as pairs of bfloat16. */
INLINE int NAME(paired)(int bf16) { return bf16 && VW == 16 && dots; }

/* The block's rows as words: `keys` [D/2][BLOCK], `values` [BLOCK/2][padded]; k and v may be changed. */
INLINE void NAME(lay_out)(Block *b, const Attention *a, const char **k, const char **v, int from, int to, float *keys,
                          uint32_t *values, NAME(Wide) *wide, Ahead *next) {
    if (a->kv8) {
        NAME(widen)(wide, k, v, from, to, a->dim, 1);
        b->key_scale = wide->key_scale;
        b->value_scale = wide->value_scale;
    }
    NAME(turn_keys)(k, from, to, a->dim, keys, 1, 1);
    pairs_zip(v, from, to, a->dim, b->padded, values, next);
}

/* Bits [from, to) of a word. */
INLINE uint32_t NAME(bits)(int from, int to) {
    return to <= from ? 0 : (0xffffffffu >> (32 - to)) & (0xffffffffu << from);
}

static int NAME(attend_pairs)(Attention *a, int row, int head, int first, int count) {
    const int D = a->dim, group = a->heads / a->kv_heads, padded = (D + 31) / 32 * 32;
    const int base = a->len[row] - (a->cu[row + 1] - a->cu[row]);
    const int start = base + first / group, end = base + (first + count - 1) / group + 1;
    const int begin = a->window > 0 ? MAX(0, start - a->window + 1) : 0;
    const int row_bytes = (int)NAME(row)(D, a->kv8, 1);
    float *memory = scratch(sizeof(float) * (size_t)(TILE * (18 + D / 2 + padded) + BLOCK * padded + padded) +
                            sizeof(NAME(Wide)) + 4 * BLOCK * D + 128);
    if (!memory) return NO_MEMORY;
    float *sums = memory, *acc = sums + TILE * 16, *keys = acc + TILE * padded;
    uint32_t *values = (uint32_t *)(keys + BLOCK * padded / 2), *q = values + BLOCK / 2 * padded, *seen = q + TILE * D / 2;
    float *zeros = (float *)(seen + TILE), *max = zeros + padded;
    NAME(Wide) *wide = (NAME(Wide) *)(max + TILE);
    memset(sums, 0, sizeof(float) * (TILE * 16 + count * padded));
    memset(values, 0, sizeof(uint32_t) * BLOCK / 2 * padded);
    memset(zeros, 0, sizeof(float) * padded);
    for (int u = 0; u < count; u++) {
        memcpy(q + u * D / 2, (const uint16_t *)a->q + NAME(query)(a, row, head, first + u, a->q_stride), 2 * D);
        max[u] = -1e30f;
    }
    const char *k[2][BLOCK], *v[2][BLOCK];
    const int32_t *table = a->table + row * a->table_stride;
    const int last = (end - 1) / BLOCK;
    Block block = {.keys = keys, .values = values, .pairs = D / 2, .padded = padded, .scale = a->scale * LOG2_E};
    const Queries queries = {q, max, sums, acc, seen, 1};
    NAME(locate)(a, table, head, begin / BLOCK, begin, end, (char *)zeros, k[0], v[0], 1);
    for (int b = begin / BLOCK, now = 0; b <= last; b++, now ^= 1) {
        const int origin = b * BLOCK, from = MAX(begin - origin, 0), to = MIN(end - origin, BLOCK);
        Ahead next_keys = {0}, next_values = {0};
        if (b < last) {
            NAME(locate)(a, table, head, b + 1, begin, end, (char *)zeros, k[!now], v[!now], 1);
            next_keys = (Ahead){k[!now], 0, BLOCK, 0, row_bytes};
            next_values = (Ahead){v[!now], 0, BLOCK, 0, row_bytes};
        }
        NAME(lay_out)(&block, a, k[now], v[now], from, to, keys, values, wide, &next_values);
        for (int u = 0; u < count; u++) {
            const int at = base + (first + u) / group, low = a->window > 0 ? at - a->window + 1 : 0;
            seen[u] = NAME(bits)(MAX(from, MIN(low - origin, BLOCK)), MIN(to, at + 1 - origin));
        }
        pairs_attend(&block, &queries, count, &next_keys);
    }
    for (int u = 0; u < count; u++) {
        uint16_t *out = (uint16_t *)a->out + NAME(query)(a, row, head, first + u, (int64_t)a->heads * D);
        pairs_write(acc + u * padded, 1.0f / NAME(sum)(*(vf *)(sums + u * VW)), D, out);
    }
    return 0;
}
