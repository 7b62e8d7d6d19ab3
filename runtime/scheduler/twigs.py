"""The options of a select as a token trie, cut into rows: what several options share is computed once.

Knows: token ids, page arithmetic. Must not know: requests, leases, tensors.

    prefix  ...P | t a t i o n      one twig: "ta" (computed, its tokens scored, and the heads "t" and "n" after it)
                     \\ n           a leaf's last token is only scored, never computed
Heads of a twig are the first tokens of what grows from its end, twigs and leaves; its last logits score them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from branchwork.runtime.wire import TokenScore


@dataclass(frozen=True, slots=True)
class Twig:
    """parent: the twig it grows from, -1 for the prefix itself. depth: option tokens before it. ids: computed in it.

    heads: tokens scored after its last id. nodes: the trie nodes that its row scores, in the row's order.
    """

    parent: int
    depth: int
    ids: tuple[int, ...]
    heads: tuple[int, ...]
    nodes: tuple[int, ...]

    def stem(self, prefix: int, page_size: int) -> int:
        """Tokens before the twig that share a page with its first one: its row computes them again.

        prefix: tokens before all options. The first twig takes the prefix's last page whole, one token at least.
        """
        if self.parent < 0:
            return prefix - (prefix - 1) // page_size * page_size
        return (prefix + self.depth) % page_size


class Trie:
    """Node 0 is the prefix; `paths[n]` are the nodes of option n's tokens; of `twigs`, parents come first."""

    def __init__(self, options: Sequence[Sequence[int]]) -> None:
        children: list[dict[int, int]] = [{}]
        self.paths: list[list[int]] = []
        for option in options:
            node, path = 0, []
            for token in option:
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
                path.append(node)
            self.paths.append(path)
        self.nodes = len(children)
        self.twigs: list[Twig] = []
        self._cut(children)
        self.branches = [0] * len(self.twigs)  # twigs that grow from each
        for twig in self.twigs:
            if twig.parent >= 0:
                self.branches[twig.parent] += 1

    def pages(self, prefix: int, page_size: int) -> int:
        """Pages that must be held at once, at the most, to score every option after `prefix` tokens."""
        own: list[int] = []
        for twig in self.twigs:
            ids = twig.stem(prefix, page_size) + len(twig.ids)
            own.append(-(-ids // page_size) + (own[twig.parent] if twig.parent >= 0 else 0))
        return (prefix - 1) // page_size + max(own)

    def _cut(self, children: list[dict[int, int]]) -> None:
        ready: list[tuple[int, int, list[int], int, list[int]]] = [(-1, 0, [], 0, [])]
        while ready:
            parent, depth, ids, node, nodes = ready.pop()
            while len(children[node]) == 1:
                ((token, only),) = children[node].items()
                if not children[only]:
                    break
                ids.append(token)
                nodes.append(only)
                node = only
            heads = children[node]
            self.twigs.append(Twig(parent, depth, tuple(ids), tuple(heads), (*nodes, *heads.values())))
            here, below = len(self.twigs) - 1, depth + len(ids)
            ready += [(here, below, [token], child, []) for token, child in heads.items() if children[child]]


@dataclass(slots=True)
class Progress:
    """How far the twigs of one trie have come after one prefix. open: by twig, of itself and its branches not done."""

    trie: Trie
    asked: int = 0
    scores: dict[int, TokenScore] = field(default_factory=dict)  # by node
    pages: dict[int, list[int]] = field(default_factory=dict)  # of the rows of twigs that others may grow from
    open: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.asked = 0
        self.scores.clear()
        self.pages.clear()
        self.open = [1 + branches for branches in self.trie.branches]

    @property
    def complete(self) -> bool:
        return self.open[0] == 0

    def path(self, number: int) -> list[int]:
        """The option tokens before a twig."""
        ids: list[int] = []
        while (number := self.trie.twigs[number].parent) >= 0:
            ids[:0] = self.trie.twigs[number].ids
        return ids

    def done(self, number: int, scores: Sequence[TokenScore]) -> list[int]:
        """Take a twig's scores; the twigs whose pages nobody needs any longer."""
        twig = self.trie.twigs[number]
        self.scores.update(zip(twig.nodes, scores, strict=True))
        free = []
        while number >= 0:
            self.open[number] -= 1
            if self.open[number]:
                break
            self.pages.pop(number, None)
            free.append(number)
            number = self.trie.twigs[number].parent
        return free

    def options(self) -> list[tuple[TokenScore, ...]]:
        """Per option the scores of its tokens, when complete."""
        return [tuple(self.scores[node] for node in path) for path in self.trie.paths]
