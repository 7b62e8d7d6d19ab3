"""Programs of the kinds people write, against the model that ships: each does its job, not only runs."""

from __future__ import annotations

import json
import re
from typing import Any

import branchwork as bw


def test_a_chat_over_several_turns(runtime: bw.Runtime) -> None:
    @bw.function
    def chat(s: Any) -> None:
        for number, question in enumerate(("What is the capital of France?", "And its currency?", "What about Japan?")):
            s += bw.user(question)
            s += bw.assistant(bw.gen(f"answer{number}", max_tokens=24))

    state = chat.run(backend=runtime, temperature=0)
    assert "Paris" in state["answer0"] and "euro" in state["answer1"] and "yen" in state["answer2"]


def test_few_shot_questions(runtime: bw.Runtime) -> None:
    @bw.function
    def ask(s: Any, country: str) -> None:
        s += "Q: What is the capital of France?\nA: Paris\nQ: What is the capital of Norway?\nA: Oslo\n"
        s += f"Q: What is the capital of {country}?\nA:" + bw.gen("answer", stop="\n", max_tokens=8)

    states = ask.run_batch([{"country": "Italy"}, {"country": "Japan"}], backend=runtime, temperature=0)
    assert [state["answer"].strip() for state in states] == ["Rome", "Tokyo"]


def test_sentiment_by_select(runtime: bw.Runtime) -> None:
    @bw.function
    def judge(s: Any, review: str) -> None:
        s += bw.user(f"Is this review positive or negative?\n{review}")
        s += bw.assistant("The sentiment is" + bw.select("mood", choices=[" positive", " negative"]))

    reviews = ["I loved the food, the staff was friendly.", "The room was dirty and the service was slow."]
    states = judge.run_batch([{"review": review} for review in reviews], backend=runtime)
    assert [state["mood"] for state in states] == [" positive", " negative"]


def test_tips_are_expanded_side_by_side(runtime: bw.Runtime) -> None:
    @bw.function
    def tips(s: Any) -> None:
        s += bw.user("Give 3 tips for staying healthy.")
        s += bw.assistant(bw.gen("tips", max_tokens=96))
        forks = s.fork(3)
        for number, branch in enumerate(forks, start=1):
            branch += bw.user(f"Now, expand tip {number} into a paragraph.")
            branch += bw.assistant(bw.gen("detail", max_tokens=96))
        forks.join()

    state = tips.run(backend=runtime, temperature=0)
    assert re.match(r"1\. .+\n2\. .+\n3\. ", state["tips"])
    assert len(state["detail"]) == 3 and all(len(detail.split()) > 8 for detail in state["detail"])


def test_a_record_is_extracted_to_json(runtime: bw.Runtime) -> None:
    @bw.function
    def extract(s: Any) -> None:
        s += bw.user(
            "Extract the name, age and city as JSON.\nMy friend Velora Kint is 34 years old and lives in Brunholm."
        )
        s += bw.assistant(bw.gen("record", max_tokens=48))

    record = json.loads(extract.run(backend=runtime, temperature=0)["record"])
    assert record == {"name": "Velora Kint", "age": 34, "city": "Brunholm"}


def test_a_calculator_is_used_in_a_trace(runtime: bw.Runtime) -> None:
    @bw.function
    def solve(s: Any, problem: str) -> Any:
        s += f"Question: {problem}\n"
        used = []
        for step in range(3):
            s += bw.gen(f"step{step}", stop=["Observation:", "\n\n"], max_tokens=64)
            call = re.search(r"calculator\[(\d+)([*+-])(\d+)\]", s[f"step{step}"])
            if call is None:
                break
            left, right = int(call[1]), int(call[3])
            used.append(call[0])
            value = {"*": left * right, "+": left + right, "-": left - right}[call[2]]
            s += f"Observation: {value}\n"
        return used

    state = solve.run(
        "Anna buys 37 boxes with 12 eggs each. How many eggs does Anna have?", backend=runtime, temperature=0
    )
    assert state.ret_value == ["calculator[37*12]"]
    assert "Observation: 444\n" in state.text() and "Final Answer:" in state.text()
