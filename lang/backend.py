"""What executes a program's nodes: the Backend protocol, and LocalBackend, which runs lang.machine in this process.

Knows: nodes, calls, replies, the background loop. Must not know: sockets, tokens, the user's state object.
Any thread may open, lay, cancel and close; a sink is called on the background loop's thread and must not block.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from branchwork.lang import constraint as shape
from branchwork.lang import loop
from branchwork.lang.budget import Spending
from branchwork.lang.constraint import Capture, Constraint, Literal, Maybe, Repeat, capture_names
from branchwork.lang.errors import CapabilityError
from branchwork.lang.ir import Image, Laid, Node, Template, Video, filled
from branchwork.lang.machine import Call, Dropped, NodeDone, Program, Reply
from branchwork.lang.protocol import Budget, Captured, ChatFrames, Delta, Done, Failed
from branchwork.lang.transcript import Branch, NodeFailed

__all__ = [
    "Backend",
    "Call",
    "Chunk",
    "Closed",
    "Event",
    "LocalBackend",
    "Lost",
    "Reply",
    "ScriptedBackend",
    "Session",
    "Sink",
]


class Chunk(msgspec.Struct, frozen=True):
    """More text of the first sample of a call, as it comes."""

    text: str
    meta: dict[str, Any] = {}


class Closed(msgspec.Struct, frozen=True):
    """The value of a capture of the call is certain: a text, or a list of them inside a Repeat."""

    name: str
    value: Any


class Lost(msgspec.Struct, frozen=True):
    """Whoever executed this program is gone: everything that still waits fails with `code`."""

    code: str
    message: str


Event = Delta | Captured | Done | Failed | Lost
Sink = Callable[[Event], None]


class Session(Protocol):
    """One program on a backend."""

    def lay(self, branch: int, nodes: Sequence[Laid]) -> None:
        """Take nodes in the order of their numbers.

        May block the caller while too many are under way, but never a thread in which an event loop runs.
        """

    def start(self, template: Template, arguments: Sequence[str]) -> None:
        """Take all nodes of a template at once, with its arguments filled in. Nothing else is laid, before or later."""

    def cancel(self, branch: int | None) -> None: ...

    def close(self) -> None:
        """Stop what runs and forget the program; no event comes afterwards. Safe to call from a finalizer."""


class Backend(Protocol):
    @property
    def frames(self) -> ChatFrames: ...

    @property
    def model(self) -> Any:
        """The model's name, or its protocol.ModelInfo."""

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> Session:
        """Begin a program. Deltas are wanted only when `stream`; Done comes in any case.

        speculate: where each gen is a call that costs, one call of so many tokens may answer several gens of a turn.
        """

    def accept(self, node: Node) -> None:
        """Raises CapabilityError for a node that this backend cannot execute as it is written. Asked at each lay."""


def meant(given: Any) -> Backend | None:
    """What a user gives as backend=. Raises TypeError for an address, or for a class where its instance is meant."""
    if isinstance(given, (str, type)):
        raise TypeError(
            f"backend={given!r} is no backend; give an object such as bw.Runtime() or bw.connect('ipc:///path')"
        )
    backend: Backend | None = given
    return backend


Emit = Callable[[Chunk | Closed], None]
Execute = Callable[[Call, Branch, Emit], Awaitable[Reply]]


