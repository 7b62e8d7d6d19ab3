"""Where text meets ids: what is pending of a branch becomes ids, answers of earlier runs keep theirs, seams are healed.

Knows: segments, transcripts, ids and their bytes. Must not know: requests, connections, sockets.

    healing a seam    [ ... "The c" ]  gen          the last token goes back: the answer has to begin with its bytes
                      [ ... "The" ][" c" + answer ]  and those bytes are no part of the answer's text
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from branchwork.lang.constraint import Constraint, Free, Literal
from branchwork.lang.constraint import Sequence as InOrder
from branchwork.lang.transcript import Branch, Segment
from branchwork.runtime.programs.branches import Transcript
from branchwork.runtime.programs.gens import Texts
from branchwork.runtime.wire import Usage

HEAL = 4  # tokens at most that go back at a seam


def settle(transcript: Transcript, branch: Branch, given: Mapping[int, bytes], texts: Texts) -> None:
    """Commit what is pending up to the last answer that came with ids of its own. given: those ids, by node."""
    for index in range(transcript.segments, len(branch.segments)):
        segment = branch.segments[index]
        packed = given.get(segment.node) if segment.origin in ("gen", "select") else None
        if packed is None:
            continue
        before = texts.encode(branch.segments[transcript.segments : index])
        transcript.commit(before if transcript.ids else texts.begin(before), index)
        transcript.commit(exact(segment, packed, texts), index + 1)


def exact(segment: Segment, packed: bytes, texts: Texts) -> list[int]:
    """The ids of a segment's text: as many of the given ones as spell its beginning, the rest encoded."""
    ids = unpack(packed)
    text, length, kept = segment.text.encode(), 0, 0
    for token in ids:
        piece = texts.token_bytes[token] if 0 <= token < len(texts.token_bytes) else b""
        if not piece or text[length : length + len(piece)] != piece:
            break
        length += len(piece)
        kept += 1
    rest = text[length:].decode("utf-8", "replace")
    return [*ids[:kept], *(texts.encode([plain(rest)]) if rest else [])]


def healed(ids: list[int], last: Segment | None, texts: Texts) -> tuple[list[int], str]:
    """The ids without the end of the last literal that goes back to be drawn anew, and that end's text ("" for none).

    As many tokens go back, up to HEAL, as some token of the vocabulary begins with and goes on after: the author may
    have stopped in the middle of it. None do when nothing longer begins like the last one.
    """
    if last is None or last.origin != "literal":
        return ids, ""
    literal, best = last.text.encode(), (ids, "")
    for count in range(1, min(HEAL, len(ids)) + 1):
        data = b"".join(texts.token_bytes[token] for token in ids[-count:])
        if not data or not literal.endswith(data):
            break
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        if texts.extends(text):
            best = (ids[:-count], text)
    return best


def begun_with(text: str, constraint: Constraint | None) -> Constraint:
    """The constraint of an answer that first repeats `text`."""
    return InOrder((Literal(text), constraint if constraint is not None else Free()))


def plain(text: str) -> Segment:
    """Text in which the names of special tokens mean nothing."""
    return Segment(text, "literal", -1, False)


def unpack(packed: bytes) -> list[int]:
    ids = array("i")
    ids.frombytes(packed[: len(packed) // 4 * 4])
    return ids.tolist()


def reuse(
    branch: Branch, transcript: Transcript, prompt: Sequence[int], usage: Usage, texts: Texts
) -> dict[str, str | int]:
    """How far the text before a call was in the tree: characters reused, the text of the first token that was not."""
    segments, ids = transcript.mark(usage.reused)
    inside = texts.text_of(prompt[ids : usage.reused])
    return {
        "reused_chars": sum(len(segment.text) for segment in branch.segments[:segments]) + len(inside),
        "diverged_text": texts.text_of(prompt[usage.diverged : usage.diverged + 1]),
    }
