/* Attention to one block of KV with the processor's own pair products (AVX512-BF16), where it has them.
 *
 *   keys    [D/2][BLOCK]       word = two dimensions of one token       scores:  lanes are tokens, a chain over D/2 steps
 *   values  [BLOCK/2][padded]  word = one dimension of two tokens       mixing:  lanes are dimensions, a chain over tokens
 *
 * Weights are rounded to bfloat16 before they meet the values; their sum is not. Both products keep several queries'
 * sums in registers, and no query's operations depend on which others come along.
 */
typedef struct {
    const float *keys;
    const uint32_t *values;
    const float *key_scale, *value_scale; /* [BLOCK] of an int8 pool, whose integers the words hold; or NULL */
    int pairs, padded;                    /* D/2; D rounded up to 32 */
    float scale;
} Block;

typedef struct { /* queries side by side */
    const uint32_t *q;                /* [..][pairs] */
    float *max, *sums, *acc;          /* [..], [..][16], [..][padded] in the order of the words of `values` */
    const uint32_t *seen;             /* a bit per token of the block, `step` words apart */
    int step;
} Queries;

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define PAIRS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")))
#define PAIRS_INLINE PAIRS __attribute__((always_inline)) static inline

/* 2^y for y <= 0, relative error 8e-8; NaN stays NaN. */
PAIRS_INLINE __m512 pairs_exp2(__m512 y) {
    y = _mm512_max_ps(_mm512_set1_ps(-150.0f), y);
    __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(y, n);
    __m512 p = _mm512_set1_ps(1.3276471781644829e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.675541332769988e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550713274150659e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022119723882226e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931469670643605e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* s[u][t] = q[u] . k[t] for `count` queries; meanwhile the next block's K rows are fetched. */
PAIRS_INLINE void pairs_score(const Block *b, const uint32_t *q, float *s, Ahead *next, const int count) {
    __m512 a[12][2];
    for (int u = 0; u < count; u++) a[u][0] = a[u][1] = _mm512_setzero_ps();
    for (int d = 0; d < b->pairs; d++) {
        if (next) fetch(next, 2);
        __m512bh k0 = (__m512bh)_mm512_loadu_ps(b->keys + d * BLOCK), k1 = (__m512bh)_mm512_loadu_ps(b->keys + d * BLOCK + 16);
        for (int u = 0; u < count; u++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)q[u * b->pairs + d]);
            a[u][0] = _mm512_dpbf16_ps(a[u][0], pair, k0);
            a[u][1] = _mm512_dpbf16_ps(a[u][1], pair, k1);
        }
    }
    __m512 scale0 = _mm512_set1_ps(b->scale), scale1 = scale0;
    if (b->key_scale) {
        scale0 = _mm512_mul_ps(scale0, _mm512_loadu_ps(b->key_scale));
        scale1 = _mm512_mul_ps(scale1, _mm512_loadu_ps(b->key_scale + 16));
    }
    for (int u = 0; u < count; u++) {
        _mm512_storeu_ps(s + u * BLOCK, _mm512_mul_ps(a[u][0], scale0));
        _mm512_storeu_ps(s + u * BLOCK + 16, _mm512_mul_ps(a[u][1], scale1));
    }
}

/* One query's scores to weights, in pairs of tokens; the running maximum, the lanes' sum and the accumulator follow. The
 * maximum is looked for only where a score exceeds the last one, which after a few blocks is rare. */
PAIRS_INLINE void pairs_soften(const Block *b, const float *s, uint32_t seen, float *max, float *sums, float *acc, uint32_t *p) {
    const __mmask16 low = (__mmask16)seen, high = (__mmask16)(seen >> 16);
    __m512 x0 = _mm512_loadu_ps(s), x1 = _mm512_loadu_ps(s + 16), top = _mm512_set1_ps(*max), sum = _mm512_loadu_ps(sums);
    if (_mm512_mask_cmp_ps_mask(low, x0, top, _CMP_GT_OQ) | _mm512_mask_cmp_ps_mask(high, x1, top, _CMP_GT_OQ)) {
        __m512 larger = _mm512_mask_max_ps(top, low, x0, top);
        larger = _mm512_mask_max_ps(larger, high, x1, larger);
        const float most = _mm512_reduce_max_ps(larger);
        const __m512 shrink = pairs_exp2(_mm512_sub_ps(top, _mm512_set1_ps(most)));
        *max = most;
        top = _mm512_set1_ps(most);
        sum = _mm512_mul_ps(sum, shrink);
        for (int d = 0; d < b->padded; d += 16) _mm512_storeu_ps(acc + d, _mm512_mul_ps(_mm512_loadu_ps(acc + d), shrink));
    }
    x0 = _mm512_maskz_mov_ps(low, pairs_exp2(_mm512_sub_ps(x0, top)));
    x1 = _mm512_maskz_mov_ps(high, pairs_exp2(_mm512_sub_ps(x1, top)));
    _mm512_storeu_ps(sums, _mm512_add_ps(sum, _mm512_add_ps(x0, x1)));
    if (b->value_scale) {
        x0 = _mm512_maskz_mul_ps(low, x0, _mm512_loadu_ps(b->value_scale));
        x1 = _mm512_maskz_mul_ps(high, x1, _mm512_loadu_ps(b->value_scale + 16));
    }
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(x1, x0));
}

