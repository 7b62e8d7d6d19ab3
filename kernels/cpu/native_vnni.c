/* A strip of a product with weights of small integers with the processor's own byte products (AVX512-VNNI), where it has
 * them: the same bits as native_int.c, which says what they are. */
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <immintrin.h>

static int has_bytes(void) { return __builtin_cpu_supports("avx512vnni"); }

#define BYTES __attribute__((target("avx512f,avx512bw,avx512vnni"), always_inline)) static inline

/* Dots of `rows` rows with the 32 outputs of one block. */
BYTES void bytes_dots(const uint32_t *x, const uint32_t *panel, __m512i dot[6][2], const int rows, const int four) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int word = 0; word < 8; word += 2) {
        __m512i w[2][2]; /* [word][half of the panel] */
        for (int i = 0; i < 2; i++) {
            const uint32_t *from = panel + (four ? word / 2 : word) * PANEL + 16 * i;
            const __m512i bits = _mm512_loadu_si512(from);
            _mm_prefetch((const char *)from + FAR, _MM_HINT_T1);
            if (!four) _mm_prefetch((const char *)(from + PANEL) + FAR, _MM_HINT_T1);
            w[0][i] = four ? _mm512_and_si512(bits, low) : bits;
            w[1][i] = four ? _mm512_and_si512(_mm512_srli_epi16(bits, 4), low) : _mm512_loadu_si512(from + PANEL);
        }
        for (int odd = 0; odd < 2; odd++)
            for (int r = 0; r < rows; r++) {
                const __m512i four_inputs = _mm512_set1_epi32((int)x[r * ROW_WORDS + word + odd]);
                dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w[odd][0], four_inputs);
                dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w[odd][1], four_inputs);
            }
    }
}

BYTES __m512 bytes_halves(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

BYTES void bytes_block(const uint32_t *x, int step, const uint32_t *panel, const uint16_t *scales, const uint16_t *offsets,
                       const float *bias, float *out, int64_t out_stride, int first, int blocks, int group, int start,
                       const int rows, const int four, const int shifted) {
    __m512 sum[6][2];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++) {
            const float *at = out + r * out_stride + 16 * i;
            sum[r][i] = start == 2 ? _mm512_loadu_ps(at) : _mm512_loadu_ps(bias + 16 * i);
            if (start == 1) sum[r][i] = _mm512_add_ps(_mm512_loadu_ps(at), sum[r][i]);
        }
    const int per_group = group / BLOCK;
    int64_t g = (int64_t)(first / per_group) * PANEL;
    for (int b = 0, inside = first % per_group; b < blocks; b++, x += ROW_WORDS * step, panel += (four ? 4 : 8) * PANEL) {
        __m512i dot[6][2];
        for (int r = 0; r < rows; r++)
            dot[r][0] = dot[r][1] = four && shifted ? _mm512_setzero_si512() : _mm512_set1_epi32((int)x[r * ROW_WORDS + 9]);
        bytes_dots(x, panel, dot, rows, four);
        for (int i = 0; i < 2; i++) {
            const __m512 scale = bytes_halves(scales + g + 16 * i);
            for (int r = 0; r < rows; r++) {
                const __m512 factor = _mm512_mul_ps(scale, _mm512_castsi512_ps(_mm512_set1_epi32((int)x[r * ROW_WORDS + 8])));
                __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[r][i]), factor);
                APART(part);
                sum[r][i] = _mm512_add_ps(sum[r][i], part);
            }
            if (!shifted) continue;
            const __m512 offset = bytes_halves(offsets + g + 16 * i);
            for (int r = 0; r < rows; r++) {
                __m512 part = _mm512_mul_ps(offset, _mm512_castsi512_ps(_mm512_set1_epi32((int)x[r * ROW_WORDS + 10])));
                APART(part);
                sum[r][i] = _mm512_add_ps(sum[r][i], part);
            }
        }
        if (++inside == per_group) inside = 0, g += PANEL;
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++) _mm512_storeu_ps(out + r * out_stride + 16 * i, sum[r][i]);
}

