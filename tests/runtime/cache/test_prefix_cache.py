"""The tree, the pool and the leases, against a naive model, with check() after every operation."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchwork.runtime.cache.eviction import Evictor
from branchwork.runtime.cache.pages import PageAllocator
from branchwork.runtime.cache.prefix_cache import RUN, Lease, PrefixCache

PAGES = 24
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=30).map(lambda ids: array("i", ids))


def ids_of(*numbers: int) -> array[int]:
    return array("i", numbers)


class CacheMachine(RuleBasedStateMachine):
    """The model: which prefixes (as tuples of ids) were sealed, and with which page each ends. Eviction may forget."""

    page_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(PAGES, self.page_size)
        self.leases: list[tuple[Lease, array[int]]] = []
        self.page_of: dict[tuple[int, ...], int] = {}  # every prefix ever sealed -> the page last known to end it

    def _prefix(self, ids: array[int], page: int) -> tuple[int, ...]:
        return tuple(ids[: (page + 1) * self.page_size])

    @rule(ids=PROMPTS, cut=st.integers(0, 3))
    def lease(self, ids: array[int], cut: int) -> None:
        limit = max(len(ids) - cut, 0)
        expected = self.cache.peek(ids, limit)
        lease = self.cache.lease(ids, limit)
        assert lease.matched == lease.sealed == expected <= limit
        assert self.cache.diverges(ids) >= lease.matched
        for page, number in enumerate(lease.pages):
            assert self.page_of[self._prefix(ids, page)] == number, "matched a page that holds other ids"
        self.leases.append((lease, ids))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), upto=st.integers(0, 30))
    def extend(self, data: st.DataObject, upto: int) -> None:
        lease, ids = data.draw(st.sampled_from(self.leases))
        upto = min(upto, len(ids))
        before, available = list(lease.pages), self.cache.available
        missing = max(-(-upto // self.page_size) - len(before), 0)
        assert self.cache.extend(lease, upto) == (missing <= available)
        added = missing if missing <= available else 0
        assert lease.pages[: len(before)] == before and len(lease.pages) == len(before) + added
        assert self.cache.available == available - added

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), upto=st.integers(0, 30))
    def seal(self, data: st.DataObject, upto: int) -> None:
        lease, ids = data.draw(st.sampled_from(self.leases))
        upto = min(upto, len(ids), len(lease.pages) * self.page_size)
        self.cache.seal(lease, ids, upto)
        full = upto // self.page_size * self.page_size
        assert lease.sealed >= full and self.cache.peek(ids, full) == full, "what is sealed can be matched"
        for page in range(lease.sealed // self.page_size):
            self.page_of[self._prefix(ids, page)] = lease.pages[page]

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), upto=st.integers(0, 30))
    def shrink(self, data: st.DataObject, upto: int) -> None:
        lease, _ = data.draw(st.sampled_from(self.leases))
        before, available = list(lease.pages), self.cache.available
        self.cache.shrink(lease, upto)
        least = max(-(-upto // self.page_size), lease.sealed // self.page_size)
        assert min(least, len(before)) <= len(lease.pages) <= max(least, -(-upto // RUN) * RUN // self.page_size)
        assert lease.pages == before[: len(lease.pages)]
        assert self.cache.available == available + len(before) - len(lease.pages)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        lease, _ = data.draw(st.sampled_from(self.leases))
        before = list(lease.pages)
        at = data.draw(st.integers(lease.sealed // self.page_size, len(before)))
        source = data.draw(st.integers(at, len(before)))
        count = data.draw(st.integers(0, len(before) - source))
        self.cache.adopt(lease, source, count, at)
        moved = before[source : source + count]
        assert lease.pages == before[:at] + moved + before[at:source] + before[source + count :]

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.leases) - 1))
        lease, _ = self.leases.pop(index)
        self.cache.release(lease)

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        held = {page for lease, _ in self.leases for page in lease.pages}
        assert self.cache.stats().free == PAGES - len(held), "only what leases hold survives a flush"

    @invariant()
    def consistent(self) -> None:
        self.cache.check()
        for lease, ids in self.leases:
            assert self.cache.peek(ids, lease.sealed) == lease.sealed, "a locked prefix was evicted"


class PagedCacheMachine(CacheMachine):
    page_size = 2


class WideCacheMachine(CacheMachine):
    page_size = 5


TestOneTokenPages = CacheMachine.TestCase
TestTwoTokenPages = PagedCacheMachine.TestCase
TestFiveTokenPages = WideCacheMachine.TestCase
for _case in (TestOneTokenPages, TestTwoTokenPages, TestFiveTokenPages):
    _case.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def sealed(cache: PrefixCache, ids: array[int]) -> Lease:
    lease = cache.lease(ids, len(ids))
    assert cache.extend(lease, len(ids))
    cache.seal(lease, ids, len(ids))
    cache.check()
    return lease


def test_two_prompts_share_the_pages_of_their_common_prefix() -> None:
    cache = PrefixCache(32, 2)
    first = sealed(cache, ids_of(1, 2, 3, 4, 5, 6))
    second = sealed(cache, ids_of(1, 2, 3, 4, 9, 9))
    assert second.matched == 4
    assert first.pages[:2] == second.pages[:2] and first.pages[2] != second.pages[2]
    assert cache.stats().cached == 4


def test_the_second_to_seal_the_same_ids_gives_its_duplicates_back() -> None:
    cache = PrefixCache(32, 1)
    ids = ids_of(*range(8))
    first, second = cache.lease(ids, 8), cache.lease(ids, 8)
    assert cache.extend(first, 8) and cache.extend(second, 8)
    live = second.pages
    cache.seal(first, ids, 8)
    cache.seal(second, ids, 8)
    cache.check()
    assert second.pages is live and second.pages == first.pages, "rows hold the list itself, so it is changed in place"
    assert cache.stats().free == 24


def test_a_prompt_sealed_in_chunks_is_one_run() -> None:
    cache = PrefixCache(64, 1)
    ids = ids_of(*range(40))
    lease = cache.lease(ids, 40)
    for upto in range(1, 41):
        assert cache.extend(lease, upto)
        cache.seal(lease, ids, upto)
        cache.check()
    assert len(list(cache._tree.nodes())) == 1


def test_the_least_recently_used_tail_is_evicted_first() -> None:
    cache = PrefixCache(8, 1)
    old, new = ids_of(1, 1, 1, 1), ids_of(2, 2, 2, 2)
    for ids in (old, new, old):
        cache.release(sealed(cache, ids))
    wanted = cache.lease(ids_of(3, 3, 3), 3)
    assert cache.extend(wanted, 3)
    cache.check()
    assert (cache.peek(old, 4), cache.peek(new, 4)) == (4, 1), "three pages came from the end of the older run"


def test_what_a_lease_holds_is_never_evicted() -> None:
    cache = PrefixCache(6, 1)
    held = sealed(cache, ids_of(1, 2, 3, 4))
    other = cache.lease(ids_of(7, 7, 7), 3)
    assert not cache.extend(other, 3) and other.pages == []
    assert cache.extend(other, 2)
    cache.check()
    assert cache.peek(ids_of(1, 2, 3, 4), 4) == 4 and held.pages


def test_divergence_is_told_to_the_token_inside_a_page() -> None:
    cache = PrefixCache(32, 4)
    sealed(cache, ids_of(1, 2, 3, 4, 5, 6, 7, 8))
    assert cache.diverges(ids_of(1, 2, 3, 4, 5, 6, 9, 9, 9)) == 6
    assert cache.diverges(ids_of(1, 2, 9)) == 2
    assert cache.diverges(ids_of(1, 2, 3, 4, 5, 6, 7, 8, 9)) == 8
    assert cache.diverges(ids_of(1, 2, 3)) == 3
    assert cache.diverges(ids_of(9)) == 0


def test_releasing_twice_is_an_error_at_once() -> None:
    cache = PrefixCache(4, 1)
    lease = cache.lease(ids_of(1), 1)
    cache.release(lease)
    with pytest.raises(KeyError):
        cache.release(lease)


def test_check_names_a_leaked_page() -> None:
    cache = PrefixCache(4, 1)
    cache._pool.alloc(1)
    with pytest.raises(AssertionError, match="1 of 4 pages are nobody's"):
        cache.check()


def test_an_empty_pool_gives_nothing() -> None:
    pool = PageAllocator(3)
    taken = pool.alloc(2)
    with pytest.raises(MemoryError):
        pool.alloc(2)
    assert (pool.free_count, pool.used_count) == (1, 2)
    pool.free(taken)
    assert sorted(pool.alloc(3)) == [0, 1, 2]


class Leaf:
    def __init__(self, access: int) -> None:
        self.access = access


def test_the_evictor_forgets_what_was_discarded_and_stays_small() -> None:
    evictor: Evictor[Leaf] = Evictor()
    leaves = [Leaf(access) for access in (5, 3, 4)]
    for _ in range(500):
        for leaf in leaves:
            evictor.discard(leaf)
            evictor.add(leaf)
    evictor.discard(leaves[1])
    assert len(evictor._heap) < 200
    assert [evictor.pop() for _ in range(2)] == [leaves[2], leaves[0]]
    with pytest.raises(IndexError):
        evictor.pop()


def test_onlookers_see_what_was_used_last_with_its_parents() -> None:
    cache = PrefixCache(64, 1)
    trunk = [1, 2, 3, 4]
    leases = []
    for end in (10, 20, 30):
        ids = ids_of(*trunk, end, end + 1)
        lease = cache.lease(ids, len(ids))
        assert cache.extend(lease, len(ids))
        cache.seal(lease, ids, len(ids))
        leases.append(lease)
    for lease in leases[:2]:
        cache.release(lease)
    shown, total = cache.show(limit=10, head=3)
    assert total == len(shown) == 4
    root, *branches = shown
    assert (root.parent, root.tokens, root.pages, root.locks, root.children) == (-1, 4, 4, 1, 3)
    assert array("i", root.head) == ids_of(1, 2, 3)
    assert {branch.parent for branch in branches} == {0} and sorted(branch.locks for branch in branches) == [0, 0, 1]
    few, total = cache.show(limit=2, head=1)
    assert total == 4 and few[0].parent == -1 and few[1].parent == 0
    assert array("i", few[1].head) == ids_of(20), "the branch that was released last"
    cache.check()
