"""How many CPU threads a model's steps want on this machine, found by timing them at the start.

Knows: seconds. Must not know: models, kernels, how a step is run or threads are set.
"""

from __future__ import annotations

from collections.abc import Callable

ROUNDS = 3
SECONDS = 0.1  # no further round begins when so many are spent
LARGE = 0.005  # seconds: of a model whose step of one token takes longer only such steps are timed, to start sooner
PATIENCE = 0.2  # seconds: a step of one token that takes longer is not timed again, every core helps such a model
GAIN = 1.05  # more threads must be faster by this factor: they also cost whoever else wants a core


def candidates(cores: int) -> list[int]:
    """1, half of the cores, all of them."""
    return sorted({1, (cores + 1) // 2, cores})


def pick_threads(
    cores: int, many: int, use: Callable[[int], None], forward: Callable[[int], object], clock: Callable[[], float]
) -> tuple[int, str]:
    """The number of threads, in use when this returns, and a line that says what was measured.

    forward(tokens): one step of 1 or `many` tokens. use(threads): for the steps from now on. What counts is the sum of
    both steps' times, each taken relative to its fastest: a token for one reader is worth as much as a prompt.
    """
    counts = candidates(cores)
    if len(counts) == 1:
        use(cores)
        return cores, f"threads: {cores}, the only core there is"
    use(cores)
    forward(1)
    began = clock()
    forward(1)
    seconds = clock() - began
    if seconds > PATIENCE:
        return cores, f"threads: all {cores} cores, as a step of one token takes {seconds:.2f} s"
    steps = (1, many) if seconds < LARGE else (1,)
    forward(steps[-1])  # the first of its size is slow: its memory is new
    times: dict[tuple[int, int], float] = {}
    started = clock()
    for _ in range(ROUNDS):
        if clock() - started > SECONDS:
            break
        for count in counts:
            use(count)
            for tokens in (1, *steps):
                began = clock()
                forward(tokens)
                times[count, tokens] = min(clock() - began, times.get((count, tokens), float("inf")))
    best = counts[0]
    for count in counts[1:]:
        if _slowness(times, best, counts) > GAIN * _slowness(times, count, counts):
            best = count
    use(best)
    measured = "; ".join(
        f"{count}: " + " and ".join(f"{times[count, tokens] * 1e3:.2f}" for tokens in steps) + " ms" for count in counts
    )
    what = f"steps of 1 and {many} tokens" if len(steps) > 1 else "steps of one token"
    return best, f"threads: {best} of {cores} cores, measured for {what} ({measured})"


def _slowness(times: dict[tuple[int, int], float], count: int, counts: list[int]) -> float:
    steps = {tokens for _, tokens in times}
    return sum(times[count, tokens] / min(times[other, tokens] for other in counts) for tokens in steps)
