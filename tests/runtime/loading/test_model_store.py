"""The library's names: one spelling, whole manifests, and files that stay as long as a name needs them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from branchwork.runtime.loading import store as module
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.store import Manifest, Message, Store, canonical, home


def refusal(call: object, *arguments: object) -> LoadError:
    assert callable(call)
    with pytest.raises(LoadError) as caught:
        call(*arguments)
    return caught.value


def a_pulled_file(store: Store, commit: str = "one", name: str = "a.gguf", data: bytes = b"weights") -> Path:
    """A file as pull leaves it: a blob, and a hard link to it in the commit's folder."""
    repository = store.repository("owner/model")
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    (repository / commit).mkdir(exist_ok=True)
    blob = repository / "blobs" / f"sha256-{data.decode()}"
    blob.write_bytes(data)
    (repository / commit / name).hardlink_to(blob)
    return repository / commit / name


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("chat", "chat:latest"),
        ("chat:short", "chat:short"),
        ("owner/name", "owner/name:latest"),
        ("hf.co/owner/name:Q4_K_M", "owner/name:Q4_K_M"),
        ("owner/name:main/file.gguf", "owner/name/file.gguf:main"),
        ("owner/name/file.gguf", "owner/name/file.gguf:latest"),
    ],
)
def test_a_name_has_one_spelling(given: str, spelled: str) -> None:
    assert canonical(given) == spelled == canonical(spelled)


@pytest.mark.parametrize("name", ["", "../x", "/abs", "~/x", "a b", "a:b:c", ".hidden", "a//b", "x" * 300, "é"])
def test_what_is_no_name_is_refused_and_is_nobody(name: str, tmp_path: Path) -> None:
    assert refusal(canonical, name).code == "name"
    assert Store(tmp_path).find(name) is None


def test_what_was_put_is_found_again_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    manifest = Manifest(
        path="sapling",
        system="Be brief.",
        template="{{ .Prompt }}",
        parameters={"stop": ["a", "b"], "temperature": 0.5, "num_ctx": 9, "use_mmap": True},
        messages=(Message("user", "hi"), Message("assistant", "ho")),
        license=("MIT", "more"),
    )
    store.put("mine", manifest)
    found = store.get("mine:latest")
    assert found.modified > 0
    assert {**_fields(found), "modified": 0.0} == _fields(manifest)
    assert store.names() == ["mine:latest"]


def _fields(manifest: Manifest) -> dict[str, object]:
    return {name: getattr(manifest, name) for name in manifest.__struct_fields__}


def test_a_name_that_is_taken_can_be_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("mine", Manifest(path="sapling"))
    with pytest.raises(LoadError, match="already"):
        store.put("mine", Manifest(path="/other"), keep=True)
    assert store.get("mine").path == "sapling"


@pytest.mark.parametrize("name", ["sapling", "sapling-draft", "sapling:short"])
def test_the_packaged_models_names_cannot_be_taken(name: str, tmp_path: Path) -> None:
    assert refusal(Store(tmp_path).put, name, Manifest(path="/x")).code == "name"


def test_the_packaged_model_cannot_be_removed(tmp_path: Path) -> None:
    assert "ships with the package" in refusal(Store(tmp_path).remove, "sapling").message


def test_removing_frees_what_no_other_name_needs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = a_pulled_file(store)
    store.put("one", Manifest(path=str(file)))
    store.copy("one", "two")
    store.check()
    assert store.remove("one") == 0 and file.is_file()
    assert store.remove("two") == len(b"weights") and not file.exists()
    assert not store.repository("owner/model").exists()
    store.check()


def test_a_new_commit_frees_only_what_it_does_not_share(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, same = a_pulled_file(store, "one", "a.bin", b"old"), a_pulled_file(store, "one", "b.bin", b"same")
    store.put("mine", Manifest(path=str(old.parent)))
    new = a_pulled_file(store, "two", "a.bin", b"new")
    (new.parent / "b.bin").hardlink_to(store.repository("owner/model") / "blobs" / "sha256-same")
    store.put("mine", Manifest(path=str(new.parent)))
    assert not old.exists() and not same.exists()
    assert {path.name for path in (store.repository("owner/model") / "blobs").iterdir()} == {
        "sha256-new",
        "sha256-same",
    }
    store.check()


def test_files_that_were_not_pulled_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"x")
    store = Store(tmp_path / "library")
    store.put("mine", Manifest(path=str(mine)))
    assert store.remove("mine") == 0
    assert mine.is_file()


def test_nothing_is_freed_while_it_is_being_pulled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = a_pulled_file(store)
    store.put("one", Manifest(path=str(file)))
    pulling, pulled = threading.Event(), threading.Event()

    def pull() -> None:
        with store.pulling(store.repository("owner/model")):
            pulling.set()
            assert pulled.wait(20)

    other = threading.Thread(target=pull)
    other.start()
    assert pulling.wait(20)
    assert store.remove("one") == 0 and file.is_file()
    pulled.set()
    other.join()
    assert store.sweep(store.repository("owner/model")) == len(b"weights")
    assert not file.exists()


def test_a_pull_that_never_ended_can_be_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    part = store.repository("owner/model") / "blobs" / "sha256-x.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    assert store.remove("owner/model") == 4
    assert refusal(store.remove, "owner/model").code == "not_found"


def test_a_write_that_fails_leaves_the_manifest_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put("mine", Manifest(path="sapling", system="before"))

    def no_space(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        store.put("mine", Manifest(path="sapling", system="after"))
    assert store.get("mine").system == "before"
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == ["mine%3Alatest.json"]


def test_a_damaged_manifest_names_its_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("mine", Manifest(path="sapling"))
    file = tmp_path / "manifests" / "mine%3Alatest.json"
    file.write_text("{")
    error = refusal(store.get, "mine")
    assert error.code == "damaged" and str(file) in error.message and "remove this file" in error.message


def _put_many(root: Path, who: int) -> None:
    store = Store(root)
    for number in range(8):
        store.put(f"model-{number}", Manifest(path="sapling", system=str(who) * 1000))
        store.put(f"own-{who}-{number}", Manifest(path="sapling"))
        store.remove(f"own-{who}-{number}")


def test_two_processes_change_the_library_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    workers = [context.Process(target=_put_many, args=(tmp_path, who)) for who in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = Store(tmp_path)
    assert store.names() == [f"model-{number}:latest" for number in range(8)]
    assert all(store.get(name).system in ("1" * 1000, "2" * 1000) for name in store.names())
    store.check()


def test_the_library_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BRANCHWORK_HOME", str(tmp_path / "here"))
    assert home() == tmp_path / "here"
    monkeypatch.delenv("BRANCHWORK_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "branchwork"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cache" / "branchwork"
