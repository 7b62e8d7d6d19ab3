"""The brain's face: messages in, plans out, results in, events out.

Knows: wire messages, requests, the planner. Must not know: sockets, models, tensors, text.

There are no phases: a request has known and computed tokens, and a step closes the gap within the budget.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from branchwork.runtime.cache.prefix_cache import PrefixCache
from branchwork.runtime.grammar.matcher import Grammar
from branchwork.runtime.plan import Drawn, Plan, Result
from branchwork.runtime.scheduler.ahead import following
from branchwork.runtime.scheduler.constrained import Grammars, Masks, MaskWriter, NoGrammars, Waiting
from branchwork.runtime.scheduler.intake import Limits, requests_of, turned_away
from branchwork.runtime.scheduler.planner import Job, Planner
from branchwork.runtime.scheduler.request import Answer, Request
from branchwork.runtime.scheduler.stops import Ending
from branchwork.runtime.speculative.draft import NOTHING, Draft
from branchwork.runtime.speculative.speculator import CATCH_UP, Speculator
from branchwork.runtime.speculative.verify import followed
from branchwork.runtime.wire import Embed, Event, Failed, Finished, Score, Submit, Tree, TreeNode, Usage

TREE_NODES = 500  # of the radix tree that onlookers are shown
TREE_HEAD = 24  # tokens of each


class Scheduler:
    """add and cancel at any time; plan, run the plan, commit its result; in that order, one step at a time.

    cache: whose leases only this object takes. token_bytes: bytes of every id that a model may draw (its length is the
    vocabulary). context: tokens of prompt and answer. budget: tokens per step. queue_limit: waiting requests.
    grammars: who compiles constraints. eos: the model's end tokens. speculator: who guesses tokens ahead.
    """

    def __init__(
        self,
        cache: PrefixCache,
        token_bytes: Sequence[bytes],
        *,
        context: int,
        budget: int = 512,
        max_running: int = 64,
        queue_limit: int = 1024,
        policy: str = "lpm",
        grammars: Grammars | None = None,
        eos: Iterable[int] = (),
        speculator: Speculator | None = None,
    ) -> None:
        self._cache = cache
        self._token_bytes = token_bytes
        self._limits = Limits(context, cache.pages, cache.page_size, len(token_bytes))
        self._queue_limit = queue_limit
        self._speculator = speculator or Speculator()
        self._planner = Planner(cache, budget, max_running, policy, self._speculator)
        self._compiling = Waiting(grammars or NoGrammars())
        self._mask_writer = MaskWriter(len(token_bytes), eos)
        self._live: dict[int, list[Request]] = {}
        self._planned: dict[int, list[Job]] = {}
        self._keys = 0
        self._step = 0
        self._began: float | None = None  # when the step began: messages between two steps are work of the second
        tokens = ("prompt", "reused", "computed", "generated", "drafted", "accepted")
        self._totals = dict.fromkeys(["finished", *(f"{what}_tokens" for what in tokens)], 0)

    # --- messages

    def add(self, message: Submit | Score | Embed) -> list[Event]:
        """Queue a request. Events: Failed, with code and figures, when it can never be served or the queue is full."""
        known = message.id in self._live or message.id in self._compiling
        refused = turned_away(message, known, self.waiting, self._queue_limit, self._limits)
        if refused is not None:
            return [refused]
        if not isinstance(message, Submit) or message.constraint is None:
            return self._enqueue(message, None)
        found = self._compiling.look(message)
        return [] if found is None else self._begin(message, found)

    def compiled(self) -> list[Event]:
        """Queue requests whose constraints have been compiled since the last call; Failed for those that cannot be."""
        return [event for message, found in self._compiling.ready() for event in self._begin(message, found)]

    def _begin(self, message: Submit, found: Grammar | Failed) -> list[Event]:
        if isinstance(found, Failed):
            return [found]
        return self._enqueue(message, found)

    def _enqueue(self, message: Submit | Score | Embed, grammar: Grammar | None) -> list[Event]:
        requests = requests_of(message, self._keys, self._step, self._token_bytes, grammar)
        self._keys += len(requests)
        self._live[message.id] = requests
        for request in requests:
            self._planner.queue.add(request)
        first = requests[0]
        if first.answer is None:
            return []
        if first.answer.submit.speculative and not self._speculator.idle:
            context = self._speculator.open(first.key, first.known, grammar is not None)
            context.shape, context.prompt = first.answer.submit.shape, first.prompt
            first.answer.context = context
        first.answer.look_ahead(first.known)
        ending = first.answer.add_due(first.known)
        self._totals["generated_tokens"] += len(first.known) - first.prompt
        return [] if ending is None else [self._finish(first, ending)]

    def cancel(self, number: int) -> list[Event]:
        """End a request and free its lease at once. Nothing happens when it has ended already."""
        if self._compiling.cancel(number):
            return [Finished(number, (), (), "cancelled", b"", 0, 0, Usage(0, 0, 0, 0))]
        requests = self._live.get(number)
        if requests is None:
            return []
        first = requests[0]
        if first.answer is not None:
            return [self._finish(first, first.answer.stops.end("cancelled"))]
        self._retire(number)
        return [Finished(number, (), (), "cancelled", b"", 0, 0, first.spend.usage())]

    def fail_all(self, code: str, message: str) -> list[Event]:
        """After a fault of the runner: every request fails, and the whole tree goes, since pages that were planned may
        not have been computed."""
        numbers = list(self._live)
        for number in numbers:
            self._retire(number)
        numbers += self._compiling.clear()
        self._planned.clear()
        self._began = None
        self._cache.flush()
        return [Failed(number, code, message) for number in numbers]

    # --- the beat

    def plan(self) -> Plan | None:
        """The next step, None when there is nothing to do. Every plan must be run and committed in its order."""
        self._step += 1
        self._began = self._began or time.monotonic()
        jobs = self._planner.plan(self._step)
        if not jobs:
            self._began = None
        return self._planned_step(jobs)

    def plan_ahead(self) -> Plan | None:
        """The step after the one that is under way, before that is committed: rows come after what it draws.

        None where its draws decide what comes next, or nothing is left to do: then commit, and plan. Commit both in
        order; what was drawn after an answer's end counts for nothing.
        """
        (under_way,) = self._planned.values()
        draws = None if self._planner.short else following(under_way, self._speculator.hopeful)
        if draws is None:
            return None
        self._step += 1
        return self._planned_step(self._planner.plan(self._step, draws))

    def _planned_step(self, jobs: list[Job]) -> Plan | None:
        if not jobs:
            return None
        self._planned[self._step] = jobs
        return Plan(self._step, tuple([job.row for job in jobs]))

    def masks(self, plan: Plan) -> Masks | None:
        """The masks of a plan's draws and which draws they are for, see MaskWriter.write. May run in another thread
        until the plan is committed, while nothing else is asked of this object."""
        return self._mask_writer.write(self._planned[plan.step])

    def commit(self, plan: Plan, result: Result) -> list[Event]:
        """Take in what came of a plan. Rows of requests that have ended meanwhile are ignored."""
        events: list[Event] = []
        computed = drew = rows = 0
        for n, (job, drawn) in enumerate(zip(self._planned.pop(plan.step), result.rows, strict=True)):
            request, row = job.request, job.row
            computed += len(row.ids)
            if job.before:  # a side branch: taken with its trunk
                continue
            rows += 1
            tokens = len(row.ids) - row.draft  # guesses count when they have come true
            self._totals["computed_tokens"] += tokens
            drew += tokens == 1 and row.shape is not None
            if request.lease is None:
                continue
            request.spend.computed += tokens
            if job.twig >= 0:
                self._scored(request, job.twig, drawn, events)
                continue
            if request.vector is not None:
                request.vector.add(drawn.state)
                if row.start + tokens == len(request.known):
                    events.append(request.vector.event(request.spend.usage()))
                    self._retire(request.id)
                continue
            if drawn.known and request.answer is not None:
                request.answer.prompt_scores += drawn.known
            if row.shape is not None and row.position == len(request.known):  # else its grammar forced other text
                self._drawn(job, result.rows[n : n + 1 + len(job.branches)], events)
                self._totals["generated_tokens"] += len(request.known) - row.position
                if job.draft is not NOTHING:
                    self._planner.shrink(request)
        now = time.monotonic()
        if drew == rows and self._began is not None:  # it only draws: its time says what guesses cost
            self._speculator.cost.observe(drew, computed - drew, now - self._began)
        self._began = None if self.idle else now
        return events

    def _drawn(self, job: Job, rows: Sequence[Drawn], events: list[Event]) -> None:
        """Take what was drawn for an answer, as far as nothing else has to come, and what its grammar adds.

        rows: of the job, and of its side branches.
        """
        request, answer = job.request, job.request.answer
        assert answer is not None
        request.spend.drew = request.spend.drew or time.monotonic()
        request.spend.forwards += 1
        draft, drawn, path = job.draft, rows[0], None
        if job.branches:
            drawn, path = followed(draft, [branch.limb for branch in job.branches], rows)
            self._planner.settle(job, path)
            draft = draft.along(path)
        taken, ending, void = self._take(request, answer, draft, drawn)
        if job.draft is not NOTHING:
            kept = range(taken) if path is None else path[:taken]
            self._note(request, answer, job.draft, kept, ending is not None)
        elif answer.context is not None and len(request.known) % CATCH_UP == 0:  # siblings may want to know
            self._speculator.grew(answer.context)
        if ending is not None:
            events.append(self._finish(request, ending))
            return
        broken = answer.matcher.error if answer.matcher is not None else ""
        if broken or (drawn.fault and not void):
            self._retire(request.id)
            code = "no_token" if answer.matcher is None else "grammar_error"
            events.append(Failed(request.id, code, broken or drawn.fault))
            return
        ending = answer.add_due(request.known)
        if ending is not None:
            events.append(self._finish(request, ending))
        elif answer.submit.stream and (news := answer.news()) is not None:
            events.append(news)

    def _take(self, request: Request, answer: Answer, draft: Draft, drawn: Drawn) -> tuple[int, Ending | None, bool]:
        """Append drawn tokens: how many guesses came true, how the answer ends, whether the rest of them is void."""
        taken = 0
        for n, token in enumerate(drawn.tokens):
            forced = bool(answer.due)
            if not answer.expects(token):  # the grammar forces other text after the guess before
                if not answer.appends:  # that guess is the last known token: computed again, to draw after it
                    self._computed(request, -1)
                return taken, None, True
            request.known.append(token)
            ending = answer.take(token, drawn.scores[n] if drawn.scores else None)
            guessed = n < len(draft) and draft.ids[n] == token
            if guessed:
                taken += 1
                answer.note_accepted(draft.sources[n])
            if ending is not None:
                return taken, ending, False
            if guessed:  # and its KV is there
                self._computed(request, 1)
            if not forced if answer.binding else n == len(drawn.tokens) - 1:
                answer.look_ahead(request.known)
        return taken, None, False

    def _computed(self, request: Request, more: int) -> None:
        request.computed += more
        request.spend.computed += more
        self._totals["computed_tokens"] += more

    def _note(self, request: Request, answer: Answer, draft: Draft, kept: Sequence[int], ended: bool) -> None:
        """Count what came of the guesses, and let those who made them learn from it. kept: those that came true."""
        self._totals["drafted_tokens"] += len(draft)
        self._totals["accepted_tokens"] += len(kept)
        request.spend.guessed(draft, kept)
        if answer.context is not None:
            self._speculator.observe(answer.context, draft, len(kept), ended, kept)

    def _scored(self, request: Request, twig: int, drawn: Drawn, events: list[Event]) -> None:
        options = request.options
        assert options is not None
        for free in options.progress.done(twig, drawn.known):
            self._cache.release(options.leases.pop(free))
        if not options.progress.complete:
            return
        group = options.group
        group.columns[options.column] = options.progress.options()
        if all(group.columns):
            self._retire(request.id)
            events.append(group.scored())
        else:
            self._planner.drop(request)
            self._live[request.id].remove(request)

    def _finish(self, request: Request, ending: Ending) -> Finished:
        answer = request.answer
        assert answer is not None
        self._retire(request.id)
        return answer.finished(ending, request.spend.usage())

    def _retire(self, number: int) -> None:
        requests = self._live.pop(number)
        for request in requests:
            self._planner.drop(request)
            if request.answer is not None and request.answer.context is not None:
                self._speculator.close(request.answer.context)
        self._totals["finished"] += 1
        self._totals["prompt_tokens"] += requests[0].spend.prompt
        self._totals["reused_tokens"] += requests[0].spend.reused

    # --- questions

    @property
    def idle(self) -> bool:
        """Nothing can be computed; requests may still wait for their grammars."""
        return not self._live

    @property
    def running(self) -> int:
        return len(self._planner.running)

    @property
    def waiting(self) -> int:
        return len(self._planner.queue) + len(self._compiling)

    def stats(self) -> dict[str, float | int | str]:
        """Counters since the start, and what is held now. hit_rate: reused of the prompt tokens of ended requests.

        computed_tokens: of prompts and answers, without guesses that did not come true; generated_tokens: of answers,
        drawn or forced. drafted_tokens, accepted_tokens: guesses, and those that came true; the same by source as
        drafted_lookup and so on. pages_available: free ones, and those that nobody holds. tree_s: seconds spent in the
        tree.
        """
        pages = self._cache.stats()
        prompt = self._totals["prompt_tokens"]
        guesses = {
            f"{what}_{source}": counts[n]
            for source, counts in self._speculator.totals.items()
            for n, what in enumerate(("drafted", "accepted"))
        }
        return {
            **self._totals,
            **guesses,
            "hit_rate": self._totals["reused_tokens"] / prompt if prompt else 0.0,
            "preemptions": self._planner.preemptions,
            "running": self.running,
            "waiting": self.waiting,
            "steps": self._step,
            "pages": pages.pages,
            "pages_free": pages.free,
            "pages_used": pages.pages - pages.free,
            "pages_cached": pages.cached,
            "pages_available": pages.available,
            "pages_evicted": pages.evicted,
            "leases": pages.leases,
            "tree_s": self._cache.seconds,
        }

    def show_tree(self) -> Tree:
        """The radix tree, as much of it as may be told."""
        shown, nodes = self._cache.show(TREE_NODES, TREE_HEAD)
        return Tree(nodes, tuple(TreeNode(*node) for node in shown))

    def flush(self) -> int:
        """Drop all cached pages that no running request holds. Returns how many."""
        return self._cache.flush()

    def check(self) -> None:
        """Raises AssertionError when pages, leases and requests do not add up."""
        self._cache.check()
        running = self._planner.running.values()
        leases = 0
        for request in running:
            assert request.lease is not None, f"request {request.id} runs without a lease"
            leases += 1 + (len(request.options.leases) if request.options is not None else 0)
        held = self._cache.stats().leases
        guessing = [
            a for requests in self._live.values() for r in requests if (a := r.answer) and a.context is not None
        ]
        held_contexts = self._speculator.contexts
        assert len(guessing) == held_contexts, f"{held_contexts} requests are guessed for, {len(guessing)} live"
        assert leases == held, f"the cache has {held} leases, running requests hold {leases}"
        waiting = [request for requests in self._live.values() for request in requests if request.lease is None]
        assert all(request in self._planner.queue for request in waiting), "a live request neither runs nor waits"
        queued = len(self._planner.queue)
        assert len(waiting) == queued, f"{queued} requests are queued, {len(waiting)} of them live"
