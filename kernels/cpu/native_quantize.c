/* Weights to small integers in groups, as kernels.reference.quant defines. Included per vector width. */

static uint16_t NAME(to_half)(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    const uint32_t sign = u >> 16 & 0x8000, size = u & 0x7fffffff;
    if (size >= 0x47800000) return (uint16_t)(sign | 0x7c00); /* 65536 and more, NaN */
    if (size < 0x38800000) return (uint16_t)(sign | (uint32_t)lrintf(fabsf(x) * 0x1p24f)); /* subnormal */
    return (uint16_t)(sign | (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13);
}

/* The integers nearest to the weights x of a group, as floats. */
INLINE void NAME(nearest)(const float *x, float *numbers, int group, float scale, float shift, float zero, float low,
                          float high) {
    const float inverse = scale == 0 ? 0 : 1 / scale, begin = zero - shift * inverse;
    for (int i = 0; i < group; i += VW) {
        vf value = (*(const vf *)(x + i) * inverse + begin + 12582912.0f) - 12582912.0f;
        value = NAME(pick)(value < low, NAME(splat)(low), value);
        *(vf *)(numbers + i) = NAME(pick)(value > high, NAME(splat)(high), value);
    }
}

/* Scale and offset of nibbles with nearly the least squared error: see quant._searched. */
static void NAME(searched)(const float *x, float *numbers, int group, int shifted, float low, float high, float *scale,
                           float *shift) {
    static const float shares[6] = {1.0f, 0.94f, 0.88f, 0.82f, 0.76f, 1.1f};
    const float zero = shifted ? 0 : 8, count = (float)group, far = high > -low ? -high : low;
    float best = INFINITY, weights = 0;
    vf total = {0};
    for (int i = 0; i < group; i += VW) total += *(const vf *)(x + i);
    weights = NAME(sum)(total);
    *scale = *shift = 0;
    for (int start = 0; start < (shifted ? 5 : 6); start++) {
        float a = shifted ? (high - low) * shares[start] / 15 : far * shares[start] / -8;
        float b = shifted ? low + (high - low) * (1 - shares[start]) / 2 : 0;
        for (int round = 0; round < 2; round++) {
            NAME(nearest)(x, numbers, group, a, b, zero, 0, 15);
            vf sums = {0}, squares = {0}, products = {0}, missed = {0};
            for (int i = 0; i < group; i += VW) {
                const vf n = *(const vf *)(numbers + i) - zero;
                *(vf *)(numbers + i) = n;
                sums += n;
                squares += n * n;
                products += n * *(const vf *)(x + i);
            }
            const float s = NAME(sum)(sums), ss = NAME(sum)(squares), p = NAME(sum)(products);
            const float spread = shifted ? count * ss - s * s : ss;
            a = spread == 0 ? 0 : (shifted ? count * p - s * weights : p) / spread;
            b = shifted ? (weights - a * s) / count : 0;
            for (int i = 0; i < group; i += VW) {
                const vf error = *(const vf *)(x + i) - b - *(const vf *)(numbers + i) * a;
                missed += error * error;
            }
            const float error = NAME(sum)(missed);
            if (error < best) best = error, *scale = a, *shift = b;
        }
    }
}

/* One group of weights x: its scale and offset as float16, its integers as floats. */
INLINE void NAME(quantize_group)(const float *x, float *numbers, int group, int bits, uint16_t *scale, uint16_t *offset) {
    float low = x[0], high = x[0], a, b = 0;
    for (int i = 0; i < group; i++) low = MIN(low, x[i]), high = MAX(high, x[i]);
    if (bits == 4) {
        NAME(searched)(x, numbers, group, offset != NULL, low, high, &a, &b);
    } else {
        a = offset ? (high - low) / 254 : MAX(high, -low) / 127;
        b = offset ? (high + low) / 2 : 0;
    }
    *scale = NAME(to_half)(a);
    if (offset) *offset = NAME(to_half)(b);
    NAME(nearest)(x, numbers, group, NAME(half)(*scale), offset ? NAME(half)(*offset) : 0, bits == 4 && !offset ? 8 : 0,
                  bits == 4 ? 0 : -127, bits == 4 ? 15 : 127);
}

static int NAME(quantize)(const Quantizing *a, int bf16) {
    const int groups = a->inputs / a->group;
    int failed = 0;
#pragma omp parallel for schedule(dynamic, 8)
    for (int64_t n = 0; n < a->outputs; n++) {
        float *x = scratch_for(FOR_CHUNK, sizeof(float) * 2 * a->group), *numbers = x + a->group;
        if (!x) {
            failed = NO_MEMORY;
            continue;
        }
        for (int g = 0; g < groups; g++) {
            const int64_t at = n * a->inputs + (int64_t)g * a->group;
            for (int i = 0; i < a->group; i += VW)
                *(vf *)(x + i) = bf16 ? NAME(load)(a->weight, at + i, 1) : NAME(load)(a->weight, at + i, 0);
            NAME(quantize_group)(x, numbers, a->group, a->bits, a->scales + n * groups + g,
                                 a->offsets ? a->offsets + n * groups + g : NULL);
            for (int i = 0; i < a->group && a->bits == 8; i++) ((int8_t *)a->values)[at + i] = (int8_t)numbers[i];
            for (int i = 0; i < a->group && a->bits == 4; i += 2)
                ((uint8_t *)a->values)[(at + i) / 2] = (uint8_t)((int)numbers[i] | (int)numbers[i + 1] << 4);
        }
    }
    return failed;
}
