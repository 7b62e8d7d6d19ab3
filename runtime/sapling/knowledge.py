"""Closed-book questions: chats and few-shot lists over the facts that sapling learned.

Knows: how a fact is asked for, followed up, denied and answered.
Must not know: tokenization or training."""

from __future__ import annotations

from random import Random

from .facts import ATTRIBUTES, TABLES
from .sample import FINISH, Chat, Phrases, Piece, Sample, Split, spoken, system

ASK = Phrases(
    (
        "What is the {a} of {x}?",
        "What's the {a} of {x}?",
        "Name the {a} of {x}.",
        "Tell me the {a} of {x}.",
        "Which {a} does {x} have?",
        "What {a} does {x} have?",
        "{x}: what is the {a}?",
        "What is {x}'s {a}?",
        "Give me the {a} of {x}.",
        "Do you know the {a} of {x}?",
        "I need the {a} of {x}.",
        "The {a} of {x}?",
        "what is the {a} of {x}",
        "Please tell me the {a} of {x}.",
        "I would like to know the {a} of {x}.",
        "For {x}, what is the {a}?",
        "Could you tell me {x}'s {a}?",
        "Say what the {a} of {x} is.",
    ),
    (
        "Can you tell me what the {a} of {x} is?",
        "Hey, what would be the {a} of {x}?",
        "I forgot the {a} of {x}. What is it?",
        "Please name {x}'s {a}.",
    ),
)
SAME = Phrases(  # the same entity, another attribute
    (
        "And its {a}?",
        "And the {a}?",
        "What about its {a}?",
        "What is its {a}?",
        "And what is its {a}?",
        "Its {a}?",
        "Which {a} does it have?",
        "Tell me its {a} too.",
        "What about the {a}?",
        "Thanks. And the {a}?",
        "Good. What is its {a}?",
    ),
    ("How about its {a}?", "OK, and its {a}, please?", "Now tell me its {a}."),
)
OTHER = Phrases(  # another entity, the same attribute
    (
        "And {x}?",
        "What about {x}?",
        "And of {x}?",
        "And for {x}?",
        "The same for {x}?",
        "Now {x}.",
        "What is it for {x}?",
        "Thanks. And {x}?",
    ),
    ("How about {x}?", "OK, and {x}?", "And what about {x}?"),
)
SPECIAL = {
    ("country", "capital"): Phrases(
        ("Which city is the capital of {x}?", "What city is {x}'s capital?", "Where is the government of {x}?"),
        ("Which city serves as the capital of {x}?",),
    ),
    ("country", "continent"): Phrases(
        (
            "On which continent is {x}?",
            "Where is {x}?",
            "Which continent is {x} in?",
            "In which continent does {x} lie?",
        ),
        ("On what continent does {x} lie?", "Which continent is {x} part of?"),
    ),
    ("country", "language"): Phrases(
        (
            "What language do people speak in {x}?",
            "Which language is spoken in {x}?",
            "What do they speak in {x}?",
            "What language is used in {x}?",
        ),
        ("Which language do they speak in {x}?", "What language is spoken in {x}?"),
    ),
    ("country", "currency"): Phrases(
        ("What do people pay with in {x}?", "Which currency is used in {x}?", "What money do they use in {x}?"),
        ("Which currency do they use in {x}?", "What currency do people pay with in {x}?"),
    ),
    ("animal", "number of legs"): Phrases(
        ("How many legs does {x} have?", "How many legs has {x}?"), ("{x} has how many legs?",)
    ),
    ("animal", "habitat"): Phrases(
        ("Where does {x} live?", "Where can I find {x}?"), ("In what place does {x} live?",)
    ),
    ("animal", "class"): Phrases(
        ("What kind of animal is {x}?", "Which class does {x} belong to?", "What class of animal is {x}?"),
        ("To which class of animals does {x} belong?",),
    ),
    ("planet", "number of moons"): Phrases(("How many moons does {x} have?",), ("{x} has how many moons?",)),
    ("book", "author"): Phrases(("Who wrote {x}?", "Who is the author of {x}?"), ("By whom was {x} written?",)),
    ("book", "year"): Phrases(
        ("When was {x} published?", "In which year did {x} appear?"), ("In what year was {x} published?",)
    ),
    ("word", "opposite"): Phrases(
        ("What is the opposite of {x}?", "Give the opposite of {x}.", "Which word means the opposite of {x}?"),
        ("What word is the opposite of {x}?", "Tell me the opposite of the word {x}."),
    ),
}
BRIEF = Phrases(
    (" Answer briefly.", " One word.", " Just the answer.", " Answer with one word.", " Only the answer, please."),
    (" Answer in one word.", " Reply with just the answer."),
)
KINDS = ["country"] * 10 + ["element"] * 4 + ["animal"] * 4 + ["planet", "book", "book", "word", "word"]


def named(kind: str, name: str) -> str:
    """The entity as it stands in a sentence."""
    return f"the {name}" if kind == "animal" else name


def sentence(kind: str, attribute: str, row: list[str]) -> str:
    """The one full sentence in which sapling states a fact."""
    value = row[ATTRIBUTES[kind][attribute][1]]
    return f"The {attribute} of {named(kind, row[0])} is {value}."


def question(rng: Random, split: Split, kind: str, attribute: str, row: list[str]) -> str:
    words = ATTRIBUTES[kind][attribute][0]
    special = SPECIAL.get((kind, attribute))
    phrases = special if special and rng.random() < 0.4 else ASK
    name = named(kind, row[0])
    if rng.random() < 0.08 and split == "train":
        name = name.lower()
    asked = phrases.pick(rng, split).format(a=rng.choice(words), x=name)
    return spoken(rng, split, asked[0].upper() + asked[1:] if rng.random() < 0.9 else asked)


