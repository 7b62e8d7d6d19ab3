"""The pool of KV pages as plain numbers: which are free.

Knows: page numbers 0 .. pages-1. Must not know: what a page holds, who uses it, trees.
"""

from __future__ import annotations

from collections.abc import Iterable


class PageAllocator:
    """Hands out page numbers, lowest first on a fresh pool, most recently freed first afterwards (warm memory)."""

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise ValueError(f"a page pool needs at least one page, got {pages}")
        self.pages = pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def free_count(self) -> int:
        return len(self._free)

    @property
    def used_count(self) -> int:
        return self.pages - len(self._free)

    def alloc(self, count: int) -> list[int]:
        """Take `count` pages. Raises MemoryError, and takes none, when fewer are free."""
        if count > len(self._free):
            raise MemoryError(f"{count} pages wanted, {len(self._free)} of {self.pages} free")
        if count == 1:
            return [self._free.pop()]
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back. Freeing a page twice is a fault that PrefixCache.check() finds."""
        self._free.extend(pages)

    def free_pages(self) -> list[int]:
        """A copy of the free list, for checks."""
        return list(self._free)
