"""The workloads of benchmarks/peers.py: each as a Branchwork program and as the dialogue another server's client holds.

Knows: texts, the public language. Must not know: servers, processes, clocks.
Both forms lay the same texts and take the same number of tokens; rows differ from repeat to repeat, so that no run
helps the next. A peer is asked with a prompt of texts and token ids, so that its own answers come back to it exact.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import branchwork as bw

Prompt = tuple[Any, ...]  # of str and of tuples of token ids
Row = dict[str, Any]


class Ask(Protocol):
    """What a workload needs of a peer. lane: requests that share one prefix bear the same name."""

    async def ask(self, prompt: Prompt, tokens: int, lane: str) -> tuple[int, ...]: ...
    async def json(self, prompt: Prompt, grammar: str, tokens: int, lane: str) -> tuple[int, ...]: ...
    async def choose(self, prompt: Prompt, endings: tuple[str, ...], lane: str) -> int: ...


class Counts(NamedTuple):
    """How much of a workload there is: in full, or for --quick."""

    streams: int = 16
    tokens: int = 128  # of one stream
    each: int = 64  # of each of several streams
    prompt: int = 2000
    shots: int = 32
    prefix: int = 1500
    tasks: int = 2
    chats: int = 8
    turns: int = 6
    agents: int = 8
    steps: int = 6
    records: int = 16
    essays: int = 4
    items: int = 16


FULL = Counts()
QUICK = Counts(each=32, shots=12, tasks=1, chats=6, turns=3, agents=5, steps=2, essays=2, items=6)


class Workload(NamedTuple):
    """name; aims: ratio to reach by peer; program: one row of it as a Branchwork function; theirs: the same row as a
    dialogue; rows: (repeat, counts) to the rows that run side by side; forked: whether several requests of a row, or
    several rows, wait for nothing but a prefix they share."""

    name: str
    aims: dict[str, float]
    program: Any
    theirs: Callable[[Ask, Row], Awaitable[None]]
    rows: Callable[[int, Counts], list[Row]]
    forked: bool = False


_NOUNS = (
    *("garden", "river", "market", "engine", "letter", "window", "teacher", "village", "winter", "bridge"),
    *("captain", "forest", "kitchen", "mountain", "doctor", "island", "farmer", "harbor", "library", "machine"),
    *("painter", "morning", "station", "valley", "orchard", "hunter", "planet", "meadow", "castle", "tailor"),
)
_VERBS = (
    *("finds", "builds", "carries", "follows", "opens", "paints", "repairs", "watches"),
    *("moves", "keeps", "cleans", "counts", "sells", "teaches", "leaves", "visits"),
)
_PLACES = ("near the lake", "behind the mill", "across the road", "under the old roof", "after the long rain")


def prose(seed: str, words: int) -> str:
    """About `words` words (about as many tokens, by the random model's tokenizer) of plain sentences."""
    rng = random.Random(seed)
    said: list[str] = []
    while len(said) < words:
        one, other = rng.sample(_NOUNS, 2)
        said += f"The {one} {rng.choice(_VERBS)} the {other} {rng.choice(_PLACES)}.".split()
    return " ".join(said[:words])


def user(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


END = "<|im_end|>\n"


# --- one completion a row: stream, prefill, streams, few-shot


@bw.function
def complete(s: Any, text: str, tokens: int, lane: str = "") -> None:
    s += text + bw.gen("answer", max_tokens=tokens, ignore_eos=True)


async def their_complete(peer: Ask, row: Row) -> None:
    await peer.ask((row["text"],), row["tokens"], row.get("lane", row["text"]))


def _stream(repeat: int, counts: Counts) -> list[Row]:
    return [{"text": f"Story {repeat}. {prose(f'stream {repeat}', 24)}", "tokens": counts.tokens}]


def _prefill(repeat: int, counts: Counts) -> list[Row]:
    text = f"Report {repeat}. {prose(f'prefill {repeat}', counts.prompt * 6 // 7)}"
    return [{"text": text, "tokens": 1}]


def _streams(repeat: int, counts: Counts) -> list[Row]:
    return [
        {"text": f"{n} of {repeat}. {prose(f'{n} {repeat}', 56)}", "tokens": counts.each} for n in range(counts.streams)
    ]


def _few_shot(repeat: int, counts: Counts) -> list[Row]:
    shots = [
        f"Q: Who {_VERBS[n % 16]} the {_NOUNS[n % 30]}?\nA: The {_NOUNS[(7 * n + repeat) % 30]}.\n"
        for n in range(counts.prefix // 18)
    ]
    prefix = f"Set {repeat}.\n" + "".join(shots)
    ask = "Q: Who {} the {}, and why number {}?\nA:"
    return [
        {"text": prefix + ask.format(_VERBS[n % 16], _NOUNS[(3 * n) % 30], n), "tokens": 16, "lane": "shots"}
        for n in range(counts.shots)
    ]


# --- tree of thought: three levels of forks


@bw.function
def tree(s: Any, task: str) -> None:
    s += bw.user(task)
    s += bw.assistant(bw.gen("aim", max_tokens=16, ignore_eos=True))
    for number, plan in enumerate(s.fork(3)):
        plan += bw.user(f"Propose plan {number + 1}.")
        plan += bw.assistant(bw.gen("plan", max_tokens=24, ignore_eos=True))
        for step, work in enumerate(plan.fork(3)):
            work += bw.user(f"Carry out step {step + 1} of the plan.")
            work += bw.assistant(bw.gen("work", max_tokens=24, ignore_eos=True))
            for view, look in enumerate(work.fork(2)):
                look += bw.user("Judge it as a {}.".format(("critic", "friend")[view]))
                look += bw.assistant(bw.gen("view", max_tokens=16, ignore_eos=True))


async def their_tree(peer: Ask, row: Row) -> None:
    lane = row["task"]

    async def level(before: Prompt, texts: list[str], tokens: int) -> list[Prompt]:
        prompts = [(*before, user(text)) for text in texts]
        answers = await asyncio.gather(*(peer.ask(prompt, tokens, lane) for prompt in prompts))
        return [(*prompt, answer, END) for prompt, answer in zip(prompts, answers)]

    async def carry_out(plan: Prompt) -> None:
        works = await level(plan, [f"Carry out step {step + 1} of the plan." for step in range(3)], 24)
        looks = ["Judge it as a critic.", "Judge it as a friend."]
        await asyncio.gather(*(level(work, looks, 16) for work in works))

    [aim] = await level((), [row["task"]], 16)
    plans = await level(aim, [f"Propose plan {number + 1}." for number in range(3)], 24)
    await asyncio.gather(*map(carry_out, plans))


def _trees(repeat: int, counts: Counts) -> list[Row]:
    said = "Task {} of {}: make the best of what is told here. {}"
    return [{"task": said.format(n, repeat, prose(f"task {n} {repeat}", 400))} for n in range(counts.tasks)]


# --- chats


@bw.function
def chat(s: Any, first: str, turns: int) -> None:
    for turn in range(turns):
        s += bw.user(question(first, turn))
        s += bw.assistant(bw.gen(f"answer{turn}", max_tokens=32, ignore_eos=True))


async def their_chat(peer: Ask, row: Row) -> None:
    text: Prompt = ()
    for turn in range(row["turns"]):
        text = (*text, user(question(row["first"], turn)))
        text = (*text, await peer.ask(text, 32, row["first"]), END)


def question(first: str, turn: int) -> str:
    return prose(f"turn {turn}", 24) + " What then?" if turn else f"{first} What do you make of it?"


def _chats(repeat: int, counts: Counts) -> list[Row]:
    return [
        {"first": f"Chat {n} of {repeat}. {prose(f'chat {n} {repeat}', 100)}", "turns": counts.turns}
        for n in range(counts.chats)
    ]


# --- agents


SYSTEM = (
    "You solve tasks in steps. Each step is a thought, then an action with one tool, then its observation.\n"
    + "\n".join(
        f"Tool {n}: {noun}_{_VERBS[n % 16]}(text) looks up the {noun}. {prose(noun, 16)}"
        for n, noun in enumerate(_NOUNS[:20])
    )
)


@bw.function
def agent(s: Any, mark: str, task: str, steps: int) -> None:
    s += bw.system(f"{mark} {SYSTEM}")
    s += bw.user(task)
    s += bw.assistant_begin()
    for step in range(steps):
        s += "Thought: " + bw.gen(f"thought{step}", max_tokens=24, ignore_eos=True)
        s += "\nAction: " + bw.gen(f"action{step}", max_tokens=12, ignore_eos=True)
        s += observation(task, step)
    s += bw.assistant_end()


async def their_agent(peer: Ask, row: Row) -> None:
    text: Prompt = (f"<|im_start|>system\n{row['mark']} {SYSTEM}<|im_end|>\n" + user(row["task"]),)
    for step in range(row["steps"]):
        text = (*text, "Thought: ")
        text = (*text, await peer.ask(text, 24, row["task"]), "\nAction: ")
        text = (*text, await peer.ask(text, 12, row["task"]), observation(row["task"], step))


def observation(task: str, step: int) -> str:
    return f"\nObservation: {prose(f'{task} {step}', 32)}\n"


def _agents(repeat: int, counts: Counts) -> list[Row]:
    return [
        {"mark": f"Run {repeat}.", "task": f"Task {n}: {prose(f'agent {n} {repeat}', 24)}", "steps": counts.steps}
        for n in range(counts.agents)
    ]


# --- JSON

FIELDS: dict[str, tuple[Any, ...]] = {  # texts of (least, most) letters, one of some words, or (least, most)
    "name": ("text", 6, 12),
    "kind": ("person", "company", "village", "machine"),
    "city": ("text", 6, 12),
    "age": ("number", 10, 99),
    "mood": ("pleased", "neutral", "worried"),
    "amount": ("number", 100, 999),
    "remark": ("text", 16, 32),
}


def _field(name: str) -> dict[str, Any]:
    match FIELDS[name]:
        case ("text", least, most):
            return {"type": "string", "pattern": f"^[A-Za-z ]{{{least},{most}}}$"}
        case ("number", least, most):
            return {"type": "integer", "minimum": least, "maximum": most}
        case words:
            return {"enum": list(words)}


def _rule(name: str) -> str:
    match FIELDS[name]:
        case ("text", least, most):
            return f'"\\"" [A-Za-z ]{{{least},{most}}} "\\""'
        case ("number", least, _):
            return f"[1-9] [0-9]{{{len(str(least)) - 1}}}"
        case words:
            return "( " + " | ".join(f'"\\"{word}\\""' for word in words) + " )"


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: _field(name) for name in FIELDS},
    "required": list(FIELDS),
    "additionalProperties": False,
}
# The same texts as GBNF. A schema given to llama.cpp lets the model write any number of blanks and line breaks between
# fields, on which a random model spends its tokens; here both sides write one blank where Branchwork does.
GBNF = 'root ::= "{" ' + ' ", " '.join(f'"\\"{name}\\": " {_rule(name)}' for name in FIELDS) + ' "}"'
JSON_TOKENS = 160


@bw.function
def extract(s: Any, text: str) -> None:
    s += bw.user(text)
    s += bw.assistant(bw.gen("record", json_schema=SCHEMA, max_tokens=JSON_TOKENS))


async def their_extract(peer: Ask, row: Row) -> None:
    await peer.json((user(row["text"]),), GBNF, JSON_TOKENS, row["text"])


def _records(repeat: int, counts: Counts) -> list[Row]:
    asked = "Write name, kind, city, age, mood, amount and remark of letter {} of {} as JSON.\n{}"
    return [{"text": asked.format(n, repeat, prose(f"letter {n} {repeat}", 90))} for n in range(counts.records)]


# --- judge

DIMENSIONS = ("clarity", "evidence", "originality", "imagery", "structure", "tone")


@bw.function
def judge(s: Any, essay: str) -> None:
    s += bw.user("Please carefully read this essay:\n\n" + essay)
    s += bw.assistant(bw.gen("read", max_tokens=8, ignore_eos=True))
    for branch, dimension in zip(s.fork(len(DIMENSIONS)), DIMENSIONS):
        branch += bw.user(f"Evaluate based on the following dimension: {dimension}.")
        branch += bw.assistant(bw.gen("judgment", max_tokens=32, ignore_eos=True))


async def their_judge(peer: Ask, row: Row) -> None:
    text: Prompt = (user("Please carefully read this essay:\n\n" + row["essay"]),)
    text = (*text, await peer.ask(text, 8, row["essay"]), END)
    asked = "Evaluate based on the following dimension: {}."
    prompts = [(*text, user(asked.format(dimension))) for dimension in DIMENSIONS]
    await asyncio.gather(*(peer.ask(prompt, 32, row["essay"]) for prompt in prompts))


def _essays(repeat: int, counts: Counts) -> list[Row]:
    return [{"essay": f"Essay {n} of {repeat}. {prose(f'essay {n} {repeat}', 400)}"} for n in range(counts.essays)]


# --- select


@bw.function
def pick(s: Any, context: str, endings: tuple[str, ...]) -> None:
    s += context + bw.select("ending", choices=endings)


async def their_pick(peer: Ask, row: Row) -> None:
    await peer.choose((row["context"],), row["endings"], row["context"])


def _items(repeat: int, counts: Counts) -> list[Row]:
    return [
        {
            "context": f"Scene {n} of {repeat}. {prose(f'scene {n} {repeat}', 120)} Then",
            "endings": tuple(" " + prose(f"end {n} {repeat} {k}", 14).lower() for k in range(4)),
        }
        for n in range(counts.items)
    ]


def _aims(llama: float, transformers: float) -> dict[str, float]:
    return {"llama.cpp": llama, "transformers": transformers}


WORKLOADS = (
    Workload("stream", _aims(1, 2), complete, their_complete, _stream),
    Workload("prefill", _aims(1.5, 1), complete, their_complete, _prefill),
    Workload("streams", _aims(1.5, 3), complete, their_complete, _streams),
    Workload("few-shot", _aims(3, 10), complete, their_complete, _few_shot, forked=True),
    Workload("tree-of-thought", _aims(3, 10), tree, their_tree, _trees, forked=True),
    Workload("multi-turn", _aims(3, 10), chat, their_chat, _chats),
    Workload("react", _aims(3, 10), agent, their_agent, _agents, forked=True),
    Workload("json", {"llama.cpp": 3}, extract, their_extract, _records),
    Workload("judge", _aims(3, 10), judge, their_judge, _essays, forked=True),
    Workload("select", _aims(3, 10), pick, their_pick, _items, forked=True),
)
