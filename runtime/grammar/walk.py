"""Which tokens may follow a state of a byte automaton: native where the library was built, else with numpy.

Knows: flat tries, transition tables, mask words, a budget of bytes. Must not know: grammars, end tokens.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import threading
import zlib
from collections import OrderedDict, deque
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from branchwork.runtime.grammar.trie import KINDS, TEXTS, Trie

_FAR = 24  # bytes: few tokens are longer
_LARGE = 2_000  # states of a table for which so far is too much work

Mask = NDArray[np.int32]


def _open() -> ctypes.CDLL | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        place = Path(__file__).with_name("_walk" + suffix)
        if place.exists():
            library = ctypes.CDLL(str(place))
            pointer, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
            walked = (pointer, number, pointer, number, pointer, pointer)
            library.bw_mask.argtypes = [*walked, pointer, number, *[pointer] * 4]
            library.bw_mask.restype = None
            library.bw_safe.argtypes = [pointer, number, pointer, number, number, number, pointer, pointer]
            library.bw_safe.restype = None
            shape = (pointer, number, pointer, number, pointer, text, number, number)
            library.bw_first_extension.argtypes = shape
            library.bw_first_extension.restype = number
            return library
    return None


_LIBRARY = _open()
available = _LIBRARY is not None  # whether walks are native


class Walker:
    """One automaton beside one vocabulary. Safe for several threads. native: False for the numpy walk."""

    def __init__(self, transitions: NDArray[np.int32], trie: Trie, words: int, native: bool = available) -> None:
        self.transitions, self.trie, self.words = transitions, trie, words
        self.library = _LIBRARY if native else None

    def mask(self, state: int) -> Mask:
        """The tokens that may follow, a new array."""
        if self.library is None:
            return self._mask(state)
        mask = np.zeros(self.words, np.int32)
        path = np.empty(self.trie.longest + 1, np.int32)
        table, nodes, below = self._places
        self.library.bw_mask(table, state, *nodes, path.ctypes.data, mask.ctypes.data, *below)
        for token, twin in self.trie.twins.tolist():
            if mask[token >> 5] >> (token & 31) & 1:
                mask.view(np.uint32)[twin >> 5] |= np.uint32(1 << (twin & 31))
        return mask

    @cached_property
    def _places(self) -> tuple[int, tuple[int, int], tuple[int, ...]]:
        """Addresses for the library; looking them up takes longer than many a walk."""
        nodes, below = self.trie.nodes, (array.ctypes.data for array in self.trie.below)
        rest = (self.safe.ctypes.data, KINDS.shape[1], *below)
        return self.transitions.ctypes.data, (nodes.ctypes.data, len(nodes)), rest

    def prepare(self) -> None:
        """What the first mask would have to wait for."""
        if self.library is not None:
            _ = self._places

    @cached_property
    def safe(self) -> NDArray[np.uint8]:
        """How many characters of each of KINDS may follow a state whatever they are, up to _FAR."""
        assert self.library is not None
        table, kinds = self.transitions, np.ascontiguousarray(KINDS, np.uint8)
        safe = np.zeros((len(table), kinds.shape[1]), np.uint8)
        far = min(_FAR if len(table) <= _LARGE else _FAR // 2, self.trie.longest)
        scratch = np.zeros((len(table), 8), np.uint8)
        shape = (kinds.ctypes.data, kinds.shape[1], TEXTS)
        self.library.bw_safe(table.ctypes.data, len(table), *shape, far, scratch.ctypes.data, safe.ctypes.data)
        return safe

    def first_extension(self, run: bytes, state: int) -> int:
        """The smallest i such that a token properly extends run[i:] and its rest may follow `state`, which is that
        behind the run; len(run) when there is none."""
        if self.library is None:
            return self._first_extension(run, state)
        path = np.empty(self.trie.longest + 1, np.int32)
        nodes, table = self.trie.nodes, self.transitions
        found: int = self.library.bw_first_extension(
            table.ctypes.data,
            state,
            nodes.ctypes.data,
            len(nodes),
            path.ctypes.data,
            run,
            len(run),
            self.trie.longest,
        )
        return found

    # --- the same without the library: all nodes of one depth at a time

    def _mask(self, state: int) -> Mask:
        bits = np.zeros(self.words * 32, bool)
        bits[self._tokens(np.array([-1]), np.array([state]))] = True
        twins = self.trie.twins
        bits[twins[:, 1]] = bits[twins[:, 0]]
        return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)

    def _tokens(self, above: NDArray[np.int64], states: NDArray[np.int64]) -> NDArray[np.int32]:
        """Tokens below the nodes of rank `above` (-1: the root) that may be read from their states."""
        first = self.trie.children[0]
        byte, token = self.trie.ranked
        flat, found = self.transitions.reshape(-1), [token[:0]]
        while len(above):
            begin = first[above + 1]
            sizes = first[above + 2] - begin
            before = np.cumsum(sizes) - sizes
            nodes = np.repeat(begin - before, sizes)
            nodes += np.arange(len(nodes))
            steps = np.repeat(states * np.int64(256), sizes)
            steps += byte[nodes]
            states = flat[steps]
            alive = np.flatnonzero(states >= 0)
            above, states = nodes[alive], states[alive]
            here = token[above]
            found.append(here[here >= 0])
        return np.concatenate(found)

    def _first_extension(self, run: bytes, state: int) -> int:
        for i in range(max(0, len(run) - self.trie.longest + 1), len(run)):
            rank = self.trie.rank(run[i:])
            if rank >= 0 and len(self._tokens(np.array([rank]), np.array([state]))):
                return i
        return len(run)


class Masks:
    """Masks by (client, state), the least recently used dropped past `budget` bytes; equal ones are stored once."""

    def __init__(self, budget: int) -> None:
        self.budget, self.held = budget, 0
        self._digests: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._stored: dict[int, tuple[Mask, list[int]]] = {}  # by checksum; the list holds the number of keys
        self._states: dict[int, set[int]] = {}  # by client
        self._gone: deque[int] = deque()  # clients: a destructor may run inside the lock, so it only leaves a note
        self._lock = threading.Lock()
        self._clients = count()

    def client(self) -> Client:
        return Client(self, next(self._clients))

    def get(self, client: int, state: int) -> Mask | None:
        with self._lock:
            digest = self._digests.get((client, state))
            if digest is None:
                return None
            self._digests.move_to_end((client, state))
            return self._stored[digest][0]

    def put(self, client: int, state: int, mask: Mask) -> Mask:
        """Keep a mask, which nobody writes to from now on; returns the stored one that equals it."""
        digest = zlib.crc32(mask)  # type: ignore[arg-type]
        with self._lock:
            while self._gone:
                gone = self._gone.popleft()
                for old in self._states.pop(gone, ()):
                    self._drop((gone, old))
            while digest in self._stored and not np.array_equal(self._stored[digest][0], mask):
                digest += 1 << 32  # another one that has the same checksum
            if (client, state) not in self._digests:
                kept, users = self._stored.setdefault(digest, (mask, [0]))
                self.held += _KEY + (0 if users[0] else kept.nbytes)
                users[0] += 1
                self._digests[client, state] = digest
                self._states.setdefault(client, set()).add(state)
            kept = self._stored[digest][0]
            while self.held > self.budget and len(self._digests) > 1:
                oldest = next(iter(self._digests))
                self._states[oldest[0]].discard(oldest[1])
                self._drop(oldest)
        return kept

    def leave(self, client: int) -> None:
        self._gone.append(client)

    def _drop(self, key: tuple[int, int]) -> None:
        digest = self._digests.pop(key)
        mask, users = self._stored[digest]
        users[0] -= 1
        self.held -= _KEY
        if users[0] == 0:
            del self._stored[digest]
            self.held -= mask.nbytes

    def check(self) -> None:
        """Raises AssertionError when the books do not balance."""
        with self._lock:
            stored = sum(mask.nbytes for mask, _ in self._stored.values())
            assert self.held == stored + _KEY * len(self._digests), f"{self.held} bytes counted, {stored} stored"
            assert sum(users[0] for _, users in self._stored.values()) == len(self._digests), "keys and users differ"
            listed = {(client, state) for client, states in self._states.items() for state in states}
            assert listed == set(self._digests), "clients' states and keys differ"


class Client:
    """One grammar's view of the store; what it kept goes when it goes."""

    def __init__(self, masks: Masks, number: int) -> None:
        self._masks, self._number = masks, number

    def get(self, state: int) -> Mask | None:
        return self._masks.get(self._number, state)

    def put(self, state: int, mask: Mask) -> Mask:
        return self._masks.put(self._number, state, mask)

    def __del__(self) -> None:
        self._masks.leave(self._number)


_KEY = 256  # bytes of one entry beside its mask, about
MASKS = Masks(64 << 20)  # of all grammars of a process that are given no store of their own
