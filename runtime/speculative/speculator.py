"""Drafts for the requests of a step: who is asked, how much of it is worth its cost, what came of it.

Knows: drafters, costs, what a grammar forces. Must not know: pages, plans, wire messages, tensors.
Exactness is not decided here: whatever is proposed, verify.py keeps what would have been drawn anyway.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from branchwork.runtime.speculative.cost import StepCost, Worth
from branchwork.runtime.speculative.draft import GRADES, NOTHING, Context, Draft, Drafter, Proposal, Record, chain
from branchwork.runtime.speculative.draft_model import ModelDrafter

GRAMMAR = "grammar"  # the source of forced text
SURE = 0.9  # a model that writes less of the forced text as proposed is asked first how it wrote it before
LONGEST = 64  # guesses for one request in one step
KEEP = 0.85  # what an observation leaves of the older ones of its request
KEEP_ALL = 0.998  # the same for all requests together
SHY = 1.0  # tries of its own after which a request counts as much as all others
CATCH_UP = 32  # tokens after which drafters should see a request that they were not asked about
HOPE = 16  # tokens after which guesses are looked for again where none came true lately
LONGEST_PAUSE = 63  # proposals left out when guessing does not pay
SIDE = "/side"  # behind a source: how its second thoughts fared
SIDE_LENGTH = 6  # guesses of one side branch at most
SIDE_ROW = 0.4  # what a row of its own costs besides the ids in it, in guesses (measured: 0.2 to 0.4)
LEAST = 0.25  # part of what a drafter says of its second thoughts that is believed at the least
_PRIORS = (0.4, 0.6, 0.8, 0.95)  # chance of a guess by grade, before anything was seen
_PRIOR_TRIES = 20.0


class Sides(NamedTuple):
    """What side branches cost. block: their rows begin at multiples of so many ids. known: ids before the draft. room:
    ids of all rows of a draft at most."""

    block: int
    known: int
    room: int


class Offer(NamedTuple):
    """A side branch that grows from guess `parent`. gain: guesses of it that are expected to come true."""

    gain: float
    parent: int
    draft: Draft


class Speculator:
    """Asks its drafters in order, each for what follows the guesses of those before it.

    grammar: whether forced text is proposed where the model decides about it. model: a smaller model, asked last, but
    before those who are less sure than it where that pays.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter] = (),
        cost: StepCost | None = None,
        grammar: bool = True,
        model: ModelDrafter | None = None,
    ) -> None:
        self.cost = cost or StepCost()
        self._drafters = drafters if model is None else (*drafters, model)
        self._model = model
        self._grammar = grammar
        self._overall: dict[tuple[str, bool], Record] = {}
        self.totals: dict[str, list[int]] = {}  # source: guesses proposed, guesses that came true
        self.contexts = 0  # of requests under way

    @property
    def idle(self) -> bool:
        """Nobody would ever guess anything."""
        return not self._drafters and not self._grammar

    # --- a request's life

    def open(self, key: int, known: array[int], constrained: bool = False) -> Context:
        """A request whose tokens may be guessed. Must be closed."""
        self.contexts += 1
        return Context(key, known, constrained)

    def close(self, context: Context) -> None:
        self.contexts -= 1
        for drafter in self._drafters:
            drafter.ended(context)

    def hopeful(self, context: Context) -> bool:
        """Whether it is worth waiting for the next token of a request, because guesses may come true after it: guesses
        did lately, or it is time to look for some again."""
        if self._model is not None or (len(context.known) + 1) % HOPE == 0:
            return bool(self._drafters)
        return any(not r.pause and sum(r.hits) > LEAST * sum(r.tries) for r in context.records.values())

    def grew(self, context: Context) -> None:
        """Its known ids have grown; siblings may learn from them."""
        for drafter in self._drafters:
            drafter.grew(context)

    # --- a step

    def begin(self, draws: int) -> Worth:
        """For one step that draws for so many requests."""
        worth = self.cost.begin(draws)
        if self._model is not None:
            self._model.begin(worth, self.cost)
        return worth

    def draft(
        self,
        context: Context,
        room: int,
        worth: Worth,
        forced: Sequence[int] = (),
        allowed: Callable[[list[int]], int] | None = None,
        sides: Sides | None = None,
    ) -> Draft:
        """At most `room` guesses behind each other. forced: what a grammar forces next. allowed: how many of these ids,
        in order, may be said at all (a grammar, stop ids); None for all. sides: when side branches are welcome."""
        room = min(room, LONGEST)
        if room <= 0 or worth.plain:
            return NOTHING
        sure = bool(forced) and self._grammar and self._rate(context, GRAMMAR, GRADES - 1) >= SURE
        draft, chance = self._forced(context, forced[:room], worth) if sure else (NOTHING, 1.0)
        if sure and len(draft) < len(forced):
            return draft
        offers: list[Offer] | None = None if sides is None else []
        for drafter in self._drafters:
            if len(draft) >= room:
                break
            more, chance = self._asked(drafter, context, draft, room - len(draft), worth, allowed, chance, offers)
            draft = _joined(draft, more)
        if forced and self._grammar and not len(draft):
            draft, _ = self._forced(context, forced[:room], worth)
        if draft is NOTHING:
            context.asked_at = min((self._record(context, one.source).asked_at for one in self._drafters), default=0)
        return _branched(draft, offers, worth, sides) if offers and sides is not None else draft

    def observe(
        self, context: Context, draft: Draft, taken: int, ended: bool, path: Sequence[int] | None = None
    ) -> None:
        """The first `taken` guesses of a chain came true; the next one did not, unless the answer ended there.

        path: of a tree, the guesses that came true, from the root on.
        """
        trunk = draft.trunk
        path = range(taken) if path is None else path
        along = next((n for n, guess in enumerate(path) if n != guess or n >= trunk), len(path))
        for source in draft.sources:
            self.totals.setdefault(source, [0, 0])[0] += 1
        for n in path:
            self.totals[draft.sources[n]][1] += 1
        for n in range(min(trunk, along + (not ended or along < len(path)))):
            source, grade, hit = draft.sources[n], draft.grades[n], float(n < along)
            _learn(self._record(context, source), grade, hit, KEEP)
            _learn(self._all(context, source), grade, hit, KEEP_ALL)
        reached = {-1, *path} - ({path[-1] if path else -1} if ended else set())  # something was drawn after them
        for n in range(trunk, len(draft)):
            if draft.parents[n] == n - 1 or draft.parents[n] not in reached:
                continue
            _learn(self._all(context, draft.sources[n] + SIDE), draft.grades[n], float(n in path), KEEP_ALL)
        for source in {draft.sources[n] for n in path}:
            self._record(context, source).pause = 0

    # --- how

    def _forced(self, context: Context, forced: Sequence[int], worth: Worth) -> tuple[Draft, float]:
        return self._worth(context, chain(forced, GRAMMAR), (), worth, 1.0)

    def _asked(
        self,
        drafter: Drafter,
        context: Context,
        draft: Draft,
        room: int,
        worth: Worth,
        allowed: Callable[[list[int]], int] | None,
        chance: float,
        offers: list[Offer] | None = None,
    ) -> tuple[Draft, float]:
        """What one drafter adds, as far as it is allowed and worth its cost; the chance that all of it comes true.

        offers: gets its side branches.
        """
        record = self._record(context, drafter.source)
        if len(context.known) < record.asked_at:
            return NOTHING, chance
        if drafter is self._model and not {GRAMMAR}.issuperset(draft.sources):  # behind guesses that may fail: too dear
            return NOTHING, chance
        drafter.grew(context)
        proposal = drafter.propose(context, draft.ids, room)
        if proposal is None:  # the more rows a step has, the more it costs to look in vain for each of them
            _rest(context, record, min(LONGEST_PAUSE, worth.draws // 2))
            return NOTHING, chance
        if drafter is not self._model and self._outdone(context, drafter.source, proposal, draft, room):
            return NOTHING, chance
        ids = list(proposal.ids)
        if allowed is not None:
            before = len(draft)
            del ids[max(allowed([*draft.ids, *ids]) - before, 0) :]
        if not ids:
            return NOTHING, chance
        proposed, chance_before = chain(ids, drafter.source, proposal.grade), chance
        chosen, chance = self._worth(context, proposed, proposal.shares, worth, chance)
        if len(chosen) == 0:
            if record.pause == LONGEST_PAUSE:  # try again after all: texts change
                chosen = proposed.cut(1)
            _rest(context, record, LONGEST_PAUSE)
            return chosen, chance
        if offers is None or proposal.sides is None:
            return chosen, chance
        if chance_before * self._second(context, drafter.source, proposal.grade, 1.0) >= worth.least:
            text, base = (*draft.ids, *chosen.ids), len(draft)
            offers += self._offers(context, drafter.source, proposal, text, base, chance_before, room, allowed)
        return chosen, chance

    def _outdone(self, context: Context, source: str, proposal: Proposal, draft: Draft, room: int) -> bool:
        """Whether it is better to leave the next tokens to the model, which is asked later."""
        if self._model is None or len(draft):
            return False
        return self._model.outdoes(context, self._rate(context, source, proposal.grade), len(proposal.ids), room)

    def _offers(
        self,
        context: Context,
        source: str,
        proposal: Proposal,
        ids: Sequence[int],
        base: int,
        chance: float,
        room: int,
        allowed: Callable[[list[int]], int] | None,
    ) -> list[Offer]:
        """The side branches of a proposal that grow from chosen guesses. ids: those, `base` of them by others."""
        rate = self._rate(context, source, proposal.grade)
        found = []
        for side in proposal.sides() if proposal.sides is not None else ():
            at = base + side.at
            text = list(side.ids[: min(room - side.at, SIDE_LENGTH)])
            if at > len(ids) or not text:
                continue
            if allowed is not None:
                del text[max(allowed([*ids[:at], *text]) - at, 0) :]
            first = self._second(context, source, proposal.grade, side.share)
            gain = chance * rate**side.at * first * sum(rate**n for n in range(len(text)))
            if text:
                found.append(Offer(gain, at - 1, chain(text, source, proposal.grade)))
        return found

    def _second(self, context: Context, source: str, grade: int, share: float) -> float:
        """The probability that the first guess of a side branch comes true where it grows: as often as such ones did,
        the drafter's share being the prior."""
        overall, said = self._all(context, source + SIDE), share * self._rate(context, source, grade)
        seen = (overall.hits[grade] + _PRIOR_TRIES * said) / (overall.tries[grade] + _PRIOR_TRIES)
        return max(seen, LEAST * said)

    def _worth(
        self, context: Context, draft: Draft, shares: Sequence[float], worth: Worth, chance: float
    ) -> tuple[Draft, float]:
        """The guesses of a source that are worth their cost; the chance that they all come true."""
        rate = self._rate(context, draft.sources[0], draft.grades[0])
        count = 0
        for n in range(len(draft)):
            after = chance * rate
            if not worth.takes(after * shares[n] if shares else after):
                break
            chance, count = after, n + 1
        return draft.cut(count), chance * (shares[count - 1] if shares and count else 1.0)

    def _rate(self, context: Context, source: str, grade: int) -> float:
        """The probability that a guess comes true when the one before it did."""
        own, overall = self._record(context, source), self._all(context, source)
        common = (overall.hits[grade] + _PRIOR_TRIES * _PRIORS[grade]) / (overall.tries[grade] + _PRIOR_TRIES)
        return (own.hits[grade] + SHY * common) / (own.tries[grade] + SHY)

    def _record(self, context: Context, source: str) -> Record:
        found = context.records.get(source)
        if found is None:
            found = context.records[source] = Record()
        return found

    def _all(self, context: Context, source: str) -> Record:
        """How a source fared with all requests of this kind: text around what a grammar forces is another matter."""
        found = self._overall.get((source, context.constrained))
        if found is None:
            found = self._overall[source, context.constrained] = Record()
        return found


def until(stops: Iterable[int]) -> Callable[[list[int]], int] | None:
    """For `allowed`: guesses before the first stop id. That the answer ends needs no guess."""
    ends = frozenset(stops)
    if not ends:
        return None

    def before(ids: list[int]) -> int:
        return len(ids) if ends.isdisjoint(ids) else next(n for n, token in enumerate(ids) if token in ends)

    return before


def _joined(draft: Draft, more: Draft) -> Draft:
    """`more` growing from the last guess of a chain."""
    if not len(draft) or not len(more):
        return draft if len(draft) else more
    at = len(draft)
    parents = tuple(at + parent for parent in more.parents)
    return Draft(
        draft.ids + more.ids, draft.parents + parents, draft.sources + more.sources, draft.grades + more.grades
    )


def _branched(draft: Draft, offers: list[Offer], worth: Worth, sides: Sides) -> Draft:
    """The draft with those side branches that are worth the rows they need, the best first."""
    used = len(draft)
    for gain, parent, side in sorted(offers, key=lambda offer: -offer.gain / len(offer.draft)):
        again = (sides.known + parent + 1) % sides.block  # ids computed once more, in a page of the branch
        if used + again + len(side) > sides.room or not worth.takes(gain, again + len(side) + SIDE_ROW):
            continue
        used += again + len(side)
        at = len(draft)
        draft = Draft(
            draft.ids + side.ids,
            (*draft.parents, parent, *range(at, at + len(side) - 1)),
            draft.sources + side.sources,
            draft.grades + side.grades,
        )
    return draft


def _rest(context: Context, record: Record, longest: int) -> None:
    """Ask a source later, and later each time."""
    record.pause = min(2 * record.pause + 1, longest)
    record.asked_at = len(context.known) + record.pause + 1


def _learn(record: Record, grade: int, hit: float, keep: float) -> None:
    record.hits[grade] = keep * record.hits[grade] + hit
    record.tries[grade] = keep * record.tries[grade] + 1.0
