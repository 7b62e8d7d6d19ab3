/* One step's work for the threads of one OpenMP region: phases of tasks, taken one at a time.
 *
 *   tasks   0 .. 4 | 5 | 6 .. 17 | ...        one numbering for the whole step
 *           phase 0  1   phase 2              `next`: the first that nobody has taken; `done`: how many are finished
 *
 * A task may be taken when every task of the phases before it is done. No thread is counted on: one that comes late, or that
 * the system has put aside between two tasks, finds their phases finished and walks through.
 */
#ifdef _WIN32
#include <windows.h>
#define give_way() SwitchToThread()
#else
#include <sched.h>
#define give_way() sched_yield()
#endif

enum {
    PATIENCE = 2000,         /* looks at `done` before a waiting thread offers its core to others */
    SPAN = 256,              /* tokens that go through a product together: the results of more would leave the caches */
    TASK_BYTES = 256 * 1024, /* of a weight to one task: with its results it stays in a core's second cache */
    STREAM_BYTES = 1 << 20,  /* of a weight to one task of few rows */
    TASKS = 4,               /* of a phase to a thread, or more; half as many where weights only stream */
    ROOM = 1 << 16,          /* floats of a thread's own */
    SMALL_STEP = 12 << 20    /* multiplications that are done before a second thread has woken up */
};

typedef struct { /* a product's tasks: panels [i * panels ..) of rows [j * rows ..), j running faster */
    int panels, rows, across, down;
} Split;

typedef struct {
    _Alignas(64) int64_t next;
    _Alignas(64) int64_t done;
    _Alignas(64) int32_t threads;
    int32_t failed;
} Crew;

typedef struct { /* one thread's walk through the phases */
    Crew *crew;
    int64_t begun; /* the first task of the phase that it stands at */
    int thread;
} Walk;

typedef void (*Task)(const void *context, int64_t task, int thread);

INLINE void rest(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Every thread of the region calls this for the same phases in the same order, with contexts alike. */
static void phase(Walk *walk, int64_t tasks, Task task, const void *context) {
    Crew *crew = walk->crew;
    if (crew->threads == 1) {
        for (int64_t i = 0; i < tasks; i++) task(context, i, 0);
        return;
    }
    const int64_t begun = walk->begun, end = begun + tasks;
    int64_t at = __atomic_load_n(&crew->next, __ATOMIC_RELAXED);
    while (at < end) {
        if (!__atomic_compare_exchange_n(&crew->next, &at, at + 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
        task(context, at - begun, walk->thread);
        __atomic_fetch_add(&crew->done, 1, __ATOMIC_RELEASE);
        at = __atomic_load_n(&crew->next, __ATOMIC_RELAXED);
    }
    for (int looks = 0; __atomic_load_n(&crew->done, __ATOMIC_ACQUIRE) < end; looks++)
        if (looks < PATIENCE)
            rest();
        else
            give_way();
    walk->begun = end;
}

static int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}
