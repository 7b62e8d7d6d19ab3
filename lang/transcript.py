"""The transcript of one branch: segments of text with their origin, role frames, variables.

Knows: text, chat frames. Must not know: nodes, who waits for what, tokens, backends.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import msgspec

from branchwork.lang.ir import Image, Video
from branchwork.lang.protocol import ChatFrames, Frame

Value = Any  # str, or a list of values (n samples, variables gathered by a join)


class Segment(msgspec.Struct, frozen=True):
    """A piece of a transcript, made by node `node` (which may be another branch's, after a fork or a join).

    origin: literal | frame | gen | select | image (no text: see Branch.pictures).
    special: the text may contain the model's special tokens (frames, and
    literals outside any role); never for text inside a role, for generated text, or for the text of a Ref.
    ids: the tokens it was given as (int32, packed); empty for text that has none yet.
    """

    text: str
    origin: str
    node: int
    special: bool
    ids: bytes = b""


class Turn(msgspec.Struct, frozen=True):
    """One role's message: segments first .. last-1 of its branch, frames excluded; last is None while it is open."""

    role: str
    first: int
    last: int | None = None


class NodeFailed(msgspec.Struct, frozen=True):
    """A node will never be executed. cause: the node where it began (itself unless code is branch_failed)."""

    branch: int
    node: int
    code: str
    message: str
    cause: int


class Refusal(Exception):
    """A node cannot be executed; cause is another node when that one failed first."""

    def __init__(self, code: str, message: str, cause: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.cause = code, message, cause


def because(failure: NodeFailed) -> Refusal:
    """Why what depends on a failed node cannot be executed either."""
    if failure.code in ("branch_failed", "budget"):
        return Refusal(failure.code, failure.message, failure.cause)
    first = f"node {failure.node} of branch {failure.branch} failed first: {failure.code}: {failure.message}"
    return Refusal("branch_failed", first, failure.cause)


def frame_of(frames: ChatFrames, role: str) -> Frame:
    """The template's frame of `role`; plain "ROLE: text" lines for a role that it does not have.

    The plain assistant frame has no trailing space: what follows is generated, and words begin with their space.
    """
    return frames.roles.get(role) or Frame(f"{role.upper()}:" if role == "assistant" else f"{role.upper()}: ", "\n")


@dataclass(slots=True)
class Branch:
    """A branch as others may read it. inherited: how many of its segments came from its parent.

    stamps: for every segment the node of this branch that put it here, ascending (of a child's text: the join).
    """

    id: int
    role: str | None = None
    segments: list[Segment] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    variables: dict[str, Value] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    forks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # (segments before it, children)
    inherited: int = 0
    failure: NodeFailed | None = None
    pictures: dict[int, Image | Video] = field(default_factory=dict)  # by node

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    def messages(self) -> list[dict[str, str]]:
        """Finished turns in the form of chat APIs, their text stripped on the left."""
        return [
            {"role": turn.role, "content": "".join(s.text for s in self.segments[turn.first : turn.last]).lstrip()}
            for turn in self.turns
            if turn.last is not None
        ]

    def append(self, text: str, origin: str, node: int, *, special: bool = False, ids: bytes = b"") -> None:
        if text or ids:
            self.segments.append(Segment(text, origin, node, special, ids))
            self.stamps.append(node)

    def picture(self, picture: Image | Video, node: int) -> None:
        self.segments.append(Segment("", "image", node, False))
        self.stamps.append(node)
        self.pictures[node] = picture

    def concatenate(self, child: Branch, node: int) -> None:
        """Append the text that a child got of its own from nodes before `node`."""
        new = child.segments[child.inherited : bisect_left(child.stamps, node)]
        self.segments += new
        self.stamps += [node] * len(new)
        self.pictures |= child.pictures

    def begin_role(self, frames: ChatFrames, role: str, node: int) -> None:
        """Append the role's opening frame, before the first message also the template's start and default system."""
        if self.role is not None:
            raise Refusal("nested_role", f"role {role!r} begins inside role {self.role!r}; end that one first")
        if not self.turns:
            start = "" if self.segments else frames.start
            self.append(start + (frames.default_system if role != "system" else ""), "frame", node, special=True)
        self.append(frame_of(frames, role).begin, "frame", node, special=True)
        self.role = role
        self.turns.append(Turn(role, len(self.segments)))

    def end_role(self, frames: ChatFrames, role: str, node: int) -> None:
        if self.role != role:
            raise Refusal("role_mismatch", f"role {role!r} ends, but the open role is {self.role!r}")
        self.turns[-1] = Turn(role, self.turns[-1].first, len(self.segments))
        self.role = None
        self.append(frame_of(frames, role).end, "frame", node, special=True)

    def copy(self, parent: Branch) -> None:
        """Become a copy of `parent`: its segments, variables, role and turns."""
        self.role, self.inherited = parent.role, len(parent.segments)
        self.segments, self.stamps = list(parent.segments), list(parent.stamps)
        self.variables = dict(parent.variables)
        self.turns = list(parent.turns)
        self.pictures = dict(parent.pictures)
