"""Vectors over HTTP from a real server: an encoder and two decoders, by each dialect's own client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import openai
import pytest
import torch
from encoders import decoder, encoder, states, vector

from branchwork.runtime.gateway.text import Texts
from tests.serving import addresses, serving

pytestmark = pytest.mark.timeout(120)
TEXTS = ["the quick brown fox", "a dog jumps", "the", "jumped over the dog " * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """A server with an encoder, a decoder that says how it makes vectors, and the packaged model."""
    models = [str(encoder("bert", folder, longest=40)), str(decoder("qwen3", folder, "last"))]
    own = {"BRANCHWORK_HOME": str(folder / "library"), "XDG_CACHE_HOME": str(folder / "cache")}
    yield from addresses(folder, *models, "-o", "threads=1", "-o", "pages=4000", **own)


@pytest.fixture(scope="module")
def client(site: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site}/v1", api_key="-", max_retries=0)


def expected(folder: Path, name: str, text: str, pooling: str) -> torch.Tensor:
    ids = Texts(folder / name).encode_whole(text)
    return vector(states(folder / name, ids), pooling, normalize=True)


@pytest.mark.parametrize("name, pooling", [("bert", "mean"), ("qwen3", "last")])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_openai_gets_the_vectors_of_the_model_itself(
    client: openai.OpenAI, folder: Path, name: str, pooling: str, form: str
) -> None:
    """The client asks for base64 itself where nothing else is asked for."""
    asked = {} if form == "base64" else {"encoding_format": "float"}
    answer = client.embeddings.create(model=name, input=TEXTS, **asked)  # type: ignore[arg-type]
    assert [one.index for one in answer.data] == [0, 1, 2, 3]
    for text, one in zip(TEXTS, answer.data, strict=True):
        torch.testing.assert_close(
            torch.tensor(one.embedding), expected(folder, name, text, pooling), rtol=0, atol=1e-5
        )
    tokens = sum(len(Texts(folder / name).encode_whole(text)) for text in TEXTS)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


def test_all_dialects_give_the_same_vector(site: str, client: openai.OpenAI) -> None:
    mine = client.embeddings.create(model="bert", input=TEXTS[0]).data[0].embedding
    own = ollama.Client(site)
    assert list(own.embed("bert", TEXTS[0]).embeddings[0]) == mine
    assert list(own.embeddings("bert", TEXTS[0]).embedding) == mine
    plain = httpx.post(f"{site}/embed", json={"model": "bert", "input": TEXTS[:2]}).json()
    assert plain["embeddings"][0] == mine and plain["prompt_tokens"] == [6, 6]
    ids = httpx.post(f"{site}/embed", json={"model": "bert", "input": [2, 4, 5, 6, 7, 3]}).json()
    assert ids["embeddings"] == [mine]


def test_any_model_that_writes_makes_vectors_too(client: openai.OpenAI) -> None:
    """sapling says nothing of vectors: the mean, of length 1."""
    one, same, other = (client.embeddings.create(model="sapling", input=text).data[0].embedding for text in "aab")
    assert one == same != other
    assert sum(number * number for number in one) == pytest.approx(1.0, abs=1e-5)


def test_a_text_beyond_the_context_is_cut_for_ollama_and_refused_for_openai(site: str, client: openai.OpenAI) -> None:
    own, long = ollama.Client(site), "fox " * 100
    cut = own.embed("bert", long)
    assert cut.prompt_eval_count == 40 and cut.embeddings == own.embed("bert", "fox " * 38).embeddings
    with pytest.raises(ollama.ResponseError, match="102 tokens are given, the context holds 40"):
        own.embed("bert", long, truncate=False)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="bert", input=["fox", long])
    assert caught.value.code == "context_length_exceeded" and "text 1: 102 tokens" in caught.value.message
    assert caught.value.param == "input"


def test_an_encoder_refuses_to_write(site: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="ask it for embeddings"):
        client.completions.create(model="bert", prompt="the fox", max_tokens=4)
    assert len(client.embeddings.create(model="bert", input="the fox").data) == 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"input": []}, "not empty"),
        ({"input": ["the", 4]}, "list of either"),
        ({"input": [[4, 96]]}, "there is no token 96"),
        ({"input": [[]]}, "text 0 is empty"),
        ({"input": [[2**40]]}, "2147483647"),
        ({"input": "a", "model": "oak"}, "no model 'oak'"),
    ],
)
def test_wrong_requests_say_what_is_wrong(site: str, wrong: dict[str, object], message: str) -> None:
    answer = httpx.post(f"{site}/embed", json={"model": "bert", **wrong})
    assert answer.status_code in (400, 404) and message in answer.json()["error"]["message"]


def test_vectors_count_as_what_requests_ended_with(site: str, client: openai.OpenAI) -> None:
    def ended() -> float:
        lines = httpx.get(f"{site}/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("branchwork_request_success_total") and "embedding" in line]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    client.embeddings.create(model="bert", input="a")
    before = ended()
    client.embeddings.create(model="bert", input=TEXTS)
    assert before >= 1 and ended() == before + len(TEXTS)


def told(site: str, model: str) -> dict[str, float]:
    """What /metrics says of a model's engine, by name."""
    lines = [line for line in httpx.get(f"{site}/metrics").text.splitlines() if f'{model}"}}' in line]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_client_that_leaves_frees_what_its_texts_hold(site: str) -> None:
    texts = [[(number * 7) % 300 for number in range(start, start + 250)] for start in range(1200)]
    httpx.post(f"{site}/embed", json={"model": "qwen3", "input": "a"}, timeout=60)
    before = told(site, "qwen3")["branchwork_computed_tokens_total"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{site}/embed", json={"model": "qwen3", "input": texts}, timeout=0.3)
    until = time.monotonic() + 30
    while (now := told(site, "qwen3"))["branchwork_num_requests_running"] or now["branchwork_num_requests_waiting"]:
        assert time.monotonic() < until, now
        time.sleep(0.05)
    assert now["branchwork_computed_tokens_total"] - before < 1200 * 250, "it was computed to the end, for nobody"
    assert now["branchwork_kv_cache_usage_ratio"] == 0


def test_the_numbers_of_an_encoder_are_told(site: str, client: openai.OpenAI) -> None:
    client.embeddings.create(model="bert", input=TEXTS)
    now = told(site, "bert")
    assert now["branchwork_computed_tokens_total"] >= 24
    assert now["branchwork_kv_cache_pages"] == now["branchwork_kv_cache_bytes"] == 0


def test_a_new_engine_goes_on_where_the_old_one_died(tmp_path: Path) -> None:
    """Killed while three texts are under way."""
    models = [str(encoder("bert", tmp_path))]
    for server in serving(tmp_path, "-o", "threads=1", environment={"XDG_CACHE_HOME": str(tmp_path)}, models=models):
        alone = httpx.post(f"{server.url}/embed", json={"input": "the fox"}, timeout=60).json()["embeddings"]
        first = server.engine
        first.suspend()
        threading.Timer(0.5, first.kill).start()
        again = httpx.post(f"{server.url}/embed", json={"input": ["the fox"] * 3}, timeout=60).json()["embeddings"]
        assert again == alone * 3 and server.engine.pid != first.pid
