/* Products with weights of small integers without the processor's own byte products. Included per vector width.
 *
 * A block's dot is an exact integer, here computed in floats that hold it exactly (below 2^24); what is rounded is only
 *     sum = sum + dot * (weight scale * input scale)     and, where there are offsets,     sum = sum + offset * shift
 * each operation for itself: no variant may fuse them, so that every one gives the same bits.
 */

/* out [rows][2 VW] of one strip's rows x over blocks [0, blocks); `start`: 0 the bias, 1 bias and out, 2 out alone. */
INLINE void NAME(int_block)(const uint32_t *x, int step, const uint32_t *panel, const uint16_t *scales,
                            const uint16_t *offsets, const float *bias, float *out, int64_t out_stride, int first, int blocks,
                            int group, int start, const int rows, const int four) {
    const int words = four ? 4 : 8;
    for (int b = 0; b < blocks; b++, x += ROW_WORDS * step, panel += words * PANEL) {
        const int64_t g = (int64_t)(first + b) * BLOCK / group * PANEL;
        vf dot[4][2];
        for (int r = 0; r < rows; r++) {
            const float begin = four && offsets ? 0.0f : (float)(int32_t)x[r * ROW_WORDS + 9];
            dot[r][0] = dot[r][1] = NAME(splat)(begin);
        }
        for (int word = 0; word < 8; word++)
            for (int byte = 0; byte < 4; byte++) {
                vf w[2];
                for (int i = 0; i < 2; i++) {
                    vu bits = *(const vu *)(panel + (four ? word / 2 : word) * PANEL + i * VW);
                    bits = four ? bits >> (byte * 8 + word % 2 * 4) & 15 : bits >> (byte * 8) & 255;
                    w[i] = __builtin_convertvector((vi)bits, vf);
                }
                for (int r = 0; r < rows; r++) {
                    const float value = (float)(int8_t)(x[r * ROW_WORDS + word] >> (byte * 8));
                    dot[r][0] += value * w[0];
                    dot[r][1] += value * w[1];
                }
            }
        for (int i = 0; i < 2; i++) {
            const vf scale = NAME(halves)(scales + g + i * VW);
            for (int r = 0; r < rows; r++) {
                float row_scale, shift;
                memcpy(&row_scale, x + r * ROW_WORDS + 8, 4);
                memcpy(&shift, x + r * ROW_WORDS + 10, 4);
                vf *at = (vf *)(out + r * out_stride + i * VW), sum = *at;
                if (b == 0 && start == 0) sum = *(const vf *)(bias + i * VW);
                if (b == 0 && start == 1) sum += *(const vf *)(bias + i * VW);
                vf part = dot[r][i] * (scale * row_scale);
                APART(part);
                sum += part;
                if (offsets) {
                    part = NAME(halves)(offsets + g + i * VW) * shift;
                    APART(part);
                    sum += part;
                }
                *at = sum;
            }
        }
    }
}

static void NAME(int_panel)(const uint32_t *x, int step, const uint32_t *panel, const uint16_t *scales,
                            const uint16_t *offsets, const float *bias, float *out, int64_t out_stride, int first, int blocks,
                            int group, int start, int rows, int four) {
    for (int r = 0; r < rows;) {
        const int left = rows - r, count = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int n = 0; n < PANEL; n += 2 * VW) {
#define BLOCK_OF(count, four)                                                                                             \
    NAME(int_block)(x + r * ROW_WORDS, step, panel + n, scales + n, offsets ? offsets + n : NULL, bias + n, out + r * out_stride + n, \
                    out_stride, first, blocks, group, start, count, four)
            if (four)
                count == 4 ? BLOCK_OF(4, 1) : count == 2 ? BLOCK_OF(2, 1) : BLOCK_OF(1, 1);
            else
                count == 4 ? BLOCK_OF(4, 0) : count == 2 ? BLOCK_OF(2, 0) : BLOCK_OF(1, 0);
#undef BLOCK_OF
        }
        r += count;
    }
}
