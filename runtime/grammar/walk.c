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

/* How an encoded character may go on: the bytes that come next, and what is left then (0: nothing). 1 to 3: so many bytes
 * 80 .. BF; the others are second bytes that stand for fewer, behind E0, ED, F0, F4. */
static const uint8_t LEFT[8][3] = {{0, 0, 0},       {0x80, 0xBF, 0}, {0x80, 0xBF, 1}, {0x80, 0xBF, 2},
                                   {0xA0, 0xBF, 1}, {0x80, 0x9F, 1}, {0x90, 0xBF, 2}, {0x80, 0x8F, 2}};

static int left_behind(int32_t lead) {
    if (lead < 0xC2 || lead > 0xF4) return 0;
    if (lead < 0xE0) return 1;
    if (lead < 0xF0) return lead == 0xE0 ? 4 : lead == 0xED ? 5 : 2;
    return lead == 0xF0 ? 6 : lead == 0xF4 ? 7 : 3;
}

/* safe[state * kinds + k]: how many characters of kind k may follow the state whatever they are, at most `longest`.
 * kind[byte * kinds + k]: whether the byte is of that kind; the first `texts` kinds have all characters beyond ASCII too.
 * A state gets to `round` where all that may come leads to states that have got to round - 1.
 * good: scratch, 8 for each state: what may be left of a character may follow, and ends in such a state. */
EXPORT void bw_safe(const int32_t *table, int32_t states, const uint8_t *kind, int32_t kinds, int32_t texts,
                    int32_t longest, uint8_t *good, uint8_t *safe) {
    for (int32_t k = 0; k < kinds; k++)
        for (int32_t round = 1, changed = 1; round <= longest && changed; round++) {
            changed = 0;
            for (int32_t s = 0; s < states; s++) good[(int64_t)s * 8] = safe[(int64_t)s * kinds + k] >= round - 1;
            for (int32_t left = 1; left < 8 && k < texts; left++)
                for (int32_t s = 0; s < states; s++) {
                    int32_t b = LEFT[left][0];
                    for (; b <= LEFT[left][1]; b++) {
                        const int32_t next = table[(int64_t)s * 256 + b];
                        if (next < 0 || !good[(int64_t)next * 8 + LEFT[left][2]]) break;
                    }
                    good[(int64_t)s * 8 + left] = b > LEFT[left][1];
                }
            for (int32_t s = 0; s < states; s++) {
                int32_t b = 0;
                if (!good[(int64_t)s * 8]) continue;
                for (; b < 256; b++) {
                    const int left = b < 0x80 || k >= texts ? 0 : left_behind(b);
                    if (!left && !kind[b * kinds + k]) continue;
                    const int32_t next = table[(int64_t)s * 256 + b];
                    if (next < 0 || !good[(int64_t)next * 8 + left]) break;
                }
                if (b == 256) {
                    safe[(int64_t)s * kinds + k] = (uint8_t)round;
                    changed = 1;
                }
            }
        }
}

/* Sets the bits of all tokens that may follow `state`. path: scratch for one state per depth of the trie, and one.
 * Where a node and whatever stands below it may follow, its tokens, which are order[first[node] ..], are set without a
 * look. fits[node]: bit k where all of that is of kind k. height[node]: its bytes, at most 255. */
EXPORT void bw_mask(const int32_t *table, int32_t state, const Node *nodes, int32_t count, int32_t *path,
                    uint32_t *bits, const uint8_t *safe, int32_t kinds, const uint8_t *fits, const uint8_t *height,
                    const int32_t *first, const int32_t *order) {
    path[0] = state;
    for (int32_t j = 0; j < count;) {
        const Node node = nodes[j];
        const int32_t here = path[node.depth - 1];
        if (fits[j]) {
            const uint8_t *far = safe + (int64_t)here * kinds;
            int32_t k = 0;
            while (k < kinds && !((fits[j] >> k & 1) && far[k] >= height[j])) k++;
            if (k < kinds) {
                for (int32_t i = first[j]; i < first[node.skip]; i++) bits[order[i] >> 5] |= 1u << (order[i] & 31);
                j = node.skip;
                continue;
            }
        }
        const int32_t next = table[(int64_t)here * 256 + node.byte];
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
