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

/* As dots_block, for few rows and `wide` panels, `apart` words from each other, side by side: memory gives more to several
 * runs of addresses than to one. */
__attribute__((target("avx512f,avx512bf16"), always_inline)) static inline void dots_beside(
    const uint32_t *x, const uint32_t *panels, size_t apart, const float *bias, float *out, int64_t out_stride, int pairs,
    int add, const int rows, const int wide) {
    __m512 a[BESIDE_ROWS][WIDE][2];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2 * wide; i++) {
            a[r][i / 2][i % 2] = _mm512_loadu_ps(bias + 16 * i);
            if (add) a[r][i / 2][i % 2] = _mm512_add_ps(a[r][i / 2][i % 2], _mm512_loadu_ps(out + r * out_stride + 16 * i));
        }
    for (int k = 0; k < pairs; k++, panels += PANEL) {
        __m512bh pair[BESIDE_ROWS];
        for (int r = 0; r < rows; r++) pair[r] = (__m512bh)_mm512_set1_epi32((int)x[k * rows + r]);
        for (int i = 0; i < 2 * wide; i++) {
            const uint32_t *from = panels + i / 2 * apart + i % 2 * 16;
            const __m512bh w = (__m512bh)_mm512_loadu_si512(from);
            _mm_prefetch((const char *)from + NEAR, _MM_HINT_T1);
            for (int r = 0; r < rows; r++) a[r][i / 2][i % 2] = _mm512_dpbf16_ps(a[r][i / 2][i % 2], pair[r], w);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2 * wide; i++) _mm512_storeu_ps(out + r * out_stride + 16 * i, a[r][i / 2][i % 2]);
}

/* At most BESIDE_ROWS rows with `count` panels. */
__attribute__((target("avx512f,avx512bf16"))) static void dots_few(const uint32_t *x, const uint32_t *panels, int count,
                                                                   const float *bias, float *out, int64_t out_stride,
                                                                   int pairs, int add, int rows) {
    const size_t apart = (size_t)pairs * PANEL;
    for (int p = 0; p < count;) {
        const int left = count - p;
#define BESIDE(n, m) \
    dots_beside(x, panels + p * apart, apart, bias + p * PANEL, out + p * PANEL, out_stride, pairs, add, n, m), p += m
        if (rows == 1 && left >= WIDE) BESIDE(1, WIDE);
        else if (rows == 2 && left >= WIDE) BESIDE(2, WIDE);
        else if (rows == 3 && left >= 2) BESIDE(3, 2);
        else if (rows == 4 && left >= 2) BESIDE(4, 2);
        else if (rows == 1) BESIDE(1, 1);
        else if (rows == 2) BESIDE(2, 1);
        else if (rows == 3) BESIDE(3, 1);
        else BESIDE(4, 1);
#undef BESIDE
    }
}
#else
static int has_dots(void) { return 0; }
static void dots_few(const uint32_t *x, const uint32_t *panels, int count, const float *bias, float *out, int64_t out_stride,
                     int pairs, int add, int rows) {}
static void dots_panel(const uint32_t *x, const uint32_t *panel, const float *bias, float *out, int64_t out_stride,
                       int pairs, int start, int rows) {}
#endif
