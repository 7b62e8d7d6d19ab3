"""Modelfiles: what they say, what is wrong with them and on which line, and that writing and reading agree."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwork.runtime.loading import modelfile, parameters
from branchwork.runtime.loading.create import create, notes
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model, resolved
from branchwork.runtime.loading.store import Manifest, Message, Store
from branchwork.runtime.models.registry import load_spec
from branchwork.runtime.models.size import parameters as parameters_of
from tests.checkpoints import checkpoint

WHOLE = '''# A comment, and an empty line

from sapling
SYSTEM """You are a pirate.
  Answer "briefly". """
TEMPLATE """{{ .System }}
{{ .Prompt }}"""
PARAMETER temperature 0.3
parameter   stop "<|end|>"
PARAMETER stop two words
PARAMETER num_ctx 1024
PARAMETER use_mmap false
MESSAGE user Hello
MESSAGE assistant """Arr!
Ho."""
LICENSE "MIT"
LICENSE """Second
part"""
'''


def refusal(text: str) -> str:
    with pytest.raises(LoadError) as caught:
        modelfile.read(text)
    assert caught.value.code == "modelfile"
    return caught.value.message


def test_every_instruction_is_read() -> None:
    found = modelfile.read(WHOLE)
    assert found.base == "sapling"
    assert found.system == 'You are a pirate.\n  Answer "briefly". '
    assert found.template == "{{ .System }}\n{{ .Prompt }}"
    assert found.parameters == {
        "temperature": 0.3,
        "stop": ["<|end|>", "two words"],
        "num_ctx": 1024,
        "use_mmap": False,
    }
    assert found.messages == (Message("user", "Hello"), Message("assistant", "Arr!\nHo."))
    assert found.license == ("MIT", "Second\npart")


def test_windows_line_ends_mean_the_same() -> None:
    assert modelfile.read(WHOLE.replace("\n", "\r\n")) == modelfile.read(WHOLE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SYSTEM x", "has no FROM"),
        ("", "has no FROM"),
        ("FROM a\nFROM b", "line 2: a second FROM"),
        ("FROM", "line 1: FROM has no value"),
        ("FROM a\nPARAMETER", "line 2: PARAMETER has no value"),
        ("FROM a\nPARAMETER temperature", "line 2: PARAMETER temperature has no value"),
        ("FROM a\nPARAMETER temprature 1", "line 2: there is no parameter 'temprature'; there are: f16_kv"),
        ("FROM a\n\nPARAMETER temperature hot", "line 3: parameter temperature is 'hot'; it takes a number"),
        ("FROM a\nPARAMETER top_k 1.5", "it takes a whole number"),
        ("FROM a\nPARAMETER top_p 2", "top_p=2.0 is outside 0..1"),
        ("FROM a\nPARAMETER num_ctx 0", "it takes a whole number from 1"),
        ("FROM a\nPARAMETER use_mmap maybe", "true or false"),
        ("FROM a\nPARAMETER mirostat 2", "this sampler is not in Branchwork"),
        ("FROM a\nMESSAGE robot hi", "the role is one of system, user, assistant"),
        ("FROM a\nTEMPERATURE 1", "line 2: unknown instruction 'TEMPERATURE'; there are: FROM"),
        ("FROM a\nRENDERER x", "line 2: RENDERER names a part of Ollama's own program"),
        ("FROM a\nADAPTER ./lora", "line 2: ADAPTER ./lora: adapters are not applied here; merge it"),
        ('FROM a\nSYSTEM """never\nends', "line 2: the value that begins with"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, told: str) -> None:
    assert told in refusal(text)


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=40) | st.sampled_from(
    ['"', '""', "", ' a "', "a\n# no comment\nFROM b", "\n\n", '"x', "  indented\n\ttabs \n"]
)
HELD = TEXTS.filter(lambda text: not any(line.rstrip().endswith('"""') for line in text.split("\n")))
STOPS = st.lists(HELD.filter(bool), min_size=1, max_size=3)


@given(
    system=st.none() | HELD,
    template=st.none() | HELD,
    stops=STOPS,
    temperature=st.floats(0, 2),
    said=st.lists(st.tuples(st.sampled_from(modelfile.ROLES), HELD), max_size=3),
    licenses=st.lists(HELD, max_size=2),
)
def test_what_is_written_is_read_back_the_same(
    system: str | None,
    template: str | None,
    stops: list[str],
    temperature: float,
    said: list[tuple[str, str]],
    licenses: list[str],
) -> None:
    manifest = Manifest(
        path="sapling",
        system=system,
        template=template,
        parameters={"stop": stops, "temperature": temperature, "seed": 3, "use_mlock": True},
        messages=tuple(Message(role, text) for role, text in said),
        license=tuple(licenses),
    )
    found = modelfile.read(modelfile.write(manifest))
    assert found == modelfile.Modelfile(
        "sapling", system, template, manifest.parameters, manifest.messages, manifest.license
    )


