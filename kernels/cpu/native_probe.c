/* A plain read of memory: what the products and the attention of a step are measured against. Included per width. */

/* The exclusive or of a stretch, read in four places in turn: one run of addresses leaves the memory idle in between. */
static __attribute__((noinline)) uint32_t NAME(read_part)(const char *p, int64_t bytes) {
    enum { PLACES = 4, AT_ONCE = 8 };
    const int64_t place = bytes / PLACES, step = (int64_t)sizeof(vu) * AT_ONCE;
    vu sums[AT_ONCE];
    memset(sums, 0, sizeof sums);
    for (int64_t i = 0; i + step <= place; i += step)
        for (int at = 0; at < PLACES; at++)
            for (int j = 0; j < AT_ONCE; j++) sums[j] ^= *(const vu *)(p + at * place + i + j * (int64_t)sizeof(vu));
    uint32_t all = 0;
    for (int j = 0; j < AT_ONCE; j++)
        for (int lane = 0; lane < VW; lane++) all ^= sums[j][lane];
    return all;
}

/* Reads `bytes` bytes from p with all threads, each its own part; *out depends on what was read, so that it is read. */
static int NAME(read)(const void *p, int64_t bytes, uint32_t *out) {
    uint32_t all = 0;
    const int threads = thread_count();
    const int64_t part = bytes / threads & ~(int64_t)63;
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) reduction(^ : all) num_threads(threads)
#endif
    for (int i = 0; i < threads; i++) all ^= NAME(read_part)((const char *)p + i * part, part);
    *out = all;
    return 0;
}
