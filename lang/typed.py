"""Python types as constraints: what a text must look like to be a value of a type, and reading the value from it.

Knows: types, JSON, JSON Schema. Must not know: nodes, engines. pydantic models are known by their methods alone.
A number, truth value, Literal or Enum is written plainly; everything made of others is written as JSON.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from branchwork.lang.constraint import Choice, Constraint, JsonSchema, Regex

INT = "-?(0|[1-9][0-9]{0,17})"
EXPONENT = "-[0-9]{1,3}|[+]?([0-9]{1,2}|1[0-9]{2}|2[0-8][0-9])"  # never beyond what a float can hold
FLOAT = rf"{INT}(\.[0-9]{{1,20}})?([eE]({EXPONENT}))?"
TRUTH = {"true": True, "false": False, "True": True, "False": False}
SUPPORTED = (
    "int, float, bool, str, None, Any, Literal, Enum, list, tuple, dict, Union, TypedDict, dataclasses, pydantic"
)


class Typed(NamedTuple):
    """constraint: None for any text. read: of a text that obeys it; raises ValueError for one that was cut off."""

    constraint: Constraint | None
    read: Callable[[str], Any]


class Form(NamedTuple):
    """A type as JSON. build: from a parsed JSON value; raises ValueError where the value is none of the type."""

    schema: dict[str, Any]
    build: Callable[[Any], Any]


def typed(kind: Any) -> Typed:
    """How a value of a type is written and read. Raises TypeError for a type that is not SUPPORTED."""
    kind = _bare(kind)
    if kind is str:
        return Typed(None, str)
    if kind is int:
        return Typed(Regex(INT), int)
    if kind is float:
        return Typed(Regex(FLOAT), float)
    if kind is bool:
        return Typed(Choice(tuple(TRUTH)), _reader(TRUTH))
    if typing.get_origin(kind) is typing.Literal:
        return _words({value: value for value in typing.get_args(kind)}, kind)
    if _is_enum(kind):
        return _words({member.value: member for member in kind}, kind)
    forms = _Forms()
    form = forms.of(kind)
    schema = {**form.schema, "$defs": forms.defs} if forms.defs else form.schema

    def read(text: str) -> Any:
        return form.build(json.loads(text))

    return Typed(JsonSchema(json.dumps(schema)), read)


def model_schema(model: Any) -> dict[str, Any]:
    """The schema of a pydantic model class. Its objects take no other properties, unless it says that they do."""
    schema = model.model_json_schema()
    for found in (schema, *schema.get("$defs", {}).values()):
        if "properties" in found:
            found.setdefault("additionalProperties", False)
    return typing.cast("dict[str, Any]", schema)


def _words(values: Mapping[Any, Any], kind: Any) -> Typed:
    """Literal and Enum: one of some texts, each standing for a value."""
    texts: dict[str, Any] = {}
    for plain, value in values.items():
        if not isinstance(plain, (str, int, float, bool, type(None))):
            raise TypeError(f"{plain!r} of {_name(kind)} has no text; use texts, numbers, truth values or None")
        text = plain if isinstance(plain, str) else json.dumps(plain)
        if not text or text in texts:
            raise ValueError(
                f"two values of {_name(kind)} are written {text!r}" if text else f"{kind} has an empty text"
            )
        texts[text] = value
    if not texts:
        raise TypeError(f"{_name(kind)} has no values to choose from")
    return Typed(Choice(tuple(texts)), _reader(texts))


def _reader(texts: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in texts:
            raise ValueError(f"{text!r} is none of {', '.join(texts)}")
        return texts[text]

    return read


class _Forms:
    """Types as JSON Schema. A class that contains itself becomes a definition that others refer to."""

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self._known: dict[Any, Form] = {}
        self._open: dict[Any, bool] = {}  # classes being looked at: whether something inside refers to them

    def of(self, kind: Any) -> Form:
        kind = _bare(kind)
        if kind in _PLAIN:
            return _PLAIN[kind]
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Literal:
            return _one_of({value: value for value in args})
        if _is_enum(kind):
            return _one_of({member.value: member for member in kind})
        if origin in (typing.Union, types.UnionType):
            return self._union(args)
        if kind in (list, Sequence) or origin in (list, Sequence):
            return self._list(args[0] if args else Any)
        if kind is tuple or origin is tuple:
            return self._tuple(args)
        if kind in (dict, Mapping) or origin in (dict, Mapping):
            return self._dict(args)
        if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or hasattr(kind, "model_json_schema"):
            return self._class(kind)
        raise TypeError(f"values of type {_name(kind)} cannot be generated; use one of: {SUPPORTED}")

    def _union(self, args: tuple[Any, ...]) -> Form:
        forms = [self.of(arg) for arg in args]

        def build(value: Any) -> Any:
            for form in forms:
                try:
                    return form.build(value)
                except ValueError:
                    continue
            raise ValueError(f"{value!r} is none of {', '.join(map(_name, args))}")

        return Form({"anyOf": [form.schema for form in forms]}, build)

    def _list(self, kind: Any) -> Form:
        item = self.of(kind)
        return Form({"type": "array", "items": item.schema}, lambda value: [item.build(v) for v in _a(value, list)])

    def _tuple(self, args: tuple[Any, ...]) -> Form:
        if not args or args[-1] is Ellipsis:
            items = self._list(args[0] if args else Any)
            return Form(items.schema, lambda value: tuple(items.build(value)))
        forms = [self.of(arg) for arg in args if arg != ()]
        size = {"minItems": len(forms), "maxItems": len(forms)}
        prefix = {"prefixItems": [form.schema for form in forms]} if forms else {}

        def build(value: Any) -> Any:
            if len(_a(value, list)) != len(forms):
                raise ValueError(f"{len(value)} values where {len(forms)} belong")
            return tuple(form.build(v) for form, v in zip(forms, value))

        return Form({"type": "array", **prefix, "items": False, **size}, build)

    def _dict(self, args: tuple[Any, ...]) -> Form:
        if args and _bare(args[0]) is not str:
            raise TypeError(f"the keys of a dict must be str, not {_name(args[0])}")
        item = self.of(args[1] if args else Any)
        schema = {"type": "object", "additionalProperties": item.schema} if item.schema else {"type": "object"}
        return Form(schema, lambda value: {key: item.build(v) for key, v in _a(value, dict).items()})

    def _class(self, kind: Any) -> Form:
        if kind in self._known:
            return self._known[kind]
        reference = {"$ref": f"#/$defs/{kind.__name__}"}
        if kind in self._open:
            self._open[kind] = True
            return Form(reference, lambda value: self._known[kind].build(value))
        self._open[kind] = False
        if hasattr(kind, "model_json_schema"):
            form = self._model(kind)
        else:
            form = self._typed_dict(kind) if typing.is_typeddict(kind) else self._dataclass(kind)
        if self._open.pop(kind):
            self._keep(kind.__name__, form.schema)
            form = Form(reference, form.build)
        self._known[kind] = form
        return form

    def _dataclass(self, kind: Any) -> Form:
        hints = _hints(kind)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        forms = {field.name: self.of(hints[field.name]) for field in fields}
        free = {field.name for field in fields if _has_default(field) and _takes_none(hints[field.name])}
        return _object(forms, set(forms) - free, lambda values: kind(**values), kind)

    def _typed_dict(self, kind: Any) -> Form:
        hints = _hints(kind)
        forms = {name: self.of(hint) for name, hint in hints.items()}
        marks = {name: _name(typing.get_origin(hint)).rpartition(".")[2] for name, hint in hints.items()}
        # __required_keys__ does not see marks inside annotations that are kept as text
        required = {name for name in kind.__required_keys__ if marks[name] != "NotRequired"}
        return _object(forms, required | {name for name in marks if marks[name] == "Required"}, dict, kind)

    def _model(self, kind: Any) -> Form:
        schema = model_schema(kind)
        for name, definition in schema.pop("$defs", {}).items():
            self._keep(name, definition)
        return Form(schema, lambda value: kind.model_validate_json(json.dumps(value)))

    def _keep(self, name: str, schema: dict[str, Any]) -> None:
        if self.defs.setdefault(name, schema) != schema:
            raise TypeError(f"two different classes named {name} are part of this type; rename one")


def _object(forms: Mapping[str, Form], required: set[str], make: Callable[[dict[str, Any]], Any], kind: Any) -> Form:
    schema = {
        "type": "object",
        "properties": {name: form.schema for name, form in forms.items()},
        "required": [name for name in forms if name in required],
        "additionalProperties": False,
    }

    def build(value: Any) -> Any:
        found = set(_a(value, dict))
        if not required <= found <= set(forms):
            raise ValueError(f"the properties {sorted(found)} do not make a {_name(kind)}")
        return make({name: form.build(value[name]) for name, form in forms.items() if name in value})

    return Form(schema, build)


def _one_of(values: Mapping[Any, Any]) -> Form:
    for plain in values:
        if not isinstance(plain, (str, int, float, bool, type(None))):
            raise TypeError(f"{plain!r} has no JSON text; use texts, numbers, truth values or None")

    def build(value: Any) -> Any:
        for plain, meant in values.items():
            if plain == value and isinstance(plain, bool) == isinstance(value, bool):
                return meant
        raise ValueError(f"{value!r} is none of {list(values)}")

    return Form({"enum": list(values)}, build)


def _a(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} is not a {kind.__name__}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not an integer")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("an integer is too large for a float") from None


def _null(value: Any) -> None:
    if value is not None:
        raise ValueError(f"{value!r} is not null")


_PLAIN: dict[Any, Form] = {
    str: Form({"type": "string"}, lambda value: _a(value, str)),
    int: Form({"type": "integer"}, _integer),
    float: Form({"type": "number"}, _number),
    bool: Form({"type": "boolean"}, lambda value: _a(value, bool)),
    type(None): Form({"type": "null"}, _null),
    None: Form({"type": "null"}, _null),
    Any: Form({}, lambda value: value),
    object: Form({}, lambda value: value),
}


def _bare(kind: Any) -> Any:
    """Without Annotated, Required, NotRequired and NewType around it."""
    while True:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated or _name(origin).rpartition(".")[2] in _WRAPPERS:
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        else:
            return kind


_WRAPPERS = frozenset({"Required", "NotRequired", "ReadOnly"})


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise TypeError(f"the fields of {_name(kind)} name a type that cannot be found: {error}") from None


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _takes_none(kind: Any) -> bool:
    return any(arg in (None, type(None)) for arg in (kind, *typing.get_args(_bare(kind))))


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
