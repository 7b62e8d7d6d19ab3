"""xgrammar behind the other engines: optional, bounded, flagged, and never for what is wrong."""

from __future__ import annotations

import json
import time
from functools import partial

import numpy as np
import pytest

from branchwork.lang.constraint import ConstraintError, Grammar, Invalid, JsonSchema, TooBig, Unsupported
from branchwork.runtime.grammar import compiled
from branchwork.runtime.grammar.leaves import byte_vocabulary
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.recipe import Options
from branchwork.runtime.grammar.vocabulary import unpack

compact = partial(JsonSchema, whitespace="compact")

pytest.importorskip("xgrammar")


@pytest.fixture(scope="module")
def compiler():
    made = Compiler(byte_vocabulary(), Options(folder="", backend="xgrammar", seconds=60.0), workers=1)
    yield made
    made.close()


def test_a_schema_is_compiled_in_a_worker_and_flagged_loose(compiler):
    grammar = compiler.wait(compact('{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'))
    assert grammar.report.backend == "xgrammar" and grammar.report.loose and grammar.report.approximations
    matcher, row = grammar.start(), np.zeros(9, np.int32)
    for byte in b'{"a":1}':
        matcher.mask_into(row)
        assert byte in unpack(row) and matcher.accept([byte]) == 1
    assert matcher.is_accepting
    assert grammar.validate_text('{"a":"x"}') and not grammar.validate_text('{"a":1}')


def test_a_gbnf_grammar_is_taken_and_others_are_not(compiler):
    grammar = compiler.wait(Grammar('root ::= "a" | "b"', "gbnf"))
    matcher = grammar.start()
    assert matcher.validate([ord("c")]) == 0 and matcher.accept([ord("b")]) == 1 and matcher.is_accepting
    with pytest.raises(Unsupported):
        compiler.wait(Grammar('start: "a"'))


def test_it_is_bounded_by_the_deadline():
    items = {"type": "string", "pattern": "^(a|b)*a(a|b){18}$"}
    schema = json.dumps({"type": "array", "items": {"anyOf": [items, {"type": "string", "maxLength": 100_000}]}})
    compiler = Compiler(byte_vocabulary(), Options(folder="", backend="xgrammar", seconds=0.05), workers=1)
    began = time.monotonic()
    with pytest.raises(TooBig, match=r"0\.05 s"):
        compiler.wait(compact(schema))
    assert time.monotonic() - began < 60
    compiler.close()


@pytest.mark.parametrize(
    "error, may",
    [
        (Invalid("no value satisfies it"), False),
        (Unsupported("the reference http://example.com/x.json"), False),
        (Unsupported("unevaluatedItems"), True),
        (TooBig("too many states"), True),
    ],
)
def test_only_what_is_right_in_itself_may_go_to_it(error: ConstraintError, may: bool):
    assert compiled.xgrammar_may(compact("{}"), error) is may
    assert not compiled.xgrammar_may(compact("{}", strict=True), error)


@pytest.mark.parametrize(
    "schema", ['{"$ref":"http://example.com/x.json"}', '{"type":"string","minLength":3,"maxLength":2}']
)
def test_what_llguidance_refuses_for_good_is_refused(schema):
    compiler = Compiler(byte_vocabulary(), Options(folder="", seconds=60.0), workers=1)
    with pytest.raises(ConstraintError) as raised:
        compiler.wait(compact(schema))
    assert "xgrammar" not in str(raised.value)
    compiler.close()
