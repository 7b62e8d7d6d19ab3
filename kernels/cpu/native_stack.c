/* All layers of a decoder in one call, whose threads share each phase's tasks. Included per vector width.
 *
 *   embed | norm, put | q k v | rotate, store | attention | put | out | norm, put | gate, up | put | down | norm, put | ...
 *
 * The residual stream and what products give are float32; "put" prepares rows for the next product; queries, keys and
 * values are of the element type. Past the last attention only the wanted places go on. Tokens go through the products in
 * spans, none of which depends on another.
 */
typedef struct {
    const Stack *a;
    Crew *crew;
    Attention attention; /* of no layer yet */
    NAME(Division) division;
    float *residual, *kept; /* [tokens], [places], both with stride `ld` */
    float *y;               /* a span's results */
    char *q, *mixed;        /* [tokens, H, D] */
    char *inputs;           /* a span's rows prepared for the product that comes */
    char *rooms;            /* one for each thread */
    size_t room;            /* bytes */
    int64_t ld;
    int32_t bf16;
} NAME(Step);

typedef struct { /* a phase: of layer l, the `count` tokens or places from `first` on */
    const NAME(Step) *s;
    const Layer *layer;
    const float *norm;
    const Product *product;
    int64_t first, count, group; /* group: rows to a task of the phases that have no product */
    Split split;
    int l, last, unused;
} NAME(Part);

static int NAME(padded)(int n) { return (n + PANEL - 1) / PANEL * PANEL; }

static Split NAME(split)(const Product *w, int64_t rows, int beside, int threads) {
    static const float bytes_of[] = {4, 2, 1.125f, 0.625f};
    const int panels = NAME(padded)(w->outputs) / PANEL;
    const int64_t bytes = (int64_t)(bytes_of[w->kind] * PANEL * (float)w->inputs) * beside;
    const int few = rows <= CHUNK; /* then the weights' streaming takes the time, and each task begins streams anew */
    int per = (int)MAX(1, (few ? STREAM_BYTES : TASK_BYTES) / MAX(bytes, 1)), most = (int)MAX(rows, 1);
    const int wanted = (few ? TASKS / 2 : TASKS) * threads;
    if (rows > CHUNK) per = MIN(per, 4 / beside);
    if (beside > 1) per = MIN(per, MAX(1, ROOM / (beside * PANEL * most)));
    if (threads > 1) {
        per = MIN(per, MAX(1, panels / wanted));
        if (panels < wanted && rows > CHUNK) {
            const int64_t cuts = (wanted + panels - 1) / panels;
            most = (int)(((rows + cuts - 1) / cuts + CHUNK - 1) / CHUNK * CHUNK);
        }
    }
    per = MIN(per, panels);
    return (Split){per, most, (panels + per - 1) / per, (int)((rows + most - 1) / most)};
}

INLINE float *NAME(room_of)(const NAME(Step) *s, int thread) { return (float *)(s->rooms + s->room * (size_t)thread); }

