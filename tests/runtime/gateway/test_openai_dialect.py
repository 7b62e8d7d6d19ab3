"""OpenAI's errors without any model: their shape, status, and headers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from branchwork.runtime.gateway.app import Access, application
from branchwork.runtime.gateway.models import Models, Wanted
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Limits, Service

PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "oak", "messages": [{"role": "user", "content": "Hi"}]}


def never(wanted: Wanted) -> Served:
    raise AssertionError(f"nobody may load {wanted}")


def service(limits: Limits = Limits()) -> Service:  # noqa: B008 (frozen)
    return Service(Models(lambda name: None, never, names=lambda: ["elm"]), limits)


def post(made: Service, *bodies: Any, access: Access = Access(), path: str = PATH) -> list[httpx.Response]:  # noqa: B008
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=application(made, access))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                await (client.post(path, content=body) if isinstance(body, bytes) else client.post(path, json=body))
                for body in bodies
            ]

    return asyncio.run(run())


def test_an_unknown_model_is_told_with_those_there_are() -> None:
    (answer,) = post(service(), BODY)
    message = "there is no model 'oak' here; there are: elm"
    error = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    assert answer.status_code == 404 and answer.json() == {"error": error}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "no JSON"),
        ({"model": "oak"}, "messages", "missing required field"),
        ({**BODY, "messages": [{"role": "user", "content": 3}]}, "messages[0].content", "got `int`"),
        ({**BODY, "n": "two"}, "n", "got `str`"),
    ],
)
def test_a_body_of_the_wrong_types_names_the_field(body: Any, param: str | None, words: str) -> None:
    (answer,) = post(service(), body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_too_many_requests_are_told_when_to_come_again() -> None:
    first, second = post(service(Limits(rate=1)), BODY, BODY)
    assert first.status_code == 404 and second.status_code == 429
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(second.headers["retry-after"]) <= 60


def test_a_server_that_ends_refuses_with_retry_after() -> None:
    made = service()
    made.draining = True
    (answer,) = post(made, BODY)
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"
    assert answer.headers["retry-after"] == "1"


def test_a_request_that_is_too_large_and_one_without_a_key_are_refused() -> None:
    (large,) = post(service(Limits(body=10)), BODY)
    assert large.status_code == 413 and large.json()["error"]["type"] == "invalid_request_error"
    (unknown,) = post(service(), BODY, access=Access(keys=("secret",)))
    assert unknown.status_code == 401 and unknown.json()["error"]["code"] == "invalid_api_key"
    (nowhere,) = post(service(), BODY, path="/v1/nowhere")
    assert nowhere.status_code == 404 and nowhere.json()["error"]["type"] == "invalid_request_error"
