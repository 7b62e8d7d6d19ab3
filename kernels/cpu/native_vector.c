/* Vectors of VW floats: loads and stores of both element types, exp, sums, transposition. Included per vector width. */
typedef float vf __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VW * 2), aligned(2), may_alias));
typedef int8_t vb __attribute__((vector_size(VW), aligned(1), may_alias));

#if VW == 16
#define LANES {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#define NAME_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define NAME_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VW == 8
#define LANES {0, 1, 2, 3, 4, 5, 6, 7}
#define NAME_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define NAME_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LANES {0, 1, 2, 3}
#define NAME_ZIP_LOW 0, 4, 1, 5
#define NAME_ZIP_HIGH 2, 6, 3, 7
#endif
#if defined(__clang__) || __GNUC__ >= 12
INLINE vu NAME(zip_low)(vu a, vu b) { return __builtin_shufflevector(a, b, NAME_ZIP_LOW); }
INLINE vu NAME(zip_high)(vu a, vu b) { return __builtin_shufflevector(a, b, NAME_ZIP_HIGH); }
#else
INLINE vu NAME(zip_low)(vu a, vu b) { return __builtin_shuffle(a, b, (vu){NAME_ZIP_LOW}); }
INLINE vu NAME(zip_high)(vu a, vu b) { return __builtin_shuffle(a, b, (vu){NAME_ZIP_HIGH}); }
#endif
#undef NAME_ZIP_LOW
#undef NAME_ZIP_HIGH

INLINE vf NAME(splat)(float x) { return x - (vf){0}; }
INLINE vf NAME(pick)(vi yes, vf a, vf b) { return (vf)((yes & (vi)a) | (~yes & (vi)b)); }
INLINE vf NAME(larger)(vf a, vf b) { return NAME(pick)(a > b, a, b); }

/* Element i.. of a row of floats or bfloat16s; `bf16` is a constant at every call. */
INLINE vf NAME(load)(const void *p, int64_t i, int bf16) {
    if (!bf16) return *(const vf *)((const float *)p + i);
    return (vf)(__builtin_convertvector(*(const vh *)((const uint16_t *)p + i), vu) << 16);
}

/* A float's bits with the upper half rounded to nearest even, which is its bfloat16. */
INLINE vu NAME(rounded)(vf x) { return (vu)x + 0x7fff + (((vu)x >> 16) & 1); }

INLINE void NAME(store)(void *p, int64_t i, vf x, int bf16) {
    if (!bf16) {
        *(vf *)((float *)p + i) = x;
        return;
    }
    *(vh *)((uint16_t *)p + i) = __builtin_convertvector(NAME(rounded)(x) >> 16, vh);
}

/* Elements i .. i + 2 VW - 1. Of bfloat16s `a` gets the even and `b` the odd ones: no lane has to move. */
INLINE void NAME(load2)(const void *p, int64_t i, vf *a, vf *b, int bf16) {
    if (bf16) {
        vu words = *(const vu *)((const uint16_t *)p + i);
        *a = (vf)(words << 16);
        *b = (vf)(words & 0xffff0000u);
    } else {
        *a = *(const vf *)((const float *)p + i);
        *b = *(const vf *)((const float *)p + i + VW);
    }
}

/* The inverse of load2. */
INLINE void NAME(store2)(void *p, int64_t i, vf a, vf b, int bf16) {
    if (bf16) {
        *(vu *)((uint16_t *)p + i) = NAME(rounded)(a) >> 16 | (NAME(rounded)(b) & 0xffff0000u);
    } else {
        *(vf *)((float *)p + i) = a;
        *(vf *)((float *)p + i + VW) = b;
    }
}

INLINE float NAME(load1)(const void *p, int64_t i, int bf16) {
    if (!bf16) return ((const float *)p)[i];
    uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

INLINE void NAME(store1)(void *p, int64_t i, float x, int bf16) {
    if (!bf16) {
        ((float *)p)[i] = x;
        return;
    }
    uint32_t u;
    memcpy(&u, &x, 4);
    ((uint16_t *)p)[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* 2^y, relative error 2e-7; exactly 0 below 2^-126.5, 2^127 above, NaN stays NaN. Polynomial of Cephes' expf. */
INLINE vf NAME(exp2)(vf y) {
    y = NAME(pick)(y < -127.0f, NAME(splat)(-127.0f), y);
    y = NAME(pick)(y > 127.0f, NAME(splat)(127.0f), y);
    vi n = __builtin_convertvector(y + NAME(pick)(y < 0.0f, NAME(splat)(-0.5f), NAME(splat)(0.5f)), vi);
    vf r = (y - __builtin_convertvector(n, vf)) * 0.693147180559945f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vf)((n + 127) << 23);
}

INLINE float NAME(exp2_1)(float y) { return NAME(exp2)(NAME(splat)(y))[0]; }

/* Sum of the lanes, always in the same order. */
INLINE float NAME(sum)(vf x) {
    float lane[VW];
    memcpy(lane, &x, sizeof x);
    for (int step = VW / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) lane[i] += lane[i + step];
    return lane[0];
}

INLINE float NAME(maximum)(vf x) {
    float lane[VW];
    for (int step = VW / 2; step > 0; step /= 2) { /* the lanes above `step` meet those below */
        vf turned;
        for (int i = 0; i < VW; i++) turned[i] = x[i ^ step];
        x = NAME(larger)(x, turned);
    }
    memcpy(lane, &x, sizeof x);
    return lane[0];
}

/* Transpose VW x VW: log2(VW) rounds of zipping the two halves; each round rotates the bits of (row, lane) by one. */
INLINE void NAME(transpose)(vu r[VW]) {
    for (int round = 1; round < VW; round *= 2) {
        vu t[VW];
        for (int i = 0; i < VW / 2; i++) {
            t[2 * i] = NAME(zip_low)(r[i], r[i + VW / 2]);
            t[2 * i + 1] = NAME(zip_high)(r[i], r[i + VW / 2]);
        }
        for (int i = 0; i < VW; i++) r[i] = t[i];
    }
}
