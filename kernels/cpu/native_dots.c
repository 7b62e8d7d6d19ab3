/* A block of a packed bfloat16 product with the processor's own pair products (AVX512-BF16), where it has them. */
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <immintrin.h>

static int has_dots(void) { return __builtin_cpu_supports("avx512bf16"); }

/* out[r][0 .. PANEL) of a strip's rows and `pairs` words of a panel; start: 0 the bias, 1 bias and out, 2 out alone. */
__attribute__((target("avx512f,avx512bf16"), always_inline)) static inline void dots_block(
    const uint32_t *x, const uint32_t *panel, const float *bias, float *out, int64_t out_stride, int pairs, int start,
    const int rows) {
    __m512 a[12][2];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++) {
            const float *at = out + r * out_stride + 16 * i;
            a[r][i] = start == 2 ? _mm512_loadu_ps(at) : _mm512_loadu_ps(bias + 16 * i);
            if (start == 1) a[r][i] = _mm512_add_ps(a[r][i], _mm512_loadu_ps(at));
        }
    for (int k = 0; k < pairs; k++) {
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel + k * PANEL);
        __m512bh w1 = (__m512bh)_mm512_loadu_si512(panel + k * PANEL + 16);
        _mm_prefetch((const char *)(panel + k * PANEL) + FAR, _MM_HINT_T1);
        _mm_prefetch((const char *)(panel + k * PANEL) + FAR + 64, _MM_HINT_T1);
        for (int r = 0; r < rows; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[k * rows + r]);
            a[r][0] = _mm512_dpbf16_ps(a[r][0], pair, w0);
            a[r][1] = _mm512_dpbf16_ps(a[r][1], pair, w1);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++) _mm512_storeu_ps(out + r * out_stride + 16 * i, a[r][i]);
}

__attribute__((target("avx512f,avx512bf16"))) static void dots_panel(const uint32_t *x, const uint32_t *panel,
                                                                     const float *bias, float *out, int64_t out_stride,
                                                                     int pairs, int start, int rows) {
    switch (rows) {
#define ROWS(n) \
    case n: dots_block(x, panel, bias, out, out_stride, pairs, start, n); break;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#undef ROWS
    }
}

/* s[u][t] = scale * q[u] . k[t] for `count` queries and the BLOCK tokens of a block, both as pairs with tokens and queries
 * as lanes. Meanwhile the next block's rows are fetched. */
__attribute__((target("avx512f,avx512bf16"), always_inline)) static inline void dots_score_of(
    const float *q, int stride, const float *k, int pairs, float scale, float *s, Ahead *next, const int count) {
    __m512 a[8][2];
    for (int u = 0; u < count; u++) a[u][0] = a[u][1] = _mm512_setzero_ps();
    for (int d = 0; d < pairs; d++) {
        if (next) fetch(next, 2);
        __m512bh k0 = (__m512bh)_mm512_loadu_si512(k + d * BLOCK), k1 = (__m512bh)_mm512_loadu_si512(k + d * BLOCK + 16);
        for (int u = 0; u < count; u++) {
            __m512bh pair = (__m512bh)_mm512_set1_ps(q[d * stride + u]);
            a[u][0] = _mm512_dpbf16_ps(a[u][0], pair, k0);
            a[u][1] = _mm512_dpbf16_ps(a[u][1], pair, k1);
        }
    }
    for (int u = 0; u < count; u++)
        for (int i = 0; i < 2; i++) _mm512_storeu_ps(s + u * BLOCK + 16 * i, _mm512_mul_ps(a[u][i], _mm512_set1_ps(scale)));
}

__attribute__((target("avx512f,avx512bf16"))) static void dots_score(const float *q, int stride, const float *k, int pairs,
                                                                     float scale, float *s, Ahead *next, int count) {
    if (count == 8)
        dots_score_of(q, stride, k, pairs, scale, s, next, 8);
    else if (count == 4)
        dots_score_of(q, stride, k, pairs, scale, s, next, 4);
    else if (count == 2)
        dots_score_of(q, stride, k, pairs, scale, s, next, 2);
    else
        dots_score_of(q, stride, k, pairs, scale, s, next, 1);
}
#else
static int has_dots(void) { return 0; }
static void dots_score(const float *q, int stride, const float *k, int pairs, float scale, float *s, Ahead *next,
                       int count) {}
static void dots_panel(const uint32_t *x, const uint32_t *panel, const float *bias, float *out, int64_t out_stride,
                       int pairs, int start, int rows) {}
#endif
