"""What is known about one piece of work: its ids, how far they are computed, what it still wants.

Knows: ids, leases, stops. Must not know: other requests, budgets, tensors.

    known    0 ......... computed ............... goal ......... len(known)
             | KV is there | this and later steps  | answer ids, one a step |
    goal: where the prompt ended when the request was admitted (after a preemption that includes the answer so far);
    what is computed below it is sealed when planned, what is above only when the request ends.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from branchwork.runtime.cache.prefix_cache import Lease
from branchwork.runtime.grammar.matcher import Grammar
from branchwork.runtime.scheduler.stops import Ending, StopMatcher
from branchwork.runtime.scheduler.twigs import Progress, Trie
from branchwork.runtime.scheduler.vectors import Vector
from branchwork.runtime.speculative.draft import Context, Draft
from branchwork.runtime.speculative.speculator import until
from branchwork.runtime.wire import Enforced, Finished, Score, Scored, Submit, Tokens, TokenScore, Usage

TAIL = 6  # committed tokens that a grammar looks at to continue them canonically


@dataclass(slots=True)
class Spend:
    """Counters behind wire.Usage."""

    prompt: int
    reused: int = 0
    computed: int = 0
    diverged: int = -1  # -1: never admitted
    preempted: int = 0
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    drew: float = 0.0
    forwards: int = 0
    drafts: dict[str, list[int]] = field(default_factory=dict)  # per source: guesses proposed, guesses kept

    def usage(self) -> Usage:
        now = time.monotonic()
        queued, first, total = (max(at - self.arrived, 0.0) for at in (self.admitted or now, self.drew or now, now))
        return Usage(
            self.prompt,
            self.reused,
            self.computed,
            max(self.diverged, 0),
            self.preempted,
            queued,
            first,
            total,
            self.forwards,
            tuple([(source, proposed, kept) for source, (proposed, kept) in self.drafts.items()]),
        )

    def guessed(self, draft: Draft, kept: Sequence[int]) -> None:
        """Guesses were verified; those that are listed came true."""
        for source in draft.sources:
            self.drafts.setdefault(source, [0, 0])[0] += 1
        for n in kept:
            self.drafts[draft.sources[n]][1] += 1


class Answer:
    """The growing answer of a Submit: its stops, its matcher, and the tokens that were not sent yet.

    due: tokens that the grammar forces next. With jump "exact" they are guesses; with "on" nothing else may come.
    context: of those who guess ahead, None when nobody may.
    """

    def __init__(self, submit: Submit, token_bytes: Sequence[bytes], grammar: Grammar | None = None) -> None:
        shape = submit.shape
        self.submit = submit
        self.stops = StopMatcher(submit.stops, token_bytes)
        self.grammar = grammar
        self.matcher = None if grammar is None else grammar.start()
        self.due: list[int] = []
        self.context: Context | None = None
        self.forced: list[tuple[int, int]] = []  # answer tokens that the grammar forced, as ranges
        self.accepted: list[tuple[int, int, str]] = []  # answer tokens that were guessed and by whom, as ranges
        self._allowed = until(submit.stops.ids)
        self._closed: list[tuple[str, int, int]] = []
        self.prompt_scores: list[TokenScore] = []
        self.penalised = (shape.frequency_penalty, shape.presence_penalty, shape.repetition_penalty) != (0.0, 0.0, 1.0)
        self._unsent: list[int] = []
        self._scores: list[TokenScore] = []
        self._sent = 0

    def take(self, token: int, score: TokenScore | None) -> Ending | None:
        """Take the next token; says how the answer ends when it ends with it. The matcher has to allow it."""
        if self.due:
            if token == self.due[0]:
                self._note_forced(self.stops.tokens)
                del self.due[0]
            else:
                self.due = []
        self._unsent.append(token)
        if score is not None:
            self._scores.append(score)
        ending = self.stops.feed(token)
        if self.matcher is not None and not self.matcher.error:
            self.matcher.accept([token])
            if self.matcher.is_done and (ending is None or ending.reason == "length"):
                return self.stops.end("stop")  # nothing may follow
        return ending

    @property
    def binding(self) -> bool:
        """What is due must come; otherwise the model decides."""
        return self.submit.jump == "on"

    @property
    def appends(self) -> bool:
        """What is due is appended unasked. Scored tokens are drawn all the same: scores need logits."""
        return self.binding and max(self.submit.logprobs, self.submit.prompt_logprobs) < 0

    @property
    def room(self) -> int:
        """Tokens that may follow besides the next one."""
        return self.submit.stops.max_tokens - self.stops.tokens - 1

    def look_ahead(self, known: array[int]) -> None:
        """Ask the matcher what is forced after the known tokens; that is due from now on."""
        self.due = []
        if self.matcher is not None and self.submit.jump != "off" and self.room > 0:
            self.due = self.matcher.jump(known[-TAIL:].tolist())[: self.room]

    def expects(self, token: int) -> bool:
        """Whether a drawn token may be taken: not where other text has to come."""
        return not (self.binding and self.due) or token == self.due[0]

    def add_due(self, known: array[int]) -> Ending | None:
        """Append what is due, when that is not to be drawn; says how the answer ends when it ends with it."""
        if not self.appends:
            return None
        while self.due:
            known.append(self.due[0])
            if (ending := self.take(self.due[0], None)) is not None:
                return ending
        return None

    def allowed(self, guesses: list[int]) -> int:
        """How many of these guesses, in order, may be said at all and do not end the answer."""
        count = self._allowed(guesses) if self._allowed is not None else len(guesses)
        return count if self.matcher is None else self.matcher.validate(guesses[:count])

    @property
    def checked(self) -> Callable[[list[int]], int] | None:
        """`allowed`, None when everything is."""
        return None if self.matcher is None and self._allowed is None else self.allowed

    def note_accepted(self, source: str) -> None:
        """The token that was taken last had been guessed."""
        at = self.stops.tokens - 1
        if self.accepted and self.accepted[-1][1:] == (at, source):
            self.accepted[-1] = (self.accepted[-1][0], at + 1, source)
        else:
            self.accepted.append((at, at + 1, source))

    def _note_forced(self, at: int) -> None:
        """Answer token `at` is one that was due."""
        if self.forced and self.forced[-1][1] == at:
            self.forced[-1] = (self.forced[-1][0], at + 1)
        else:
            self.forced.append((at, at + 1))

    def news(self) -> Tokens | None:
        """The tokens that may be sent by now, once, and the captures that have closed within them."""
        if self.matcher is not None:
            self._closed += [(found.name, found.first, found.last) for found in self.matcher.closed()]
        ready = self.stops.sendable - self._sent
        if ready <= 0:
            return None
        ids, scores = tuple(self._unsent[:ready]), tuple(self._scores[:ready])
        del self._unsent[:ready], self._scores[:ready]
        self._sent += ready
        sendable = self.stops.bytes_of(self._sent)
        closed = tuple(found for found in self._closed if found[2] <= sendable)
        self._closed = [found for found in self._closed if found[2] > sendable]
        return Tokens(self.submit.id, ids, scores, closed)

    def finished(self, ending: Ending, usage: Usage) -> Finished:
        captures: tuple[tuple[str, int, int], ...] = ()
        if self.matcher is not None:
            captures = tuple((found.name, found.first, found.last) for found in self.matcher.finish())
        return Finished(
            self.submit.id,
            tuple(self._unsent),
            tuple(self._scores),
            ending.reason,
            ending.matched,
            ending.length,
            ending.kept,
            usage,
            tuple(self.prompt_scores),
            captures,
            self._enforced(ending),
            tuple(self.forced),
            tuple(self.accepted),
        )

    def _enforced(self, ending: Ending) -> Enforced | None:
        if self.grammar is None or self.matcher is None:
            return None
        report = self.grammar.report
        cut = ending.matched or ending.reason == "cancelled"
        forced = sum(last - first for first, last in self.forced)
        complete = self.matcher.is_done or (self.matcher.is_accepting and not cut)
        return Enforced(report.backend, report.approximations, report.loose, complete, forced, report.seconds)

    def next_score(self, prompt: int) -> int | None:
        """Index of the first of `prompt` tokens whose log-probability is still wanted, None when none is."""
        index = max(1, self.submit.logprob_start) + len(self.prompt_scores)
        return index if self.submit.prompt_logprobs >= 0 and index < prompt else None


@dataclass(slots=True, eq=False)
class Group:
    """A Score request: the same options after one prefix, or after two (the second is the neutral one)."""

    score: Score
    trie: Trie
    spend: Spend
    columns: list[list[tuple[TokenScore, ...]]] = field(default_factory=list)  # per prefix, filled when complete

    def scored(self) -> Scored:
        second = tuple(self.columns[1]) if len(self.columns) > 1 else ()
        return Scored(self.score.id, tuple(self.columns[0]), second, self.spend.usage())


@dataclass(slots=True, eq=False)
class Options:
    """The options to be scored after one of a Group's prefixes. leases: of twigs that others still need, by twig."""

    group: Group
    column: int
    progress: Progress
    leases: dict[int, Lease] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Request:
    """A prefix to compute, then an answer to draw (`answer`), options to score (`options`), or nothing: its states are
    what is wanted (`vector`)."""

    key: int  # order of arrival; a Score with a neutral prefix is two requests of one id
    id: int
    known: array[int]
    prompt: int  # tokens of `known` that were given
    priority: int
    entered: int  # step at which it was first queued
    spend: Spend
    answer: Answer | None = None
    options: Options | None = None
    vector: Vector | None = None
    computed: int = 0
    goal: int = 0
    lease: Lease | None = None
    hit: int = 0  # tokens the tree had when last looked (an estimate for ordering)
    hold: tuple[int, int] | None = None  # (key, tokens): wait until that request has sealed so many tokens

    @property
    def reusable(self) -> int:
        """Tokens of `known` whose logits and states nobody wants: the most that a lease may match."""
        last = len(self.known) - 1
        if self.vector is not None and self.vector.needs_all:
            return 0
        scored = None if self.answer is None else self.answer.next_score(self.prompt)
        return last if scored is None else min(last, scored - 1)

    def target(self, page_size: int) -> int:
        """Tokens that have to be computed before something is drawn or scored."""
        if self.options is None:
            return len(self.known)
        return (len(self.known) - 1) // page_size * page_size
