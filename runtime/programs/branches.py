"""Token-exact transcripts: what every branch of a program is in ids.

Knows: segments of lang.machine branches, ids, where a fork left its parent. Must not know: how text becomes ids,
sockets, scheduling.

    segments of a branch   [ literal | frame | gen | literal ... ]
    ids                    [ committed up to a segment boundary  | pending: still text, may be joined with more ]
"""

from __future__ import annotations

from bisect import bisect_right

from branchwork.lang.transcript import Branch, Segment


class Transcript:
    """The ids of one branch. Ids are only ever appended; `marks` remembers which segments they stand for."""

    __slots__ = ("_marks", "ids")

    def __init__(self, ids: list[int] | None = None, marks: list[tuple[int, int]] | None = None) -> None:
        self.ids: list[int] = ids if ids is not None else []
        self._marks: list[tuple[int, int]] = marks if marks is not None else [(0, 0)]  # (segments, ids) so far

    @property
    def segments(self) -> int:
        """How many segments of the branch the ids stand for."""
        return self._marks[-1][0]

    def pending(self, branch: Branch) -> list[Segment]:
        """Segments that are text but not ids yet."""
        return branch.segments[self.segments :]

    def commit(self, ids: list[int], segments: int) -> None:
        """Append the ids of everything up to the first `segments` segments of the branch."""
        self.ids += ids
        self._marks.append((segments, len(self.ids)))

    def mark(self, ids: int) -> tuple[int, int]:
        """The last boundary within the first `ids` ids, as (segments, ids)."""
        return self._marks[bisect_right(self._marks, ids, key=lambda mark: mark[1]) - 1]

    def fork(self, segments: int) -> Transcript:
        """A copy as it was when the branch had `segments` segments."""
        place = bisect_right(self._marks, segments, key=lambda mark: mark[0]) - 1
        marks = self._marks[: place + 1]
        return Transcript(self.ids[: marks[-1][1]], marks)
