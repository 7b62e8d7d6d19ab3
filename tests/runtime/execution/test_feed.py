"""A step's arrays arrive whole and aligned, and no buffer is written to while its last copy may be under way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from branchwork.runtime.execution.driver import PlainDriver
from branchwork.runtime.execution.feed import ALIGNED, BUFFERS, Feed, Local, Part, layout

CPU = torch.device("cpu")
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def parts_of(shape: list[tuple[bool, bool, list[int]]]) -> list[Part]:
    """(wide, in pieces, lengths) each; every number occurs once."""
    made: list[Part] = []
    begin = 1
    for wide, pieces, sizes in shape:
        ends = np.cumsum([begin, *sizes])
        arrays = [np.arange(a, b, dtype=np.int64 if wide else np.int32) for a, b in pairwise(ends)]
        begin = int(ends[-1])
        made.append(arrays if pieces else np.concatenate(arrays))
    return made


@settings(deadline=None, max_examples=60)
@given(shape=st.lists(st.tuples(st.booleans(), st.booleans(), lengths), min_size=1, max_size=9))
def test_arrays_arrive_as_they_were_sent(shape: list[tuple[bool, bool, list[int]]]) -> None:
    parts, feed = parts_of(shape), Feed(PlainDriver(), CPU)
    static = torch.zeros(1 << 14, dtype=torch.uint8)
    for sent in (feed.send(parts), feed.send(parts, static), Local().send(parts)):
        assert len(sent) == len(parts)
        for part, tensor in zip(parts, sent, strict=True):
            whole = part if isinstance(part, np.ndarray) else np.concatenate(part)
            assert torch.equal(tensor, torch.from_numpy(whole)) and tensor.dtype == torch.from_numpy(whole).dtype
    assert all(place.begin % ALIGNED == 0 for place in layout(parts))


def test_what_comes_before_an_array_alone_decides_where_it_lies() -> None:
    short, long = ([np.zeros(5, np.int32), np.zeros(3), np.zeros(n, np.int32), np.zeros(2)] for n in (1, 900))
    assert [place.begin for place in layout(short)[:3]] == [place.begin for place in layout(long)[:3]]


class Watched(PlainDriver):
    """Notes which buffers are made, and which marks are waited for."""

    def __init__(self) -> None:
        self.made = 0
        self.marks = 0
        self.waited: list[int] = []

    def buffer(self, size: int) -> Tensor:
        """See Driver."""
        self.made += 1
        return super().buffer(size)

    def mark(self) -> Callable[[], None]:
        """See Driver."""
        self.marks += 1
        number = self.marks
        return lambda: self.waited.append(number)


def test_a_buffer_is_written_again_when_its_copy_is_done_and_not_before() -> None:
    driver = Watched()
    feed, parts = Feed(driver, CPU), [np.arange(10, dtype=np.int32)]
    for n in range(2 * BUFFERS):
        assert driver.waited == list(range(1, max(0, n - BUFFERS) + 1))
        feed.send(parts)
    assert driver.made == BUFFERS and driver.marks == 2 * BUFFERS


def test_a_larger_step_gets_a_larger_buffer_after_the_last_ones_copy() -> None:
    driver = Watched()
    feed = Feed(driver, CPU)
    for size in (10, 10, 10, 1 << 20):
        numbers = np.arange(size, dtype=np.int32)
        assert torch.equal(feed.send([numbers])[0], torch.from_numpy(numbers))
    assert driver.waited == [1] and driver.made == BUFFERS + 1


def test_what_was_sent_before_stays_as_it_was() -> None:
    feed = Feed(PlainDriver(), CPU)
    kept = [feed.send([np.full(9, n, np.int64)])[0] for n in range(8)]
    assert all(tensor.eq(n).all() for n, tensor in enumerate(kept))