/* acc[u][..] += p[u] times `wide` vectors of the values, token pairs [from, to). */
PAIRS_INLINE void pairs_mix(const Block *b, const uint32_t *p, int from, int to, float *acc, const uint32_t *values,
                            const int count, const int wide) {
    __m512 a[6][4];
    for (int u = 0; u < count; u++)
        for (int i = 0; i < wide; i++) a[u][i] = _mm512_loadu_ps(acc + u * b->padded + 16 * i);
    for (int t = from; t < to; t++) {
        __m512bh v[4];
        for (int i = 0; i < wide; i++) v[i] = (__m512bh)_mm512_loadu_si512(values + t * b->padded + 16 * i);
        for (int u = 0; u < count; u++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)p[u * BLOCK / 2 + t]);
            for (int i = 0; i < wide; i++) a[u][i] = _mm512_dpbf16_ps(a[u][i], pair, v[i]);
        }
    }
    for (int u = 0; u < count; u++)
        for (int i = 0; i < wide; i++) _mm512_storeu_ps(acc + u * b->padded + 16 * i, a[u][i]);
}

PAIRS_INLINE void pairs_some(const Block *b, const Queries *g, int u, Ahead *next, const int count) {
    float s[12 * BLOCK];
    uint32_t p[12 * BLOCK / 2], all = 0;
    const int half = count > 6 ? count / 2 : count;
    float *acc = g->acc + (int64_t)u * b->padded;
    pairs_score(b, g->q + (int64_t)u * b->pairs, s, next, count);
    for (int i = 0; i < count; i++) {
        const uint32_t seen = g->seen[(u + i) * g->step];
        all |= seen;
        pairs_soften(b, s + i * BLOCK, seen, g->max + u + i, g->sums + (u + i) * 16, acc + i * b->padded, p + i * BLOCK / 2);
    }
    if (!all) return;
    const int from = __builtin_ctz(all) / 2, to = (31 - __builtin_clz(all)) / 2 + 1;
    for (int i = 0; i < count; i += half) {
        int d = 0;
        for (; d + 64 <= b->padded; d += 64)
            pairs_mix(b, p + i * BLOCK / 2, from, to, acc + i * b->padded + d, b->values + d, half, 4);
        for (; d < b->padded; d += 32)
            pairs_mix(b, p + i * BLOCK / 2, from, to, acc + i * b->padded + d, b->values + d, half, 2);
    }
}

/* `count` queries, each to the tokens of the block that it sees. */
PAIRS static void pairs_attend(const Block *b, const Queries *g, int count, Ahead *next) {
    int u = 0;
#define SOME(n) pairs_some(b, g, u, u ? NULL : next, n)
    for (; u + 12 <= count; u += 12) SOME(12);
    for (; u + 8 <= count; u += 8) SOME(8);
    for (; u + 4 <= count; u += 4) SOME(4);
    for (; u + 2 <= count; u += 2) SOME(2);
    for (; u < count; u++) SOME(1);
#undef SOME
}

/* Elements d .. d + 31 of a row of dim bfloat16s, zeros beyond it; and the reverse. Masked moves are for tails: they cost
 * ten times as much as whole ones. */
PAIRS_INLINE __m512i pairs_row(const void *row, int d, int dim) {
    if (dim - d >= 32) return _mm512_loadu_si512((const uint16_t *)row + d);
    return _mm512_maskz_loadu_epi16((1u << (dim - d)) - 1, (const uint16_t *)row + d);
}

PAIRS_INLINE void pairs_put(void *row, int d, int dim, __m512i x) {
    if (dim - d >= 32)
        _mm512_storeu_si512((uint16_t *)row + d, x);
    else
        _mm512_mask_storeu_epi16((uint16_t *)row + d, (1u << (dim - d)) - 1, x);
}

/* values[t/2] from the rows v[t], v[t + 1] of D bfloat16s, for t in [from, to). The next block's rows are fetched. */
PAIRS static void pairs_zip(const char *const *v, int from, int to, int dim, int padded, uint32_t *values, Ahead *next) {
    for (int t = from & ~1; t < to; t += 2) {
        fetch(next, 2 * ((2 * dim + 63) / 64));
        for (int d = 0; d < dim; d += 32) {
            const __m512i a = pairs_row(v[t], d, dim), b = pairs_row(v[t + 1], d, dim);
            _mm512_storeu_si512(values + t / 2 * padded + d, _mm512_unpacklo_epi16(a, b));
            _mm512_storeu_si512(values + t / 2 * padded + d + 16, _mm512_unpackhi_epi16(a, b));
        }
    }
}

/* An accumulator, times the factor, in the order of the dimensions. */
PAIRS static void pairs_write(const float *acc, float factor, int dim, void *out) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int d = 0; d < dim; d += 32) {
        const __m512 a = _mm512_mul_ps(_mm512_loadu_ps(acc + d), _mm512_set1_ps(factor));
        const __m512 b = _mm512_mul_ps(_mm512_loadu_ps(acc + d + 16), _mm512_set1_ps(factor));
        const __m512bh row = _mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(a, second, b), _mm512_permutex2var_ps(a, first, b));
        pairs_put(out, d, dim, (__m512i)row);
    }
}

/* The integers of int8 rows as bfloat16s, which hold each of them exactly. */
PAIRS static void pairs_widen(const int8_t *row, int dim, uint16_t *out) {
    for (int d = 0; d < dim; d += 32) {
        const __m256i x = dim - d >= 32 ? _mm256_loadu_si256((const void *)(row + d))
                                        : _mm256_maskz_loadu_epi8((1u << (dim - d)) - 1, row + d);
        const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x)));
        const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1)));
        pairs_put(out, d, dim, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
}
#undef PAIRS
#undef PAIRS_INLINE
#else
static void pairs_attend(const Block *b, const Queries *g, int count, Ahead *next) {}
static void pairs_zip(const char *const *v, int from, int to, int dim, int padded, uint32_t *values, Ahead *next) {}
static void pairs_write(const float *acc, float factor, int dim, void *out) {}
static void pairs_widen(const int8_t *row, int dim, uint16_t *out) {}
#endif
