"""What the language's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from branchwork.lang.default import set_default_backend


@pytest.fixture(autouse=True)
def no_default_backend() -> Iterator[None]:
    """No test may start or inherit a default backend."""
    yield
    set_default_backend(None)
