"""The half of compiling that needs no vocabulary: from a constraint to a byte DFA or to llguidance's grammar text.

Knows: constraints, which engine suits which. Must not know: token ids, processes, caches. Runs in a worker
(worker.py) under limits of time and memory, since regexes and schemas can be made to take any amount of either.
"""

from __future__ import annotations

import json

import msgspec

from branchwork.lang.constraint import (
    Capture,
    Constraint,
    ConstraintError,
    Grammar,
    Invalid,
    JsonSchema,
    Regex,
    Tagged,
    TooBig,
    Unsupported,
    capture_names,
    walk,
)

_SHORT = 200  # atoms of a regex whose automaton must be small, or it grows exponentially: no compiler will manage it
_FLAT_LIMIT = 20_000  # characters of a flat schema's regex


class Options(msgspec.Struct, frozen=True):
    """Limits and choices of compiling. Memory and sizes in bytes.

    backend: "auto" (facts decide), or one of dfa | llguidance | xgrammar to have no other. dfa_seconds: for building a
    DFA, past them llguidance takes over; seconds: for that. memory: that a worker may take on top of what it starts
    with. states: of a DFA. nfa: atoms times repeats of a regex, past them it is not tried as a DFA. mask_bytes: masks
    that DFAs keep. kept: grammars kept in memory. folder: of compiled grammars that outlive the process, "" for none,
    "default" for the user's cache folder; folder_bytes: it may hold.
    """

    backend: str = "auto"
    dfa_seconds: float = 1.0
    seconds: float = 10.0
    memory: int = 1 << 30
    states: int = 50_000
    nfa: int = 3_000
    mask_bytes: int = 64 << 20
    kept: int = 256 << 20
    folder: str = "default"
    folder_bytes: int = 512 << 20


class Tokens(msgspec.Struct, frozen=True, array_like=True):
    """A vocabulary on its way to a worker: all tokens' bytes in a row, their lengths (int32), its end tokens."""

    joined: bytes
    lengths: bytes
    eos: tuple[int, ...]


class Job(msgspec.Struct, frozen=True, array_like=True):
    """stage: dfa | llguidance | xgrammar | leaves (the tables by which captures are followed). then: the stage that
    follows at once, with an answer of its own, where the first declines: it costs no second way to the worker.
    tokens: for xgrammar, whose compiler wants the vocabulary."""

    stage: str
    constraint: Constraint
    options: Options
    then: str = ""
    tokens: Tokens | None = None


class DfaRecipe(msgspec.Struct, frozen=True, tag="dfa"):
    table: bytes
    leaves: dict[bytes, bytes] = {}


class LlgRecipe(msgspec.Struct, frozen=True, tag="llguidance"):
    """assembly: as llg.encode_assembly has it."""

    assembly: bytes
    leaves: dict[bytes, bytes] = {}


class XgrRecipe(msgspec.Struct, frozen=True, tag="xgrammar"):
    """compiled: as xgr.prepare has it, for one vocabulary only."""

    compiled: bytes
    leaves: dict[bytes, bytes] = {}


class LeafTables(msgspec.Struct, frozen=True, tag="leaves"):
    """Tables by `leaf_key`; leaves that none could be made for are absent."""

    tables: dict[bytes, bytes]


