"""One API call for several gens of a turn: what lies ahead on a branch, and whose text is which in the answer.

Knows: nodes as they are laid, texts, stops. Must not know: APIs, requests, how a call is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from branchwork.lang.backend import CallFailed, Session
from branchwork.lang.calls import Call
from branchwork.lang.ir import Gen, Laid, ScopeBegin, ScopeEnd, SetVar, Template, Text, filled
from branchwork.lang.params import SamplingParams

TRIES = 3  # calls for one turn before a mismatch is an error
SHOWN = 120  # characters of a text in a message


@dataclass(frozen=True)
class Hole:
    """A gen in a merged call: where its text goes, and what ends it."""

    node: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """The text of one gen. matched: the stop that ended it."""

    text: str
    finish_reason: str
    matched: str | None = None


@dataclass(frozen=True)
class Run:
    """What one call may answer: literals and gens in order, beginning with a gen. tokens: of the call."""

    parts: tuple[str | Hole, ...]
    tokens: int

    @property
    def several(self) -> bool:
        return len(self.parts) > 1

    def after(self, literal: str) -> Run:
        """The same with a text first, which the model has to write too."""
        return replace(self, parts=(literal, *self.parts)) if literal else self


class Able(Protocol):
    @property
    def who(self) -> str: ...

    @property
    def continues(self) -> bool: ...


def match(parts: Sequence[str | Hole], text: str, finish_reason: str) -> tuple[dict[int, Piece], str | None]:
    """Take a text apart: pieces by node as far as it fits, and what does not fit, None when all of it does.

    A gen ends where its first stop begins, without one where the next literal does; the last one takes the rest.
    The literal after a gen begins at the stop, or right after it.
    """
    pieces: dict[int, Piece] = {}
    rest = text
    for index, part in enumerate(parts):
        if isinstance(part, str):
            if index == 0:
                if not rest.startswith(part):
                    return pieces, _missed(part, rest, finish_reason)
                rest = rest[len(part) :]
            continue  # any other literal goes with the gen before it
        literal = parts[index + 1] if index + 1 < len(parts) else None
        literal = literal if isinstance(literal, str) else ""
        last = index + 1 == len(parts)
        stop = _first(rest, part.stop)
        if last:
            pieces[part.node] = Piece(rest, finish_reason) if stop is None else _cut(rest, stop)
            break
        if part.stop and stop is None:
            return pieces, _missed(" or ".join(map(repr, part.stop)), rest, finish_reason, quoted=True)
        if stop is None and literal not in rest:
            return pieces, _missed(literal, rest, finish_reason)
        piece = _cut(rest, stop or literal)
        ended = rest[len(piece.text) :]
        rest = ended
        if stop is not None and not (literal and ended.startswith(literal)):
            rest = ended[len(stop) :]
        if not rest.startswith(literal):
            return pieces, _missed(literal, ended, finish_reason)
        pieces[part.node] = replace(piece, matched=stop)
        rest = rest[len(literal) :]
    return pieces, None


def _first(text: str, stops: Sequence[str]) -> str | None:
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    return min(found)[2] if found else None


def _cut(text: str, stop: str) -> Piece:
    return Piece(text[: text.index(stop)], "stop", stop)


def _missed(expected: str, got: str, finish_reason: str, quoted: bool = False) -> str:
    shown = got if len(got) <= SHOWN else got[:SHOWN] + "..."
    return f"expected {expected if quoted else repr(expected)}, got {shown!r} (finish_reason: {finish_reason})"


class Ahead:
    """What one program has laid and not executed, as far as merged calls need it, and what they have answered ahead.

    Only what was laid in one go is merged: what may be laid later is not known when a call is made.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._laid: dict[int, tuple[Sequence[Laid], int]] = {}  # by gen: the nodes laid with it, its index among them
        self._pieces: dict[int, Piece] = {}

    def noting(self, session: Session) -> Session:
        return _NotingSession(session, self)

    def note(self, nodes: Sequence[Laid]) -> None:
        self._laid.update({laid.id: (nodes, i) for i, laid in enumerate(nodes) if isinstance(laid.node, Gen)})

    def keep(self, pieces: Mapping[int, Piece]) -> None:
        self._pieces.update(pieces)

    def take(self, node: int) -> Piece | None:
        """The text of a gen that an earlier call has answered."""
        return self._pieces.pop(node, None)

    def run(self, call: Call, able: Able) -> Run | None:
        """What may be answered with this call; None when the call has to stand alone.

        Raises CallFailed (unsupported) for a gen that cannot be part of it, when the API could not go on to it later.
        """
        nodes, index = self._laid.pop(call.node)
        gen = nodes[index].node
        assert isinstance(gen, Gen)
        asked = gen.params or SamplingParams()
        if _alone(gen, asked):
            return None
        # a budget that caps the tokens of this gen caps those of the whole call
        capped = call.params.max_tokens < asked.max_tokens
        tokens = min(self._tokens, call.params.max_tokens) if capped else self._tokens
        parts: list[str | Hole] = [Hole(call.node, call.params.stop)]
        for laid in nodes[index + 1 :]:
            match laid.node:
                case Text(value):
                    before = parts[-1]
                    if isinstance(before, str):
                        parts[-1] = before + value
                    else:
                        parts.append(value)
                case ScopeBegin() | ScopeEnd() | SetVar():
                    pass
                case Gen(given=None, params=SamplingParams() as params) as later:
                    why = _alone(later, params) or _differs(asked, params) or _endless(parts)
                    if why and able.continues:
                        break
                    if why:
                        raise CallFailed(
                            "unsupported",
                            f"gen {later.name!r} cannot share one call with "
                            f"gen {gen.name!r} before it, and {able.who} cannot go on to it: {why}",
                        )
                    parts.append(Hole(laid.id, params.stop))
                case _:
                    break
        if isinstance(parts[-1], str):
            parts.pop()
        return Run(tuple(parts), tokens)


