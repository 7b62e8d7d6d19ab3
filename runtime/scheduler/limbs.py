"""Side branches of a draft as rows of their own: which ids they compute, in which pages, and who gets those pages.

Knows: drafts, rows, page arithmetic. Must not know: requests, costs, tensors.

    k | a b c d              the trunk, in the request's own row; k is the last known id, pages hold two
           \\ x y            a side branch behind b: the row [b x y]
    lease.pages   [ .. | k a | b c | d . ][ b x | y . ]      pages of side branches stand behind the trunk's

A row begins at a page boundary: what shares its page with the first guess (b) is computed again in the branch's own
page. When the branch comes true its pages move to where they belong, and what is behind them is freed.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import msgspec

from branchwork.runtime.plan import Row
from branchwork.runtime.speculative.draft import Draft, Limb


class Branch(NamedTuple):
    """start: position of the row's first id. source, pages: where in lease.pages its own pages begin, how many."""

    limb: Limb
    start: int
    source: int
    pages: int


def placed(draft: Draft, known: int, page_size: int) -> tuple[Branch, ...]:
    """The side branches of a draft behind `known` ids, each with its own pages behind those of the one before."""
    found = []
    source = -(-(known + draft.trunk) // page_size)
    for limb in draft.limbs():
        first = known + len(limb.before)
        start = first - first % page_size
        pages = -(-(first + limb.end - limb.first) // page_size) - start // page_size
        found.append(Branch(limb, start, source, pages))
        source += pages
    return tuple(found)


def ids_in(branches: tuple[Branch, ...], known: int) -> int:
    """Ids that the rows of side branches compute."""
    return sum(known + len(b.limb.before) + b.limb.end - b.limb.first - b.start for b in branches)


def bounded(draft: Draft, known: int, page_size: int, ids: int, tokens: int) -> tuple[Draft, int]:
    """The draft and the position at which its pages end; without side branches when their rows compute more than `ids`
    with the trunk, or its pages hold more than so many `tokens` behind the known ones."""
    trunk = draft.trunk
    if trunk < len(draft):
        branches = placed(draft, known, page_size)
        upto = (branches[-1].source + branches[-1].pages) * page_size
        if trunk + ids_in(branches, known) <= ids and upto - known <= tokens:
            return draft, upto
    return draft.cut(trunk), known + trunk


def rows_of(main: Row, draft: Draft, branches: tuple[Branch, ...], known: array[int], page_size: int) -> list[Row]:
    """The rows of side branches. main: the row of the trunk; it draws what follows a limb's parent, they what follows
    each of their own guesses."""
    rows: list[Row] = []
    pages_to = {-1: main.pages, **dict.fromkeys(range(draft.trunk), main.pages)}  # of a guess: what its row reads
    for limb, start, source, count in branches:
        own = main.pages[source : source + count]
        pages = [*pages_to[limb.parent][: start // page_size], *own]
        pages_to.update(dict.fromkeys(range(limb.first, limb.end), pages))
        ids = [*limb.before, *draft.ids[limb.first : limb.end]]
        until = len(limb.before) + 1
        row = msgspec.structs.replace(
            main,
            start=start,
            ids=[*known[start:], *ids[max(start - len(known), 0) :]],
            pages=pages,
            position=len(known) + until,
            answer_history=[*main.answer_history, *ids[:until]] if main.prompt_history else (),
            draft=limb.end - limb.first - 1,
            score_from=1 << 30,  # known tokens are scored in the main row
        )
        rows.append(row)
    return rows
