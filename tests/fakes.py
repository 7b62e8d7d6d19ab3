"""Neighbours with one method: a runner that executes plans on a KV cache of (token, position) pairs.

Its next token is a hash of what the row reads back through its page numbers, so a wrong page, a wrong position or a
page that was not computed gives a wrong token, and two rows that write different things to one slot are caught.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence

from branchwork.runtime.plan import Drawn, Plan, Result, Row
from branchwork.runtime.wire import TokenScore, TopToken


def _hash(ids: Sequence[int], salt: int) -> int:
    return zlib.crc32(array("q", ids).tobytes(), salt & 0xFFFFFFFF)


def fake_next(ids: Sequence[int], seed: int, vocab: int) -> int:
    """The token that follows `ids`: a function of all of them and the seed."""
    return _hash(ids, seed) % vocab


def fake_score(ids: Sequence[int], token: int, top: int, vocab: int) -> TokenScore:
    """The log-probability of `token` after `ids`, with the `top` most likely ones (made up, but fixed)."""
    best = [TopToken((_hash(ids, 1) + n) % vocab, -0.1 * (n + 1)) for n in range(top)]
    return TokenScore(token, -(_hash([*ids, token], 2) % 10_000) / 1000, tuple(best))


def fake_state(ids: Sequence[int]) -> list[float]:
    """The hidden state of the last of `ids`: a function of all of them. Sums of such are exact."""
    return [float(_hash(ids, 3 + n) % 4096 - 2048) for n in range(4)]


class FakeRunner:
    """execute(plan) -> result. `tokens`: how many were computed in all. `steps`: rows of every plan, for tests."""

    def __init__(self, pages: int, page_size: int, vocab: int) -> None:
        self.page_size = page_size
        self.vocab = vocab
        self.tokens = 0
        self.steps: list[tuple[Row, ...]] = []
        self._kv: list[tuple[int, int]] = [(-1, -1)] * (pages * page_size)

    def execute(self, plan: Plan) -> Result:
        self.steps.append(plan.rows)
        written: dict[int, tuple[int, int]] = {}
        for row in plan.rows:
            self.tokens += len(row.ids)
            for position, token in enumerate(row.ids, row.start):
                slot = self._slot(row, position)
                assert written.setdefault(slot, (token, position)) == (token, position), f"two rows fight for {slot}"
                self._kv[slot] = (token, position)
        return Result(plan.step, tuple(self._draw(row) for row in plan.rows))

    def _state(self, row: Row, seen: Sequence[int]) -> bytes:
        ends = {"": (), "first": (row.start,), "last": (len(seen) - 1,), "sum": range(row.start, len(seen))}[row.state]
        return array("d", map(sum, zip(*(fake_state(seen[: end + 1]) for end in ends), strict=True))).tobytes()

    def _slot(self, row: Row, position: int) -> int:
        return row.pages[position // self.page_size] * self.page_size + position % self.page_size

    def _draw(self, row: Row) -> Drawn:
        seen = []
        for position in range(row.start + len(row.ids)):
            token, at = self._kv[self._slot(row, position)]
            assert at == position, f"request {row.request} reads position {at} where {position} should be"
            seen.append(token)
        known = [
            fake_score(seen[: row.start + i], row.ids[i], row.score_top, self.vocab)
            for i in range(max(row.score_from, 1), len(row.ids) - row.draft)
        ]
        known += [fake_score(seen, token, row.score_top, self.vocab) for token in row.score_next]
        if row.shape is None:
            return Drawn(known=tuple(known), state=self._state(row, seen))
        assert row.position == len(seen) - row.draft, "a draw's counter is the number of known ids"
        tokens, scores = [], []
        for end in range(row.position, len(seen) + 1):
            tokens.append(fake_next(seen[:end], row.shape.seed, self.vocab))
            if row.logprobs >= 0:
                scores.append(fake_score(seen[:end], tokens[-1], row.logprobs, self.vocab))
            if end < len(seen) and tokens[-1] != seen[end]:
                break
        return Drawn(tuple(tokens), tuple(scores), tuple(known))
