"""Pulling from a hub: what is chosen, resumed, checked, shared and refused. The hub is a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from encoders import encoder

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model, resolved
from branchwork.runtime.loading.pooling import load_pooling
from branchwork.runtime.loading.pull import File, Step, asked, choose, pull
from branchwork.runtime.loading.store import Store
from branchwork.runtime.models.registry import load_encoder_spec
from tests.checkpoints import checkpoint
from tests.fake_hub import Hub, files_of, serving
from tests.gguf_files import write_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(checkpoint("llama"), tmp_path_factory.mktemp("gguf") / "tiny-Q8_0.gguf").read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gguf: bytes) -> Iterator[Hub]:
    files = files_of(checkpoint("llama")) | {"README.md": b"#", "onnx/model.onnx": b"o", "LICENSE": b"MIT"}
    ggufs = {"tiny-Q8_0.gguf": gguf, "tiny-Q4_K_M.gguf": gguf + b" ", "tiny-Q2_K.gguf": gguf}
    with serving({"owner/model": files, "owner/ggufs": ggufs}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.setenv("BRANCHWORK_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def refusal(name: str) -> LoadError:
    with pytest.raises(LoadError) as caught:
        pull(name, Store(), patience=0)
    return caught.value


def test_a_pulled_model_has_its_name_its_files_and_its_figures(hub: Hub) -> None:
    steps: list[Step] = []
    manifest = pull("owner/model", Store(), say=steps.append)
    found = find_model("owner/model")
    assert files_of(found) == {
        name: data for name, data in files_of(checkpoint("llama")).items() if name.endswith((".json", ".safetensors"))
    } | {"LICENSE": b"MIT"}
    assert str(found) == manifest.path and manifest.about.family == "llama" and manifest.about.quantization == "F32"
    assert steps[0].stage == "looking" and steps[-1].stage == "done"
    moved = [step.done for step in steps if step.stage == "downloading"]
    assert moved == sorted(moved) and moved[-1] == steps[-1].total == steps[-1].done > 0
    Store().check()


def test_what_is_there_is_not_fetched_again(hub: Hub) -> None:
    pull("owner/model", Store())
    before = len(hub.asked)
    pull("owner/model", Store())
    hub.commit = "d" * 40
    hub.repositories["owner/model"]["config.json"] += b"\n"
    pull("owner/model", Store())
    assert [one.file for one in hub.asked[before:]] == ["config.json"]
    Store().check()


def test_a_broken_transfer_goes_on_where_it_stopped(hub: Hub) -> None:
    hub.breaks["model.safetensors"] = [10_000, 5_000]
    pull("owner/model", Store(), patience=0)
    assert [one.start for one in hub.asked if one.file == "model.safetensors"] == [0, 10_000, 15_000]
    assert (find_model("owner/model") / "model.safetensors").read_bytes() == hub.repositories["owner/model"][
        "model.safetensors"
    ]


def test_a_pull_that_was_given_up_goes_on_in_the_next_one(hub: Hub) -> None:
    hub.breaks["model.safetensors"] = [10_000, 0, 0, 0, 0, 0]
    error = refusal("owner/model")
    assert (
        error.code == "offline" and "10,000 of" in error.message and "pulling again goes on from there" in error.message
    )
    assert Store().find("owner/model") is None
    hub.asked.clear()
    pull("owner/model", Store(), patience=0)
    assert [(one.file, one.start) for one in hub.asked] == [("model.safetensors", 10_000)]
    Store().check()


def test_a_server_that_cannot_resume_sends_all_of_it_again(hub: Hub) -> None:
    hub.ranges = False
    hub.breaks["model.safetensors"] = [10_000]
    pull("owner/model", Store(), patience=0)
    assert (find_model("owner/model") / "model.safetensors").read_bytes() == hub.repositories["owner/model"][
        "model.safetensors"
    ]


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_not_kept(file: str, hub: Hub) -> None:
    hub.damaged.add(file)
    error = refusal("owner/model")
    assert error.code == "checksum" and file in error.message and "pull again" in error.message
    assert Store().find("owner/model") is None
    hub.damaged.clear()
    pull("owner/model", Store())
    Store().check()


def test_a_model_that_cannot_be_run_is_refused_before_its_weights_come(hub: Hub) -> None:
    def check(folder: Path) -> None:
        assert (folder / "config.json").is_file()
        raise LoadError("unsupported", "no such architecture")

    with pytest.raises(LoadError, match="no such architecture"):
        pull("owner/model", Store(), check=check)
    assert "model.safetensors" not in [one.file for one in hub.asked]


def test_of_several_gguf_files_the_usual_one_is_taken(hub: Hub) -> None:
    assert pull("owner/ggufs", Store()).path.endswith("tiny-Q4_K_M.gguf")
    assert [one.file for one in hub.asked] == ["tiny-Q4_K_M.gguf"]


@pytest.mark.parametrize("name", ["owner/ggufs:q8_0", "hf.co/owner/ggufs:Q8_0", "owner/ggufs/tiny-Q8_0.gguf"])
def test_a_gguf_file_is_named_by_its_quantization_or_itself(name: str, hub: Hub) -> None:
    manifest = pull(name, Store())
    assert manifest.path.endswith("tiny-Q8_0.gguf")
    found = resolved(name)
    assert found.path == Path(manifest.path) and found.manifest == Store().get(name)


def test_removing_one_gguf_file_leaves_the_other(hub: Hub) -> None:
    eight, two = pull("owner/ggufs:Q8_0", Store()), pull("owner/ggufs:Q4_K_M", Store())
    assert Store().remove("owner/ggufs:Q4_K_M") == Path(eight.path).stat().st_size + 1
    assert Path(eight.path).is_file() and not Path(two.path).exists()
    Store().check()


def test_several_files_and_no_usual_one_are_listed(hub: Hub) -> None:
    del hub.repositories["owner/ggufs"]["tiny-Q4_K_M.gguf"], hub.repositories["owner/ggufs"]["tiny-Q8_0.gguf"]
    hub.repositories["owner/ggufs"]["tiny-Q3_K_S.gguf"] = b"x"
    error = refusal("owner/ggufs")
    assert error.code == "ambiguous"
    assert "owner/ggufs/tiny-Q2_K.gguf" in error.message and "owner/ggufs/tiny-Q3_K_S.gguf" in error.message


def test_a_quantization_that_is_not_there_lists_those_that_are(hub: Hub) -> None:
    error = refusal("owner/ggufs:Q5_K_M")
    assert error.code == "not_found" and "no Q5_K_M" in error.message and "tiny-Q8_0.gguf" in error.message


def test_files_of_several_parts_are_not_chosen() -> None:
    parts = [File(f"big-Q4_K_M-0000{n}-of-00002.gguf", 1, "sha256-x") for n in (1, 2)]
    with pytest.raises(LoadError, match="only files in several parts"):
        choose(asked("owner/big"), parts)


def test_weights_of_other_formats_are_named() -> None:
    with pytest.raises(LoadError, match=r"only pytorch_model\.bin; ask for a conversion"):
        choose(asked("owner/old"), [File("config.json", 1, "git-x"), File("pytorch_model.bin", 9, "sha256-x")])


def test_the_same_weights_in_another_layout_are_left_out() -> None:
    names = ("config.json", "model-00001-of-00001.safetensors", "consolidated.safetensors")
    chosen = choose(asked("owner/twice"), [File(name, 1, "sha256-x") for name in names])
    assert [file.name for file in chosen] == list(names[:2])


def test_names_that_lead_out_of_the_folder_are_not_taken(hub: Hub) -> None:
    hub.repositories["owner/evil"] = {"../../evil.gguf": b"x", "../evil.json": b"x", "config.json": b"{}"}
    assert refusal("owner/evil").code == "unsupported"
    assert hub.asked == []


def test_an_encoder_comes_with_how_its_states_become_vectors(hub: Hub, tmp_path: Path) -> None:
    files = files_of(encoder("bert", tmp_path, "cls"))
    hub.repositories["owner/encoder"] = files | {
        "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
        "2_Other/config.json": b"{}",
    }
    manifest = pull("owner/encoder", Store(), check=load_encoder_spec)
    found = find_model("owner/encoder")
    assert load_pooling(found).kind == "first" and not (found / "2_Other").exists()
    assert manifest.about.family == "bert"
    Store().check()


def test_two_pulls_of_one_repository_take_turns(hub: Hub) -> None:
    store, stages = Store(), []
    lock = store.pulling(store.repository("owner/ggufs"))
    lock.acquire()

    def say(step: Step) -> None:
        stages.append(step.stage)
        if step.stage == "waiting":
            lock.release()

    pull("owner/ggufs", store, say=say)
    assert stages[:3] == ["looking", "waiting", "downloading"]


def test_a_revision_is_asked_for(hub: Hub) -> None:
    pull("owner/model:v1", Store())
    assert Store().names() == ["owner/model:v1"]
    error = refusal("owner/model:v9")
    assert error.code == "not_found" and "owner/model at v9" in error.message


@pytest.mark.parametrize("name", ["llama3", "a/b/c", "a/b/c/d.gguf", "has space/x"])
def test_what_cannot_be_on_the_hub_is_told_without_asking(name: str) -> None:
    assert refusal(name).code == "name"


def test_what_the_hub_does_not_have_or_give_is_told(hub: Hub) -> None:
    assert refusal("owner/nothing").code == "not_found"
    hub.gated.add("owner/model")
    error = refusal("owner/model")
    assert error.code == "gated" and "hf auth login" in error.message


def test_a_hub_that_does_not_answer_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert refusal("owner/model").code == "offline"


def test_what_does_not_fit_is_not_begun(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    error = refusal("owner/model")
    assert error.code == "disk" and "BRANCHWORK_HOME" in error.message
    assert hub.asked == []


def test_files_in_the_hubs_own_cache_are_used_from_there(hub: Hub, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--owner--model" / "snapshots" / hub.commit
    snapshot.mkdir(parents=True)
    for name, data in hub.repositories["owner/model"].items():
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_bytes(data)
    manifest = pull("owner/model", Store())
    assert Path(manifest.path) == snapshot and hub.asked == []
    assert Store().remove("owner/model") == 0 and (snapshot / "config.json").is_file()


def test_the_token_goes_to_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull("owner/ggufs:Q8_0", Store())
    assert hub.asked[0].token == "Bearer hf_secret"


def test_the_token_does_not_go_where_files_are_redirected_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.redirects = True
    hub.breaks["tiny-Q8_0.gguf"] = [1000]
    pull("owner/ggufs:Q8_0", Store(), patience=0)
    assert [(one.start, one.token) for one in hub.asked] == [(0, None), (1000, None)]


def test_figures_of_a_gguf_file_come_from_its_header(hub: Hub) -> None:
    about = pull("owner/ggufs:Q8_0", Store()).about
    weights = sum(np.prod(shape) for shape in _shapes(checkpoint("llama")))
    assert about.parameters == weights and about.context == 256 and about.family == "llama"


def _shapes(directory: Path) -> list[tuple[int, ...]]:
    from tests.gguf_files import tensors_of

    return [tuple(tensor.shape) for tensor in tensors_of(directory).values()]
