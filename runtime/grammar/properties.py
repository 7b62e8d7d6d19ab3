"""Object shapes as the JSON Schema that llguidance enforces: one `properties` map, disjoint patterns, a rest.

Knows: object shapes, which object schemas llguidance takes. Must not know: keywords, references.

llguidance counts properties only where every one that is named is required. So an object with a count is written as
alternatives, in each of which every optional property is either there or not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

from branchwork.runtime.grammar.keys import further
from branchwork.runtime.grammar.reading import Reader
from branchwork.runtime.grammar.shapes import FALSE, TRUE, Expr, Object, Some, conj
from branchwork.runtime.grammar.values import chosen, of

_MOST_OPTIONAL = 6  # optional properties whose subsets are all written out
_MOST_LINEAR = 64


class Writes(Protocol):
    """The writer of all other shapes."""

    reader: Reader

    def note(self, text: str, loose: bool) -> None: ...

    def schema(self, expr: Expr) -> Any: ...

    def translated(self, pattern: str) -> str | None: ...


@dataclass(frozen=True)
class Plan:
    """named: (name, value, required) in order; a value of FALSE forbids the name. extra: at least so many others."""

    named: tuple[tuple[str, Expr, bool], ...]
    patterns: tuple[tuple[str, Expr], ...]
    rest: Expr
    low: int
    high: int | None
    extra: int = 0

    @property
    def open(self) -> bool:
        return self.rest != FALSE or any(what != FALSE for _, what in self.patterns)

    @property
    def required(self) -> list[str]:
        return [name for name, _, needed in self.named if needed]

    @property
    def optional(self) -> list[str]:
        return [name for name, what, needed in self.named if not needed and what != FALSE]

    def settle(self, there: set[str], absent: set[str]) -> Plan:
        """With some optional properties required and some forbidden."""
        named = tuple(
            (name, FALSE if name in absent else what, needed or name in there) for name, what, needed in self.named
        )
        return replace(self, named=named)


def object_options(writer: Writes, shape: Object) -> list[Any]:
    """Schemas of which any may hold."""
    if shape.excluded:
        writer.note("single objects that are excluded can be written", True)
    plan = _plan(writer, shape)
    if plan is None:
        return []
    plans = [plan]
    for some in shape.some:
        plans = [chosen_plan for each in plans for chosen_plan in _with(writer, each, some)]
    found = [written for each in plans for counted in _counted(writer, each) if (written := _write(writer, counted))]
    return found


def _plan(writer: Writes, shape: Object) -> Plan | None:
    reader = writer.reader
    names = list(dict.fromkeys([n for group in shape.groups for n, _ in group.properties] + list(shape.required)))
    named: list[tuple[str, Expr, bool]] = []
    for name in names:
        what = conj(*(of(group, name) for group in shape.groups))
        if not all(reader.holds(name, rule) for rule in shape.names):
            what = FALSE
        if reader.empty(what):
            what = FALSE
        if what == FALSE and name in shape.required:
            return None
        named.append((name, what, name in shape.required))
    others = further(writer, shape, set(names))
    named += [(name, what, False) for name, what in others.named]
    return Plan(tuple(named), others.patterns, others.rest, shape.low, shape.high)


def _with(writer: Writes, plan: Plan, some: Some) -> list[Plan]:
    """The ways in which there is a property as `some` says."""
    reader, found = writer.reader, []
    by_name = some.what[0] == "name"
    for index, (name, what, _) in enumerate(plan.named):
        if what == FALSE or not (reader.holds(name, some.what[1]) if by_name else chosen(some, name)):
            continue
        both = what if by_name else conj(what, some.what)
        if not reader.empty(both):
            named = (*plan.named[:index], (name, both, True), *plan.named[index + 1 :])
            found.append(replace(plan, named=named))
    if not plan.open:
        return found
    both = conj(plan.rest, some.what) if not by_name else plan.rest
    if by_name or plan.patterns or some.patterns or len(plan.optional) > _MOST_OPTIONAL:
        writer.note("that some further property breaks a rule cannot be asked for", True)
        return [plan]
    if reader.empty(both):
        return found
    writer.note("where a further property must break a rule, all further ones do", False)
    if some.pattern is None:
        apart = tuple((name, FALSE, False) for name in some.names if name not in {known for known, _, _ in plan.named})
        found.append(replace(plan, named=(*plan.named, *apart), rest=both, extra=1))
    elif (pattern := writer.translated(some.pattern)) is not None:
        found.append(replace(plan, patterns=((pattern, both),), rest=FALSE, extra=1))
    return found


def _counted(writer: Writes, plan: Plan) -> list[Plan]:
    """The plan as plans without a count, or in which nothing is optional."""
    needed, optional = len(plan.required), plan.optional
    low = plan.low if plan.low > needed else 0
    high = plan.high
    if high is not None and not plan.open and high >= needed + len(optional):
        high = None
    if high is not None and high < needed:
        return []
    plan = replace(plan, low=low, high=high)
    if not optional or not (low or high is not None or plan.extra):
        return [plan] if plan.open or low <= needed + len(optional) else []
    if low == needed + 1 and high is None and not plan.extra and len(optional) <= _MOST_LINEAR:
        plan = replace(plan, low=0)
        first = [plan.settle({name}, set(optional[:index])) for index, name in enumerate(optional)]
        none = replace(plan.settle(set(), set(optional)), low=low)
        return [*first, none] if plan.open else first
    if len(optional) > _MOST_OPTIONAL:
        writer.note("the count of properties is not enforced beside many optional ones", True)
        return [replace(plan, low=0, high=None, extra=0)]
    found = []
    for size in range(len(optional) + 1):
        for there in combinations(optional, size):
            count = needed + size
            if (high is not None and count + plan.extra > high) or (not plan.open and count < low):
                continue
            settled = plan.settle(set(there), set(optional) - set(there))
            found.append(replace(settled, low=max(low, count + plan.extra) if low > count or plan.extra else 0))
    return found


def _write(writer: Writes, plan: Plan) -> Any:
    properties: dict[str, Any] = {}
    for name, what, needed in plan.named:
        value = writer.schema(what)
        if value is False and needed:
            return None
        if value is not False or plan.open:
            properties[name] = value
    written: dict[str, Any] = {"type": "object"}
    required = plan.required
    if properties:
        written["properties"] = properties
    if required:
        written["required"] = required
    if plan.patterns:
        written["patternProperties"] = {pattern: writer.schema(what) for pattern, what in plan.patterns}
    if plan.rest != TRUE:
        written["additionalProperties"] = writer.schema(plan.rest)
    others = [written.get("additionalProperties", {}), *written.get("patternProperties", {}).values()]
    if plan.low > len(properties) and all(what is False for what in others):
        return None
    if plan.low > len(required):
        if plan.low > len(required) + 1:
            writer.note("a key written twice counts twice for minProperties", True)
        written["minProperties"] = plan.low
    if plan.high is not None:
        written["maxProperties"] = plan.high
    return written