class CallFailed(Exception):
    """Raised by an executor: the call cannot be answered. code is short and stable, message says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class LocalBackend:
    """Runs programs in this process; `execute` answers one call. For hosted APIs and for tests."""

    def __init__(self, execute: Execute, *, model: str, frames: ChatFrames | None = None) -> None:
        self.model = model
        self.frames = frames or ChatFrames()
        self.execute = execute

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> Session:
        return _LocalSession(self.execute, self.frames, sink, stream, budget)

    def accept(self, node: Node) -> None:
        refuse_pictures(node, self.model)


class _LocalSession:
    """Everything but the four entry points runs on the background loop."""

    def __init__(
        self, execute: Execute, frames: ChatFrames, sink: Sink, stream: bool, budget: Budget | None = None
    ) -> None:
        self._execute, self._sink, self._stream = execute, sink, stream
        self._spending = Spending(budget) if budget is not None else None
        if budget is not None and budget.seconds is not None:
            loop.post(self._begin_clock, budget.seconds)
        self._program = Program(frames)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._closed = False
        self._clock: asyncio.TimerHandle | None = None

    def lay(self, branch: int, nodes: Sequence[Laid]) -> None:
        loop.post(self._feed, branch, nodes)

    def start(self, template: Template, arguments: Sequence[str]) -> None:
        loop.post(self._start, template, arguments)

    def cancel(self, branch: int | None) -> None:
        loop.post(self._cancel, branch)

    def close(self) -> None:
        loop.post(self._close)

    def _feed(self, branch: int, nodes: Sequence[Laid]) -> None:
        if self._closed:
            return
        self._program.feed(branch, nodes)
        self._pump()

    def _start(self, template: Template, arguments: Sequence[str]) -> None:
        if self._closed:
            return
        for branch, laid in filled(template.nodes, arguments):
            self._program.feed(branch, (laid,))
        self._pump()

    def _cancel(self, branch: int | None) -> None:
        self._drop(self._program.cancel(branch))
        self._pump()

    def _drop(self, calls: Sequence[int]) -> None:
        for call in calls:
            task = self._tasks.pop(call, None)
            if task is not None:
                task.cancel()

    def _begin_clock(self, seconds: float) -> None:
        self._clock = asyncio.get_running_loop().call_later(seconds, self._over_budget)

    def _over_budget(self) -> None:
        if not self._closed and self._spending is not None and (why := self._spending.exceeded()):
            self._drop(self._program.cancel(None, "budget", why))
            self._pump()

    def _close(self) -> None:
        self._closed = True
        if self._clock is not None:
            self._clock.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._program = Program()  # whoever keeps the session keeps no program

    def _pump(self) -> None:
        try:
            outputs = self._program.settle()
        except Exception as error:  # a fault of ours ends this program, and nobody waits for ever
            self._sink(Lost("executor_error", f"the program cannot go on: {type(error).__name__}: {error}"))
            self._close()
            raise
        for output in outputs if not self._closed else ():
            match output:
                case Call():
                    self._begin(output)
                case Dropped(calls):
                    self._drop(calls)
                case NodeDone(values=values) if values:
                    self._sink(Done(0, output.branch, output.node, values, output.meta, output.captures))
                case NodeFailed():
                    self._sink(Failed(0, output.branch, output.node, output.code, output.message))

    def _begin(self, call: Call) -> None:
        admitted = call if self._spending is None else self._spending.admit(call)
        if admitted is None:
            assert self._spending is not None
            self._program.fail(call.id, "budget", self._spending.spent())
            loop.post(self._pump)
        else:
            self._tasks[call.id] = asyncio.get_running_loop().create_task(self._answer(admitted))

    async def _answer(self, call: Call) -> None:
        def emit(news: Chunk | Closed) -> None:
            if call.id not in self._tasks:
                return
            if isinstance(news, Chunk):
                if self._stream:
                    self._sink(Delta(0, call.branch, call.node, news.text, news.meta))
            elif call.params.n == 1:
                self._program.capture(call.id, news.name, news.value)
                self._sink(Captured(0, call.branch, call.node, news.name, news.value))
                self._pump()

        branch = self._program.branch(call.branch)
        try:
            reply = await self._execute(call, branch, emit)
        except CallFailed as failed:
            self._program.fail(call.id, failed.code, failed.message)
        except Exception as error:
            self._program.fail(call.id, "executor_error", f"{type(error).__name__}: {error}")
        else:
            self._program.reply(call.id, reply)
            if self._spending is not None:
                self._spending.spend(sum(meta.get("completion_tokens", 0) for meta in reply.meta))
        self._tasks.pop(call.id, None)
        self._over_budget()
        self._pump()


def refuse_pictures(node: Node, model: Any) -> None:
    """Raises CapabilityError for an image or a film, which a text model cannot see."""
    if isinstance(node, (Image, Video)):
        kind = type(node).__name__.lower()
        raise CapabilityError(f"the model {getattr(model, 'name', model)!r} reads text only; it cannot see this {kind}")


Answer = str | Sequence[str] | Reply | BaseException
Script = Mapping[str, Any] | Sequence[Any] | Callable[[str, Call], Any]


class ScriptedBackend(LocalBackend):
    """Answers from a script, for tests and examples; `prompts` and `calls` record what was asked, in order.

    script: by variable name (one answer, or a list used up one by one), a list used up over all calls, or a function
    of (prompt, call), also async. An answer is a text, a list of texts (samples), a Reply, or an exception to raise;
    for a select it is a choice or its index; for a turn a dict of its captures, from which its text is put together.
    A script by variable name may name a turn's captures instead of the turn. Constraints are not enforced.
    delay: seconds before each piece of an answer; a piece is a word.
    """

    def __init__(
        self, script: Script = (), *, model: str = "scripted", frames: ChatFrames | None = None, delay: float = 0.0
    ) -> None:
        super().__init__(self._perform, model=model, frames=frames)
        self.prompts: list[str] = []
        self.calls: list[Call] = []
        self.delay = delay
        self.running = 0
        self.peak = 0  # most calls that ran at the same time
        self._script = script
        self._used: dict[str, int] = {}

    async def _perform(self, call: Call, branch: Branch, emit: Emit) -> Reply:
        prompt = branch.text
        self.prompts.append(prompt)
        self.calls.append(call)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            answer = self._look_up(prompt, call)
            answer = await answer if inspect.isawaitable(answer) else answer
            reply = _as_reply(answer, call)
            for word in _words(reply.values[0]) if call.kind == "gen" else ():
                await asyncio.sleep(self.delay)
                emit(Chunk(word))
            return reply
        finally:
            self.running -= 1

    def _look_up(self, prompt: str, call: Call) -> Any:
        if callable(self._script):
            return self._script(prompt, call)
        key, answers = "", list(self._script)
        if isinstance(self._script, Mapping):
            key, names = call.name or "", capture_names(call.constraint)
            if key not in self._script and names and not set(names).isdisjoint(self._script):
                return {name: self._script[name] for name in names if name in self._script}
            if key not in self._script:
                raise CallFailed("no_answer", f"the script has no answer for {key!r}; it has {sorted(self._script)}")
            answers = self._script[key]
            if not isinstance(answers, list):
                return answers(prompt, call) if callable(answers) else answers
        used = self._used.get(key, 0)
        if used >= len(answers):
            raise CallFailed("no_answer", f"the script's {len(answers)} answers for {key or 'calls'} are used up")
        self._used[key] = used + 1
        return answers[used]


def _as_reply(answer: Any, call: Call) -> Reply:
    if isinstance(answer, BaseException):
        raise answer
    if isinstance(answer, Reply):
        return answer
    if call.constraint is not None and capture_names(call.constraint):
        samples = [answer] * call.params.n if isinstance(answer, Mapping) else list(answer)
        return _captured(call.constraint, samples)
    if call.kind == "select":
        answer = call.choices[answer] if isinstance(answer, int) else answer
        if answer not in call.choices:
            raise CallFailed("no_answer", f"the script answers {answer!r}, which is none of {call.choices}")
    values = (answer,) * call.params.n if isinstance(answer, str) else tuple(answer)
    return Reply(values, tuple({"completion_tokens": len(_words(value))} for value in values))


def _captured(constraint: Constraint, samples: Sequence[Any]) -> Reply:
    """samples: of each one its captures by name."""
    if not all(isinstance(sample, Mapping) for sample in samples):
        names = ", ".join(capture_names(constraint))
        raise CallFailed("no_answer", f"answer a turn with a dict of its captures ({names}), or with a Reply")
    texts = tuple(composed(constraint, sample) for sample in samples)
    captures = {name: [sample.get(name) for sample in samples] for name in capture_names(constraint)}
    if len(samples) == 1:
        captures = {name: values[0] for name, values in captures.items()}
    return Reply(texts, tuple({"completion_tokens": len(_words(text))} for text in texts), captures)


def composed(constraint: Constraint, captures: Mapping[str, Any], turn: int = 0) -> str:
    """The text that captures belong to, when literals are all there is besides them. turn: of the innermost repeat.

    Raises CallFailed where the captures do not tell the text.
    """
    match constraint:
        case Literal(text):
            return text
        case Capture(name):
            value = captures.get(name)
            value = value[turn] if isinstance(value, list) else value
            if not isinstance(value, str):
                raise CallFailed("no_answer", f"the script has no text for {name!r}; it has {sorted(captures)}")
            return value
        case shape.Sequence(parts):
            return "".join(composed(part, captures, turn) for part in parts)
        case Maybe(part):
            given = any(captures.get(name) is not None for name in capture_names(part))
            return composed(part, captures, turn) if given else ""
        case Repeat(part, separator=separator):
            times = max((len(captures.get(name) or []) for name in capture_names(part)), default=0)
            return separator.join(composed(part, captures, index) for index in range(times))
    raise CallFailed("no_answer", f"the script cannot tell the text of a {type(constraint).__name__} outside a capture")


def _words(text: str) -> list[str]:
    """Words with the spaces before them; joined they are the text."""
    words: list[str] = []
    for character in text:
        if not words or (character == " " and not words[-1].endswith(" ")):
            words.append("")
        words[-1] += character
    return words
