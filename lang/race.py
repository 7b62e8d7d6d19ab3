"""Races between the branches of a fork: which of them a join goes on with, and whether that is known by now.

Knows: how far each child is, and its vote. Must not know: nodes, execution, who cancels the losers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from branchwork.lang.transcript import Refusal

MODES = ("first", "majority")


class Standing(msgspec.Struct, frozen=True):
    """One child. failed: its first failed node, None when it has not failed. vote: its text of the join's variable."""

    done: bool = False
    failed: int | None = None
    vote: str | None = None


def decide(mode: str, count: int, children: Sequence[Standing], given: Sequence[int] = ()) -> list[int] | None:
    """Indexes of the children to go on with, ascending; None while that is open.

    first: the first `count` that are done. majority: those whose stripped text no other can overtake any more; at the
    end the commonest one, of equals the one of the lowest index. given: they have been decided on already, and only
    have to be done. Raises Refusal when it can never be decided.
    """
    if not all(0 <= index < len(children) for index in given):
        raise Refusal("bad_join", f"{list(given)} are not among the {len(children)} branches of the join")
    if given:
        return _given(given, children)
    if mode == "first":
        return _first(count, children)
    return _majority(children)


def _given(given: Sequence[int], children: Sequence[Standing]) -> list[int] | None:
    failed = [children[index].failed for index in given if children[index].failed is not None]
    if failed:
        raise Refusal("race_lost", "a branch that is to win has failed", failed[0])
    return list(given) if all(children[index].done for index in given) else None


def _first(count: int, children: Sequence[Standing]) -> list[int] | None:
    if not 1 <= count <= len(children):
        raise Refusal("bad_join", f"the first {count} of {len(children)} branches cannot be waited for")
    done = [index for index, child in enumerate(children) if child.done]
    if len(done) >= count:
        return done[:count]
    failed = [child.failed for child in children if child.failed is not None]
    if len(children) - len(failed) < count:
        text = f"{len(failed)} of {len(children)} branches failed, so {count} of them cannot be done any more"
        raise Refusal("race_lost", text, failed[0])
    return None


def _majority(children: Sequence[Standing]) -> list[int] | None:
    votes = {i: child.vote.strip() for i, child in enumerate(children) if child.done and child.vote is not None}
    open_ = sum(not child.done and child.failed is None for child in children)
    ranked = Counter(votes[index] for index in sorted(votes)).most_common(2)  # of equals the first one met
    if open_ and (not ranked or ranked[0][1] <= (ranked[1][1] if len(ranked) > 1 else 0) + open_):
        return None
    if not ranked:
        failed = [child.failed for child in children if child.failed is not None]
        text = "no branch came to an answer, so there is no majority"
        raise Refusal("race_lost", text, failed[0] if failed else None)
    return [index for index in sorted(votes) if votes[index] == ranked[0][0]]
