"""Turning a sentence into a JSON record.

Knows: fields, sentences that state them, and the ways to ask for JSON.
Must not know: tokenization or training."""

from __future__ import annotations

import json
from random import Random

from .lookup import COLORS, GOODS, JOBS
from .sample import FINISH, Chat, Phrases, Piece, Sample, Split, article, city, invent, number, person, system, words

# Each clause states one field of a person; {x} is the subject.
CLAUSES: dict[str, Phrases] = {
    "age": Phrases(
        ("is {v} years old", "is {v}", "is aged {v}", "turned {v} this year", "just turned {v}"),
        ("has turned {v}", "is now {v} years old"),
    ),
    "city": Phrases(
        ("lives in {v}", "is from {v}", "comes from {v}", "moved to {v}", "has a house in {v}", "was born in {v}"),
        ("now lives in {v}", "has a flat in {v}"),
    ),
    "job": Phrases(
        ("works as {v}", "is {v}", "has a job as {v}", "became {v}", "earns money as {v}"),
        ("is working as {v}", "found work as {v}"),
    ),
    "company": Phrases(
        ("works for {v}", "works at {v}", "has joined {v}", "is employed by {v}"), ("is working for {v}", "joined {v}")
    ),
    "hobby": Phrases(
        ("likes {v}", "enjoys {v}", "spends weekends {v}", "loves {v}"), ("is fond of {v}", "really likes {v}")
    ),
    "email": Phrases(("can be reached at {v}", "uses the email {v}", "has the address {v}"), ("answers mail at {v}",)),
    "favorite_color": Phrases(
        ("likes the color {v}", "wears only {v}", "has {v} as a favorite color"), ("loves the color {v}",)
    ),
}
HOBBIES = words(
    "swimming reading cooking painting running singing dancing fishing hiking sailing skating chess tennis football "
    "gardening drawing climbing cycling baking knitting"
)
# A sentence about a thing: fields in a fixed set, all in one template.
THINGS: list[tuple[tuple[str, ...], Phrases]] = [
    (
        ("product", "price", "store"),
        Phrases(
            (
                "The {product} costs {price} dollars at {store}.",
                "{store} sells the {product} for {price} dollars.",
                "I bought a {product} at {store} for {price} dollars.",
                "At {store} you pay {price} dollars for a {product}.",
            ),
            (
                "You can buy a {product} for {price} dollars at {store}.",
                "{store} asks {price} dollars for the {product}.",
            ),
        ),
    ),
    (
        ("event", "city", "year"),
        Phrases(
            (
                "The {event} took place in {city} in {year}.",
                "In {year}, {city} hosted the {event}.",
                "{city} was the home of the {event} in {year}.",
                "The {event} of {year} was in {city}.",
            ),
            ("In {year} the {event} was held in {city}.", "People met in {city} for the {event} in {year}."),
        ),
    ),
    (
        ("title", "author", "year"),
        Phrases(
            (
                'In {year}, {author} wrote "{title}".',
                '"{title}" was written by {author} in {year}.',
                '{author} published "{title}" in {year}.',
                'The book "{title}" by {author} came out in {year}.',
            ),
            ('{author} is the author of "{title}", a book of {year}.', 'The author of "{title}" ({year}) is {author}.'),
        ),
    ),
    (
        ("from", "to", "time"),
        Phrases(
            (
                "The train from {from} to {to} leaves at {time}.",
                "At {time} a bus goes from {from} to {to}.",
                "I fly from {from} to {to} at {time}.",
                "There is a train to {to} from {from} at {time}.",
            ),
            ("A plane leaves {from} for {to} at {time}.", "We travel from {from} to {to} at {time}."),
        ),
    ),
]
ASK = Phrases(
    (
        "Extract {f} as JSON.\n{t}",
        "Extract {f} from the text as JSON.\nText: {t}",
        "Text: {t}\nExtract {f} as JSON.",
        "{t}\n\nGive me {f} as JSON.",
        "Return a JSON object with {f}.\n{t}",
        "Read the sentence and return {f} as JSON: {t}",
        "Turn this into JSON with the fields {f}: {t}",
        "Convert to JSON ({f}): {t}",
        'From the text "{t}", extract {f} as JSON.',
        "Fields: {f}\nText: {t}\nJSON?",
        "What are {f} here? Answer in JSON.\n{t}",
        "Make a JSON record with {f}.\n\nText: {t}",
    ),
    (
        "Please extract {f} from this sentence as a JSON object: {t}",
        "Sentence: {t}\nWrite {f} as a JSON object.",
        "Find {f} in the following text. Reply in JSON.\n\n{t}",
    ),
)


