/* Products with packed weights, for any number of rows. Included per vector width; native_pack.c has the layouts.
 *
 * Every output is one chain of additions over k, whatever rows it is computed with: its result depends on nothing else.
 * A panel is taken in parts of the inputs that stay in the first cache while all rows pass; the sums wait in `out`.
 */
enum { NAME(part_words) = 128 }; /* of a panel, 32 bits each: 16 KiB */

/* out [rows][PANEL] of one strip's rows x and `words` words of a panel; start: 0 the bias, 1 bias and out, 2 out alone. */
INLINE void NAME(block)(const float *x, int step, const uint32_t *panel, const float *bias, float *out, int64_t out_stride,
                        int words, int start, const int rows, const int bf16) {
    for (int n = 0; n < PANEL; n += 2 * VW) {
        vf a[12], b[12];
        for (int r = 0; r < rows; r++) {
            const vf *low = (const vf *)(out + r * out_stride + n), *high = (const vf *)(out + r * out_stride + n + VW);
            a[r] = start == 2 ? *low : *(const vf *)(bias + n);
            b[r] = start == 2 ? *high : *(const vf *)(bias + n + VW);
            if (start == 1) a[r] += *low, b[r] += *high;
        }
        for (int k = 0; k < words; k++) {
            vu w0 = *(const vu *)(panel + k * PANEL + n), w1 = *(const vu *)(panel + k * PANEL + n + VW);
            for (int r = 0; r < rows; r++) {
                float low = x[(bf16 ? 2 * k : k) * step + r];
                a[r] += low * (bf16 ? (vf)(w0 << 16) : (vf)w0);
                b[r] += low * (bf16 ? (vf)(w1 << 16) : (vf)w1);
            }
            if (bf16)
                for (int r = 0; r < rows; r++) {
                    float high = x[(2 * k + 1) * step + r];
                    a[r] += high * (vf)(w0 & 0xffff0000u);
                    b[r] += high * (vf)(w1 & 0xffff0000u);
                }
        }
        for (int r = 0; r < rows; r++) {
            *(vf *)(out + r * out_stride + n) = a[r];
            *(vf *)(out + r * out_stride + n + VW) = b[r];
        }
    }
}

INLINE void NAME(float_panel)(const float *x, int step, const uint32_t *panel, const float *bias, float *out,
                              int64_t out_stride, int words, int start, int rows, const int bf16) {
    int r = 0;
#define BLOCK_OF(n) NAME(block)(x + r, step, panel, bias, out + r * out_stride, out_stride, words, start, n, bf16)
#if VW == 16
    for (; r + 12 <= rows; r += 12) BLOCK_OF(12);
#endif
#if VW == 16 || defined(__aarch64__)
    for (; r + 8 <= rows; r += 8) BLOCK_OF(8);
#endif
    for (; r + 4 <= rows; r += 4) BLOCK_OF(4); /* sixteen registers hold four rows' sums */
    for (; r + 2 <= rows; r += 2) BLOCK_OF(2);
    for (; r < rows; r++) BLOCK_OF(1);
#undef BLOCK_OF
}

/* One strip of rows with words [k, k + words) of panel p. */
static void NAME(strip_product)(const Product *w, const uint32_t *x, int step, int p, int k, int words, float *out,
                                int64_t out_stride, int rows, int start) {
    const uint32_t *panel = (const uint32_t *)w->panels + ((size_t)p * NAME(words)(w->kind, w->inputs) + k) * PANEL;
    const float *bias = w->bias + p * PANEL;
    if (w->kind == KIND_F32) {
        NAME(float_panel)((const float *)x + k * step, step, panel, bias, out, out_stride, words, start, rows, 0);
    } else if (w->kind == KIND_BF16 && VW == 16 && dots) {
        dots_panel(x + k * rows, panel, bias, out, out_stride, words, start, rows);
    } else if (w->kind == KIND_BF16) {
        NAME(float_panel)((const float *)x + 2 * k * step, step, panel, bias, out, out_stride, words, start, rows, 1);
    } else {
        const int four = w->kind == KIND_INT4, first = k / (four ? 4 : 8), blocks = words / (four ? 4 : 8);
        const int64_t groups = (int64_t)p * (w->inputs / w->group) * PANEL;
        const uint16_t *offsets = w->offsets ? w->offsets + groups : NULL;
        (VW == 16 && bytes ? bytes_panel : NAME(int_panel))(x + first * ROW_WORDS * step, step, panel, w->scales + groups,
                                                            offsets, bias, out, out_stride, first, blocks, w->group, start,
                                                            rows, four);
    }
}

