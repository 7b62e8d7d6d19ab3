"""Control on the real runtime: races, budgets, recordings replayed, healed seams, exact choices."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.ir import Gen, Select
from branchwork.lang.live import LiveProgram
from branchwork.lang.protocol import Budget
from branchwork.lang.replay import replay

ENDLESS = {"max_tokens": 1900, "ignore_eos": True}
QUESTIONS = [
    "What is the capital of France?",
    "What is the currency of Japan?",
    "Give 3 tips for staying healthy.",
]


def state_on(runtime: bw.Runtime, stream: bool = False, **budget: Any) -> bw.ProgramState:
    return bw.ProgramState(LiveProgram(runtime, stream=stream, budget=Budget(**budget) if budget else None))


def until(true: Any, seconds: float = 15) -> None:
    """Wait for a condition that other processes bring about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.02)


def nothing_runs(runtime: bw.Runtime) -> bool:
    stats = runtime.stats()
    return not (stats["requests"] or stats["leases"] or stats["running"])


def code_of(read: Any) -> str:
    with pytest.raises(bw.ProgramError) as caught:
        read()
    return caught.value.code


# --- races


def test_losers_are_cancelled_in_the_middle_of_a_word(runtime: bw.Runtime) -> None:
    s = state_on(runtime)
    s += "Once upon a time"
    forks = s.fork(6)
    forks += lambda index: f" {index}" + bw.gen("x", max_tokens=3 if index in (2, 4) else 1900, ignore_eos=True)
    forks.join("first", k=2)
    s += " The end" + bw.gen("after", max_tokens=2)
    assert forks.winners() == [2, 4] and len(s["x"]) == 2 and s["after"] is not None
    assert code_of(lambda: forks[0]["x"]) == "outrun"
    until(lambda: nothing_runs(runtime))
    forks[2] += " and on" + bw.gen("more", max_tokens=2)
    assert forks[2]["more"] is not None


def test_a_loser_takes_the_forks_of_its_forks_with_it(runtime: bw.Runtime) -> None:
    s = state_on(runtime)
    s += "Once upon a time"
    forks = s.fork(3)
    inner = forks[0].fork(3)
    inner += [f" {letter}" + bw.gen("y", n=2, **ENDLESS) for letter in "abc"]
    inner.join()
    forks[1] += " there" + bw.gen("x", type=int)
    forks[2] += " far" + bw.gen("x", **ENDLESS)
    forks.join("first")
    assert len(s["x"]) == 1 and isinstance(s["x"][0], int)
    assert {code_of(lambda b=branch: b["y"]) for branch in inner} == {"outrun"}
    until(lambda: nothing_runs(runtime))


def test_a_majority_of_typed_answers_is_a_value(runtime: bw.Runtime) -> None:
    @bw.function
    def vote(s: Any) -> Any:
        s += bw.user("What is 17 plus 25?")
        forks = s.fork(5)
        for index, branch in enumerate(forks):
            with branch.assistant():
                branch += bw.gen("answer", type=int, temperature=1.0, seed=index)
        forks.join("majority", name="answer")
        return forks

    state = vote.run(backend=runtime)
    won = state.ret_value.winners()
    assert isinstance(state["answer"], int)
    assert {state.ret_value[index]["answer"] for index in won} == {state["answer"]}
    until(lambda: nothing_runs(runtime))


def test_a_race_that_nobody_wins_names_the_first_failure(runtime: bw.Runtime) -> None:
    s = state_on(runtime)
    forks = s.fork(2)
    forks += [bw.gen("x", max_tokens=3), bw.gen("x", max_tokens=3)]  # without any text before them
    forks.join("first")
    with pytest.raises(bw.ProgramError) as caught:
        s["x"]
    assert caught.value.code == "race_lost"
    assert caught.value.cause is not None and caught.value.cause.code == "empty_prompt"


# --- budgets


def test_tokens_of_a_program_are_limited(runtime: bw.Runtime) -> None:
    s = state_on(runtime, tokens=20)
    s += "Once upon a time" + bw.gen("x", max_tokens=12, ignore_eos=True)
    s += bw.gen("y", max_tokens=12, min_tokens=12, ignore_eos=True) + "." + bw.select("z", [" yes", " no"])
    assert s.meta("y")["completion_tokens"] == 8 and s.meta("y")["finish_reason"] == "length"
    assert s["z"] in (" yes", " no")
    s += bw.gen("late")
    with pytest.raises(bw.ProgramError, match=r"generated 20 tokens, its budget is 20") as caught:
        s["late"]
    assert caught.value.code == "budget" and Path(__file__).name in caught.value.source


def test_forks_share_the_budget_and_are_stopped_together(runtime: bw.Runtime) -> None:
    s = state_on(runtime, tokens=60)
    s += "Once upon a time"
    forks = s.fork(4)
    forks += lambda index: f" {index}" + bw.gen("x", **ENDLESS)
    forks.join()
    assert code_of(lambda: s["x"]) == "budget"
    stopped = [branch.error() for branch in forks]  # one may have reached its own end in the same moment
    assert sum(isinstance(error, bw.ProgramError) and error.code == "budget" for error in stopped) >= 3
    until(lambda: nothing_runs(runtime))


