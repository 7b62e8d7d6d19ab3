"""A grammar of characters as llguidance's Lark: as much as possible in lexemes, where that changes nothing.

Knows: rules, regular trees and their automata, how llguidance cuts text. Must not know: syntaxes, vocabularies.

llguidance reads text as lexemes, and each goes on as long as any lexeme that is allowed at its place can. A grammar of
characters knows no such greed. Single characters as lexemes are always right and slow: each byte of each token of the
vocabulary is a step of the parser. So all that is regular is first taken as one lexeme, and split up again, from its
end, as long as there is a conflict: a text of lexeme A, and then a character that may follow A, are also the beginning
of a lexeme B that may stand where A does. (That A and B may stand at the same place is judged by what may follow the
same lexeme, as in SLR parsing; that never says too little.)
"""

from __future__ import annotations

from collections.abc import Iterator

from branchwork.lang import regex
from branchwork.lang.constraint import TooBig
from branchwork.lang.regex import VALID, Tree
from branchwork.runtime.grammar import automaton
from branchwork.runtime.grammar.emptiness import slashed
from branchwork.runtime.grammar.frontend import rust, simplify
from branchwork.runtime.grammar.rules import Chars, Either, Name, Node, Row, Text, Times

_LARGEST = 2_000  # nodes of a lexeme's tree, repetitions counted
_STATES = 1_000  # of its automaton
_ROUNDS = 300  # of splitting; past it characters are lexemes


def lark(rules: dict[str, Node], root: str) -> str:
    """The grammar in llguidance's Lark."""
    merging = _Merging(rules)
    for _ in range(_ROUNDS):
        body = {name: merging.part(merging.rules[name]) for name in merging.reached(root)}
        conflict = _conflict(merging, body, root)
        if conflict is None:
            return _written(merging, body, root)
        merging.split(conflict)
    merging.whole = False
    return _written(merging, {name: merging.part(merging.rules[name]) for name in merging.reached(root)}, root)


_Automaton = tuple[list[dict[int, int]], frozenset[int]]  # byte -> state for each state, the first 0; accepting ones


def _automaton(tree: Tree) -> _Automaton | None:
    try:
        edges, accepting = automaton.determinise(tree, _STATES)
    except TooBig:
        return None
    rows = [{byte: to for first, last, to in spans for byte in range(first, last + 1)} for spans in edges]
    return rows, frozenset(accepting)


