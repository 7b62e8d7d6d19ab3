"""Runs a smaller model for guesses: one forward over what it lacks, then one per further guess, for all rows together.

Knows: a model, its KV pool, a sampler. Must not know: requests beyond their rows, who verifies, what a guess is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from branchwork.runtime.execution.inputs import Inputs
from branchwork.runtime.execution.memory import allocate, kv_dtype
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.tokenizer import has_tokenizer, token_bytes
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.step import Step
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.sampling.sampler import Sampler
from branchwork.runtime.speculative.draft_model import Guess, scratch_pages


class DraftModel:
    """A SmallModel: a decoder whose pool has the main model's pages and, behind them, the scratch pages.

    vocab: tokens that the main model may draw; rows of logits beyond them are never looked at.
    """

    def __init__(self, model: Decoder, pages: int, page_size: int, vocab: int, kv: str = "auto") -> None:
        """kv: the pool's type, as Config.kv_dtype. Raises LoadError: memory, when the pages do not fit; kv_dtype."""
        self._model = model
        dtype = kv_dtype(kv, model.dtype, model.device)
        self._pool = allocate(model.spec, pages + scratch_pages(page_size), page_size, dtype, model.device)
        self._inputs = Inputs(page_size, model.device)
        self._sampler = Sampler(min(vocab, model.spec.vocab))

    @torch.inference_mode()
    def guess(self, rows: Sequence[Row], count: int, least: float) -> list[Guess]:
        """See SmallModel."""
        step, _ = self._inputs.build(Plan(0, tuple(rows)))
        hidden = self._model.hidden(step, self._pool)
        found = [Guess([], []) for _ in rows]
        drawing = [r for r, row in enumerate(rows) if row.shape is not None]
        if not drawing:
            return found
        chains = [Chain(rows[r], found[r], least) for r in drawing]
        going = self._draw(hidden, chains)
        if count == 1 or going is None:
            return found
        table, positions = step.page_table, step.kv_len
        if len(drawing) < len(rows):
            table, positions = table[drawing], positions[drawing]
        for following in _steps(table, positions, going, count - 1, self._pool.page_size):
            following.ids.copy_(going)
            going = self._draw(self._model.hidden(following, self._pool), chains)
            if going is None:
                break
        return found

    def _draw(self, hidden: Tensor, chains: Sequence[Chain]) -> Tensor | None:
        """The next token of every chain, int64 [chains]; None when none goes on."""
        logits = self._model.logits(hidden)[:, : self._sampler.vocab]
        chances = logits.softmax(-1)
        if all(chain.greedy for chain in chains):
            ids = chances.argmax(-1)
            drawn, likely = ids.tolist(), chances.amax(-1).tolist()
        else:
            drawn = [draw.token for draw in self._sampler.draw(logits, [chain.row for chain in chains])]
            ids = torch.tensor([max(token, 0) for token in drawn], device=logits.device)
            likely = chances.gather(1, ids[:, None])[:, 0].tolist()
        on = False
        for chain, token, chance in zip(chains, drawn, likely, strict=True):
            on = chain.take(token, chance) or on
        return ids if on else None


def _steps(table: Tensor, positions: Tensor, ids: Tensor, count: int, size: int) -> Iterator[Step]:
    """`count` steps of one token a row, the first at `positions` [rows]; all of them read their ids from one tensor."""
    rows = len(positions)
    cuts = torch.arange(rows + 1, dtype=torch.int32, device=positions.device)
    index, ids = cuts[:-1].long(), ids.clone()
    at = positions.long() + torch.arange(count, device=positions.device)[:, None]  # [count, rows]
    slots = table[index, at // size].long() * size + at % size
    for where, slot, length in zip(at.unbind(), slots.unbind(), (at + 1).int().unbind(), strict=True):
        yield Step(ids, where, cuts, length, table, slot, index)


class Chain:
    """One row's guesses while they are drawn. row: as it is for the next draw."""

    __slots__ = ("_found", "_least", "_on", "_reach", "greedy", "row")

    def __init__(self, row: Row, found: Guess, least: float) -> None:
        shape = row.shape
        assert shape is not None
        self.row = row
        self.greedy = shape.temperature == 0.0 and not row.prompt_history
        self._found = found
        self._least = least
        self._on, self._reach = True, 1.0

    def take(self, token: int, chance: float) -> bool:
        """Add a token; whether the chain goes on."""
        if not self._on:
            return False
        if token < 0 or not chance >= 0.0:  # logits that are not finite: the draft has nothing to say
            self._on = False
            return False
        self._found.ids.append(token)
        self._found.chances.append(chance)
        self._reach *= chance
        self._on = not self.greedy or self._reach >= self._least
        if not self.greedy:
            row = self.row
            history = [*row.answer_history, token] if row.prompt_history else ()
            self.row = msgspec.structs.replace(row, position=row.position + 1, answer_history=history)
        return self._on


def same_vocabulary(main: Path, tokens: list[bytes], draft: Path, vocab: int) -> None:
    """Raises LoadError (draft_model) unless every token of the draft is the same token of the main model.

    tokens: the main model's. vocab: rows of the draft's output. A draft without a tokenizer of its own, as those that
    were made for one model are, must have as many rows as there are tokens.
    """
    if has_tokenizer(draft):
        theirs = token_bytes(draft)
        common = min(len(theirs), len(tokens))
        other = next((n for n in range(common) if theirs[n] != tokens[n]), None)
        surplus = next((n for n in range(common, len(theirs)) if theirs[n]), None)
        if other is None and surplus is None and vocab >= sum(map(bool, tokens)):
            return
        what = (
            f"token {other} is {theirs[other]!r} there and {tokens[other]!r} here"
            if other is not None
            else (f"it has {len(theirs)} tokens, the model {len(tokens)}")
        )
    elif vocab == len(tokens):
        return
    else:
        what = f"it has {vocab} tokens, the model {len(tokens)}"
    raise LoadError(
        "draft_model",
        f"draft_model={draft} has another vocabulary than {main}: {what}; "
        "give a smaller model of the same family, or draft_model='' for none",
    )
