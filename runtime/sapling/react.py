"""Word problems worked through a calculator in Thought / Action / Observation form.

Knows: problem templates, their one or two operations, and the trace that solves them.
Must not know: tokenization or training; the sums themselves are the tool's work."""

from __future__ import annotations

from random import Random

from .lookup import GOODS
from .sample import FINISH, Chat, Phrases, Piece, Sample, Split, draw, invent, number, words

REAL = words("Anna Ben Clara David Emma Tom Sam Lena Max Nora Paul Rosa")
# Per operation: templates over numbers {a} {b}, a name {x} and a noun {n}.
ONE_STEP: dict[str, Phrases] = {
    "*": Phrases(
        (
            "What is {a} times {b}?",
            "What is {a} * {b}?",
            "How much is {a} multiplied by {b}?",
            "{x} buys {a} boxes with {b} {n} each. How many {n} does {x} have?",
            "There are {a} rows of {b} {n}. How many {n} are there?",
            "A {n1} costs {b} dollars. How much do {a} {n} cost?",
            "{x} works {a} days and earns {b} dollars a day. How much does {x} earn?",
            "Each of {a} bags holds {b} {n}. How many {n} are in the bags?",
            "Multiply {a} by {b}.",
        ),
        (
            "Please compute {a} times {b}.",
            "{x} has {a} shelves with {b} {n} on each of them. How many {n} is that?",
            "If one {n1} costs {b} dollars, what do {a} {n} cost?",
        ),
    ),
    "+": Phrases(
        (
            "What is {a} plus {b}?",
            "What is {a} + {b}?",
            "{x} has {a} {n} and gets {b} more. How many {n} does {x} have now?",
            "{x} has {a} {n} and {y} has {b} {n}. How many {n} do they have together?",
            "A shop sold {a} {n} on Monday and {b} {n} on Tuesday. How many in total?",
            "Add {a} and {b}.",
            "What is the sum of {a} and {b}?",
            "{x} drives {a} miles and then {b} miles. How far does {x} drive?",
        ),
        (
            "Please compute {a} plus {b}.",
            "{x} found {a} {n} and {y} found {b} {n}. How many {n} did they find together?",
            "{x} had {a} {n} and bought {b} more. How many {n} are there now?",
        ),
    ),
    "-": Phrases(
        (
            "What is {a} minus {b}?",
            "What is {a} - {b}?",
            "{x} has {a} {n} and gives away {b}. How many {n} are left?",
            "{x} had {a} dollars and spent {b} dollars. How much money is left?",
            "There were {a} {n} and {b} of them broke. How many {n} are left?",
            "Subtract {b} from {a}.",
            "A book has {a} pages. {x} has read {b} pages. How many pages are left?",
            "{x} has {a} {n}. {y} takes {b} of them. How many {n} does {x} still have?",
        ),
        (
            "Please compute {a} minus {b}.",
            "{x} had {a} {n} and lost {b} of them. How many {n} are left?",
            "From {a} {n}, {x} sells {b}. How many {n} are left?",
        ),
    ),
    "/": Phrases(
        (
            "What is {a} divided by {b}?",
            "What is {a} / {b}?",
            "{x} shares {a} {n} among {b} friends. How many does each friend get?",
            "{a} {n} are packed into {b} boxes. How many {n} are in each box?",
            "Divide {a} by {b}.",
            "{x} pays {a} dollars for {b} {n}. How much is one {n1}?",
            "{a} {n} are put into {b} equal groups. How big is each group?",
        ),
        (
            "Please compute {a} divided by {b}.",
            "{b} children share {a} {n}. How many does each child get?",
            "{x} splits {a} {n} into {b} equal parts. How big is one part?",
        ),
    ),
}
# (first operation, second operation with {r} first) with templates over {a} {b} {c}.
TWO_STEP: dict[tuple[str, str], Phrases] = {
    ("*", "+"): Phrases(
        (
            "{x} buys {a} boxes with {b} {n} each and gets {c} more {n}. How many {n} does {x} have?",
            "There are {a} bags with {b} {n} each and {c} loose {n}. How many {n} are there in total?",
            "What is {a} times {b}, plus {c}?",
        ),
        ("{x} has {a} bags with {b} {n} in each, and {c} {n} on the table. How many {n} is that?",),
    ),
    ("*", "-"): Phrases(
        (
            "{x} has {a} boxes with {b} {n} each and sells {c} {n}. How many {n} are left?",
            "{x} works {a} days for {b} dollars a day and spends {c} dollars. How much is left?",
            "What is {a} times {b}, minus {c}?",
        ),
        ("{x} buys {a} packs of {b} {n} and loses {c} {n}. How many {n} are left?",),
    ),
    ("+", "*"): Phrases(
        (
            "{x} sees {a} red {n} and {b} blue {n}. Each costs {c} dollars. What do all of them cost?",
            "{x} and {y} have {a} and {b} {n}. Each {n1} weighs {c} grams. How many grams do they weigh together?",
            "What is the sum of {a} and {b}, times {c}?",
        ),
        ("There are {a} old {n} and {b} new {n}. Each of them costs {c} dollars. How much do they cost together?",),
    ),
    ("+", "-"): Phrases(
        (
            "{x} has {a} {n}, gets {b} more and gives away {c}. How many {n} are left?",
            "A bus has {a} people. {b} people get on and {c} get off. How many people are on the bus?",
            "What is {a} plus {b}, minus {c}?",
        ),
        ("{x} had {a} {n}, found {b} more and lost {c}. How many {n} does {x} have now?",),
    ),
    ("-", "/"): Phrases(
        (
            "{x} has {a} {n}, eats {b} and shares the rest among {c} friends. How many does each friend get?",
            "What is {a} minus {b}, divided by {c}?",
        ),
        ("{x} has {a} {n}, keeps {b} and splits the rest among {c} children. How many does each child get?",),
    ),
}
INTROS = Phrases(
    (
        "",
        "",
        "Answer the question. You can use calculator[expression].\n\n",
        "Solve the problem step by step. Use the tool calculator.\n\n",
        "You run in a loop of Thought, Action, Observation. Available tool: calculator[expression]\n\n",
    ),
    ("Answer with the help of the tool calculator[expression].\n\n", ""),
)


