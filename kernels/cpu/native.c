/* The optional native kernels of the CPU: what torch does badly (paged attention, a step's small operations, sampling).
 *
 * Knows: raw pointers, shapes, OpenMP and the compiler's vector types. Must not know: Python, torch, requests.
 *
 * Every operation is written once (native_*.c) on vectors of VW floats and compiled per instruction set; the exported
 * bw_* functions pick the widest one this processor has. No intrinsics: GCC and clang lower the vector types, on x86-64
 * and on ARM. Element types are float32 and bfloat16 (a row of uint16_t); all sums are float32. Strides count elements.
 * Errors come back as a negative number that the Python side turns into an exception.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline, unused))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

enum { BAD_PAGE = -1, BAD_LENGTH = -2, NO_MEMORY = -3, BAD_ID = -4 };
enum { BLOCK = 32, TILE = 64 }; /* tokens of KV per softmax block; query vectors of one attention task */
enum { PANEL = 32, CHUNK = 64 }; /* outputs of a packed weight's panel; rows that go through a layer's products together */
enum { STRIP = 12 };            /* rows whose prepared inputs lie together: those of one pass over a panel */
enum { ROW_WORDS = 11 };        /* of a row's block of integers: 8 of inputs and 3 more, see native_pack.c */
enum { BESIDE_ROWS = 4, WIDE = 4 }; /* rows that go through several panels at once, and how many panels */
enum { NEAR = 2048, FAR = 4096 }; /* bytes ahead that weights are fetched, so that they arrive while many rows compute */
#define LOG2_E 1.44269504088896341f
enum { AS_F32, AS_BF16, AS_INT8 }; /* what a KV pool holds */

typedef struct {
    const void *q, *k, *v; /* q [T, H, D] with a token stride; k, v [P, KVH, S, D (+ 8)] with page and head strides */
    void *out;             /* [T, H, D] contiguous */
    const int32_t *table, *cu, *len;
    int64_t q_stride, page_stride, head_stride, table_stride;
    int32_t rows, heads, kv_heads, dim, page, pages, window, columns, tokens; /* columns of the page table; T */
    float scale;
    int32_t failed, kv8; /* kv8: pools of int8, rows as in native_kv.c */
} Attention;

typedef struct { /* where the prefetching of a block's rows stands */
    const char *const *rows;
    int row, end, line, bytes;
} Ahead;

typedef struct {
    const void *q, *k, *v;
    const float *cos, *sin; /* [T, D/2] contiguous */
    void *q_out, *k_out;    /* contiguous; k_out NULL: rotate k straight into the pool */
    void *k_pool, *v_pool;
    const int64_t *slots;
    int64_t tokens, q_stride, k_stride, v_stride, page_stride, head_stride, pages;
    int32_t heads, kv_heads, dim, page, kv8;
} Rotary;

typedef struct {
    const int64_t *logits; /* [N] addresses of rows of `vocab` floats */
    const int64_t *masks;  /* [N] addresses of ceil(vocab/32) words, bit = allowed; 0 for an unconstrained row */
    const float *temperature, *top_p, *min_p;
    const int32_t *top_k;
    const double *uniform;
    int64_t *tokens; /* out: the token, -1 for NaN or +inf logits, -2 when every token is masked */
    int64_t rows, vocab;
} Sampling;

enum { KIND_F32, KIND_BF16, KIND_INT8, KIND_INT4 }; /* of a packed weight's numbers */

typedef struct { /* a product's weight [N, K] in panels: see native_product.c */
    const void *panels;
    const float *bias;               /* [N rounded up to PANEL], zeros without a bias */
    const uint16_t *scales, *offsets; /* float16 [panel][K / group][PANEL]; NULL where the kind or the weight has none */
    int32_t inputs, outputs, kind, group;
} Product;

typedef struct { /* a weight that becomes a Product: rows contiguous, as it lies in a tensor or a mapped file */
    const void *values;
    const uint16_t *scales, *offsets; /* float16 [N, K / group] or NULL */
    void *panels;
    uint16_t *packed_scales, *packed_offsets;
    int32_t inputs, outputs, kind, group;
} Packing;

typedef struct { /* one decoder layer; norms are float32, NULL where the family has none */
    const float *norm, *q_norm, *k_norm, *post_norm;
    Product qkv, out, gate, up, down; /* gate and up are of one kind */
    int32_t window, unused;
} Layer;

typedef struct {
    const Layer *layers;
    const Product *embed; /* [V, C] */
    const float *norm;    /* [C] */
    void *const *pools; /* k and v of each layer */
    const int64_t *ids, *positions, *slots, *wanted;
    const float *cos, *sin; /* [angles, D/2] contiguous, by position */
    const int32_t *table, *cu, *len;
    float *out; /* [L, C] contiguous */
    int64_t page_stride, head_stride, table_stride, tokens, places, angles;
    int32_t count, width, ffn, heads, kv_heads, dim, page, pages, rows, columns; /* width: C */
    float eps, scale;
    int32_t kv8; /* pools of int8 */
} Stack;

typedef struct { /* a weight [N, K] that becomes small integers in groups: see kernels.reference.quant */
    const void *weight;
    void *values;
    uint16_t *scales, *offsets; /* offsets NULL: none wanted */
    int64_t outputs;
    int32_t inputs, bits, group, unused;
} Quantizing;

/* Keeps the compiler from fusing what computed x with what uses it: such a result would depend on the instruction set. */
#if defined(__aarch64__)
#define APART(x) __asm__("" : "+w"(x))
#elif defined(__x86_64__)
#define APART(x) __asm__("" : "+v"(x))
#else
#define APART(x) __asm__("" : "+m"(x))
#endif