/* The rows of task i of a phase without a product. */
#define ROWS_OF(part, i, r) \
    for (int64_t r = i * part->group, r##_end = MIN(part->count, (i + 1) * part->group); r < r##_end; r++)

static void NAME(embed_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const Stack *a = p->s->a;
    (void)thread;
    ROWS_OF(p, i, t) NAME(weight_row)(a->embed, a->ids[t], p->s->residual + t * p->s->ld);
}

/* Rows of the residual stream, normed, to inputs of `product`. */
static void NAME(norm_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const NAME(Step) *s = p->s;
    float *row = NAME(room_of)(s, thread), *stream = p->last ? s->kept : s->residual;
    ROWS_OF(p, i, r) {
        NAME(norm_row)(stream + (p->first + r) * s->ld, p->norm, row, s->a->width, s->a->eps);
        NAME(put_row)(p->product->kind, p->product->inputs, p->count, s->inputs, r, row);
    }
}

/* Part of `product` of the inputs: into y, or onto the residual stream. */
static void NAME(product_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const NAME(Step) *s = p->s;
    const Split *split = &p->split;
    const int panels = NAME(padded)(p->product->outputs) / PANEL, onto = p->product != &p->layer->qkv;
    const int first = (int)(i / split->down) * split->panels;
    const int64_t row = i % split->down * split->rows;
    float *out = onto ? (p->last ? s->kept : s->residual) + p->first * s->ld : s->y;
    (void)thread;
    NAME(multiply)(p->product, s->inputs, p->count, row, MIN(p->count, row + split->rows), first,
                   MIN(panels, first + split->panels), out, onto ? s->ld : (int64_t)panels * PANEL, onto);
}

/* q, k, v of some rows: q and k normed if the family does so and rotated, k and v into the layer's pools. */
static void NAME(store_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const NAME(Step) *s = p->s;
    const Stack *a = s->a;
    const int half = a->dim / 2, D = a->dim, stride = NAME(padded)(p->layer->qkv.outputs);
    const int element = s->bf16 ? AS_BF16 : AS_F32, how = a->kv8 ? AS_INT8 : element;
    const int64_t head = D * (s->bf16 ? 2 : 4), step = a->head_stride * NAME(cell)(a->kv8, s->bf16);
    float *normed = NAME(room_of)(s, thread), *turned = normed + D;
    ROWS_OF(p, i, r) {
        const int64_t t = p->first + r, at = NAME(slot)(a->slots[t], a->page, a->page_stride, D, a->kv8, s->bf16);
        const float *cos = a->cos + a->positions[t] * half, *sin = a->sin + a->positions[t] * half, *x = s->y + r * stride;
        char *k = (char *)a->pools[2 * p->l] + at, *v = (char *)a->pools[2 * p->l + 1] + at;
        for (int h = 0; h < a->heads + a->kv_heads; h++, x += D) {
            const int key = h - a->heads;
            const float *weight = key < 0 ? p->layer->q_norm : p->layer->k_norm;
            if (weight) NAME(norm_row)(x, weight, normed, D, a->eps);
            NAME(turn_head)(weight ? normed : x, cos, sin, turned, half);
            NAME(store_row)(turned, key < 0 ? s->q + (t * a->heads + h) * head : k + key * step, D, key < 0 ? element : how);
        }
        for (int h = 0; h < a->kv_heads; h++, x += D) NAME(store_row)(x, v + h * step, D, how);
    }
}

static void NAME(attention_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const NAME(Step) *s = p->s;
    Attention attention = s->attention;
    (void)thread;
    attention.k = s->a->pools[2 * p->l];
    attention.v = s->a->pools[2 * p->l + 1];
    attention.window = p->layer->window;
    const int code = NAME(attend_task)(&attention, &s->division, i, s->bf16);
    if (code || attention.failed) __atomic_store_n(&s->crew->failed, code ? code : attention.failed, __ATOMIC_RELAXED);
}

/* What attention gave to inputs of the output product. */
static void NAME(mixed_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const NAME(Step) *s = p->s;
    const int width = s->a->heads * s->a->dim;
    float *row = NAME(room_of)(s, thread);
    ROWS_OF(p, i, r) {
        const int64_t t = p->last ? s->a->wanted[p->first + r] : p->first + r;
        NAME(floats_of)(s->mixed + t * width * (s->bf16 ? 2 : 4), row, width, s->bf16);
        NAME(put_row)(p->product->kind, p->product->inputs, p->count, s->inputs, r, row);
        if (p->last) memcpy(s->kept + (p->first + r) * s->ld, s->residual + t * s->ld, sizeof(float) * (size_t)s->ld);
    }
}

/* Some outputs of gate and up in the thread's room, their gated product to y. */
static void NAME(gate_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const NAME(Step) *s = p->s;
    const Split *split = &p->split;
    const int panels = NAME(padded)(s->a->ffn) / PANEL, first = (int)(i / split->down) * split->panels;
    const int last = MIN(panels, first + split->panels), wide = (last - first) * PANEL;
    const int64_t from = i % split->down * split->rows, to = MIN(p->count, from + split->rows);
    float *gate = NAME(room_of)(s, thread), *up = gate + (to - from) * wide;
    /* multiply counts rows and columns from the matrix's first: the room's addresses are those of its row `from` */
    const int64_t shift = from * wide + first * PANEL;
    NAME(multiply)(&p->layer->gate, s->inputs, p->count, from, to, first, last, gate - shift, wide, 0);
    NAME(multiply)(&p->layer->up, s->inputs, p->count, from, to, first, last, up - shift, wide, 0);
    for (int64_t r = 0; r < to - from; r++)
        NAME(gated)(gate + r * wide, up + r * wide, s->y + (from + r) * panels * PANEL + first * PANEL, wide);
}

static void NAME(gated_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const int stride = NAME(padded)(p->s->a->ffn);
    (void)thread;
    ROWS_OF(p, i, r)
        NAME(put_row)(p->product->kind, p->product->inputs, p->count, p->s->inputs, r, p->s->y + r * stride);
}

static void NAME(final_task)(const void *context, int64_t i, int thread) {
    const NAME(Part) *p = context;
    const Stack *a = p->s->a;
    (void)thread;
    ROWS_OF(p, i, r) NAME(norm_row)(p->s->kept + r * p->s->ld, a->norm, a->out + r * a->width, a->width, a->eps);
}
#undef ROWS_OF

/* A phase of rows, or of a product's tasks. */
INLINE void NAME(rows_phase)(Walk *walk, NAME(Part) *p, Task task) {
    const int threads = walk->crew->threads;
    p->group = threads == 1 ? MAX(p->count, 1) : MIN(16, MAX(1, p->count / (TASKS * threads)));
    phase(walk, (p->count + p->group - 1) / p->group, task, p);
}

INLINE void NAME(product_phase)(Walk *walk, NAME(Part) *p, const Product *product, int beside, Task task) {
    p->product = product;
    p->split = NAME(split)(product, p->count, beside, walk->crew->threads);
    phase(walk, (int64_t)p->split.across * p->split.down, task, p);
}

/* Tokens that go together: as many as SPAN, in even parts. */
INLINE int64_t NAME(span)(int64_t count) {
    const int64_t spans = MAX(1, (count + SPAN - 1) / SPAN);
    return MAX(1, ((count + spans - 1) / spans + CHUNK - 1) / CHUNK * CHUNK);
}

static void NAME(layer)(Walk *walk, const NAME(Step) *s, int l) {
    const Stack *a = s->a;
    NAME(Part) p = {.s = s, .layer = a->layers + l, .l = l};
    int64_t span = NAME(span)(a->tokens);
    for (p.first = 0; p.first < a->tokens; p.first += span) {
        p.count = MIN(span, a->tokens - p.first);
        p.norm = p.layer->norm;
        p.product = &p.layer->qkv;
        NAME(rows_phase)(walk, &p, NAME(norm_task));
        NAME(product_phase)(walk, &p, &p.layer->qkv, 1, NAME(product_task));
        NAME(rows_phase)(walk, &p, NAME(store_task));
    }
    phase(walk, s->division.tasks, NAME(attention_task), &p);
    p.last = l == a->count - 1;
    const int64_t count = p.last ? a->places : a->tokens;
    span = NAME(span)(count);
    for (p.first = 0; p.first < count; p.first += span) {
        p.count = MIN(span, count - p.first);
        p.product = &p.layer->out;
        NAME(rows_phase)(walk, &p, NAME(mixed_task));
        NAME(product_phase)(walk, &p, &p.layer->out, 1, NAME(product_task));
        p.norm = p.layer->post_norm;
        p.product = &p.layer->gate;
        NAME(rows_phase)(walk, &p, NAME(norm_task));
        NAME(product_phase)(walk, &p, &p.layer->gate, 2, NAME(gate_task));
        p.product = &p.layer->down;
        NAME(rows_phase)(walk, &p, NAME(gated_task));
        NAME(product_phase)(walk, &p, &p.layer->down, 1, NAME(product_task));
    }
}

static void NAME(walk_stack)(Walk *walk, const NAME(Step) *s) {
    NAME(Part) p = {.s = s, .layer = s->a->layers, .count = s->a->tokens};
    NAME(rows_phase)(walk, &p, NAME(embed_task));
    for (int l = 0; l < s->a->count; l++) NAME(layer)(walk, s, l);
    p.count = s->a->places;
    NAME(rows_phase)(walk, &p, NAME(final_task));
}

static int NAME(check_stack)(const Stack *a) {
    for (int64_t t = 0; t < a->tokens; t++) {
        if (a->ids[t] < 0 || a->ids[t] >= a->embed->outputs) return BAD_ID;
        if (a->positions[t] < 0 || a->positions[t] >= a->angles) return BAD_ID;
        if (a->slots[t] < 0 || a->slots[t] >= (int64_t)a->pages * a->page) return BAD_PAGE;
    }
    for (int64_t i = 0; i < a->places; i++)
        if (a->wanted[i] < 0 || a->wanted[i] >= a->tokens) return BAD_ID;
    return 0;
}

INLINE int NAME(threads_for)(const Stack *a) {
    const Layer *l = a->layers;
    const int64_t outputs = (int64_t)l->qkv.outputs + l->out.outputs + 3 * (int64_t)a->ffn;
    return a->tokens * a->count * a->width * outputs > SMALL_STEP ? thread_count() : 1;
}

/* Bytes of the inputs of any product, for `rows` rows. */
INLINE size_t NAME(inputs_room)(const Stack *a, int64_t rows) {
    size_t most = 0;
    for (int l = 0; l < a->count; l++) {
        const Product *all[] = {&a->layers[l].qkv, &a->layers[l].out, &a->layers[l].gate, &a->layers[l].down};
        for (int i = 0; i < 4; i++) most = MAX(most, NAME(inputs_bytes)(all[i]->kind, all[i]->inputs, rows));
    }
    return most;
}

/* The step's buffers, in this thread's scratch. */
static int NAME(step_rooms)(NAME(Step) *s, int threads) {
    const Stack *a = s->a;
    const int64_t span = MIN(SPAN, MAX(a->tokens, a->places)), heads = (int64_t)a->heads * a->dim * (s->bf16 ? 2 : 4);
    const int widest = MAX(NAME(padded)(a->layers->qkv.outputs), NAME(padded)(a->ffn));
    const size_t sizes[] = {sizeof(float) * (size_t)(a->tokens * s->ld),
                            sizeof(float) * (size_t)(a->places * s->ld),
                            sizeof(float) * (size_t)(span * widest),
                            (size_t)(a->tokens * heads),
                            (size_t)(a->tokens * heads),
                            NAME(inputs_room)(a, span),
                            s->room * (size_t)threads};
    void **const places[] = {(void **)&s->residual, (void **)&s->kept, (void **)&s->y,    (void **)&s->q,
                             (void **)&s->mixed,    (void **)&s->inputs, (void **)&s->rooms};
    size_t all = 0;
    for (int i = 0; i < 7; i++) all += (sizes[i] + 63) / 64 * 64;
    char *memory = scratch_for(FOR_STEP, all);
    if (!memory) return NO_MEMORY;
    for (int i = 0; i < 7; i++) {
        *places[i] = memory;
        memory += (sizes[i] + 63) / 64 * 64;
    }
    return 0;
}

static int NAME(stack)(const Stack *a, int bf16) {
    const int threads = NAME(threads_for)(a), widest = MAX(MAX(a->width, a->heads * a->dim), 2 * a->dim);
    Crew crew = {.threads = threads};
    NAME(Step) s = {.a = a, .crew = &crew, .bf16 = bf16, .ld = NAME(padded)(a->width),
                    .room = sizeof(float) * (size_t)((MAX(ROOM, widest) + 15) / 16 * 16)};
    s.attention = (Attention){.table = a->table, .cu = a->cu, .len = a->len, .q_stride = (int64_t)a->heads * a->dim,
                              .page_stride = a->page_stride, .head_stride = a->head_stride, .table_stride = a->table_stride,
                              .rows = a->rows, .heads = a->heads, .kv_heads = a->kv_heads, .dim = a->dim, .page = a->page,
                              .pages = a->pages, .columns = a->columns, .tokens = (int)a->tokens, .scale = a->scale,
                              .kv8 = a->kv8};
    int failed = NAME(check_stack)(a);
    if (!failed) failed = NAME(check_rows)(&s.attention);
    if (!failed) failed = NAME(divide)(&s.attention, threads, &s.division);
    if (!failed) failed = NAME(step_rooms)(&s, threads);
    if (failed) return failed;
    s.attention.q = s.q;
    s.attention.out = s.mixed;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Walk walk = {&crew, 0, thread_number()};
        NAME(walk_stack)(&walk, &s);
    }
    return crew.failed;
}

