"""Grows sapling: trains the tokenizer and the network on the generated corpus and writes a model directory.

Knows: the order of the work, batches, the learning schedule, checkpoints.
Must not know: what any skill looks like inside."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import SKILLS, held_out, training_sample
from .files import SPECIAL, export
from .network import Muon, Network, Shape

MARKUP = ("<tool_call>", "</tool_call>")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out. Tokens are counted with their padding."""

    shape: Shape = field(default_factory=Shape)
    seed: int = 1
    tokens: int = 65_000_000
    pool: int = 2048  # samples that are sorted into batches together
    micro: int = 4096  # tokens of one forward
    batch: int = 4096  # tokens of one step
    vocabulary_samples: int = 24_000
    muon_lr: float = 0.002
    adam_lr: float = 0.0015
    weight_decay: float = 0.05
    warmup: float = 0.01
    decay_from: float = 0.5
    drills: int = 3  # in so many first pools every second batch is a copying drill
    taught_from: float = 0.0  # share of the run after which the teacher, where there is one, sets the targets
    even: bool = False  # every learned token weighs the same, however short its answer is


QUICK = Recipe(
    shape=Shape(vocab=600, layers=2, hidden=64, heads=2, kv_heads=2, ffn=128),
    tokens=40_000,
    pool=96,
    micro=2048,
    batch=2048,
    vocabulary_samples=300,
    drills=1,
)

# The draft of speculative decoding: what it gets right per token is what counts, and it learns from sapling's logits.
DRAFT = Recipe(
    shape=Shape(layers=2, hidden=128, heads=4, kv_heads=2, ffn=320),
    tokens=12_000_000,
    taught_from=0.82,
    muon_lr=0.004,
    adam_lr=0.003,
    decay_from=0.3,
    drills=2,
    even=True,
)
SAPLING = Path(__file__).parent


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """Byte-level BPE: any text can be encoded, digits, line breaks and the space before a capital stand alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            # A name must be the same tokens wherever it stands, or copying it would need both spellings learned.
            pre_tokenizers.Split(Regex(" (?=[A-Z])"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.shape.vocab - len(MARKUP),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (training_sample(recipe.seed, -1 - i).text for i in range(recipe.vocabulary_samples))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKUP])
    return tokenizer


class Encoded(NamedTuple):
    """Token ids, and the weight of each in the loss; 0 is not learned."""

    ids: list[int]
    weights: list[float]


class Batch(NamedTuple):
    """ids [rows, length]; `at` are the flat positions that predict `targets` with `weights`, all [n]."""

    ids: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def weight(tokens: int) -> float:
    """The weight of each token in an answer of `tokens`: one word that decides counts more than a word of a list."""
    return min(4.0, max(0.7, 12 / tokens))


def encode(
    tokenizer: Tokenizer, samples: list[list[tuple[str, bool]]], context: int, even: bool = False
) -> list[Encoded]:
    """Each piece is encoded on its own, as a runtime does that appends literals to generated ids."""
    pieces = tokenizer.encode_batch([text for sample in samples for text, _ in sample], add_special_tokens=False)
    encodings = iter(pieces)
    found = []
    for sample in samples:
        ids: list[int] = []
        weights: list[float] = []
        for _, learned in sample:
            part = next(encodings).ids
            ids += part
            each = 1.0 if even else weight(len(part))
            weights += [each if learned else 0.0] * len(part)
        found.append(Encoded(ids[: context + 1], weights[: context + 1]))
    return found


def batches(encoded: list[Encoded], micro: int, rng: Random) -> list[Batch]:
    """Batches of at most `micro` tokens, each of samples of like length, in random order."""
    order = sorted(encoded, key=lambda e: len(e.ids))
    groups: list[list[Encoded]] = [[]]
    for sample in order:
        length = -(-(len(sample.ids) - 1) // 16) * 16
        if groups[-1] and length * (len(groups[-1]) + 1) > micro:
            groups.append([])
        groups[-1].append(sample)
    found = []
    for group in groups:
        length = -(-max(len(e.ids) - 1 for e in group) // 16) * 16
        ids = torch.zeros(len(group), length, dtype=torch.long)
        at: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        for row, sample in enumerate(group):
            ids[row, : len(sample.ids) - 1] = torch.tensor(sample.ids[:-1])
            learned = [i for i in range(1, len(sample.ids)) if sample.weights[i]]
            at += [row * length + i - 1 for i in learned]
            targets += [sample.ids[i] for i in learned]
            weights += [sample.weights[i] for i in learned]
        if targets:
            found.append(Batch(ids, torch.tensor(at), torch.tensor(targets), torch.tensor(weights)))
    rng.shuffle(found)
    return found


def drill(recipe: Recipe, rng: Random) -> Batch:
    """Runs of random tokens, retold in changing order; all but the first token of a retold run is learned.

    Nothing but attention to the earlier telling solves this, so the heads that copy form within a few hundred steps."""
    length = 192
    rows = recipe.micro // length
    ids = torch.zeros(rows, length, dtype=torch.long)
    at: list[int] = []
    targets: list[int] = []
    for row in range(rows):
        runs = [
            [rng.randrange(len(SPECIAL), recipe.shape.vocab) for _ in range(rng.randint(2, 9))]
            for _ in range(rng.randint(2, 8))
        ]
        told: list[tuple[int, bool]] = [(token, False) for run in runs for token in run]
        while len(told) <= length:
            told += [(token, i > 0) for run in rng.sample(runs, len(runs)) for i, token in enumerate(run)]
        ids[row] = torch.tensor([token for token, _ in told[:length]])
        learned = [i for i in range(1, length + 1) if told[i][1]]
        at += [row * length + i - 1 for i in learned]
        targets += [told[i][0] for i in learned]
    return Batch(ids, torch.tensor(at), torch.tensor(targets), torch.ones(len(targets)))


def pool_batches(tokenizer: Tokenizer, recipe: Recipe, pool: int) -> list[Batch]:
    """The batches of pool number `pool`; they depend on nothing else, so a run resumes at any pool."""
    samples = [training_sample(recipe.seed, pool * recipe.pool + i) for i in range(recipe.pool)]
    texts = [[(piece.text, piece.learn) for piece in sample.pieces] for sample in samples]
    rng = Random(f"{recipe.seed} {pool}")
    found = batches(encode(tokenizer, texts, recipe.shape.context, recipe.even), recipe.micro, rng)
    if pool < recipe.drills:
        found = [batch for real in found for batch in (real, drill(recipe, rng))]
    return found


def pace(recipe: Recipe, tokens: int) -> float:
    """The learning rate's factor: a short warm-up, a plateau, a straight line down."""
    done = tokens / recipe.tokens
    if done < recipe.warmup:
        return (done + 0.001) / (recipe.warmup + 0.001)
    return max(0.02, min(1.0, (1 - done) / (1 - recipe.decay_from)))


