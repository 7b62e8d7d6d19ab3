/* Rows of the KV pools: one token's vector of one head. Included per vector width.
 *
 *   float32, bfloat16   [ D elements ]
 *   int8                [ D integers | scale, float32 | 4 bytes unused ]     value = integer * scale, scale = absmax / 127
 */
#define ROW_TAIL 8

/* Bytes of one element of a pool, and of a row. */
INLINE int64_t NAME(cell)(int kv8, int bf16) { return kv8 ? 1 : bf16 ? 2 : 4; }
INLINE int64_t NAME(row)(int dim, int kv8, int bf16) { return kv8 ? dim + ROW_TAIL : dim * (bf16 ? 2 : 4); }

/* Address of slot `slot`, KV head 0. */
INLINE int64_t NAME(slot)(int64_t slot, int page, int64_t page_stride, int dim, int kv8, int bf16) {
    return slot / page * page_stride * NAME(cell)(kv8, bf16) + slot % page * NAME(row)(dim, kv8, bf16);
}

INLINE float NAME(row_scale)(const void *row, int dim) {
    float scale;
    memcpy(&scale, (const char *)row + dim, sizeof scale);
    return scale;
}

/* x [dim] as a row of integers. Ties go to the even integer: adding 1.5 * 2^23 leaves them in the low bits of the sum.
 * NaN anywhere makes the scale NaN. */
INLINE void NAME(put_int8)(const float *x, void *to, int dim) {
    const float magic = 12582912.0f;
    float most = 0, odd = 0;
    int i = 0;
    vf top = {0}, strange = {0};
    for (; i + VW <= dim; i += VW) {
        vf a = *(const vf *)(x + i);
        top = NAME(larger)(NAME(pick)(a < 0.0f, -a, a), top);
        strange += a - a;
    }
    most = NAME(maximum)(top);
    odd = NAME(sum)(strange);
    for (; i < dim; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        odd += x[i] - x[i];
    }
    const float scale = most / 127.0f + odd, unit = most > 0.0f ? scale : 1.0f;
    int8_t *row = to;
    for (i = 0; i + VW <= dim; i += VW) {
        vi n = (vi)(*(const vf *)(x + i) / unit + magic) - 0x4b400000;
        *(vb *)(row + i) = __builtin_convertvector(n, vb);
    }
    for (; i < dim; i++) {
        float shifted = x[i] / unit + magic;
        int32_t n;
        memcpy(&n, &shifted, sizeof n);
        row[i] = (int8_t)(n - 0x4b400000);
    }
    memcpy(row + dim, &scale, sizeof scale);
}

/* x [dim] as a row of a pool. */
INLINE void NAME(put_kv)(const float *x, void *to, int dim, const int how) {
    if (how == AS_INT8) {
        NAME(put_int8)(x, to, dim);
        return;
    }
    int i = 0;
    for (; i + VW <= dim; i += VW) NAME(store)(to, i, *(const vf *)(x + i), how == AS_BF16);
    for (; i < dim; i++) NAME(store1)(to, i, x[i], how == AS_BF16);
}

/* A block's int8 rows as the element type, which holds their integers exactly; their scales meet the scores and weights. */
typedef struct {
    float key_scale[BLOCK], value_scale[BLOCK];
    char rows[]; /* keys [BLOCK][D], then values */
} NAME(Wide);

INLINE void NAME(widen_row)(const char *row, int dim, char *out, const int bf16) {
    int i = 0;
#if VW == 16
    if (bf16 && dots) {
        pairs_widen((const int8_t *)row, dim, (uint16_t *)out);
        return;
    }
#endif
    for (; i + VW <= dim; i += VW)
        NAME(store)(out, i, __builtin_convertvector(__builtin_convertvector(*(const vb *)(row + i), vi), vf), bf16);
    for (; i < dim; i++) NAME(store1)(out, i, (float)((const int8_t *)row)[i], bf16);
}

/* k and v: the block's rows before, the widened ones after; those outside [from, to) are zeros. */
INLINE void NAME(widen)(NAME(Wide) *w, const char **k, const char **v, int from, int to, int dim, const int bf16) {
    const int64_t bytes = dim * (bf16 ? 2 : 4);
    for (int t = 0; t < BLOCK; t++) {
        char *key = w->rows + t * bytes, *value = w->rows + (BLOCK + t) * bytes;
        if (t < from || t >= to) {
            w->key_scale[t] = w->value_scale[t] = 0;
            memset(key, 0, bytes);
            memset(value, 0, bytes);
        } else {
            w->key_scale[t] = NAME(row_scale)(k[t], dim);
            w->value_scale[t] = NAME(row_scale)(v[t], dim);
            NAME(widen_row)(k[t], dim, key, bf16);
            NAME(widen_row)(v[t], dim, value, bf16);
        }
        k[t] = key;
        v[t] = value;
    }
}

INLINE void NAME(times)(float *s, const float *factor) {
    for (int t = 0; t < BLOCK; t += VW) *(vf *)(s + t) *= *(const vf *)(factor + t);
}
#undef ROW_TAIL
