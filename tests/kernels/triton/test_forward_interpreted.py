"""A whole forward on the GPU's kernels, planned on the host, eager and recorded, against the CPU's; interpreted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from branchwork.kernels import table
from branchwork.runtime.execution.driver import PlainDriver, Recorded
from branchwork.runtime.execution.forward import Forward
from branchwork.runtime.execution.memory import allocate
from branchwork.runtime.execution.runner import Runner
from branchwork.runtime.models.registry import load_model
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.sampling.sampler import Sampler
from branchwork.runtime.wire import Shape
from tests.checkpoints import VOCAB, checkpoint

pytestmark = pytest.mark.interpreted

GREEDY = Shape(temperature=0.0)
PAGES = 400


@contextmanager
def gpu() -> Iterator[None]:
    """Kernels are those that a GPU would get."""
    kind = table.kind
    table.implementation.cache_clear()
    table.kind = lambda device_type: "cuda"
    try:
        yield
    finally:
        table.kind = kind
        table.implementation.cache_clear()


class Device(PlainDriver):
    """Recorded work is run again from the buffers that it was recorded with; counts what it is asked for."""

    def __init__(self, cost: int = 0, fails: bool = False) -> None:
        self.cost, self.fails = cost, fails
        self.recorded = self.replayed = 0

    def record(self, body: Callable[[], None], room: int) -> Recorded:
        """See Driver."""
        assert room > 0
        if self.fails:
            raise torch.OutOfMemoryError("none left")
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            body()

        return Recorded(replay, self.cost)


class World:
    """One model's forward twice: on the CPU's kernels, and on the GPU's with or without recording."""

    def __init__(
        self, name: str, size: int, *, kv: torch.dtype = torch.float32, device: Device | None = None, rows: int = 8
    ) -> None:
        self.size = size
        self.notes: list[str] = []
        self.device = device
        plain = load_model(checkpoint(name), dtype="float32")
        self.pools = [allocate(plain.spec, PAGES, size, kv, plain.device, scratch=True) for _ in range(2)]
        self.plain = Forward(plain, self.pools[0])
        with gpu():
            model = load_model(checkpoint(name), dtype="float32")
            self.forward = Forward(
                model, self.pools[1], graphs=device is not None, rows=rows, driver=device, note=self.notes.append
            )

    def begin(self, row: Row) -> None:
        """Compute a row on the CPU's kernels for both: the interpreter takes seconds for a prompt."""
        with torch.inference_mode():
            self.plain.run(Plan(0, (row,)))
        for known, other in zip(self.pools[0].k + self.pools[0].v, self.pools[1].k + self.pools[1].v, strict=True):
            other.copy_(known)

    def compute(self, rows: Sequence[Row], drawn: Tensor | None = None) -> Tensor:
        """Logits of all draws on the GPU's kernels."""
        with gpu(), torch.inference_mode():
            computed = self.forward.run(Plan(0, tuple(rows)), drawn)
            return computed.logits(0, len(computed.wanted.drawing)).clone()

    def check(self, rows: Sequence[Row], close: float = 1e-4) -> None:
        """Both give the same logits."""
        with torch.inference_mode():
            computed = self.plain.run(Plan(0, tuple(rows)))
            exact = computed.logits(0, len(computed.wanted.drawing))
        found = self.compute(rows)
        assert found.shape == exact.shape
        assert ((found - exact).abs().max() / exact.abs().max()).item() < close


