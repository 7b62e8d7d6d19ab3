"""Sans-I/O interpreter of one program: nodes and replies go in, calls and outcomes come out.

Knows: nodes, role frames, variables, which branch waits for what. Must not know: tokens, sockets, threads, time.
Used unchanged by the runtime's host, by LocalBackend, and by the client as its own record of every branch.

Nodes of a program are numbered in order of laying and fed in that order. A node depends only on nodes with smaller
numbers (a Ref on the latest such definition of its variable, a Join on its children's smaller nodes), so a program
cannot block itself; what still can never run (a forward or unknown Ref) is failed by `settle`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from branchwork.lang import ir, race
from branchwork.lang.calls import Call, Dropped, NodeDone, Reply, call_of, complete
from branchwork.lang.constraint import capture_names
from branchwork.lang.ir import Laid
from branchwork.lang.joins import Joined, Joins, Wait
from branchwork.lang.lineage import Lineage, Track
from branchwork.lang.protocol import ChatFrames
from branchwork.lang.reasoning import split, thoughts_of
from branchwork.lang.transcript import Branch, NodeFailed, Refusal, Value, because

__all__ = ["Call", "Dropped", "NodeDone", "Output", "Program", "Reply"]

Output = Call | Dropped | NodeDone | NodeFailed
# codes that every node of a stopped branch carries itself
WHOLE = frozenset({"cancelled", "closed", "runtime_lost", "outrun", "budget"})


class Program:
    """All branches of one program. Branch 0 exists from the start.

    objects: values of SetVar nodes by node number, where the author set something other than text (client only).
    decides: whether races between branches are decided here; otherwise (the client's record) each is a call.
    """

    def __init__(self, frames: ChatFrames | None = None, *, decides: bool = True) -> None:
        self.frames = frames or ChatFrames()
        self.decides = decides
        self.objects: dict[int, Any] = {}
        self.lineage = Lineage()
        self._joins = Joins(self.lineage, self.value)
        self._tracks = self.lineage.tracks
        self._fed: set[int] = set()
        self._values: dict[int, dict[str, Value]] = {}
        self._early: dict[int, dict[str, Value]] = {}  # captures of nodes that were not done when they came
        self._failures: dict[int, NodeFailed] = {}
        self._waiting: dict[int, list[int]] = {}  # node -> branches that wait for it
        self._starved: set[int] = set()  # branches that wait for a node nobody has laid
        self._calls: dict[int, Call] = {}
        self._ready: deque[int] = deque()
        self._out: list[Output] = []
        self._blocked: set[int] = set()  # branches that wait for others, since somebody last asked
        self._next_call = 0

    # --- what others may ask

    def branch(self, branch: int) -> Branch:
        """Raises KeyError for a branch nobody has named."""
        return self._tracks[branch].branch

    def pending(self, branch: int) -> Sequence[Laid]:
        """Nodes of a branch that have not been executed, in order; the first is under way."""
        return self._tracks[branch].queue

    def under_way(self, branch: int) -> Call | None:
        """The call that a branch waits for."""
        call = self._tracks[branch].call
        return None if call is None else self._calls[call]

    def fanout(self, branch: int) -> int:
        """Branches that will be forked from a branch as soon as the call that it waits for is answered."""
        children = 0
        for laid in islice(self._tracks[branch].queue, 1, None):
            match laid.node:
                case ir.Fork(forked):
                    children += len(forked)
                case ir.Gen() | ir.Select() | ir.Join() | ir.Ref():
                    break
        return children

    def take_blocked(self) -> list[int]:
        """Branches that had to wait for others since the last time this was asked."""
        blocked, self._blocked = self._blocked, set()
        return [branch for branch in blocked if self._tracks[branch].queue and self._tracks[branch].call is None]

    def caught_up(self, branch: int, node: int) -> bool:
        """The branch exists and has executed its nodes up to `node`, or it has stopped."""
        track = self._tracks[branch]
        return (track.born or track.branch.failure is not None) and (not track.queue or track.queue[0].id > node)

    @property
    def winners(self) -> dict[int, list[int]]:
        """By Join node of a race, the indexes of the children it went on with."""
        return self._joins.winners

    @property
    def calls(self) -> int:
        """Calls that wait for a reply."""
        return len(self._calls)

    @property
    def idle(self) -> bool:
        """Every node fed so far has been executed or has failed."""
        return not any(track.queue for track in self._tracks.values())

    def settled(self, node: int, name: str | None = None) -> bool:
        """The node that defines variables has done so, or has failed; with a name: that one is known by now.

        A capture is known as soon as it is certain, which may be long before its node is done.
        """
        return node in self._values or node in self._failures or name in self._early.get(node, ())

    def value(self, node: int, name: str) -> Value | NodeFailed:
        """The value that the node gave to `name`, which is settled, or why it never will. None: left out."""
        early = self._early.get(node, {})
        if name in early:
            return early[name]
        return self._failures[node] if node in self._failures else self._values[node][name]

    def failure(self, node: int) -> NodeFailed | None:
        """Why a node failed; None when it has not."""
        return self._failures.get(node)

    # --- what others may do

    def feed(self, branch: int, nodes: Sequence[Laid]) -> None:
        """Queue nodes on a branch, which need not exist yet. Nothing runs before `advance`.

        Raises ValueError when numbers do not ascend in a branch or one is used twice.
        """
        track = self.lineage.track(branch)
        for laid in nodes:
            if laid.id <= track.last or laid.id in self._fed:
                raise ValueError(f"node number {laid.id} on branch {branch}: numbers must ascend and be used once")
            self._fed.add(laid.id)
            track.last = laid.id
            self.lineage.note(branch, laid)
            if track.branch.failure is not None:
                for child, failure in self._fail_node(track, laid, track.branch.failure):
                    self._fail(child, failure)
            else:
                track.queue.append(laid)
        self._ready.append(branch)
        self._ready.extend(self._starved)
        self._starved.clear()

    def advance(self) -> list[Output]:
        """Run every branch as far as it goes; calls to make and outcomes since the last time, in order."""
        while self._ready:
            self._run(self._tracks[self._ready.popleft()])
        out, self._out = self._out, []
        return out

    def reply(self, call: int, reply: Reply) -> None:
        """Answer a call. A call that was cancelled or failed meanwhile is ignored."""
        made = self._calls.get(call)
        if made is None:
            return
        if not reply.values:
            self.fail(call, "empty_reply", "the executor answered without a value; it must give at least one text")
            return
        del self._calls[call]
        track = self._tracks[made.branch]
        track.call = None
        if made.kind == "join":
            try:
                found = self._joins.won(made.branch, track.queue[0], [int(index) for index in reply.values])
            except Refusal as no:  # the author cancelled a child while the executor already went on with it
                self.fail_node(made.branch, made.node, no.code, no.message, no.cause)
                return
            self._joined(track, made.node, found)
            self._finish(track)
        else:
            captures = self._take(track, made, reply)
            self._early.pop(made.node, None)
            self._finish(track, reply.values, reply.meta, captures)
        self._ready.append(made.branch)

    def capture(self, call: int, name: str, value: Value) -> None:
        """A capture of a call under way (of one sample) is certain: it can be read and referred to from now on.

        Ignored for a call that is over, and for a name that it does not capture.
        """
        made = self._calls.get(call)
        if made is not None and made.params.n == 1 and name in capture_names(made.constraint):
            self._early.setdefault(made.node, {})[name] = value
            self._wake(made.node)

    def fail(self, call: int, code: str, message: str) -> None:
        """A call cannot be answered: its node fails, and with it the rest of its branch."""
        if call in self._calls:
            made = self._calls[call]
            self.fail_node(made.branch, made.node, code, message)

    def fail_node(self, branch: int, node: int, code: str, message: str, cause: int | None = None) -> None:
        """A node cannot be executed (also one this machine holds for done): its branch stops there."""
        track = self._tracks[branch]
        if code == "race_lost" and cause is None and track.queue and track.queue[0].id == node:
            broken = self._joins.broken(track.queue[0])
            cause = None if broken is None else broken.cause
        failure = NodeFailed(branch, node, code, message, node if cause is None else cause)
        if track.branch.failure is None:
            self._failures[node] = failure
            track.break_at(node)
            self._fail(track, failure)
        else:
            self._failures.setdefault(node, failure)  # done in this record, but not where it counts
        self._wake(node)

    def cancel(self, branch: int | None = None, code: str = "cancelled", message: str = "cancelled") -> list[int]:
        """Stop a branch and its descendants, or everything; the calls to cancel. Their nodes fail with `code`."""
        stopped = [
            track for track in self._tracks.values() if branch is None or self.lineage.descends(track.branch.id, branch)
        ]
        calls = [track.call for track in stopped if track.call is not None]
        for track in stopped:
            node = track.queue[0].id if track.queue else track.last + 1
            self._fail(track, NodeFailed(track.branch.id, node, code, message, node))
        return calls

    def close(self) -> list[int]:
        """No more nodes will come and nobody reads: everything stops; the calls to cancel."""
        return self.cancel(None, "closed", "the program was closed before this node was executed")

    def settle(self) -> list[Output]:
        """Call when all nodes laid so far have been fed: with no call under way, fails what can never run."""
        out = self.advance()
        while not self._calls:
            blocked = [track for track in self._tracks.values() if track.queue]
            if not blocked:
                break
            rootless = [t for t in blocked if t.branch.id in self._starved or (not t.born and t.origin is None)]
            reasons = [(t.branch.id, t.queue[0].id, *self._why_blocked(t)) for t in rootless or blocked]
            self._starved.clear()
            for reason in reasons:
                self.fail_node(*reason)
            out += self.advance()
        return out

    # --- execution

    def _run(self, track: Track) -> None:
        while track.queue and track.born and track.call is None:
            laid = track.queue[0]
            try:
                said = self._execute(track, laid)
            except Refusal as no:
                self.fail_node(track.branch.id, laid.id, no.code, no.message, no.cause)
                return
            if said is None:
                self._blocked.add(track.branch.id)
                return
            if track.call is None:
                self._finish(track, said)

    def _execute(self, track: Track, laid: Laid) -> tuple[str, ...] | None:
        """Execute the head node; None when it has to wait, else what others are to hear of it."""
        match laid.node:
            case ir.Text(value):
                track.branch.append(value, "literal", laid.id, special=track.branch.role is None)
            case ir.Ids(ids, text):
                track.branch.append(text, "literal", laid.id, ids=ids)
            case ir.Ref() as node:
                return () if self._refer(track, laid.id, node) else None
            case ir.Gen() | ir.Select() as node:
                made = call_of(self._number(), track.branch.id, laid)
                if node.given is None:
                    self._issue(track, made)
                elif node.given.failed is not None:
                    raise Refusal(*node.given.failed)
                elif not node.given.values:
                    raise Refusal("empty_reply", "the answer that was given has no value; it must have at least one")
                else:
                    self._take(track, made, Reply(node.given.values, node.given.meta, node.given.captures))
            case ir.Image() | ir.Video() as node:
                track.branch.picture(node, laid.id)
            case ir.RoleBegin(role):
                track.branch.begin_role(self.frames, role, laid.id)
            case ir.RoleEnd(role):
                track.branch.end_role(self.frames, role, laid.id)
            case ir.ScopeBegin(name):
                track.scopes.append((name, len(track.branch.segments)))
            case ir.ScopeEnd(name):
                self._end_scope(track, laid.id, name)
            case ir.SetVar(name, value):
                self._define(track, laid.id, name, self.objects.get(laid.id, value))
            case ir.Fork(children):
                self._fork(track, laid.id, children)
            case ir.Join() as node:
                return self._join(track, laid, node)
        return ()

    def _refer(self, track: Track, at: int, node: ir.Ref) -> bool:
        definer = self.lineage.definer(node.branch, node.name, at)
        if definer is None:
            later = self._tracks[node.branch].definers.get(node.name) if node.branch in self._tracks else None
            if not later:
                self._starved.add(track.branch.id)
                return False
            definer = later[0]
        if not self.settled(definer, node.name):
            self._waiting.setdefault(definer, []).append(track.branch.id)
            return False
        value = self.value(definer, node.name)
        if isinstance(value, NodeFailed):
            raise because(value)
        if isinstance(value, list):
            raise Refusal("bad_reference", f"variable {node.name!r} has {len(value)} values; place one of them instead")
        track.branch.append("" if value is None else str(value), "literal", at)
        return True

    def _number(self) -> int:
        self._next_call += 1
        return self._next_call - 1

    def _issue(self, track: Track, made: Call) -> None:
        track.call = made.id
        self._calls[made.id] = made
        self._out.append(made)

    def _take(self, track: Track, made: Call, reply: Reply) -> dict[str, Any]:
        """Append what came of a gen or select and define its variables; its captures."""
        values = reply.values
        if made.reasoning is not None:
            parts = [split(value, made.reasoning) for value in values]
            values = tuple(answer for _, answer in parts)
            if made.name is not None:
                thoughts = [thinking for thinking, _ in parts]
                self._define(track, made.node, thoughts_of(made.name), thoughts[0] if made.params.n == 1 else thoughts)
        track.branch.append(values[0], made.kind, made.node)
        captures = complete(made, reply.captures)
        for name, value in captures.items():
            self._define(track, made.node, name, value)
        self._define(track, made.node, made.name, values[0] if made.params.n == 1 else list(values))
        return captures

    def _end_scope(self, track: Track, at: int, name: str) -> None:
        if not track.scopes or track.scopes[-1][0] != name:
            raise Refusal("scope_mismatch", f"scope {name!r} ends, but it is not the innermost open scope")
        _, first = track.scopes.pop()
        self._define(track, at, name, "".join(segment.text for segment in track.branch.segments[first:]))

    def _fork(self, track: Track, at: int, children: tuple[int, ...]) -> None:
        parent = track.branch
        for child in children:
            born = self._tracks[child]
            if born.origin != (parent.id, at) or born.born:
                raise Refusal("bad_fork", f"branch {child} exists already; a fork needs new branch numbers")
            born.born = True
            born.branch.copy(parent)
            self._ready.append(child)
        parent.forks.append((len(parent.segments), children))

    def _join(self, track: Track, laid: Laid, node: ir.Join) -> tuple[str, ...] | None:
        if node.mode in race.MODES and not self.decides:
            self._issue(track, call_of(self._number(), track.branch.id, laid))
            return ()
        found = self._joins.look(track.branch.id, laid)
        if isinstance(found, Wait):
            for number in found.nodes:
                waiting = self._waiting.setdefault(number, [])
                if track.branch.id not in waiting:
                    waiting.append(track.branch.id)
            if not found.nodes:
                self._starved.add(track.branch.id)
            return None
        message = (
            f"the join went on with {len(found.won or ())} of {len(node.children)} branches, and not with this one"
        )
        dropped = [call for child in found.losers for call in self.cancel(child, "outrun", message)]
        if dropped:
            self._out.append(Dropped(tuple(dropped)))
        self._joined(track, laid.id, found)
        return tuple(map(str, found.won or ()))

    def _joined(self, track: Track, at: int, found: Joined) -> None:
        for name, value in found.variables.items():
            self._define(track, at, name, value)
        for child in found.text:
            track.branch.concatenate(self.branch(child), at)

    # --- outcomes

    def _define(self, track: Track, at: int, name: str | None, value: Value) -> None:
        if name is not None:
            self._values.setdefault(at, {})[name] = value
            track.branch.variables[name] = value

    def _finish(
        self,
        track: Track,
        values: tuple[str, ...] = (),
        meta: tuple[dict[str, Any], ...] = (),
        captures: dict[str, Any] | None = None,
    ) -> None:
        laid = track.queue.popleft()
        self._out.append(NodeDone(track.branch.id, laid.id, values, meta, captures or {}))
        self._wake(laid.id)

    def _wake(self, node: int) -> None:
        self._ready.extend(self._waiting.pop(node, ()))

    def _fail(self, first: Track, failure: NodeFailed) -> None:
        """Stop a branch: every node still queued fails, and so do the children it would have had."""
        stopping = [(first, failure)]
        while stopping:
            track, why = stopping.pop()
            if track.branch.failure is not None:
                continue
            track.branch.failure = why
            if track.call is not None:
                del self._calls[track.call]
                track.call = None
            while track.queue:
                stopping += self._fail_node(track, track.queue.popleft(), why)

    def _fail_node(self, track: Track, laid: Laid, failure: NodeFailed) -> list[tuple[Track, NodeFailed]]:
        """Record that a node of a stopped branch fails; the children that stop with it."""
        if laid.id == failure.node:
            mine = failure
        elif failure.code in WHOLE:
            mine = NodeFailed(track.branch.id, laid.id, failure.code, failure.message, laid.id)
        else:
            why = because(failure)
            mine = NodeFailed(track.branch.id, laid.id, why.code, why.message, failure.cause)
        self._failures[laid.id] = mine
        self._out.append(mine)
        track.break_at(laid.id)
        self._wake(laid.id)
        children = laid.node.children if isinstance(laid.node, ir.Fork) else ()
        stopped = [self._tracks[child] for child in children]
        return [(child, mine) for child in stopped if child.origin == (track.branch.id, laid.id)]

    # --- what can never run

    def _why_blocked(self, track: Track) -> tuple[str, str]:
        branch, node = track.branch.id, track.queue[0].node
        if not track.born and track.origin is None:
            return "no_such_branch", f"branch {branch} was never forked; only nodes of existing branches can run"
        if branch in self._starved and isinstance(node, ir.Ref):
            known = ", ".join(self.lineage.names(node.branch)) if node.branch in self._tracks else "no such branch"
            return "unknown_variable", f"branch {node.branch} never defines {node.name!r} (it has: {known or 'none'})"
        if branch in self._starved:
            return "no_such_branch", f"node {track.queue[0].id} joins a branch that was never forked"
        return "deadlock", f"branch {branch} waits in a circle of branches that wait for each other; nothing can run"
