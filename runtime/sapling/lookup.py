"""Questions over a table, list or paragraph that stands in the prompt.

Knows: how made-up records are drawn, written down in several formats, and asked about.
Must not know: the closed-book facts, tokenization or training."""

from __future__ import annotations

from random import Random

from .knowledge import ASK, BRIEF, OTHER
from .sample import (
    FINISH,
    Chat,
    Phrases,
    Piece,
    Sample,
    Split,
    city,
    draw,
    invent,
    number,
    person,
    spoken,
    system,
    words,
)

COLORS = words("red blue green yellow black white brown gray orange purple pink silver golden violet")
JOBS = words(
    "baker teacher doctor farmer pilot painter nurse driver lawyer singer writer judge miner sailor tailor gardener "
    "engineer carpenter cook dentist plumber actor guard waiter librarian mechanic chemist florist"
)
PETS = words("dog cat horse rabbit parrot turtle goat fish pony hamster snake duck")
GOODS = words(
    "lamp chair table kettle bottle basket hammer ladder mirror pencil blanket candle bucket guitar camera helmet "
    "jacket wallet compass kite drum clock shovel pillow carpet teapot"
)
MATERIALS = words("wood steel glass paper wool copper stone leather cotton clay silk rubber")
# theme -> (noun of an entity, attributes with the kind of their values)
THEMES = {
    "people": [
        ("age", "number"),
        ("city", "city"),
        ("job", "job"),
        ("favorite color", "color"),
        ("pet", "pet"),
        ("phone", "phone"),
        ("team", "name"),
        ("boss", "name"),
        ("salary", "number"),
    ],
    "products": [
        ("price", "number"),
        ("stock", "number"),
        ("color", "color"),
        ("code", "code"),
        ("material", "material"),
        ("weight", "number"),
        ("maker", "name"),
    ],
    "places": [
        ("capital", "name"),
        ("population", "number"),
        ("river", "name"),
        ("language", "name"),
        ("ruler", "name"),
        ("currency", "name"),
        ("founder", "name"),
        ("main product", "goods"),
    ],
    "rooms": [
        ("owner", "name"),
        ("size", "number"),
        ("door code", "code"),
        ("wall color", "color"),
        ("floor", "digit"),
    ],
}
PRONOUN = {"people": ("their", "his", "her"), "products": ("its",), "places": ("its",), "rooms": ("its",)}
FOLLOW = Phrases(
    ("And {p} {a}?", "What about {p} {a}?", "What is {p} {a}?", "And the {a}?", "Tell me {p} {a} too."),
    ("How about {p} {a}?", "OK, and {p} {a}?", "Now tell me {p} {a}."),
)
REVERSE = Phrases(
    (
        "Which one has the {a} {v}?",
        "Who or what has the {a} {v}?",
        "Whose {a} is {v}?",
        "Which entry has {v} as {a}?",
        "{v} is the {a} of which one?",
    ),
    ("Which of them has the {a} {v}?", "Of which one is {v} the {a}?"),
)
LEADS = Phrases(
    ("Here is a table.", "Use the data below.", "Data:", "Some facts:", "Context:", "Read this:", "", "Notes:"),
    ("Here is some information.", "Look at this data.", "Facts to use:"),
)


def value(rng: Random, split: Split, kind: str) -> str:
    match kind:
        case "number":
            return str(number(rng))
        case "digit":
            return str(number(rng, 1))
        case "phone":
            return str(number(rng, rng.choice((3, 4, 5))))
        case "code":
            return rng.choice("ABCDEFGHKLMNPRSTX") + rng.choice(("", "-", "X", "Q")) + str(number(rng, 2))
        case "city":
            return city(rng, split)
        case "name":
            return invent(rng, split)
        case "color":
            return rng.choice(COLORS)
        case "job":
            return rng.choice(JOBS)
        case "pet":
            return rng.choice(PETS)
        case "material":
            return rng.choice(MATERIALS)
        case _:
            return rng.choice(GOODS)


