"""The grammar cache: whole files or none, damage noticed, size bounded, shared by processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from branchwork.runtime.grammar.store import MAGIC, SUFFIX, Recent, Store, default_folder, key


def test_what_was_put_is_got(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "folder", 1 << 20)
    assert store.get(key(b"a")) is None
    store.put(key(b"a"), b"payload")
    assert store.get(key(b"a")) == b"payload"
    store.put(key(b"a"), b"another")
    assert Store(tmp_path / "deep" / "folder", 1 << 20).get(key(b"a")) == b"another"


def test_keys_tell_where_parts_end() -> None:
    assert key(b"ab", b"c") != key(b"a", b"bc") != key(b"abc")


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_file_is_not_used_and_is_written_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, 1 << 20)
    store.put("k", b"payload" * 10)
    path = tmp_path / ("k" + SUFFIX)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-3], "flipped": whole[:-1] + b"?", "foreign": b"hello" * 40, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert store.get("k") is None
    assert str(path) in caplog.text
    store.put("k", b"new")
    assert store.get("k") == b"new"


def test_the_files_used_longest_ago_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, 4 * (len(MAGIC) + 32 + 100))
    for number in range(4):
        store.put(f"k{number}", bytes(100))
        os.utime(tmp_path / f"k{number}{SUFFIX}", (1000 + number, 1000 + number))
    (tmp_path / "notes.txt").write_bytes(bytes(1000))
    assert store.get("k0") is not None, "reading it makes it the newest"
    store.put("k4", bytes(100))
    store.sweep()
    left = sorted(path.name.removesuffix(SUFFIX) for path in tmp_path.iterdir())
    assert left == ["k0", "k2", "k3", "k4", "notes.txt"], "files that are not ours stay"


def test_many_files_stay_under_the_limit(tmp_path: Path) -> None:
    store = Store(tmp_path, 10_000)
    for number in range(100):
        store.put(f"k{number}", bytes(900))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000 + 16 * 1000


def test_a_folder_that_cannot_be_written_is_said_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "folder", 1000)
    with caplog.at_level(logging.WARNING):
        store.put("k", b"payload")
    assert "cannot write" in caplog.text
    with caplog.at_level(logging.WARNING):
        assert store.get("k") is None


def test_processes_that_share_a_folder_never_see_half_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from branchwork.runtime.grammar.store import Store\n"
        "s = Store(Path(sys.argv[1]), 1 << 24)\n"
        "for n in range(300): s.put('k', bytes([n % 251]) * 50_000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    store, seen = Store(tmp_path, 1 << 24), 0
    while any(writer.poll() is None for writer in writers):
        payload = store.get("k")
        if payload is not None:
            seen += 1
            assert len(payload) == 50_000 and len(set(payload)) == 1
    assert all(writer.wait() == 0 for writer in writers)
    assert seen > 0
    assert [path.name for path in tmp_path.iterdir()] == ["k" + SUFFIX]


def test_the_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "branchwork" / "grammars"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "branchwork" / "grammars"


def test_memory_keeps_what_was_used_last_within_its_bytes() -> None:
    recent: Recent[str] = Recent(10)
    recent.put(b"a", "A", 4)
    recent.put(b"b", "B", 4)
    assert recent.get(b"a") == "A"
    recent.put(b"c", "C", 4)
    assert (recent.get(b"a"), recent.get(b"b"), recent.get(b"c")) == ("A", None, "C")
    recent.put(b"big", "BIG", 100)
    assert len(recent) == 1 and recent.get(b"big") == "BIG"
    recent.drop(b"big")
    assert recent.size == 0
