"""The page at / in a real browser: chatting, stopping, the tree, the requests, both colours, a phone's width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving import Serving, serving

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
KEY = "sesame"
SHOWN = {"authorization": f"Bearer {KEY}"}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Behind a key, which pages that are `opened` have been told."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "keys").write_text(f"{KEY}\n")
    yield from serving(folder, "--api-keys", str(folder / "keys"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, server: Serving) -> Iterator[Any]:
    yield from opened(browser, server, width=1280)


def opened(browser: Any, server: Serving, width: int, colours: str = "light") -> Iterator[Any]:
    """The page, loaded; nothing may have gone wrong in it when the test is done."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
    page.set_default_timeout(20_000)
    wrong: list[str] = []

    def hear(message: Any) -> None:
        if message.type == "error" and "status of 400" not in message.text:  # what is refused is told on the page
            wrong.append(message.text)

    page.add_init_script(f"sessionStorage.setItem('branchwork-key', '{KEY}')")
    page.on("console", hear)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.url)
    page.locator("#status.well").wait_for()
    yield page
    page.close()
    assert not wrong, wrong


def say(page: Any, text: str) -> Any:
    """Type a message and send it with Enter; the turn that answers it, when it is whole."""
    turns = page.locator(".turn .about")
    before = turns.count()
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    turns.nth(before).wait_for()
    return page.locator(".turn").last


def test_a_chat_goes_on_from_what_was_cached(page: Any) -> None:
    page.locator("#settings summary").click()
    page.get_by_label("Temperature").fill("0")
    assert "sapling" in say(page, "Hello, who are you?").locator(".said").inner_text()
    second = say(page, "What is the capital of France?")
    assert "Paris" in second.locator(".said").inner_text()
    cached = int(second.locator(".about").inner_text().partition(" of it cached")[0].rpartition(" ")[2])
    assert cached > 20, "the first turn was computed again"


def test_a_schema_shapes_the_answer_and_a_bad_one_is_told(page: Any) -> None:
    page.locator("#settings summary").click()
    page.get_by_label("JSON schema").fill('{"enum": ["left", "right"]}')
    assert say(page, "Left or right?").locator(".said").inner_text() in ('"left"', '"right"')
    page.get_by_label("JSON schema").fill("{")
    page.get_by_label("Message").fill("again")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("The JSON schema is no JSON").wait_for()
    page.get_by_label("JSON schema").fill("")
    page.get_by_label("Top p").fill("7")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("top_p=7.0 is outside 0..1").wait_for()


def test_escape_stops_an_answer(page: Any, server: Serving) -> None:
    page.locator("#settings summary").click()
    page.get_by_label("Max tokens").fill("2000")
    page.get_by_label("JSON schema").fill('{"type": "array", "items": {"type": "boolean"}, "minItems": 600}')
    page.get_by_label("Message").fill("Go on for ever")
    page.get_by_label("Message").press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.locator(".turn.busy .said:not(:empty)").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("stopped", exact=True).wait_for()
    page.get_by_role("button", name="Send").wait_for()


def test_requests_say_why_they_missed_and_the_tree_who_shares(page: Any, server: Serving) -> None:
    rows = page.locator("#rows > li").filter(has_text="/generate")
    before = rows.count()
    for ending in ("oaks", "elms"):
        body = {"prompt": f"Onlookers read about {ending}", "params": {"max_tokens": 2}}
        assert httpx.post(f"{server.url}/generate", json=body, headers=SHOWN, timeout=30).status_code == 200
    rows.nth(before + 1).wait_for()
    row = rows.first
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    row.get_by_text("From token").wait_for()
    shared = page.locator("#nodes summary").filter(has_text="Onlookers read about")
    shared.filter(has_text="2 branches").wait_for()
    assert page.locator("#nodes .mark.cold").count() >= 2
    assert page.locator(".tile").count() == 6
    page.locator(".tile polyline[points*=' ']").first.wait_for()


def test_every_control_has_a_name(page: Any) -> None:
    page.locator("#settings summary").click()
    for control in page.locator("input:visible, select:visible, textarea:visible, button:visible").all():
        named = control.evaluate("e => e.labels?.[0]?.textContent.trim() || e.ariaLabel || e.textContent.trim()")
        assert named, control.evaluate("e => e.outerHTML")


def test_colours_follow_the_system_and_the_button(browser: Any, server: Serving) -> None:
    backs = []
    for colours in ("light", "dark"):
        for page in opened(browser, server, 1280, colours):
            back = "() => getComputedStyle(document.body).backgroundColor"
            backs.append(page.evaluate(back))
            page.locator("#theme").click()
            backs.append(page.evaluate(back))
            page.reload()
            assert page.evaluate(back) == backs[-1], "what was chosen stays"
            page.evaluate("localStorage.clear()")
    light, chosen_dark, dark, chosen_light = backs
    assert light == chosen_light and dark == chosen_dark and light != dark


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, server: Serving) -> None:
    for page in opened(browser, server, 360):
        say(page, "Hello, who are you?")
        page.locator("#nodes li").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("link", name="Tree").click()
        assert page.locator("#tree-title").is_visible()


def test_a_locked_server_asks_for_its_key(browser: Any, server: Serving) -> None:
    assert httpx.get(f"{server.url}/dashboard/events").status_code == 401
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_label("This server wants an API key").fill(KEY)
    page.keyboard.press("Enter")
    page.locator("#status.well").wait_for()
    assert say(page, "Hello").locator(".said").inner_text()
    page.close()
