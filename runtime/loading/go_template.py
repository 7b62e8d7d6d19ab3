"""Templates of Modelfiles, written in Go's template language, as Jinja for the gateway.

Knows: the part of Go's language that chat templates use, Ollama's fields. Must not know: models, who renders.
Whatever is not in that part is refused by name. Go's text/template is described in its package documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from branchwork.runtime.loading.errors import LoadError

# Fields of the whole ($) and of what a range gives (a message, a call, a tool), as Jinja. {} is the thing.
_WHOLE = {
    "Messages": "messages",
    "System": "go.system",
    "Prompt": "go.prompt",
    "Response": "go.response",
    "Tools": "(tools or [])",
    "Suffix": '""',
    "Think": "go.off",
    "IsThinkSet": "go.off",
    "ThinkLevel": '""',
}
_PARTS = {
    "Role": "{}.role",
    "Content": "({}.content or '')",
    "Thinking": "({}.thinking or '')",
    "ToolCalls": "({}.tool_calls or [])",
    "ToolName": "({}.tool_name or {}.name or '')",
    "ToolCallID": "({}.tool_call_id or '')",
    "Images": "[]",
    "Function": "({0}.function or {0})",
    "Name": "{}.name",
    "Arguments": "{}.arguments",
    "Parameters": "{}.parameters",
    "Description": "({}.description or '')",
    "Type": "({}.type or 'function')",
    "Required": "({}.required or [])",
    "Properties": "({}.properties or {{}})",
}
_TAG = re.compile(
    r"\{\{(?P<left>-(?=\s))?(?P<body>(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|/\*.*?\*/|.)*?)(?P<right>(?<=\s)-)?\}\}", re.S
)
_TOKEN = re.compile(
    r"""\s*(?P<token>"(?:\\.|[^"\\])*"|`[^`]*`|(?P<field>(?<=\))\.[A-Za-z][\w.]*)|\$?\.?[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"""
    r"""|\$|\.(?!\d)|-?\d+(?:\.\d+)?|[()|])"""
)
_FUNCTIONS: dict[str, Callable[..., str]] = {
    "not": lambda a: f"(not {a})",
    "and": lambda *all: f"({' and '.join(all)})",
    "or": lambda *all: f"({' or '.join(all)})",
    "eq": lambda a, *others: "(" + " or ".join(f"{a} == {b}" for b in others) + ")",
    "ne": lambda a, b: f"({a} != {b})",
    "lt": lambda a, b: f"({a} < {b})",
    "le": lambda a, b: f"({a} <= {b})",
    "gt": lambda a, b: f"({a} > {b})",
    "ge": lambda a, b: f"({a} >= {b})",
    "len": lambda a: f"({a}|length)",
    "slice": lambda a, first="", last="": f"{a}[{first}:{last}]",
    "index": lambda a, *keys: a + "".join(f"[{key}]" for key in keys),
    "json": lambda a: f"({a}|tojson)",
    "print": lambda *all: f"({' ~ '.join(all)})",
    "currentDate": lambda: 'strftime_now("%Y-%m-%d")',
}
# Of Ollama's two ways to use a template this is the one without .Messages: once for each round of a conversation.
_ROUNDS = """{%+ set go = namespace(system="", prompt="", response="", off=false) +%}\
{%+ macro head() +%}@HEAD@{%+ endmacro +%}{%+ macro tail() +%}@TAIL@{%+ endmacro +%}\
{%+ for m in messages +%}\
{%+ if (m.role == "system" and (go.prompt or go.response)) or (m.role == "user" and go.prompt) or go.response +%}\
{{ head() }}{{ go.response }}{{ tail() }}\
{%+ set go.system = "" +%}{%+ set go.prompt = "" +%}{%+ set go.response = "" +%}{%+ endif +%}\
{%+ if m.role == "system" +%}{%+ set go.system = m.content +%}\
{%+ elif m.role == "assistant" +%}{%+ set go.response = m.content +%}\
{%+ else +%}{%+ set go.prompt = m.content +%}{%+ endif +%}\
{%+ endfor +%}\
{{ head() }}{%+ if go.response +%}{{ go.response }}{{ tail() }}{%+ endif +%}"""
_MESSAGES = """{%+ set go = namespace(system="", prompt="", response="", off=false) +%}\
{%+ for m in messages if m.role == "system" +%}\
{%+ set go.system = go.system ~ ("\\n\\n" if go.system else "") ~ m.content +%}{%+ endfor +%}"""


class Tag(NamedTuple):
    """A piece of a template: text, or what stands between braces with `action` true. line: from 1."""

    action: bool
    text: str
    line: int


