/* A block of a packed bfloat16 product with the processor's own pair products (AVX512-BF16), where it has them. */
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <immintrin.h>

static int has_dots(void) { return __builtin_cpu_supports("avx512bf16"); }

/* out[r][0 .. PANEL) = bias + x[r] times the panel, for `rows` rows of `pairs` pairs; add: onto what out holds. */
__attribute__((target("avx512f,avx512bf16"), always_inline)) static inline void dots_block(
    const uint32_t *x, int64_t x_stride, const uint32_t *panel, const float *bias, float *out, int64_t out_stride,
    int pairs, int add, const int rows) {
    __m512 a[12][2];
    for (int r = 0; r < rows; r++) {
        a[r][0] = _mm512_loadu_ps(bias);
        a[r][1] = _mm512_loadu_ps(bias + 16);
    }
    for (int k = 0; k < pairs; k++) {
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel + k * PANEL);
        __m512bh w1 = (__m512bh)_mm512_loadu_si512(panel + k * PANEL + 16);
        for (int r = 0; r < rows; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[r * x_stride + k]);
            a[r][0] = _mm512_dpbf16_ps(a[r][0], pair, w0);
            a[r][1] = _mm512_dpbf16_ps(a[r][1], pair, w1);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++) {
            float *at = out + r * out_stride + 16 * i;
            _mm512_storeu_ps(at, add ? _mm512_add_ps(_mm512_loadu_ps(at), a[r][i]) : a[r][i]);
        }
}

__attribute__((target("avx512f,avx512bf16"))) static void dots_panel(
    const uint32_t *x, int64_t x_stride, const uint32_t *panel, const float *bias, float *out, int64_t out_stride,
    int pairs, int add, int rows) {
    int r = 0;
#define BLOCK_OF(n) dots_block(x + r * x_stride, x_stride, panel, bias, out + r * out_stride, out_stride, pairs, add, n)
    for (; r + 12 <= rows; r += 12) BLOCK_OF(12);
    for (; r + 8 <= rows; r += 8) BLOCK_OF(8);
    for (; r + 4 <= rows; r += 4) BLOCK_OF(4);
    for (; r + 2 <= rows; r += 2) BLOCK_OF(2);
    for (; r < rows; r++) BLOCK_OF(1);
#undef BLOCK_OF
}
#else
static int has_dots(void) { return 0; }
static void dots_panel(const uint32_t *x, int64_t x_stride, const uint32_t *panel, const float *bias, float *out,
                       int64_t out_stride, int pairs, int add, int rows) {}
#endif

static int dots; /* whether vectors of 16 floats are in use and pair products are there */
