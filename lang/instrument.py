"""A body whose every text stays a symbol: its source is compiled anew with f-strings, % and calls observed.

Knows: Python's syntax tree, which callables only pass text on. Must not know: nodes, programs.
An f-string of a symbol is an ordinary text to Python, so that len() of it could not be caught; here it becomes a symbol
again at once. Functions of the author's that the body calls are treated alike; other code may not see symbols.
"""

from __future__ import annotations

import ast
import collections
import copy
import dataclasses
import functools
import inspect
import linecache
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from branchwork.lang.symbols import Symbol, modulo, refuse, refuse_text, symbolic

_HOME = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PREFIX = "_branchwork_"
_OF_FRAMES = frozenset({"super", "locals", "globals", "vars", "dir", "eval", "exec"})  # need the frame they stand in
_FUTURES = 0x1FE0000  # flags of `from __future__ import ...`
DEPTH = 6  # levels of containers that are searched for symbols

Ranges = list[tuple[int, int]]
_rewritten: dict[types.CodeType, types.CodeType | None] = {}
_handled: dict[str, Ranges] = {}  # by file: lines whose errors are caught there
_codes: set[types.CodeType] = set()


def instrumented(function: types.FunctionType) -> types.FunctionType | None:
    """The same function, observed; None where its source cannot be had or found again."""
    code = function.__code__
    if code in _codes:
        return function
    if code not in _rewritten:
        _rewritten[code] = _rewrite(function)
    new = _rewritten[code]
    if new is None:
        return None
    cells = dict(zip(code.co_freevars, function.__closure__ or ()))
    closure = tuple(types.CellType(_TOOLS[n]) if n in _TOOLS else cells[n] for n in new.co_freevars)
    made = types.FunctionType(new, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return made


def caught_here() -> bool:
    """Whether the line of the author's that is being executed stands where an error would be caught."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        for first, last in _handled.get(frame.f_code.co_filename, ()):
            if first <= frame.f_lineno <= last:
                return True
        frame = frame.f_back
    return False


def holds_symbols(value: Any, depth: int = DEPTH) -> bool:
    """Whether a symbol is in a value. An iterator, which cannot be looked into, counts as if."""
    if isinstance(value, str):
        return symbolic(value)
    if depth == 0 or isinstance(value, Iterator):
        return isinstance(value, Iterator)
    if isinstance(value, Mapping):
        return any(holds_symbols(item, depth - 1) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return any(holds_symbols(item, depth - 1) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(holds_symbols(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value))
    return False


# --- what stands in the place of an f-string, a call, a %


def _text(value: Any) -> Any:
    return Symbol(value) if type(value) is str and symbolic(value) else value


def _call(function: Any, /, *args: Any, **named: Any) -> Any:
    observed = _observed(function, args, named)
    if any(function is one for one in _CALLERS) or getattr(function, "__name__", "") == "sort":
        args, named = tuple(map(_watched, args)), {name: _watched(value) for name, value in named.items()}
    return _text(observed(*args, **named))


def _watched(value: Any) -> Any:
    """Of a function that is going to be called: the same, called from here."""
    known = any(value is one for one in _OBSERVABLE)
    return functools.partial(_call, value) if callable(value) and not known else value


def _modulo(left: Any, right: Any) -> Any:
    return modulo(left, right) if isinstance(left, str) else left % right


def _known(value: Any) -> Any:
    if isinstance(value, str) and symbolic(value):
        refuse_text(value, "in")
    return value


def _kept(value: Any) -> Any:
    if holds_symbols(value) and not isinstance(value, Iterator):
        refuse("a text that is not known yet is kept on an object, where it cannot be watched")
    return value


_TOOLS: dict[str, Callable[..., Any]] = {
    _PREFIX + "text": _text,
    _PREFIX + "call": _call,
    _PREFIX + "modulo": _modulo,
    _PREFIX + "known": _known,
    _PREFIX + "kept": _kept,
}
# they call what the operands define, so that a symbol among them can object
_OBSERVABLE: tuple[Any, ...] = (
    *(len, bool, int, float, complex, sum, min, max, sorted, any, all, range, enumerate, zip, reversed, iter, next),
    *(map, filter, list, tuple, dict, set, frozenset, str, repr, hash, isinstance, issubclass, type, id, callable),
    *(collections.deque, collections.OrderedDict, functools.partial, getattr),
)
_CALLERS: tuple[Any, ...] = (map, filter, sorted, min, max)
_CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque, collections.OrderedDict, collections.defaultdict)


def _observed(function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Callable[..., Any]:
    """The function to call instead. Raises Untraceable where one would see a symbol that nobody watches."""
    if isinstance(function, functools.partial) and function.func is not _call:
        return functools.partial(_call, function.func, *function.args, **function.keywords)
    if isinstance(function, types.MethodType) and isinstance(function.__func__, types.FunctionType):
        return types.MethodType(_python(function.__func__, args, named), function.__self__)
    if isinstance(function, types.FunctionType):
        return _python(function, args, named)
    if isinstance(function, type):
        return _class(function, args, named)
    given = (*args, *named.values())
    raw = any(isinstance(item, types.MethodDescriptorType | types.BuiltinMethodType) for item in given)
    owner = getattr(function, "__self__", None)
    if any(function is one for one in _OBSERVABLE) or isinstance(owner, _CONTAINERS):
        if raw:
            refuse(f"{_name(function)} is given a built-in method, which nobody can watch")
        return _callable(function)
    if type(owner) is str and function.__name__ in ("join", "format", "format_map"):
        return _callable(function)
    call = inspect.getattr_static(type(function), "__call__", None)
    if isinstance(call, types.FunctionType):
        return types.MethodType(_python(call, args, named), function)
    if holds_symbols(args) or holds_symbols(named):
        refuse(f"{_name(function)} is given a text that is not known yet")
    return _callable(function)


def _python(function: types.FunctionType, args: tuple[Any, ...], named: dict[str, Any]) -> types.FunctionType:
    file = function.__code__.co_filename
    if file.startswith(_HOME):
        return function
    new = None if file.startswith(_LIBRARY) else instrumented(function)
    if new is None and (holds_symbols(args) or holds_symbols(named)):
        why = "of a library" if file.startswith(_LIBRARY) else "without source"
        refuse(f"{_name(function)}, a function {why}, is given a text that is not known yet")
    return new or function


def _class(kind: type, args: tuple[Any, ...], named: dict[str, Any]) -> Callable[..., Any]:
    if any(kind is one for one in _OBSERVABLE):
        if any(isinstance(item, types.MethodDescriptorType) for item in (*args, *named.values())):
            refuse(f"{_name(kind)} is given a built-in method, which nobody can watch")
        return kind
    plain = issubclass(kind, BaseException) or kind.__module__.startswith("branchwork.lang") or _is_record(kind)
    if not plain and (holds_symbols(args) or holds_symbols(named)):
        refuse(f"the class {kind.__name__} is given a text that is not known yet")
    return kind


def _is_record(kind: type) -> bool:
    """A dataclass or named tuple that only keeps what it is given."""
    computes = "__post_init__" in dir(kind) or any(
        isinstance(v, property) for k in kind.__mro__ for v in vars(k).values()
    )
    named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return named_tuple or (dataclasses.is_dataclass(kind) and not computes)


def _callable(function: Any) -> Callable[..., Any]:
    made: Callable[..., Any] = function
    return made


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


# --- the source anew


class _Rewriter(ast.NodeTransformer):
    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                self._inside(value)
        return _use("text", node)

    def _inside(self, node: ast.FormattedValue) -> None:
        node.value = self.visit(node.value)
        spec = node.format_spec
        for value in spec.values if isinstance(spec, ast.JoinedStr) else ():  # a spec has to stay an f-string itself
            if isinstance(value, ast.FormattedValue):
                self._inside(value)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in _OF_FRAMES:
            return node
        made = _use("call", node, node.func, *node.args)
        made.keywords = node.keywords
        return made

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return _use("modulo", node, node.left, node.right) if isinstance(node.op, ast.Mod) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        self.generic_visit(node)
        if isinstance(node.op, ast.Mod) and isinstance(node.target, ast.Name):
            old = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
            return ast.copy_location(ast.Assign([node.target], _use("modulo", node, old, node.value)), node)
        if isinstance(node.target, ast.Attribute):
            node.value = _use("kept", node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        self.generic_visit(node)
        if any(isinstance(target, ast.Attribute) for target in node.targets):
            node.value = _use("kept", node.value)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops):
            node.left = _use("known", node.left)
        return node


def _use(tool: str, at: ast.expr | ast.stmt, *args: ast.expr) -> ast.Call:
    """A call of one of the tools; without args, on the expression itself."""
    given = list(args) if args else [at]
    name = ast.copy_location(ast.Name(_PREFIX + tool, ast.Load()), at)
    return ast.copy_location(ast.Call(name, given, []), at)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def _tree(file: str, source: str) -> ast.Module | None:
    try:
        return ast.parse(source, file)
    except SyntaxError:
        return None


def _rewrite(function: types.FunctionType) -> types.CodeType | None:
    code = function.__code__
    linecache.checkcache(code.co_filename)
    tree = _tree(code.co_filename, "".join(linecache.getlines(code.co_filename, function.__globals__)))
    found = [] if tree is None else [node for node in ast.walk(tree) if _is_of(node, code)]
    if len(found) != 1 or "__class__" in code.co_freevars:
        return None
    node = copy.deepcopy(found[0])
    if any(
        isinstance(n, ast.Attribute) and n.attr.startswith("__") and not n.attr.endswith("__") for n in ast.walk(node)
    ):
        return None  # its name depends on the class around it
    _handled.setdefault(code.co_filename, []).extend(_caught(node))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        node.decorator_list = []
        node.name = _PREFIX + "body"  # its own name means what it means outside, also where it calls itself
    body = _Rewriter().visit(node)
    names = [ast.arg(name) for name in (*_TOOLS, *code.co_freevars)]
    inside = [ast.Expr(body) if isinstance(body, ast.Lambda) else body]
    outer = ast.parse("def around(): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.args.args, outer.body = names, inside
    module = ast.fix_missing_locations(ast.Module([outer], []))
    compiled = compile(module, code.co_filename, "exec", flags=code.co_flags & _FUTURES, dont_inherit=True)
    around = _inner(compiled, "around")
    new = _inner(around, "<lambda>" if isinstance(node, ast.Lambda) else _PREFIX + "body").replace(co_name=code.co_name)
    _remember(new)
    return new


def _is_of(node: ast.AST, code: types.CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    first = min((decorator.lineno for decorator in node.decorator_list), default=node.lineno)
    return node.name == code.co_name and first == code.co_firstlineno


def _caught(tree: ast.AST) -> Iterator[tuple[int, int]]:
    for node in ast.walk(tree):
        suppresses = isinstance(node, ast.With) and "suppress" in ast.dump(node.items[0].context_expr)
        if (type(node).__name__ in ("Try", "TryStar") and node.handlers) or suppresses:  # type: ignore[attr-defined]
            body: list[ast.stmt] = node.body  # type: ignore[attr-defined]
            yield body[0].lineno, body[-1].end_lineno or body[-1].lineno


def _inner(code: types.CodeType, name: str) -> types.CodeType:
    return next(const for const in code.co_consts if isinstance(const, types.CodeType) and const.co_name == name)


def _remember(code: types.CodeType) -> None:
    _codes.add(code)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            _remember(const)
