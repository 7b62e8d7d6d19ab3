"""Recordings: what a file keeps of a program, and what running it again from somewhere generates anew."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

import branchwork as bw
from branchwork.lang.backend import Call, LocalBackend, Reply
from branchwork.lang.default import set_default_backend
from branchwork.lang.live import LiveProgram
from branchwork.lang.protocol import Budget, ChatFrames, Frame
from branchwork.lang.replay import replay

CHATML = ChatFrames(roles={r: Frame(f"<|{r}|>", "<|end|>\n") for r in ("system", "user", "assistant")})


class Counting(bw.ScriptedBackend):
    """Numbers its answers, and says which seed it was asked to use."""

    def __init__(self, first: int = 0, **options: Any) -> None:
        super().__init__(self._answer, **options)
        self.count = first

    def _answer(self, prompt: str, call: Call) -> Any:
        self.count += 1
        if call.kind == "select":
            return call.choices[self.count % len(call.choices)]
        seed = call.params.seed if call.params.seed is not None else 1000 + self.count
        metas = tuple({"seed": seed, "output_ids": [self.count], "completion_tokens": 1} for _ in range(call.params.n))
        return Reply(tuple(f" {call.name}{self.count}.{sample}" for sample in range(call.params.n)), metas)


@bw.function
def chat(s: Any) -> Any:
    s += bw.system("Be kind.")
    for turn in range(3):
        s += bw.user(f"Question {turn}")
        s += bw.assistant(bw.gen("answer"))
        s += bw.select("mood", [" good", " bad"])
    s["facts"] = {"a": 1}
    forks = s.fork(2)
    forks += lambda index: f" branch {index}" + bw.gen("more", n=2 if index else 1)
    forks.join()
    s += s.ref("answer") + bw.gen("end")
    return s["end"]


def saved(state: bw.ProgramState, tmp_path: Path) -> Path:
    path = tmp_path / "program.json"
    state.save(path)
    return path


def everything(state: bw.ProgramState) -> dict[str, Any]:
    """What a reader can see of a program, on all its branches."""
    live = state.live
    state.wait_idle()
    branches = sorted(live.machine.lineage.tracks)
    return {
        "texts": [live.machine.branch(branch).text for branch in branches],
        "variables": [live.machine.branch(branch).variables for branch in branches],
        "meta": [(number, record.meta, record.source) for number, record in live.records.items()],
        "failures": {number: failure.code for number in live.records if (failure := live.machine.failure(number))},
        "messages": live.machine.branch(0).messages(),
    }


def test_a_recording_can_be_looked_at_without_any_backend(tmp_path: Path) -> None:
    state = chat.run(backend=Counting(frames=CHATML))
    path = saved(state, tmp_path)
    again = replay(path)
    seen, was = everything(again), everything(state)
    assert was["variables"][0].pop("facts") == {"a": 1}  # an object: its text is kept, and a note says so
    assert seen["variables"][0].pop("facts") == "{'a': 1}"
    for variables in (*seen["variables"], *was["variables"]):
        variables.pop("facts", None)
    assert seen == was
    assert any("setvar 'facts'" in note and "dict" in note for note in again.live.notes)
    assert again["answer"] == state["answer"] and again.meta("answer") == state.meta("answer")
    assert again["more"] == state["more"] and again.text() == state.text() and again.messages() == state.messages()
    assert again.ret_value is None


def test_replaying_from_a_gen_keeps_what_was_before_it_and_asks_for_the_rest(tmp_path: Path) -> None:
    first = Counting(frames=CHATML)
    state = chat.run(backend=first)
    path = saved(state, tmp_path)
    second = Counting(100, frames=CHATML)
    again = replay(path, from_=("answer", 1), backend=second)
    again.wait_idle()
    assert second.prompts[0] == first.prompts[2]
    asked = [(call.kind, call.name) for call in second.calls]
    assert asked[:4] == [("gen", "answer"), ("select", "mood")] * 2
    assert sorted(asked[4:]) == [("gen", "end"), ("gen", "more"), ("gen", "more")]
    assert again.messages()[2] == state.messages()[2] and again.messages()[4] != state.messages()[4]
    assert again.live.machine.branch(1).inherited > 0 and len(again["more"]) == 2
    assert "answer105" not in again["end"] and again["end"].startswith(" end")


def test_what_is_generated_anew_has_the_recorded_seed_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    first = Counting()
    path = saved(chat.run(backend=first, temperature=0.5), tmp_path)
    recorded = [1000 + number + 1 for number, call in enumerate(first.calls) if call.kind == "gen"]

    def asked(**knobs: Any) -> list[Call]:
        backend = Counting(500)
        replay(path, from_="answer", backend=backend, **knobs).wait_idle()
        return [call for call in backend.calls if call.kind == "gen"]

    same = asked()
    assert sorted(call.params.seed or 0 for call in same) == sorted(recorded)
    assert {call.params.temperature for call in same} == {0.5}
    fresh = asked(temperature=0, max_new_tokens=5, seed=None)
    assert {(call.params.seed, call.params.temperature, call.params.max_tokens) for call in fresh} == {(None, 0, 5)}
    assert {call.params.seed for call in asked(seed=3)} == {3}
    assert {call.params.n for call in fresh} == {1, 2}


def test_a_replayed_program_can_be_saved_again(tmp_path: Path) -> None:
    path = saved(chat.run(backend=Counting(frames=CHATML)), tmp_path)
    again = replay(path, from_="end", backend=Counting(200, frames=CHATML))
    second = tmp_path / "second.json"
    again.save(second)
    third = replay(second)
    assert everything(third) == everything(again)
    assert third["end"].startswith(" end201") and third.live.notes == again.live.notes
    replay(second).save(tmp_path / "third.json")
    assert (tmp_path / "third.json").read_bytes() == second.read_bytes()


def test_captures_typed_values_and_unnamed_gens_are_kept_as_text(tmp_path: Path) -> None:
    @bw.function
    def program(s: Any) -> None:
        s += "a" + bw.gen("age", type=int) + bw.gen()
        s += bw.turn("<", bw.gen("kind", type=Literal["x", "y"]), ">", name="turn")

    backend = bw.ScriptedBackend({"age": "42", "": "unnamed", "turn": {"kind": "y"}})
    state = program.run(backend=backend)
    assert state["age"] == 42 and state["kind"] == "y"
    again = replay(saved(state, tmp_path))
    assert again["age"] == "42" and again["kind"] == "y" and again["turn"] == "<y>"
    assert again.text() == state.text() == "a42unnamed<y>"
    assert any("age" in note and "the text is kept" in note for note in again.live.notes)
    from_the_part = bw.ScriptedBackend({"turn": {"kind": "x"}})
    assert replay(tmp_path / "program.json", from_="kind", backend=from_the_part)["kind"] == "x"


def test_failures_are_kept_and_can_be_replayed_past(tmp_path: Path) -> None:
    @bw.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        forks += ["a" + bw.gen("x"), "b" + bw.gen("x")]
        s += "c" + bw.gen("y")
        forks.join()
        s += bw.gen("z")

    state = program.run(
        backend=bw.ScriptedBackend(lambda prompt, call: ValueError("broken") if prompt == "b" else "ok")
    )
    path = saved(state, tmp_path)
    looked_at = replay(path)
    assert everything(looked_at)["failures"] == everything(state)["failures"]
    with pytest.raises(bw.ProgramError, match="broken") as caught:
        looked_at["z"]
    assert caught.value.code == "branch_failed"
    assert caught.value.cause is not None and caught.value.cause.code == "executor_error"
    assert looked_at["y"] == "ok"
    mended = replay(path, from_=("x", 1), backend=bw.ScriptedBackend(lambda prompt, call: prompt.upper()))
    assert mended["x"] == ["ok", "B"] and mended["z"] == "CC"


def test_a_program_whose_function_raised_is_kept_with_the_reason(tmp_path: Path) -> None:
    kept: list[Any] = []

    @bw.function
    def program(s: Any) -> None:
        kept.append(s)
        s += "a" + bw.gen("x")
        raise KeyError(s["x"])

    with pytest.raises(KeyError):
        program.run(backend=bw.ScriptedBackend(["yes"]))
    again = replay(saved(kept[0], tmp_path))
    assert again["x"] == "yes"
    assert any("KeyError" in note for note in again.live.notes)


def test_winners_of_races_before_it_stay_and_races_after_it_are_run_anew(tmp_path: Path) -> None:
    slow = {"0b": "first", "1a": "second"}  # the branch of each race that answers

    async def answer(prompt: str, call: Call) -> str:
        if call.name == "x" and prompt[-2:] not in slow:
            await asyncio.sleep(3600)
        return prompt[-2:].upper()

    @bw.function
    def program(s: Any) -> Any:
        all_ = []
        for round_ in range(2):
            forks = s.fork(3)
            forks += lambda index, r=round_: f"{r}{'abc'[index]}" + bw.gen("x")
            forks.join("first")
            s += "-" + bw.gen("then")
            all_.append(forks)
        return all_

    state = program.run(backend=bw.ScriptedBackend(answer))
    path = saved(state, tmp_path)
    looked_at = replay(path)
    assert everything(looked_at) == everything(state)
    assert [list(w) for w in looked_at.live.machine.winners.values()] == [[1], [0]]
    slow = {"0a": "never asked", "1c": "second"}
    again = replay(path, from_=("x", 3), backend=bw.ScriptedBackend(answer))
    again.wait_idle()
    assert [list(w) for w in again.live.machine.winners.values()] == [[1], [2]]
    slow = {"0c": "first", "1b": "second"}
    anew = replay(path, from_="x", backend=bw.ScriptedBackend(answer))
    anew.wait_idle()
    assert [list(w) for w in anew.live.machine.winners.values()] == [[2], [1]]


def test_a_majority_is_replayed_with_its_votes(tmp_path: Path) -> None:
    @bw.function
    def program(s: Any) -> None:
        forks = s.fork(3)
        forks += lambda index: f"{index}" + bw.gen("vote")
        forks.join("majority", name="vote")
        s += s.ref("vote") + bw.gen("end")

    votes = {"0": "no", "1": "yes", "2": "yes"}
    state = program.run(backend=bw.ScriptedBackend(lambda prompt, call: votes.get(prompt, "fin")))
    again = replay(saved(state, tmp_path), from_="end", backend=bw.ScriptedBackend(["other"]))
    assert again["vote"] == "yes" and again["end"] == "other"


def test_branches_that_were_cancelled_or_over_budget_stay_so_until_they_are_replayed(tmp_path: Path) -> None:
    async def answer(prompt: str, call: Call) -> str:
        await asyncio.sleep(3600 if prompt == "b" else 0)
        return " one two three"

    live = LiveProgram(bw.ScriptedBackend(answer), budget=Budget(tokens=3))
    s = bw.ProgramState(live)
    forks = s.fork(2)
    forks[1] += "b" + bw.gen("x")
    forks[1].cancel()
    forks[0] += "a" + bw.gen("x")
    assert forks[0]["x"] == " one two three"
    s += "c" + bw.gen("y")
    assert s.error() is not None
    again = replay(saved(s, tmp_path))
    codes = everything(again)["failures"]
    assert set(codes.values()) == {"cancelled", "budget"} and codes == everything(s)["failures"]
    whole = replay(tmp_path / "program.json", from_="x", backend=bw.ScriptedBackend(lambda prompt, call: prompt * 2))
    assert whole["y"] == "cc" and everything(whole)["failures"] == {}


def test_a_replay_can_be_streamed(tmp_path: Path) -> None:
    path = saved(chat.run(backend=Counting()), tmp_path)
    state = replay(path, from_="end", backend=bw.ScriptedBackend(["one two three"]), stream=True)
    assert list(state.text_iter("end")) == ["one", " two", " three"]
    assert "".join(replay(path, from_="end", backend=bw.ScriptedBackend(["x y"]), stream=True).text_iter()).endswith(
        "x y"
    )


def test_a_replay_in_an_async_program_does_not_block(tmp_path: Path) -> None:
    path = saved(chat.run(backend=Counting()), tmp_path)

    async def read() -> Any:
        return await replay(path, from_="end", backend=Counting(300)).get("end")

    assert asyncio.run(read()) == " end301.0"


def test_the_default_backend_replays_when_none_is_given(tmp_path: Path) -> None:
    path = saved(chat.run(backend=Counting()), tmp_path)
    backend = Counting(700)
    set_default_backend(backend)
    assert replay(path, from_="end")["end"] == " end701.0"


def test_another_model_is_told_of_and_gets_texts(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def execute(call: Call, branch: Any, emit: Any) -> Reply:
        return Reply(("new",))

    class Watching(LocalBackend):
        def open(self, *args: Any, **options: Any) -> Any:
            session = super().open(*args, **options)
            lay = session.lay

            def watched(branch: int, nodes: Any) -> None:
                seen.extend(nodes)
                lay(branch, nodes)

            session.lay = watched  # type: ignore[method-assign]
            return session

    path = saved(chat.run(backend=Counting(frames=CHATML)), tmp_path)
    with pytest.warns(UserWarning) as warned:
        state = replay(path, from_="end", backend=Watching(execute, model="other"))
    assert state["end"] == "new"
    said = [str(warning.message) for warning in warned]
    assert any("'scripted'" in text and "'other'" in text for text in said) and any("template" in text for text in said)
    assert [note for note in state.live.notes if note in said] == said
    given = [laid.node.given for laid in seen if getattr(laid.node, "given", None)]
    assert given and not any(answer.ids for answer in given)
    seen.clear()
    replay(path, from_="end", backend=Watching(execute, model="scripted", frames=CHATML)).wait_idle()
    ids = [laid.node.given.ids for laid in seen if laid.node.__class__.__name__ == "Gen" and laid.node.given]
    assert ids[0] == (1).to_bytes(4, "little")


def test_a_file_has_one_line_for_each_node_and_nothing_but_json(tmp_path: Path) -> None:
    state = chat.run(backend=Counting())
    path = saved(state, tmp_path)
    whole = json.loads(path.read_text())
    assert len(whole["nodes"]) == len(state.live.records) == len(path.read_text().splitlines()) - 2
    assert whole["version"] == 1 and whole["model"] == "scripted" and whole["branches"] == 3
    assert all(step["source"].startswith(__file__) for step in whole["nodes"])


def test_meta_that_is_no_json_is_kept_as_text(tmp_path: Path) -> None:
    async def execute(call: Call, branch: Any, emit: Any) -> Reply:
        return Reply(("a",), ({"raw": ValueError("odd"), "set": {1}},))

    live = LiveProgram(LocalBackend(execute, model="m"))
    s = bw.ProgramState(live)
    s += "p" + bw.gen("x")
    again = replay(saved(s, tmp_path))
    assert again["x"] == "a" and again.meta("x") == {"raw": "odd", "set": [1]}


def test_saving_inside_the_function_keeps_what_is_there_by_then(tmp_path: Path) -> None:
    path = tmp_path / "half.json"

    @bw.function
    def program(s: Any) -> None:
        s += "a" + bw.gen("x")
        s.save(path)
        s += bw.gen("y")

    program.run(backend=bw.ScriptedBackend(["X", "Y"]))
    assert replay(path).text() == "aX"


def test_a_recording_of_pictures_keeps_their_bytes(tmp_path: Path) -> None:
    from branchwork.lang.ir import Image

    class Seeing(bw.ScriptedBackend):
        def accept(self, node: Any) -> None: ...

    live = LiveProgram(Seeing(["a cat"]))
    s = bw.ProgramState(live)
    s += "look: " + Image(b"\x00\xff", "image/png") + bw.gen("what")
    again = replay(saved(s, tmp_path))
    assert again["what"] == "a cat"
    assert again.live.machine.branch(0).pictures[1] == Image(b"\x00\xff", "image/png")
    assert msgspec.json.decode((tmp_path / "program.json").read_bytes())["nodes"][1]["node"]["data"] == "AP8="


def test_a_note_about_a_line_that_ran_often_is_kept_once(tmp_path: Path) -> None:
    @bw.function
    def body(s: Any) -> None:
        for _ in range(3):
            s += "x" + bw.gen("a", type=int)

    state = body.run(backend=bw.ScriptedBackend(lambda prompt, call: "7"))
    state.save(tmp_path / "run.json")
    assert [note for note in bw.replay(tmp_path / "run.json").live.notes if "had a type" in note] == [
        f"a [{state.live.records[1].source}] had a type; the text is kept"
    ]
