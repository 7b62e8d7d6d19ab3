"""Tools: schemas of functions, what a call must look like, reading calls, running them."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import threading
from typing import Annotated, Any, Literal

import pydantic
import pytest

from branchwork.lang.agent import agent
from branchwork.lang.backend import ScriptedBackend
from branchwork.lang.calling import ToolTurn, tool_results, tool_system, tools
from branchwork.lang.constraint import Invalid
from branchwork.lang.errors import ProgramError
from branchwork.lang.expr import assistant, user
from branchwork.lang.function import function
from branchwork.lang.params import SamplingParams
from branchwork.lang.tools import Tool, ToolError, described, tool
from branchwork.runtime.grammar.llg import compile_llguidance
from tests.runtime.grammar.vocabularies import SMALL


class Unit(enum.Enum):
    CELSIUS = "C"
    KELVIN = "K"


@dataclasses.dataclass
class Place:
    city: str
    zip: int


class Order(pydantic.BaseModel):
    item: str
    count: int = pydantic.Field(ge=1)


@tool
def get_weather(city: str, unit: Unit = Unit.CELSIUS, days: int = 1) -> dict[str, Any]:
    """Get the weather of a city.

    Args:
        city: The city, as people
            there write it
        days (int): How many days

    Returns:
        The sky and the temperature
    """
    return {"sky": f"blue over {city}", "unit": unit, "days": days}


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def written(name: str, **arguments: Any) -> str:
    """A call as a model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def turn_of(text: str, *given: Any, **options: Any) -> ToolTurn:
    """The variable of a turn in which the model wrote `text`."""

    @function
    def program(s: Any) -> None:
        s += user("?")
        s += assistant(tools(*given, **options))

    value = program.run(backend=ScriptedBackend([text]))["calls"]
    assert isinstance(value, ToolTurn)
    return value


# --- schemas


def test_a_schema_has_types_texts_and_what_may_be_left_out() -> None:
    assert get_weather.schema == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city, as people there write it"},
                    "unit": {"enum": ["C", "K"]},
                    "days": {"type": "integer", "description": "How many days", "default": 1},
                },
                "required": ["city"],
            },
        },
    }


def test_a_tool_is_still_its_function_under_another_name_if_wanted() -> None:
    @tool(name="times", description="Product of two numbers")
    def product(a: int, b: int) -> int:
        return a * b

    assert (product.name, product.description) == ("times", "Product of two numbers")
    assert product(3, b=4) == 12


def test_every_kind_of_type_comes_back_as_a_value_of_it() -> None:
    def deliver(
        to: Place,
        orders: list[Order],
        how: Literal["bike", "van"],
        notes: dict[str, str] | None = None,
        cost: float = 0,
    ) -> None: ...

    made = tool(deliver)
    given = {
        "to": {"city": "Rome", "zip": 10},
        "orders": [{"item": "tea", "count": 2}],
        "how": "van",
        "notes": {"bell": "no"},
        "cost": 3,
    }
    values = made.read(given)
    assert values["to"] == Place("Rome", 10) and values["orders"] == [Order(item="tea", count=2)]
    assert values["how"] == "van" and values["notes"] == {"bell": "no"} and isinstance(values["cost"], float)
    with pytest.raises(ValueError, match="count"):
        made.read({**given, "orders": [{"item": "tea", "count": 0}]})
    with pytest.raises(ValueError, match=r"unknown speed and missing to, orders.*the arguments are to, orders, how"):
        made.read({"how": "van", "speed": 3})


def test_a_class_that_contains_itself_is_a_definition() -> None:
    made = tool(grow)
    assert made.parameters["properties"]["tree"]["$ref"] == "#/$defs/Tree"
    assert (
        made.read({"tree": {"name": "a", "branches": [{"name": "b", "branches": []}]}})["tree"].branches[0].name == "b"
    )


@dataclasses.dataclass
class Tree:
    name: str
    branches: list[Tree]


def grow(tree: Tree) -> None: ...


def test_an_annotated_text_describes_a_parameter() -> None:
    def find(name: Annotated[str, "whose number"]) -> None: ...

    assert tool(find).parameters["properties"]["name"] == {"type": "string", "description": "whose number"}


