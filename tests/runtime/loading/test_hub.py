"""A model's name becomes a directory, or an error that says what to do. No test here reaches the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from branchwork.runtime.loading import hub
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model, shown


def refusal(name: str) -> LoadError:
    with pytest.raises(LoadError) as caught:
        find_model(name, offline=True)
    return caught.value


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path


def test_a_name_that_is_not_cached_says_that_the_hub_was_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    error = refusal("someone/a-model-that-nobody-has")
    assert error.code == "offline"
    assert "someone/a-model-that-nobody-has" in error.message
    assert "go online and try again" in error.message


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "plain", "has space/x"])
def test_a_path_or_a_word_that_leads_nowhere_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    error = refusal(name)
    assert error.code == "not_found"
    assert repr(name) in error.message
    assert "sapling" in error.message


def test_a_file_of_another_kind_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"GGUF")
    assert "is a file, but no .gguf" in refusal(str(file)).message


def test_an_installation_without_the_packaged_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PACKAGED", "a-folder-that-does-not-exist")
    assert "install it again" in refusal("a-folder-that-does-not-exist").message


def test_download_bars_become_one_rising_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own way: one bar for the network and one for the disk, made with a total of 0, grown, then moved."""

    def download(name: str, *, tqdm_class: Any, **_: object) -> str:
        bars = [tqdm_class(desc="bytes", total=0, initial=0, unit="B", unit_scale=True) for _ in range(2)]
        for bar in bars:
            bar.total = 200
        for bar in bars:
            bar.update(100)
            bar.update(100)
            bar.close()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    heard: list[float] = []
    assert find_model("someone/model", progress=heard.append) == tmp_path
    assert heard == [0.25, 0.5, 0.75, 1.0]


def test_the_bar_for_people_takes_fractions() -> None:
    with shown("model") as progress:
        progress(0.5)
        progress(1.0)