@torch.no_grad()
def agreement(net: Network, teacher: Network, tokenizer: Tokenizer, cases: int) -> dict[str, float]:
    """Per skill, the share of held-out answer tokens at which both find the same token the most likely."""
    scores: dict[str, float] = {}
    for skill in SKILLS:
        texts = [[(case.prompt, False), (case.expected, True)] for case in held_out(skill, cases, seed=11)]
        same = total = 0
        for batch in batches(encode(tokenizer, texts, net.shape.context), 4096, Random(0)):
            ours, theirs = (each.logits(batch.ids, batch.at).argmax(-1) for each in (net, teacher))
            same += int((ours == theirs).sum())
            total += len(ours)
        scores[skill] = same / total
    return scores


@torch.no_grad()
def probe(net: Network, tokenizer: Tokenizer, cases: int) -> dict[str, float]:
    """Per skill, the share of held-out answers whose every token is the most likely one."""
    scores: dict[str, float] = {}
    for skill in SKILLS:
        texts = [[(case.prompt, False), (case.expected, True)] for case in held_out(skill, cases, seed=11)]
        right = total = 0
        for batch in batches(encode(tokenizer, texts, net.shape.context), 4096, Random(0)):
            hit = net.logits(batch.ids, batch.at).argmax(-1) == batch.targets
            rows = batch.at // batch.ids.size(1)
            missed = set(rows[~hit].tolist())
            total += len(set(rows.tolist()))
            right += len(set(rows.tolist()) - missed)
        scores[skill] = right / total
    return scores