class Declined(msgspec.Struct, frozen=True, tag="declined"):
    """This stage is not for this constraint; the next may be. late: a machine less busy might say otherwise."""

    reason: str
    late: bool = False


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """A ConstraintError on its way between processes."""

    code: str
    message: str
    position: int = -1
    construct: str = ""
    hint: str = ""


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something here is wrong, not the constraint: the traceback."""

    traceback: str


Recipe = DfaRecipe | LlgRecipe | XgrRecipe
Answer = DfaRecipe | LlgRecipe | XgrRecipe | LeafTables | Declined | Refusal | Fault


def refusal(error: ConstraintError) -> Refusal:
    if isinstance(error, Unsupported):
        return Refusal(error.code, str(error), error.position, error.construct, error.hint)
    return Refusal(error.code, str(error), error.position if isinstance(error, Invalid) else -1)


def as_error(refusal: Refusal) -> ConstraintError:
    if refusal.code == Unsupported.code:
        return Unsupported(refusal.construct, refusal.position, refusal.hint)
    if refusal.code == Invalid.code:
        return Invalid(refusal.message, refusal.position)
    return (TooBig if refusal.code == TooBig.code else ConstraintError)(refusal.message)


def goes_on(answer: object) -> bool:
    """Whether the next stage is to be tried after this answer of the first."""
    return isinstance(answer, Declined) or (isinstance(answer, Refusal) and answer.code == TooBig.code)


def leaf_key(leaf: Constraint) -> bytes:
    return msgspec.msgpack.encode(leaf)


def may_be_regular(constraint: Constraint) -> bool:
    """Whether it is worth asking for a DFA: no part is beyond regular, a schema stands alone."""
    if isinstance(constraint, JsonSchema):
        return True
    return not any(isinstance(part, JsonSchema | Grammar | Tagged) for part in walk(constraint))


def needs_tables(constraint: Constraint) -> bool:
    """Whether following its captures takes tables."""
    return follows_parts(constraint) and any(isinstance(part, Regex | JsonSchema) for part in walk(constraint))


def follows_parts(constraint: Constraint) -> bool:
    """Whether it has captures of which not all are simply the whole text."""
    while isinstance(constraint, Capture):
        constraint = constraint.part
    return bool(capture_names(constraint))


def prepare(job: Job) -> Answer:
    """Do one stage. Takes any amount of time and memory: see that it is bounded."""
    try:
        if job.stage == "dfa":
            return _dfa(job.constraint, job.options)
        if job.stage == "llguidance":
            return _llguidance(job.constraint)
        if job.stage == "xgrammar":
            from branchwork.runtime.grammar import xgr

            assert job.tokens is not None
            return XgrRecipe(xgr.prepare(job.constraint, job.tokens.joined, job.tokens.lengths, job.tokens.eos))
        return LeafTables(_leaf_tables(job.constraint, job.options))
    except ConstraintError as error:
        return refusal(error)


def _dfa(constraint: Constraint, options: Options) -> Answer:
    from branchwork.runtime.grammar import dfa, frontend

    if isinstance(constraint, JsonSchema):
        pattern = _flat(constraint)
        if pattern is None:
            return Declined("the schema is not flat and small")
        return DfaRecipe(frontend.table(pattern, states=options.states, limit=options.nfa).to_bytes())
    regular = frontend.regular(constraint, options.nfa)
    if regular is None:
        return Declined("a part of it is not regular")
    if regular.fsm is not None and len(regular.fsm) <= options.states:
        return DfaRecipe(regular.fsm.to_bytes())
    if regular.size > options.nfa:
        return Declined(
            f"its regex has {regular.size:,} atoms, counted with their repeats; a DFA may have {options.nfa:,}"
        )
    if regular.rust and regular.fsm is None and regular.size <= _SHORT:
        return Declined(f"its automaton is out of proportion to the {regular.size:,} atoms of its regex")
    return DfaRecipe(dfa.build(regular.pattern, states=options.states).to_bytes())


def _flat(constraint: JsonSchema) -> str | None:
    """The exact regex of a flat schema whose DFA will be small, else None."""
    from branchwork.runtime.grammar.flat import flat_regex

    schema = json.loads(constraint.schema)
    if not isinstance(schema, dict):
        return None
    pattern = flat_regex(schema, constraint.whitespace)
    return pattern if pattern is not None and len(pattern) <= _FLAT_LIMIT else None


def _llguidance(constraint: Constraint) -> Answer:
    """Assemble, and try it over the vocabulary of single bytes: what blows up does so here, under the limits."""
    from branchwork.runtime.grammar import llg
    from branchwork.runtime.grammar.assemble import assemble
    from branchwork.runtime.grammar.leaves import byte_vocabulary

    strict = any(isinstance(part, JsonSchema) and part.strict for part in walk(constraint))
    assembly = assemble(constraint, strict=strict)
    llg.LlgGrammar(assembly, byte_vocabulary())
    return LlgRecipe(llg.encode_assembly(assembly))


def _leaf_tables(constraint: Constraint, options: Options) -> dict[bytes, bytes]:
    from branchwork.runtime.grammar import dfa, frontend

    tables: dict[bytes, bytes] = {}
    for leaf in walk(constraint):
        name = leaf_key(leaf)
        if name in tables:
            continue
        if isinstance(leaf, JsonSchema):
            # Objects and arrays end by themselves; where a number or a word ends only the schema may know.
            schema = json.loads(leaf.schema)
            alone = isinstance(schema, dict) and schema.get("type") in ("object", "array", "string")
            pattern = None if alone else _flat(leaf)
            if pattern is not None:
                tables[name] = frontend.table(pattern, states=options.states, limit=options.nfa).to_bytes()
        elif isinstance(leaf, Regex):
            regular = frontend.regular(leaf, options.nfa)
            if regular is None or (regular.fsm is None and regular.size > options.nfa):
                continue
            table = regular.fsm if regular.fsm is not None else dfa.build(regular.pattern, states=options.states)
            tables[name] = table.to_bytes()
    return tables
