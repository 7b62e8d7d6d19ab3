"""Programs as people wrote them for SGLang, with another import: each comes to the outcome that it is for."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

import pytest

import branchwork as sgl

SHOTS = """Q: What is the capital of France?
A: Paris
Q: What is the capital of Germany?
A: Berlin
"""


@pytest.fixture(autouse=True)
def default_backend(runtime: sgl.Runtime) -> Any:
    sgl.set_default_backend(runtime)
    yield
    sgl.set_default_backend(None)


def test_few_shot_questions_in_a_batch() -> None:
    @sgl.function
    def few_shot_qa(s: Any, question: str) -> None:
        s += "The following are questions with answers.\n\n" + SHOTS
        s += "Q: " + question + "\n"
        s += "A:" + sgl.gen("answer", stop="\n", temperature=0)

    rows = [{"question": f"What is the capital of {country}?"} for country in ("Italy", "Japan", "Norway")]
    states = few_shot_qa.run_batch(rows, temperature=0, max_new_tokens=16, num_threads=8)
    assert [state["answer"].strip() for state in states] == ["Rome", "Tokyo", "Oslo"]
    assert states[2].get_meta_info("answer")["cached_tokens"] > 20


def test_a_conversation_over_several_turns() -> None:
    @sgl.function
    def multi_turn_question(s: Any, question_1: str, question_2: str) -> None:
        s += sgl.user(question_1)
        s += sgl.assistant(sgl.gen("answer_1", max_tokens=64))
        s += sgl.user(question_2)
        s += sgl.assistant_begin()
        s += sgl.gen("answer_2", max_tokens=64)
        s += sgl.assistant_end()

    state = multi_turn_question.run("What is the capital of France?", "And its currency?", temperature=0)
    assert "Paris" in state["answer_1"] and "euro" in state["answer_2"]
    assert [message["role"] for message in state.messages()] == ["user", "assistant"] * 2
    assert state.messages()[3]["content"] == state["answer_2"]


def test_a_choice_by_each_of_the_methods() -> None:
    @sgl.function
    def sentiment(s: Any, method: str) -> None:
        s += sgl.user("Is this review positive or negative?\nThe room was dirty and the service was slow.")
        s += sgl.assistant("The sentiment is" + sgl.select("mood", [" positive", " negative"], choices_method=method))

    for method in (
        sgl.token_length_normalized,
        sgl.greedy_token_selection,
        sgl.unconditional_likelihood_normalized,
    ):
        state = sentiment.run(method)
        meta = state.get_meta_info("mood")
        assert state["mood"] == " negative"
        assert len(meta["normalized_prompt_logprobs"]) == len(meta["input_token_logprobs"]) == 2


def test_numbers_words_and_truth_values_by_their_dtype() -> None:
    @sgl.function
    def typed(s: Any) -> None:
        s += "Ben is 34 years old. The age of Ben is " + sgl.gen_int("age", max_tokens=4)
        s += ". His name in quotes is " + sgl.gen_string("name", max_tokens=8)
        s += ". He is an adult: " + sgl.gen("adult", dtype=bool, max_tokens=4)
        s += ". His height in metres is " + sgl.gen("height", dtype="float", max_tokens=6)

    state = typed.run(temperature=0)
    assert isinstance(int(state["age"]), int) and isinstance(float(state["height"]), float)
    assert re.fullmatch(r'"[\w\s]*"?', state["name"]) and state["adult"] in ("True", "False", "true", "false")


def test_an_address_by_a_regex() -> None:
    byte = r"(25[0-5]|2[0-4]\d|[01]?\d\d?)"

    @sgl.function
    def address(s: Any) -> None:
        s += "Q: What is the IP address of the server?\nA: "
        s += sgl.gen("ip", temperature=0, max_tokens=40, regex=rf"({byte}\.){{3}}{byte}")

    assert re.fullmatch(rf"({byte}\.){{3}}{byte}", address.run()["ip"])


def test_a_character_as_json_by_a_regex_and_by_a_schema() -> None:
    shape = r'\{\n    "name": "[\w ]{1,16}",\n    "house": "(Gryffin|Raven)",\n    "alive": (true|false)\n\}'
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
        "required": ["name", "age", "city"],
    }

    @sgl.function
    def character(s: Any, name: str) -> None:
        s += name + " is a character in a book. Fill in a form about " + name + ".\n"
        s += sgl.gen("form", max_tokens=96, regex=shape)

    @sgl.function
    def record(s: Any, schema: Any) -> None:
        s += sgl.user("Extract the name, age and city as JSON.\nVelora Kint is 34 years old and lives in Brunholm.")
        s += sgl.assistant(sgl.gen("record", max_tokens=64, json_schema=schema))

    form = json.loads(character.run("Nora", temperature=0)["form"])
    assert set(form) == {"name", "house", "alive"} and form["house"] in ("Gryffin", "Raven")
    found = json.loads(record.run(json.dumps(schema), temperature=0)["record"])
    assert {name: type(value) for name, value in found.items()} == {"name": str, "age": int, "city": str}
    spaced = sgl.JsonSchema(json.dumps(schema), whitespace="flexible")  # as this model learned to write JSON
    found = json.loads(record.run(spaced, temperature=0)["record"])
    assert found == {"name": "Velora Kint", "age": 34, "city": "Brunholm"}


def test_an_expert_is_introduced_and_answers_in_a_stream() -> None:
    @sgl.function
    def expert_answer(s: Any, question: str) -> None:
        s += sgl.user(question + " Who could answer that?")
        s += sgl.assistant("An expert is" + sgl.gen("expert", stop=[".", "\n"], max_tokens=12) + ".")
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=24))

    sgl.flush_cache()  # an answer that the tree holds already may come in one piece
    state = expert_answer.run(question="What is the capital of Japan?", temperature=0, stream=True)
    pieces = list(state.text_iter("answer"))
    assert len(pieces) > 1 and "".join(pieces) == state["answer"] and "Tokyo" in state["answer"]
    assert "." not in state["expert"]


def test_a_tool_is_chosen_and_its_input_written() -> None:
    @sgl.function
    def tool_use(s: Any, question: str) -> None:
        s += "To answer this question: " + question + ". I need to use a"
        s += sgl.gen("tool", choices=[" calculator", " search engine"])
        if s["tool"] == " calculator":
            s += ". The math expression is" + sgl.gen("expression", stop="\n", max_tokens=16)
        elif s["tool"] == " search engine":
            s += ". The key word to search is" + sgl.gen("word", stop="\n", max_tokens=16)

    rows = [{"question": "What is 12 times 34?"}, {"question": "What is the capital of Peru?"}]
    sums, facts = tool_use.run_batch(rows, temperature=0)
    assert (sums["tool"], sums["expression"].strip()) == (" calculator", "12*34") and "word" not in sums
    assert (facts["tool"], facts["word"].strip()) == (" search engine", "Peru") and "expression" not in facts


def test_reason_and_act_with_a_calculator() -> None:
    @sgl.function
    def react(s: Any, question: str) -> int:
        s += "Question: " + question + "\n"
        for i in range(1, 5):
            s += sgl.gen(f"thought{i}", stop=["Observation", "Final Answer"], max_tokens=64)
            call = re.search(r"calculator\[(\d+)([*+-])(\d+)\]", s[f"thought{i}"])
            if call is None:
                s += "Final Answer:" + sgl.gen("answer", stop="\n", max_tokens=16)
                return i
            left, right = int(call[1]), int(call[3])
            s += f"Observation: { {'*': left * right, '+': left + right, '-': left - right}[call[2]] }\n"
        return 0

    state = react.run(
        "Ben has 12 boxes with 34 apples each and sells 50 apples. How many apples are left?", temperature=0
    )
    assert state.ret_value == 3  # a product, a difference, the answer
    assert "Observation: 408\n" in state.text() and "358" in state["answer"]


def test_tips_are_written_out_in_parallel() -> None:
    @sgl.function
    def tip_suggestion(s: Any) -> None:
        s += sgl.user("Give 2 tips for staying healthy.")
        s += sgl.assistant(sgl.gen("tips", max_tokens=64))
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f += sgl.user(f"Now, expand tip {i + 1} into a paragraph.")
            f += sgl.assistant(sgl.gen("detailed_tip", max_tokens=64))
        s += sgl.user(
            "Summary of the tips:\nTip 1: " + forks[0]["detailed_tip"] + "\nTip 2: " + forks[1]["detailed_tip"]
        )
        s += sgl.assistant(sgl.gen("summary", max_tokens=16))

    state = tip_suggestion.run(temperature=0)
    assert re.match(r"1\. .+\n2\. .+", state["tips"])
    first, second = re.findall(r"Tip \d: (.+)", state.text())
    assert len(first.split()) > 8 and len(second.split()) > 8 and first != second and state["summary"]


def test_passages_are_read_in_parallel_and_stand_one_after_the_other() -> None:
    @sgl.function
    def parallel_encoding(s: Any, passages: list[str], question: str) -> None:
        s += "Read these facts.\n"
        forks = s.fork(len(passages))
        forks += lambda i: passages[i] + "\n"
        forks.join(mode="concate_and_append")
        s += "\nQ: " + question + "\nA:" + sgl.gen("answer", stop="\n", max_tokens=16)

    passages = ["The city of Velora is Brun.", "The city of Tamik is Ostra."]
    state = parallel_encoding.run(passages, "What is the city of Velora?", temperature=0)
    assert state.text().startswith("Read these facts.\n" + "\n".join(passages) + "\n\nQ:")
    assert "Brun" in state["answer"]


def test_text_arrives_piece_by_piece_for_threads_and_for_tasks() -> None:
    @sgl.function
    def chat(s: Any, question: str) -> None:
        s += sgl.system("You are a helpful assistant.")
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=32))

    question = "What is the capital of Italy?"
    state = chat.run(question, temperature=0, stream=True)
    out = list(state.text_iter())
    assert "".join(out) == state.text() and len(out) > 6 and "Rome" in state["answer"]

    async def follow() -> list[Any]:
        sgl.flush_cache()
        started = chat.run(question, temperature=0, stream=True)
        return [pair async for pair in started.text_async_iter("answer", return_meta_data=True)]

    pairs = asyncio.run(follow())
    assert "".join(text for text, _ in pairs) == state["answer"] and len(pairs) > 1
    assert pairs[-1][1]["completion_tokens"] == state.get_meta_info("answer")["completion_tokens"]


def test_endings_are_scored_over_a_shared_prefix() -> None:
    @sgl.function
    def few_shot_select(s: Any, question: str, choices: list[str]) -> None:
        s += SHOTS
        s += question
        s += sgl.select("answer", choices=choices)

    cities = ["Rome", "Oslo", "Lima", "Tokyo"]
    countries = ["Italy", "Norway", "Peru", "Japan"]
    rows = [
        {"question": f"Q: What is the capital of {country}?\nA:", "choices": [" " + city for city in cities]}
        for country in countries
    ]
    states = few_shot_select.run_batch(rows, temperature=0, num_threads=4, progress_bar=False)
    chosen = [[" " + city for city in cities].index(state["answer"]) for state in states]
    assert sum(int(index == number) for number, index in enumerate(chosen)) >= 3


def test_a_tree_of_thought_proposes_executes_and_keeps_the_best() -> None:
    def propose(s: Any, goal: str, branches: int) -> Any:
        s += sgl.user(f"Propose a plan to {goal}.")
        forks = s.fork(branches)
        forks += lambda i: sgl.assistant(sgl.gen("plan", max_tokens=64, temperature=0.8, seed=i))
        return forks

    def execute(s: Any, branches: int) -> Any:
        s += sgl.user("Now execute the plan.")
        forks = s.fork(branches)
        forks += sgl.assistant(sgl.gen("result", max_tokens=64))
        return forks

    @sgl.function
    def tree_search(s: Any, goal: str) -> list[tuple[int, str]]:
        leaves = [leaf for plan in propose(s, goal, 4) for leaf in execute(plan, 2)]
        for leaf in leaves:
            leaf += sgl.user("Rate your solution on a scale from 1 to 10.")
            leaf += sgl.assistant("I rate it " + sgl.gen("score", regex="10|[1-9]"))
        return [(int(leaf["score"]), leaf["plan"]) for leaf in leaves]

    state = tree_search.run("bake a cake", temperature=0, max_new_tokens=64)
    rated = state.ret_value
    assert len(rated) == 8 and all(1 <= score <= 10 for score, _ in rated)
    assert len({plan for _, plan in rated}) > 1 and max(rated)[1].startswith("1. ")


def test_chains_of_thought_branch_at_the_first_token_and_the_surest_wins() -> None:
    @sgl.function
    def cot_decoding(s: Any, question: str, top: int) -> list[tuple[float, str]]:
        s += sgl.user(question)
        s += sgl.assistant_begin()
        step_0 = s.fork(1)[0]
        forks = s.fork(top)
        step_0 += sgl.gen(
            "first", max_tokens=1, return_logprob=True, top_logprobs_num=top, return_text_in_logprobs=True
        )
        first = step_0.get_meta_info("first")["output_top_logprobs"][0]
        for fork, (_, _, token) in zip(forks, first):
            fork += token
            fork += sgl.gen("rest", max_tokens=24, return_logprob=True, top_logprobs_num=2)
        answers = []
        for fork, (_, _, token) in zip(forks, first):
            pairs = [pair for pair in fork.get_meta_info("rest")["output_top_logprobs"] if len(pair) == 2]
            gaps = [math.exp(best[0]) - math.exp(second[0]) for best, second in pairs]
            answers.append((sum(gaps) / max(1, len(gaps)), token + fork["rest"]))
        return answers

    state = cot_decoding.run("What is the capital of France?", 3, temperature=0)
    answers = state.ret_value
    assert len(answers) == len({text for _, text in answers}) == 3
    assert all(0 <= confidence <= 1 for confidence, _ in answers) and "Paris" in max(answers)[1]


def test_a_text_goes_on_for_min_tokens() -> None:
    @sgl.function
    def answer(s: Any, **knobs: Any) -> None:
        s += SHOTS + "Q: What is the capital of Italy?\nA:" + sgl.gen("x", temperature=0, max_tokens=24, **knobs)

    short = answer.run(stop="\n").get_meta_info("x")
    long = answer.run(min_tokens=16).get_meta_info("x")
    assert short["completion_tokens"] < 16 <= long["completion_tokens"] <= 24


def test_thinking_is_kept_apart_from_a_constrained_answer() -> None:
    @sgl.function
    def think(s: Any) -> None:
        s += sgl.user("What is the capital of France?")
        s += sgl.assistant(
            sgl.separate_reasoning("It is " + sgl.gen("city", regex="Paris|Rome", max_tokens=24), "qwen3")
        )

    state = think.run(temperature=0)
    assert state["city"] in ("Paris", "Rome") and isinstance(state["city_reasoning_content"], str)
    assert state.messages()[-1]["content"] == "It is " + state["city"]


def test_a_program_with_a_picture_is_refused_where_it_shows_it() -> None:
    reached = []

    @sgl.function
    def image_qa(s: Any, question: str) -> None:
        reached.append("before")
        s += sgl.user(sgl.image(b"\x89PNG\r\n\x1a\n" + bytes(16)) + question)
        reached.append("after")

    with pytest.raises(sgl.BackendError, match="'sapling' reads text only; it cannot see this image"):
        image_qa.run("What is this?")
    assert reached == ["before"]


def test_the_cache_is_filled_asked_about_and_emptied() -> None:
    @sgl.function
    def ask(s: Any) -> None:
        s += "A long prefix that many programs begin with. " * 4 + "Q:" + sgl.gen("x", max_tokens=1)

    backend = sgl.global_config.default_backend
    assert isinstance(backend, sgl.Runtime)
    endpoint = sgl.RuntimeEndpoint(backend.url)
    assert sgl.flush_cache() is True
    endpoint.cache_prefix("A long prefix that many programs begin with. " * 4)
    assert ask.run(backend=endpoint, temperature=0).get_meta_info("x")["cached_tokens"] > 20
    info = sgl.get_server_info()
    assert info is not None and info["model_path"] == endpoint.get_model_name() == "sapling"
    assert info["context_length"] == 2048 and info["pages_cached"] > 20
    assert sgl.flush_cache(endpoint, empty_cache=True) is True
    assert endpoint.get_server_info()["pages_cached"] == 0
    endpoint.close()


def test_an_engine_completes_prompts_and_others_reach_it_by_its_port() -> None:
    prompts = [SHOTS + f"Q: What is the capital of {country}?\nA:" for country in ("Italy", "Japan")]
    params = {"temperature": 0, "max_new_tokens": 8, "stop": "\n"}

    @sgl.function
    def ask(s: Any) -> None:
        s += prompts[0] + sgl.gen("x", temperature=0, max_tokens=8, stop="\n")

    with sgl.Engine(
        model_path="sapling", log_level="error", port=30000, api_key="secret", threads=1, pages=8000
    ) as engine:
        assert [done["text"].strip() for done in engine.generate(prompts, params)] == ["Rome", "Tokyo"]
        assert engine.generate(prompts[0], params)["meta_info"]["finish_reason"] == "stop"
        grown = [done["text"] for done in engine.generate(prompts[0], params, stream=True)]
        assert grown[-1].strip() == "Rome" and all(grown[-1].startswith(part) for part in grown)
        asyncio.run(_ask_an_engine(engine, prompts[0], params))
        written = json.loads(engine.runtime.generate(prompts[1], params, return_logprob=True))
        assert written["text"].strip() == "Tokyo" and written["meta_info"]["output_token_logprobs"]
        with pytest.raises(sgl.BackendError, match="no embeddings"):
            engine.encode("text")
        with pytest.raises(sgl.BackendError, match="input_ids is not taken"):
            engine.generate(input_ids=[1, 2])
        assert engine.get_tokenizer().decode(engine.get_tokenizer().encode("Hello there")) == "Hello there"

        url = engine.runtime.url.replace("tcp://127.0.0.1", "http://localhost")
        assert int(url.rsplit(":", 1)[1]) >= 30000
        with pytest.raises(RuntimeError, match="token"):
            sgl.RuntimeEndpoint(url)
        endpoint = sgl.RuntimeEndpoint(url, api_key="secret")
        assert ask.run(backend=endpoint)["x"].strip() == "Rome"
        endpoint.close()


async def _ask_an_engine(engine: Any, prompt: str, params: dict[str, Any]) -> None:
    done = await engine.async_generate(prompt, params)
    assert done["text"].strip() == "Rome"
    grown = [piece["text"] async for piece in await engine.async_generate(prompt, params, stream=True)]
    assert grown[-1].strip() == "Rome"
    pieces = [piece async for piece in engine.runtime.add_request(prompt, params)]
    assert "".join(pieces).strip() == "Rome"