@pytest.mark.parametrize(
    "doc",
    [
        "Find it.\n\nArgs:\n    name (str): whose number\n    at: where,\n        exactly\n\nReturns:\n    name: x",
        "Find it.\n\nParameters\n----------\nname : str\n    whose number\nat : int\n    where,\n    exactly\n\n"
        "Returns\n-------\nint\n    x",
        "Find it.\n\n:param str name: whose number\n:param at: where,\n    exactly\n:returns: x\n:raises E: y",
        "Find\nit.\n\nArguments:\n  name: whose number\n\n  at: where, exactly\n\nRaises:\n  at: never",
    ],
    ids=["google", "numpy", "sphinx", "google with gaps"],
)
def test_docstrings_of_all_styles_are_understood(doc: str) -> None:
    assert described(doc) == ("Find it.", {"name": "whose number", "at": "where, exactly"})


def test_a_docstring_may_be_its_parameters_alone() -> None:
    assert described("Args:\n    x (list[int], optional): which\n    **more: others") == (
        "",
        {"x": "which", "more": "others"},
    )


def test_a_docstring_without_sections_is_all_description() -> None:
    assert described("Multiply.\n\nNote that it is: exact.") == ("Multiply. Note that it is: exact.", {})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(a, b: int): ...", "parameter 'a' of tool 'f' has no annotation"),
        ("def f(self, b: int): ...", "bound methods"),
        ("def f(a: complex): ...", "parameter 'a' of tool 'f': .*complex"),
        ("def f(*a: int): ...", "parameter 'a' of tool 'f' takes any number"),
        ("def f(a: int, /): ...", "parameter 'a' of tool 'f' cannot be given by name"),
        ("def f(a: 'Nowhere'): ...", "Nowhere"),
    ],
)
def test_a_parameter_that_no_model_can_give_is_refused_by_name(source: str, message: str) -> None:
    made: dict[str, Any] = {}
    exec(source, made)
    with pytest.raises(TypeError, match=message):
        tool(made["f"])


def test_a_bound_method_is_a_tool() -> None:
    class Counter:
        count = 5

        def plus(self, more: int) -> int:
            """Add to it"""
            return self.count + more

    assert turn_of(written("plus", more=2), tool(Counter().plus)).run()[0].text == "7"


