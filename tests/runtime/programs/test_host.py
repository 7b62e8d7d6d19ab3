"""The host against a scripted engine: transcripts stay token-exact, everything under way can be stopped or replayed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from branchwork.lang import protocol
from branchwork.lang.ir import Fork, Gen, Laid, Select, Text
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import ChatFrames
from branchwork.runtime import wire
from branchwork.runtime.gateway.text import Decoder
from branchwork.runtime.programs.host import Host

USAGE = wire.Usage(prompt=1, reused=0, computed=1, diverged=0)


class ByteTexts:
    """A tokenizer whose tokens are bytes; token 256 is the end."""

    token_bytes = [bytes([b]) for b in range(256)] + [b""]
    neutral = 256
    encoded = 0

    def begin(self, ids: list[int]) -> list[int]:
        return ids

    def encode(self, pieces: Sequence[Any]) -> list[int]:
        return list("".join(piece.text for piece in pieces).encode())

    def decoder(self) -> Decoder:
        return Decoder(self.token_bytes)

    def extends(self, text: str) -> bool:
        return any(token.startswith(text.encode()) and len(token) > len(text.encode()) for token in self.token_bytes)

    def compatible(self, text: str) -> list[int]:
        return [n for n, token in enumerate(self.token_bytes) if token and text.encode().startswith(token)]

    def text_of(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", "replace")


class Bench:
    """A host with its two neighbours recorded."""

    def __init__(self, max_branches: int = 100) -> None:
        self.sent: list[wire.ToEngine] = []
        self.emitted: list[protocol.GatewayMessage] = []
        self.texts = ByteTexts()
        self.host = Host(
            self.texts, ChatFrames(), eos=(256,), max_branches=max_branches, emit=lambda _, m: self.emitted.append(m)
        )
        self.host.attach(self.sent.append, 64)
        self._node = 0

    def lay(self, *nodes: Any, branch: int = 0) -> None:
        laid = []
        for node in nodes:
            self._node += 1
            laid.append(Laid(self._node, node))
        self.host.feed(b"c", 1, branch, tuple(laid))

    def submits(self) -> list[wire.Submit]:
        return [message for message in self.sent if isinstance(message, wire.Submit)]

    def finish(self, submit: wire.Submit, text: bytes, kept: int | None = None, length: int | None = None) -> None:
        ids = tuple(text)
        kept = len(ids) if kept is None else kept
        length = len(ids) if length is None else length
        self.host.on_messages([wire.Finished(submit.id, ids, (), "length", b"", length, kept, USAGE)])

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.emitted if isinstance(message, kind)]


def gen(name: str, **knobs: Any) -> Gen:
    return Gen(name, {}, SamplingParams(**knobs))


def ids_of(submit: wire.Submit) -> bytes:
    return bytes(array("i", submit.ids).tolist())


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.host.open(b"c", 1, False)
    return made


def test_a_second_gen_continues_on_the_exact_ids_of_the_first(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x"), Text("cd"), gen("y"))
    bench.finish(bench.submits()[0], b"12")
    assert ids_of(bench.submits()[1]) == b"ab12cd"
    assert bench.of(protocol.Done)[0].values == ("12",)


def test_a_stop_inside_a_token_leaves_the_rest_of_it_as_text(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x"), gen("y"))
    bench.finish(bench.submits()[0], b"123", kept=1, length=2)
    assert bench.of(protocol.Done)[0].values == ("12",)
    assert ids_of(bench.submits()[1]) == b"ab12"


def test_children_start_from_the_transcript_at_the_fork(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x"), Text("c"), Fork((1, 2)), Text("!"), gen("z"))
    bench.finish(bench.submits()[0], b"1")
    bench.lay(Text("d"), gen("y"), branch=1)
    bench.lay(Text("e"), gen("y"), branch=2)
    assert [ids_of(submit) for submit in bench.submits()[1:]] == [b"ab1c!", b"ab1cd", b"ab1ce"]


def test_samples_differ_in_seed_and_share_the_prompt(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x", n=3, seed=5))
    submits = bench.submits()
    assert len({submit.shape.seed for submit in submits}) == 3 and len({submit.ids for submit in submits}) == 1
    for submit, text in zip(reversed(submits), (b"3", b"2", b"1")):
        bench.finish(submit, text)
    assert bench.of(protocol.Done)[0].values == ("1", "2", "3")


def test_a_select_is_scored_behind_what_its_choices_share(bench: Bench) -> None:
    bench.lay(Text("ab"), Select("x", ("cat", "category")), Text("!"), gen("y"))
    score = next(message for message in bench.sent if isinstance(message, wire.Score))
    assert bytes(array("i", score.ids).tolist()) == b"abca"
    assert [bytes(array("i", option).tolist()) for option in score.options] == [b"t", b"tegory"]
    low, high = wire.TokenScore(116, -2.0), wire.TokenScore(116, -0.5)
    bench.host.on_messages([wire.Scored(score.id, ((low,), (high,) * 6), (), USAGE)])
    assert bench.of(protocol.Done)[0].values == ("category",)
    assert ids_of(bench.submits()[0]) == b"abcategory!"


def test_everything_under_way_comes_again_after_a_restart(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x"))
    (first,) = bench.submits()
    bench.host.on_messages([wire.Tokens(first.id, (49,))])
    assert bench.host.restart() == [first]
    bench.finish(first, b"12")
    assert bench.of(protocol.Done)[0].values == ("12",)


def test_a_replayed_stream_is_not_shown_twice() -> None:
    bench = Bench()
    bench.host.open(b"c", 1, True)
    bench.lay(Text("ab"), gen("x"))
    (first,) = bench.submits()
    bench.host.on_messages([wire.Tokens(first.id, (49, 50))])
    bench.host.restart()
    bench.host.on_messages([wire.Tokens(first.id, (49, 50, 51))])
    bench.finish(first, b"4", kept=1, length=4)
    assert "".join(delta.text for delta in bench.of(protocol.Delta)) == "1234"


@pytest.mark.parametrize("way", ["cancel", "close", "drop"])
def test_leaving_cancels_in_the_engine(bench: Bench, way: str) -> None:
    bench.lay(Text("ab"), gen("x", n=2))
    numbers = {submit.id for submit in bench.submits()}
    {
        "cancel": lambda: bench.host.cancel(b"c", 1, None),
        "close": lambda: bench.host.close(b"c", 1),
        "drop": lambda: bench.host.drop(b"c"),
    }[way]()
    assert {message.id for message in bench.sent if isinstance(message, wire.Cancel)} == numbers


def test_one_failed_sample_ends_the_gen_and_its_siblings(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x", n=2), Text("more"))
    first, second = bench.submits()
    bench.host.on_messages([wire.Failed(first.id, "context_length", "too long")])
    assert [failed.code for failed in bench.of(protocol.Failed)] == ["context_length"]
    assert wire.Cancel(second.id) in bench.sent


@pytest.mark.parametrize(("text", "code"), [("", "empty_prompt"), ("x" * 64, "context_length")])
def test_a_prompt_that_cannot_be_continued_fails_with_a_code(bench: Bench, text: str, code: str) -> None:
    bench.lay(Text(text), gen("x"))
    assert [failed.code for failed in bench.of(protocol.Failed)] == [code]


def test_too_many_branches_is_refused_with_the_figure() -> None:
    bench = Bench(max_branches=4)
    bench.host.open(b"c", 1, False)
    bench.lay(Text("ab"), Fork((1, 2, 3, 4)))
    (failed,) = bench.of(protocol.Failed)
    assert failed.code == "too_many_branches" and "5 branches" in failed.message and "4" in failed.message


def test_every_node_is_credited_once(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x"), Text("cd"))
    bench.finish(bench.submits()[0], b"12")
    assert sum(credit.nodes for credit in bench.of(protocol.Credit)) == 3
    bench.lay(Text("ef"), gen("y"))
    bench.host.close(b"c", 1)
    assert sum(credit.nodes for credit in bench.of(protocol.Credit)) == 5
