"""What cannot be replayed is refused before anything runs, with the file's name and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from branchwork.lang.errors import BranchworkError
from branchwork.lang.recording import RecordingError
from branchwork.lang.replay import replay
from tests.lang.test_replay import Counting, chat, saved


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "there is no file"),
        ("not json", "no recording"),
        ("[1, 2]", "no recording"),
        ('{"nodes": []}', "no recording"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1, "model": "m"}', "damaged"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_name(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecordingError, match=says) as caught:
        replay(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, BranchworkError) and isinstance(caught.value, ValueError)


def test_a_recording_whose_answers_were_taken_out_is_refused(tmp_path: Path) -> None:
    path = saved(chat.run(backend=Counting()), tmp_path)
    whole = json.loads(path.read_text())
    number = next(number for number, step in enumerate(whole["nodes"]) if "answer" in step)
    del whole["nodes"][number]["answer"]
    path.write_text(json.dumps(whole))
    with pytest.raises(RecordingError, match=f"node {number}"):
        replay(path)


@pytest.mark.parametrize(
    "from_, error, says",
    [
        ("nothing", RecordingError, "'answer', 'mood', 'more', 'end'"),
        ("facts", RecordingError, "no gen or select"),
        (("answer", 3), RecordingError, "3 times"),
        (("answer", -1), RecordingError, "0 to 2"),
        (3, TypeError, "from_"),
    ],
)
def test_a_place_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, from_: Any, error: type[Exception], says: str
) -> None:
    path = saved(chat.run(backend=Counting()), tmp_path)
    with pytest.raises(error, match=says):
        replay(path, from_=from_, backend=Counting())


def test_knobs_are_checked_and_mean_nothing_where_nothing_is_generated(tmp_path: Path) -> None:
    path = saved(chat.run(backend=Counting()), tmp_path)
    with pytest.raises(TypeError, match="from_=None"):
        replay(path, temperature=0)
    with pytest.raises(TypeError, match="unknown sampling parameter"):
        replay(path, from_="end", backend=Counting(), warmth=3)
    with pytest.raises(ValueError, match="temperature"):
        replay(path, from_="end", backend=Counting(), temperature=-1)
