"""Modelfiles: a model, its system prompt, template, parameters and first messages in one text, read and written.

Knows: Ollama's syntax. Must not know: where models lie, what templates mean, the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from branchwork.runtime.loading import parameters
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.store import Manifest, Message, Value

ROLES = ("system", "user", "assistant")
_BUILT_IN = ("RENDERER", "PARSER")
INSTRUCTIONS = ("FROM", "SYSTEM", "TEMPLATE", "PARAMETER", "MESSAGE", "ADAPTER", "LICENSE", "REQUIRES")


class Instruction(NamedTuple):
    """word: one of INSTRUCTIONS. first: name of a parameter or role of a message, else "". line: from 1."""

    word: str
    first: str
    value: str
    line: int


class Modelfile(NamedTuple):
    """What a file says. base: FROM; None and empty: not said. line numbers are those of its errors."""

    base: str
    system: str | None = None
    template: str | None = None
    parameters: Mapping[str, Value] = MappingProxyType({})
    messages: tuple[Message, ...] = ()
    license: tuple[str, ...] = ()


def read(text: str) -> Modelfile:
    """A Modelfile's meaning. Raises LoadError (modelfile) with the line and what to do."""
    base, system, template = "", None, None
    settings: dict[str, Value] = {}
    messages: list[Message] = []
    licenses: list[str] = []
    for word, first, value, line in instructions(text):
        if word == "FROM":
            if base:
                raise _error(line, f"a second FROM ({value}); a model has one base")
            base = value
        elif word == "SYSTEM":
            system = value
        elif word == "TEMPLATE":
            template = value
        elif word == "PARAMETER":
            _set(settings, first, value, line)
        elif word == "MESSAGE":
            messages.append(Message(first, value))
        elif word == "LICENSE":
            licenses.append(value)
        elif word == "ADAPTER":
            raise _error(
                line, f"ADAPTER {value}: adapters are not applied here; merge it into the model's weights first"
            )
    if not base:
        raise LoadError("modelfile", "the Modelfile has no FROM; begin it with FROM and a model (sapling, a path ...)")
    return Modelfile(base, system, template, settings, tuple(messages), tuple(licenses))


def instructions(text: str) -> Iterator[Instruction]:
    """One after the other; empty lines and those that begin with # are passed over. Raises LoadError (modelfile)."""
    lines = text.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        word, rest = _cut(line)
        word = word.upper()
        if word in _BUILT_IN:
            raise _error(
                number, f"{word} names a part of Ollama's own program; leave it out: the model's template serves"
            )
        if word not in INSTRUCTIONS:
            raise _error(number, f"unknown instruction {word!r}; there are: {', '.join(INSTRUCTIONS)}")
        first = ""
        if word in ("PARAMETER", "MESSAGE"):
            first, rest = _cut(rest) if rest else ("", "")
            _check_first(word, first, number)
        if rest.startswith('"'):
            begun = lines[number - 1][len(lines[number - 1].rstrip()) - len(rest) :]  # its own blanks at the end count
            rest, at = _quoted(begun, lines, at, number)
        elif not rest:
            raise _error(number, f"{word} {first}".rstrip() + " has no value")
        yield Instruction(word, first, rest, number)


def write(manifest: Manifest) -> str:
    """A manifest as the Modelfile that makes the same one again. Raises LoadError (modelfile)."""
    lines = ["# Made by `branchwork show --modelfile`."]
    if manifest.source and manifest.source != manifest.path:
        lines.append(f"# To build on the library's model, write: FROM {manifest.source}")
    lines.append(f"FROM {manifest.path}")
    if manifest.template is not None:
        lines.append(f"TEMPLATE {_quote(manifest.template)}")
    if manifest.system is not None:
        lines.append(f"SYSTEM {_quote(manifest.system)}")
    lines += [f"PARAMETER {line}" for line in parameter_lines(manifest.parameters)]
    lines += [f"MESSAGE {message.role} {_quote(message.content)}" for message in manifest.messages]
    lines += [f"LICENSE {_quote(text)}" for text in manifest.license]
    return "\n".join(lines) + "\n"


def parameter_lines(given: Mapping[str, Value]) -> list[str]:
    """Parameters as a Modelfile has them after the word PARAMETER, a repeated one in several lines."""
    return [
        f"{name} {_quote(one) if isinstance(one, str) else _plain(one)}"
        for name, value in given.items()
        for one in (value if isinstance(value, list) else [value])
    ]


def _set(settings: dict[str, Value], name: str, text: str, line: int) -> None:
    """A repeated stop adds to those before; of any other parameter the last line counts."""
    try:
        value = parameters.read(name.lower(), text)
    except LoadError as error:
        raise _error(line, error.message) from None
    before = settings.get(name.lower())
    settings[name.lower()] = before + value if isinstance(before, list) and isinstance(value, list) else value


def _check_first(word: str, first: str, line: int) -> None:
    if not first:
        raise _error(line, f"{word} has no value")
    if word == "MESSAGE" and first not in ROLES:
        raise _error(line, f"MESSAGE {first!r}: the role is one of {', '.join(ROLES)}")


def _quoted(begun: str, lines: list[str], at: int, number: int) -> tuple[str, int]:
    """A value in \"\"\" or \" and the line after it: it goes on until a line ends with its closing quotes."""
    mark = '"""' if begun.startswith('"""') else '"'
    value = begun
    while not (value.rstrip().endswith(mark) and len(value.rstrip()) >= 2 * len(mark)):
        if at == len(lines):
            raise _error(number, f"the value that begins with {mark} never ends; close it with {mark} at a line's end")
        value += "\n" + lines[at]
        at += 1
    return value.rstrip()[len(mark) : -len(mark)], at


def _quote(text: str) -> str:
    if any(line.rstrip().endswith('"""') for line in text.split("\n")[:-1]) or "\r" in text:
        raise LoadError("modelfile", f'a line of {text[:60]!r} ends with """; a Modelfile cannot hold that')
    plain = "\n" not in text and '"' not in text
    return f'"{text}"' if plain else f'"""{text}"""'


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(line: str) -> tuple[str, str]:
    word, *rest = line.split(maxsplit=1)
    return word, "".join(rest)


def _error(line: int, message: str) -> LoadError:
    return LoadError("modelfile", f"line {line}: {message}")
