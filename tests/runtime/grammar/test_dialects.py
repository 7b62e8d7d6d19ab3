"""GBNF and EBNF: the language of characters that they define, and errors that say where."""

from __future__ import annotations

import re

import pytest

from branchwork.lang.constraint import Grammar, Invalid, Unsupported
from branchwork.runtime.grammar.dialects import to_lark
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
