"""The brain of an encoder: whole texts in, as many a step as its budget holds, their vectors out.

Knows: wire messages, limits, the token budget. Must not know: caches, tensors, text.
An encoder has no cache: a text is computed whole, in one row, and nothing of it is left for others.
"""

from __future__ import annotations

import heapq
import time
from typing import NamedTuple

from branchwork.runtime.plan import Plan, Result, Row
from branchwork.runtime.scheduler.constrained import Masks
from branchwork.runtime.scheduler.intake import Limits, turned_away, unpack
from branchwork.runtime.scheduler.request import Spend
from branchwork.runtime.scheduler.vectors import Vector
from branchwork.runtime.wire import Embed, Event, Failed, Finished, Score, Submit, Tree

_NONE = (
    *("reused_tokens", "generated_tokens", "drafted_tokens", "accepted_tokens", "hit_rate", "preemptions", "leases"),
    *("pages", "pages_free", "pages_used", "pages_cached", "pages_available", "pages_evicted", "tree_s"),
)
_STATES = {"first": "first", "last": "last", "mean": "sum"}


class Text(NamedTuple):
    """A text that waits or is computed."""

    embed: Embed
    spend: Spend


class EncodingScheduler:
    """As Scheduler, for Embed alone: higher priorities first, then in the order of arrival.

    vocab: ids are 0 .. vocab-1. context: tokens of the longest text. budget: tokens of a step, which holds one text at
    least. max_running: texts of a step. queue_limit: waiting texts.
    """

    def __init__(self, *, vocab: int, context: int, budget: int, max_running: int, queue_limit: int) -> None:
        self._limits = Limits(context, context, 1, vocab, causal=False)
        self._budget = budget
        self._max_running = max_running
        self._queue_limit = queue_limit
        self._live: dict[int, Text] = {}
        self._queue: list[tuple[int, int, int]] = []  # heap of (-priority, arrival, id), cancelled ones among them
        self._running: dict[int, Text] = {}
        self._arrivals = 0
        self._steps = 0
        self._totals = dict.fromkeys(("prompt_tokens", "computed_tokens", "finished"), 0)

    # --- messages

    def add(self, message: Submit | Score | Embed) -> list[Event]:
        """See Scheduler; Failed for everything but an Embed."""
        if not isinstance(message, Embed):
            text = "this model turns texts into vectors and writes none; ask it for embeddings"
            return [Failed(message.id, "unsupported", text)]
        known = message.id in self._live
        refused = turned_away(message, known, self.waiting, self._queue_limit, self._limits)
        if refused is not None:
            return [refused]
        self._live[message.id] = Text(message, Spend(len(message.ids) // 4))
        heapq.heappush(self._queue, (-message.priority, self._arrivals, message.id))
        self._arrivals += 1
        return []

    def compiled(self) -> list[Event]:
        """Nothing here is constrained."""
        return []

    def cancel(self, number: int) -> list[Event]:
        """See Scheduler."""
        text = self._live.pop(number, None)
        if text is None:
            return []
        self._running.pop(number, None)
        self._totals["finished"] += 1
        return [Finished(number, (), (), "cancelled", b"", 0, 0, text.spend.usage())]

    def fail_all(self, code: str, message: str) -> list[Event]:
        """See Scheduler."""
        numbers = list(self._live)
        self._live.clear()
        self._running.clear()
        self._queue.clear()
        return [Failed(number, code, message) for number in numbers]

    # --- the beat

    def plan(self) -> Plan | None:
        """See Scheduler."""
        rows: list[Row] = []
        left = self._budget
        while self._queue and len(rows) < self._max_running:
            _, _, number = self._queue[0]
            text = self._live.get(number)
            if text is not None and number not in self._running:
                if rows and text.spend.prompt > left:
                    break
                left -= text.spend.prompt
                text.spend.admitted = time.monotonic()
                self._running[number] = text
                rows.append(Row(number, 0, unpack(text.embed.ids), (), state=_STATES[text.embed.pooling]))
            heapq.heappop(self._queue)
        if not rows:
            return None
        self._steps += 1
        return Plan(self._steps, tuple(rows))

    def plan_ahead(self) -> Plan | None:
        """Nothing: a step's texts are all done when it is."""
        return None

    def masks(self, plan: Plan) -> Masks | None:
        """None: nothing is drawn."""
        return None

    def commit(self, plan: Plan, result: Result) -> list[Event]:
        """See Scheduler."""
        events: list[Event] = []
        for row, drawn in zip(plan.rows, result.rows, strict=True):
            self._totals["computed_tokens"] += len(row.ids)
            text = self._running.pop(row.request, None)
            if text is None:  # cancelled meanwhile
                continue
            del self._live[row.request]
            text.spend.computed = len(row.ids)
            self._totals["prompt_tokens"] += len(row.ids)
            self._totals["finished"] += 1
            vector = Vector(text.embed)
            vector.add(drawn.state)
            events.append(vector.event(text.spend.usage()))
        return events

    # --- questions

    @property
    def idle(self) -> bool:
        """Nothing can be computed."""
        return not self._live

    @property
    def waiting(self) -> int:
        return len(self._live) - len(self._running)

    def stats(self) -> dict[str, float | int | str]:
        """Counters as Scheduler's; there is nothing to say of a cache, of answers and of guesses."""
        now = {"running": len(self._running), "waiting": self.waiting, "steps": self._steps}
        return {**dict.fromkeys(_NONE, 0), **self._totals, **now}

    def flush(self) -> int:
        """0: nothing is cached."""
        return 0

    def show_tree(self) -> Tree:
        """An empty one."""
        return Tree(0, ())

    def check(self) -> None:
        """Raises AssertionError when texts do not add up."""
        queued = {number for _, _, number in self._queue}
        waiting = set(self._live) - set(self._running)
        assert waiting <= queued, f"{len(waiting - queued)} texts wait outside the queue"
        assert set(self._running) <= set(self._live), "a text is computed for nobody"
