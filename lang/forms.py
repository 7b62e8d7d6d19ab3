"""Types made of others as JSON: the schema that their values obey, and building a value from parsed JSON.

Knows: types, JSON Schema. Must not know: nodes, engines, texts that are not JSON. pydantic models are known by their
methods alone. Errors say where in the type they stand (Order.items[].price).
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from branchwork.lang import limits
from branchwork.lang.scalars import FORMATS, SCALARS, reader

SUPPORTED = (
    "int, float, bool, str, None, Any, date, datetime, time, Decimal, UUID, Literal, Enum, list, tuple, dict, Union, "
    "TypedDict, NamedTuple, dataclasses, pydantic"
)


class Form(NamedTuple):
    """A type as JSON. build: from a parsed JSON value; raises ValueError where the value is none of the type."""

    schema: dict[str, Any]
    build: Callable[[Any], Any]


class Forms:
    """Types as JSON Schema. A class that contains itself becomes a definition that others refer to."""

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self._known: dict[Any, Form] = {}
        self._open: dict[Any, bool] = {}  # classes being looked at: whether something inside refers to them
        self._path: list[str] = []  # to the type being looked at: Order .items [] .price

    def of(self, kind: Any, step: str = "", more: tuple[Any, ...] = ()) -> Form:
        """step: how to get to a value of this type from one of the type around it. more: marks from around it."""
        with self._at(step):
            alias = alias_of(kind)
            if alias is not None and not more:
                return self._named(kind, lambda: self.of(alias))
            kind, marks = taken_apart(kind)
            found = limits.found((*marks, *more))
            if found and typing.get_origin(kind) in (typing.Union, types.UnionType):
                form = self._union(typing.get_args(kind), (*marks, *more))
            else:
                form = self._of(kind)
                if found:
                    form = self._limited(form, found, kind)
            return _described(form, limits.description(marks))

    @contextmanager
    def _at(self, step: str) -> Iterator[None]:
        self._path.append(step)
        try:
            yield
        finally:
            self._path.pop()

    def _refused(self, why: str) -> TypeError:
        return TypeError(f"{''.join(self._path)}: {why}" if any(step[:1] == "." for step in self._path) else why)

    def _limited(self, form: Form, found: limits.Limits, kind: Any) -> Form:
        limitless = kind in SCALARS or (isinstance(kind, type) and _maker(kind) is not None)
        try:
            schema = limits.schema({} if limitless else form.schema, found, name_of(kind))
            return Form(schema, limits.checked(form.build, found))
        except TypeError as error:
            raise self._refused(str(error)) from None

    def _of(self, kind: Any) -> Form:
        if kind in _PLAIN:
            return _PLAIN[kind]
        if kind in SCALARS:
            return _text_of(kind)
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Literal:
            return self._one_of(literals(kind))
        if is_enum(kind):
            return self._one_of([(member.value, member) for member in kind])
        if origin in (typing.Union, types.UnionType):
            return self._union(args)
        if kind in (list, Sequence) or origin in (list, Sequence):
            return self._list(args[0] if args else Any)
        if kind is tuple or origin is tuple:
            return self._tuple(args)
        if kind in (dict, Mapping) or origin in (dict, Mapping):
            return self._dict(args)
        if isinstance(kind, type) and _maker(kind) is not None:
            return self._class(kind)
        raise self._refused(f"values of type {name_of(kind)} cannot be generated; use one of: {SUPPORTED}")

    def _union(self, args: tuple[Any, ...], marks: tuple[Any, ...] = ()) -> Form:
        """marks: limits on whichever of its types is not None."""
        forms = [self.of(arg, more=() if arg in (None, type(None)) else marks) for arg in args]

        def build(value: Any) -> Any:
            for form in forms:
                try:
                    return form.build(value)
                except ValueError:
                    continue
            raise ValueError(f"{value!r} is none of {', '.join(map(name_of, args))}")

        return Form({"anyOf": [form.schema for form in forms]}, build)

    def _list(self, kind: Any) -> Form:
        item = self.of(kind, "[]")
        return Form({"type": "array", "items": item.schema}, lambda value: [item.build(v) for v in _a(value, list)])

    def _tuple(self, args: tuple[Any, ...]) -> Form:
        if not args or args[-1] is Ellipsis:
            items = self._list(args[0] if args else Any)
            return Form(items.schema, lambda value: tuple(items.build(value)))
        forms = [self.of(arg, f"[{index}]") for index, arg in enumerate(args) if arg != ()]
        size = {"minItems": len(forms), "maxItems": len(forms)}
        prefix = {"prefixItems": [form.schema for form in forms]} if forms else {}

        def build(value: Any) -> Any:
            if len(_a(value, list)) != len(forms):
                raise ValueError(f"{len(value)} values where {len(forms)} belong")
            return tuple(form.build(v) for form, v in zip(forms, value))

        return Form({"type": "array", **prefix, "items": False, **size}, build)

    def _dict(self, args: tuple[Any, ...]) -> Form:
        if args and _bare(args[0]) is not str:
            raise self._refused(f"the keys of a dict must be str, not {name_of(args[0])}")
        item = self.of(args[1] if args else Any, "[]")
        schema = {"type": "object", "additionalProperties": item.schema} if item.schema else {"type": "object"}
        return Form(schema, lambda value: {key: item.build(v) for key, v in _a(value, dict).items()})

    def _class(self, kind: Any) -> Form:
        path = self._path
        if not any(step[:1] == "." for step in path):  # errors name the outermost class
            self._path = [kind.__name__]
        try:
            return self._named(kind, lambda: _maker(kind)(self, kind))  # type: ignore[misc]
        finally:
            self._path = path

    def _named(self, kind: Any, make: Callable[[], Form]) -> Form:
        """A type that may contain itself."""
        if kind in self._known:
            return self._known[kind]
        reference = {"$ref": f"#/$defs/{kind.__name__}"}
        if kind in self._open:
            self._open[kind] = True
            return Form(reference, lambda value: self._known[kind].build(value))
        self._open[kind] = False
        form = make()
        if self._open.pop(kind):
            self._keep(kind.__name__, form.schema)
            form = Form(reference, form.build)
        self._known[kind] = form
        return form

    def dataclass(self, kind: Any) -> Form:
        hints = _hints(kind)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        forms = {
            field.name: _described(self.of(hints[field.name], f".{field.name}"), field.metadata.get("description"))
            for field in fields
        }
        free = {field.name for field in fields if _has_default(field) and _takes_none(hints[field.name])}
        return _object(forms, set(forms) - free, lambda values: kind(**values), kind)

    def named_tuple(self, kind: Any) -> Form:
        hints = _hints(kind)
        forms = {name: self.of(hints.get(name, Any), f".{name}") for name in kind._fields}
        free = {name for name in kind._field_defaults if _takes_none(hints.get(name, Any))}
        return _object(forms, set(forms) - free, lambda values: kind(**values), kind)

    def typed_dict(self, kind: Any) -> Form:
        hints = _hints(kind)
        forms = {name: self.of(hint, f".{name}") for name, hint in hints.items()}
        marks = {name: name_of(typing.get_origin(hint)).rpartition(".")[2] for name, hint in hints.items()}
        # __required_keys__ does not see marks inside annotations that are kept as text
        required = {name for name in kind.__required_keys__ if marks[name] != "NotRequired"}
        return _object(forms, required | {name for name in marks if marks[name] == "Required"}, dict, kind)

    def model(self, kind: Any) -> Form:
        schema = model_schema(kind)
        for name, definition in schema.pop("$defs", {}).items():
            self._keep(name, definition)
        return Form(schema, lambda value: kind.model_validate_json(json.dumps(value)))

    def _one_of(self, values: Sequence[tuple[Any, Any]]) -> Form:
        for plain, _ in values:
            if not isinstance(plain, (str, int, float, bool, type(None))):
                raise self._refused(f"{plain!r} has no JSON text; use texts, numbers, truth values or None")

        def build(value: Any) -> Any:
            for plain, meant in values:
                if plain == value and isinstance(plain, bool) == isinstance(value, bool):
                    return meant
            raise ValueError(f"{value!r} is none of {[plain for plain, _ in values]}")

        return Form({"enum": [plain for plain, _ in values]}, build)

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
            raise ValueError(f"the properties {sorted(found)} do not make a {name_of(kind)}")
        return make({name: form.build(value[name]) for name, form in forms.items() if name in value})

    return _described(Form(schema, build), _doc(kind))


def _maker(kind: type) -> Callable[[Forms, Any], Form] | None:
    """How the form of a class is made; None for a class of a kind that cannot be generated."""
    if hasattr(kind, "model_json_schema"):
        return Forms.model
    if typing.is_typeddict(kind):
        return Forms.typed_dict
    if dataclasses.is_dataclass(kind):
        return Forms.dataclass
    return Forms.named_tuple if issubclass(kind, tuple) and hasattr(kind, "_fields") else None


def _text_of(kind: Any) -> Form:
    """One of SCALARS as JSON."""
    read, form = reader(kind), SCALARS[kind].format
    schema = {"type": "string", **({"format": form} if form else {}), "pattern": f"^{SCALARS[kind].pattern}$"}
    return Form(schema, lambda value: read(_a(value, str)))


def _described(form: Form, text: str | None) -> Form:
    return Form({**form.schema, "description": text}, form.build) if text else form


def _doc(kind: Any) -> str | None:
    """What its author wrote about a class; dataclasses and named tuples have the signature there by themselves."""
    text = kind.__doc__
    return None if not text or text.startswith(f"{kind.__name__}(") else inspect.cleandoc(text)


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


def taken_apart(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Without Annotated, Required, NotRequired, NewType and alias around it; what Annotated says, innermost first."""
    marks: tuple[Any, ...] = ()
    while True:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated:
            kind, marks = kind.__origin__, (*kind.__metadata__, *marks)
        elif name_of(origin).rpartition(".")[2] in _WRAPPERS:
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif alias_of(kind) is not None:
            kind = alias_of(kind)
        else:
            return kind, marks


