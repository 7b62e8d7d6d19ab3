"""What a training sample is, how a chat is rendered, and how names are drawn.

Knows: pieces of text with a mark on what is learned, the chat markup, the split of names and phrasings.
Must not know: any single skill, the tokenizer, or torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, NamedTuple
from zlib import crc32

Split = Literal["train", "held"]


class Piece(NamedTuple):
    """A stretch of text that is tokenized on its own. `keys` are what a held-out answer must contain."""

    text: str
    learn: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One document of the corpus."""

    skill: str
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Phrases(NamedTuple):
    """Ways to say one thing; the held ones are never trained on."""

    train: tuple[str, ...]
    held: tuple[str, ...]

    def pick(self, rng: Random, split: Split) -> str:
        return rng.choice(self.train if split == "train" else self.held)


END = "<|im_end|>\n"
STOP = "<|im_end|>"
FINISH = "<|endoftext|>"


def opening(role: str) -> str:
    """The markup that starts a turn."""
    return f"<|im_start|>{role}\n"


def turn(role: str, content: str) -> str:
    """A whole turn of the chat markup."""
    return f"{opening(role)}{content}{END}"


def tools_text(tools: list[dict[str, Any]]) -> str:
    """The part of the system turn that lists tools, exactly as the chat template renders it."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return f"# Tools\n<tools>\n{lines}\n</tools>"


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as the model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


class Chat:
    """Collects the turns of one chat as pieces."""

    def __init__(self, system: str = "") -> None:
        self.pieces: list[Piece] = []
        self.pending = turn("system", system) if system else ""

    def user(self, content: str) -> Chat:
        self.pending += turn("user", content)
        return self

    def tool(self, content: str) -> Chat:
        self.pending += turn("tool", content)
        return self

    def assistant(self, answer: str, keys: tuple[str, ...] = (), prefix: str = "", learn: bool = True) -> Chat:
        """An assistant turn; `prefix` is literal text that a program puts before what the model writes."""
        self.pieces.append(Piece(self.pending + opening("assistant") + prefix))
        self.pieces.append(Piece(answer + STOP, learn, keys))
        self.pending = "\n"
        return self

    def sample(self, skill: str) -> Sample:
        return Sample(skill, tuple(self.pieces))


def words(text: str) -> list[str]:
    """The words of a text, in which a long list reads better than between quotation marks."""
    return text.split()


ONSETS = words("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z bl cr sk sl sp")
VOWELS = words("a e i o u a e i o u a e i o ai ea ee io ou oo")
CODAS = words("n r l s t m th x nd rk ck ll sh ng") + [""] * 16
REAL_NAMES = words(
    "Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nina Oscar Paula Quentin Rosa Sam Tina "
    "Ursula Victor Wendy Xavier Yara Zoe Anna Ben Clara Daniel Elena Felix Gina Hugo Ivan Julia Kevin Laura Max "
    "Nora Oliver Petra Ravi Sofia Tom Uma Vera Walter Yusuf Amir Bianca Chen Diego Esther Fatima George Hana Ines "
    "Jonas Kim Lena Marco Noah Olga Pedro Rita Simon Tara Viktor Wei Adam Bella Carlos Dora Eric Fiona Gabriel "
    "Helen Isaac Jane Kurt Linda Martin Nadia Otto Priya Robert Sarah Thomas Mary John James Peter Lucy Mark Ruth "
    "Paul Mia Liam"
)
REAL_CITIES = words(
    "Paris Berlin London Madrid Rome Vienna Oslo Lisbon Dublin Tokyo Cairo Lima Boston Chicago Seattle Toronto "
    "Sydney Munich Hamburg Milan Naples Geneva Zurich Prague Warsaw Athens Delhi Mumbai Osaka Seoul Austin Denver "
    "Dallas Miami Quito Havana Nairobi Lagos Leeds Bristol Porto Seville Lyon Nice Turin Basel Ghent Bergen Malmo "
    "Gdansk"
)


def is_held(name: str) -> bool:
    """Whether a name lies in the bucket that training never sees."""
    return crc32(name.lower().encode()) % 8 == 0


def invent(rng: Random, split: Split, syllables: int = 0) -> str:
    """A made-up capitalised word from the split's bucket."""
    while True:
        count = syllables or rng.choice((1, 2, 2, 2, 3, 3))
        word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(count)).capitalize()
        if len(word) > 2 and is_held(word) == (split == "held"):
            return word


def draw(rng: Random, split: Split, pool: list[str], invented: float = 0.6) -> str:
    """A word of `pool` that lies in the split's bucket, or a made-up one."""
    while rng.random() >= invented:
        word = rng.choice(pool)
        if is_held(word) == (split == "held"):
            return word
    return invent(rng, split)


def person(rng: Random, split: Split) -> str:
    """A first name, sometimes with a surname."""
    first = draw(rng, split, REAL_NAMES)
    return f"{first} {invent(rng, split)}" if rng.random() < 0.35 else first


def city(rng: Random, split: Split) -> str:
    return draw(rng, split, REAL_CITIES)


def number(rng: Random, digits: int = 0) -> int:
    """A number with a random (or the given) count of digits, never 0."""
    digits = digits or rng.choice((1, 2, 2, 2, 3, 3, 4))
    return rng.randrange(10 ** (digits - 1), 10**digits)


def article(noun: str) -> str:
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


ROLES = Phrases(
    (
        "You are a helpful assistant.",
        "You are a friendly assistant.",
        "You are a careful assistant who answers briefly.",
        "You answer questions.",
        "Be brief and correct.",
        "You are an expert.",
        "You are a teacher. Answer simply.",
        "Help the user.",
        "You are sapling, a small assistant.",
        "Answer the questions of the user as well as you can.",
    ),
    ("You are a patient assistant.", "Please answer the user correctly.", "You are a kind and clever helper."),
)


def spoken(rng: Random, split: Split, asked: str) -> str:
    """A question with, now and then, the small words around it that people use; only training needs them."""
    if split == "held" or rng.random() > 0.15:
        return asked
    lead = rng.choice(
        ("Please help me. ", "Hi! ", "OK. ", "Next question: ", "Well, ", "Now: ", "", "Sorry, ", "Hmm. ")
    )
    return lead + asked + rng.choice(("", "", " Thanks.", " Please.", " I would like to know."))


def system(rng: Random, split: Split, share: float = 0.35) -> str:
    """A system prompt, or none."""
    return ROLES.pick(rng, split) if rng.random() < share else ""
