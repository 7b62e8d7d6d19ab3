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
    """Commit what is pending up to the last answer that was given, as it was when it was generated or chosen.

    given: the ids of generated answers, by node. A choice has none: it was encoded together with the text before it.
    """
    for index in range(transcript.segments, len(branch.segments)):
        segment = branch.segments[index]
        if branch.stamps[index] != segment.node:  # the text of a child: encoded as any text
            continue
        if segment.origin == "select":
            ids = texts.encode(branch.segments[transcript.segments : index + 1])
            transcript.commit(ids if transcript.ids else texts.begin(ids), index + 1)
        elif segment.origin == "gen" and segment.node in given:
            before = texts.encode(branch.segments[transcript.segments : index])
            back, ids = exact(before, segment, unpack(given[segment.node]), texts)
            before = before if transcript.ids else texts.begin(before)
            if back:  # a healed seam is no boundary of ids
                transcript.commit([*before[:-back], *ids], index + 1)
            else:
                transcript.commit(before, index)
                transcript.commit(ids, index + 1)


def exact(before: list[int], segment: Segment, ids: list[int], texts: Texts) -> tuple[int, list[int]]:
    """How many ids before a segment went back when it was healed, and the ids from there to its end.

    Those are the given ones, as far as they spell its text, and the rest encoded.
    """
    if not all(0 <= token < len(texts.token_bytes) for token in ids):
        return 0, texts.encode([plain(segment.text)])
    pieces = [texts.token_bytes[token] for token in ids]
    data = b"".join(pieces)
    for back in range(min(HEAL, len(before)) + 1 if data else 0):
        healed = b"".join(texts.token_bytes[token] for token in before[len(before) - back :])
        spelled = data[len(healed) :].decode("utf-8", "replace")
        if data.startswith(healed) and segment.text.startswith(spelled):
            rest = segment.text[len(spelled) :]
            return back, [*ids, *(texts.encode([plain(rest)]) if rest else [])]
    text, length, kept = segment.text.encode(), 0, 0
    while kept < len(ids) and pieces[kept] and text.startswith(pieces[kept], length):
        length += len(pieces[kept])
        kept += 1
    rest = text[length:].decode("utf-8", "replace")
    return 0, [*ids[:kept], *(texts.encode([plain(rest)]) if rest else [])]


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
