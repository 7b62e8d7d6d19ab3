"""The number of threads is the one whose steps were fastest, and no more than pay."""

from __future__ import annotations

import pytest

from branchwork.runtime.execution.threads import candidates, pick_threads


class Machine:
    """Steps whose seconds are given per (threads, tokens)."""

    def __init__(self, seconds: dict[tuple[int, int], float]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.threads = 0
        self.steps = 0

    def use(self, threads: int) -> None:
        self.threads = threads

    def forward(self, tokens: int) -> None:
        self.now += self.seconds[self.threads, tokens]
        self.steps += 1

    def clock(self) -> float:
        return self.now

    def picked(self, cores: int) -> tuple[int, str]:
        found = pick_threads(cores, 64, self.use, self.forward, self.clock)
        assert self.threads == found[0]
        return found


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (16, [1, 8, 16])])
def test_one_half_and_all_cores_are_tried(cores: int, counts: list[int]) -> None:
    assert candidates(cores) == counts


def test_a_small_model_gets_one_thread_and_a_large_one_all() -> None:
    small = {(1, 1): 1e-4, (2, 1): 1.2e-4, (1, 64): 4e-3, (2, 64): 3.8e-3}
    assert Machine(small).picked(2)[0] == 1
    large = {(1, 1): 0.035, (2, 1): 0.03, (1, 64): 0.3, (2, 64): 0.16}
    assert Machine(large).picked(2)[0] == 2


def test_a_gain_within_the_noise_is_none() -> None:
    assert Machine({(1, 1): 0.01, (2, 1): 0.0098, (1, 64): 0.1, (2, 64): 0.098}).picked(2)[0] == 1


def test_more_cores_than_the_memory_can_feed_stay_idle() -> None:
    seconds = {(1, 1): 0.03, (8, 1): 0.01, (16, 1): 0.014, (1, 64): 0.3, (8, 64): 0.05, (16, 64): 0.045}
    assert Machine(seconds).picked(16)[0] == 8


def test_a_model_too_large_to_time_takes_every_core_after_two_steps() -> None:
    machine = Machine({(4, 1): 0.9})
    threads, note = machine.picked(4)
    assert threads == 4 and machine.steps == 2 and "0.90 s" in note


def test_measuring_ends_when_its_time_is_spent() -> None:
    quick = Machine({(1, 1): 1e-4, (2, 1): 1e-4, (1, 64): 4e-3, (2, 64): 4e-3})
    slow = Machine({(1, 1): 0.1, (2, 1): 0.1, (1, 64): 0.5, (2, 64): 0.5})
    quick.picked(2)
    slow.picked(2)
    assert quick.steps == 3 + 3 * 6 and slow.steps == 3 + 4


def test_the_note_says_what_was_measured() -> None:
    small = Machine({(1, 1): 1e-4, (2, 1): 1.2e-4, (1, 64): 4e-3, (2, 64): 3.8e-3}).picked(2)[1]
    assert small == (
        "threads: 1 of 2 cores, measured for steps of 1 and 64 tokens (1: 0.10 and 4.00 ms; 2: 0.12 and 3.80 ms)"
    )
    large = Machine({(1, 1): 0.035, (2, 1): 0.03, (1, 64): 0.3, (2, 64): 0.16}).picked(2)[1]
    assert large == "threads: 2 of 2 cores, measured for steps of one token (1: 35.00 ms; 2: 30.00 ms)"
