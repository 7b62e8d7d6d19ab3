"""Tools of real MCP servers, over stdio and over HTTP on this machine: calls, errors, and servers that are gone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="the extra branchwork[mcp] is not installed")

from branchwork.lang.agent import agent
from branchwork.lang.backend import ScriptedBackend
from branchwork.lang.calling import ToolResult, ToolTurn, tools
from branchwork.lang.errors import BackendError
from branchwork.lang.mcp import McpServer, mcp
from branchwork.lang.tools import ToolError, tool

SERVER = '''
import asyncio, os, socket, sys
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
import uvicorn

server = MCPServer("shop", instructions="Ask for prices.")

@server.tool()
def price(item: str, count: int = 1) -> str:
    """Price of an item in the shop"""
    if item == "moon":
        raise ToolError("the moon is not for sale")
    return f"{count} {item}: {3 * count} dollars"

@server.tool()
def variables() -> list[str]:
    """Names of the environment"""
    return sorted(os.environ)

@server.tool()
async def wait() -> str:
    """Never comes back"""
    await asyncio.Event().wait()
    return ""

@server.tool()
def die() -> str:
    """Ends the server"""
    os._exit(3)

if "http" in sys.argv:
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    free.listen()  # from here on a client waits rather than being refused
    print(free.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="warning")).run(sockets=[free])
else:
    server.run()
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mcp") / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture
def command(script: Path) -> list[str]:
    return [sys.executable, str(script)]


@pytest.fixture
def web(script: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on a port of its own: its address, its process."""
    process = subprocess.Popen([sys.executable, str(script), "http"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    yield f"http://127.0.0.1:{port}/mcp", process
    process.kill()
    process.wait()


def turn(server: McpServer, *calls: tuple[str, dict[str, Any]]) -> ToolTurn:
    """The turn of a model that made these calls."""
    texts = [f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in calls]
    value = tools(*server.tools).readers["calls"]("\n".join(texts))
    assert isinstance(value, ToolTurn)
    return value


def error(result: ToolResult) -> str:
    assert result.error is not None
    return str(json.loads(result.text)["error"])


def test_a_servers_tools_are_tools_with_its_schemas(command: list[str]) -> None:
    with mcp(command) as server:
        price = next(offered for offered in server.tools if offered.name == "price")
        assert price.description == "Price of an item in the shop" and server.instructions == "Ask for prices."
        assert price.parameters["required"] == ["item"]
        results = turn(server, ("price", {"item": "tea", "count": 2}), ("price", {"item": "ink"})).run()
        assert [result.text for result in results] == ["2 tea: 6 dollars", "1 ink: 3 dollars"]


def test_errors_of_the_server_are_error_results(command: list[str]) -> None:
    with mcp(command) as server:
        refused, wrong = turn(server, ("price", {"item": "moon"}), ("price", {"count": 1})).run()
        assert "the moon is not for sale" in error(refused) and isinstance(refused.error, ToolError)
        assert "item" in error(wrong)


def test_a_call_that_takes_too_long_ends_and_the_server_stays(command: list[str]) -> None:
    with mcp(command, timeout=2.0) as server:
        assert "timed out" in error(turn(server, ("wait", {})).run()[0])
        assert "took longer than 0.1 s" in error(turn(server, ("wait", {})).run(timeout=0.1)[0])
        assert turn(server, ("price", {"item": "tea"})).run()[0].value == "1 tea: 3 dollars"


def test_a_server_that_died_and_one_that_was_closed_are_error_results(command: list[str]) -> None:
    with mcp(command) as server:
        for name in ("die", "price"):
            assert "could not be called" in error(turn(server, (name, {"item": "tea"})).run()[0])
    assert "has been closed" in error(turn(server, ("price", {"item": "tea"})).run()[0])
    with pytest.raises(RuntimeError, match="opened before"), server:
        pass


def test_a_server_sees_only_harmless_variables_and_those_it_is_given(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "sk-123456789")
    with mcp(command, env={"SHOP": "open"}) as server:
        names = turn(server, ("variables", {})).run()[0].text
    assert "PATH" in names and "SHOP" in names.split() and "SHOP_API_KEY" not in names


def test_a_server_is_used_from_any_event_loop_and_many_calls_go_at_once(command: list[str]) -> None:
    async def main() -> list[ToolResult]:
        async with mcp(command) as server:
            return await turn(server, *(("price", {"item": "tea", "count": n}) for n in range(1, 9))).arun()

    assert [result.value for result in asyncio.run(main())] == [f"{n} tea: {3 * n} dollars" for n in range(1, 9)]


def test_a_server_over_http_does_the_same_until_it_is_gone(web: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = web
    with mcp(url=address, headers={"Authorization": "Bearer none"}) as server:
        assert turn(server, ("price", {"item": "tea"})).run()[0].value == "1 tea: 3 dollars"
        process.kill()
        process.wait()
        for _ in range(2):
            assert "could not be called" in error(turn(server, ("price", {"item": "tea"})).run()[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"command": ["/nowhere/to/be/found"]}, "/nowhere/to/be/found cannot be used: FileNotFoundError"),
        ({"command": [sys.executable, "-c", "pass"]}, "Connection closed"),
        (
            {"command": [sys.executable, "-c", "import sys; sys.stdin.read()"], "startup": 0.3},
            "did not list its tools within 0.3 s",
        ),
        ({"url": "http://127.0.0.1:9/mcp"}, "ConnectError"),
    ],
)
def test_a_server_that_cannot_be_had_is_an_error_at_the_opening(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message), mcp(**given):
        pass


@pytest.mark.parametrize(
    "given",
    [{}, {"command": ["a"], "url": "b"}, {"command": "a"}, {"url": "b", "env": {}}, {"command": ["a"], "headers": {}}],
)
def test_what_no_server_can_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        mcp(**given)


def test_an_agent_uses_tools_of_a_server_beside_its_own(command: list[str]) -> None:
    @tool
    def halve(number: int) -> int:
        return number // 2

    def written(name: str, **arguments: Any) -> str:
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"

    script = [written("price", item="tea", count=4), written("halve", number=12), "Half is 6 dollars."]
    with mcp(command) as server:
        state = agent([*server.tools, halve]).run("Half of 4 teas?", backend=ScriptedBackend(script))
    assert [result.value for result in state.ret_value.calls] == ["4 tea: 12 dollars", 6]
    assert state["answer"] == "Half is 6 dollars."
