"""A model's answer, as it comes, told apart: what is said, what is thought, and calls of tools piece by piece.

Knows: where calls and thinking begin and end, which text waits until that is certain. Must not know: what is inside a
call (callreading.py), tools' functions, HTTP. However a text is cut into pieces, the events are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from branchwork.lang.callreading import body
from branchwork.lang.incoming import NoCall, Source, Steps, held
from branchwork.lang.ir import Reasoning
from branchwork.lang.toolformats import Call, Format, ToolSpec

_BLANK = re.compile(r"\s+")
_CLOSES = re.compile(r"```|[^\s`]+")  # DeepSeek closes a fence, then the call


@dataclass(frozen=True, slots=True)
class Said:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the thinking, without the white space around all of it."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """Call number `index`, from 0, is of this tool."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the call's arguments; joined they are the JSON text of an object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is whole."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """What looked like a call is none; all that the model wrote of it is said instead, from the next event on.

    began: CallBegan has told of it, so it is to be forgotten. cut: the text has ended within it.
    """

    index: int
    began: bool
    cut: bool


Event = Said | Thought | CallBegan | CallArguments | CallEnded | CallBroken


class Parser:
    """Reads one answer. No text makes it raise, and none is lost: what is no call and no thinking is said as it stands.

    form: how calls are written, None where none are expected. reasoning: how thinking is marked; several ways at once
    may be. tools: those there are: their schemas tell the types of arguments where a format does not, and only their
    names make a call of a text that no marker begins. White space around calls, and around thinking, is dropped; what
    stands between a call and text after it is said.
    """

    def __init__(
        self,
        form: Format | None,
        reasoning: Reasoning | Sequence[Reasoning] | None = None,
        tools: Iterable[ToolSpec] = (),
    ) -> None:
        thinking = (reasoning,) if isinstance(reasoning, Reasoning) else tuple(reasoning or ())
        self._form, self._tools = form, {tool.name: tool for tool in tools}
        self._source, self._events = Source(), list[Event]()
        self._openers: dict[str, Reasoning | Format] = {how.begin: how for how in thinking}
        if form is not None and form.opener:
            self._openers.setdefault(form.opener, form)
        longest_first = sorted(self._openers, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._gap = ""  # white space that may turn out to stand before a call
        self._fresh = True  # nothing has been said since the beginning or the thinking
        self._spoken = False  # anything has been said
        self._called = False  # a call has just ended
        self._index = 0
        self._steps = self._answer(next((how for how in thinking if how.begun), None))
        self._advance()

    def feed(self, text: str) -> list[Event]:
        """More of the answer; what is certain now."""
        self._source.feed(text)
        return self._advance()

    def finish(self) -> list[Event]:
        """The answer is over; all that was waiting. To be called once, after which nothing may come."""
        self._source.over = True
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._steps, None)
        events, self._events = merged(self._events), []
        return events

    def _answer(self, begun: Reasoning | None) -> Steps[None]:
        if begun is not None:
            yield from self._source.all(_BLANK)
            yield from self._source.take(begun.begin)
            yield from self._think(begun)
        while (found := (yield from self._say())) is not None:
            if isinstance(found, Reasoning):
                if self._spoken:
                    self._out(self._gap)
                self._gap = ""
                yield from self._think(found)
            else:
                yield from self._calls(found)

    def _out(self, text: str) -> None:
        if text:
            self._events.append(Said(text))
            self._spoken = True

    def _say(self) -> Steps[Reasoning | Format | None]:
        """Say text up to what begins thinking or calls, and tell which; None at the end of all."""
        source, form = self._source, self._form
        if self._fresh and form is not None and form.bare:
            self._gap += yield from source.all(_BLANK)
            if (yield from source.peek()) == ("[" if form.listed else "{"):
                source.mark()
                return form
        words = tuple(self._openers)
        while True:
            found = self._pattern.search(source.text, source.at)
            stop = found.start() if found else len(source.text)
            if not found and not source.over:
                stop -= held(source.text[source.at :], words)
            self._speak(source.text[source.at : stop])
            source.at = stop
            source.mark()
            if found:
                source.at = found.end()
                return self._openers[found[0]]
            if source.over:
                if not self._called:
                    self._out(self._gap)
                return None
            yield

    def _speak(self, text: str) -> None:
        """Say a text but for the white space at its end, which waits."""
        certain = text.rstrip()
        if certain:
            self._out(self._gap + certain)
            self._gap, self._fresh, self._called = "", False, False
        self._gap += text[len(certain) :]

    def _think(self, how: Reasoning) -> Steps[None]:
        """Thinking up to its end, or that of all. White space around it is held back."""
        gap = ""
        began = False

        def put(text: str) -> None:
            nonlocal gap, began
            certain = text.rstrip()
            if certain:
                self._events.append(Thought(gap + certain if began else certain.lstrip()))
                gap, began = "", True
            gap += text[len(certain) :]

        yield from self._source.until(re.compile(re.escape(how.end)), (how.end,), put)
        if not self._spoken:
            yield from self._source.all(_BLANK)
        self._fresh, self._called = not self._spoken, False

    # --- calls

    def _calls(self, form: Format) -> Steps[None]:
        """Calls in a row, from their opener on, which has been read (a bare format needs none)."""
        opener = self._source.since()
        count, call = 0, _Sink(self, form, bool(opener))
        try:
            yield from self._open(form, opener)
            while True:
                yield from self._call(form, call)
                count += 1
                self._source.mark()
                if not (yield from self._another(form)):
                    break
                call = _Sink(self, form, bool(opener))
            yield from self._close(form)
        except NoCall as error:
            self._break(call, error.cut, count, opener)

    def _open(self, form: Format, opener: str) -> Steps[None]:
        """What stands before the first call."""
        source = self._source
        if form.listed:
            yield from source.all(_BLANK)
            yield from source.need("[")
        if form.begin and form.each:
            yield from source.all(_BLANK)
            yield from source.need(form.each.strip())

    def _call(self, form: Format, call: _Sink) -> Steps[None]:
        """One call and what closes it, which may be missing at the end of all."""
        source = self._source
        yield from source.all(_BLANK)
        yield from body(source, form, call)
        for word in _CLOSES.findall(form.close):
            yield from source.all(_BLANK)
            if (yield from source.peek()):
                yield from source.need(word)
        self._events.append(CallEnded(self._index))
        self._index += 1
        self._gap, self._called, self._fresh = "", True, False

    def _another(self, form: Format) -> Steps[bool]:
        """Whether another call follows in the same section; what stands before it is read then, otherwise nothing."""
        source, between = self._source, form.between.strip()
        if not (form.begin and form.each) and not between:
            return False
        yield from source.all(_BLANK)
        begins = not between or (yield from source.take(between))
        if begins:
            yield from source.all(_BLANK)
            if form.begin and form.each:
                begins = yield from source.take(form.each.strip())
            elif form.body == "json":
                begins = (yield from source.peek()) == "{"
        if not begins:
            source.back()
        return begins

    def _close(self, form: Format) -> Steps[None]:
        """What stands after the last call, as much of it as there is."""
        source = self._source
        for word in ("]" if form.listed else "", form.end.strip()):
            source.mark()
            yield from source.all(_BLANK)
            if not word or not (yield from source.take(word)):
                source.back()
            source.mark()

    def _break(self, call: _Sink, cut: bool, count: int, opener: str) -> None:
        """No call after all: all of it is said if it is known to be one thing, otherwise its opener, and the rest is
        read again as text."""
        source = self._source
        bare = not opener and not call.began
        if not bare or count:
            self._events.append(CallBroken(self._index, call.began, cut))
        self._index += call.began
        said = source.since()
        if not (call.began or cut):
            source.back()
            said = "" if count else opener
            source.at += len(said)
        if said:
            self._out(self._gap + said)
            self._gap = ""
        self._fresh = self._called = False
        source.mark()