def is_go(template: str) -> bool:
    """Whether a template is written in Go's language rather than Jinja."""
    return "{%" not in template and bool(
        re.search(r"\{\{-?\s*(?:[.$]|(?:if|range|with|else|end|json|block|define|template)\b)", template)
    )


def to_jinja(template: str) -> str:
    """The same template in Jinja, for variables messages, add_generation_prompt and tools.

    As Ollama does it: one that names .Messages is rendered once, any other for each round of system, prompt and
    response; where a round's answer is yet to come it ends before .Response. Raises LoadError (template).
    """
    pieces = _pieces(template)
    if any(piece.action and re.search(r"\.Messages\b", piece.text) for piece in pieces):
        return _MESSAGES + _Writer(pieces).write()
    cut = next((i for i, piece in enumerate(pieces) if piece.action and piece.text == ".Response"), len(pieces))
    depth = sum(_opens(piece) for piece in pieces[:cut])
    if depth and cut < len(pieces):
        raise _refused(".Response inside an if or range", pieces[cut].line)
    head, tail = _Writer(pieces[:cut]).write(), _Writer(pieces[cut + 1 :]).write()
    return _ROUNDS.replace("@TAIL@", tail).replace("@HEAD@", head)


def _opens(piece: Tag) -> int:
    word = piece.text.split(maxsplit=1)[0] if piece.action and piece.text else ""
    return 1 if word in ("if", "range", "with") else -1 if word == "end" else 0


def _pieces(template: str) -> list[Tag]:
    """Text and actions in turns, blanks already cut where a brace has its minus."""
    pieces: list[Tag] = []
    at, trim, line = 0, False, 1
    for found in _TAG.finditer(template):
        text = template[at : found.start()]
        shown = text.lstrip() if trim else text
        pieces.append(Tag(False, shown.rstrip() if found["left"] else shown, line))
        line += text.count("\n")
        body = found["body"].strip()
        if not body.startswith("/*"):
            pieces.append(Tag(True, body, line))
        line += found[0].count("\n")
        at, trim = found.end(), bool(found["right"])
    rest = template[at:]
    if "{{" in rest:
        raise _refused("an action that never ends ({{ without }})", line + rest[: rest.index("{{")].count("\n"))
    pieces.append(Tag(False, rest.lstrip() if trim else rest, line))
    return [piece for piece in pieces if piece.text]