def test_time_ends_a_long_gen_and_frees_what_it_held(runtime: bw.Runtime) -> None:
    s = state_on(runtime, seconds=0.2)
    s += "Once upon a time" + bw.gen("x", n=3, **ENDLESS)
    with pytest.raises(bw.ProgramError, match=r"its budget is 0\.2 s") as caught:
        s["x"]
    assert caught.value.code == "budget"
    until(lambda: nothing_runs(runtime))
    s += bw.gen("y")
    assert code_of(lambda: s["y"]) == "budget"


# --- recordings


@bw.function
def story(s: Any) -> None:
    s += bw.system("You are sapling, a small assistant.")
    s += bw.user("Tell me about a river. " * 8)
    with s.assistant():
        s += bw.gen("first", max_tokens=40, min_tokens=20, stop=[".", "\n"], temperature=1.5)
        s += bw.select("mood", [" good", " bad", " odd"])
    s += bw.user("And then?")
    s += bw.assistant(bw.gen("second", max_tokens=24, temperature=1.5))
    forks = s.fork(2)
    forks += lambda index: (
        bw.user(f"Ending {index}?") + bw.assistant(bw.gen("end", max_tokens=12, temperature=1.5, n=2))
    )
    forks.join()
    s += bw.user("Sum up.") + bw.assistant(bw.gen("sum", regex=r"[a-z ]{5,20}", temperature=1.5))


NAMES = ("first", "mood", "second", "end", "sum")


@pytest.mark.parametrize("from_", NAMES)
def test_a_replay_goes_on_from_the_very_tokens_that_were_there(runtime: bw.Runtime, tmp_path: Path, from_: str) -> None:
    """Hot answers hold tokens that their text alone would never be encoded to."""
    state = story.run(backend=runtime)
    state.save(tmp_path / "story.json")
    again = replay(tmp_path / "story.json", from_=from_, backend=runtime)
    again.wait_idle()
    records = [record for record in again.live.records.values() if isinstance(record.node, (Gen, Select))]
    first = next(index for index, record in enumerate(records) if getattr(record.node, "name", "") == from_)
    before = [record for record in state.live.records.values() if isinstance(record.node, (Gen, Select))]
    assert [record.values for record in records[:first]] == [record.values for record in before[:first]]
    was, now = before[first].meta[0], records[first].meta[0]
    assert now["prompt_tokens"] == was["prompt_tokens"] and now.get("seed") == was.get("seed")
    assert now["cached_tokens"] >= now["prompt_tokens"] - 1, "every token before it was still in the tree"


def test_a_replay_needs_no_cache_and_a_look_at_it_computes_nothing(runtime: bw.Runtime, tmp_path: Path) -> None:
    @bw.function
    def chat(s: Any) -> None:
        for number, question in enumerate((QUESTIONS[0], "And its currency?", "What about Japan?")):
            s += bw.user(question) + bw.assistant(bw.gen(f"answer{number}", max_tokens=24, temperature=0))

    state = chat.run(backend=runtime)
    state.save(tmp_path / "chat.json")
    runtime.flush_cache()
    again = replay(tmp_path / "chat.json", from_="answer1", backend=runtime)
    assert again.text() == state.text()
    assert again.meta("answer1")["prompt_tokens"] == state.meta("answer1")["prompt_tokens"]
    assert again.meta("answer1")["cached_tokens"] == 0
    before = runtime.stats()["computed_tokens"]
    assert replay(tmp_path / "chat.json", backend=runtime).text() == state.text()
    assert runtime.stats()["computed_tokens"] == before


def test_a_replay_can_be_told_to_be_another(runtime: bw.Runtime, tmp_path: Path) -> None:
    state = story.run(backend=runtime, seed=5)
    state.save(tmp_path / "story.json")
    hot = {"temperature": 3.0, "ignore_eos": True}
    texts = {
        replay(tmp_path / "story.json", from_="second", backend=runtime, seed=None, **hot)["second"] for _ in range(3)
    }
    assert len(texts) == 3
    sure = [replay(tmp_path / "story.json", from_="second", backend=runtime, temperature=0)["second"] for _ in range(2)]
    assert sure[0] == sure[1]


def test_healed_and_stopped_answers_are_replayed_with_their_own_tokens(runtime: bw.Runtime, tmp_path: Path) -> None:
    @bw.function
    def program(s: Any) -> None:
        s += bw.user(QUESTIONS[0])
        with s.assistant():
            s += "The capital of Fra" + bw.gen("first", heal=True, stop="ari", temperature=0, max_tokens=30)
            s += "..." + bw.gen("second", max_tokens=12, temperature=2.0)

    state = program.run(backend=runtime)
    assert state["first"] == "nce is P"
    state.save(tmp_path / "healed.json")
    again = replay(tmp_path / "healed.json", from_="second", backend=runtime)
    assert again["first"] == state["first"] and again.text().startswith(state.text().split("...")[0])
    assert again.meta("second")["prompt_tokens"] == state.meta("second")["prompt_tokens"]
    assert again.meta("second")["cached_tokens"] >= state.meta("second")["prompt_tokens"] - 1