# --- the turn


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ((), {}, ValueError, "no tools"),
        ((multiply, multiply), {}, ValueError, "several tools are named multiply"),
        (
            (multiply,),
            {"choice": "divide"},
            ValueError,
            "'divide' is none of auto, required, none, nor a tool: multiply",
        ),
        ((multiply,), {"format": "smoke"}, ValueError, "known: hermes, qwen"),
        ((multiply,), {"parallel": False, "think": ("<a>", "</a>")}, TypeError, "parallel"),
        ((multiply,), {"warmth": 1}, TypeError, "warmth"),
        ((multiply,), {"name": ""}, TypeError, "name"),
    ],
)
def test_a_wrong_turn_is_refused_where_it_is_written(
    given: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tools(*given, **options)


def test_a_schema_that_is_none_is_refused() -> None:
    with pytest.raises(Invalid, match="cannot be written as JSON"):
        tools(Tool("f", "", {"type": object()}, print))


def test_knobs_and_name_are_those_of_a_gen() -> None:
    backend = ScriptedBackend({"used": "nothing to call"})

    @function
    def program(s: Any) -> None:
        s += assistant(tools(multiply, name="used", max_tokens=7, temperature=0))

    state = program.run(backend=backend)
    assert state["used"].text == "nothing to call" and not state["used"]
    assert backend.calls[0].params == SamplingParams(max_tokens=7, temperature=0.0)


def test_calls_are_read_with_what_was_said_beside_them() -> None:
    text = f"Let me see. {written('multiply', a=6, b=7)}\n{written('get_weather', city='Rome', unit='K')} Wait."
    turn = turn_of(text, multiply, get_weather)
    assert [call.name for call in turn] == ["multiply", "get_weather"]
    assert turn[0].arguments == {"a": 6, "b": 7} and turn[1].arguments == {"city": "Rome", "unit": Unit.KELVIN}
    assert turn.text == "Let me see.\nWait."
    assert len({call.id for call in turn}) == 2


def test_ids_differ_between_turns_and_stay_when_read_again() -> None:
    @function
    def program(s: Any) -> None:
        for name in ("one", "two"):
            s += assistant(tools(multiply, name=name))

    state = program.run(backend=ScriptedBackend([written("multiply", a=1, b=2)] * 2))
    assert state["one"][0].id == state["one"][0].id != state["two"][0].id


def test_thinking_holds_no_calls() -> None:
    text = f"<think>maybe {written('multiply', a=1, b=1)}</think>So {written('multiply', a=2, b=2)}"
    turn = turn_of(text, multiply, think=("<think>", "</think>"))
    assert [call.arguments for call in turn] == [{"a": 2, "b": 2}] and turn.text == "So"


@pytest.mark.parametrize(
    "cut", ["<tool_call>\n{", '<tool_call>\n{"name": "multiply", "arguments": {"a": 1, "b": 2}}\n</to']
)
def test_a_call_that_was_cut_off_is_an_error_where_it_is_read(cut: str) -> None:
    with pytest.raises(ProgramError, match=r"incomplete.*tool call"):
        turn_of(cut, multiply)


def test_n_samples_are_a_list_of_turns() -> None:
    @function
    def program(s: Any) -> None:
        s += assistant(tools(multiply, n=2))

    turns = program.run(backend=ScriptedBackend([[written("multiply", a=1, b=2), "no"]]))["calls"]
    assert [len(turn) for turn in turns] == [1, 0]


def test_the_announcement_follows_the_text_of_the_system_message() -> None:
    lines = tool_system([multiply, get_weather], "Be brief.").split("\n")
    assert lines[:4] == ["Be brief.", "", "# Tools", "<tools>"] and lines[-1] == "</tools>"
    assert [json.loads(line)["name"] for line in lines[4:-1]] == ["multiply", "get_weather"]
    assert json.dumps(multiply.schema) in tool_system([multiply], format="qwen")


# --- what the constraint allows


def takes(text: str, **options: Any) -> bool:
    """Whether the constraint of a turn with two tools allows exactly this text."""
    constraint = tools(multiply, tool(grow), **options).constraint
    assert constraint is not None
    compiled = compile_llguidance(constraint, SMALL)
    assert not compiled.report.approximations
    matcher, tokens = compiled.start(), SMALL.encode(text.encode())
    return matcher.accept(tokens) == len(tokens) and matcher.is_accepting


ONE, OTHER = (
    written("multiply", a=1, b=2),
    written("grow", tree={"name": "x", "branches": [{"name": "y", "branches": []}]}),
)
WAYS: list[dict[str, Any]] = [
    {"parallel": parallel, "choice": c} for parallel in (True, False) for c in ("auto", "required")
]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_call_once_begun_names_a_tool_and_keeps_to_its_schema(options: dict[str, Any]) -> None:
    assert takes(ONE, **options) and takes(OTHER, **options) and takes(f"Hm <tool {ONE} so", **options)
    assert not takes("<tool_call>\nno", **options)
    assert not takes(written("divide", a=1, b=2), **options)
    assert not takes(written("multiply", a=1), **options)
    assert not takes(written("multiply", a=1, b="2"), **options)
    assert not takes(written("multiply", a=1, b=2, c=3), **options)
    assert not takes(written("grow", tree={"name": "x", "branches": [{"name": "y"}]}), **options)
    assert not takes(ONE[:-2], **options)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_choice_and_parallel_say_how_many_calls_there_are(options: dict[str, Any]) -> None:
    assert takes("Nothing to call.", **options) == (options["choice"] == "auto")
    assert takes(f"{ONE}\n{OTHER}", **options) == options["parallel"]


@pytest.mark.parametrize("parallel", [True, False])
def test_one_tool_can_be_asked_for_or_none(parallel: bool) -> None:
    assert takes(ONE, choice="multiply", parallel=parallel) and not takes(OTHER, choice="multiply", parallel=parallel)
    assert not takes("text", choice="multiply", parallel=parallel)
    assert takes("text", choice="none", parallel=parallel) and not takes(ONE, choice="none", parallel=parallel)


# --- running


def test_results_come_in_order_and_go_back_as_tool_messages() -> None:
    @function
    def program(s: Any) -> None:
        s += user("6 times 7? And the weather?")
        s += assistant(tools(multiply, get_weather))
        s += tool_results(s["calls"].run())

    script = [written("multiply", a=6, b=7) + written("get_weather", city="Rome")]
    messages = program.run(backend=ScriptedBackend(script)).messages()
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[2]["content"] == "42"
    assert json.loads(messages[3]["content"]) == {"sky": "blue over Rome", "unit": "C", "days": 1}


def test_a_long_result_is_cut_and_says_so() -> None:
    @function
    def program(s: Any) -> None:
        s += tool_results(["x" * 100], limit=10)

    assert (
        program.run(backend=ScriptedBackend()).messages()[0]["content"] == "xxxxxxxxxx... (90 more characters left out)"
    )


def test_calls_of_a_turn_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)

    @tool
    def meet(number: int) -> int:
        return number if together.wait() >= 0 else -1

    turn = turn_of("".join(written("meet", number=n) for n in range(3)), meet)
    assert [result.value for result in turn.run()] == [0, 1, 2]


