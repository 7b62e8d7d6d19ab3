"""GBNF and EBNF: the language of characters that they define, and errors that say where."""

from __future__ import annotations

import random
import re

import pytest

from branchwork.lang.constraint import Grammar, Invalid, Unsupported
from branchwork.runtime.grammar.dialects import _Reader, to_lark
from branchwork.runtime.grammar.emptiness import ask
from branchwork.runtime.grammar.lexemes import _Merging, _written, lark
from branchwork.runtime.grammar.llg import compile_llguidance
from tests.runtime.grammar.vocabularies import SMALL

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws  # a comment
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def takes(text: str, sample: str, syntax: str = "gbnf") -> bool:
    matcher, tokens = compile_llguidance(Grammar(text, syntax), SMALL).start(), list(sample.encode())
    return matcher.accept(tokens) == len(tokens) and matcher.is_accepting


def test_a_json_grammar_in_gbnf() -> None:
    for right in ("{}", '{"a": [1, 2.5e1, "x\\n"], "b": {"c": null }}', '{"é":"\\u00e9"}'):
        assert takes(JSON, right), right
    for wrong in ("[]", '{"a": }', '{"a":1', '{"a":01x}', '{"\x7f":1}'):
        assert not takes(JSON, wrong), wrong


def test_recursion_on_either_side() -> None:
    text = 'root ::= sum\nsum ::= sum "+" term | term\nterm ::= "(" sum ")" | [0-9]+'
    assert takes(text, "1+(2+34)+5") and not takes(text, "1+(2") and not takes(text, "+1")


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ('root ::= word "s"\nword ::= [a-z]+', ("cats", "s", "ss", "cat")),
        ('root ::= "a" "b" "d" | "ab" "c"', ("abd", "abc", "ab")),
        ('root ::= item item\nitem ::= "a" | "ab" | "b"', ("aba", "abb", "ab", "ba", "aab", "abab", "aa")),
        ('root ::= ("a" | "ab")* "abc"?', ("abc", "aababc", "aabab", "ababcabc")),
        ("root ::= [^a-c]{2,3} .", ("xyz", "xyzz", "ayz", "xy", "é京x")),
        ('root ::= ("x" [0-9]*){2} | ""', ("", "x1x", "x", "xx22", "x1x2x3")),
    ],
)
def test_characters_are_not_cut_into_greedy_lexemes(text: str, samples: tuple[str, ...]) -> None:
    rules = {
        'root ::= word "s"\nword ::= [a-z]+': "[a-z]+s",
        'root ::= "a" "b" "d" | "ab" "c"': "abd|abc",
        'root ::= item item\nitem ::= "a" | "ab" | "b"': "(a|ab|b){2}",
        'root ::= ("a" | "ab")* "abc"?': "(a|ab)*(abc)?",
        "root ::= [^a-c]{2,3} .": "[^a-c]{2,3}.",
        'root ::= ("x" [0-9]*){2} | ""': "(x[0-9]*){2}|",
    }
    for sample in samples:
        assert takes(text, sample) == bool(re.fullmatch(rules[text], sample)), sample


def test_w3c_ebnf() -> None:
    text = "Doc ::= Word (Sep Word)* /* words\n and more */\nSep ::= #x20 | ', '\nWord ::= [a-z#x41-#x43]+ '.'?"
    assert takes(text, "abc A., b", "ebnf") and not takes(text, "abc  b", "ebnf")


@pytest.mark.parametrize(
    ("text", "syntax", "position", "why"),
    [
        ('root ::= "a', "gbnf", 9, "string is not closed"),
        ("root ::= [a-z", "gbnf", 9, "class is not closed"),
        ('root ::= ("a"', "gbnf", 9, "parenthesis is not closed"),
        ("root ::= b", "gbnf", 9, "b is used and not defined"),
        ('root ::= "a"\nroot ::= "b"', "gbnf", 13, "defined twice"),
        ('a ::= "a"', "gbnf", 9, "rule named root"),
        (r'root ::= "\q"', "gbnf", 10, "no escape"),
        ('root ::= "a"{3,1}', "gbnf", 12, "at least 3 and at most 1"),
        ("root = a", "gbnf", 0, "a rule was expected"),
        ("root ::= [z-a]", "gbnf", 13, "runs backwards"),
        ("A ::= 'a' - 'b'", "ebnf", 10, "difference"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, syntax: str, position: int, why: str) -> None:
    with pytest.raises((Invalid, Unsupported), match=why) as raised:
        to_lark(text, syntax)
    assert raised.value.position == position


def test_an_unknown_syntax_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="lark, gbnf or ebnf"):
        to_lark("", "bnf")


MERGED = {
    "json": JSON,
    "keywords": 'root ::= kw " " id ";" root | id "=" id ";"\nkw ::= "if" | "in"\nid ::= [a-z]+',
    "blanks": 'root ::= (expr "=" ws term "\\n")+\nexpr ::= term ([-+*/] term)*\n'
    'term ::= [a-z] [a-z0-9_]* ws | [0-9]+ ws | "(" ws expr ")" ws\nws ::= [ \\t\\n]*',
    "right recursion": 'root ::= s ("," s)*\ns ::= "(" root? ")" | [ab]+ ws\nws ::= (" " ws)?',
    "overlap": 'root ::= a b | root "," root\na ::= "a"*\nb ::= "ab" | "b" root "c"',
    "moves": 'root ::= ([1-9] [0-9]? ". " move " " move "\\n")+\nmove ::= [NBKQR]? [a-h] [1-8] "+"?',
}


@pytest.mark.parametrize("name", MERGED)
def test_lexemes_are_put_together_only_where_that_changes_nothing(name: str) -> None:
    rules = _Reader(MERGED[name], False).rules()
    characters = _Merging(rules)
    characters.whole = False
    plain = {rule: characters.part(characters.rules[rule]) for rule in characters.reached("root")}
    merged, single = ask(lark(rules, "root")), ask(_written(characters, plain, "root"))
    assert not merged.is_error() and not single.is_error()
    draw = random.Random(name)
    for _ in range(25):
        left, right, text = merged.deep_copy(), single.deep_copy(), b""
        for _ in range(25):
            allowed = right.compute_bitmask()
            assert left.compute_bitmask()[:32] == allowed[:32] and left.is_accepting() == right.is_accepting(), text
            likely = [b for b in range(256) if allowed[b >> 3] >> (b & 7) & 1 and (b < 128 or draw.random() < 0.1)]
            if not likely:
                break
            byte = draw.choice([b for b in likely if chr(b) in 'ab1 \n{"}:,()=if'] or likely)
            text += bytes((byte,))
            left.consume_tokens([byte])
            right.consume_tokens([byte])


def test_what_is_regular_is_one_lexeme() -> None:
    assert lark(_Reader(MERGED["moves"], False).rules(), "root").count("\nT") == 1
    assert lark(_Reader(JSON, False).rules(), "root").count("\nT") < 12