class _NotingSession:
    """A session that is noted down before it goes on."""

    def __init__(self, session: Session, ahead: Ahead) -> None:
        self._session, self._ahead = session, ahead

    def lay(self, branch: int, nodes: Sequence[Laid]) -> None:
        self._ahead.note(nodes)
        self._session.lay(branch, nodes)

    def start(self, template: Template, arguments: Sequence[str]) -> None:
        by_branch: dict[int, list[Laid]] = {}
        for branch, laid in filled(template.nodes, arguments):
            by_branch.setdefault(branch, []).append(laid)
        for nodes in by_branch.values():
            self._ahead.note(nodes)
        self._session.start(template, arguments)

    def cancel(self, branch: int | None) -> None:
        self._session.cancel(branch)

    def close(self) -> None:
        self._session.close()


def _alone(gen: Gen, params: SamplingParams) -> str:
    """Why a gen needs a call of its own."""
    if gen.constraint is not None:
        return "it has a constraint"
    if gen.reasoning is not None:
        return "its thinking is kept apart"
    if params.n > 1:
        return f"it has n={params.n}"
    return "" if params.logprobs is None else "it asks for logprobs"


def _differs(one: SamplingParams, other: SamplingParams) -> str:
    """Which parameter of two gens keeps them from sharing a call."""
    ends = {"max_tokens": 1, "min_tokens": 0, "stop": ()}
    one, other = msgspec.structs.replace(one, **ends), msgspec.structs.replace(other, **ends)
    names = [name for name in SamplingParams.__struct_fields__ if getattr(one, name) != getattr(other, name)]
    return f"their {' and '.join(names)} differ" if names else ""


def _endless(parts: Sequence[str | Hole]) -> str:
    last = parts[-1]
    return "the gen right before it has no stop" if isinstance(last, Hole) and not last.stop else ""
