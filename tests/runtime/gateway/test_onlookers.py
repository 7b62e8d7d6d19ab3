"""The application without an engine: what needs a key, the page's headers, requests that limits do not hold up."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from branchwork.runtime.gateway.app import Access, application
from branchwork.runtime.gateway.journal import ANSWERS, Asked
from branchwork.runtime.gateway.models import Models, Wanted
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Limits, Service


def unknown(name: str) -> Wanted | None:
    return None


def unbuilt(wanted: Wanted) -> Served:
    raise AssertionError("no model is loaded here")


def service(limits: Limits = Limits()) -> Service:  # noqa: B008 (frozen)
    return Service(Models(unknown, unbuilt, names=lambda: ["nothing"]), limits)


def get(service: Service, *paths: str, access: Access = Access()) -> list[httpx.Response]:  # noqa: B008 (frozen)
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application(service, access))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.get(path, headers={"accept": "text/html"}) for path in paths]

    return asyncio.run(ask())


def test_the_page_needs_no_key_and_what_it_shows_does() -> None:
    free = ["/", "/dashboard/app.js", "/dashboard/style.css", "/health"]
    kept = ["/dashboard/events", "/metrics", "/openapi.json"]
    answers = get(service(), *free, *kept, access=Access(("key",)))
    assert [answer.status_code for answer in answers] == [200] * len(free) + [401] * len(kept)


def test_the_page_asks_nobody_else_for_anything() -> None:
    paths = ["/", "/dashboard/app.js", "/dashboard/chat.js", "/dashboard/style.css", "/dashboard/icon.svg"]
    for answer in get(service(), *paths):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and " style=" not in text and "innerHTML" not in text


@pytest.mark.parametrize("path", ["/health", "/metrics", "/"])
def test_a_full_server_still_says_how_it_is(path: str) -> None:
    busy = service(Limits(requests=1, rate=1))
    with busy.admitted("somebody"):
        answers = get(busy, *[path] * 3)
    assert [answer.status_code for answer in answers] == [200] * 3


def test_a_server_that_ends_is_not_well() -> None:
    ending = service()
    asyncio.run(ending.drain(0.1))
    (answer,) = get(ending, "/health")
    assert answer.status_code == 503 and answer.json()["status"] == "draining"


def test_of_a_thousand_answers_few_are_kept_and_all_counted() -> None:
    asked = Asked(1, "id", "POST", "/score", 0.0)
    meta = {"prompt_tokens": 2, "cached_tokens": 1, "computed_tokens": 3, "completion_tokens": 1}
    for _ in range(1000):
        asked.take(meta)
    assert len(asked.answers) == ANSWERS and asked.answered == asked.completion_tokens == 1000
    assert asked.prompt_tokens == 2000


def test_a_request_is_in_the_journal_while_it_lasts() -> None:
    watched = service()
    seen: list[tuple[str, int, str]] = []
    watched.journal.sinks.append(lambda asked: seen.append((asked.route, asked.status, asked.id)))
    (found, missing) = get(watched, "/openapi.json", "/no/such/path")
    assert seen == [
        ("/openapi.json", 200, found.headers["x-request-id"]),
        ("", 404, missing.headers["x-request-id"]),
    ]
    assert not watched.journal.under_way
