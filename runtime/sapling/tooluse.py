"""Tool calls in the manner of the OpenAI API: choosing a function, filling its arguments, using its result.

Knows: families of functions, how their names and parameters vary, and how a user asks for them.
Must not know: tokenization or training."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from .facts import ATTRIBUTES, TABLES
from .knowledge import sentence
from .lookup import COLORS, GOODS
from .sample import Chat, Phrases, Sample, Split, call_text, city, invent, number, person, system, tools_text, words


class Family(NamedTuple):
    """A kind of function: ways to name it, its parameters as (names, value kind), and requests over {0}, {1}."""

    names: tuple[str, ...]
    about: tuple[str, ...]
    parameters: tuple[tuple[tuple[str, ...], str], ...]
    asks: Phrases


FAMILIES = (
    Family(
        ("get_weather", "weather", "weather_lookup", "fetch_weather", "current_weather", "get_current_weather"),
        ("Get the weather of a city", "Current weather for a place", "Look up the weather"),
        ((("city", "location", "place", "town"), "city"),),
        Phrases(
            (
                "What is the weather in {0}?",
                "How is the weather in {0}?",
                "Is it raining in {0}?",
                "Weather in {0}?",
                "Do I need an umbrella in {0}?",
                "Tell me the weather in {0}.",
            ),
            ("What's the weather like in {0}?", "Please check the weather in {0}."),
        ),
    ),
    Family(
        ("convert_currency", "currency_converter", "exchange", "money_convert", "exchange_money"),
        ("Convert an amount of money", "Currency conversion", "Exchange money"),
        (
            (("amount", "value", "sum"), "number"),
            (("source", "from_currency", "base"), "currency"),
            (("target", "to_currency", "into"), "currency"),
        ),
        Phrases(
            (
                "Convert {0} {1} to {2}.",
                "How much is {0} {1} in {2}?",
                "Change {0} {1} into {2}.",
                "What are {0} {1} in {2}?",
            ),
            ("Please convert {0} {1} into {2}.", "I have {0} {1}. How much is that in {2}?"),
        ),
    ),
    Family(
        ("send_email", "send_mail", "email", "mail_to", "write_email"),
        ("Send an email", "Write a mail to someone"),
        ((("to", "recipient", "receiver", "name"), "person"), (("subject", "topic", "title"), "goods")),
        Phrases(
            (
                "Send an email to {0} about the {1}.",
                "Write {0} a mail about the {1}.",
                "Email {0} about the {1}.",
                "Mail {0}, the subject is {1}.",
            ),
            ("Please send {0} an email about the {1}.", "I want to email {0} about the {1}."),
        ),
    ),
    Family(
        ("search_products", "product_search", "find_product", "search_shop", "find_items"),
        ("Search the shop", "Find products", "Product search"),
        ((("query", "product", "item", "keyword"), "goods"), (("max_price", "limit", "budget"), "number")),
        Phrases(
            (
                "Find a {0} for less than {1} dollars.",
                "Search for a {0} under {1} dollars.",
                "I want a {0}, at most {1} dollars.",
                "Show me a {0} below {1}.",
            ),
            ("Look for a {0} that costs less than {1} dollars.", "Please find a {0} under {1} dollars."),
        ),
    ),
    Family(
        ("get_stock_price", "stock_price", "share_price", "quote", "lookup_stock"),
        ("Get the price of a share", "Stock price of a company"),
        ((("company", "symbol", "firm", "stock"), "name"),),
        Phrases(
            (
                "What is the stock price of {0}?",
                "How much is a share of {0}?",
                "Price of {0} stock?",
                "Check the stock of {0}.",
            ),
            ("What does a share of {0} cost?", "Look up the stock price of {0}."),
        ),
    ),
    Family(
        ("set_timer", "start_timer", "timer", "countdown"),
        ("Start a timer", "Set a countdown"),
        ((("minutes", "duration", "time"), "number"),),
        Phrases(
            (
                "Set a timer for {0} minutes.",
                "Start a timer of {0} minutes.",
                "Timer, {0} minutes.",
                "Wake me in {0} minutes.",
            ),
            ("Please set a timer for {0} minutes.", "I need a {0} minute timer."),
        ),
    ),
    Family(
        ("book_flight", "find_flight", "flight_search", "search_flights"),
        ("Book a flight", "Find a flight between two cities"),
        ((("origin", "departure", "from_city"), "city"), (("destination", "arrival", "to_city"), "city")),
        Phrases(
            (
                "Book a flight from {0} to {1}.",
                "I want to fly from {0} to {1}.",
                "Find a flight from {0} to {1}.",
                "Is there a plane from {0} to {1}?",
            ),
            ("Please find me a flight from {0} to {1}.", "Get me on a plane from {0} to {1}."),
        ),
    ),
    Family(
        ("get_phone_number", "find_contact", "lookup_contact", "phone_book", "contact"),
        ("Find the phone number of a person", "Look up a contact"),
        ((("name", "person", "contact", "who"), "person"),),
        Phrases(
            (
                "What is the phone number of {0}?",
                "Find the number of {0}.",
                "I need {0}'s phone number.",
                "How can I call {0}?",
            ),
            ("Look up the phone number of {0}.", "Please find {0}'s number."),
        ),
    ),
    Family(
        ("calculator", "multiply", "product_of", "calc_product"),
        ("Multiply two numbers", "Product of two numbers"),
        ((("a", "x", "first", "left"), "number"), (("b", "y", "second", "right"), "number")),
        Phrases(
            ("What is {0} times {1}?", "Multiply {0} by {1}.", "Compute {0} times {1}.", "How much is {0} times {1}?"),
            ("Please multiply {0} by {1}.", "I need {0} times {1}."),
        ),
    ),
    Family(
        ("add", "add_numbers", "sum_of", "plus"),
        ("Add two numbers", "Sum of two numbers"),
        ((("a", "x", "first", "left"), "number"), (("b", "y", "second", "right"), "number")),
        Phrases(
            ("What is {0} plus {1}?", "Add {0} and {1}.", "Compute {0} plus {1}.", "How much is {0} plus {1}?"),
            ("Please add {0} and {1}.", "I need the sum of {0} and {1}."),
        ),
    ),
    Family(
        ("set_light", "light", "change_light", "set_lamp_color"),
        ("Set the color of the light in a room", "Change the light"),
        ((("room", "area", "zone"), "room"), (("color", "tone", "shade"), "color")),
        Phrases(
            (
                "Make the light in the {0} {1}.",
                "Set the {0} light to {1}.",
                "Turn the {0} lamp {1}.",
                "I want {1} light in the {0}.",
            ),
            ("Please make the {0} light {1}.", "Change the light in the {0} to {1}."),
        ),
    ),
    Family(
        ("play_music", "play_song", "music", "start_music"),
        ("Play music by an artist", "Play a song"),
        ((("artist", "singer", "band", "by"), "name"),),
        Phrases(
            ("Play something by {0}.", "Play music by {0}.", "I want to hear {0}.", "Put on a song by {0}."),
            ("Please play {0}.", "Let me listen to {0}."),
        ),
    ),
    Family(
        ("track_order", "order_status", "get_order", "find_order"),
        ("Status of an order", "Track an order"),
        ((("order_id", "id", "order", "order_number"), "number"),),
        Phrases(
            (
                "Where is order {0}?",
                "What is the status of order {0}?",
                "Track order {0}.",
                "My order number is {0}. Where is it?",
            ),
            ("Please check order {0}.", "Can you find order {0}?"),
        ),
    ),
    Family(
        ("translate", "translate_word", "get_translation", "translator"),
        ("Translate a word into a language", "Translation"),
        ((("text", "word", "phrase"), "goods"), (("language", "target_language", "lang"), "language")),
        Phrases(
            ("Translate {0} to {1}.", "What is {0} in {1}?", "How do you say {0} in {1}?", "The word {0} in {1}?"),
            ("Please translate {0} into {1}.", "Say {0} in {1}."),
        ),
    ),
    Family(
        ("remind", "set_reminder", "add_reminder", "create_reminder"),
        ("Create a reminder", "Remind the user of something"),
        ((("task", "what", "message", "text"), "task"), (("hour", "time", "at"), "hour")),
        Phrases(
            ("Remind me to {0} at {1}.", "At {1} I have to {0}. Remind me.", "Set a reminder to {0} at {1}."),
            ("Please remind me at {1} to {0}.", "Create a reminder to {0} at {1}."),
        ),
    ),
)
CURRENCIES = words("dollars euros pounds yen francs pesos rupees yuan lira USD EUR GBP JPY CHF")
LANGUAGES = words("French German Spanish Italian Polish Dutch Greek Turkish Korean Arabic Hindi Swedish")
ROOMS = words("kitchen bedroom office hall bathroom garage cellar attic garden")
TASKS = ("call home", "buy milk", "water the plants", "pay the rent", "feed the cat", "take a break", "lock the door")


def argument(rng: Random, split: Split, kind: str) -> str | int:
    match kind:
        case "city":
            return city(rng, split)
        case "number":
            return number(rng)
        case "hour":
            return rng.randint(0, 23)
        case "person":
            return person(rng, split)
        case "name":
            return invent(rng, split)
        case "goods":
            return rng.choice(GOODS)
        case "color":
            return rng.choice(COLORS)
        case "room":
            return rng.choice(ROOMS)
        case "language":
            return rng.choice(LANGUAGES)
        case "task":
            return rng.choice(TASKS)
        case _:
            return rng.choice(CURRENCIES)


def schema(rng: Random, split: Split, family: Family) -> tuple[dict[str, Any], list[str]]:
    """An OpenAI tool schema for the family under a fresh name, and its parameter names."""
    name = rng.choice(family.names)
    if split == "held" or rng.random() < 0.3:
        name = rng.choice((f"{invent(rng, split).lower()}_{name}", f"{name}_{invent(rng, split).lower()}"))
    keys: list[str] = []
    for synonyms, _ in family.parameters:
        keys.append(rng.choice([w for w in synonyms if w not in keys]))
    style = rng.random()
    properties: dict[str, dict[str, str]] = {}
    for key, (_, kind) in zip(keys, family.parameters, strict=True):
        properties[key] = {"type": "integer" if kind in ("number", "hour") else "string"}
        if style < 0.3:
            properties[key]["description"] = f"The {key.replace('_', ' ')}"
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": keys}
    if style > 0.9:
        parameters["additionalProperties"] = False
    function = {"name": name, "description": rng.choice(family.about) + rng.choice(("", ".")), "parameters": parameters}
    return {"type": "function", "function": function}, keys


def outcome(rng: Random, split: Split) -> tuple[str, str]:
    """What a tool returns, and the answer made of it."""
    keys = rng.sample(
        ("temperature", "sky", "price", "status", "result", "number", "total", "time", "name", "count"), 2
    )
    values: dict[str, Any] = {}
    for key in keys[: rng.choice((1, 1, 2))]:
        values[key] = number(rng) if rng.random() < 0.5 else rng.choice((invent(rng, split), rng.choice(COLORS)))
    roll = rng.random()
    if roll < 0.55:
        return json.dumps(values), "The " + " and the ".join(f"{k} is {v}" for k, v in values.items()) + "."
    if roll < 0.8:
        only = str(next(iter(values.values())))
        return only, f"The result is {only}."
    line = f"{rng.choice(('sunny', 'done', 'cloudy', 'open', 'late', 'sent'))}, {number(rng)} {rng.choice(GOODS)}s"
    return line, f"The result is {line}."


def chat(rng: Random, split: Split) -> Sample:
    """One to four tools; one to three requests, each with a call, its result and the answer."""
    families = rng.sample(FAMILIES, rng.choice((1, 1, 2, 2, 3, 4)))
    made = [schema(rng, split, family) for family in families]
    role = system(rng, split, 0.3)
    listed = tools_text([tool for tool, _ in made])
    talk = Chat(f"{role}\n\n{listed}" if role else listed)
    for _ in range(rng.choice((2, 3, 4, 5))):
        if rng.random() < 0.12:
            kind = rng.choice(("country", "element"))
            row, attribute = rng.choice(TABLES[kind]), rng.choice(list(ATTRIBUTES[kind]))
            text = sentence(kind, attribute, row)
            talk.user(f"What is the {attribute} of {row[0]}?").assistant(text, (text,))
            continue
        at = rng.randrange(len(families))
        tool, keys = made[at]
        values = [argument(rng, split, kind) for _, kind in families[at].parameters]
        call = call_text(tool["function"]["name"], dict(zip(keys, values, strict=True)))
        talk.user(families[at].asks.pick(rng, split).format(*values)).assistant(call, (call,))
        if rng.random() < 0.7:
            returned, answer = outcome(rng, split)
            talk.tool(returned).assistant(answer, (answer,))
    return talk.sample("tools")
