/* Weights into panels, and rows of inputs into the layouts that products read. Included per vector width.
 *
 *   weight [N, K]:  [ panel 0 | panel 1 | ... ]  of PANEL outputs each, the last one filled up with zeros
 *   a panel:        [word][PANEL], a word of 32 bits being what one output has for neighbouring inputs:
 *                   one float32, two bfloat16, four int8 (plus 128, so that they are unsigned) or eight nibbles
 *   inputs:         chunks of CHUNK rows, in them strips of STRIP rows (the last ones shorter); a strip is [word][its rows]
 *   of integers:    a strip is [block][its rows][11]: 8 words of four int8 each, then for the block the scale, the
 *                   integer that its dots start from, and scale times the sum of its integers
 *
 * A word of nibbles has inputs 0, 2, 4, 6 in the low and 1, 3, 5, 7 in the high halves of its bytes; the inputs' words
 * follow: first those of the even, then those of the odd ones.
 */

/* Words of 32 bits that one row of a weight of this kind takes. */
INLINE int NAME(words)(int kind, int inputs) {
    return kind == KIND_F32 ? inputs : kind == KIND_BF16 ? (inputs + 1) / 2 : kind == KIND_INT8 ? inputs / 4 : inputs / 8;
}

/* Words of 32 bits that one prepared row of inputs takes; without pair products bfloat16 is widened. */
INLINE int NAME(input_words)(int kind, int inputs) {
    if (kind >= KIND_INT8) return inputs / BLOCK * ROW_WORDS;
    return kind == KIND_F32 ? inputs : VW == 16 && dots ? (inputs + 1) / 2 : (inputs + 1) / 2 * 2;
}

/* Bytes of a buffer that holds `rows` prepared input rows for a weight of this kind. */
INLINE size_t NAME(inputs_bytes)(int kind, int inputs, int64_t rows) {
    return (size_t)rows * NAME(input_words)(kind, inputs) * 4;
}

/* The strip that holds row r of `rows`: its first row and how many it has. */
INLINE int NAME(strip)(int64_t rows, int64_t r, int64_t *first) {
    int64_t chunk = r / CHUNK * CHUNK;
    *first = chunk + (r - chunk) / STRIP * STRIP;
    return (int)MIN(MIN(STRIP, chunk + CHUNK - *first), rows - *first);
}

typedef int8_t NAME(vector_b) __attribute__((vector_size(VW), aligned(1), may_alias));