typedef struct {
    const Product *w;
    const float *x;
    float *out;
    char *inputs;
    int64_t rows;
    Split split;
} NAME(Logits);

static void NAME(hidden_task)(const void *context, int64_t i, int thread) {
    const NAME(Logits) *p = context;
    (void)thread;
    NAME(put_row)(p->w->kind, p->w->inputs, p->rows, p->inputs, i, p->x + i * p->w->inputs);
}

static void NAME(logits_task)(const void *context, int64_t i, int thread) {
    const NAME(Logits) *p = context;
    const int panels = NAME(padded)(p->w->outputs) / PANEL, first = (int)(i / p->split.down) * p->split.panels;
    const int64_t row = i % p->split.down * p->split.rows;
    (void)thread;
    NAME(multiply)(p->w, p->inputs, p->rows, row, MIN(p->rows, row + p->split.rows), first,
                   MIN(panels, first + p->split.panels), p->out, (int64_t)panels * PANEL, 0);
}

/* out float32 [rows, N rounded up to PANEL] of x [rows, K], both contiguous. */
static int NAME(logits)(const Product *w, const float *x, float *out, int64_t rows) {
    const int threads = rows * w->inputs * w->outputs > SMALL_STEP ? thread_count() : 1;
    Crew crew = {.threads = threads};
    NAME(Logits) p = {.w = w, .x = x, .out = out, .rows = rows, .split = NAME(split)(w, rows, 1, threads)};
    p.inputs = scratch_for(FOR_STEP, NAME(inputs_bytes)(w->kind, w->inputs, rows));
    if (!p.inputs) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Walk walk = {&crew, 0, thread_number()};
        phase(&walk, rows, NAME(hidden_task), &p);
        phase(&walk, (int64_t)p.split.across * p.split.down, NAME(logits_task), &p);
    }
    return 0;
}
