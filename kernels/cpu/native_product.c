/* Products with weights packed in panels, for any number of rows. Included per vector width.
 *
 *   weight [N, K], rows of zeros up to a multiple of PANEL, as    [ panel 0 | panel 1 | ... ]    of PANEL outputs each
 *   panel of float32:  [k][PANEL]      panel of bfloat16:  [k / 2][PANEL][2], a pair of inputs to a word
 *
 * Every output is one chain of additions over k, whatever rows it is computed with: its result depends on nothing else.
 */

/* As dots_block, with x float32 whatever the weight is. */
INLINE void NAME(block)(const float *x, int64_t x_stride, const void *panel, const float *bias, float *out,
                        int64_t out_stride, int inputs, int add, const int rows, const int bf16) {
    for (int n = 0; n < PANEL; n += 2 * VW) {
        vf a[8], b[8];
        for (int r = 0; r < rows; r++) {
            a[r] = *(const vf *)(bias + n);
            b[r] = *(const vf *)(bias + n + VW);
        }
        if (bf16)
            for (int k = 0; k < inputs; k += 2) {
                vu w0 = *(const vu *)((const uint32_t *)panel + k / 2 * PANEL + n);
                vu w1 = *(const vu *)((const uint32_t *)panel + k / 2 * PANEL + n + VW);
                for (int r = 0; r < rows; r++) {
                    float low = x[r * x_stride + k], high = x[r * x_stride + k + 1];
                    a[r] += low * (vf)(w0 << 16);
                    b[r] += low * (vf)(w1 << 16);
                    a[r] += high * (vf)(w0 & 0xffff0000u);
                    b[r] += high * (vf)(w1 & 0xffff0000u);
                }
            }
        else
            for (int k = 0; k < inputs; k++) {
                vf w0 = *(const vf *)((const float *)panel + k * PANEL + n);
                vf w1 = *(const vf *)((const float *)panel + k * PANEL + n + VW);
                for (int r = 0; r < rows; r++) {
                    float value = x[r * x_stride + k];
                    a[r] += value * w0;
                    b[r] += value * w1;
                }
            }
        for (int r = 0; r < rows; r++) {
            vf *low = (vf *)(out + r * out_stride + n), *high = (vf *)(out + r * out_stride + n + VW);
            if (add) a[r] += *low, b[r] += *high;
            *low = a[r];
            *high = b[r];
        }
    }
}

INLINE void NAME(panel)(const float *x, int64_t x_stride, const void *panel, const float *bias, float *out,
                        int64_t out_stride, int inputs, int add, int rows, const int bf16) {
    int r = 0;
#define BLOCK_OF(n) \
    NAME(block)(x + r * x_stride, x_stride, panel, bias, out + r * out_stride, out_stride, inputs, add, n, bf16)
#if VW == 16 || defined(__aarch64__)
    for (; r + 8 <= rows; r += 8) BLOCK_OF(8);
#endif
    for (; r + 4 <= rows; r += 4) BLOCK_OF(4); /* sixteen registers hold four rows' sums */
    for (; r + 2 <= rows; r += 2) BLOCK_OF(2);
    for (; r < rows; r++) BLOCK_OF(1);
#undef BLOCK_OF
}

/* out [rows, PANEL * panels], float32, of x [rows, K] contiguous in the element type; wide: room for rows * K floats. */
INLINE void NAME(multiply)(const Product *w, const void *x, float *out, int64_t out_stride, int rows, int add,
                           float *wide, const int bf16) {
    const int inputs = w->inputs, panels = (w->outputs + PANEL - 1) / PANEL;
    const size_t bytes = (size_t)inputs * PANEL * (bf16 ? 2 : 4);
    const int paired = bf16 && VW == 16 && dots;
    if (bf16 && !paired)
        for (int64_t i = 0; i < (int64_t)rows * inputs; i++) wide[i] = NAME(load1)(x, i, 1);
    for (int p = 0; p < panels; p++) {
        const char *panel = (const char *)w->panels + p * bytes;
        const float *bias = w->bias + p * PANEL;
        if (paired)
            dots_panel(x, inputs / 2, (const uint32_t *)panel, bias, out + p * PANEL, out_stride, inputs / 2, add, rows);
        else
            NAME(panel)(bf16 ? wide : x, inputs, panel, bias, out + p * PANEL, out_stride, inputs, add, rows, bf16);
    }
}

static void NAME(multiply_f32)(const Product *w, const void *x, float *out, int64_t stride, int rows, int add, float *wide) {
    NAME(multiply)(w, x, out, stride, rows, add, wide, 0);
}
static void NAME(multiply_bf16)(const Product *w, const void *x, float *out, int64_t stride, int rows, int add, float *wide) {
    NAME(multiply)(w, x, out, stride, rows, add, wide, 1);
}

/* out float32 [rows, N rounded up to PANEL] of x [rows, K], both contiguous. */
static int NAME(product)(const Product *w, const void *x, float *out, int64_t rows, int bf16) {
    const int64_t stride = (w->outputs + PANEL - 1) / PANEL * PANEL;
    int failed = 0;
#pragma omp parallel for if (rows > CHUNK)
    for (int64_t first = 0; first < rows; first += CHUNK) {
        const int count = MIN(CHUNK, rows - first);
        float *wide = scratch_for(FOR_CHUNK, sizeof(float) * (size_t)count * w->inputs);
        if (!wide)
            failed = NO_MEMORY;
        else
            (bf16 ? NAME(multiply_bf16) : NAME(multiply_f32))(
                w, (const char *)x + first * w->inputs * (bf16 ? 2 : 4), out + first * stride, stride, count, 0, wide);
    }
    return failed;
}
