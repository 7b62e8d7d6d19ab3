"""JSON Schema's official suite (draft 2020-12, required part) through our layer and each engine alone.

    python benchmarks/schema_suite.py [--suite DIR] [--engines ours llguidance ...] [--write docs/json-schema.md]

Every group of every engine has a time limit, in a process that is killed when it passes it. An instance is written
compactly, its keys in the order in which the schema names them, and counts as accepted when every byte is allowed by
the mask-equivalent check of the engine and the text may end there. A group is right when its schema compiled and no
instance was judged wrong; a schema that nothing satisfies is right to refuse.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / ".." / "shared" / "data" / "json-schema-test-suite" / "tests" / "draft2020-12"
SECONDS = 10.0
Judge = Callable[[str], bool]


def names(node: Any, declared: bool) -> Iterator[str]:
    """Property names of a schema in the order of its text: those under `properties`, or all keys and strings."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not declared:
                yield key
            elif key == "properties" and isinstance(value, dict):
                for name, what in value.items():
                    yield name
                    yield from names(what, declared)
                continue
            yield from names(value, declared)
    elif isinstance(node, list):
        for item in node:
            yield from names(item, declared)
    elif isinstance(node, str) and not declared:
        yield node


def written(value: Any, schema: Any) -> str:
    """A value's JSON text: compact, whole numbers as integers, keys as the schema orders them."""
    rank: dict[str, int] = {}
    for place, name in enumerate([*names(schema, True), *names(schema, False)]):
        rank.setdefault(name, place)

    def ordered(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: ordered(node[key]) for key in sorted(node, key=lambda key: rank.get(key, len(rank)))}
        if isinstance(node, list):
            return [ordered(item) for item in node]
        return int(node) if isinstance(node, float) and node.is_integer() else node

    return json.dumps(ordered(value), separators=(",", ":"), ensure_ascii=False)


# --- engines: schema -> (judge, approximations named, whether they are loose); ValueError when the schema is refused


def ours(schema: Any) -> tuple[Judge, tuple[str, ...], bool]:
    from branchwork.lang.constraint import ConstraintError, JsonSchema
    from branchwork.runtime.grammar.leaves import byte_vocabulary
    from branchwork.runtime.grammar.llg import compile_llguidance

    try:
        grammar = compile_llguidance(JsonSchema(json.dumps(schema), whitespace="compact"), byte_vocabulary())
    except ConstraintError as error:
        raise ValueError(str(error)) from None

    def judge(text: str) -> bool:
        matcher, data = grammar.start(), list(text.encode())
        return matcher.accept(data) == len(data) and matcher.is_accepting

    return judge, grammar.report.approximations, grammar.report.loose


def llguidance(schema: Any, lenient: bool = False) -> tuple[Judge, tuple[str, ...], bool]:
    from branchwork.runtime.grammar.emptiness import ask

    options = {"whitespace_flexible": False, "json_allow_general_unicode_escapes": True, "lenient": lenient}
    grammar = {"json_schema": {**schema, "x-guidance": options} if isinstance(schema, dict) else schema}
    matcher = ask(json.dumps({"grammars": [grammar]}))
    if matcher.is_error():
        raise ValueError(matcher.get_error().splitlines()[0])

    def judge(text: str) -> bool:
        cursor, data = matcher.deep_copy(), list(text.encode())
        return cursor.try_consume_tokens(data) == len(data) and bool(cursor.is_accepting())

    warnings = tuple(matcher.get_grammar_warnings())
    return judge, warnings, bool(warnings)


def llguidance_lenient(schema: Any) -> tuple[Judge, tuple[str, ...], bool]:
    return llguidance(schema, True)


def outlines(schema: Any) -> tuple[Judge, tuple[str, ...], bool]:
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    vocabulary = Vocabulary(256, {bytes([value]): [value] for value in range(256)})
    try:
        index = Index(build_regex_from_schema(json.dumps(schema), ""), vocabulary)
    except Exception as error:
        raise ValueError(str(error)) from None

    def judge(text: str) -> bool:
        guide = Guide(index)
        for byte in text.encode():
            if byte not in guide.get_tokens():
                return False
            guide.advance(byte)
        return 256 in guide.get_tokens()

    return judge, (), False


def xgrammar(schema: Any) -> tuple[Judge, tuple[str, ...], bool]:
    import xgrammar as xg

    tokens = [*(bytes([value]) for value in range(256)), b""]
    info = xg.TokenizerInfo(tokens, vocab_type=xg.VocabType.RAW, vocab_size=257, stop_token_ids=[256])
    try:
        compiled = xg.GrammarCompiler(info, max_threads=1).compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(",", ":"), strict_mode=False
        )
    except Exception as error:
        raise ValueError(str(error)) from None

    def judge(text: str) -> bool:
        matcher = xg.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.is_completed()

    return judge, (), False