/* Few rows with panels [p0, p1), several side by side; 0 where there are too many rows or no instructions for that. */
INLINE int NAME(few)(const Product *w, const void *buffer, int rows, int p0, int p1, float *out, int64_t out_stride, int add) {
    const uint32_t *panels = (const uint32_t *)w->panels + (size_t)p0 * NAME(words)(w->kind, w->inputs) * PANEL;
    const float *bias = w->bias + p0 * PANEL;
    out += p0 * PANEL;
    if (VW == 16 && dots && w->kind == KIND_BF16 && rows <= BESIDE_ROWS) {
        dots_few(buffer, panels, p1 - p0, bias, out, out_stride, (w->inputs + 1) / 2, add, rows);
        return 1;
    }
    if (VW == 16 && bytes && w->kind >= KIND_INT8 && rows <= 2) {
        const int64_t groups = (int64_t)(w->inputs / w->group) * PANEL;
        bytes_few(buffer, panels, p1 - p0, w->scales + p0 * groups, w->offsets ? w->offsets + p0 * groups : NULL, groups, bias,
                  out, out_stride, w->inputs / BLOCK, w->group, add, rows, w->kind == KIND_INT4);
        return 1;
    }
    return 0;
}

/* out[r][p * PANEL ..] (float32, `out_stride` between rows) for rows [r0, r1) and panels [p0, p1) of the product of w and
 * the `rows` rows of inputs in `buffer`; r0 is a multiple of CHUNK, and so is r1 or it is `rows`. add: onto what out holds.
 * Several threads may work on one product, each on rows or panels of its own. */
static int NAME(multiply)(const Product *w, const void *buffer, int64_t rows, int64_t r0, int64_t r1, int p0, int p1,
                          float *out, int64_t out_stride, int add) {
    const int words = NAME(words)(w->kind, w->inputs), input_words = NAME(input_words)(w->kind, w->inputs);
    if (rows == r1 - r0 && NAME(few)(w, buffer, (int)MIN(rows, CHUNK), p0, p1, out, out_stride, add)) return 0;
    for (int p = p0; p < p1; p++)
        for (int k = 0; k < words; k += NAME(part_words)) {
            const int part = MIN(NAME(part_words), words - k), start = k ? 2 : add ? 1 : 0;
            for (int64_t r = r0, first; r < r1; r = first + NAME(strip)(rows, r, &first)) {
                const int count = NAME(strip)(rows, r, &first);
                NAME(strip_product)(w, (const uint32_t *)buffer + first * input_words, count, p, k, part,
                                    out + first * out_stride + p * PANEL, out_stride, count, start);
            }
        }
    return 0;
}

/* Row r of x [rows, inputs], in the element type, into place r of a buffer; `wide`: room for a row of floats. */
INLINE void NAME(put)(const Product *w, const void *x, int bf16, int64_t rows, void *buffer, int64_t r, float *wide) {
    const float *from = (const float *)x + r * w->inputs;
    if (bf16) {
        int i = 0;
        for (; i + VW <= w->inputs; i += VW) *(vf *)(wide + i) = NAME(load)(x, r * w->inputs + i, 1);
        for (; i < w->inputs; i++) wide[i] = NAME(load1)(x, r * w->inputs + i, 1);
        from = wide;
    }
    NAME(put_row)(w->kind, w->inputs, rows, buffer, r, from);
}

/* out [rows, N] of x [rows, K], both contiguous and of the element type. */
static int NAME(linear)(const Product *w, const void *x, void *out, int64_t rows, int bf16) {
    const int panels = (w->outputs + PANEL - 1) / PANEL, together = MAX(1, MIN(8, panels / (4 * thread_count())));
    const int64_t tasks = (panels + together - 1) / together, columns = (int64_t)together * PANEL;
    char *buffer = scratch_for(FOR_STEP, NAME(inputs_bytes)(w->kind, w->inputs, rows));
    int failed = buffer ? 0 : NO_MEMORY;
#pragma omp parallel if (!failed && (int64_t)w->outputs * w->inputs * rows > 200000)
    {
        float *room = failed ? NULL : scratch_for(FOR_CHUNK, sizeof(float) * ((size_t)w->inputs + 4 * CHUNK * columns));
        if (!room) failed = NO_MEMORY;
        float *wide = room + 4 * CHUNK * columns;
#pragma omp for
        for (int64_t r = 0; r < rows; r++)
            if (room) NAME(put)(w, x, bf16, rows, buffer, r, wide);
        for (int64_t r0 = 0; r0 < rows; r0 += 4 * CHUNK) {
            const int64_t r1 = MIN(rows, r0 + 4 * CHUNK);
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < tasks; task++) {
                if (!room) continue;
                const int p0 = (int)task * together, p1 = MIN(panels, p0 + together);
                NAME(multiply)(w, buffer, rows, r0, r1, p0, p1, room - r0 * columns - p0 * PANEL, columns, 0);
                const int count = MIN(p1 * PANEL, w->outputs) - p0 * PANEL;
                for (int64_t r = r0; r < r1; r++) {
                    const float *from = room + (r - r0) * columns;
                    const int64_t to = r * w->outputs + p0 * PANEL;
                    if (bf16)
                        for (int n = 0; n < count; n++) NAME(store1)(out, to + n, from[n], 1);
                    else
                        memcpy((float *)out + to, from, sizeof(float) * count);
                }
            }
        }
    }
    return failed;
}
