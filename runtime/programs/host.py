"""Runs the programs of all connections: drives lang.machine on their nodes and keeps their transcripts.

Knows: machine, transcripts, wire. Must not know: sockets, tokenizers' insides, scheduling, tensors.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from branchwork.lang import machine, protocol
from branchwork.lang.budget import Spending
from branchwork.lang.constraint import ConstraintError, capture_names, check
from branchwork.lang.ir import Fill, Fork, Gen, Image, Laid, Placed, Select, Video, filled
from branchwork.lang.machine import Call, Dropped, Reply
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import Budget, ChatFrames
from branchwork.lang.transcript import NodeFailed, Segment
from branchwork.runtime import wire
from branchwork.runtime.programs import seams
from branchwork.runtime.programs.branches import Transcript
from branchwork.runtime.programs.embeds import Embeds
from branchwork.runtime.programs.gens import Sample, Texts, submits
from branchwork.runtime.programs.selects import Selection

EARLY = 256  # characters that make it worth while to compute them before they are needed
SEAM = 4  # tokens at the end of a text that may change with what follows
ASK_TIME = 10.0  # seconds an engine has to answer a question
Emit = Callable[[bytes, protocol.GatewayMessage], None]
Facts = dict[str, float | int | str]
Observe = Callable[[bytes, dict[str, Any]], None]


class Session:
    """One program of one connection."""

    def __init__(
        self,
        connection: bytes,
        program: int,
        frames: ChatFrames,
        stream: bool,
        budget: Budget | None = None,
        detail: bool = False,
    ) -> None:
        self.connection = connection
        self.detail = detail
        self.program = program
        self.stream = stream
        self.machine = machine.Program(frames)
        self.parents: dict[int, int] = {}  # branch -> the one it was forked from
        self.transcripts: dict[int, Transcript] = {0: Transcript()}
        self.samples: dict[int, list[Sample]] = {}  # call -> its samples
        self.early: dict[int, int] = {}  # branch -> segments that it had when they were computed early
        self.opened = time.monotonic()
        self.given: dict[int, bytes] = {}  # node -> ids of an answer that came with it
        self.spending = Spending(budget) if budget is not None else None
        self.clock: asyncio.TimerHandle | None = None

    def transcript(self, number: int) -> Transcript:
        """The branch's transcript; a fork's begins as its parent's was at the fork."""
        found = self.transcripts.get(number)
        if found is None:
            inherited = self.machine.branch(number).inherited
            found = self.transcripts[number] = self.transcript(self.parents[number]).fork(inherited)
        return found