class Branches:
    """Requests that begin with the same pages and go on alone. Each `row` is the next ids of one."""

    def __init__(self, size: int, common: int, count: int) -> None:
        self.size = size
        stock = iter(torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).tolist())
        self.trunk = [next(stock) for _ in range(-(-common // size))]
        self.stock = stock
        self.pages = [list(self.trunk[: common // size]) for _ in range(count)]
        self.lengths = [common // size * size] * count

    def row(
        self, branch: int, ids: Sequence[int], after: int = -1, shape: Shape | None = GREEDY, draft: int = 0
    ) -> Row:
        start, pages = self.lengths[branch], self.pages[branch]
        self.lengths[branch] += len(ids)
        while len(pages) * self.size < self.lengths[branch]:
            pages.append(next(self.stock))
        return Row(branch, start, list(ids), pages, shape, start + len(ids) - draft, after=after, draft=draft)

    def prompt(self, length: int) -> Row:
        """The common pages' own ids."""
        ids = [(7 * i + 3) % 300 for i in range(length)]
        return Row(99, 0, ids, self.trunk, GREEDY, position=length)

    def decode(self, seed: int, count: int) -> list[Row]:
        return [self.row(branch, [(seed * 31 + branch * 17) % 300]) for branch in range(count)]


soak = pytest.mark.soak
CASES = [
    pytest.param("llama", 4, torch.float32, True),
    pytest.param("qwen2-window", 16, torch.float32, True, marks=soak),  # layers with a window and layers without
    pytest.param("llama", 4, torch.float32, False, marks=soak),
    pytest.param("llama-head-dim", 16, torch.float32, False, marks=soak),
    pytest.param("qwen2-window", 4, torch.float32, False, marks=soak),
    pytest.param("mistral", 1, torch.float32, True, marks=soak),
    pytest.param("llama", 16, torch.int8, True, marks=soak),
]


@pytest.mark.parametrize("name, size, kv, recorded", CASES)
def test_every_sort_of_step_equals_the_cpus(name: str, size: int, kv: torch.dtype, recorded: bool) -> None:
    """Branches that resume a prefix in chunks, a mixed step, and decoding, which shares the prefix."""
    device = Device() if recorded else None
    world, branches = World(name, size, kv=kv, device=device), Branches(size, 96, 4)
    close = 1e-4 if kv == torch.float32 else 0.02  # a key that rounds otherwise is another integer
    world.begin(branches.prompt(96))
    world.check([branches.row(0, [5, 6, 7]), branches.row(1, [8] * 12)], close)
    world.check([*branches.decode(1, 2), branches.row(2, [9, 9]), branches.row(3, [3], shape=None)], close)
    for seed in range(3):
        world.check(branches.decode(seed, 4), close)
    if device is not None:  # met, recorded and replayed, replayed
        assert (device.recorded, device.replayed) == (1, 2) and not world.notes


@pytest.mark.parametrize(
    "name, size, kv",
    [
        ("qwen2-window", 4, torch.float32),
        pytest.param("llama", 16, torch.float32, marks=soak),
        pytest.param("llama", 1, torch.int8, marks=soak),
    ],
)
def test_a_whole_prompt_equals_the_cpus(name: str, size: int, kv: torch.dtype) -> None:
    world, branches = World(name, size, kv=kv), Branches(size, 16, 1)
    world.check([branches.prompt(13)], 1e-4 if kv == torch.float32 else 0.02)


@pytest.mark.parametrize("common, rows", [(8, 2), pytest.param(96, 4, marks=soak)])  # many that share: parts are merged
def test_recorded_steps_are_equal_to_eager_ones_to_the_bit(common: int, rows: int) -> None:
    device = Device()
    worlds = [World("llama", 4), World("llama", 4, device=device)]
    both = [Branches(4, common, rows) for _ in worlds]
    for world, branches in zip(worlds, both, strict=True):
        world.begin(branches.prompt(common))
    for seed in range(3):
        eager, recorded = (world.compute(x.decode(seed, rows)) for world, x in zip(worlds, both, strict=True))
        assert torch.equal(eager, recorded)
    assert device.replayed == 2


def test_a_batch_smaller_than_its_recording_is_filled_up_without_a_trace() -> None:
    """Replayed with fewer and more rows than it was recorded with; no page but the rows' own and the scratch page is
    written."""
    device = Device()
    world, branches = World("llama", 4, device=device), Branches(4, 8, 4)
    world.begin(branches.prompt(8))
    for count in (3, 4, 3):
        world.check(branches.decode(count, count))
    assert (device.recorded, device.replayed) == (1, 2)
    for one, other in zip(world.pools[0].k, world.pools[1].k, strict=True):
        assert ((one[:PAGES] - other[:PAGES]).abs().max() < 1e-4).item() and other[PAGES].any()


def test_steps_that_verify_drafts_are_recorded_with_those_that_have_as_many_tokens() -> None:
    """All of them are steps of eight tokens, the first with taller tiles."""
    device = Device()
    world, branches = World("llama", 4, device=device), Branches(4, 8, 8)
    world.begin(branches.prompt(8))
    for drafts in ((5, 0), (1, 2, 1), (0, 4, 0), (3, 3), (0,) * 8):
        rows = [branches.row(n, [50 + n, *range(draft)], draft=draft) for n, draft in enumerate(drafts)]
        world.check(rows)
        for n, draft in enumerate(drafts):
            branches.lengths[n] -= draft  # none of them comes true
    assert (device.recorded, device.replayed) == (1, 3)


@pytest.mark.parametrize("recorded", [False, True])
def test_ids_that_nobody_has_read_are_taken_from_the_draws_on_the_device(recorded: bool) -> None:
    worlds = [World("llama", 4, device=Device() if recorded else None) for _ in range(2)]
    both = [Branches(4, 8, 2) for _ in worlds]
    for drawn in ([40, 8, 200, 12], [1, 2, -1, 0]) if recorded else ([40, 8, -1, 12],):
        known, followed = both
        rows = [known.row(0, [max(drawn[2], 0)]), known.row(1, [33])]
        expected = worlds[0].compute(rows)
        rows = [followed.row(0, [0], after=2), followed.row(1, [33])]
        assert torch.equal(worlds[1].compute(rows, torch.tensor(drawn)), expected)


def test_steps_launched_before_anybody_read_the_last_ones_draws_give_the_same_tokens() -> None:
    """As the loop does it: launch a step, read the draws of the one before, sample it. Recorded on the way."""
    world, branches = World("llama", 4, device=Device()), Branches(4, 8, 2)
    with torch.inference_mode():
        plain = Runner(world.plain, Sampler(VOCAB))
        expected = [[21], [34]]
        for _ in range(4):
            rows = [branches.row(n, ids[-1:]) for n, ids in enumerate(expected)]
            for ids, row in zip(expected, plain.launch(Plan(0, tuple(rows))).sample().collect().rows, strict=True):
                ids += row.tokens
    branches, found = Branches(4, 8, 2), [[21], [34]]
    with gpu():
        runner = Runner(world.forward, Sampler(VOCAB))
        flight = runner.launch(Plan(0, (branches.row(0, [21]), branches.row(1, [34])))).sample()
        for step in range(1, 4):
            following = runner.launch(
                Plan(step, (branches.row(0, [0], after=0), branches.row(1, [0], after=1))), flight
            )
            for ids, row in zip(found, flight.collect().rows, strict=True):
                ids += row.tokens
            flight = following.sample()
        for ids, row in zip(found, flight.collect().rows, strict=True):
            ids += row.tokens
    assert found == expected


def test_a_step_that_comes_after_nothing_is_refused() -> None:
    world, branches = World("llama", 4), Branches(4, 8, 1)
    with pytest.raises(ValueError, match="comes after a draw, but no step was before"):
        world.compute([branches.row(0, [0], after=0)])


def test_a_device_that_cannot_record_computes_all_the_same_and_says_so_once() -> None:
    world, branches = World("llama", 4, device=Device(fails=True)), Branches(4, 8, 2)
    for count in (1, 1, 2, 2):
        world.check(branches.decode(count, count))
    assert world.notes == [
        "graphs: 0 sorts of decoding steps are recorded and no more will be: OutOfMemoryError: none left"
    ]


def test_recording_ends_when_its_allowance_is_used_up() -> None:
    device = Device(cost=1 << 40)
    world, branches = World("llama", 4, device=device), Branches(4, 8, 2)
    for count in (1, 1, 2, 2, 1):
        world.check(branches.decode(count, count))
    assert (device.recorded, device.replayed) == (1, 2)  # one row's step goes on being replayed
    assert len(world.notes) == 1 and "1 sorts" in world.notes[0]


def test_batches_beyond_the_ladder_and_rows_that_do_more_than_decode_are_not_recorded() -> None:
    device = Device()
    world, branches = World("llama", 4, device=device, rows=1), Branches(4, 8, 2)
    for seed in range(2):
        world.compute(branches.decode(seed, 2))
        scored = branches.row(0, [5])
        world.compute([Row(0, scored.start, scored.ids, scored.pages, GREEDY, position=1, score_next=(4,))])
        world.compute([branches.row(0, [5], shape=None)])
    assert device.recorded == 0
