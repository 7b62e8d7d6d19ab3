"""Role frames derived from a model's own chat template: what stands before and after each role's text.

Knows: Jinja templates as Hugging Face writes them. Must not know: tokens, programs.
The template is rendered on probe conversations with marker texts; what lies around the markers are the frames.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from branchwork.lang.protocol import ChatFrames, Frame
from branchwork.lang.transcript import frame_of

_MARKS = ("\u241fA\u241f", "\u241fB\u241f", "\u241fC\u241f", "\u241fD\u241f")  # text that no template contains
ROLES = ("system", "user", "assistant")


class ChatTemplateError(ValueError):
    """The model's chat template cannot be rendered for these messages; the message holds the template's own words."""


def render(template: str, messages: Sequence[Mapping[str, Any]], *, generate: bool, **context: Any) -> str:
    """The template's text for `messages`; `generate` adds the opening of the assistant's turn.

    context: what templates expect beside messages (bos_token, eos_token, tools). Raises ChatTemplateError.
    """
    try:
        return _compiled(template).render(messages=list(messages), add_generation_prompt=generate, **context)
    except (TemplateError, TypeError, KeyError) as error:
        raise ChatTemplateError(str(error)) from error


def pieces(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    generate: bool,
    continued: bool = False,
    **context: Any,
) -> list[tuple[str, bool]]:
    """What `render` writes, as (text, whether the names of special tokens stand for these in it).

    names: of special tokens; where a message says one it is a piece of its own, and plain. continued: the text ends
    with that of the last message. Without a template every message is a line "ROLE: text". Raises ChatTemplateError.
    """
    held = {name: name[0] + _MARKS[0] + name[1:] for name in names}
    said = [_held(dict(message), held) for message in messages]
    if template is not None:
        text = render(template, said, generate=generate and not continued, **context)
    else:
        text = context.get("bos_token", "")
        for message in said:
            frame = frame_of(ChatFrames(), str(message.get("role")))
            text += f"{frame.begin.rstrip()} {_text(message)}{frame.end}"
        text += frame_of(ChatFrames(), "assistant").begin if generate and not continued else ""
    if continued and said:
        last = _text(said[-1]).rstrip()
        text = text[: text.rindex(last) + len(last)] if last and last in text else text
    plain = {mark: name for name, mark in held.items()}
    if _MARKS[0] not in text:
        return [(text, True)]
    parts = re.split("(" + "|".join(map(re.escape, plain)) + ")", text)
    return [(plain.get(part, part), part not in plain) for part in parts if part]


def following(
    template: str | None, messages: Sequence[Mapping[str, Any]], names: Sequence[str], **context: Any
) -> list[tuple[str, bool]]:
    """What a template writes after the text of an assistant's turn: its end, `messages`, the next turn's opening.

    As `pieces` gives it. Raises ChatTemplateError.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARKS[1]}, *messages]
    found = pieces(template, turns, names, generate=True, **context)
    place = next((index for index, (text, _) in enumerate(found) if _MARKS[1] in text), None)
    if place is None:
        raise ChatTemplateError("the template does not write what the assistant has said")
    text, special = found[place]
    return [(text.partition(_MARKS[1])[2], special), *found[place + 1 :]]


def _held(value: Any, held: Mapping[str, str]) -> Any:
    """A message with every name of a special token in its texts marked."""
    if isinstance(value, str):
        for name, mark in held.items():
            value = value.replace(name, mark)
        return value
    if isinstance(value, Mapping):
        return {key: _held(one, held) for key, one in value.items()}
    return [_held(one, held) for one in value] if isinstance(value, (list, tuple)) else value


def _text(message: Mapping[str, Any]) -> str:
    return str(message.get("content") or "")


def frames(template: str | None, **context: Any) -> ChatFrames:
    """The frames of a template; without roles when there is none, or when it is not a plain sequence of frames.

    What follows the last turn of a conversation is that role's end; what stands before the next turn beyond it, the
    next role's beginning.
    """
    start = context.get("bos_token") or ""
    a, b, c, d = _MARKS
    turns = _try(template, [("user", b), ("assistant", c), ("user", d)], context) if template else None
    short = _try(template, [("user", b), ("assistant", c)], context) if template else None
    if template is None or turns is None or short is None:
        return ChatFrames(start=start)
    before, rest = turns.split(b, 1)
    after_user, rest = rest.split(c, 1)
    after_assistant, user_end = rest.split(d, 1)
    assistant_end = short.split(c, 1)[1]
    if not after_user.startswith(user_end) or not after_assistant.startswith(assistant_end):
        return ChatFrames(start=start)
    user_begin = after_assistant[len(assistant_end) :]
    roles = {
        "user": Frame(user_begin, user_end),
        "assistant": Frame(after_user[len(user_end) :], assistant_end),
    }
    tool = _tool_frame(template, context, assistant_end, user_begin)
    if tool is not None:
        roles["tool"] = tool
    start = start if before.startswith(start) else ""
    head = before[len(start) :]
    if not head.endswith(user_begin):
        return ChatFrames(start=start)
    with_system = _try(template, [("system", a), ("user", b)], context)
    if with_system is not None:
        system_begin, gap = with_system.split(a, 1)
        gap = gap.split(b, 1)[0]
        if gap.endswith(user_begin) and system_begin.startswith(start):
            roles["system"] = Frame(system_begin[len(start) :], gap[: len(gap) - len(user_begin)])
    return ChatFrames(roles=roles, start=start, default_system=head[: len(head) - len(user_begin)])


@lru_cache(maxsize=32)  # compiling takes 8 ms, rendering 0.1
def _compiled(template: str) -> Template:
    """Raises TemplateError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here its body is all there is to it."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The tag's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates ask for it: unlike Jinja's own, with no escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _tool_frame(template: str, context: Mapping[str, Any], assistant_end: str, user_begin: str) -> Frame | None:
    """What stands around a tool's result between the assistant's turn and the user's next one."""
    a, b, c, d = _MARKS
    turns = _try(template, [("user", a), ("assistant", b), ("tool", c), ("user", d)], context)
    if turns is None:
        return None
    before, after = turns.split(b, 1)[1].split(c, 1)
    after = after.split(d, 1)[0]
    if not before.startswith(assistant_end) or not after.endswith(user_begin):
        return None
    return Frame(before[len(assistant_end) :], after[: len(after) - len(user_begin)])


def _try(template: str, turns: list[tuple[str, str]], context: Mapping[str, Any], generate: bool = False) -> str | None:
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        text = render(template, messages, generate=generate, **context)
    except ChatTemplateError:
        return None
    return text if all(mark in text for _, mark in turns) else None


def _refuse(message: str) -> None:
    raise TemplateError(message)
