"""Random programs full of races, in random order: the client's record of them ends as the executor's does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.lang.ir import Fork, Gen, Join, Laid, Ref, SetVar, Text
from branchwork.lang.machine import Call, Dropped, NodeDone, Output, Program, Reply
from branchwork.lang.transcript import NodeFailed


class _Author:
    """Lays random nodes with many races, in the order of their numbers, as a client does."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.laid: list[tuple[int, Laid]] = []
        self.names: dict[int, list[str]] = {0: []}
        self.forks: dict[int, list[tuple[int, ...]]] = {}

    def lay(self) -> None:
        branch = self.random.choice(list(self.names))
        kind, name, number = self.random.choice("tgggrfjjv"), self.random.choice("ab"), len(self.laid)
        node: Any = Text(f"[{number}]")
        if kind == "g":
            node = Gen(name)
            self.names[branch].append(name)
        elif kind == "v":
            node = SetVar(name, "yes")
            self.names[branch].append(name)
        elif kind == "r":
            other = self.random.choice(list(self.names))
            node = Ref(other, self.random.choice(self.names[other])) if self.names[other] else node
        elif kind == "f" and len(self.names) < 12:
            new = tuple(len(self.names) + index for index in range(self.random.randint(1, 4)))
            self.names.update({child: list(self.names[branch]) for child in new})
            self.forks.setdefault(branch, []).append(new)
            node = Fork(new)
        elif kind == "j" and self.forks.get(branch):
            new = self.forks[branch].pop()
            node = self.random.choice(
                [
                    Join(new, "first", self.random.randint(1, len(new))),
                    Join(new, "majority", name=name),
                    Join(new),
                    Join(new, "concate_and_append"),
                ]
            )
        self.laid.append((branch, Laid(number, node)))


class _Pair:
    """An executor's machine, and the record that a client keeps from what the executor says of its calls."""

    def __init__(self, order: int) -> None:
        self.random = random.Random(order)
        self.executor, self.client = Program(), Program(decides=False)
        self.under_way: dict[int, Call] = {}
        self.news: list[Output] = []  # on their way to the client

    def feed(self, branch: int, laid: Laid) -> None:
        self.client.feed(branch, [laid])
        self.client.advance()
        self.executor.feed(branch, [laid])
        self.pump()

    def pump(self) -> None:
        for output in self.executor.settle():
            if isinstance(output, Call):
                self.under_way[output.id] = output
            elif isinstance(output, Dropped):
                for call in output.calls:
                    del self.under_way[call]
            elif output.values if isinstance(output, NodeDone) else output.code != "branch_failed":
                self.news.append(output)

    def answer(self) -> None:
        call = self.under_way.pop(self.random.choice(list(self.under_way)))
        fate = random.Random(call.node).random()
        if fate < 0.15:
            self.executor.fail(call.id, "boom", f"node {call.node}")
        else:
            self.executor.reply(call.id, Reply(("yes" if fate < 0.6 else "no",)))
        self.pump()

    def hear(self) -> None:
        """As lang.live does."""
        event = self.news.pop(0)
        if isinstance(event, NodeFailed):
            self.client.fail_node(event.branch, event.node, event.code, event.message)
        elif isinstance(event, NodeDone):
            call = self.client.under_way(event.branch)
            if call is not None and call.node == event.node:
                self.client.reply(call.id, Reply(event.values, event.meta, event.captures))
        self.client.advance()

    def run(self, todo: list[tuple[int, Laid]]) -> Iterator[None]:
        """One step at a time, in random order."""
        while todo or self.under_way or self.news:
            steps = [self.answer] * bool(self.under_way) + [self.hear] * bool(self.news)
            if todo and (not steps or self.random.random() < 0.4):
                self.feed(*todo.pop(0))
            else:
                self.random.choice(steps)()
            yield

    def outcome(self, program: Program, author: _Author) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for branch, laid in author.laid:
            failure = program.failure(laid.id)
            found[laid.id] = failure.code if failure else program.winners.get(laid.id)
            if failure is None:
                for name in ("a", "b"):
                    if program.lineage.definer(branch, name, laid.id + 1) == laid.id:
                        found[laid.id, name] = program.value(laid.id, name)
        for branch in author.names:
            if program.branch(branch).failure is None:
                found["text", branch] = program.branch(branch).text
        return found


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_clients_record_of_races_is_the_executors(seed: int, order: int) -> None:
    author, pair = _Author(seed), _Pair(order)
    for _ in range(50):
        author.lay()
    for _ in pair.run(list(author.laid)):
        pass
    assert pair.executor.idle and pair.client.idle
    theirs, ours = pair.outcome(pair.executor, author), pair.outcome(pair.client, author)
    # a branch without nodes left may have lost its race without anybody having to know
    assert {key: value for key, value in ours.items() if key in theirs} == theirs
    assert all(key[0] == "text" for key in ours if key not in theirs)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_cancelling_at_any_moment_leaves_nobody_waiting(seed: int, order: int) -> None:
    author, pair = _Author(seed), _Pair(order)
    for _ in range(50):
        author.lay()
    on_its_way: list[int] = []  # branches cancelled by the client, not yet by the executor

    def arrive() -> None:
        for call in pair.executor.cancel(on_its_way.pop(0)):
            pair.under_way.pop(call, None)
        pair.pump()

    for _ in pair.run(list(author.laid)):
        known = [branch for branch in author.names if branch in pair.executor.lineage.tracks]
        if pair.random.random() < 0.05:
            on_its_way.append(pair.random.choice(known))
            pair.client.cancel(on_its_way[-1])
            pair.client.advance()
        elif on_its_way and pair.random.random() < 0.3:
            arrive()
    while on_its_way or pair.news:
        (pair.hear if pair.news else arrive)()
    assert pair.executor.idle and pair.client.idle