def _bare(kind: Any) -> Any:
    return taken_apart(kind)[0]


def alias_of(kind: Any) -> Any:
    """What a `type X = ...` of Python 3.12 stands for; None for anything else."""
    return kind.__value__ if type(kind).__name__ == "TypeAliasType" else None


_WRAPPERS = frozenset({"Required", "NotRequired", "ReadOnly"})


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise TypeError(f"the fields of {name_of(kind)} name a type that cannot be found: {error}") from None


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _takes_none(kind: Any) -> bool:
    return any(arg in (None, type(None)) for arg in (kind, *typing.get_args(_bare(kind))))


def is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def name_of(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


# --- pydantic


def model_schema(model: Any) -> dict[str, Any]:
    """The schema of a pydantic model class. Its objects take no other properties, unless it says that they do."""
    schema = model.model_json_schema()
    for found in (schema, *schema.get("$defs", {}).values()):
        if "properties" in found:
            found.setdefault("additionalProperties", False)
    _dated(schema)
    return typing.cast("dict[str, Any]", schema)


def _dated(schema: Any) -> None:
    """Beside the formats of dates and times, patterns without the days and seconds that Python has not."""
    left = [schema]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            if found.get("type") == "string" and found.get("format") in FORMATS:
                found.setdefault("pattern", f"^{FORMATS[found['format']]}$")
            left += [value for key, value in found.items() if key not in ("default", "const", "enum", "examples")]
        elif isinstance(found, list):
            left += found


def literals(kind: Any) -> list[tuple[Any, Any]]:
    """What is written, and what is meant by it."""
    return [(value.value if isinstance(value, enum.Enum) else value, value) for value in typing.get_args(kind)]