#define BYTES_PANEL(name, four, shifted)                                                                                    \
    __attribute__((target("avx512f,avx512bw,avx512vnni"))) static void name(                                                \
        const uint32_t *x, int step, const uint32_t *panel, const uint16_t *scales, const uint16_t *offsets,                \
        const float *bias, float *out, int64_t out_stride, int first, int blocks, int group, int start, int rows) {         \
        for (int r = 0; r < rows;) {                                                                                        \
            const int left = rows - r, count = left <= 6 ? left : left / 2;                                                 \
            const uint32_t *from = x + r * ROW_WORDS;                                                                                   \
            float *to = out + r * out_stride;                                                                               \
            if (count == 6) BYTES_ROWS(6, four, shifted);                                                                   \
            if (count == 5) BYTES_ROWS(5, four, shifted);                                                                   \
            if (count == 4) BYTES_ROWS(4, four, shifted);                                                                   \
            if (count == 3) BYTES_ROWS(3, four, shifted);                                                                   \
            if (count == 2) BYTES_ROWS(2, four, shifted);                                                                   \
            if (count == 1) BYTES_ROWS(1, four, shifted);                                                                   \
            r += count;                                                                                                     \
        }                                                                                                                   \
    }
#define BYTES_ROWS(rows, four, shifted) \
    bytes_block(from, step, panel, scales, offsets, bias, to, out_stride, first, blocks, group, start, rows, four, shifted)
BYTES_PANEL(bytes_panel_8, 0, 0)
BYTES_PANEL(bytes_panel_8_shifted, 0, 1)
BYTES_PANEL(bytes_panel_4, 1, 0)
BYTES_PANEL(bytes_panel_4_shifted, 1, 1)
#undef BYTES_ROWS
#undef BYTES_PANEL

/* As bytes_block with all blocks, for one or two rows and `wide` panels side by side: see dots_beside. */
BYTES void bytes_beside(const uint32_t *x, const uint32_t *panels, size_t apart, const uint16_t *scales, const uint16_t *offsets,
                        int64_t groups, const float *bias, float *out, int64_t out_stride, int blocks, int group, int add,
                        const int rows, const int wide, const int four, const int shifted) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512 sum[2][2 * WIDE];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2 * wide; i++) {
            sum[r][i] = _mm512_loadu_ps(bias + 16 * i);
            if (add) sum[r][i] = _mm512_add_ps(_mm512_loadu_ps(out + r * out_stride + 16 * i), sum[r][i]);
        }
    const int per_group = group / BLOCK, words = four ? 4 : 8;
    int64_t g = 0;
    for (int b = 0, inside = 0; b < blocks; b++, x += ROW_WORDS * rows, panels += words * PANEL) {
        __m512i dot[2][2 * WIDE];
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 2 * wide; i++)
                dot[r][i] = four && shifted ? _mm512_setzero_si512() : _mm512_set1_epi32((int)x[r * ROW_WORDS + 9]);
        for (int word = 0; word < 8; word += 2) {
            __m512i inputs[2][2];
            for (int r = 0; r < rows; r++)
                for (int odd = 0; odd < 2; odd++) inputs[r][odd] = _mm512_set1_epi32((int)x[r * ROW_WORDS + word + odd]);
            for (int i = 0; i < 2 * wide; i++) {
                const uint32_t *from = panels + i / 2 * apart + (four ? word / 2 : word) * PANEL + i % 2 * 16;
                const __m512i bits = _mm512_loadu_si512(from);
                _mm_prefetch((const char *)from + NEAR, _MM_HINT_T1);
                if (!four) _mm_prefetch((const char *)(from + PANEL) + NEAR, _MM_HINT_T1);
                const __m512i even = four ? _mm512_and_si512(bits, low) : bits;
                const __m512i odd = four ? _mm512_and_si512(_mm512_srli_epi16(bits, 4), low) : _mm512_loadu_si512(from + PANEL);
                for (int r = 0; r < rows; r++) {
                    dot[r][i] = _mm512_dpbusd_epi32(dot[r][i], even, inputs[r][0]);
                    dot[r][i] = _mm512_dpbusd_epi32(dot[r][i], odd, inputs[r][1]);
                }
            }
        }
        for (int i = 0; i < 2 * wide; i++) {
            const int64_t at = i / 2 * groups + g + i % 2 * 16;
            const __m512 scale = bytes_halves(scales + at), offset = shifted ? bytes_halves(offsets + at) : scale;
            for (int r = 0; r < rows; r++) {
                const __m512 factor = _mm512_mul_ps(scale, _mm512_castsi512_ps(_mm512_set1_epi32((int)x[r * ROW_WORDS + 8])));
                __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[r][i]), factor);
                APART(part);
                sum[r][i] = _mm512_add_ps(sum[r][i], part);
                if (!shifted) continue;
                part = _mm512_mul_ps(offset, _mm512_castsi512_ps(_mm512_set1_epi32((int)x[r * ROW_WORDS + 10])));
                APART(part);
                sum[r][i] = _mm512_add_ps(sum[r][i], part);
            }
        }
        if (++inside == per_group) inside = 0, g += PANEL;
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2 * wide; i++) _mm512_storeu_ps(out + r * out_stride + 16 * i, sum[r][i]);
}