def test_what_a_modelfile_cannot_hold_is_refused() -> None:
    with pytest.raises(LoadError, match="cannot hold that"):
        modelfile.write(Manifest(path="sapling", system='a"""\nb'))


def test_a_created_model_says_what_its_modelfile_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = create("pirate", WHOLE, store, folder=tmp_path)
    again = create("again", modelfile.write(made), store, folder=tmp_path)
    assert again == made
    assert store.get("again").about.parameters == parameters_of(load_spec(find_model("sapling")))
    assert notes(made) == ["without effect here: use_mmap"]


def test_a_base_of_the_library_gives_what_is_not_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    create("pirate", WHOLE, store, folder=tmp_path)
    child = create("child", "FROM pirate\nSYSTEM Be kind.\nPARAMETER temperature 1\n", store, folder=tmp_path)
    assert child.system == "Be kind." and child.parameters["temperature"] == 1.0
    assert child.parameters["stop"] == ["<|end|>", "two words"] and child.messages[0].content == "Hello"


def test_a_base_is_found_beside_its_modelfile(tmp_path: Path) -> None:
    directory = checkpoint("llama")
    made = create("tiny", f"FROM ./{directory.name}\n", Store(tmp_path), folder=directory.parent)
    assert Path(made.path) == directory and made.about.family == "llama"


@pytest.mark.parametrize("base", ["./nowhere", "nowhere", "/no/where.gguf"])
def test_a_base_that_is_nowhere_is_told(base: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no model of the library, no directory and no \.gguf file in"):
        create("x", f"FROM {base}\n", Store(tmp_path), folder=tmp_path)


def test_a_base_on_the_hub_is_pulled(tmp_path: Path) -> None:
    asked: list[str] = []

    def pulled(name: str) -> Manifest:
        asked.append(name)
        return Manifest(path=str(checkpoint("llama")), source=name)

    made = create("mine", "FROM owner/model\nSYSTEM x\n", Store(tmp_path), folder=tmp_path, pulled=pulled)
    assert asked == ["owner/model"] and made.source == "owner/model" and made.system == "x"


def test_a_template_that_cannot_be_used_creates_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for template in ("{{ .Nonsense }}", "{% if x %}"):
        with pytest.raises(LoadError, match="of the template"):
            create("x", f'FROM sapling\nTEMPLATE """{template}"""\n', store, folder=tmp_path)
    assert store.names() == []


def test_a_name_is_resolved_with_all_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRANCHWORK_HOME", str(tmp_path))
    create("pirate", WHOLE, Store(), folder=tmp_path)
    found = resolved("pirate")
    assert found.name == "pirate:latest" and found.path == find_model("sapling") == find_model("pirate")
    assert found.knobs == {"temperature": 0.3, "stop": ("<|end|>", "two words")}
    assert found.options == ("context=1024",)
    assert found.template is not None and "{%" in found.template
    assert resolved("sapling").manifest is None


def test_a_model_whose_files_have_gone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRANCHWORK_HOME", str(tmp_path))
    Store().put("lost", Manifest(path=str(tmp_path / "gone.gguf")))
    with pytest.raises(LoadError, match=r"'lost' lies in .*gone.gguf, which is not there any more; create it again"):
        find_model("lost")


def test_a_library_name_comes_before_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRANCHWORK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert find_model("mine") == Path("mine")
    Store().put("mine", Manifest(path="sapling"))
    assert find_model("mine") == find_model("sapling")
    assert find_model("./mine") == Path("mine")


def test_parameters_become_knobs_and_options() -> None:
    given = {"num_predict": -1, "seed": -1, "top_k": 0, "repeat_penalty": 1.1, "num_thread": 2, "num_gpu": 1}
    parameters.check(given)
    assert parameters.knobs(given) == {"max_tokens": 2**31, "top_k": -1, "repetition_penalty": 1.1}
    assert parameters.options(given) == ("threads=2",)
    assert parameters.without_effect(given) == ["num_gpu"]


def test_manifests_are_json_that_people_can_read(tmp_path: Path) -> None:
    create("pirate", WHOLE, Store(tmp_path), folder=tmp_path)
    text = (tmp_path / "manifests" / "pirate%3Alatest.json").read_text()
    assert msgspec.json.decode(text)["parameters"]["num_ctx"] == 1024 and text.count("\n") > 10