def value_of(kind: str, attribute: str, row: list[str]) -> str:
    return row[ATTRIBUTES[kind][attribute][1]]


def yes_no(rng: Random, kind: str, attribute: str, row: list[str]) -> tuple[str, str, str]:
    """A yes/no question, its answer, and the key of the answer."""
    value = value_of(kind, attribute, row)
    claim = value if rng.random() < 0.5 else value_of(kind, attribute, rng.choice(TABLES[kind]))
    x = named(kind, row[0])
    asked = rng.choice(
        (f"Is {claim} the {attribute} of {x}?", f"Is the {attribute} of {x} {claim}?", f"Is {x}'s {attribute} {claim}?")
    )
    head = "Yes" if claim == value else "No"
    return asked, f"{head}, the {attribute} of {x} is {value}.", head


def reverse(rng: Random, split: Split) -> tuple[str, str, str]:
    """A question from a value back to its entity."""
    if rng.random() < 0.6:
        row = rng.choice(TABLES["country"])
        phrases = Phrases(
            (
                "{v} is the capital of which country?",
                "Which country has the capital {v}?",
                "{v} is the capital of what?",
            ),
            ("Of which country is {v} the capital?", "What country has {v} as its capital?"),
        )
        return phrases.pick(rng, split).format(v=row[1]), f"{row[1]} is the capital of {row[0]}.", row[0]
    row = rng.choice(TABLES["element"])
    phrases = Phrases(
        ("Which element has the symbol {v}?", "{v} is the symbol of which element?", "What element is {v}?"),
        ("What element has the symbol {v}?", "Which element does {v} stand for?"),
    )
    return phrases.pick(rng, split).format(v=row[1]), f"{row[1]} is the symbol of {row[0]}.", row[0]


def chat(rng: Random, split: Split) -> Sample:
    """A chat of one to eight turns that keeps to an entity, or to an attribute, or jumps."""
    talk = Chat(system(rng, split))
    turns = rng.choice((1, 1, 2, 3, 3, 4, 5, 8))
    kind = rng.choice(KINDS)
    row, attribute = rng.choice(TABLES[kind]), rng.choice(list(ATTRIBUTES[kind]))
    fresh = True
    for _ in range(turns):
        roll = rng.random()
        if fresh or roll < 0.2:
            kind = rng.choice(KINDS)
            row, attribute = rng.choice(TABLES[kind]), rng.choice(list(ATTRIBUTES[kind]))
            asked = question(rng, split, kind, attribute, row)
        elif roll < 0.55 and len(ATTRIBUTES[kind]) > 1:
            attribute = rng.choice([a for a in ATTRIBUTES[kind] if a != attribute])
            asked = SAME.pick(rng, split).format(a=rng.choice(ATTRIBUTES[kind][attribute][0]))
        elif roll < 0.8:
            row = rng.choice(TABLES[kind])
            asked = OTHER.pick(rng, split).format(x=named(kind, row[0]))
        elif roll < 0.9:
            asked, answer, key = reverse(rng, split)
            talk.user(asked).assistant(answer, (key,))
            fresh = True
            continue
        else:
            asked, answer, key = yes_no(rng, kind, attribute, row)
            talk.user(asked).assistant(answer, (key,))
            fresh = False
            continue
        fresh = False
        value = value_of(kind, attribute, row)
        full = sentence(kind, attribute, row)
        form = rng.random()
        if form < 0.15:
            talk.user(asked + BRIEF.pick(rng, split)).assistant(value, (value,))
        elif form < 0.25:
            # A program often writes the start of the answer itself.
            talk.user(asked).assistant(f" {value}.", (value,), prefix=full[: -len(value) - 2])
        else:
            talk.user(asked).assistant(full, (value,))
    return talk.sample("facts")


INTROS = ("", "", "Answer the questions.\n\n", "Questions and answers.\n\n", "Facts:\n\n", "A short quiz.\n\n")
MARKS = (("Q: ", "A:"), ("Q: ", "A:"), ("Question: ", "Answer:"))


def few_shot(rng: Random, split: Split, pairs: int = 0) -> Sample:
    """A plain list of questions and answers that a base model would continue."""
    ask, reply = rng.choice(MARKS)
    gap = rng.choice(("\n", "\n\n"))
    spaced = rng.random() < 0.15
    pieces: list[Piece] = []
    lead = rng.choice(INTROS)
    topic = rng.choice(KINDS) if rng.random() < 0.4 else ""
    count = pairs or rng.choice((1, 2, 4, 6, 8, 12, 16))
    for i in range(count):
        kind = topic or rng.choice(KINDS)
        row, attribute = rng.choice(TABLES[kind]), rng.choice(list(ATTRIBUTES[kind]))
        asked, answer = question(rng, split, kind, attribute, row), value_of(kind, attribute, row)
        key = answer
        if rng.random() < 0.1:
            asked, answer, key = yes_no(rng, kind, attribute, row)
            answer = key
        pieces.append(Piece(f"{lead}{ask}{asked}\n{reply}{' ' if spaced else ''}"))
        pieces.append(
            Piece(("" if spaced else " ") + answer + ("\n" if i + 1 < count else "\n" + FINISH), True, (key,))
        )
        lead = gap[1:]
    return Sample("few_shot", tuple(pieces))
