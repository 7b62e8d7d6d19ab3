"""What a guess costs and whether it is worth that: the time of steps with and without guesses.

Knows: seconds, numbers of tokens, probabilities. Must not know: who guessed, requests, how a forward is run.

A step that draws for n requests takes S(n) seconds and gives n tokens. A guess adds s(n) seconds and gives a token with
the probability that it and all guesses before it come true. It is taken when that raises the tokens per second of the
whole step: where a forward reads much more than it computes nearly every guess is, in a full batch hardly any.
S and s are first taken from forwards timed at the start, then learned from the steps themselves, for each n by its
power of two: they hold all the work of a step, and the state that the machine is in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MEASURED = (1, 2, 4, 8, 16, 32, 64, 128)  # tokens of the forwards that are timed
ROUNDS = 8
SECONDS = 0.4  # all timed forwards together
MARGIN = 1.2  # what a guess must bring for what it costs: chances and costs are only estimated
DEEP_MARGIN = 1.08  # the same for guesses that a model works out, all together: what these cost is measured each time
PLAIN_EVERY = 32  # one step in so many is left without guesses, to know what it takes
_LEARN = 0.1  # share of the newest plain step in S
_KEEP = 0.97  # what a step with guesses leaves of the older ones in s
_PRIOR = 32.0  # guesses that the timed forwards count for
_OUTLIER = 3.0  # a step that took longer than so many times the expected counts as that


@dataclass(slots=True)
class Load:
    """Steps that draw for about as many requests. plain: S, seconds. added, guesses: what guesses took, and how many.

    since: steps with guesses since the last one without.
    """

    plain: float
    added: float
    guesses: float
    least: float  # seconds per guess that are believed at the least
    since: int = 0

    @property
    def per_guess(self) -> float:
        return max(self.added / self.guesses, self.least)


class StepCost:
    """Timed forwards (tokens, seconds), tokens ascending, and what was learned since. No points: guesses are free, and
    every one is taken. aside: seconds of the step under way that went into guessing itself, not into verifying."""

    def __init__(self, points: Sequence[tuple[int, float]] = ()) -> None:
        self.points = _rising(points)
        self.aside = 0.0
        self._loads: dict[int, Load] = {}

    def begin(self, draws: int) -> Worth:
        """For a step that draws for so many requests, before any guess."""
        self.aside = 0.0
        if not self.points:
            return Worth(draws, 0.0, 0.0)
        load = self.load(draws)
        return Worth(draws, load.plain, load.per_guess, plain=load.since >= PLAIN_EVERY)

    def observe(self, draws: int, guesses: int, seconds: float) -> None:
        """A step that only drew, for so many requests and with so many guesses, took so long."""
        if not self.points or not draws:
            return
        load = self.load(draws)
        expected = load.plain + guesses * load.per_guess
        seconds = min(seconds - self.aside, _OUTLIER * expected)
        if guesses:
            load.since += 1
            load.added = _KEEP * load.added + seconds - load.plain
            load.guesses = _KEEP * load.guesses + guesses
        else:
            load.since = 0
            load.plain += _LEARN * (seconds - load.plain)

    def load(self, draws: int) -> Load:
        """What is known of steps that draw for about as many requests."""
        draws = max(draws, 1)
        size = draws.bit_length()
        found = self._loads.get(size)
        if found is None:
            few, many = _line(self.points, draws), _line(self.points, 2 * draws)
            per_guess = (many - few) / draws
            found = self._loads[size] = Load(few, per_guess * _PRIOR, _PRIOR, 0.25 * per_guess)
        return found


class Worth:
    """The tokens that one step is expected to give, and its seconds, while guesses are added to it.

    draws: requests. plain: this step takes none, whatever they are worth.
    """

    __slots__ = ("_expected", "_per_guess", "_seconds", "draws", "plain")

    def __init__(self, draws: int, seconds: float, per_guess: float, plain: bool = False) -> None:
        self.draws = draws
        self._expected = float(max(draws, 1))
        self._seconds = seconds
        self._per_guess = per_guess
        self.plain = plain

    @property
    def least(self) -> float:
        """The probability below which no guess is taken now."""
        return MARGIN * self._per_guess * self._expected / self._seconds if self._seconds else 0.0

    def takes(self, chance: float, guesses: float = 1.0) -> bool:
        """Whether a guess that comes true with this probability raises the tokens per second; if so it is in.

        The same for several at once, which cost as much as so many `guesses`: chance is then the sum of theirs.
        """
        if chance * self._seconds < MARGIN * guesses * self._per_guess * self._expected:
            return False
        self._expected += chance
        self._seconds += guesses * self._per_guess
        return True

    def deepest(self, rates: Sequence[float], each: float, most: int) -> tuple[int, float]:
        """How many guesses in a row to work out for each of several requests at once, 0 when none pay; and the tokens
        per second that the step then gives (infinite where nothing is known of costs).

        rates: per request, the chance that a guess comes true when the one before it did. each: seconds in which one
        more guess for all of them is worked out, which are spent whatever becomes of it.
        """
        if not self._seconds:
            return most, float("inf")
        chances = list(rates)
        tokens, seconds = self._expected, self._seconds
        best, speed = 0, DEEP_MARGIN * tokens / seconds
        for count in range(1, most + 1):
            tokens += sum(chances)
            seconds += each + len(chances) * self._per_guess
            if tokens / seconds > speed:
                best, speed = count, tokens / seconds
            chances = [chance * again for chance, again in zip(chances, rates)]
        return best, speed

    def spend(self, seconds: float) -> None:
        """Guesses have taken so long to work out: the step is longer by that, whatever becomes of them."""
        if self._seconds:
            self._seconds += seconds


def measured(forward: Callable[[int], object], clock: Callable[[], float], most: int) -> StepCost:
    """Time `forward(tokens)` for growing numbers of tokens, `most` at the most, in rounds, until SECONDS are spent.

    The fastest of each counts: the first round warms up, and what else the machine did is not the forward's cost.
    """
    fastest: dict[int, float] = {}
    began = clock()
    for _ in range(ROUNDS):
        for tokens in MEASURED:
            if tokens > most or clock() - began > SECONDS:
                break
            at = clock()
            forward(tokens)
            fastest[tokens] = min(clock() - at, fastest.get(tokens, float("inf")))
    return StepCost(sorted(fastest.items()) if len(fastest) > 1 else ())


def _rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """More tokens never take less time."""
    found: list[tuple[int, float]] = []
    for tokens, seconds in points:
        found.append((tokens, max(seconds, found[-1][1] if found else 0.0)))
    return found


def _line(points: Sequence[tuple[int, float]], tokens: int) -> float:
    """Seconds between two points, and beyond the last, on a straight line."""
    if tokens <= points[0][0]:
        return points[0][1]
    last = min(bisect_left(points, (tokens, 0.0)), len(points) - 1)
    (low, least), (high, most) = points[last - 1], points[last]
    return least + (most - least) * (tokens - low) / (high - low)