def problem(rng: Random, split: Split) -> tuple[str, list[tuple[str, str]]]:
    """A question and its steps as (expression, observed result)."""
    noun = rng.choice(GOODS + ["apple", "egg", "coin", "stamp", "ticket", "book", "card", "flower", "cookie", "marble"])
    plural = noun.removesuffix("f") + "ves" if noun.endswith("f") else noun + "s"
    words = {"n": plural, "n1": noun, "x": draw(rng, split, REAL), "y": invent(rng, split)}
    a, b, c = (number(rng, rng.choice((1, 2, 2, 3, 3, 4))) + 1 for _ in range(3))
    if rng.random() < 0.6:
        op = rng.choice("*+-/")
        a, b = (max(a, b) + 1, min(a, b)) if op in "-/" else (a, b)
        a = b * (a % 97 + 2) if op == "/" else a
        text = ONE_STEP[op].pick(rng, split).format(a=a, b=b, **words)
        return text, [(f"{a}{op}{b}", result(a, op, b))]
    first, second = rng.choice(list(TWO_STEP))
    if first == "-":
        c = c % 20 + 2
        b = b % 200 + 1
        a = b + c * (a % 50 + 1)
    elif second == "-":
        c = c % (a + b) + 1 if first == "+" else c % (a * b) + 1
    text = TWO_STEP[first, second].pick(rng, split).format(a=a, b=b, c=c, **words)
    middle = result(a, first, b)
    return text, [(f"{a}{first}{b}", middle), (f"{middle}{second}{c}", result(int(middle), second, c))]


def result(a: int, op: str, b: int) -> str:
    """What the calculator answers."""
    return str({"+": a + b, "-": a - b, "*": a * b, "/": a // b}[op])


def trace(rng: Random, split: Split, chatty: bool) -> list[Piece]:
    """Question to final answer; the observations are the program's, the rest is learned."""
    text, steps = problem(rng, split)
    intro = INTROS.pick(rng, split)
    loose = rng.random() < 0.4  # the program writes "Thought:" itself
    mark = "Thought:" if loose else ""
    head = f"{intro}Question: {text}"
    pieces = [Piece((Chat().user(head).pending + "<|im_start|>assistant\n" if chatty else head + "\n") + mark)]
    for i, (expression, observed) in enumerate(steps):
        thought = f" I need to compute {expression}.\n" if i == 0 else f" Now I need to compute {expression}.\n"
        key = f"Action: calculator[{expression}]"
        pieces.append(Piece(("" if loose else "Thought:") + thought + key + "\nObservation:", True, (key,)))
        pieces.append(Piece(f" {observed}\n{mark}"))
    last = f" I know the answer.\nFinal Answer: {observed}"
    end = "<|im_end|>" if chatty else "\n\n"
    pieces.append(Piece(("" if loose else "Thought:") + last + end, True, (f"Final Answer: {observed}",)))
    return pieces


def sample(rng: Random, split: Split) -> Sample:
    """One trace in a chat, or one to four in plain text."""
    if rng.random() < 0.5:
        return Sample("react", tuple(trace(rng, split, True)))
    pieces: list[Piece] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        pieces += trace(rng, split, False)
    pieces.append(Piece(FINISH, True))
    return Sample("react", tuple(pieces))
