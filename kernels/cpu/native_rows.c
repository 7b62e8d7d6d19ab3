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

/* `count` elements as floats. */
static void NAME(floats_of)(const void *x, float *out, int count, int bf16) {
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
        *(vf *)(out + i) = a / (1.0f + NAME(exp2)(a * -LOG2_E)) * *(const vf *)(up + i);
    }
}

/* x [dim] as a row of queries, keys or values. */
static void NAME(store_row)(const float *x, void *to, int dim, int how) {
    if (how == AS_F32)
        NAME(put_kv)(x, to, dim, AS_F32);
    else if (how == AS_BF16)
        NAME(put_kv)(x, to, dim, AS_BF16);
    else
        NAME(put_kv)(x, to, dim, AS_INT8);
}