/* The largest or the sum of the lanes. */
INLINE int32_t NAME(fold)(vi x, const int add) {
    int32_t lane[VW];
    memcpy(lane, &x, sizeof x);
    for (int half = VW / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = add ? lane[i] + lane[i + half] : MAX(lane[i], lane[i + half]);
    return lane[0];
}

/* Every other of eight bytes, from the lowest on. */
INLINE uint32_t NAME(every_other)(uint64_t bytes) {
    bytes &= 0x00ff00ff00ff00ffu;
    bytes = (bytes | bytes >> 8) & 0x0000ffff0000ffffu;
    return (uint32_t)(bytes | bytes >> 16);
}

/* One row of inputs in blocks of int8, and what belongs to each block; `step` words lie between blocks. */
static void NAME(put_integers)(int kind, int inputs, uint32_t *to, int step, const float *x) {
    for (int block = 0; block < inputs / BLOCK; block++, x += BLOCK, to += step) {
        vi most = {0}, total = {0};
        for (int i = 0; i < BLOCK; i += VW) { /* sizes of floats are ordered as their bits; what is not finite is largest */
            const vi size = *(const vi *)(x + i) & 0x7fffffff, more = size > most;
            most = (size & more) | (most & ~more);
        }
        const int32_t bits = NAME(fold)(most, 0);
        float top;
        memcpy(&top, &bits, 4);
        const float scale = bits < 0x7f800000 ? top / 127.0f : NAN, inverse = top < 1e-30f ? 0.0f : 127.0f / top;
        int8_t number[BLOCK];
        for (int i = 0; i < BLOCK; i += VW) {
            vf value = *(const vf *)(x + i) * inverse;
            APART(value);
            value += 12582912.0f; /* 1.5 * 2^23: what is left of the fraction is rounded to nearest even */
            const vi whole = (vi)value - 0x4b400000;
            total += whole;
            *(NAME(vector_b) *)(number + i) = __builtin_convertvector(whole, NAME(vector_b));
        }
        if (kind == KIND_INT8) {
            memcpy(to, number, BLOCK);
        } else {
            for (int i = 0; i < 4; i++) {
                uint64_t eight;
                memcpy(&eight, number + 8 * i, 8);
                to[2 * i] = NAME(every_other)(eight);
                to[2 * i + 1] = NAME(every_other)(eight >> 8);
            }
        }
        const int32_t sum = bits < 0x7f800000 ? NAME(fold)(total, 1) : 0;
        const float shift = scale * (float)sum;
        memcpy(to + 8, &scale, 4);
        to[9] = (uint32_t)(sum * (kind == KIND_INT4 ? -8 : -128));
        memcpy(to + 10, &shift, 4);
    }
}

INLINE uint32_t NAME(bf16_bits)(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

/* float32 row x [inputs] into place r of a buffer for `rows` rows: copied, rounded to bfloat16 or quantized. */
static void NAME(put_row)(int kind, int inputs, int64_t rows, void *buffer, int64_t r, const float *x) {
    int64_t first;
    const int step = NAME(strip)(rows, r, &first);
    uint32_t *to = (uint32_t *)buffer + first * NAME(input_words)(kind, inputs) + (r - first);
    if (kind >= KIND_INT8) {
        NAME(put_integers)(kind, inputs, to + (r - first) * (ROW_WORDS - 1), step * ROW_WORDS, x);
    } else if (kind == KIND_F32) {
        for (int k = 0; k < inputs; k++) memcpy(to + (int64_t)k * step, x + k, 4);
    } else if (VW == 16 && dots) {
        for (int k = 0; k < inputs / 2; k++)
            to[(int64_t)k * step] = NAME(bf16_bits)(x[2 * k]) | NAME(bf16_bits)(x[2 * k + 1]) << 16;
        if (inputs % 2) to[(int64_t)(inputs / 2) * step] = NAME(bf16_bits)(x[inputs - 1]);
    } else {
        for (int k = 0; k < inputs; k++) to[(int64_t)k * step] = NAME(bf16_bits)(x[k]) << 16;
        if (inputs % 2) to[(int64_t)inputs * step] = 0;
    }
}

/* Float16s as floats: the exponent is moved by multiplying, which is right for subnormal numbers, too. */
INLINE vf NAME(halves)(const uint16_t *p) {
    vu bits = __builtin_convertvector(*(const vh *)p, vu);
    return (vf)((bits & 0x7fff) << 13 | (bits & 0x8000) << 16) * 0x1p112f;
}

INLINE float NAME(half)(uint16_t bits) {
    uint32_t u = (uint32_t)(bits & 0x7fff) << 13 | (uint32_t)(bits & 0x8000) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f * 0x1p112f;
}

/* Row n of the weight, [inputs]; numbers of groups come back as value * scale + offset. */
static void NAME(weight_row)(const Product *w, int64_t n, float *out) {
    const int words = NAME(words)(w->kind, w->inputs), groups = w->scales ? w->inputs / w->group : 0;
    const uint32_t *at = (const uint32_t *)w->panels + n / PANEL * words * PANEL + n % PANEL;
    const int64_t first = n / PANEL * groups * PANEL + n % PANEL;
    for (int k = 0; k < w->inputs; k++) {
        if (w->kind <= KIND_BF16) {
            uint32_t word = at[(int64_t)(w->kind == KIND_BF16 ? k / 2 : k) * PANEL];
            if (w->kind == KIND_BF16) word = k % 2 ? word & 0xffff0000u : word << 16;
            memcpy(out + k, &word, 4);
            continue;
        }
        const int four = w->kind == KIND_INT4;
        const uint32_t word = at[(int64_t)(four ? k / 8 : k / 4) * PANEL];
        int value = four ? (int)(word >> (k % 8 * 4) & 15) : (int)(word >> (k % 4 * 8) & 255) - 128;
        if (four && !w->offsets) value -= 8;
        float part = (float)value * NAME(half)(w->scales[first + k / w->group * PANEL]);
        APART(part);
        out[k] = w->offsets ? part + NAME(half)(w->offsets[first + k / w->group * PANEL]) : part;
    }
}

static int NAME(weight_rows)(const Product *w, const int64_t *ids, float *out, int64_t rows) {
    for (int64_t i = 0; i < rows; i++)
        if (ids[i] < 0 || ids[i] >= w->outputs) return BAD_ID;
    for (int64_t i = 0; i < rows; i++) NAME(weight_row)(w, ids[i], out + i * w->inputs);
    return 0;
}

/* `words` words of each of `outputs` rows, `bytes` apart, as [word][PANEL]; every byte is xored with `flip`'s. */
INLINE void NAME(pack_panel)(const char *rows, size_t bytes, int outputs, int words, uint32_t *panel, const uint32_t flip) {
    int word = 0;
    for (; word + VW <= words; word += VW)
        for (int n = 0; n < PANEL; n += VW) {
            vu tile[VW];
            for (int i = 0; i < VW; i++) {
                tile[i] = (vu){0} + flip;
                if (n + i < outputs) tile[i] ^= *(const vu *)(rows + (n + i) * bytes + (size_t)word * 4);
            }
            NAME(transpose)(tile);
            for (int i = 0; i < VW; i++) *(vu *)(panel + (word + i) * PANEL + n) = tile[i];
        }
    for (; word < words; word++)
        for (int n = 0; n < PANEL; n++) {
            uint32_t value = 0;
            if (n < outputs) memcpy(&value, rows + n * bytes + (size_t)word * 4, 4);
            panel[word * PANEL + n] = value ^ flip;
        }
}

static int NAME(pack)(const Packing *a) {
    const int words = NAME(words)(a->kind, a->inputs), groups = a->scales ? a->inputs / a->group : 0;
    const int odd = a->kind == KIND_BF16 && a->inputs % 2;
    const size_t bytes = odd ? (size_t)a->inputs * 2 : (size_t)words * 4;
    want_huge_pages(a->panels, (size_t)(a->outputs + PANEL - 1) / PANEL * words * PANEL * 4);
#pragma omp parallel for schedule(dynamic, 4)
    for (int p = 0; p < (a->outputs + PANEL - 1) / PANEL; p++) {
        const char *rows = (const char *)a->values + p * PANEL * bytes;
        const int outputs = MIN(PANEL, a->outputs - p * PANEL);
        uint32_t *panel = (uint32_t *)a->panels + (size_t)p * words * PANEL;
        NAME(pack_panel)(rows, bytes, outputs, words - odd, panel, a->kind == KIND_INT8 ? 0x80808080u : 0);
        for (int n = 0; odd && n < PANEL; n++) {
            uint16_t last = 0;
            if (n < outputs) memcpy(&last, rows + (n + 1) * bytes - 2, 2);
            panel[(words - 1) * PANEL + n] = last;
        }
        for (int g = 0; g < groups; g++)
            for (int n = 0; n < PANEL; n++) {
                const int64_t from = ((int64_t)p * PANEL + n) * groups + g, to = ((int64_t)p * groups + g) * PANEL + n;
                a->packed_scales[to] = n < outputs ? a->scales[from] : 0;
                if (a->offsets) a->packed_offsets[to] = n < outputs ? a->offsets[from] : 0;
            }
    }
    return 0;
}