class _Merging:
    """Which parts of the rules are one lexeme. whole: whether any may be of more than one character."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self.rules = {name: _unrolled(name, node) for name, node in rules.items()}
        self.whole = True
        self._apart: set[Node] = set()
        self._trees: dict[Node, Tree | None] = {}
        self._automata: dict[Node, _Automaton | None] = {}
        self._open: set[str] = set()

    # --- what is regular

    def tree(self, node: Node) -> Tree | None:
        """The texts of a part, None when it refers to itself or is too large."""
        if node not in self._trees:
            found = self._tree(node)
            if self._open and found is None:  # a rule that is being looked into: not known for good
                return None
            self._trees[node] = found if found is None or _size(found) <= _LARGEST else None
        return self._trees[node]

    def _tree(self, node: Node) -> Tree | None:
        match node:
            case Chars(ranges, negated):
                known = regex.union([(low, high) for low, high in ranges])
                left = regex.complement(known) if negated else known
                return regex.Chars(_within(left))
            case Text(text):
                return regex.Text(text) if text else regex.EMPTY
            case Name(name):
                if name in self._open:
                    return None
                self._open.add(name)
                found = self.tree(self.rules[name])
                self._open.discard(name)
                return found
            case Times(part, least, most):
                inner = self.tree(part)
                return None if inner is None else regex.Many(inner, least, -1 if most is None else most)
            case Row(parts):
                found_parts = [self.tree(part) for part in parts]
                return None if None in found_parts else regex.concat([one for one in found_parts if one is not None])
            case Either(parts):
                options = [self.tree(part) for part in parts]
                return None if None in options else regex.Either(tuple(one for one in options if one is not None))

    def automaton(self, node: Node) -> _Automaton | None:
        if node not in self._automata:
            tree = self.tree(node)
            self._automata[node] = None if tree is None else _automaton(tree)
        return self._automata[node]

    # --- what becomes a lexeme

    def lexeme(self, node: Node) -> bool:
        """Whether it is written as one lexeme."""
        if isinstance(node, Chars):
            return True
        return (
            self.whole and node not in self._apart and self.tree(node) is not None and self.automaton(node) is not None
        )

    def part(self, node: Node) -> Node:
        """The node with lexemes put together: what `lexeme` says yes to is not looked into any further."""
        if isinstance(node, Chars) or self.lexeme(node):
            return node
        match node:
            case Text(text):
                return self._row(tuple(Chars(((ord(char),) * 2,)) for char in text))
            case Row(parts):
                return self._row(parts)
            case Either(parts):
                return Either(tuple(self.part(option) for option in parts))
            case Times(part, least, most):
                return Times(self.part(part), least, most)
        return node

    def _row(self, parts: tuple[Node, ...]) -> Node:
        """The longest runs from the left that are lexemes."""
        found: list[Node] = []
        at = 0
        while at < len(parts):
            behind = at + 1
            while behind < len(parts) and self.whole and self.tree(parts[behind]) is not None:
                behind += 1
            while behind > at + 1 and not self.lexeme(Row(parts[at:behind])):
                behind -= 1
            found.append(Row(parts[at:behind]) if behind > at + 1 else self.part(parts[at]))
            at = behind
        return found[0] if len(found) == 1 else Row(tuple(found))

    def split(self, node: Node) -> None:
        self._apart.add(node)

    def reached(self, root: str) -> list[str]:
        """The rules that are still needed, root first."""
        names = [root]
        for name in names:
            names += [one for one in dict.fromkeys(self._names(self.part(self.rules[name]))) if one not in names]
        return names

    def _names(self, node: Node) -> Iterator[str]:
        match node:
            case Name(name):
                if not self.lexeme(node):
                    yield name
            case Times(part):
                if not self.lexeme(node):
                    yield from self._names(part)
            case Row(parts) | Either(parts):
                if not self.lexeme(node):
                    for part in parts:
                        yield from self._names(part)


def _unrolled(name: str, node: Node) -> Node:
    """A rule that only refers to itself at the end of its alternatives, as a repetition."""
    if isinstance(node, Times) and (node.least, node.most) == (0, 1):
        node = Either((node.part, Text("")))
    options = node.parts if isinstance(node, Either) else (node,)
    again: list[Node] = []
    tails: list[Node] = []
    for option in options:
        if isinstance(option, Row) and len(option.parts) > 1 and option.parts[-1] == Name(name):
            again.append(Row(option.parts[:-1]))
        else:
            tails.append(option)
    if not again or not tails:
        return node
    loop = Times(again[0] if len(again) == 1 else Either(tuple(again)), 0, None)
    if tails == [Text("")] or tails == [Row(())]:
        return loop
    return Row((loop, tails[0] if len(tails) == 1 else Either(tuple(tails))))


def _within(ranges: regex.Ranges) -> regex.Ranges:
    """Without what UTF-8 cannot write."""
    found = [(max(a, low), min(b, high)) for a, b in ranges for low, high in VALID if max(a, low) <= min(b, high)]
    return tuple(found)


def _size(tree: Tree) -> int:
    times = max(tree.least, tree.most, 1) if isinstance(tree, regex.Many) else 1
    return times * (1 + sum(map(_size, regex.children(tree)))) + (len(tree.text) if isinstance(tree, regex.Text) else 0)


# --- conflicts


class _Following:
    """first and following lexemes of every part of a grammar, to the fixed point."""

    def __init__(self, merging: _Merging, body: dict[str, Node], root: str) -> None:
        self.merging, self.body = merging, body
        self.firsts: dict[str, set[Node]] = {name: set() for name in body}
        self.empty: dict[str, bool] = dict.fromkeys(body, False)
        self.after: dict[Node, set[Node]] = {}
        self.behind: dict[str, set[Node]] = {name: set() for name in body}
        self.changed = True
        while self.changed:
            self.changed = False
            for name, node in body.items():
                first, empty = self.first(node)
                self._grow(self.firsts[name], first)
                if empty and not self.empty[name]:
                    self.empty[name] = self.changed = True
        self.changed = True
        while self.changed:
            self.changed = False
            for name, node in body.items():
                self.walk(node, self.behind[name])
        self.start = self.firsts[root]

    def _grow(self, known: set[Node], more: set[Node]) -> None:
        if not more <= known:
            known |= more
            self.changed = True

    def first(self, node: Node) -> tuple[set[Node], bool]:
        """The lexemes that it can begin with, and whether it can be empty."""
        if self.merging.lexeme(node):
            found = self.merging.automaton(node)
            return {node}, found is not None and 0 in found[1]
        match node:
            case Name(name):
                return self.firsts[name], self.empty[name]
            case Times(part, least, most):
                first, empty = self.first(part)
                return (set(), True) if most == 0 else (first, empty or least == 0)
            case Either(parts):
                both = [self.first(part) for part in parts]
                return set().union(*(first for first, _ in both)), any(empty for _, empty in both)
            case Row(parts):
                found_first: set[Node] = set()
                for part in parts:
                    first, empty = self.first(part)
                    found_first = found_first | first
                    if not empty:
                        return found_first, False
        return (found_first if isinstance(node, Row) else set()), True

    def walk(self, node: Node, after: set[Node]) -> None:
        if self.merging.lexeme(node):
            self._grow(self.after.setdefault(node, set()), after)
            return
        match node:
            case Name(name):
                self._grow(self.behind[name], after)
            case Times(part, _, most):
                self.walk(part, after if most == 1 else after | self.first(part)[0])
            case Either(parts):
                for part in parts:
                    self.walk(part, after)
            case Row(parts):
                for part in reversed(parts):
                    self.walk(part, after)
                    first, empty = self.first(part)
                    after = first | after if empty else first


def _conflict(merging: _Merging, body: dict[str, Node], root: str) -> Node | None:
    """A lexeme that must be split, None when all texts are cut as the grammar would."""
    found = _Following(merging, body, root)
    places = [found.start, *found.after.values()]
    pairs = {(a, b) for together in places for a in together for b in together}
    heads = {node: set(table[0][0]) for node in found.after if (table := merging.automaton(node)) is not None}
    for a, b in sorted(pairs, key=repr):
        follow: set[int] = set().union(*(heads.get(node, set()) for node in found.after.get(a, ())))
        if follow and _goes_on(merging, a, b, follow):
            wide = [node for node in (b, a) if not isinstance(node, Chars)]
            if wide:
                return wide[0]
    return None


def _goes_on(merging: _Merging, a: Node, b: Node, follow: set[int]) -> bool:
    """Whether some text of `a` and then a byte of `follow` begin a text of `b`."""
    left, right = merging.automaton(a), merging.automaton(b)
    if left is None or right is None:
        return True
    seen: set[tuple[int, int]] = set()
    stack = [(0, 0)]
    while stack:  # states after the same text, which is not empty when it is in `seen`
        i, j = stack.pop()
        for byte, target in left[0][i].items():
            pair = (target, right[0][j].get(byte, -1))
            if pair[1] >= 0 and pair not in seen:
                if target in left[1] and not follow.isdisjoint(right[0][pair[1]]):
                    return True
                seen.add(pair)
                stack.append(pair)
    return False


# --- writing


def _written(merging: _Merging, body: dict[str, Node], root: str) -> str:
    names = {name: f"g{number}" for number, name in enumerate(body)}
    terminals: dict[str, str] = {}
    lines = [f"{names[name]}: {_lark(merging, node, names, terminals)}" for name, node in body.items()]
    ends = [f"{name}: {pattern}" for pattern, name in terminals.items()]
    return "\n".join(["%llguidance {}", f"start: {names[root]}", *lines, *ends]) + "\n"


def _lark(merging: _Merging, node: Node, names: dict[str, str], terminals: dict[str, str]) -> str:
    if merging.lexeme(node):
        return _terminal(merging, node, terminals)
    match node:
        case Name(name):
            return names[name]
        case Times(part, least, most):
            bounds = {(0, None): "*", (1, None): "+", (0, 1): "?"}
            sign = bounds.get((least, most), f"{{{least},{'' if most is None else most}}}")
            return '""' if most == 0 else f"({_lark(merging, part, names, terminals)}){sign}"
        case Row(parts):
            return " ".join(_lark(merging, part, names, terminals) for part in parts) or '""'
        case Either(parts):
            return "(" + " | ".join(_lark(merging, part, names, terminals) for part in parts) + ")"
    raise TypeError(type(node).__name__)


def _terminal(merging: _Merging, node: Node, terminals: dict[str, str]) -> str:
    tree = merging.tree(node)
    assert tree is not None
    if tree == regex.EMPTY:
        return '""'
    pattern = slashed(rust(simplify(tree)))
    found = merging.automaton(node)
    empty = found is not None and 0 in found[1]
    if empty:  # a lexeme has at least a character
        pattern += " & /(?s:.+)/"
    name = terminals.setdefault(pattern, f"T{len(terminals)}")
    return f"({name})?" if empty else name