#define BYTES_FEW(name, four, shifted)                                                                                       \
    __attribute__((target("avx512f,avx512bw,avx512vnni"))) static void name(                                                \
        const uint32_t *x, const uint32_t *panels, int count, const uint16_t *scales, const uint16_t *offsets,              \
        int64_t groups, const float *bias, float *out, int64_t out_stride, int blocks, int group, int add, int rows) {      \
        const size_t apart = (size_t)blocks * (four ? 4 : 8) * PANEL;                                                       \
        for (int p = 0; p < count;) {                                                                                       \
            if (rows == 1 && count - p >= WIDE) BYTES_ROWS(1, WIDE, four, shifted);                                         \
            else if (rows == 2 && count - p >= 2) BYTES_ROWS(2, 2, four, shifted);                                          \
            else if (rows == 1) BYTES_ROWS(1, 1, four, shifted);                                                            \
            else BYTES_ROWS(2, 1, four, shifted);                                                                           \
        }                                                                                                                   \
    }
#define BYTES_ROWS(rows, wide, four, shifted)                                                                                \
    bytes_beside(x, panels + p * apart, apart, scales + p * groups, shifted ? offsets + p * groups : NULL, groups,           \
                 bias + p * PANEL, out + p * PANEL, out_stride, blocks, group, add, rows, wide, four, shifted), p += wide
BYTES_FEW(bytes_few_8, 0, 0)
BYTES_FEW(bytes_few_8_shifted, 0, 1)
BYTES_FEW(bytes_few_4, 1, 0)
BYTES_FEW(bytes_few_4_shifted, 1, 1)
#undef BYTES_ROWS
#undef BYTES_FEW
#undef BYTES

/* One or two rows with `count` panels, whose scales and offsets lie `groups` apart. */
static void bytes_few(const uint32_t *x, const uint32_t *panels, int count, const uint16_t *scales, const uint16_t *offsets,
                      int64_t groups, const float *bias, float *out, int64_t out_stride, int blocks, int group, int add,
                      int rows, int four) {
    (four ? (offsets ? bytes_few_4_shifted : bytes_few_4) : (offsets ? bytes_few_8_shifted : bytes_few_8))(
        x, panels, count, scales, offsets, groups, bias, out, out_stride, blocks, group, add, rows);
}

/* As int_panel. */
static void bytes_panel(const uint32_t *x, int step, const uint32_t *panel, const uint16_t *scales, const uint16_t *offsets,
                        const float *bias, float *out, int64_t out_stride, int first, int blocks, int group, int start,
                        int rows, int four) {
    (four ? (offsets ? bytes_panel_4_shifted : bytes_panel_4) : (offsets ? bytes_panel_8_shifted : bytes_panel_8))(
        x, step, panel, scales, offsets, bias, out, out_stride, first, blocks, group, start, rows);
}
#else
static int has_bytes(void) { return 0; }
static void bytes_panel(const uint32_t *x, int step, const uint32_t *panel, const uint16_t *scales, const uint16_t *offsets,
                        const float *bias, float *out, int64_t out_stride, int first, int blocks, int group, int start,
                        int rows, int four) {}
static void bytes_few(const uint32_t *x, const uint32_t *panels, int count, const uint16_t *scales, const uint16_t *offsets,
                      int64_t groups, const float *bias, float *out, int64_t out_stride, int blocks, int group, int add,
                      int rows, int four) {}
#endif