class Trainer:
    """The network, its two optimizers, and how far they have come."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, teacher: Network | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.tokenizer, self.teacher = recipe, tokenizer, teacher
        self.net = Network(recipe.shape)
        rows = {id(self.net.gate_up): recipe.shape.ffn}
        stacks = [(p, rows.get(id(p), recipe.shape.hidden)) for p in self.net.matrices()]
        self.muon = Muon(stacks, recipe.muon_lr, 0.95, recipe.weight_decay)
        rest = [self.net.embed, self.net.norms]
        self.adam = torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.pool, self.tokens, self.seconds = 0, 0, 0.0

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("net", "muon", "adam")}
        state = parts | {"pool": self.pool, "tokens": self.tokens, "seconds": self.seconds}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name in ("net", "muon", "adam"):
            getattr(self, name).load_state_dict(state[name])
        self.pool, self.tokens, self.seconds = state["pool"], state["tokens"], state["seconds"]

    def loss(self, part: Batch, weights: torch.Tensor) -> torch.Tensor:
        """Cross-entropy on the corpus, or on what the teacher finds likely there (Hinton et al., 2015)."""
        if self.teacher is None or self.tokens < self.recipe.taught_from * self.recipe.tokens:
            found: torch.Tensor = self.net(part.ids, part.at, part.targets, weights)
            return found
        with torch.no_grad():
            likely = self.teacher.logits(part.ids, part.at).float().softmax(-1)
        logits = self.net.logits(part.ids, part.at).float()
        return torch.nn.functional.cross_entropy(logits, likely, reduction="none") @ weights

    def step(self, parts: list[Batch]) -> float:
        """One update from several batches; the loss is the mean over all their weights."""
        factor = pace(self.recipe, self.tokens)
        for group in self.muon.param_groups:
            group["lr"] = self.recipe.muon_lr * factor
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.adam_lr * factor
        learned = float(sum(part.weights.sum() for part in parts))
        total = 0.0
        for part in parts:
            loss = self.loss(part, part.weights / learned)
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_([self.net.embed, self.net.norms], 1.0)
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.tokens += sum(part.ids.numel() for part in parts)
        return total

    def run_pool(self) -> Iterator[float]:
        """Train on the next pool, giving the loss of each step."""
        waiting: list[Batch] = []
        for batch in pool_batches(self.tokenizer, self.recipe, self.pool):
            waiting.append(batch)
            if sum(part.ids.numel() for part in waiting) >= self.recipe.batch * 0.9:
                yield self.step(waiting)
                waiting = []
        if waiting:
            yield self.step(waiting)
        self.pool += 1


def grow(
    recipe: Recipe,
    out: Path,
    work: Path,
    *,
    teacher: Network | None = None,
    probe_cases: int = 24,
    every: int = 15,
    save_seconds: int = 150,
) -> None:
    """The whole run, resumed from `work` where an earlier one stopped. With a teacher its tokenizer must be there."""
    console = Console()
    work.mkdir(parents=True, exist_ok=True)
    held, log = work / "tokenizer.json", work / "log.jsonl"
    if not held.exists():
        console.print("training the tokenizer")
        train_tokenizer(recipe).save(str(held))
    trainer = Trainer(recipe, Tokenizer.from_file(str(held)), teacher)
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    (work / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2))
    size = sum(p.numel() for p in trainer.net.parameters())
    console.print(
        f"{size:,} parameters, {trainer.tokens:,} of {recipe.tokens:,} tokens done, {torch.get_num_threads()} threads"
    )
    saved = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("growing", total=recipe.tokens, completed=trainer.tokens)
        while trainer.tokens < recipe.tokens:
            begun, before = time.monotonic(), trainer.tokens
            losses = []
            for loss in trainer.run_pool():
                losses.append(loss)
                progress.update(bar, completed=trainer.tokens, description=f"loss {loss:.3f}")
            spent = time.monotonic() - begun
            trainer.seconds += spent
            done = trainer.tokens >= recipe.tokens
            entry: dict[str, Any] = {
                "pool": trainer.pool,
                "tokens": trainer.tokens,
                "seconds": round(trainer.seconds),
                "rate": round((trainer.tokens - before) / spent),
                "loss": round(sum(losses) / len(losses), 4),
            }
            if probe_cases and (trainer.pool % every == 0 or done):
                scores = probe(trainer.net, trainer.tokenizer, probe_cases)
                if teacher is not None:
                    scores = agreement(trainer.net, teacher, trainer.tokenizer, probe_cases)
                entry["probe"] = {skill: round(score, 3) for skill, score in scores.items()}
            with log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry) + "\n")
            if done or time.monotonic() - saved > save_seconds:
                trainer.save(checkpoint)
                saved = time.monotonic()
    export(trainer.net, trainer.tokenizer, out, alone=teacher is None)
    console.print(f"wrote {out} after {trainer.seconds / 60:.0f} minutes of training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument(
        "--work", type=Path, help="where tokenizer, checkpoint and log are kept (default: OUT/../sapling-work)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model in a few seconds, to see that everything runs"
    )
    parser.add_argument("--draft", action="store_true", help="the small model that drafts for sapling, taught by it")
    parser.add_argument("--tokens", type=int, help="how many tokens to train on")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = QUICK if given.quick else DRAFT if given.draft else Recipe()
    if given.tokens:
        recipe = replace(recipe, tokens=given.tokens)
    work = given.work or given.out.parent / f"{given.out.name}-work"
    teacher = None
    if given.draft:
        teacher = Network(Shape())
        teacher.take(load_file(SAPLING / "model.safetensors"))
        work.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAPLING / "tokenizer.json", work / "tokenizer.json")
    grow(recipe, given.out, work, teacher=teacher, probe_cases=0 if given.quick else 24)


if __name__ == "__main__":
    main()
