"""Every message between the gateway and an engine: ids and bytes, one msgpack frame each, in order.

Knows: token ids, sampling numbers, constraints as they were written. Must not know: nodes, tensors, how a constraint
is enforced.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from branchwork.lang.constraint import Constraint


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """How a row's next token is drawn from its logits. `seed` is always set: draws depend on (seed, position) alone."""

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    bias: tuple[tuple[int, float], ...] = ()  # per token id, what is added to its logit


class Stops(msgspec.Struct, frozen=True, array_like=True):
    """When an answer ends. strings and regexes are matched on the answer's bytes, ids on its tokens.

    skip: first bytes of the answer in which nothing is matched, since they belong to the prompt (token healing).
    """

    max_tokens: int
    min_tokens: int = 0
    strings: tuple[bytes, ...] = ()
    regexes: tuple[bytes, ...] = ()
    ids: tuple[int, ...] = ()  # stop_token_ids and, unless ignore_eos, the model's EOS ids
    skip: int = 0


# --- gateway to engine


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Generate after `ids` (int32, little-endian, packed: the whole exact transcript)."""

    id: int
    ids: bytes
    shape: Shape
    stops: Stops
    logprobs: int = -1  # -1 none, k >= 0: chosen token's and the top k of every new token
    prompt_logprobs: int = -1  # the same for the prompt's tokens from index logprob_start on
    logprob_start: int = 0
    priority: int = 0  # higher first
    stream: bool = False  # send Tokens as they come; otherwise everything is in Finished
    constraint: Constraint | None = None  # what the whole answer must look like
    jump: str = "on"  # forced text: on (appended unasked) | exact (proposed, the model decides) | off
    fanout: int = 0  # branches that begin from this answer as soon as it is there
    speculative: bool = True  # tokens may be guessed ahead


class Score(msgspec.Struct, frozen=True, tag="score"):
    """Log-probabilities of each option's ids after the common `ids`; all options ride in one forward where they fit."""

    id: int
    ids: bytes  # common prefix, at least one token
    options: tuple[bytes, ...]  # each at least one token, int32 packed
    unconditional: bool = False  # also score every option after `neutral` alone
    neutral: bytes = b""  # at least one token when unconditional
    priority: int = 0


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """One vector that stands for `ids` (int32, little-endian, packed): of the model's last normed hidden states.

    pooling: the state of the first token, that of the last one, or the mean of all. normalize: scaled to length 1.
    """

    id: int
    ids: bytes
    pooling: Literal["first", "last", "mean"] = "mean"
    normalize: bool = True
    priority: int = 0


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    id: int


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """stats, flush_cache or check, answered by Answer with the same number; tree, answered with a tree in it too."""

    number: int
    what: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the engine process."""


ToEngine = Submit | Score | Embed | Cancel | Ask | Stop

# --- engine to gateway


class TopToken(msgspec.Struct, frozen=True, array_like=True):
    id: int
    logprob: float


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """One token's log-probability under the unshaped distribution, and the most likely alternatives."""

    id: int
    logprob: float
    top: tuple[TopToken, ...] = ()


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one request. Never preempted: reused + computed = prompt + answer - 1; less when the answer ends
    with tokens that its constraint forced, which nobody has to compute. Times are seconds after the request's arrival
    (once its grammar was compiled): when it was first planned, when its first token was drawn, when it ended.
    forwards: steps that drew for it. drafts: per source of guesses (lookup, grammar), tokens guessed and guesses kept.
    """

    prompt: int
    reused: int  # prompt tokens whose KV was in the tree when the request started
    computed: int  # tokens run through the model for this request, prompt and answer
    diverged: int  # index of the first prompt token that was not in the tree (= prompt when all were)
    preempted: int = 0
    queued: float = 0.0
    first: float = 0.0
    total: float = 0.0
    forwards: int = 0
    drafts: tuple[tuple[str, int, int], ...] = ()


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """New tokens of request `id`, in order; scores has one entry a token when logprobs were asked for.

    Tokens that may become part of a stop string are held back until they cannot. closed: captures of the constraint
    whose extent is certain by now, as (name, first byte, byte after the last) of the answer.
    """

    id: int
    ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    closed: tuple[tuple[str, int, int], ...] = ()


class Enforced(msgspec.Struct, frozen=True, array_like=True):
    """How a constraint was kept. backend: which engine. approximations: what it enforces otherwise than written.

    loose: the text may break the constraint, so it has to be validated. complete: the constraint allowed the answer to
    end where it did. forced: answer tokens that it forced and that were written so. seconds: of compiling.
    """

    backend: str
    approximations: tuple[str, ...] = ()
    loose: bool = False
    complete: bool = False
    forced: int = 0
    seconds: float = 0.0


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """Request `id` ended. `ids`: last tokens not yet sent. reason: stop | eos | length | cancelled.

    The answer is the first `length` bytes of all its tokens' bytes (stop text cut off); kept: how many of the tokens
    stay in the transcript as they are (the first `kept` tokens end at or before byte `length`). closed: all captures.
    forced: the tokens that the constraint forced, as ranges (first, after the last). accepted: the tokens that were
    guessed and came true, as (first, after the last, source).
    """

    id: int
    ids: tuple[int, ...]
    scores: tuple[TokenScore, ...]
    reason: str
    matched: bytes  # the stop string, regex match or b""
    length: int
    kept: int
    usage: Usage
    prompt_scores: tuple[TokenScore, ...] = ()
    closed: tuple[tuple[str, int, int], ...] = ()
    enforced: Enforced | None = None
    forced: tuple[tuple[int, int], ...] = ()
    accepted: tuple[tuple[int, int, str], ...] = ()


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """Per option the log-probability of each of its tokens; unconditional: the same after `neutral` alone."""

    id: int
    options: tuple[tuple[TokenScore, ...], ...]
    unconditional: tuple[tuple[TokenScore, ...], ...]
    usage: Usage


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The vector of an Embed: float32, little-endian, packed."""

    id: int
    vector: bytes
    usage: Usage


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Request `id` cannot be served: code (context_length, queue_full, bad_request, unsupported, engine_error,
    no_token, no_vector, grammar_error, or the code of a ConstraintError), and the figure."""

    id: int
    code: str
    message: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """What the engine serves. quantization: the weights' kind where they are not kept in `dtype`. Sizes are bytes.

    in_layers: parameters that a token is multiplied with, without embedding and head. read_bytes: of the weights that
    a forward of one token reads, so without an embedding that is only looked up and without idle experts. generates:
    whether it writes text; one that does not serves Embed alone, and has no KV.
    """

    pages: int
    page_size: int
    context: int
    device: str
    family: str
    vocab: int
    quantization: str = ""
    weight_bytes: int = 0
    kv_bytes: int = 0  # of the whole pool
    dtype: str = ""
    threads: int = 1
    parameters: int = 0
    in_layers: int = 0
    read_bytes: int = 0
    generates: bool = True


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    stage: str
    fraction: float = 0.0


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """The engine could not start or cannot go on; it ends after this message."""

    code: str
    message: str


class TreeNode(msgspec.Struct, frozen=True, array_like=True):
    """A run of tokens in the radix tree. parent: its index among the nodes told, before the node's own; -1: the root.

    locks: leases that go through it; children: all of them, told or not; idle: uses of the tree since its last own one;
    head: the run's first ids, int32 packed.
    """

    parent: int
    tokens: int
    pages: int
    locks: int
    children: int
    idle: int
    head: bytes


class Tree(msgspec.Struct, frozen=True):
    """The radix tree, or the part of it that was used last. total: nodes that it has."""

    total: int
    nodes: tuple[TreeNode, ...]


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    number: int
    value: dict[str, float | int | str]
    tree: Tree | None = None


FromEngine = Tokens | Finished | Scored | Embedded | Failed | Ready | Loading | Broken | Answer
Event = Tokens | Finished | Scored | Embedded | Failed

_ENCODER = msgspec.msgpack.Encoder()
_TO_ENGINE: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(list[ToEngine])
_FROM_ENGINE: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(list[FromEngine])


def encode(messages: list[ToEngine] | list[FromEngine]) -> bytes:
    """One frame for several messages: a step's events leave together."""
    return _ENCODER.encode(messages)


def decode_to_engine(frame: bytes) -> list[ToEngine]:
    return _TO_ENGINE.decode(frame)


def decode_from_engine(frame: bytes) -> list[FromEngine]:
    return _FROM_ENGINE.decode(frame)
