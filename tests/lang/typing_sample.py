"""What a type checker sees of programs: checked by mypy, not run. A line's expectation stands behind it."""

from __future__ import annotations

import dataclasses
from typing import Any

from typing_extensions import reveal_type

import branchwork as bw


@dataclasses.dataclass
class Answer:
    text: str


@bw.function
def plain(s: bw.ProgramState, question: str, times: int = 1) -> Answer:
    s += question * times + bw.gen("x")
    return Answer(s["x"])


@bw.function
async def awaited(s: bw.ProgramState, question: str) -> list[int]:
    s += question + bw.gen("x")
    return [len(await s.get("x"))]


@bw.function(num_api_spec_tokens=16)
def configured(s: Any, question: str) -> str:
    s += question + bw.gen("x")
    return str(s["x"])


async def main() -> None:
    reveal_type(plain.run("a", times=2))  # ProgramState[Answer]
    reveal_type(plain.run("a", backend=None, temperature=0).ret_value)  # Answer
    reveal_type(plain("a").ret_value)  # Answer
    reveal_type((await plain.arun(question="a")).ret_value)  # Answer
    reveal_type(plain.stream("a").ret_value)  # Answer
    reveal_type(plain.bind(question="a").run().ret_value)  # Answer
    reveal_type(awaited.run("a").ret_value)  # list[int]
    reveal_type((await awaited.arun("a")).ret_value)  # list[int]
    reveal_type(configured.run("a").ret_value)  # str
    reveal_type(plain.compile())  # Compiled[[question: str, times: int =], Answer]
    reveal_type(plain.compile().run("a").ret_value)  # Answer
    reveal_type((await awaited.compile().arun("a")).ret_value)  # list[int]
    reveal_type(plain)  # Function[[question: str, times: int =], Answer]
    _ = plain.run("a").ret_value.missing  # error: "Answer" has no attribute "missing"
    for state in plain.run_batch([{"question": "a"}], generator_style=True):
        reveal_type(state.ret_value)  # Answer
    reveal_type(plain.run_batch([("a",)])[0].ret_value)  # Answer
    reveal_type(plain.run_batch([("a",)], return_exceptions=True)[0])  # Any