/* Buffers of this thread, kept between calls: fresh large allocations would cost a page fault per 4 KiB each step. */
enum { FOR_KERNEL, FOR_STEP, FOR_CHUNK, FOR_DECODE, FOR_ORDER, SCRATCHES };
static void *scratch_for(int purpose, size_t bytes) {
    static __thread char *buffers[SCRATCHES];
    static __thread size_t sizes[SCRATCHES];
    if (bytes + 64 > sizes[purpose]) { /* 64: the address below may be rounded up by 63 */
        free(buffers[purpose]);
        sizes[purpose] = bytes + bytes / 4 + 64;
        buffers[purpose] = malloc(sizes[purpose]);
        if (!buffers[purpose]) {
            sizes[purpose] = 0;
            return NULL;
        }
    }
    return (void *)(((uintptr_t)buffers[purpose] + 63) & ~(uintptr_t)63);
}

static void *scratch(size_t bytes) { return scratch_for(FOR_KERNEL, bytes); }

/* Ask for huge pages where memory is about to be written first: a product then misses fewer addresses. */
static void want_huge_pages(void *memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20, begin = ((uintptr_t)memory + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)memory + bytes) & ~(page - 1);
    if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* a refusal costs speed alone */
#else
    (void)memory, (void)bytes;
#endif
}

static int thread_count(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static int widest(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

/* Prefetch the next `count` cache lines of a block's rows, in the order they lie in memory; scattered over the arithmetic,
 * since in one burst they would wait for each other. */
INLINE void fetch(Ahead *a, int count) {
    for (int i = 0; i < count && a->row < a->end; i++) {
        __builtin_prefetch(a->rows[a->row] + a->line);
        a->line += 64;
        if (a->line >= a->bytes) a->line = 0, a->row++;
    }
}

static int dots, bytes; /* whether vectors of 16 floats are in use and products of bfloat16 pairs, of bytes are there */
#include "native_dots.c"
#include "native_crew.c"
#include "native_vnni.c"
#include "native_pairs.c"

#if defined(__x86_64__)
#define VW 16
#define NAME(f) f##_16
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#include "native_isa.c"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef VW
#undef NAME

#define VW 8
#define NAME(f) f##_8
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "native_isa.c"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef VW
#undef NAME
#endif

#define VW 4
#define NAME(f) f##_4
#include "native_isa.c"
#undef VW
#undef NAME

static int chosen; /* 0: not chosen yet; otherwise floats per vector */

/* Floats per vector to use from now on (0: the widest); what this processor lacks is cut down. Returns the choice. */
EXPORT int bw_vector_width(int want) {
    int best = widest();
    chosen = want == 0 || want > best ? best : want >= 16 ? 16 : want >= 8 ? 8 : 4;
    dots = chosen == 16 && has_dots();
    bytes = chosen == 16 && has_bytes();
    return chosen;
}

#if defined(__x86_64__)
#define DISPATCH(name, parameters, arguments)                 \
    EXPORT int bw_##name parameters {                         \
        if (!chosen) bw_vector_width(0);                      \
        return chosen == 16  ? name##_16 arguments            \
               : chosen == 8 ? name##_8 arguments             \
                             : name##_4 arguments;            \
    }
#else
#define DISPATCH(name, parameters, arguments) \
    EXPORT int bw_##name parameters { return name##_4 arguments; }
#endif

DISPATCH(paged_attention, (const Attention *a, int bf16), (a, bf16))
DISPATCH(rotary, (const Rotary *a, int bf16), (a, bf16))
DISPATCH(store_kv, (const Rotary *a, int bf16), (a, bf16))
DISPATCH(rms_norm,
         (const void *x, const void *residual, const void *weight, void *out, void *sum, int64_t rows, int64_t inner,
          int64_t stride, int64_t width, float eps, int bf16),
         (x, residual, weight, out, sum, rows, inner, stride, width, eps, bf16))
DISPATCH(silu_mul, (const void *x, void *out, int64_t rows, int64_t stride, int64_t width, int bf16),
         (x, out, rows, stride, width, bf16))
DISPATCH(gelu, (const void *x, void *out, int64_t rows, int64_t width, int bf16), (x, out, rows, width, bf16))
DISPATCH(sample, (const Sampling *a), (a))
DISPATCH(stack, (const Stack *a, int bf16), (a, bf16))
DISPATCH(logits, (const Product *w, const float *x, float *out, int64_t rows), (w, x, out, rows))
DISPATCH(linear, (const Product *w, const void *x, void *out, int64_t rows, int bf16), (w, x, out, rows, bf16))
DISPATCH(weight_rows, (const Product *w, const int64_t *ids, float *out, int64_t rows), (w, ids, out, rows))
DISPATCH(pack, (const Packing *a), (a))
DISPATCH(quantize, (const Quantizing *a, int bf16), (a, bf16))

/* Measuring: see native_probe.c. */
DISPATCH(read, (const void *p, int64_t bytes, uint32_t *out), (p, bytes, out))

/* What this processor multiplies small numbers with: 1 AVX512-BF16, 2 AVX512-VNNI, 4 AVX-VNNI, 8 NEON, 16 NEON's dot products. */
EXPORT int bw_features(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return !!has_dots() + 2 * !!__builtin_cpu_supports("avx512vnni") + 4 * !!__builtin_cpu_supports("avxvnni");
#elif defined(__ARM_FEATURE_DOTPROD)
    return 8 + 16;
#elif defined(__ARM_NEON)
    return 8;
#else
    return 0;
#endif
}

/* setuptools links for this symbol; the library is opened with ctypes and never imported. */
EXPORT void *PyInit__native(void) { return NULL; }
