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
from branchwork.lang.calls import Call, Dropped, NodeDone, Reply, complete
from branchwork.lang.constraint import capture_names
from branchwork.lang.ir import Laid
from branchwork.lang.lineage import Lineage, Track
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import ChatFrames
from branchwork.lang.reasoning import split, thoughts_of
from branchwork.lang.transcript import Branch, NodeFailed, Refusal, Value

__all__ = ["Call", "Dropped", "NodeDone", "Output", "Program", "Reply"]

Output = Call | Dropped | NodeDone | NodeFailed
JOIN_MODES = ("gather_variable", "concate_and_append", *race.MODES)
# codes that every node of a stopped branch carries itself
WHOLE = frozenset({"cancelled", "closed", "runtime_lost", "outrun", "budget"})


class Program:
    """All branches of one program. Branch 0 exists from the start.

    objects: values of SetVar nodes by node number, where the author set something other than text (client only).
    decides: whether races between branches are decided here; otherwise (the client's record) each is a call.
    winners: by Join node of a race, the indexes of the children it went on with.
    """

    def __init__(self, frames: ChatFrames | None = None, *, decides: bool = True) -> None:
        self.frames = frames or ChatFrames()
        self.decides = decides
        self.winners: dict[int, list[int]] = {}
        self.objects: dict[int, Any] = {}
        self.lineage = Lineage()
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
            won = [int(index) for index in reply.values]
            broken = self._broken(track.queue[0], won)
            if broken is not None:  # the author cancelled it while the executor already went on with it
                because = self._because(broken)
                self.fail_node(made.branch, made.node, because.code, because.message, because.cause)
                return
            self._win(track, track.queue[0], won)
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
            broken = self._broken(track.queue[0])
            cause = None if broken is None else broken.cause
        failure = NodeFailed(branch, node, code, message, node if cause is None else cause)
        if track.branch.failure is None:
            self._failures[node] = failure
            track.break_at(node)
            self._fail(track, failure)
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
            case ir.Ref() as node:
                return () if self._refer(track, laid.id, node) else None
            case ir.Gen() | ir.Select() as node:
                made = self._make(track, laid.id, node)
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
            raise self._because(value)
        if isinstance(value, list):
            raise Refusal("bad_reference", f"variable {node.name!r} has {len(value)} values; place one of them instead")
        track.branch.append("" if value is None else str(value), "literal", at)
        return True

    def _make(self, track: Track, at: int, node: ir.Gen | ir.Select | ir.Join) -> Call:
        number, branch = self._next_call, track.branch.id
        self._next_call += 1
        match node:
            case ir.Gen(name=name, constraint=constraint, reasoning=reasoning):
                params = node.params or SamplingParams()
                return Call(number, branch, at, "gen", name, params, constraint=constraint, reasoning=reasoning)
            case ir.Select(name, choices, method):
                return Call(number, branch, at, "select", name, choices=choices, method=method)
        return Call(number, branch, at, "join")

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
        at = laid.id
        if node.mode in race.MODES:
            return self._race(track, laid, node)
        for child in node.children:
            other = self._tracks[child]
            if other.broken_at is not None and other.broken_at < at and other.branch.failure is not None:
                raise self._because(other.branch.failure)
            last = self._last_before(other, at)
            if last is not None:
                self._waiting.setdefault(last, []).append(track.branch.id)
                return None
            if not other.born:
                self._starved.add(track.branch.id)
                return None
        if node.mode == "gather_variable":
            for name, nodes in self.lineage.gathered[at].items():
                self._define(track, at, name, [self._values[n][name] for n in nodes])
        elif node.mode == "concate_and_append":
            for child in node.children:
                track.branch.concatenate(self.branch(child), at)
        else:
            raise Refusal("bad_join", f"unknown join mode {node.mode!r}; known: {', '.join(JOIN_MODES)}")
        return ()

    def _last_before(self, child: Track, at: int) -> int | None:
        """The node that a join at `at` has to wait for: the child's last one, or its birth. None: it is done."""
        last = next((laid.id for laid in reversed(child.queue) if laid.id < at), None)
        return child.origin[1] if last is None and not child.born and child.origin is not None else last

    def _race(self, track: Track, laid: Laid, node: ir.Join) -> tuple[str, ...] | None:
        """Go on with the children that win; or ask for them, when others decide."""
        at = laid.id
        if not self.decides:
            self._issue(track, self._make(track, at, node))
            return ()
        tracks = [self._tracks[child] for child in node.children]
        if any(not child.born and child.origin is None for child in tracks):
            self._starved.add(track.branch.id)
            return None
        standings = [self._standing(child, at, node.name) for child in tracks]
        won = race.decide(node.mode, node.count, standings, node.given)
        if won is None:
            for child in tracks:
                last = self._last_before(child, at)
                if last is not None and child.branch.failure is None:
                    waiting = self._waiting.setdefault(last, [])
                    if track.branch.id not in waiting:
                        waiting.append(track.branch.id)
            return None
        lost = [child for child in tracks if child.branch.failure is None and self._last_before(child, at) is not None]
        message = f"the join went on with {len(won)} of {len(tracks)} branches, and this one was not among them"
        dropped = [call for child in lost for call in self.cancel(child.branch.id, "outrun", message)]
        if dropped:
            self._out.append(Dropped(tuple(dropped)))
        self._win(track, laid, won)
        return tuple(map(str, won))

    def _standing(self, child: Track, at: int, name: str | None) -> race.Standing:
        failure = child.branch.failure
        if failure is not None and child.broken_at is not None and child.broken_at < at:
            return race.Standing(failed=failure.cause)
        if self._last_before(child, at) is not None or not child.born:
            return race.Standing()
        definer = None if name is None else child.own(name, at)
        vote = None if name is None or definer is None else self.value(definer, name)
        return race.Standing(done=True, vote=None if vote is None or isinstance(vote, NodeFailed) else str(vote))

    def _broken(self, join: Laid, indexes: Sequence[int] | None = None) -> NodeFailed | None:
        """Why a child, of those with these indexes, failed before the join; None when none did."""
        assert isinstance(join.node, ir.Join)
        children = join.node.children if indexes is None else [join.node.children[index] for index in indexes]
        for child in map(self._tracks.__getitem__, children):
            if child.branch.failure is not None and child.broken_at is not None and child.broken_at < join.id:
                return child.branch.failure
        return None

    def _win(self, track: Track, laid: Laid, won: list[int]) -> None:
        """The variables of a race's winners become the parent's."""
        assert isinstance(laid.node, ir.Join)
        self.winners[laid.id] = won
        names = self.lineage.gathered[laid.id]  # of all children: what only losers have is empty
        children = [laid.node.children[index] for index in won]
        gathered = self.lineage.gather(track.branch.id, laid.id, children, laid.node.name)
        self.lineage.gathered[laid.id] = {name: gathered.get(name, []) for name in names}
        for name, nodes in self.lineage.gathered[laid.id].items():
            values = [self._values[n][name] for n in nodes]
            self._define(track, laid.id, name, values[0] if name == laid.node.name else values)

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
            because = self._because(failure)
            mine = NodeFailed(track.branch.id, laid.id, because.code, because.message, failure.cause)
        self._failures[laid.id] = mine
        self._out.append(mine)
        track.break_at(laid.id)
        self._wake(laid.id)
        children = laid.node.children if isinstance(laid.node, ir.Fork) else ()
        stopped = [self._tracks[child] for child in children]
        return [(child, mine) for child in stopped if child.origin == (track.branch.id, laid.id)]

    def _because(self, failure: NodeFailed) -> Refusal:
        if failure.code in ("branch_failed", "budget"):
            return Refusal(failure.code, failure.message, failure.cause)
        first = f"node {failure.node} of branch {failure.branch} failed first: {failure.code}: {failure.message}"
        return Refusal("branch_failed", first, failure.cause)

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