ENGINES: dict[str, Callable[[Any], tuple[Judge, tuple[str, ...], bool]]] = {
    "ours": ours,
    "llguidance": llguidance,
    "llguidance lenient": llguidance_lenient,
    "outlines-core": outlines,
    "xgrammar": xgrammar,
}


def examine(engine: str, group: dict[str, Any]) -> dict[str, Any]:
    """refused (why) | valid, invalid: instances judged right of how many; named, loose."""
    began = time.perf_counter()
    try:
        judge, named, loose = ENGINES[engine](group["schema"])
    except ValueError as error:
        nothing = not any(test["valid"] for test in group["tests"]) and "satisf" in str(error)
        return {"refused": str(error), "right": nothing}
    seconds = time.perf_counter() - began
    result = {"named": list(named), "loose": loose, "over": 0, "under": 0, "valid": 0, "invalid": 0}
    for test in group["tests"]:
        kind = "valid" if test["valid"] else "invalid"
        result[kind] += 1
        if judge(written(test["data"], group["schema"])) != test["valid"]:
            result["over" if test["valid"] else "under"] += 1
    return {**result, "right": not result["over"] and not result["under"], "seconds": seconds}


def _serve(pipe: Connection) -> None:
    while True:
        engine, group = pipe.recv()
        pipe.send(examine(engine, group))


class Worker:
    """A process that can be killed."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def examine(self, engine: str, group: dict[str, Any]) -> dict[str, Any]:
        self.pipe.send((engine, group))
        try:
            if self.pipe.poll(SECONDS + (20 if not getattr(self, "warm", False) else 0)):
                self.warm = True
                answer: dict[str, Any] = self.pipe.recv()
                return answer
            why = f"more than {SECONDS:.0f} s"
        except EOFError:
            why = "the process died"
        self.process.kill()
        self.process.join()
        self._start()
        self.warm = False
        return {"refused": why, "right": False}


def groups(suite: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(suite.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            yield path.stem, group


def measure(engine: str, suite: Path) -> dict[str, dict[str, Any]]:
    """Per keyword: sums of what examine says."""
    worker, table = Worker(), {}
    for keyword, group in groups(suite):
        row = table.setdefault(keyword, dict.fromkeys(_COLUMNS, 0))
        result = worker.examine(engine, group)
        row["groups"] += 1
        row["right"] += result["right"]
        row["refused"] += "refused" in result
        row["named"] += bool(result.get("named"))
        for name in ("valid", "invalid", "over", "under"):
            row[name] += result.get(name, 0)
        row["silent"] += 0 if result.get("loose") else result.get("under", 0)
    worker.process.kill()
    return table


_COLUMNS = ("groups", "right", "refused", "named", "valid", "invalid", "over", "under", "silent")


def total(table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(row[name] for row in table.values()) for name in _COLUMNS}


def markdown(tables: dict[str, dict[str, dict[str, Any]]]) -> str:
    engines = list(tables)
    lines = ["| keyword | groups | " + " | ".join(engines) + " | valid accepted | invalid rejected | refused | named |"]
    lines.append("|---" * (len(engines) + 6) + "|")
    mine = tables[engines[0]]
    for keyword, row in [*mine.items(), ("**all**", total(mine))]:
        counts = [(total(tables[e]) if keyword == "**all**" else tables[e][keyword])["right"] for e in engines]
        lines.append(
            f"| {keyword} | {row['groups']} | "
            + " | ".join(map(str, counts))
            + f" | {row['valid'] - row['over']}/{row['valid']} | {row['invalid'] - row['under']}/{row['invalid']}"
            + f" | {row['refused']} | {row['named']} |"
        )
    lines += ["", "| engine | groups right | refused | valid refused | invalid accepted | of them without a word |"]
    lines.append("|---|---|---|---|---|---|")
    for engine in engines:
        row = total(tables[engine])
        share = f"{row['right']}/{row['groups']} ({row['right'] / row['groups']:.1%})"
        lines.append(f"| {engine} | {share} | {row['refused']} | {row['over']} | {row['under']} | {row['silent']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=SUITE)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    chosen = parser.parse_args()
    text = markdown({engine: measure(engine, chosen.suite) for engine in chosen.engines})
    print(text)
    if chosen.write:
        before, _, rest = chosen.write.read_text(encoding="utf-8").partition("<!-- table -->\n")
        after = rest.partition("<!-- end -->")[2]
        whole = f"{before}<!-- table -->\n{text}\n<!-- end -->{after}"
        chosen.write.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
