"""What the README shows is what happens: its program is run, its output compared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import branchwork as bw

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_program_prints_what_the_readme_says(runtime: bw.Runtime, tmp_path: Path) -> None:
    section = README.split("## A program", 1)[1].split("\n## ", 1)[0]
    program, printed = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[:2]
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "branchwork", "run", str(file), "--endpoint", runtime.endpoint]
    runtime.flush_cache()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed.strip()


def test_the_commands_of_the_readme_exist() -> None:
    shown = re.findall(r"^branchwork (\w+)", README, re.MULTILINE)
    answer = subprocess.run([sys.executable, "-m", "branchwork", "--help"], capture_output=True, text=True, timeout=60)
    assert len(shown) >= 6
    for name in shown:
        assert re.search(rf"\b{name}\b", answer.stdout), f"the README shows `branchwork {name}`"


def test_the_compiled_and_the_awaited_program_run(runtime: bw.Runtime, tmp_path: Path) -> None:
    program = re.findall(r"```python\n(.*?)```", README.split("## A program", 1)[1], re.DOTALL)[0]
    more = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if ".compile()" in block)
    body = program.split("state = advice.run", 1)[0] + "import asyncio\n\ncountries = ['France', 'Japan']\n" + more
    body = body.replace("    ...  #", "    print(state['capital'])  #").replace(
        "state = await ", "state = asyncio.run("
    )
    body = body.replace("timeout=10)", "timeout=10))")
    file = tmp_path / "program.py"
    file.write_text(
        body + "\nprint(answers.compiled, answers.notes, isinstance(state['sum'], int))\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "branchwork", "run", str(file), "--endpoint", runtime.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert (
        len(printed) == 3 and "Paris" in printed[0] and printed[-1].startswith("True ()") and "True" in printed[-1][7:]
    )
