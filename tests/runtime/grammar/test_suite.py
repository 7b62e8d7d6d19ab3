"""The official JSON Schema suite: nothing wrong is let through in silence, as many groups are right as ever were."""

from __future__ import annotations

import pytest

from benchmarks.schema_suite import SUITE, examine, groups

RIGHT = 344  # of 383; raise it when it gets better


@pytest.mark.skipif(not SUITE.is_dir(), reason=f"no {SUITE}")
def test_the_official_suite() -> None:
    right, silent = 0, []
    for keyword, group in groups(SUITE):
        result = examine("ours", group)
        right += result["right"]
        if result.get("under") and not result["loose"]:
            silent.append(f"{keyword}: {group['description']}")
    assert silent == []
    assert right >= RIGHT
