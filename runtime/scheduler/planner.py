"""Which tokens are computed in the next step: admission, chunks, pages, preemption.

Knows: requests, the prefix cache, the token budget. Must not know: wire messages, events, results, tensors.

One step's budget:   [ decode rows: 1 token and its draft ][ short prompts ][ waiting ones ][ long prompts, the rest ]

A prompt's pages are sealed when the step that computes them is planned: every layer writes all KV of a step before it
attends, so other rows of the same step may already build on them. A waiting request that shares more with a prompt
under way than the tree has so far is held until that prompt has passed the common part: nothing is computed twice.
Pages run out: unlocked leaves are evicted, then the latest request of the lowest priority is preempted (sealed,
released, queued again, recomputed from what the tree still has). A request that has a row in the step is never
preempted in it.

What a row computes counts as computed as soon as it is planned: every plan is run before a later one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from branchwork.runtime.cache.prefix_cache import Lease, PrefixCache
from branchwork.runtime.cache.radix import common
from branchwork.runtime.plan import Row
from branchwork.runtime.scheduler.limbs import Branch, bounded, ids_in, placed, rows_of
from branchwork.runtime.scheduler.policy import Queue
from branchwork.runtime.scheduler.request import Options, Request
from branchwork.runtime.scheduler.rows import after_row, draw_row, known_row
from branchwork.runtime.speculative.cost import Worth
from branchwork.runtime.speculative.draft import NOTHING, Draft, chain
from branchwork.runtime.speculative.speculator import GRAMMAR, LONGEST, Sides, Speculator

ENDS = -1  # instead of a draw's number: nothing comes after it, the answer is as long as it may get
GUESSES = 1024  # in one step: each is a draw, whose logits take memory
SURGE = 8  # budgets that the rows of one Score may take when nothing else is in the step


class Job(NamedTuple):
    """A row and whose it is. twig: which twig of a Score's options it computes, -1 for known tokens.

    draft: what is guessed behind the row's known ids. branches: those of its side branches; their rows are the next
    jobs, where `before` holds the guesses up to the first draw.
    """

    request: Request
    row: Row
    twig: int = -1
    draft: Draft = NOTHING
    branches: tuple[Branch, ...] = ()
    before: tuple[int, ...] = ()


class Step:
    """A step while it is put together. worth: says which guesses pay in it. guesses: how many there are pages for, -1
    while nobody has asked. guessed: those in it. ahead: the step before is under way, and may free pages: nobody is
    preempted."""

    __slots__ = ("ahead", "budget", "busy", "guessed", "guesses", "jobs", "preempted", "worth")

    def __init__(self, budget: int, worth: Worth, ahead: bool) -> None:
        self.ahead = ahead
        self.budget = budget
        self.worth = worth
        self.guesses = -1
        self.guessed = 0
        self.jobs: list[Job] = []
        self.busy: set[int] = set()  # keys of requests with a row
        self.preempted = False

    def add(self, job: Job) -> None:
        request, row = job.request, job.row
        self.jobs.append(job)
        self.busy.add(request.key)
        self.budget -= len(row.ids)
        self.guessed += row.draft
        if job.twig < 0 and not job.before:  # guesses count when they have come true
            request.computed = row.start + len(row.ids) - row.draft


class Planner:
    """Owns the running and the waiting requests and, through the cache, their leases.

    budget: tokens per step. max_running: requests with a lease; never more than the budget, so that each of them gets
    a token in every step. speculator: who guesses. short: somebody was left out of the last step, which was planned
    ahead, for want of pages.
    """

    def __init__(
        self, cache: PrefixCache, budget: int, max_running: int, policy: str, speculator: Speculator | None = None
    ) -> None:
        if budget < 1 or max_running < 1:
            raise ValueError(f"budget={budget} and max_running={max_running} must be at least 1")
        self.running: dict[int, Request] = {}
        self.queue = Queue(cache, policy)
        self.preemptions = 0
        self.short = False
        self._speculator = speculator or Speculator()
        self._cache = cache
        self._size = cache.page_size
        self._budget = budget
        self._max_running = min(max_running, budget)

    def plan(self, number: int, draws: Mapping[int, int] | None = None) -> list[Job]:
        """The jobs of step `number`; never empty while a request is running or waiting.

        draws: those of the step under way by the keys of their requests (see ahead.py), whose rows come after them; the
        step may then be empty. None when no step is under way.
        """
        self.short, ahead, draws = False, draws is not None, draws or {}
        drawing = [r for r in self.running.values() if not _behind(r) and draws.get(r.key) != ENDS]
        step = Step(self._budget, self._speculator.begin(len(drawing)), ahead)
        spare = self._budget - len(drawing)
        for request in drawing:
            if request.lease is None:
                continue
            if request.key in draws:
                self._follow(request, request.lease, step, draws[request.key])
            else:
                spare -= self._decode(request, request.lease, step, spare)
        behind = [request for request in self.running.values() if _behind(request)]
        behind.sort(key=_rank)
        lane = step.budget // 2
        long = [r for r in behind if len(self.queue) and r.goal - r.computed > lane]
        for request in behind:
            if request not in long:
                self._advance(request, step)
        if long:
            self._admit(step, number, lane)
        for request in long:
            self._advance(request, step)
        self._admit(step, number, None)
        return step.jobs

    def drop(self, request: Request) -> None:
        """Forget a request and free its lease at once; the tree keeps what was computed."""
        if request in self.queue:
            self.queue.remove(request)
        else:
            self._let_go(request)

    # --- rows

    def _decode(self, request: Request, lease: Lease, step: Step, spare: int) -> int:
        """Add the row of a request that draws a token a step; how many of its ids, but one, `spare` of them at most.

        It knows one token that is not computed, and behind that those that its grammar forced.
        """
        start, known = request.computed, request.known
        end = min(len(known), start + 1 + max(spare, 0))
        if not self._extend(request, lease, end, step):
            return 0
        more = end - start - 1
        if end < len(known):
            step.add(Job(request, Row(request.id, start, known[start:end].tolist(), lease.pages)))
            return more
        draft = self._draft(request, lease, step, end, spare - more)
        return more + self._guess(step, request, draw_row(request, lease, start, known[start:].tolist(), draft), draft)

    def _follow(self, request: Request, lease: Lease, step: Step, draw: int) -> None:
        """Add the row of a request that draws after what the step under way draws for it."""
        if self._extend(request, lease, len(request.known) + 1, step):
            step.add(Job(request, after_row(request, lease, draw)))

    def _extend(self, request: Request, lease: Lease, end: int, step: Step) -> bool:
        """Give a running request the pages it needs, others' if there are no free ones; whether it is in the step."""
        while not self._cache.extend(lease, end):
            if step.ahead:
                self.short = True
                return False
            victim = self._victim(step)
            assert victim is not None
            self._preempt(victim, step)
            if victim is request:
                return False
        return True

    def _guess(self, step: Step, request: Request, row: Row, draft: Draft) -> int:
        """Add the row of a trunk and those of its side branches; how many ids guessing takes."""
        if row.draft == len(draft):
            step.add(Job(request, row, draft=draft))
            return row.draft
        known = request.known
        branches = placed(draft, len(known), self._size)
        step.add(Job(request, row, draft=draft, branches=branches))
        for branch, side in zip(branches, rows_of(row, draft, branches, known, self._size)):
            limb = branch.limb
            step.add(Job(request, side, before=(*limb.before, draft.ids[limb.first])))
        return row.draft + ids_in(branches, len(known))

    def _draft(self, request: Request, lease: Lease, step: Step, end: int, spare: int) -> Draft:
        """Guesses behind the `end` known tokens that are drawn after; nobody is preempted for a guess."""
        answer = request.answer
        assert answer is not None
        context, due = answer.context, answer.due
        if not due and (context is None or len(request.known) < context.asked_at):
            return NOTHING
        spare = min(spare, GUESSES - step.guessed)
        room = min(spare, answer.room)
        if room <= 0:
            return NOTHING
        if due and answer.binding:  # no guess: the masks leave nothing else
            draft = chain(due[:room], GRAMMAR)
        elif context is None:
            return NOTHING
        else:
            if step.guesses < 0:
                step.guesses = self._loose()
            room = min(room, step.guesses)
            sides = Sides(self._size, end, min(spare, step.guesses))
            draft = self._speculator.draft(context, room, step.worth, due, answer.checked, sides)
            if draft is NOTHING:
                return NOTHING
            draft, upto = bounded(draft, end, self._size, spare, step.guesses)
            step.guesses -= upto - end
            return draft if len(draft) and self._cache.extend(lease, upto) else NOTHING
        return draft if len(draft) and self._cache.extend(lease, end + len(draft)) else NOTHING

    def _loose(self) -> int:
        """Tokens whose pages may go to guesses: nobody lacks them before the guesser would have needed them itself.

        A request holds pages for at most LONGEST tokens too many, so all that run keep room for as many more.
        """
        room = self._cache.available
        for request in self.running.values():
            more = LONGEST if request.answer is None else min(request.answer.room + 1, LONGEST)
            room -= self._missing(request) + self._pages(more)
            if room <= 0:
                return 0
        return room * self._size

    def _advance(self, request: Request, step: Step) -> None:
        """Give a request that is behind as much of the rest of the step as it can use."""
        lease = request.lease
        if lease is None or step.budget <= 0:
            return
        if request.computed < request.goal:
            self._prefill(request, lease, step)
        if request.options is not None and lease.sealed >= request.goal:
            self._score(request, step)

    def _prefill(self, request: Request, lease: Lease, step: Step) -> None:
        while (room := (len(lease.pages) + self._cache.available) * self._size) <= request.computed:
            if not self._make_room(step, request):
                return
        end = min(request.goal, request.computed + step.budget, room)
        covered = self._cache.extend(lease, end)
        assert covered
        draft = NOTHING
        if request.answer is not None and end == len(request.known):
            draft = self._draft(request, lease, step, end, step.budget - (end - request.computed))
        self._cache.seal(lease, request.known, end)  # first: it may put other pages in the place of those
        self._guess(step, request, known_row(request, lease, end, draft), draft)

    def _score(self, request: Request, step: Step) -> None:
        """A row per twig of the options: private pages behind its parent's, never sealed, freed with its subtree."""
        options = request.options
        assert options is not None
        alone = all(job.request is request for job in step.jobs)
        allowance = max(step.budget, SURGE * self._budget if alone else 0)
        progress = options.progress
        while progress.asked < len(progress.trie.twigs) and allowance > 0:
            row = self._twig(request, options)
            if row is None:
                if not self._make_room(step, request):
                    return
                continue
            step.add(Job(request, row, progress.asked))
            progress.asked += 1
            allowance -= len(row.ids)

    def _twig(self, request: Request, options: Options) -> Row | None:
        """The row of the next twig, None when there are no pages for it."""
        progress, known, base = options.progress, request.known, request.goal
        number, size = progress.asked, self._size
        twig = progress.trie.twigs[number]
        stem = twig.stem(len(known), size)
        start = len(known) + twig.depth - stem
        before = (*known[base:].tolist(), *progress.path(number))
        ids = [*before[start - base :], *twig.ids]
        lease = self._cache.lease(known, base)
        if not self._cache.extend(lease, base + len(ids)):
            self._cache.release(lease)
            return None
        options.leases[number] = lease
        pages = lease.pages
        if twig.parent >= 0:
            pages = progress.pages[twig.parent][: start // size] + lease.pages[base // size :]
        progress.pages[number] = pages
        scored = stem if twig.parent < 0 else stem + 1  # a later twig's first id was among the heads of its parent
        return Row(request.id, start, ids, pages, score_from=scored, score_next=twig.heads, score_top=1)

    # --- admission

    def _admit(self, step: Step, number: int, lane: int | None) -> None:
        """Start waiting requests in the policy's order; with a `lane`, only those that fit into it as a whole."""
        if step.preempted or not self._open(step):
            return
        ahead = [request for request in self.running.values() if self._unsealed(request)]
        for request in self.queue.ordered(number):
            if not self._open(step) or lane == 0:
                return
            if lane is not None and request.target(self._size) - request.hit > lane:
                continue
            if self._held(request, ahead):
                continue
            before = step.budget
            if not self._start(request):
                return
            self._advance(request, step)
            if lane is not None:
                lane = max(lane - before + step.budget, 0)
            if self._unsealed(request):
                ahead.append(request)

    def _open(self, step: Step) -> bool:
        return step.budget > 0 and len(self.queue) > 0 and len(self.running) < self._max_running

    def _unsealed(self, request: Request) -> bool:
        """Whether it is still computing pages of its prompt that others could use."""
        assert request.lease is not None
        return request.lease.sealed < request.goal // self._size * self._size

    def _held(self, request: Request, ahead: list[Request]) -> bool:
        if request.hold is not None:
            key, tokens = request.hold
            holder = self.running.get(key)
            if holder is not None and holder.lease is not None and holder.lease.sealed < tokens:
                return True
            request.hold = None
        limit, known = request.reusable, request.known
        for other in ahead:
            assert other.lease is not None
            sealed = other.lease.sealed
            following = slice(sealed, sealed + self._size)
            if sealed + self._size > min(limit, other.goal) or other.known[following] != known[following]:
                continue
            shared = common(other.known[: other.goal].tobytes(), known[:limit].tobytes()) // self._size * self._size
            if shared > sealed and shared > self._cache.peek(known, limit):
                request.hold = (other.key, shared)
                return True
        return False

    def _start(self, request: Request) -> bool:
        """Take a lease for a waiting request, unless its pages would only be had by preempting a running one."""
        spend = request.spend
        diverged = self._cache.diverges(request.known[: request.prompt])
        lease = self._cache.lease(request.known, request.reusable)
        goal = request.target(self._size)
        if self.running:
            promised = sum(self._missing(other) for other in self.running.values())
            if promised + self._pages(goal + 1) - len(lease.pages) > self._cache.available:
                self._cache.release(lease)
                return False
        self.queue.remove(request)
        self.running[request.key] = request
        request.lease, request.goal, request.computed = lease, goal, lease.matched
        if request.answer is not None and request.answer.context is not None:
            request.answer.context.lease = lease
        first = request.options is None or request.options.column == 0
        if first and spend.diverged < 0:
            spend.diverged, spend.reused, spend.admitted = diverged, lease.matched, time.monotonic()
            if request.answer is not None and request.answer.context is not None:
                request.answer.context.fresh = lease.matched
        return True

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._size)

    def _missing(self, request: Request) -> int:
        """Pages that a running request needs until it has computed what it knows, and one token more."""
        assert request.lease is not None
        return max(self._pages(request.target(self._size) + 1) - len(request.lease.pages), 0)

    # --- what came of guesses

    def settle(self, job: Job, path: list[int]) -> None:
        """The guesses on the path came true: the pages of side branches on it take the place of those guessed there."""
        lease = job.request.lease
        assert lease is not None
        for branch in job.branches:
            if branch.limb.first in path:
                self._cache.adopt(lease, branch.source, branch.pages, branch.start // self._size)

    def shrink(self, request: Request) -> None:
        """Free the pages of guesses that did not come true, unless all of the request is gone already."""
        if request.lease is not None:
            self._cache.shrink(request.lease, len(request.known))

    # --- preemption

    def _victim(self, step: Step, but: Request | None = None) -> Request | None:
        """The latest running request of the lowest priority that has no row in this step."""
        free = [r for r in self.running.values() if r.key not in step.busy and r is not but]
        return max(free, key=_rank, default=None)

    def _make_room(self, step: Step, request: Request) -> bool:
        """Preempt one other request, unless there is something to do without; whether there is room now. One that is
        alone never needs it: intake refuses what exceeds the whole pool."""
        if step.jobs:
            return False
        if step.ahead:
            self.short = True
            return False
        victim = self._victim(step, but=request)
        assert victim is not None, f"request {request.id} alone does not fit into {self._cache.pages} pages"
        self._preempt(victim, step)
        return True

    def _preempt(self, request: Request, step: Step) -> None:
        self._let_go(request)
        request.computed = 0
        request.spend.preempted += 1
        self.preemptions += 1
        step.preempted = True
        self.queue.add(request)

    def _let_go(self, request: Request) -> None:
        lease = request.lease
        assert lease is not None
        if request.options is not None:
            for private in request.options.leases.values():
                self._cache.release(private)
            request.options.leases.clear()
            request.options.progress.restart()
        if request.vector is not None:
            request.vector.restart()
        self._cache.seal(lease, request.known, request.computed)
        self._cache.release(lease)
        request.lease = None
        del self.running[request.key]


def _behind(request: Request) -> bool:
    """Whether it still has known tokens of its prompt, or options, to compute (else it draws one token a step)."""
    return request.computed < request.goal or request.answer is None


def _rank(request: Request) -> tuple[int, int]:
    return -request.priority, request.key
