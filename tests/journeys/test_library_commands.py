"""`branchwork pull, list, show, rm, cp, create`, as a person types them; the hub is a server on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner, Result

import branchwork as bw
from branchwork.cli import app
from branchwork.runtime.loading.store import Manifest, Store
from tests.checkpoints import checkpoint
from tests.fake_hub import Hub, files_of, serving

MODELFILE = '''FROM sapling
SYSTEM """You are a pirate."""
TEMPLATE """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}<|im_start|>user
{{ .Prompt }}<|im_end|>
<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
PARAMETER num_predict 3
PARAMETER num_ctx 512
PARAMETER temperature 0
PARAMETER use_mmap true
MESSAGE user Hello
MESSAGE assistant Arr
LICENSE Free as the sea
'''


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BRANCHWORK_HOME", str(tmp_path / "library"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Modelfile").write_text(MODELFILE)
    return tmp_path / "library"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving({"owner/tiny": files_of(checkpoint("llama"))}) as served:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def command(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == status, done.output
    return done


def test_a_model_is_pulled_listed_shown_copied_and_removed(hub: Hub) -> None:
    pulled = command("pull", "owner/tiny")
    assert "downloading model.safetensors" in pulled.stderr and "F32" in pulled.stdout
    listed = command("list").stdout
    assert "owner/tiny:latest" in listed and "0 s ago" in listed and "ships with Branchwork" in listed
    shown = command("show", "owner/tiny").stdout
    assert "llama" in shown and "256 tokens" in shown
    command("cp", "owner/tiny", "mine:short")
    assert "freed" not in command("rm", "owner/tiny").stdout
    assert "freed" in command("rm", "mine:short").stdout
    assert command("list").stdout.count("\n") == 2
    Store().check()


def test_a_model_of_an_unknown_architecture_is_refused_before_its_weights_come(hub: Hub) -> None:
    files = hub.repositories["owner/tiny"]
    files["config.json"] = files["config.json"].replace(b"LlamaForCausalLM", b"MambaForCausalLM")
    assert "MambaForCausalLM" in command("pull", "owner/tiny", status=1).stderr
    assert "model.safetensors" not in [one.file for one in hub.asked]


def test_the_packaged_model_needs_no_pulling() -> None:
    assert "nothing to pull" in command("pull", "sapling").stdout


def test_a_modelfile_makes_a_model_whose_modelfile_makes_it_again(tmp_path: Path) -> None:
    made = command("create", "pirate")
    assert "without effect here: use_mmap" in made.stderr
    written = command("show", "pirate", "--modelfile").stdout
    (tmp_path / "Again").write_text(written)
    command("create", "again", "-f", "Again")
    assert command("show", "again", "--modelfile").stdout == written
    assert Store().get("again").parameters == Store().get("pirate").parameters


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("system", "You are a pirate.\n"),
        ("parameters", "num_predict 3\nnum_ctx 512\ntemperature 0.0\nuse_mmap true\n"),
        ("license", "Free as the sea\n"),
    ],
)
def test_a_part_is_shown_as_it_is(part: str, text: str) -> None:
    command("create", "pirate")
    assert command("show", "pirate", f"--{part}").stdout == text


def test_the_models_own_template_is_shown_where_no_other_is() -> None:
    assert "<|im_start|>" in command("show", "sapling", "--template").stdout
    assert "has no system prompt" in command("show", "sapling", "--system").stderr


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("rm", "nobody"), 1, "there is no model 'nobody' in the library"),
        (("rm", "sapling"), 1, "ships with the package"),
        (("show", "nobody"), 1, "model 'nobody'"),
        (("show", "sapling", "--system", "--license"), 2, "one part at a time"),
        (("cp", "nobody", "x"), 1, "model 'nobody'"),
        (("show", "owner/nobody"), 1, "`branchwork pull owner/nobody` brings it"),
        (("cp", "sapling", "not a name"), 1, "is no name for a model"),
        (("create", "sapling"), 1, "packaged model's name"),
        (("create", "x", "-f", "nowhere"), 2, "nowhere cannot be read"),
        (("pull", "llama3"), 1, "names of the Hugging Face hub are owner/name"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(arguments: tuple[str, ...], status: int, told: str) -> None:
    done = command(*arguments, status=status)
    assert told in done.stderr and done.stdout == "" and "Traceback" not in done.stderr


def test_a_template_without_frames_is_made_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text('FROM sapling\nTEMPLATE "always this"\n')
    assert "programs write roles as plain lines" in command("create", "bare").stderr


def test_a_wrong_line_of_a_modelfile_is_named(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM sapling\nPARAMETER temprature 1\n")
    assert "line 2: there is no parameter 'temprature'" in command("create", "x", status=1).stderr
    assert Store().names() == []


@pytest.mark.parametrize("name", ["run", "pull", "list", "show", "rm", "cp", "create"])
def test_every_command_explains_itself(name: str) -> None:
    assert name in command(name, "--help").stdout


def test_listing_loads_no_torch() -> None:
    Store().put("mine", Manifest(path="sapling"))
    code = "import sys, branchwork.library as l; l.list_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "mine:latest" in done.stdout and done.stdout.endswith("False\n")


@bw.function
def hello(s: bw.ProgramState) -> None:
    s += bw.user("Hi") + bw.assistant(bw.gen("x", ignore_eos=True))
    s += bw.user("Hi") + bw.assistant(bw.gen("y", ignore_eos=True, max_tokens=5))


def test_a_runtime_serves_a_library_name_with_its_settings() -> None:
    command("create", "pirate")
    with bw.Runtime("pirate", threads=1, pages=1024) as runtime:
        assert runtime.model.context == 512
        for state in (hello.run(backend=runtime), hello.compile().run(backend=runtime)):
            assert state.text().startswith(
                "<|im_start|>system\nYou are a pirate.<|im_end|>\n<|im_start|>user\nHi<|im_end|>"
            )
            assert state.meta("x")["completion_tokens"] == 3
            assert state.meta("y")["completion_tokens"] == 5
