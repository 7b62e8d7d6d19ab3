/* All layers of a small decoder in one call: its steps are short enough that single calls would cost more than their work.
 * Included per vector width.
 *
 * The residual stream and what products give are float32; their inputs, queries, keys and values are of the element type.
 * Per layer: every token's norm, q, k, v and KV slot; then attention; then output product and feed-forward. The last
 * layer's second half is computed for the wanted places only. Tokens go in chunks, none of which depends on another.
 */

INLINE void NAME(norm_row)(const float *x, const float *weight, void *out, int width, float eps, const int bf16) {
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
    for (i = 0; i + VW <= width; i += VW)
        NAME(store)(out, i, *(const vf *)(x + i) * factor * *(const vf *)(weight + i), bf16);
    for (; i < width; i++) NAME(store1)(out, i, x[i] * factor * weight[i], bf16);
}

/* Rotate-half of one head, float32 to the element type. */
INLINE void NAME(turn_head)(const float *x, const float *cos, const float *sin, void *out, int half, const int bf16) {
    int i = 0;
    for (; i + VW <= half; i += VW) {
        vf a = *(const vf *)(x + i), b = *(const vf *)(x + i + half), c = *(const vf *)(cos + i), s = *(const vf *)(sin + i);
        NAME(store)(out, i, a * c - b * s, bf16);
        NAME(store)(out, i + half, b * c + a * s, bf16);
    }
    for (; i < half; i++) {
        NAME(store1)(out, i, x[i] * cos[i] - x[i + half] * sin[i], bf16);
        NAME(store1)(out, i + half, x[i + half] * cos[i] + x[i] * sin[i], bf16);
    }
}

INLINE void NAME(gate)(const float *gate, const float *up, void *out, int width, const int bf16) {
    int i = 0;
    for (; i + VW <= width; i += VW) {
        vf a = *(const vf *)(gate + i);
        NAME(store)(out, i, a / (1.0f + NAME(exp2)(a * -1.44269504088896341f)) * *(const vf *)(up + i), bf16);
    }
    for (; i < width; i++)
        NAME(store1)(out, i, gate[i] / (1.0f + NAME(exp2_1)(gate[i] * -1.44269504088896341f)) * up[i], bf16);
}