@dataclass
class _Sink:
    """The call under way, from its reader to the parser's events. marked: a marker began it, so any name will do."""

    parser: Parser
    form: Format
    marked: bool
    began: bool = False
    _tool: ToolSpec | None = field(default=None, repr=False)

    def begin(self, name: str) -> None:
        self._tool = self.parser._tools.get(name)
        if not name.isprintable() or not (self.marked or self._tool):
            raise NoCall
        self.began = True
        self.parser._events.append(CallBegan(self.parser._index, name))

    def put(self, arguments: str) -> None:
        self.parser._events.append(CallArguments(self.parser._index, arguments))

    def schema(self, key: str) -> Any:
        properties = self._tool.parameters.get("properties") if self._tool else None
        return properties.get(key) if isinstance(properties, dict) else None


def merged(events: Iterable[Event]) -> list[Event]:
    """Neighbours that are one thing joined."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        match last, event:
            case (Said(before), Said(text)):
                found[-1] = Said(before + text)
            case (Thought(before), Thought(text)):
                found[-1] = Thought(before + text)
            case (CallArguments(index, before), CallArguments(other, text)) if index == other:
                found[-1] = CallArguments(index, before + text)
            case _:
                found.append(event)
    return found


class Answer(NamedTuple):
    """A whole answer. calls: those that are whole. broken: there was one that is none; cut: the text ended within."""

    said: str
    thought: str
    calls: tuple[Call, ...]
    broken: bool
    cut: bool


def gathered(events: Iterable[Event]) -> Answer:
    """The events of a whole answer as one value."""
    said, thought, calls = [], [], dict[int, list[str]]()
    broken = cut = False
    for event in events:
        match event:
            case Said(text):
                said.append(text)
            case Thought(text):
                thought.append(text)
            case CallBegan(index, name):
                calls[index] = [name]
            case CallArguments(index, text):
                calls[index].append(text)
            case CallBroken(index, began, cut):
                broken = True
                if began:
                    del calls[index]
    whole = tuple(Call(name, "".join(arguments)) for name, *arguments in calls.values())
    return Answer("".join(said), "".join(thought), whole, broken, cut)
