/* Small operations of a step, each one pass over its rows. Included per vector width. */

/* out = x / rms(x) * weight over `width`; with a residual, sum = residual + x (rounded to the element type) stands for x. */
INLINE void NAME(rms_row)(const void *x, const void *residual, const void *weight, void *out, void *sum, int64_t width,
                          float eps, const int bf16) {
    const void *source = x;
    vf a, b, c, d, squares0 = {0}, squares1 = {0};
    float rest = 0;
    int64_t i = 0;
    if (residual) {
        for (; i + 2 * VW <= width; i += 2 * VW) {
            NAME(load2)(x, i, &a, &b, bf16);
            NAME(load2)(residual, i, &c, &d, bf16);
            NAME(store2)(sum, i, a + c, b + d, bf16);
        }
        for (; i < width; i++) NAME(store1)(sum, i, NAME(load1)(x, i, bf16) + NAME(load1)(residual, i, bf16), bf16);
        source = sum;
    }
    for (i = 0; i + 2 * VW <= width; i += 2 * VW) {
        NAME(load2)(source, i, &a, &b, bf16);
        squares0 += a * a;
        squares1 += b * b;
    }
    for (; i < width; i++) {
        float value = NAME(load1)(source, i, bf16);
        rest += value * value;
    }
    float factor = 1.0f / sqrtf((NAME(sum)(squares0 + squares1) + rest) / (float)width + eps);
    for (i = 0; i + 2 * VW <= width; i += 2 * VW) {
        NAME(load2)(source, i, &a, &b, bf16);
        NAME(load2)(weight, i, &c, &d, bf16);
        NAME(store2)(out, i, a * factor * c, b * factor * d, bf16);
    }
    for (; i < width; i++)
        NAME(store1)(out, i, NAME(load1)(source, i, bf16) * factor * NAME(load1)(weight, i, bf16), bf16);
}

/* x is [rows, inner, width] with `stride` between rows; residual, sum and out are contiguous. */
static int NAME(rms_norm)(const void *x, const void *residual, const void *weight, void *out, void *sum, int64_t rows,
                          int64_t inner, int64_t stride, int64_t width, float eps, int bf16) {
    const int64_t element = bf16 ? 2 : 4;
#pragma omp parallel for if (rows * inner * width > 262144)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < inner; h++) {
            const char *from = (const char *)x + (r * stride + h * width) * element;
            int64_t at = (r * inner + h) * width * element;
            const char *other = residual ? (const char *)residual + at : NULL;
            char *total = residual ? (char *)sum + at : NULL;
            if (bf16)
                NAME(rms_row)(from, other, weight, (char *)out + at, total, width, eps, 1);
            else
                NAME(rms_row)(from, other, weight, (char *)out + at, total, width, eps, 0);
        }
    return 0;
}

INLINE void NAME(silu_row)(const void *gate, const void *up, void *out, int64_t width, const int bf16) {
    int64_t i = 0;
    for (; i + 2 * VW <= width; i += 2 * VW) {
        vf a, b, c, d;
        NAME(load2)(gate, i, &a, &b, bf16);
        NAME(load2)(up, i, &c, &d, bf16);
        a = a / (1.0f + NAME(exp2)(a * -1.44269504088896341f)) * c;
        b = b / (1.0f + NAME(exp2)(b * -1.44269504088896341f)) * d;
        NAME(store2)(out, i, a, b, bf16);
    }
    for (; i < width; i++) {
        float g = NAME(load1)(gate, i, bf16);
        NAME(store1)(out, i, g / (1.0f + NAME(exp2_1)(g * -1.44269504088896341f)) * NAME(load1)(up, i, bf16), bf16);
    }
}

static int NAME(silu_mul)(const void *x, void *out, int64_t rows, int64_t stride, int64_t width, int bf16) {
    const int64_t element = bf16 ? 2 : 4;
#pragma omp parallel for if (rows * width > 131072)
    for (int64_t r = 0; r < rows; r++) {
        const char *gate = (const char *)x + r * stride * element, *up = gate + width * element;
        if (bf16)
            NAME(silu_row)(gate, up, (char *)out + r * width * element, width, 1);
        else
            NAME(silu_row)(gate, up, (char *)out + r * width * element, width, 0);
    }
    return 0;
}

/* x times the normal distribution's share below x. erf as in Abramowitz and Stegun 7.1.26, absolute error 2e-7. */
INLINE vf NAME(gelu_of)(vf x) {
    vf z = x * 0.70710678118654752f, size = NAME(pick)(z < 0.0f, -z, z);
    vf t = 1.0f / (1.0f + 0.3275911f * size);
    vf p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf beyond = p * t * NAME(exp2)(size * size * -1.44269504088896341f); /* erfc(|z|) */
    return 0.5f * x * NAME(pick)(z < 0.0f, beyond, 2.0f - beyond);
}

INLINE void NAME(gelu_row)(const void *x, void *out, int64_t width, const int bf16) {
    int64_t i = 0;
    for (; i + 2 * VW <= width; i += 2 * VW) {
        vf a, b;
        NAME(load2)(x, i, &a, &b, bf16);
        NAME(store2)(out, i, NAME(gelu_of)(a), NAME(gelu_of)(b), bf16);
    }
    for (; i < width; i++) NAME(store1)(out, i, NAME(gelu_of)(NAME(splat)(NAME(load1)(x, i, bf16)))[0], bf16);
}