static int NAME(rounded_up)(int n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* What one chunk's products go through: inputs in the element type, results, and inputs widened for lack of pair products. */
typedef struct {
    char *x;
    float *y, *wide;
} NAME(Room);

INLINE int NAME(room)(const Stack *a, NAME(Room) *room) {
    const int most = MAX(MAX(a->width, a->ffn), a->heads * a->dim);
    const int results = MAX(NAME(rounded_up)((a->heads + 2 * a->kv_heads) * a->dim), NAME(rounded_up)(2 * a->ffn));
    room->y = scratch_for(FOR_CHUNK, sizeof(float) * CHUNK * (size_t)(results + 2 * most));
    if (!room->y) return NO_MEMORY;
    room->wide = room->y + (size_t)CHUNK * results;
    room->x = (char *)(room->wide + (size_t)CHUNK * most);
    return 0;
}

/* Norm, q, k, v of tokens [first, first + count): rotated q into `q`, rotated k and v into the layer's pool. */
INLINE int NAME(before)(const Stack *a, int l, const float *residual, char *q, int64_t first, int count, const int bf16) {
    const Layer *layer = a->layers + l;
    const int64_t element = bf16 ? 2 : 4, head = a->dim * element;
    const int half = a->dim / 2, stride = NAME(rounded_up)(layer->qkv.outputs), D = a->dim;
    const int64_t ld = NAME(rounded_up)(a->width);
    NAME(Room) room;
    if (NAME(room)(a, &room)) return NO_MEMORY;
    for (int i = 0; i < count; i++)
        NAME(norm_row)(residual + (first + i) * ld, layer->norm, room.x + i * a->width * element, a->width, a->eps, bf16);
    (bf16 ? NAME(multiply_bf16) : NAME(multiply_f32))(&layer->qkv, room.x, room.y, stride, count, 0, room.wide);
    for (int i = 0; i < count; i++) {
        const int64_t t = first + i, slot = a->slots[t];
        const float *cos = a->cos + a->positions[t] * half, *sin = a->sin + a->positions[t] * half;
        float *from = room.y + (int64_t)i * stride, normed[1024], turned[1024];
        const int how = a->kv8 ? AS_INT8 : bf16 ? AS_BF16 : AS_F32;
        const int64_t step = a->head_stride * NAME(cell)(a->kv8, bf16);
        const int64_t at = NAME(slot)(slot, a->page, a->page_stride, D, a->kv8, bf16);
        for (int h = 0; h < a->heads + a->kv_heads; h++) {
            const float *weight = h < a->heads ? layer->q_norm : layer->k_norm, *x = from + h * D;
            if (weight) {
                NAME(norm_row)(x, weight, normed, D, a->eps, 0);
                x = normed;
            }
            if (h < a->heads) {
                NAME(turn_head)(x, cos, sin, q + (t * a->heads + h) * head, half, bf16);
            } else {
                NAME(turn_head)(x, cos, sin, turned, half, 0);
                NAME(put_kv)(turned, (char *)a->pools[2 * l] + at + (h - a->heads) * step, D, how);
            }
        }
        for (int h = 0; h < a->kv_heads; h++)
            NAME(put_kv)(from + (a->heads + a->kv_heads + h) * D, (char *)a->pools[2 * l + 1] + at + h * step, D, how);
    }
    return 0;
}

/* Output product and feed-forward of tokens [first, first + count), onto their residual. */
INLINE int NAME(after)(const Stack *a, int l, const char *mixed, float *residual, int64_t first, int count, const int bf16) {
    const Layer *layer = a->layers + l;
    const int64_t element = bf16 ? 2 : 4, ld = NAME(rounded_up)(a->width), wide = NAME(rounded_up)(2 * a->ffn);
    void (*multiply)(const Product *, const void *, float *, int64_t, int, int, float *) =
        bf16 ? NAME(multiply_bf16) : NAME(multiply_f32);
    NAME(Room) room;
    if (NAME(room)(a, &room)) return NO_MEMORY;
    residual += first * ld;
    multiply(&layer->out, mixed + first * a->heads * a->dim * element, residual, ld, count, 1, room.wide);
    for (int i = 0; i < count; i++)
        NAME(norm_row)(residual + i * ld, layer->post_norm, room.x + i * a->width * element, a->width, a->eps, bf16);
    multiply(&layer->gate_up, room.x, room.y, wide, count, 0, room.wide);
    for (int i = 0; i < count; i++)
        NAME(gate)(room.y + i * wide, room.y + i * wide + a->ffn, room.x + i * a->ffn * element, a->ffn, bf16);
    multiply(&layer->down, room.x, residual, ld, count, 1, room.wide);
    return 0;
}

static int NAME(before_f32)(const Stack *a, int l, const float *r, char *q, int64_t t, int n) { return NAME(before)(a, l, r, q, t, n, 0); }
static int NAME(before_bf16)(const Stack *a, int l, const float *r, char *q, int64_t t, int n) { return NAME(before)(a, l, r, q, t, n, 1); }
static int NAME(after_f32)(const Stack *a, int l, const char *m, float *r, int64_t t, int n) { return NAME(after)(a, l, m, r, t, n, 0); }
static int NAME(after_bf16)(const Stack *a, int l, const char *m, float *r, int64_t t, int n) { return NAME(after)(a, l, m, r, t, n, 1); }

static int NAME(check_stack)(const Stack *a) {
    for (int64_t t = 0; t < a->tokens; t++) {
        if (a->ids[t] < 0 || a->ids[t] >= a->vocab) return BAD_ID;
        if (a->positions[t] < 0 || a->positions[t] >= a->angles) return BAD_ID;
        if (a->slots[t] < 0 || a->slots[t] >= (int64_t)a->pages * a->page) return BAD_PAGE;
    }
    for (int64_t i = 0; i < a->places; i++)
        if (a->wanted[i] < 0 || a->wanted[i] >= a->tokens) return BAD_ID;
    return 0;
}

static int NAME(stack)(const Stack *a, int bf16) {
    const int64_t element = bf16 ? 2 : 4, ld = NAME(rounded_up)(a->width), heads = (int64_t)a->heads * a->dim * element;
    int failed = NAME(check_stack)(a);
    if (failed) return failed;
    /* [ residual, tokens | residual, places | q, tokens | mixed, tokens | mixed, places ] */
    char *memory = scratch_for(FOR_STEP, (size_t)((a->tokens + a->places) * (ld * 4 + heads) + a->tokens * heads) + 64);
    if (!memory) return NO_MEMORY;
    float *residual = (float *)memory, *kept = residual + a->tokens * ld;
    char *q = (char *)(kept + a->places * ld), *mixed = q + a->tokens * heads, *picked = mixed + a->tokens * heads;
    for (int64_t t = 0; t < a->tokens; t++)
        for (int c = 0; c < a->width; c++)
            residual[t * ld + c] = NAME(load1)(a->embed, a->ids[t] * a->width + c, bf16);
    Attention attention = {.q = q, .out = mixed, .table = a->table, .cu = a->cu, .len = a->len,
                           .q_stride = (int64_t)a->heads * a->dim, .page_stride = a->page_stride, .head_stride = a->head_stride,
                           .table_stride = a->table_stride, .rows = a->rows, .heads = a->heads, .kv_heads = a->kv_heads,
                           .dim = a->dim, .page = a->page, .pages = a->pages, .columns = a->columns, .tokens = (int)a->tokens,
                           .scale = a->scale, .kv8 = a->kv8};
    failed = NAME(check_rows)(&attention);
    int32_t *order = scratch_for(FOR_ORDER, sizeof(int32_t) * 2 * (size_t)a->rows + 4);
    if (!order) failed = NO_MEMORY;
    const int decoding = failed ? 0 : NAME(sorted_rows)(&attention, order);
    for (int l = 0; l < a->count && !failed; l++) {
#pragma omp parallel for if (a->tokens > CHUNK)
        for (int64_t t = 0; t < a->tokens; t += CHUNK)
            if ((bf16 ? NAME(before_bf16) : NAME(before_f32))(a, l, residual, q, t, (int)MIN(CHUNK, a->tokens - t)))
                failed = NO_MEMORY;
        attention.k = a->pools[2 * l];
        attention.v = a->pools[2 * l + 1];
        attention.window = a->layers[l].window;
        if (!failed) failed = NAME(attention)(&attention, order, decoding, bf16);
        if (failed) break;
        const int last = l == a->count - 1;
        const int64_t count = last ? a->places : a->tokens;
        float *stream = last ? kept : residual;
        for (int64_t i = 0; last && i < count; i++) {
            memcpy(kept + i * ld, residual + a->wanted[i] * ld, ld * 4);
            memcpy(picked + i * heads, mixed + a->wanted[i] * heads, heads);
        }
#pragma omp parallel for if (count > CHUNK)
        for (int64_t t = 0; t < count; t += CHUNK)
            if ((bf16 ? NAME(after_bf16) : NAME(after_f32))(a, l, last ? picked : mixed, stream, t, (int)MIN(CHUNK, count - t)))
                failed = NO_MEMORY;
    }
    for (int64_t i = 0; i < a->places && !failed; i++) {
        char *out = (char *)a->out + i * a->width * element;
        if (bf16)
            NAME(norm_row)(kept + i * ld, a->norm, out, a->width, a->eps, 1);
        else
            NAME(norm_row)(kept + i * ld, a->norm, out, a->width, a->eps, 0);
    }
    return failed;
}