def test_a_program_over_its_budget_is_finished_by_a_replay(runtime: bw.Runtime, tmp_path: Path) -> None:
    s = state_on(runtime, tokens=8)
    s += "Once upon a time" + bw.gen("x", max_tokens=8, ignore_eos=True) + bw.gen("y", max_tokens=8, ignore_eos=True)
    assert code_of(lambda: s["y"]) == "budget"
    s.save(tmp_path / "short.json")
    again = replay(tmp_path / "short.json", from_="y", backend=runtime)
    assert again["x"] == s["x"] and again.meta("y")["completion_tokens"] == 8


# --- healed seams


@bw.function
def begun(s: Any, question: str, beginning: str, **knobs: Any) -> None:
    s += bw.user(question)
    with s.assistant():
        if beginning:
            s += beginning
        s += bw.gen("out", max_tokens=60, **knobs)


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_begun_anywhere_goes_on_as_if_it_had_not_been_cut(runtime: bw.Runtime, question: str) -> None:
    whole = begun.run(question, "", backend=runtime, temperature=0)["out"]
    cuts = range(1, 30)

    def right(**knobs: Any) -> int:
        rows = [{"question": question, "beginning": whole[:cut]} for cut in cuts]
        states = begun.run_batch(rows, backend=runtime, temperature=0, **knobs)
        return sum(state["out"] == whole[cut:] for cut, state in zip(cuts, states))

    healed, plain = right(heal=True), right()
    assert healed >= len(cuts) - 2
    assert healed > plain + 8


def test_the_healed_part_is_in_no_text_and_no_stream(runtime: bw.Runtime) -> None:
    whole = begun.run(QUESTIONS[0], "", backend=runtime, temperature=0)["out"]
    cut = whole.index("France") + 3
    state = begun.stream(QUESTIONS[0], whole[:cut], heal=True, backend=runtime, temperature=0)
    pieces = list(state.text_iter("out"))
    assert "".join(pieces) == state["out"] == whole[cut:]
    assert state.text().count(whole) == 1
    assert state.messages()[-1]["content"] == whole.lstrip()


def test_a_stop_inside_the_healed_part_ends_nothing(runtime: bw.Runtime) -> None:
    whole = begun.run(QUESTIONS[0], "", backend=runtime, temperature=0)["out"]
    cut = whole.index("France") + 3
    assert begun.run(QUESTIONS[0], whole[:cut], backend=runtime, temperature=0)["out"] != whole[cut:], (
        "it needs healing"
    )
    for stop in ("Fra", "Fr", "a"):
        state = begun.run(QUESTIONS[0], whole[:cut], heal=True, stop=stop, backend=runtime, temperature=0)
        assert state["out"] == whole[cut:].split(stop)[0]


def test_a_healed_answer_keeps_its_constraint(runtime: bw.Runtime) -> None:
    whole = begun.run(QUESTIONS[0], "", backend=runtime, temperature=0)["out"]
    cut = whole.index("France") + 3
    state = begun.run(QUESTIONS[0], whole[:cut], heal=True, regex=r"nce is [A-Z][a-z]+", backend=runtime, temperature=0)
    assert state["out"] == "nce is Paris"
    state = begun.run(QUESTIONS[0], "The answer is 4", heal=True, type=int, backend=runtime, temperature=0)
    assert isinstance(state["out"], int)


def test_samples_of_a_healed_answer_all_go_on_from_the_seam(runtime: bw.Runtime) -> None:
    whole = begun.run(QUESTIONS[0], "", backend=runtime, temperature=0)["out"]
    cut = whole.index("France") + 3
    state = begun.run(QUESTIONS[0], whole[:cut], heal=True, n=3, temperature=0.01, backend=runtime)
    assert state["out"] == [whole[cut:]] * 3


# --- exact choices


def test_exact_probabilities_are_those_of_the_choices_tokens(runtime: bw.Runtime) -> None:
    @bw.function
    def pick(s: Any, choices: list[str]) -> None:
        s += bw.user("What is the capital of France?") + bw.assistant_begin()
        s += "The capital of France is" + bw.select("city", choices, choices_method="exact")

    choices = [" London", " Paris", " a town that I do not know", " Rome"]
    meta = pick.run(choices, backend=runtime).meta("city")
    likely = [math.exp(sum(token[0] for token in option)) for option in meta["input_token_logprobs"]]
    assert sum(meta["probabilities"]) == pytest.approx(1.0)
    assert meta["probabilities"] == pytest.approx([each / sum(likely) for each in likely], rel=1e-5)
    assert meta["choice"] == " Paris" == choices[max(range(4), key=meta["probabilities"].__getitem__)]
    assert pick.run(choices[::-1], backend=runtime).meta("city")["probabilities"][::-1] == pytest.approx(
        meta["probabilities"], rel=1e-3
    )
