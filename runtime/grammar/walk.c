/* Walks of a token trie beside a byte automaton: which tokens may follow a state.
 *
 * Knows: the flat trie of trie.py, dense transitions [states][256] with -1 for none. Must not know: Python.
 */
#include <stdint.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef struct {
    int32_t skip, token;
    uint16_t depth;
    uint8_t byte, pad;
} Node;

/* Sets the bits of all tokens that may follow `state`. path: scratch for one state per depth of the trie, and one. */
EXPORT void bw_mask(const int32_t *table, int32_t state, const Node *nodes, int32_t count, int32_t *path,
                    uint32_t *bits) {
    path[0] = state;
    for (int32_t j = 0; j < count;) {
        const Node node = nodes[j];
        const int32_t next = table[(int64_t)path[node.depth - 1] * 256 + node.byte];
        if (next < 0) {
            j = node.skip;
            continue;
        }
        path[node.depth] = next;
        if (node.token >= 0) bits[node.token >> 5] |= 1u << (node.token & 31);
        j++;
    }
}

/* Whether some token of nodes[first .. last) may be read from `state`, its bytes up to `depth` left out. */
static int any_token(const int32_t *table, int32_t state, const Node *nodes, int32_t first, int32_t last,
                     int32_t depth, int32_t *path) {
    path[depth] = state;
    for (int32_t j = first; j < last;) {
        const Node node = nodes[j];
        const int32_t next = table[(int64_t)path[node.depth - 1] * 256 + node.byte];
        if (next < 0) {
            j = node.skip;
            continue;
        }
        if (node.token >= 0) return 1;
        path[node.depth] = next;
        j++;
    }
    return 0;
}

/* The smallest i such that a token properly extends run[i:] and the automaton, which stands in `state` behind the run,
 * allows the rest of it; `length` when there is none. */
EXPORT int32_t bw_first_extension(const int32_t *table, int32_t state, const Node *nodes, int32_t count, int32_t *path,
                                  const uint8_t *run, int32_t length, int32_t longest) {
    for (int32_t i = length >= longest ? length - longest + 1 : 0; i < length; i++) {
        int32_t first = 0, last = count, depth = 0;
        while (depth < length - i) {
            int32_t j = first;
            while (j < last && nodes[j].byte != run[i + depth]) j = nodes[j].skip;
            if (j >= last) break;
            first = j + 1;
            last = nodes[j].skip;
            depth++;
        }
        if (depth == length - i && any_token(table, state, nodes, first, last, depth, path)) return i;
    }
    return length;
}