def person_text(rng: Random, split: Split) -> tuple[str, dict[str, str | int]]:
    """One or two sentences about a person, and every field in them."""
    name = person(rng, split)
    fields = rng.sample(list(CLAUSES), rng.choice((1, 2, 2, 3, 3)))
    if rng.random() < 0.5:
        fields = ["age", "city"] + [f for f in fields if f not in ("age", "city")][:1]
        rng.shuffle(fields)
    record: dict[str, str | int] = {"name": name}
    clauses = []
    for field in fields:
        shown = ""
        match field:
            case "age":
                record[field] = rng.randint(1, 99)
            case "city":
                record[field] = city(rng, split)
            case "job":
                record[field] = rng.choice(JOBS)
                shown = article(str(record[field]))
            case "company":
                record[field] = invent(rng, split) + rng.choice(("", "", " Inc", " Labs", " Group"))
            case "hobby":
                record[field] = rng.choice(HOBBIES)
            case "email":
                mailbox = f"{name.split()[0]}{rng.choice(('', '.', '_'))}{number(rng, 2)}"
                record[field] = f"{mailbox}@{invent(rng, split)}.com".lower()
            case _:
                record[field] = rng.choice(COLORS)
        clauses.append(CLAUSES[field].pick(rng, split).format(v=shown or record[field]))
    pronoun = rng.choice(("She", "He", "They"))
    if len(clauses) == 1:
        text = f"{name} {clauses[0]}."
    elif rng.random() < 0.5:
        text = f"{name} {', '.join(clauses[:-1])} and {clauses[-1]}."
    elif pronoun == "They":
        text = f"{name} " + f". {name.split()[0]} ".join(clauses) + "."
    else:
        text = f"{name} " + f". {pronoun} ".join(clauses) + "."
    if rng.random() < 0.3:
        text = rng.choice(("My friend ", "Our neighbor ", "My colleague ", "Hello, ", "By the way, ", "Note: ")) + text
    return text, record


def thing_text(rng: Random, split: Split) -> tuple[str, dict[str, str | int]]:
    fields, phrases = rng.choice(THINGS)
    makers: dict[str, str | int] = {
        "product": rng.choice(GOODS),
        "price": number(rng),
        "store": invent(rng, split),
        "event": invent(rng, split) + rng.choice((" Festival", " Cup", " Fair", " Conference", " Games")),
        "city": city(rng, split),
        "year": rng.randint(1700, 2040),
        "title": rng.choice(("The ", "", "A ")) + invent(rng, split) + rng.choice(("", " " + invent(rng, split))),
        "author": person(rng, split),
        "from": city(rng, split),
        "to": city(rng, split),
        "time": f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}",
    }
    record = {field: makers[field] for field in fields}
    return phrases.pick(rng, split).format(**record), record


def listed(rng: Random, fields: list[str]) -> str:
    """The field list as a person would write it."""
    roll = rng.random()
    if roll < 0.4 and len(fields) > 1:
        return "the " + ", ".join(fields[:-1]) + " and " + fields[-1]
    if roll < 0.6 and len(fields) > 1:
        return ", ".join(fields[:-1]) + " and " + fields[-1]
    return ", ".join(f'"{f}"' if roll > 0.9 else f for f in fields)


def case(rng: Random, split: Split) -> tuple[str, str, dict[str, str | int]]:
    """A text, the field list asked for, and the record."""
    text, record = person_text(rng, split) if rng.random() < 0.65 else thing_text(rng, split)
    fields = list(record)
    if rng.random() < 0.3:
        rng.shuffle(fields)
    if len(fields) > 2 and rng.random() < 0.3:
        fields.pop()
    return text, listed(rng, fields), {field: record[field] for field in fields}


def indented(record: dict[str, str | int]) -> list[tuple[str, str]]:
    """(literal, value) pairs of the record written over several lines, as a program fills a form."""
    pairs, lead = [], "{\n"
    for field, held in record.items():
        quote = '"' if isinstance(held, str) else ""
        pairs.append((f'{lead}  "{field}": {quote}', f"{held}{quote}"))
        lead = ",\n"
    return pairs


def chat(rng: Random, split: Split) -> Sample:
    talk = Chat(system(rng, split, 0.2))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        text, asked, record = case(rng, split)
        answer = json.dumps(record, ensure_ascii=False)
        talk.user(ASK.pick(rng, split).format(f=asked, t=text))
        if rng.random() < 0.15 and split == "train":
            literal = ""
            for lead, filled in indented(record):
                talk.pieces.append(Piece(talk.pending + ("" if literal else "<|im_start|>assistant\n") + lead))
                talk.pieces.append(Piece(filled, True))
                talk.pending, literal = "", lead
            talk.pieces.append(Piece("\n}<|im_end|>", True))
            talk.pending = "\n"
        else:
            talk.assistant(answer, (answer,))
    return talk.sample("extract")


def completion(rng: Random, split: Split) -> Sample:
    """Few-shot `Text: ... JSON: {...}` with the same kind of record throughout."""
    pieces: list[Piece] = []
    count = rng.choice((1, 2, 3, 4))
    lead = ""
    for i in range(count):
        text, asked, record = case(rng, split)
        answer = json.dumps(record, ensure_ascii=False)
        pieces.append(Piece(f"{lead}Text: {text}\nFields: {asked}\nJSON:"))
        pieces.append(Piece(f" {answer}\n" + ("" if i + 1 < count else FINISH), True, (answer,)))
        lead = "\n"
    return Sample("extract_few_shot", tuple(pieces))
