"""Which bytes of a text belong to which capture, known as soon as they can be.

Knows: the shape of a constraint, bytes. Must not know: tokens, engines, what values are made of the text.

The constraint is a small program of parts, choices and counted loops; threads run it over the bytes side by side in
order of preference, and equal ones merge (Pike's virtual machine; Cox, "Regular Expression Matching: the Virtual
Machine Approach", 2009), so their number depends on the constraint, not on the text. As with `re`'s greedy operators a
part takes as much as it can while the rest still fits. A capture has closed when all threads agree on its extent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from branchwork.lang.constraint import Capture, Constraint, Free, Literal, Maybe, OneOf, Repeat, Sequence, Tagged
from branchwork.runtime.grammar.leaves import Machine, Unstopped, Words
from branchwork.runtime.grammar.matcher import Closed

MAX_THREADS = 512  # alive at once; counted loops within counted loops may need many


class Part(NamedTuple):
    machine: Machine
    after: int


class Fork(NamedTuple):
    """Ways on, the preferred one first."""

    ways: tuple[int, ...]


class Open(NamedTuple):
    name: str
    after: int


class Close(NamedTuple):
    after: int


class Enter(NamedTuple):
    """Begin counting a loop."""

    after: int


class Round(NamedTuple):
    """Before a round of a loop: the first goes to `first`, the others to `again`; leaves by `after` (again first)."""

    first: int
    again: int
    after: int
    least: int
    most: int


class Count(NamedTuple):
    """A round is done. Counting stops at `enough`, from where all counts have the same future. plain: no separator."""

    loop: int
    enough: int
    plain: bool


class End(NamedTuple):
    """The text may end here."""


Op = Part | Fork | Open | Close | Enter | Round | Count | End
Leaves = Callable[[Constraint], Machine]


class Program:
    """A constraint, ready to be followed. Immutable and shared by trackers. Ops are laid from the last to the first,
    so that each knows the number of the one after it."""

    def __init__(self, constraint: Constraint, leaves: Leaves) -> None:
        self.ops: list[Op] = [End()]
        self._leaves = leaves
        self._begins: dict[int, bytes] = {}
        self.first = self._lay(constraint, 0)

    def begins(self, number: int) -> bytes:
        """[byte]: not 0 where it may come next before op `number`."""
        if number not in self._begins:
            found, waiting, seen = bytearray(256), [number], {number}
            while waiting:
                op = self.ops[waiting.pop()]
                after: tuple[int, ...] = ()
                match op:
                    case Part(machine, behind):
                        state = machine.begin(0)
                        for byte in range(256):
                            found[byte] |= machine.step(state, byte) is not None
                        after = (behind,) if machine.accepts(state) else ()
                    case Fork(ways):
                        after = ways
                    case Open(after=behind) | Close(behind) | Enter(behind):
                        after = (behind,)
                    case Count(loop):
                        after = (loop,)
                    case Round(first, again, behind):
                        after = (first, again, behind)
                waiting += [way for way in after if way not in seen]
                seen.update(after)
            self._begins[number] = bytes(found)
        return self._begins[number]

    def _add(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.ops) - 1

    def _lay(self, constraint: Constraint, after: int) -> int:
        """Lay a constraint that goes on at `after`; where it begins."""
        match constraint:
            case Sequence(parts):
                for part in reversed(parts):
                    after = self._lay(part, after)
                return after
            case OneOf(parts):
                return self._add(Fork(tuple(self._lay(part, after) for part in parts)))
            case Capture(name, part):
                return self._add(Open(name, self._lay(part, self._add(Close(after)))))
            case Maybe(part):
                return self._add(Fork((self._lay(part, after), after)))
            case Repeat(part, least, most, separator):
                return self._loop(lambda back: [self._lay(part, back)], after, least, most, separator.encode())
            case Tagged():
                return self._tagged(constraint, after)
            case Literal(text):
                return self._add(Part(Words((text.encode(),)), after))
            case Free(stop, most):
                return self._add(Part(Unstopped([text.encode() for text in stop], most), after))
        return self._add(Part(self._leaves(constraint), after))

    def _loop(self, body: Callable[[int], list[int]], after: int, least: int, most: int, separator: bytes) -> int:
        """Least .. most rounds (most 0: no limit) of one of the ways that `body` lays."""
        loop = self._add(End())  # its place: a round knows the body, the body's end knows the round
        back = self._add(Count(loop, most or max(least, 1), not separator))
        ways = body(back)
        first = ways[0] if len(ways) == 1 else self._add(Fork(tuple(ways)))
        again = self._add(Part(Words((separator,)), first)) if separator else first
        self.ops[loop] = Round(first, again, after, least, most)
        return self._add(Enter(loop))

    def _tagged(self, tagged: Tagged, after: int) -> int:
        """Free text, then any number of: a tag or an exempt section, and free text again."""
        begins = [tag.begin.encode() for tag in tagged.tags] + [begin.encode() for begin, _ in tagged.exempt]
        outside = Unstopped(begins, 0)

        def sections(back: int) -> list[int]:
            back = self._add(Part(outside, back))
            tags = [self._lay(Sequence((Literal(t.begin), t.content, Literal(t.end))), back) for t in tagged.tags]
            free = [
                self._lay(Sequence((Literal(begin), Free((end,)), Literal(end))), back) for begin, end in tagged.exempt
            ]
            return tags + free

        return self._add(Part(outside, self._loop(sections, after, 0, 0, b"")))


class Mark:
    """A closed capture, and those that closed before it: a list that grows at its end and shares its beginning."""

    __slots__ = ("before", "closed", "count")

    def __init__(self, closed: Closed, before: Mark | None) -> None:
        self.closed, self.before = closed, before
        self.count: int = 1 if before is None else before.count + 1

    def back_to(self, count: int) -> list[Closed]:
        """The captures after the first `count`, in order."""
        found = []
        mark: Mark | None = self
        while mark is not None and mark.count > count:
            found.append(mark.closed)
            mark = mark.before
        return found[::-1]


class Thread(NamedTuple):
    """One reading of the text so far: op and state of its part; for each loop around it the rounds done and where this
    one began; captures open around it."""

    op: int
    state: Any
    counts: tuple[int, ...]
    since: tuple[int, ...]
    open: tuple[tuple[str, int], ...]
    marks: Mark | None


class Tracker:
    """Follows one text. error: "" or why captures can no longer be told (then none close)."""

    def __init__(self, program: Program) -> None:
        self.program, self.at, self.error = program, 0, ""
        self._given = 0  # captures that closed() has told
        self._threads: list[Thread] = []
        self._seen: set[tuple[int, Any, tuple[int, ...], tuple[bool, ...]]] = set()
        self._follow([Thread(program.first, None, (), (), (), None)])

    def copy(self) -> Tracker:
        other = object.__new__(Tracker)
        other.program, other.at, other.error, other._given = self.program, self.at, self.error, self._given
        other._threads, other._seen = list(self._threads), set()
        return other

    def feed(self, data: bytes) -> None:
        """The text goes on with `data`."""
        ops = self.program.ops
        for byte in data:
            if self.error:
                return
            before = self._leaving(byte)
            self.at += 1
            if len(before) == 1:  # nearly always, and then it nearly always stays in its part
                thread = before[0]
                part = ops[thread.op]
                if isinstance(part, Part):
                    state = part.machine.step(thread.state, byte)
                    if state is not None and part.machine.goes_on(state):
                        self._threads = [thread if state == thread.state else Thread(thread.op, state, *thread[2:])]
                        continue
            self._threads, self._seen = [], set()
            for thread in before:
                part = ops[thread.op]
                if isinstance(part, Part):
                    state = part.machine.step(thread.state, byte)
                    if state is not None:
                        self._settle(Thread(thread.op, state, *thread[2:]), part)
            if not self._threads or len(self._threads) > MAX_THREADS:
                many = f"{len(self._threads)} readings of the text are alive, at most {MAX_THREADS} may be"
                none = f"byte {self.at - 1} of the text fits no reading of the constraint"
                self.error = f"captures cannot be told: {many if self._threads else none}"
                self._threads = before

    def _leaving(self, byte: int) -> list[Thread]:
        """The threads, and behind each whose part may end here those that go on after it; -1: all of them, otherwise
        those of them that may take `byte`. They are not kept in between, since most never take one; closed() does not
        miss them, for what they have closed begins with what the thread in the part has."""
        now, found = self._threads, []
        self._seen = set()
        for thread in now:
            found.append(thread)
            part = self.program.ops[thread.op]
            if not isinstance(part, Part) or not part.machine.accepts(thread.state):
                continue
            if byte < 0 or self.program.begins(part.after)[byte]:
                self._threads = found
                self._follow([Thread(part.after, None, *thread[2:])])
        self._threads = now
        return found

    def closed(self) -> list[Closed]:
        """Captures whose extent has become certain since the last call, in order of their ends."""
        if self.error:
            return []
        lists = []
        for marks in {id(thread.marks): thread.marks for thread in self._threads}.values():
            if marks is None or marks.count <= self._given:
                return []
            lists.append(marks.back_to(self._given))
        agreed = []
        for closed in zip(*lists):
            if any(other != closed[0] for other in closed):
                break
            agreed.append(closed[0])
        self._given += len(agreed)
        return agreed

    def finish(self) -> list[Closed]:
        """All captures of a text that ends here, in order of their ends; open ones end here.

        That of the preferred reading that may end here. Is there none (the text was cut off), then of the one that got
        furthest: most captures closed, then furthest in the constraint.
        """
        threads = self._leaving(-1)
        ends = [thread for thread in threads if isinstance(self.program.ops[thread.op], End)]
        best = ends[0] if ends else max(threads, key=lambda t: (t.marks.count if t.marks else 0, -t.op))
        done = best.marks.back_to(0) if best.marks else []
        return done + [Closed(name, first, self.at) for name, first in reversed(best.open)]

    def _known(self, thread: Thread) -> bool:
        """Whether one that is preferred stands where this one does, with the same future."""
        empty = tuple([since == self.at for since in thread.since]) if thread.since else ()  # rounds without text yet
        name = (thread.op, thread.state, thread.counts, empty)
        if name in self._seen:
            return True
        self._seen.add(name)
        return False

    def _settle(self, thread: Thread, part: Part) -> None:
        """A thread whose part is in a new state: it stays in the part, or else goes on after it."""
        if self._known(thread):
            return
        if part.machine.goes_on(thread.state):
            self._threads.append(thread)  # and where its part may end, those after it: see _leaving
        elif part.machine.accepts(thread.state):
            self._follow([Thread(part.after, None, *thread[2:])])

    def _follow(self, waiting: list[Thread]) -> None:
        """Run threads through the ops that take no byte, the preferred first (waiting: last in, first out)."""
        while waiting:
            thread = waiting.pop()
            op = self.program.ops[thread.op]
            if isinstance(op, Part):
                self._settle(Thread(thread.op, op.machine.begin(self.at), *thread[2:]), op)
                continue
            if self._known(thread):
                continue
            match op:
                case End():
                    self._threads.append(thread)
                case Fork(ways):
                    waiting += [thread._replace(op=way) for way in reversed(ways)]
                case Open(name=capture, after=after):
                    waiting.append(thread._replace(op=after, open=(*thread.open, (capture, self.at))))
                case Close(after):
                    *outer, (capture, first) = thread.open
                    marks = Mark(Closed(capture, first, self.at), thread.marks)
                    waiting.append(Thread(after, None, thread.counts, thread.since, tuple(outer), marks))
                case Enter(after):
                    counts, since = (*thread.counts, 0), (*thread.since, self.at)
                    waiting.append(thread._replace(op=after, counts=counts, since=since))
                case Count(loop, enough, plain):
                    # A round without text can be had any number of times, so it is as good as all that are left.
                    count = enough if plain and thread.since[-1] == self.at else min(thread.counts[-1] + 1, enough)
                    waiting.append(thread._replace(op=loop, counts=(*thread.counts[:-1], count)))
                case Round(first, again, after, least, most):
                    count = thread.counts[-1]
                    if count >= least:
                        waiting.append(thread._replace(op=after, counts=thread.counts[:-1], since=thread.since[:-1]))
                    if not most or count < most:
                        since = (*thread.since[:-1], self.at)
                        waiting.append(thread._replace(op=again if count else first, since=since))