class Host:
    """All programs of one gateway. Every public method returns at once; results leave through `emit`.

    observe(connection, meta): hears of every sample of a gen, and of every select.
    """

    def __init__(self, texts: Texts, frames: ChatFrames, *, eos: Sequence[int], max_branches: int, emit: Emit) -> None:
        self._texts = texts
        self._frames = frames
        self._eos = eos
        self._max_branches = max_branches
        self._emit = emit
        self._to_engine: Callable[[wire.ToEngine], None] = lambda message: None
        self._context = 0
        self._facts: Facts = {}
        self._begun = time.monotonic()
        self._next = 1
        self._sessions: dict[tuple[bytes, int], Session] = {}
        self._under_way: dict[int, tuple[Session, Call, Sample | Selection]] = {}  # engine request -> what it is for
        self._questions: dict[int, asyncio.Future[wire.Answer]] = {}
        self.observe: Observe = lambda connection, meta: None
        self.embeds = Embeds(lambda message: self._to_engine(message))

    def attach(self, to_engine: Callable[[wire.ToEngine], None], context: int, facts: Facts | None = None) -> None:
        """The engine is ready; context in tokens. facts: what stats say of it that stays as it is."""
        self._to_engine, self._context = to_engine, context
        self._facts, self._begun = facts or {}, time.monotonic()

    # --- what connections ask

    def open(
        self, connection: bytes, program: int, stream: bool, budget: Budget | None = None, detail: bool = False
    ) -> None:
        """detail: what is streamed says the ids behind its text, and the log-probabilities asked for."""
        session = Session(connection, program, self._frames, stream, budget, detail)
        self._sessions[connection, program] = session
        if budget is not None and budget.seconds is not None:
            session.clock = asyncio.get_running_loop().call_later(budget.seconds, self._over_budget, session)

    def start(self, connection: bytes, program: int, nodes: Sequence[Placed], arguments: Sequence[str]) -> None:
        """A whole program that has just been opened."""
        session = self._sessions[connection, program]
        for branch, laid in filled(nodes, arguments):
            self._note(session, branch, laid)
        self._execute(session, session.machine.settle())

    def feed(self, connection: bytes, program: int, branch: int, nodes: tuple[Laid, ...]) -> None:
        session = self._sessions.get((connection, program))
        if session is None:  # closed or cancelled while these were on their way: the credit goes back
            self._emit(connection, protocol.Credit(len(nodes)))
            return
        for laid in nodes:
            self._note(session, branch, laid)
        self._execute(session, session.machine.settle())

    def _note(self, session: Session, branch: int, laid: Laid) -> None:
        """Queue a node, and fail it when it can be seen by now that it must not run."""
        session.machine.feed(branch, (laid,))
        if isinstance(laid.node, (Gen, Select)) and laid.node.given is not None and laid.node.given.ids:
            session.given[laid.id] = laid.node.given.ids
        wrong = self._wrong(session, branch, laid.node)
        if wrong is not None:
            session.machine.fail_node(branch, laid.id, *wrong)

    def _wrong(self, session: Session, branch: int, node: Any) -> tuple[str, str] | None:
        """Code and message for a node that this runtime does not execute."""
        match node:
            case Gen(constraint=constraint) if constraint is not None:
                try:
                    check(constraint)
                except ConstraintError as error:
                    return error.code, str(error)
            case Select(choices=choices) if not all(choices) or not choices or len(set(choices)) < len(choices):
                return "bad_choices", f"the choices of a select must be texts that differ, got {list(choices)!r}"
            case Fill():
                return "bad_message", "a hole for an argument stands outside a template"
            case Image() | Video():
                return "no_pictures", "this model reads text only"
            case Fork(children):
                session.parents.update(dict.fromkeys(children, branch))
                if len(session.parents) >= self._max_branches:
                    text = f"{len(session.parents) + 1} branches; this runtime allows {self._max_branches} a program"
                    return "too_many_branches", text
        return None

    def cancel(self, connection: bytes, program: int, branch: int | None) -> None:
        session = self._sessions.get((connection, program))
        if session is not None:
            self._stop(session, session.machine.cancel(branch))
            self._advance(session)

    def close(self, connection: bytes, program: int) -> None:
        session = self._sessions.pop((connection, program), None)
        if session is not None:
            self._end(session)
            self._credit(session, session.machine.advance())

    def drop(self, connection: bytes) -> None:
        """The connection has gone: all its programs end, all their leases are freed."""
        for key in [key for key in self._sessions if key[0] == connection]:
            self._end(self._sessions.pop(key))

    def _end(self, session: Session) -> None:
        if session.clock is not None:
            session.clock.cancel()
        self._stop(session, session.machine.close())

    def _over_budget(self, session: Session) -> None:
        """A program's time may be up, or its tokens used: then whatever is not done of it fails."""
        if session.spending is not None and (why := session.spending.exceeded()):
            self._stop(session, session.machine.cancel(None, "budget", why))
            self._advance(session)

    async def ask(self, what: str) -> Facts:
        """stats, flush_cache or check of the engine, with the gateway's own counts. Raises ValueError, TimeoutError.

        uptime: seconds since the engine was ready."""
        if what not in ("stats", "flush_cache", "check", "ping"):
            raise ValueError(f"unknown question {what!r}; known: stats, flush_cache, check, ping, shutdown")
        own: Facts = {
            "programs": len(self._sessions),
            "requests": len(self._under_way) + len(self.embeds),
            "encoded_characters": self._texts.encoded,
        }
        if what == "ping":
            return own
        if what == "stats":
            own |= {**self._facts, "uptime": time.monotonic() - self._begun}
        return {**own, **(await self._asked(what)).value}

    async def tree(self) -> wire.Tree:
        """The engine's radix tree. Raises TimeoutError."""
        tree = (await self._asked("tree")).tree
        assert tree is not None
        return tree

    async def _asked(self, what: str) -> wire.Answer:
        number = self._number()
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self._to_engine(wire.Ask(number, what))
        try:
            return await asyncio.wait_for(answer, ASK_TIME)
        finally:
            del self._questions[number]

    async def embed(
        self, texts: Sequence[bytes], pooling: Literal["first", "last", "mean"], normalize: bool
    ) -> list[wire.Embedded]:
        """A vector for each text, ids packed as in wire.Embed. Leaving early cancels them. Raises EmbedFailed."""
        return await self.embeds.ask([wire.Embed(self._number(), ids, pooling, normalize) for ids in texts])

    # --- what the engine says

    def on_messages(self, messages: Iterable[wire.FromEngine]) -> None:
        for message in messages:
            if isinstance(message, wire.Answer):
                if message.number in self._questions and not self._questions[message.number].done():
                    self._questions[message.number].set_result(message)
                continue
            if self.embeds.hear(message):
                continue
            if isinstance(message, (wire.Tokens, wire.Finished, wire.Scored, wire.Failed)):
                self._hear(message)

    def restart(self) -> list[wire.ToEngine]:
        """The engine was lost: everything under way again, from the exact transcripts and seeds kept here."""
        again = self.embeds.restart()
        for number, (_, _, work) in self._under_way.items():
            again.append(work.restart() if isinstance(work, Sample) else work.score(number, self._texts.neutral))
        return again

    def _hear(self, event: wire.Event) -> None:
        """One program's fault in here ends its own node; the gateway and everybody else go on."""
        found = self._under_way.get(event.id)
        try:
            self._on_event(event)
        except Exception as error:
            traceback.print_exc()
            if found is not None:
                session, call, _ = found
                self._under_way.pop(event.id, None)
                session.machine.fail(call.id, "gateway_error", f"{type(error).__name__}: {error}")
                self._advance(session)

    def _on_event(self, event: wire.Event) -> None:
        found = self._under_way.get(event.id)
        if found is None:  # cancelled a moment ago
            return
        session, call, work = found
        if isinstance(event, wire.Tokens) and isinstance(work, Sample):
            self._shown(session, call, work, event)
            return
        del self._under_way[event.id]
        if isinstance(event, wire.Failed):
            self._fail(session, call, event)
        elif isinstance(event, wire.Finished) and isinstance(work, Sample):
            text = work.take(event)
            if session.spending is not None:
                session.spending.spend(len(event.ids))
            if session.stream and work.submit.stream:
                self._show(session, call, work, event, text)
            self._gen_done(session, call)
        elif isinstance(event, wire.Scored) and isinstance(work, Selection):
            self._select_done(session, call, work, event)
        self._over_budget(session)
        self._advance(session)

    # --- executing calls

    def _advance(self, session: Session) -> None:
        self._execute(session, session.machine.advance())

    def _execute(self, session: Session, outputs: Sequence[machine.Output]) -> None:
        while outputs:
            self._credit(session, outputs)
            for output in outputs:
                if isinstance(output, Call):
                    self._call(session, output)
                elif isinstance(output, Dropped):
                    self._stop(session, output.calls)
                elif isinstance(output, NodeFailed):
                    if output.code != "branch_failed":  # the client's own machine draws these consequences
                        failed = protocol.Failed(
                            session.program, output.branch, output.node, output.code, output.message
                        )
                        self._emit(session.connection, failed)
                elif output.values:
                    done = protocol.Done(
                        session.program, output.branch, output.node, output.values, output.meta, output.captures
                    )
                    self._emit(session.connection, done)
            outputs = session.machine.advance()
        self._prefill_early(session)

    def _prefill_early(self, session: Session) -> None:
        """What a branch that waits for others has as text by now is computed meanwhile, so that the tree has it then.

        The last tokens stay out, since they may become others together with the text to come.
        """
        for number in session.machine.take_blocked():
            branch, transcript = session.machine.branch(number), session.transcript(number)
            pending = transcript.pending(branch)
            if sum(len(segment.text) for segment in pending) < EARLY or session.early.get(number) == len(
                branch.segments
            ):
                continue
            session.early[number] = len(branch.segments)
            ids = [*transcript.ids, *self._texts.encode(pending)]
            ids = (ids if transcript.ids else self._texts.begin(ids))[:-SEAM][: self._context - 1]
            params = SamplingParams(max_tokens=1, temperature=0)
            for message in submits(params, None, ids, self._number(), eos=(), room=1, stream=False):
                self._to_engine(msgspec.structs.replace(message, priority=-1))

    def _credit(self, session: Session, outputs: Sequence[machine.Output]) -> None:
        executed = sum(not isinstance(output, (Call, Dropped)) for output in outputs)
        if executed:
            self._emit(session.connection, protocol.Credit(executed))

    def _call(self, session: Session, call: Call) -> None:
        admitted = call if session.spending is None else session.spending.admit(call)
        if admitted is None:
            assert session.spending is not None
            session.machine.fail(call.id, "budget", session.spending.spent())
        elif call.kind == "select":
            self._select(session, admitted)
        else:
            self._gen(session, admitted)

    def _gen(self, session: Session, call: Call) -> None:
        assert call.params is not None
        branch, transcript = session.machine.branch(call.branch), session.transcript(call.branch)
        seams.settle(transcript, branch, session.given, self._texts)
        pending = transcript.pending(branch)
        ids = self._texts.encode(pending)
        ids = ids if transcript.ids else self._texts.begin(ids)
        healed = ""
        if call.params.heal:
            ids, healed = seams.healed(ids, pending[-1] if pending else None, self._texts)
            call = (
                msgspec.structs.replace(call, constraint=seams.begun_with(healed, call.constraint)) if healed else call
            )
        if not healed:  # otherwise the seam is no boundary of ids: they are committed with the answer
            transcript.commit(ids, len(branch.segments))
            ids = []
        prompt = [*transcript.ids, *ids]
        room = self._context - len(prompt)
        if not prompt:
            text = "there is no text before this gen; append a prompt first"
            session.machine.fail(call.id, "empty_prompt", text)
        elif room < 1:
            text = f"the prompt has {len(prompt)} tokens; the context holds {self._context}"
            session.machine.fail(call.id, "context_length", f"{text} with at least one new token")
        else:
            early = call.params.n == 1 and bool(capture_names(call.constraint))  # captures are told as they close
            counted = session.spending is not None
            messages = submits(
                call.params,
                call.constraint,
                prompt,
                self._next,
                eos=self._eos,
                room=room,
                stream=session.stream or early or counted,
                skip=len(healed.encode()),
                fanout=session.machine.fanout(call.branch),
            )
            self._next += len(messages)
            began = time.monotonic() - session.opened
            session.samples[call.id] = [Sample(message, self._texts, healed, began) for message in messages]
            for sample in session.samples[call.id]:
                self._under_way[sample.submit.id] = (session, call, sample)
                self._to_engine(sample.submit)

    def _select(self, session: Session, call: Call) -> None:
        branch, transcript = session.machine.branch(call.branch), session.transcript(call.branch)
        seams.settle(transcript, branch, session.given, self._texts)
        pending = transcript.pending(branch)
        encoded = [
            self._texts.encode([*pending, Segment(text, "literal", -1, branch.role is None)]) for text in call.choices
        ]
        if not transcript.ids:
            encoded = [self._texts.begin(ids) for ids in encoded]
        if not transcript.ids and not pending:
            session.machine.fail(call.id, "empty_prompt", "there is no text before this select; append a prompt first")
            return
        selection = Selection(call.choices, call.method, transcript.ids, encoded, self._texts)
        selection.began = time.monotonic() - session.opened
        number = self._number()
        self._under_way[number] = (session, call, selection)
        self._to_engine(selection.score(number, self._texts.neutral))

    def _gen_done(self, session: Session, call: Call) -> None:
        samples = session.samples[call.id]
        if any(sample.finished is None for sample in samples):
            return
        del session.samples[call.id]
        branch, transcript = session.machine.branch(call.branch), session.transcript(call.branch)
        texts = tuple(sample.answer() for sample in samples)
        captures = samples[0].captures() if len(samples) == 1 else _by_name(sample.captures() for sample in samples)
        prompt = seams.unpack(samples[0].submit.ids)
        meta = [s.meta() | seams.reuse(branch, transcript, prompt, s.usage, self._texts) for s in samples]
        for one in meta:
            self.observe(session.connection, one)
        session.machine.reply(call.id, Reply(texts, tuple(meta), captures))
        if call.reasoning is not None:
            return  # the text that stays is another one: it becomes ids when it is needed
        kept, rest = samples[0].kept()
        tail = self._texts.encode([seams.plain(rest)]) if rest else []
        before = prompt[len(transcript.ids) :]  # of a healed seam
        transcript.commit([*before, *kept, *tail], len(branch.segments))

    def _select_done(self, session: Session, call: Call, selection: Selection, event: wire.Scored) -> None:
        index, meta = selection.decide(event)
        branch, transcript = session.machine.branch(call.branch), session.transcript(call.branch)
        prompt = [*transcript.ids, *selection.encoded[index]]
        meta |= seams.reuse(branch, transcript, prompt, event.usage, self._texts) | {"began_s": selection.began}
        self.observe(session.connection, meta)
        session.machine.reply(call.id, Reply((call.choices[index],), (meta,)))
        transcript.commit(selection.encoded[index], len(branch.segments))

    def _fail(self, session: Session, call: Call, event: wire.Failed) -> None:
        session.machine.fail(call.id, event.code, event.message)
        others = [sample.submit.id for sample in session.samples.pop(call.id, []) if sample.submit.id != event.id]
        for number in others:
            if self._under_way.pop(number, None) is not None:
                self._to_engine(wire.Cancel(number))

    def _shown(self, session: Session, call: Call, sample: Sample, event: wire.Tokens) -> None:
        """New tokens: their text for those who stream, and the captures that they close."""
        text = sample.take(event)
        if session.spending is not None:
            session.spending.spend(len(event.ids))
            self._over_budget(session)
        if session.stream:
            self._show(session, call, sample, event, text)
        for name, value in sample.closing(event).items():
            session.machine.capture(call.id, name, value)
            captured = protocol.Captured(session.program, call.branch, call.node, name, value)
            self._emit(session.connection, captured)
        if event.closed:
            self._advance(session)

    def _show(
        self, session: Session, call: Call, sample: Sample, event: wire.Tokens | wire.Finished, text: str
    ) -> None:
        meta = sample.detail(event) if session.detail and event.ids else {}
        if text or meta:
            self._emit(session.connection, protocol.Delta(session.program, call.branch, call.node, text, meta))

    def _stop(self, session: Session, calls: Sequence[int]) -> None:
        if not calls:
            return
        stopped = set(calls)
        for number, (owner, call, _) in list(self._under_way.items()):
            if owner is session and call.id in stopped:
                del self._under_way[number]
                self._to_engine(wire.Cancel(number))

    def _number(self) -> int:
        self._next += 1
        return self._next - 1


def _by_name(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Per capture the list of what each sample has; None where one has nothing."""
    every = list(samples)
    names = dict.fromkeys(name for captures in every for name in captures)
    return {name: [captures.get(name) for captures in every] for name in names}
