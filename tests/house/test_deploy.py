"""What is in deploy/ fits what is in the package: options, extras, metrics, paths; what can be linted is linted.

Knows: the files' formats. Must not know: how any of them is run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from branchwork.cli import app
from branchwork.runtime.config import parse
from branchwork.runtime.gateway.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
UNIT = DEPLOY / "branchwork.service"
INSTRUCTIONS = {
    *("FROM", "RUN", "COPY", "ENV", "ARG", "USER", "VOLUME", "EXPOSE"),
    *("HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"),
}


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """(word, rest) of every instruction, continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def commands() -> Iterator[tuple[str, list[str]]]:
    """(file, arguments after `branchwork serve`) of whatever starts a server."""
    for path in DOCKERFILES:
        found = dict(instructions(path))
        yield path.name, [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])][2:]
    started = re.search(r"^ExecStart=\S+/branchwork serve (.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    assert started is not None
    yield UNIT.name, shlex.split(started[1])


@pytest.mark.parametrize(("name", "arguments"), list(commands()), ids=[name for name, _ in commands()])
def test_servers_are_started_with_options_that_exist(name: str, arguments: list[str]) -> None:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = serve.make_context("serve", list(arguments))
    assert context.params["port"] == 8000 and context.params["models"]
    assert context.params["api_keys"] or context.params["host"] == "127.0.0.1", "others could reach it without a key"
    parse(context.params["option"] or [])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_are_in_order(path: Path) -> None:
    found = list(instructions(path))
    assert found[0][0] == "FROM" and {word for word, _ in found} <= INSTRUCTIONS
    stages = {rest.split(" AS ")[1] for word, rest in found if word == "FROM" and " AS " in rest}
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    for word, rest in found:
        if word == "COPY" and (stage := re.match(r"--from=(\w+)", rest)):
            assert stage[1] in stages
        if word == "RUN" and (wanted := re.search(r"/source\[([\w,]+)\]", rest)):
            assert set(wanted[1].split(",")) <= extras
    users = [rest for word, rest in found if word == "USER"]
    assert users == ["branchwork"], "the server is not root"


def test_compose_names_files_that_exist() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert (ROOT / services["branchwork"]["build"]["dockerfile"]).exists()
    assert (DEPLOY / services["grafana"]["volumes"][0].split(":")[0]).exists()
    for service in services.values():
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        assert {config["source"] for config in service.get("configs", ())} <= set(compose["configs"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for config in compose["configs"].values():
        yaml.safe_load(config["content"])


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    targets: list[Any] = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for expr in targets for name in re.findall(r"branchwork_\w+", expr)}
    text = Metrics().text([], 0).decode()
    families = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    known = families | {f"{name}_bucket" for name in families}
    assert len(asked) > 15 and not asked - known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    there = UNIT.read_text(encoding="utf-8").replace("/opt/branchwork/bin/branchwork", sys.executable)
    (tmp_path / UNIT.name).write_text(there, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert UNIT.name not in done.stderr and done.returncode == 0, done.stderr
