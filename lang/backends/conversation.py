"""A branch as the messages of a chat API.

Knows: turns, segments, pictures. Must not know: any API's spelling of a message.
"""

from __future__ import annotations

from dataclasses import dataclass

from branchwork.lang.backend import CallFailed
from branchwork.lang.ir import Image, Video
from branchwork.lang.transcript import Branch, Turn


@dataclass(frozen=True)
class Message:
    """One turn: texts and pictures in the order they were written."""

    role: str
    parts: tuple[str | Image | Video, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


def conversation(branch: Branch, who: str) -> tuple[tuple[Message, ...], str]:
    """The finished turns, and the text so far of the assistant's turn that is to be written.

    Raises CallFailed (unsupported) where a chat API has no way to say it: text outside turns, a picture in a turn
    that is not the user's, an answer outside the assistant's turn.
    """
    _refuse_loose_text(branch, who)
    if branch.role != "assistant":
        where = "outside any role" if branch.role is None else f"in a {branch.role} message"
        raise CallFailed(
            "unsupported",
            f"{who} writes assistant messages only, and this gen stands {where}; put it into assistant(...)",
        )
    messages = [_message(branch, turn, who) for turn in branch.turns]
    if len(messages) == 1:
        raise CallFailed("unsupported", f"{who} answers messages, and there is none yet; begin with user(...)")
    return tuple(messages[:-1]), messages[-1].text


def _refuse_loose_text(branch: Branch, who: str) -> None:
    """Blank text between turns, which lays out a transcript, says nothing to a model and is let through."""
    inside = {
        i for turn in branch.turns for i in range(turn.first, len(branch.segments) if turn.last is None else turn.last)
    }
    for index, segment in enumerate(branch.segments):
        loose = index not in inside and segment.origin != "frame"
        if loose and (segment.text.strip() or segment.origin == "image"):
            raise CallFailed(
                "unsupported",
                f"{who} takes messages, and {segment.text[:60] or 'a picture'!r} stands outside any; "
                "put it into system(...), user(...) or assistant(...)",
            )


def _message(branch: Branch, turn: Turn, who: str) -> Message:
    parts: list[str | Image | Video] = []
    for segment in branch.segments[turn.first : turn.last]:
        if segment.origin == "image":
            if turn.role != "user":
                raise CallFailed(
                    "unsupported", f"{who} sees pictures in the user's messages only, not the {turn.role}'s"
                )
            parts.append(branch.pictures[segment.node])
        elif parts and isinstance(parts[-1], str):
            parts[-1] += segment.text
        elif segment.text:
            parts.append(segment.text)
    return Message(turn.role, tuple(parts))
