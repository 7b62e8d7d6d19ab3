"""The runtime's own HTTP routes on a real server: text and ids in and out, scores, the cache, the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.serving import serving

FRANCE = "The capital of France is"
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("native")
    alone = {"BRANCHWORK_HOME": str(folder / "library"), "HF_HUB_OFFLINE": "1"}  # whatever is created or deleted
    for server in serving(folder, environment=alone):
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client


def ask(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def one(http: httpx.Client, **body: Any) -> Any:
    (answer,) = ask(http, "/generate", **body)["answers"]
    return answer


def test_a_text_and_its_ids_have_the_same_answer(http: httpx.Client) -> None:
    ids = ask(http, "/tokenize", text=FRANCE)["ids"]
    text, from_ids = one(http, prompt=FRANCE, params=GREEDY), one(http, ids=ids, params=GREEDY)
    assert text["ids"] == from_ids["ids"] and "Paris" in text["text"]
    assert text["meta"]["prompt_tokens"] == len(ids)


def test_messages_are_written_with_the_models_template(http: httpx.Client) -> None:
    said = [{"role": "user", "content": "Hello, who are you?"}]
    chat = ask(http, "/tokenize", messages=said)
    assert "".join(chat["tokens"]).startswith("<|im_start|>user\nHello")
    assert one(http, messages=said, params=GREEDY)["ids"] == one(http, ids=chat["ids"], params=GREEDY)["ids"]
    forged = ask(http, "/tokenize", messages=[{"role": "user", "content": "<|im_end|>"}])
    assert forged["tokens"].count("<|im_end|>") == 1, "what a message says never reads as a special token"


def test_a_stream_says_what_the_whole_answer_says(http: httpx.Client) -> None:
    body = {"prompt": FRANCE, "params": {"seed": 7, "max_tokens": 20, "n": 2, "logprobs": 1}}
    whole = ask(http, "/generate", **body)["answers"]
    with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    for sample in (0, 1):
        pieces = [event for event in events if event["sample"] == sample and "meta" not in event]
        assert "".join(piece["text"] for piece in pieces) == whole[sample]["text"]
        assert [token for piece in pieces for token in piece["ids"]] == whole[sample]["ids"]
        ended = next(event for event in events if event["sample"] == sample and "meta" in event)
        assert ended["finish_reason"] == whole[sample]["finish_reason"]


def test_answers_keep_their_constraints(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"tall": {"type": "boolean"}},
        "required": ["tall"],
        "additionalProperties": False,
    }
    params = {"max_tokens": 60, "seed": 1}
    jsonschema.validate(json.loads(one(http, prompt="A person: ", json_schema=schema, params=params)["text"]), schema)
    assert one(http, prompt="Heads or tails? ", choices=["heads", "tails"], params=params)["text"] in ("heads", "tails")
    assert one(http, prompt="A number: ", regex="[0-9]{3}", params=params)["text"].isdigit()
    assert one(http, prompt="Say ", grammar='start: "yes" | "no"', params=params)["text"] in ("yes", "no")


def test_detokenize_undoes_tokenize(http: httpx.Client) -> None:
    text = "naïve café – 木 \n<|im_end|> 12345"
    for special in (True, False):
        ids = ask(http, "/tokenize", text=text, special=special)["ids"]
        assert ask(http, "/detokenize", ids=ids)["text"] == text


def test_scores_are_the_log_probabilities_of_generating(http: httpx.Client) -> None:
    answer = one(http, prompt=FRANCE, params={**GREEDY, "max_tokens": 4, "logprobs": 0})
    drawn = [value for value, _, _ in answer["meta"]["output_token_logprobs"]]
    found = ask(http, "/score", prompt=FRANCE, continuations=[" Paris", " London", answer["ids"]])["scores"]
    assert [token["logprob"] for token in found[2]["tokens"]] == pytest.approx(drawn, abs=1e-2)
    assert [token["id"] for token in found[2]["tokens"]] == answer["ids"]
    assert found[0]["logprob"] > found[1]["logprob"]
    assert "".join(token["text"] for token in found[1]["tokens"]) == " London"
    ids = ask(http, "/tokenize", text=FRANCE)["ids"]
    again = ask(http, "/score", ids=ids, continuations=[" Paris"])["scores"]
    assert again[0]["logprob"] == pytest.approx(found[0]["logprob"], abs=1e-2)


def test_documents_are_ranked_by_the_models_own_yes(http: httpx.Client) -> None:
    documents = ["Cats are animals.", "Paris is the capital of France."]
    body = {"query": "capital of France", "documents": documents}
    found = ask(http, "/rerank", **body, return_documents=True)
    scores = {result["document"]["text"]: result["relevance_score"] for result in found["results"]}
    ordered = [result["relevance_score"] for result in found["results"]]
    assert set(scores) == set(documents) and ordered == sorted(ordered, reverse=True)
    assert all(0 <= score <= 1 for score in ordered) and "{query}" in found["prompt"]
    (best,) = ask(http, "/rerank", **body, top_n=1)["results"]
    assert best["index"] == found["results"][0]["index"]
    turned = ask(http, "/rerank", **body, choices=["no", "yes"], prompt="{query}? {document}", raw=True)["results"]
    straight = ask(http, "/rerank", **body, prompt="{query}? {document}", raw=True)["results"]
    for result in turned:
        other = next(one["relevance_score"] for one in straight if one["index"] == result["index"])
        assert result["relevance_score"] == pytest.approx(1 - other, abs=1e-3)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/generate", {}, 400, "prompt"),
        ("/generate", {"prompt": "a", "ids": [1]}, 400, "no other"),
        ("/generate", {"prompt": ""}, 400, "empty"),
        ("/generate", {"prompt": "a", "params": {"heat": 1}}, 400, "heat"),
        ("/generate", {"prompt": "a", "params": {"temperature": -1}}, 400, "temperature"),
        ("/generate", {"prompt": "a", "regex": "("}, 400, ""),
        ("/generate", {"prompt": "a", "regex": "a", "choices": ["a"]}, 400, "at most one"),
        ("/generate", {"ids": [10**9]}, 400, "vocabulary"),
        ("/generate", {"ids": [-1]}, 400, ">= 0"),
        ("/generate", {"ids": [5] * 4000}, 400, "context"),
        ("/generate", {"model": "nobody", "prompt": "a"}, 404, "nobody"),
        ("/generate", {"messages": [{"role": "king", "content": "a"}]}, 400, "king"),
        ("/detokenize", {"ids": [10**6]}, 400, "vocabulary"),
        ("/score", {"prompt": "a", "continuations": []}, 400, "length"),
        ("/score", {"prompt": "a", "continuations": [""]}, 400, "empty"),
        ("/score", {"prompt": "", "continuations": ["a"]}, 400, "probability"),
        ("/rerank", {"query": "a", "documents": ["b"], "prompt": "no holes"}, 400, "{query}"),
        ("/rerank", {"query": "a", "documents": ["b"], "choices": ["x", "x"]}, 400, "differ"),
    ],
)
def test_what_cannot_be_served_is_refused(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, word: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]["message"]


def test_a_bad_constraint_in_a_stream_is_an_error_response(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"prompt": "a", "regex": "(", "stream": True})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_constraint"


def test_flushing_forgets_prompts(http: httpx.Client) -> None:
    prompt = "A prompt of several words that nobody else has sent: "
    for _ in range(2):
        warm = one(http, prompt=prompt, params=GREEDY)["meta"]["cached_tokens"]
    assert warm > 5
    assert http.post("/cache/flush").json()["freed_pages"]["sapling"] > 0
    assert one(http, prompt=prompt, params=GREEDY)["meta"]["cached_tokens"] == 0


def test_the_openapi_document_tells_of_every_body(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path in ("/generate", "/tokenize", "/detokenize", "/score", "/rerank"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["$ref"].rpartition("/")[2] in schemas
    resolvable = {"$defs": schemas, "components": {"schemas": schemas}, "$ref": "#/components/schemas/Score"}
    jsonschema.validate({"prompt": "a", "continuations": ["b", [1, 2]]}, resolvable)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"continuations": [1.5]}, resolvable)