def test_async_tools_run_on_the_callers_loop_beside_each_other() -> None:
    async def main() -> list[Any]:
        here, said = asyncio.get_running_loop(), asyncio.Event()

        @tool
        async def speak() -> bool:
            said.set()
            return asyncio.get_running_loop() is here

        @tool
        async def listen() -> bool:
            return await said.wait()

        return await turn_of(written("listen") + written("speak"), speak, listen).arun()

    assert [result.value for result in asyncio.run(main())] == [True, True]


def test_run_works_where_a_loop_runs_already() -> None:
    @tool
    async def ask() -> str:
        return "here"

    async def main() -> Any:
        return turn_of(written("ask") + written("multiply", a=2, b=2), ask, multiply).run()

    assert [result.text for result in asyncio.run(main())] == ["here", "4"]


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ValueError("no such city"), "ValueError: no such city"),
        (KeyError(), "KeyError"),
        (SystemExit(3), "SystemExit: 3"),
        (ToolError("ask again later"), "ask again later"),
        (RuntimeError("y" * 900), "RuntimeError: " + "y" * 486 + "..."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failing_tool_tells_the_model_type_and_message_and_keeps_the_exception(raised: Exception, text: str) -> None:
    @tool
    def fail() -> None:
        raise raised

    result, after = turn_of(written("fail") + written("multiply", a=2, b=3), fail, multiply).run()
    assert json.loads(result.text) == {"error": text}
    assert result.error is raised and result.value is None
    assert after.value == 6 and after.error is None


def test_secrets_of_the_environment_do_not_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "sk-123456789")

    @tool
    def buy() -> None:
        raise RuntimeError("401 for key sk-123456789")

    result = turn_of(written("buy"), buy).run()[0]
    assert json.loads(result.text) == {"error": "RuntimeError: 401 for key [SHOP_API_KEY]"}


def test_a_result_that_has_no_text_is_an_error_too() -> None:
    @tool
    def loop() -> Any:
        inside: list[Any] = []
        inside.append(inside)
        return inside

    assert "RecursionError" in turn_of(written("loop"), loop).run()[0].text


def test_what_a_backend_did_not_constrain_becomes_an_error_for_the_model() -> None:
    text = written("divide", a=1) + written("multiply", a=1, b="two") + "<tool_call>[]</tool_call>"
    texts = [json.loads(result.text)["error"] for result in turn_of(text, multiply).run()]
    assert "no tool 'divide'; there are multiply" in texts[0]
    assert "wrong arguments for multiply: b: 'two'" in texts[1]
    assert "a call is" in texts[2]


def test_a_call_that_takes_too_long_is_left_and_the_others_count() -> None:
    never = threading.Event()
    cancelled = threading.Event()

    @tool
    def hang() -> None:
        never.wait()

    @tool
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    turn = turn_of(written("hang") + written("wait") + written("multiply", a=1, b=5), hang, wait, multiply)
    first, second, third = turn.run(timeout=1.0)
    never.set()
    assert isinstance(first.error, TimeoutError) and json.loads(first.text) == {
        "error": "TimeoutError: hang took longer than 1 s"
    }
    assert isinstance(second.error, TimeoutError) and cancelled.is_set()
    assert third.value == 5


def test_cancelling_a_run_cancels_its_calls() -> None:
    async def main() -> bool:
        began, ended = asyncio.Event(), asyncio.Event()

        @tool
        async def wait() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        running = asyncio.ensure_future(turn_of(written("wait"), wait).arun())
        await began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(ended.wait(), 10)
        return True

    assert asyncio.run(main())


def test_one_tool_where_a_list_is_wanted_is_refused_with_the_list_to_write() -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    with pytest.raises(TypeError, match=r"tools come as a list, got Tool\('add'.*; write \[add\]"):
        agent(add)  # type: ignore[arg-type]