def records(rng: Random, split: Split, theme: str, count: int, columns: int) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; the first cell of a row names its entity, and no name comes twice."""
    attributes = rng.sample(THEMES[theme], columns)
    names: list[str] = []
    while len(names) < count:
        name = person(rng, split) if theme == "people" else draw(rng, split, GOODS, 0.6 if theme == "products" else 1.0)
        if not any(name.split()[0] == other.split()[0] for other in names):
            names.append(name)
    return [a for a, _ in attributes], [[n, *(value(rng, split, kind) for _, kind in attributes)] for n in names]


def written(rng: Random, header: list[str], table: list[list[str]], style: str) -> str:
    """The records in one of the formats that prompts use."""
    if style == "markdown":
        lines = ["| name | " + " | ".join(header) + " |", "|" + " --- |" * (len(header) + 1)]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in table])
    if style == "csv":
        return "\n".join([",".join(["name", *header])] + [",".join(row) for row in table])
    if style == "list":
        mark = rng.choice(("", "- ", "* "))
        return "\n".join(
            f"{mark}{row[0]}: " + ", ".join(f"{a} {v}" for a, v in zip(header, row[1:], strict=True)) for row in table
        )
    if style == "blocks":
        return "\n\n".join(
            f"name: {row[0]}\n" + "\n".join(f"{a}: {v}" for a, v in zip(header, row[1:], strict=True)) for row in table
        )
    facts = [(row[0], a, v) for row in table for a, v in zip(header, row[1:], strict=True)]
    rng.shuffle(facts)
    form = rng.choice(("The {a} of {x} is {v}.", "{x} has the {a} {v}.", "{x}'s {a} is {v}."))
    return " ".join(form.format(a=a, x=x, v=v) for x, a, v in facts)


STYLES = ("markdown", "csv", "list", "list", "blocks", "sentences", "sentences")


class Asker:
    """Asks about one table, remembering what the last question was about."""

    def __init__(self, rng: Random, split: Split, count: int, columns: int) -> None:
        self.rng, self.split = rng, split
        self.theme = rng.choice(list(THEMES))
        self.header, self.table = records(rng, split, self.theme, count, min(columns, len(THEMES[self.theme])))
        self.text = written(rng, self.header, self.table, rng.choice(STYLES))
        self.row, self.column = -1, -1

    def ask(self, follow: bool = True) -> tuple[str, str, str]:
        """A question, its full answer, and the value asked for."""
        rng, split = self.rng, self.split
        roll = rng.random() if follow and self.row >= 0 else 1.0
        if roll < 0.25 and len(self.header) > 1:
            self.column = rng.choice([c for c in range(len(self.header)) if c != self.column])
            asked = FOLLOW.pick(rng, split).format(p=rng.choice(PRONOUN[self.theme]), a=self.header[self.column])
        elif roll < 0.45:
            self.row = rng.randrange(len(self.table))
            asked = OTHER.pick(rng, split).format(x=self.table[self.row][0])
        else:
            self.row, self.column = rng.randrange(len(self.table)), rng.randrange(len(self.header))
            attribute, found = self.header[self.column], self.table[self.row][self.column + 1]
            unique = sum(row[self.column + 1] == found for row in self.table) == 1
            if unique and rng.random() < 0.2:
                x = self.table[self.row][0]
                return REVERSE.pick(rng, split).format(a=attribute, v=found), f"{x} has the {attribute} {found}.", x
            asked = spoken(rng, split, ASK.pick(rng, split).format(a=attribute, x=self.table[self.row][0]))
        x, attribute, found = self.table[self.row][0], self.header[self.column], self.table[self.row][self.column + 1]
        return asked, f"The {attribute} of {x} is {found}.", found


def chat(rng: Random, split: Split, rows: int = 0, turns: int = 0) -> Sample:
    """A chat about one table, over several turns; the table stands in the system or the first user turn."""
    asker = Asker(rng, split, rows or rng.choice((1, 2, 3, 3, 4, 5, 6, 8)), rng.choice((1, 2, 2, 3, 4)))
    lead = LEADS.pick(rng, split)
    body = f"{lead}\n{asker.text}" if lead else asker.text
    in_system = rng.random() < 0.3
    talk = Chat(body if in_system else system(rng, split))
    for i in range(turns or rng.choice((3, 4, 5, 6, 7, 8))):
        asked, full, found = asker.ask()
        shown = asked if i or in_system else f"{body}\n\n{asked}"
        roll = rng.random()
        if roll < 0.15:
            talk.user(shown + BRIEF.pick(rng, split)).assistant(found, (found,))
        elif roll < 0.2 and full.endswith(f" {found}."):
            talk.user(shown).assistant(f" {found}.", (found,), prefix=full[: -len(found) - 2])
        else:
            talk.user(shown).assistant(full, (found,))
    return talk.sample("lookup")


def completion(rng: Random, split: Split, rows: int = 0, questions: int = 0) -> Sample:
    """A passage followed by a plain Q/A list."""
    asker = Asker(rng, split, rows or rng.choice((2, 3, 4, 5, 6, 8)), rng.choice((1, 2, 3)))
    lead = LEADS.pick(rng, split)
    before = f"{lead}\n{asker.text}\n\n" if lead else f"{asker.text}\n\n"
    ask, reply = rng.choice((("Q: ", "A:"), ("Q: ", "A:"), ("Question: ", "Answer:")))
    gap = rng.choice(("", "\n"))
    count = questions or rng.choice((4, 6, 8, 10, 12))
    pieces: list[Piece] = []
    for i in range(count):
        asked, _, found = asker.ask(follow=False)
        pieces.append(Piece(f"{before}{ask}{asked}\n{reply}"))
        pieces.append(Piece(f" {found}\n" + ("" if i + 1 < count else FINISH), True, (found,)))
        before = gap
    return Sample("lookup_few_shot", tuple(pieces))


ECHO = Phrases(
    ("Repeat: {t}", "Say exactly: {t}", "Repeat after me: {t}", "Copy this text: {t}", "Echo {t}", "Write: {t}"),
    ("Please repeat: {t}", "Repeat this text exactly: {t}"),
)


def echo(rng: Random, split: Split) -> Sample:
    """Plain copying, the seed of everything else that is read out of the prompt."""
    talk = Chat(system(rng, split, 0.1))
    for _ in range(rng.choice((1, 2, 3))):
        makers = (
            lambda: invent(rng, split),
            lambda: str(number(rng)),
            lambda: person(rng, split),
            lambda: value(rng, split, "code"),
        )
        words = [rng.choice(makers)() for _ in range(rng.choice((1, 2, 3, 4, 6)))]
        text = rng.choice((" ", ", ", " - ", "/")).join(words)
        talk.user(ECHO.pick(rng, split).format(t=text)).assistant(text, (text,))
    return talk.sample("echo")
