"""A JSON Schema's keywords as unions of shapes: every draft's spellings, conditions, exclusions, annotations.

Knows: keywords, expressions, shapes. Must not know: grammars, what any engine can enforce.

`union(expr)` works an expression out, one level deep: conjunctions distribute over unions, negations go inside. Where
unevaluated* looks on (`watched`), an anyOf is read as every set of its branches together, so that each shape knows
what was evaluated.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

from branchwork.lang.constraint import Invalid, TooBig
from branchwork.lang.regex import NOTHING
from branchwork.runtime.grammar import values
from branchwork.runtime.grammar.keywords import LOCAL, listed, local
from branchwork.runtime.grammar.patterns import texts
from branchwork.runtime.grammar.references import References
from branchwork.runtime.grammar.shapes import (
    ANYTHING,
    FALSE,
    TRUE,
    Array,
    Bound,
    Expr,
    Group,
    Lits,
    Number,
    Object,
    Shape,
    String,
    canonical,
    conj,
    disj,
    meet,
    neg,
    outside,
    possible,
)
from branchwork.runtime.grammar.values import fraction, of

MOST_SHAPES = 600  # of one union; past it a part is left out, and named
_MOST_NODES = 20_000
_CONDITIONS = frozenset(("if", "not", "dependentRequired", "dependentSchemas", "dependencies"))


class Circular(Invalid):
    """An expression is needed to work itself out."""


class Reader:
    """notes: what could not be read exactly, with whether that lets wrong values through."""

    def __init__(self, root: Any) -> None:
        self.references = References(root)
        self.values: dict[str, Any] = {}
        self.notes: dict[str, bool] = {}
        self._nodes: list[Any] = []
        self._numbers: dict[tuple[int, tuple[str, ...]], Expr] = {}
        self._known: dict[tuple[Expr, bool], tuple[Shape, ...]] = {}
        self._open: set[tuple[Expr, bool]] = set()
        self.root = self.node(root, ())

    def node(self, raw: Any, scope: tuple[str, ...]) -> Expr:
        """The expression of a subschema. scope: resources entered, kept only where some reference is dynamic."""
        if isinstance(raw, bool):
            return TRUE if raw else FALSE
        if not isinstance(raw, dict):
            raise Invalid(f"a schema is an object or a boolean, not {str(raw)[:60]!r}")
        if not raw:
            return TRUE
        base = self.references.base(raw)
        scope = self.references.enter(base, scope)
        key = (id(raw), scope)
        if key not in self._numbers:
            if len(self._nodes) >= _MOST_NODES:
                raise TooBig(f"the schema has more than {_MOST_NODES:,} subschemas")
            self._numbers[key] = ("node", len(self._nodes), scope)
            self._nodes.append(raw)
        return self._numbers[key]

    def union(self, expr: Expr, watched: bool = False) -> tuple[Shape, ...]:
        """The shapes of an expression's values."""
        key = (expr, watched)
        if key not in self._known:
            if key in self._open:
                raise Circular("a subschema refers to itself without an object or array in between")
            self._open.add(key)
            try:
                self._known[key] = self._work_out(expr, watched)
            finally:
                self._open.discard(key)
        return self._known[key]

    def _work_out(self, expr: Expr, watched: bool) -> tuple[Shape, ...]:
        if expr == TRUE:
            return ANYTHING
        if expr == FALSE:
            return ()
        match expr[0]:
            case "and":
                return self.all([self.union(part, watched) for part in expr[1]])
            case "or":
                return tuple(dict.fromkeys(shape for part in expr[1] for shape in self.union(part, watched)))
            case "not":
                return self._none_of(self.union(expr[1]))
            case "name":  # of property names: only strings count
                return tuple(shape for shape in self.union(expr[1]) if self.texts(shape))
        return self._schema(self._nodes[expr[1]], expr[2], watched)

    @staticmethod
    def texts(shape: Shape) -> bool:
        return isinstance(shape, String) or (isinstance(shape, Lits) and any(v[0] == '"' for v in shape.values))

    # --- putting unions together

    def all(self, unions: list[tuple[Shape, ...]]) -> tuple[Shape, ...]:
        kept: tuple[Shape, ...] = ANYTHING
        for union in unions:
            both = dict.fromkeys(s for left in kept for right in union if (s := self.both(left, right)) is not None)
            if len(both) > MOST_SHAPES:
                self.notes["a combination of alternatives too many to write out is left out"] = True
                continue
            kept = tuple(both)
        return kept

    def both(self, left: Shape, right: Shape) -> Shape | None:
        if isinstance(left, Lits) or isinstance(right, Lits):
            if not isinstance(left, Lits):
                left, right = right, left
            assert isinstance(left, Lits)
            if isinstance(right, Lits):
                return possible(Lits(tuple(value for value in left.values if value in right.values)))
            return possible(Lits(tuple(value for value in left.values if self.holds(json.loads(value), right))))
        found = meet(left, right)
        return found if found is None or self._satisfiable(found, 2) else None

    def _none_of(self, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        unions: list[tuple[Shape, ...]] = []
        for shape in shapes:
            if isinstance(shape, Lits):
                unions.append(self._without(shape))
                continue
            others = tuple(kind for kind in ANYTHING if type(kind) is not type(shape))
            unions.append((*others, *outside(shape)))
        return self.all(unions)

    def _without(self, lits: Lits) -> tuple[Shape, ...]:
        """Everything but some values."""
        numbers, texts, arrays, objects = [], [], [], []
        for value in map(json.loads, lits.values):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.append(fraction(value))
            elif isinstance(value, str):
                texts.append(value)
            elif isinstance(value, list):
                arrays.append(canonical(value))
            elif isinstance(value, dict):
                objects.append(canonical(value))
        edges: list[Bound | None] = [None, *((number, True) for number in sorted(numbers)), None]
        between = [Number(low=low, high=high) for low, high in pairwise(edges)]
        array = [Array(low=1)] if arrays == ["[]"] else [Array(excluded=tuple(arrays))]
        things = [Object(low=1)] if objects == ["{}"] else [Object(excluded=tuple(objects))]
        return (*outside(lits), *between, String(excluded=tuple(texts)), *array, *things)

    def empty(self, expr: Expr, depth: int = 3) -> bool:
        """Whether nothing satisfies it, as far as looking `depth` levels down tells."""
        if expr == FALSE:
            return True
        if expr == TRUE or depth == 0:
            return False
        try:
            shapes = self.union(expr)
        except Circular:  # asked while it is itself being worked out: nothing speaks against it yet
            return False
        return not any(self._satisfiable(shape, depth - 1) for shape in shapes)

    def _satisfiable(self, shape: Shape, depth: int) -> bool:
        if depth == 0:
            return True
        if isinstance(shape, Object):
            if any(self.empty(conj(*(of(group, name) for group in shape.groups)), depth) for name in shape.required):
                return False
            return not any(self.holds(name, what) is False for what in shape.names for name in shape.required)
        if isinstance(shape, String) and shape.patterns and len(shape.patterns) + len(shape.nots) > 1:
            return texts(shape.patterns, shape.nots) != NOTHING
        if isinstance(shape, Array):
            return not any(self.empty(shape.at(index), depth) for index in range(min(shape.low, 64)))
        return True

    # --- values

    def holds(self, value: Any, shape: Shape | Expr) -> bool:
        """Whether a value is of a shape, or satisfies an expression."""
        if isinstance(shape, tuple):
            return any(self.holds(value, part) for part in self.union(shape))
        return values.holds(value, shape, self.holds)

    # --- keywords

    def _schema(self, raw: dict[str, Any], scope: tuple[str, ...], watched: bool) -> tuple[Shape, ...]:
        base = self.references.base(raw)
        draft = self.references.draft(base)
        if "$ref" in raw and draft <= 7:
            return self.union(self.node(self.references.resolve(raw["$ref"], base), scope), watched)
        late = [key for key in ("unevaluatedProperties", "unevaluatedItems") if key in raw and draft >= 2019]
        inside = watched or bool(late)
        unions: dict[str, list[tuple[Shape, ...]]] = {}
        for key, value in sorted(raw.items(), key=lambda entry: _turn(entry[0])):
            if key not in LOCAL:
                unions[key] = [] if key == "oneOf" else self._applied(key, value, raw, scope, inside)
            elif "" not in unions:
                unions[""] = [local(self, raw, scope, draft)]
        if "oneOf" in raw:  # last: what the rest says of the types may tell its branches apart
            around = self.all([union for some in unions.values() for union in some])
            parts = [self.node(part, scope) for part in listed("oneOf", raw["oneOf"])]
            unions["oneOf"] = [self._one(parts, inside, around)]
        shapes = self.all([union for some in unions.values() for union in some])
        for key in late:
            shapes = self._unevaluated(shapes, key, self.node(raw[key], scope))
        return shapes

    def _applied(
        self, key: str, value: Any, raw: dict[str, Any], scope: tuple[str, ...], watched: bool
    ) -> list[tuple[Shape, ...]]:
        """The unions that a keyword other than the local ones adds."""
        base = self.references.base(raw)
        match key:
            case "$ref":
                return [self.union(self.node(self.references.resolve(value, base), scope), watched)]
            case "$dynamicRef":
                return [self.union(self.node(self.references.dynamic(value, base, scope), scope), watched)]
            case "$recursiveRef":
                return [self.union(self.node(self.references.recursive(base, scope), scope), watched)]
            case "enum":
                return [self._among(value)]
            case "const":
                return [self._among([value])]
            case "allOf":
                return [self.union(self.node(part, scope), watched) for part in listed(key, value)]
            case "anyOf":
                return [self._any([self.node(part, scope) for part in listed(key, value)], watched)]
            case "not":
                return [self.union(neg(self.node(value, scope)))]
            case "if":
                return [self._condition(raw, scope, watched)]
            case "dependentRequired" | "dependentSchemas" | "dependencies":
                return [self._depends(name, on, scope, watched) for name, on in value.items()]
        return []

    def _among(self, values: Any) -> tuple[Shape, ...]:
        if not isinstance(values, list):
            raise Invalid(f"enum is a list, not {str(values)[:60]!r}")
        texts = {canonical(value): value for value in values}
        for text, value in texts.items():
            self.values.setdefault(text, value)
        kept = possible(Lits(tuple(texts)))
        return (kept,) if kept else ()

    def _any(self, parts: list[Expr], watched: bool) -> tuple[Shape, ...]:
        if not watched:
            return self.union(disj(*parts))
        if len(parts) > 5:
            self.notes["an anyOf under unevaluated keywords counts only one of its branches"] = False
            return tuple(dict.fromkeys(shape for part in parts for shape in self.union(part, True)))
        found: dict[Shape, None] = {}
        for size in range(1, len(parts) + 1):
            for some in combinations(parts, size):
                found.update(dict.fromkeys(self.all([self.union(part, True) for part in some])))
        return tuple(found)

    def _one(self, parts: list[Expr], watched: bool, around: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Each branch without what overlaps it in the others, inside `around`."""
        found: dict[Shape, None] = {}
        clear = [self.all([self.union(part, watched), around]) for part in parts]
        for index, mine in enumerate(clear):
            others = [
                self._none_of(self.union(other))
                for place, other in enumerate(parts)
                if place != index and self.all([mine, clear[place]])
            ]
            alone = self.all([mine, *others])
            if len(alone) > 96:
                self.notes["oneOf is read as anyOf where its branches are not told apart: several may hold"] = True
                alone = mine
            found.update(dict.fromkeys(alone))
        return tuple(found)

    def _condition(self, raw: dict[str, Any], scope: tuple[str, ...], watched: bool) -> tuple[Shape, ...]:
        asked = self.node(raw["if"], scope)
        then, other = self.node(raw.get("then", True), scope), self.node(raw.get("else", True), scope)
        if not watched and then == TRUE and other == TRUE:
            return ANYTHING
        held = self.all([self.union(asked, watched), self.union(then, watched)])
        return tuple(dict.fromkeys((*held, *self.all([self.union(neg(asked)), self.union(other, watched)]))))

    def _depends(self, name: str, on: Any, scope: tuple[str, ...], watched: bool) -> tuple[Shape, ...]:
        others = tuple(shape for shape in ANYTHING if not isinstance(shape, Object))
        absent = Object(groups=(Group(((name, FALSE),)),))
        if isinstance(on, (list, str)):
            return (*others, absent, Object(required=(name, *([on] if isinstance(on, str) else on))))
        met = self.all([(*others, Object(required=(name,))), self.union(self.node(on, scope), watched)])
        first = Group(((name, TRUE),))
        met = tuple(
            replace(shape, groups=(first, *shape.groups)) if isinstance(shape, Object) else shape for shape in met
        )
        return (*others, absent, *(shape for shape in met if isinstance(shape, Object)), *_only_lits(met))

    def _unevaluated(self, shapes: tuple[Shape, ...], key: str, what: Expr) -> tuple[Shape, ...]:
        """unevaluated*: on each shape, what holds for all that nothing in it has evaluated."""
        found: dict[Shape, None] = {}
        for shape in shapes:
            kept: Shape | None = shape
            if isinstance(shape, Object) and key == "unevaluatedProperties" and shape.seen is not None:
                names, patterns = shape.seen
                group = Group(tuple((n, TRUE) for n in names), tuple((p, TRUE) for p in patterns), what)
                kept = self.both(replace(shape, seen=None), Object(groups=(group,), seen=None))
            elif isinstance(shape, Array) and key == "unevaluatedItems" and shape.seen is not None:
                rest = disj(what, *shape.seen_also)
                array = Array(prefix=(TRUE,) * shape.seen, rest=rest, seen=None)
                kept = self.both(replace(shape, seen=None), array)
            if kept is not None:
                found[kept] = None
        return tuple(found)


def _turn(keyword: str) -> int:
    """What says most of an object's order first: its own properties, then what is put together, then conditions."""
    return 0 if keyword in LOCAL else 2 if keyword in _CONDITIONS else 1


def _only_lits(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Object literals among shapes that were met with objects and others."""
    lits = [value for shape in shapes if isinstance(shape, Lits) for value in shape.values if value[0] == "{"]
    return (Lits(tuple(lits)),) if lits else ()
