"""Measures what smaller weights and a smaller KV cache cost: perplexity on held-out text, beside the aims.

Knows: the language's public surface, sapling's corpus, the model's tokenizer. Must not know: how anything is quantized.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

import branchwork as bw
from branchwork.runtime.gateway.text import Texts
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.sapling.corpus import MIXTURE

BASE = "bfloat16"
# name -> options of the runtime, and the most by which its perplexity may be above that of BASE
VARIANTS: dict[str, tuple[dict[str, str], float | None]] = {
    "bfloat16": ({"dtype": "bfloat16"}, None),
    "float32": ({"dtype": "float32"}, None),
    "int8": ({"dtype": "bfloat16", "quantize": "int8"}, 0.005),
    "int4": ({"dtype": "bfloat16", "quantize": "int4"}, 0.03),
    "kv-int8": ({"dtype": "bfloat16", "kv_dtype": "int8"}, 0.005),
}


class Document(NamedTuple):
    """A text, and the stretches of it (first byte, after the last) whose tokens count; without any, all of it."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()


class Score(NamedTuple):
    """Over all tokens that count: how many, and the sum of their log-probabilities."""

    tokens: int
    logprob: float

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprob / self.tokens)


@bw.function
def _scored(s: Any, text: str) -> None:
    s += text + bw.gen("end", max_tokens=1, temperature=0, prompt_logprobs=0)


class _Piece(NamedTuple):
    text: str
    special: bool = True  # as in a program's literals: special tokens may stand there by their names


def held_out(samples: int, seed: int = 11) -> list[Document]:
    """Samples of sapling's corpus with names and phrasings held out of its training; what it learns to write counts."""
    draw = random.Random(f"quality {seed}")
    makers = list(MIXTURE.values())
    shares = [later for later, _, _ in makers]
    found: list[Document] = []
    while len(found) < samples:
        (maker,) = draw.choices([maker for _, _, maker in makers], shares)
        text, spans = "", []
        for piece in maker(draw, "held").pieces:
            begin = len(text.encode())
            text += piece.text
            if piece.learn:
                spans.append((begin, len(text.encode())))
        if spans:
            found.append(Document(text, tuple(spans)))
    return found


def windows(text: str, texts: Texts, tokens: int) -> Iterator[Document]:
    """A text in parts of at most `tokens` tokens, cut between words."""
    part, count = "", 0
    for word in re.findall(r"\s*\S+|\s+$", text):
        size = len(texts.encode([_Piece(word)]))
        if part and count + size > tokens:
            yield Document(part)
            part, count = "", 0
        part, count = part + word, count + size
    if part:
        yield Document(part)


def score(runtime: bw.Runtime, texts: Texts, documents: Sequence[Document]) -> Score:
    """Log-probabilities of the documents' tokens, but for each one's first, which has none.

    Raises ValueError when the runtime's tokens are not those of the tokenizer here; ProgramError.
    """
    states = _scored.run_batch([{"text": document.text} for document in documents], backend=runtime)
    tokens, total = 0, 0.0
    for document, state in zip(documents, states):
        found = state.meta("end")["input_token_logprobs"]
        ids = texts.begin(texts.encode([_Piece(document.text)]))
        if [number for _, number, _ in found] != ids[1:]:
            raise ValueError(f"the runtime reads {document.text[:60]!r} as other tokens than its tokenizer here")
        place = _bytes(texts, ids[0]) if ids[:1] != texts.start else 0
        for logprob, number, _ in found:
            if not document.spans or any(begin <= place < end for begin, end in document.spans):
                tokens, total = tokens + 1, total + logprob
            place += _bytes(texts, number)
    return Score(tokens, total)


def _bytes(texts: Texts, number: int) -> int:
    """Bytes of a token, of a special one those of its name."""
    return len(texts.token_bytes[number] or texts.text_of([number]).encode())


def measure(model: str, documents: Sequence[Document], names: Sequence[str], console: Console) -> list[dict[str, Any]]:
    """A row for every variant; one that the runtime refuses has the reason instead of figures."""
    texts = Texts(find_model(model))
    rows: list[dict[str, Any]] = []
    for name in track(names, "scoring", console=console, transient=True):
        options, aim = VARIANTS[name]
        try:
            with bw.Runtime(model, speculative="off", **options) as runtime:
                stats, found = runtime.stats(), score(runtime, texts, documents)
        except bw.RuntimeStartError as error:
            rows.append({"variant": name, "aim": aim, "refused": str(error)})
            continue
        figures = {"perplexity": found.perplexity, "tokens": found.tokens}
        sizes = {"weight_bytes": stats["weight_bytes"], "kv_token_bytes": stats["kv_bytes"] / stats["pages"]}
        rows.append({"variant": name, "aim": aim, **figures, **sizes})
    base = next((row["perplexity"] for row in rows if row["variant"] == BASE and "perplexity" in row), None)
    for row in rows:
        if base is not None and "perplexity" in row:
            row["change"] = row["perplexity"] / base - 1
    return rows


def show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    table = Table("variant", "perplexity", f"against {BASE}", "aim", "weights, MiB", "KV, bytes a token")
    for row in rows:
        aim = "" if row["aim"] is None else f"at most {row['aim']:+.1%}"
        if "refused" in row:
            table.add_row(row["variant"], "refused", "", aim, "", "")
            console.print(f"{row['variant']}: {row['refused']}", markup=False, highlight=False)
            continue
        change = f"{row['change']:+.2%}" if "change" in row else ""
        sizes = f"{row['weight_bytes'] / 2**20:.2f}", f"{row['kv_token_bytes']:.0f}"
        table.add_row(row["variant"], f"{row['perplexity']:.4f}", change, aim, *sizes)
    console.print(table)


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Variants that were refused or are further from BASE than their aim."""
    return [
        row["variant"]
        for row in rows
        if "refused" in row or (row["aim"] is not None and row.get("change", math.inf) > row["aim"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sapling", help="sapling, a directory, a file or a hub name")
    parser.add_argument("--text", type=Path, help="a text to score (default: sapling's held-out samples)")
    parser.add_argument("--samples", type=int, default=300, help="held-out samples")
    parser.add_argument("--window", type=int, default=512, help="tokens of a part of --text")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of the defaults, with commas")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args()
    names = given.variants.split(",")
    if not set(names) <= set(VARIANTS):
        parser.error(f"--variants {given.variants}: some of {', '.join(VARIANTS)} with commas between them")
    documents = (
        list(windows(given.text.read_text("utf-8"), Texts(find_model(given.model)), given.window))
        if given.text
        else held_out(given.samples)
    )
    console = Console()
    rows = measure(given.model, documents, names, console)
    show(console, rows)
    if given.json:
        given.json.write_text(json.dumps({"model": given.model, "rows": rows}, indent=2) + "\n", "utf-8")
    short = missed(rows)
    if short:
        sys.exit(f"not reached: {', '.join(short)}")


if __name__ == "__main__":
    main()
