/* What a layer does to single rows between its products. Included per vector width. */

INLINE void NAME(norm_row)(const float *x, const float *weight, float *out, int width, float eps) {
    vf squares0 = {0}, squares1 = {0};
    float rest = 0;
    int i = 0;
    for (; i + 2 * VW <= width; i += 2 * VW) {
        vf a = *(const vf *)(x + i), b = *(const vf *)(x + i + VW);
        squares0 += a * a;
        squares1 += b * b;
    }
    for (; i < width; i++) rest += x[i] * x[i];
    float factor = 1.0f / sqrtf((NAME(sum)(squares0 + squares1) + rest) / (float)width + eps);
    for (i = 0; i + VW <= width; i += VW) *(vf *)(out + i) = *(const vf *)(x + i) * factor * *(const vf *)(weight + i);
    for (; i < width; i++) out[i] = x[i] * factor * weight[i];
}

/* Rotate-half of one head. */
INLINE void NAME(turn_head)(const float *x, const float *cos, const float *sin, float *out, int half) {
    int i = 0;
    for (; i + VW <= half; i += VW) {
        vf a = *(const vf *)(x + i), b = *(const vf *)(x + i + half), c = *(const vf *)(cos + i), s = *(const vf *)(sin + i);
        *(vf *)(out + i) = a * c - b * s;
        *(vf *)(out + i + half) = b * c + a * s;
    }
    for (; i < half; i++) {
        float a = x[i], b = x[i + half];
        out[i] = a * cos[i] - b * sin[i];
        out[i + half] = b * cos[i] + a * sin[i];
    }
}

/* `count` floats to the element type. */
static void NAME(narrow)(const float *x, void *out, int count, int bf16) {
    int i = 0;
    if (!bf16) {
        memcpy(out, x, sizeof(float) * (size_t)count);
        return;
    }
    for (; i + VW <= count; i += VW) NAME(store)(out, i, *(const vf *)(x + i), 1);
    for (; i < count; i++) NAME(store1)(out, i, x[i], 1);
}

static void NAME(widen)(const void *x, float *out, int count, int bf16) {
    int i = 0;
    if (!bf16) {
        memcpy(out, x, sizeof(float) * (size_t)count);
        return;
    }
    for (; i + VW <= count; i += VW) *(vf *)(out + i) = NAME(load)(x, i, 1);
    for (; i < count; i++) out[i] = NAME(load1)(x, i, 1);
}

/* out = silu(gate) * up; out may be gate. */
INLINE void NAME(gated)(const float *gate, const float *up, float *out, int count) {
    for (int i = 0; i < count; i += VW) { /* whole panels: no rest */
        vf a = *(const vf *)(gate + i);
        *(vf *)(out + i) = a / (1.0f + NAME(exp2)(a * -1.44269504088896341f)) * *(const vf *)(up + i);
    }
}