class _Writer:
    """Writes pieces as Jinja. dots: what . means, outermost first; "" is the whole."""

    def __init__(self, pieces: Sequence[Tag]) -> None:
        self._pieces = pieces
        self._open: list[str] = []  # "for" or "if", outermost first
        self._dots = [""]
        self._line = 0

    def write(self) -> str:
        text = "".join(self._action(piece) if piece.action else _literal(piece.text) for piece in self._pieces)
        if self._open:
            raise _refused(f"{self._open[-1]} without its end", self._line)
        return text

    def _action(self, piece: Tag) -> str:
        self._line = piece.line
        word, _, rest = piece.text.partition(" ")
        if word in ("define", "template", "block", "break", "continue"):
            raise _refused(f"`{word}`", piece.line)
        if word in ("if", "with"):
            self._open.append("if")
            value = self._value(rest)
            if word == "with":
                self._dots.append(value)
                self._open[-1] = "with"
            return f"{{%+ if {value} +%}}"
        if word == "range":
            return self._range(rest)
        if piece.text == "else" and self._open:
            return "{%+ else +%}"
        if word == "else" and rest.startswith("if ") and self._open and self._open[-1] == "if":
            return f"{{%+ elif {self._value(rest[3:])} +%}}"
        if piece.text == "end" and self._open:
            kind = self._open.pop()
            if kind != "if":
                self._dots.pop()
            return "{%+ endfor +%}" if kind == "for" else "{%+ endif +%}"
        if word in ("else", "end"):
            raise _refused(f"`{piece.text}` that belongs to nothing", piece.line)
        assigned = re.fullmatch(r"\$(\w+)\s*:?=\s*(.+)", piece.text, re.S)
        if assigned:
            return f"{{%+ set go.v_{assigned[1]} = {self._value(assigned[2])} +%}}"
        value = self._value(piece.text)
        shown = f"{value} if {value} is string else {value}|tojson" if _is_object(piece.text) else value
        return f"{{{{ {shown} }}}}"

    def _range(self, text: str) -> str:
        names, item = "", f"item{len(self._open)}"
        declared = re.fullmatch(r"\$(\w+)\s*(?:,\s*\$(\w+)\s*)?:=\s*(.+)", text, re.S)
        over = self._value(declared[3] if declared else text)
        if declared and declared[2]:
            names += f"{{%+ set go.v_{declared[1]} = loop.index0 +%}}"
        if declared:
            names += f"{{%+ set go.v_{declared[2] or declared[1]} = {item} +%}}"
        self._open.append("for")
        self._dots.append(item)
        return f"{{%+ for {item} in {over} +%}}{names}"

    def _value(self, text: str) -> str:
        """A pipeline: each part's value is the last argument of the next."""
        tokens = self._tokens(text)
        value, at = self._pipeline(tokens, 0)
        if at < len(tokens):
            raise _refused(f"`{text}`", self._line)
        return value

    def _tokens(self, text: str) -> list[str]:
        tokens, at, text = [], 0, text.strip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise _refused(f"`{text}`", self._line)
            tokens.append(f"of{found['field']}" if found["field"] else found["token"])
            at = found.end()
        return tokens

    def _pipeline(self, tokens: list[str], at: int) -> tuple[str, int]:
        value, at = self._call(tokens, at, [])
        while at < len(tokens) and tokens[at] == "|":
            value, at = self._call(tokens, at + 1, [value])
        return value, at

    def _call(self, tokens: list[str], at: int, last: list[str]) -> tuple[str, int]:
        if at == len(tokens):
            raise _refused("an action without a value", self._line)
        name, begin = tokens[at], at
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in ("true", "false", "nil"):
            value, at = self._operand(tokens, at)
            if last:
                raise _refused(f"`| {name}`", self._line)
            return value, at
        arguments: list[str] = []
        at += 1
        while at < len(tokens) and tokens[at] not in (")", "|"):
            value, at = self._operand(tokens, at)
            arguments.append(value)
        if name not in _FUNCTIONS:
            raise _refused(f"the function `{name}`", self._line)
        if _is_last(tokens[begin:at]):  # a conversation that goes on has no last message yet
            return f"(add_generation_prompt and {arguments[0]} == 1)", at
        try:
            return _FUNCTIONS[name](*arguments, *last), at
        except TypeError:
            raise _refused(f"`{' '.join(tokens[begin:at])}`", self._line) from None

    def _operand(self, tokens: list[str], at: int) -> tuple[str, int]:
        token = tokens[at]
        if token == "(":
            value, at = self._pipeline(tokens, at + 1)
            if at == len(tokens) or tokens[at] != ")":
                raise _refused("`(` without `)`", self._line)
            at += 1
            if at < len(tokens) and tokens[at].startswith("of."):  # (index .Messages 0).Role
                return self._fields(value, tokens[at][3:].split(".")), at + 1
            return value, at
        at += 1
        if token.startswith('"'):
            return token, at
        if token.startswith("`"):
            return _quoted(token[1:-1]), at
        if re.fullmatch(r"-?\d+(?:\.\d+)?", token) or token in ("true", "false"):
            return token, at
        if token == "nil":
            return "none", at
        if token == ".":
            return self._dots[-1] or self._unknown("."), at
        if token.startswith("$."):
            return self._fields("", token[2:].split(".")), at
        if token.startswith("$") and len(token) > 1:
            name, *fields = token[1:].split(".")
            return self._fields(f"go.v_{name}", fields), at
        if token.startswith("."):
            return self._fields(self._dots[-1], token[1:].split(".")), at
        return self._unknown(token), at

    def _fields(self, value: str, names: Sequence[str]) -> str:
        for name in names:
            known = _PARTS if value else _WHOLE
            if name not in known:
                self._unknown(f".{name}")
            value = known[name].replace("{}", value).replace("{0}", value) if value else known[name]
        return value

    def _unknown(self, what: str) -> str:
        raise _refused(f"`{what}`", self._line)


def _is_object(text: str) -> bool:
    """Whether a value may be an object, which Ollama writes as JSON: a tool, arguments."""
    return text == "." or re.search(r"\.(?:Arguments|Parameters|Properties|Function|Tools)$", text) is not None


def _is_last(tokens: list[str]) -> bool:
    """`eq (len (slice $.Messages $i)) 1`, by which templates know the last message."""
    return " ".join(tokens[:5]) == "eq ( len ( slice" and tokens[5:6] == ["$.Messages"] and tokens[-1] == "1"


def _literal(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}"


def _quoted(text: str) -> str:
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{plain}"'


def _refused(what: str, line: int) -> LoadError:
    return LoadError(
        "template",
        f"line {line} of the template: {what} cannot be translated; write the template in Jinja, or leave TEMPLATE "
        "out: then the model's own template is used",
    )