static int NAME(gelu)(const void *x, void *out, int64_t rows, int64_t width, int bf16) {
    const int64_t element = bf16 ? 2 : 4;
#pragma omp parallel for if (rows * width > 131072)
    for (int64_t r = 0; r < rows; r++) {
        int64_t at = r * width * element;
        if (bf16)
            NAME(gelu_row)((const char *)x + at, (char *)out + at, width, 1);
        else
            NAME(gelu_row)((const char *)x + at, (char *)out + at, width, 0);
    }
    return 0;
}

/* Rotate-half of one head of `2 * half` elements (RoFormer, in the pairing of the HF checkpoints). */
INLINE void NAME(rotate)(const void *x, const float *cos, const float *sin, void *out, int half, const int bf16) {
    int i = 0;
    for (; i + VW <= half; i += VW) {
        vf a = NAME(load)(x, i, bf16), b = NAME(load)(x, i + half, bf16), c = *(const vf *)(cos + i), s = *(const vf *)(sin + i);
        NAME(store)(out, i, a * c - b * s, bf16);
        NAME(store)(out, i + half, b * c + a * s, bf16);
    }
    for (; i < half; i++) {
        float a = NAME(load1)(x, i, bf16), b = NAME(load1)(x, i + half, bf16);
        NAME(store1)(out, i, a * cos[i] - b * sin[i], bf16);
        NAME(store1)(out, i + half, b * cos[i] + a * sin[i], bf16);
    }
}

/* x [dim] of the element type as a row of a pool of it, or of int8. */
INLINE void NAME(put_element)(const void *x, void *to, int dim, int kv8, const int bf16) {
    float wide[1024];
    if (!kv8) {
        memcpy(to, x, dim * (bf16 ? 2 : 4));
        return;
    }
    for (int i = 0; i < dim; i++) wide[i] = NAME(load1)(x, i, bf16);
    NAME(put_kv)(wide, to, dim, AS_INT8);
}

INLINE void NAME(rotary_token)(const Rotary *a, int64_t t, const int bf16) {
    const int64_t element = bf16 ? 2 : 4, head = a->dim * element;
    const int half = a->dim / 2;
    const float *cos = a->cos + t * half, *sin = a->sin + t * half;
    const char *q = (const char *)a->q + t * a->q_stride * element, *k = (const char *)a->k + t * a->k_stride * element;
    char *q_out = (char *)a->q_out + t * a->heads * head;
    for (int h = 0; h < a->heads; h++) NAME(rotate)(q + h * head, cos, sin, q_out + h * head, half, bf16);
    if (a->k_out) {
        char *k_out = (char *)a->k_out + t * a->kv_heads * head;
        for (int h = 0; h < a->kv_heads; h++) NAME(rotate)(k + h * head, cos, sin, k_out + h * head, half, bf16);
        return;
    }
    const char *v = (const char *)a->v + t * a->v_stride * element;
    int64_t at = NAME(slot)(a->slots[t], a->page, a->page_stride, a->dim, a->kv8, bf16);
    const int64_t step = a->head_stride * NAME(cell)(a->kv8, bf16);
    for (int h = 0; h < a->kv_heads; h++, at += step) {
        float turned[1024]; /* in the element type, rounded as a pool of it would hold it */
        NAME(rotate)(k + h * head, cos, sin, a->kv8 ? (char *)turned : (char *)a->k_pool + at, half, bf16);
        if (a->kv8) NAME(put_element)(turned, (char *)a->k_pool + at, a->dim, 1, bf16);
        NAME(put_element)(v + h * head, (char *)a->v_pool + at, a->dim, a->kv8, bf16);
    }
}

static int NAME(check_slots)(const Rotary *a) {
    for (int64_t t = 0; t < a->tokens; t++)
        if (a->slots[t] < 0 || a->slots[t] >= a->pages * a->page) return BAD_PAGE;
    return 0;
}

/* Rotate q and k into q_out and k_out, or (k_out NULL) q into q_out and k, with v beside it, into the pool's slots. */
static int NAME(rotary)(const Rotary *a, int bf16) {
    if (!a->k_out && NAME(check_slots)(a)) return BAD_PAGE;
#pragma omp parallel for if (a->tokens * a->heads * a->dim > 262144)
    for (int64_t t = 0; t < a->tokens; t++) {
        if (bf16)
            NAME(rotary_token)(a, t, 1);
        else
            NAME(rotary_token)(a, t, 0);
    }
    return 0;
}

INLINE void NAME(store_token)(const Rotary *a, int64_t t, const int bf16) {
    const int64_t element = bf16 ? 2 : 4, head = a->dim * element, step = a->head_stride * NAME(cell)(a->kv8, bf16);
    const char *k = (const char *)a->k + t * a->k_stride * element, *v = (const char *)a->v + t * a->v_stride * element;
    int64_t at = NAME(slot)(a->slots[t], a->page, a->page_stride, a->dim, a->kv8, bf16);
    for (int h = 0; h < a->kv_heads; h++, at += step) {
        NAME(put_element)(k + h * head, (char *)a->k_pool + at, a->dim, a->kv8, bf16);
        NAME(put_element)(v + h * head, (char *)a->v_pool + at, a->dim, a->kv8, bf16);
    }
}

static int NAME(store_kv)(const Rotary *a, int bf16) {
    if (NAME(check_slots)(a)) return BAD_PAGE;
    for (int64_t t = 0; t < a->tokens; t++) {
        if (bf16)
            NAME(store_token)(a, t, 1);
        else
            NAME(store_token)(a, t, 0);
    }
    return 0;
}
