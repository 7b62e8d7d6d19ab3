"""Claims about benchmarks/gpu.py, made small on a CPU: what it counts, what it reports, and that nothing stops it.

Knows: the script's parts. Must not know: how quick anything is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from branchwork.kernels.triton import attention_plan, tuning

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

import gpu
import gpu_cases
import gpu_cases_attention
import gpu_engine
import gpu_peers
import gpu_processes
from gpu_case import Aim, Case, different, distance, normal
from gpu_cases_attention import Shape as attention_shape
from gpu_parts import kernels
from gpu_processes import Part, apart, here
from gpu_report import Figure, line, write
from gpu_setting import COPY, MATMUL, Setting
from gpu_timing import Rooflines

CPU = torch.device("cpu")
KNOWN = {COPY: 1e10, MATMUL: 1e11}


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting("cpu", True, KNOWN, 0.01, tmp_path)


@pytest.mark.interpreted
def test_the_suite_runs_small_and_every_kernel_agrees_with_its_definition(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert gpu.main(["--tiny", "--only", "kernels,numerics", "--json", str(file)]) == 0
    said = json.loads(file.read_text(encoding="utf-8"))
    assert said["about"]["parts"] == ["environment", "numerics", "kernels"]
    agreed = [figure for figure in said["figures"] if figure["part"] == "numerics"]
    assert len(agreed) == len(gpu_cases.tiny()) and all(figure["reached"] for figure in agreed)
    timed = {figure["name"] for figure in said["figures"] if figure["part"] == "kernels"}
    assert {case.name for case in gpu_cases.tiny()} <= timed


def _wrong(name: str) -> Case:
    """Our call gives one more than the definition."""
    return Case(name, partial(normal, dtype=torch.float32), lambda x: x + 1, lambda x: x, lambda item: 8.0)


@pytest.fixture
def two_cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that raises, then one that is wrong."""

    def broken(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        raise ValueError("no such shape")

    def make(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return torch.ones(3)

    cases = [_wrong("raises")._replace(make=broken), _wrong("differs")._replace(make=make)]
    monkeypatch.setattr(gpu_cases, "tiny", lambda: cases)
    yield


@pytest.mark.interpreted
def test_a_wrong_kernel_fails_the_run_and_the_others_still_run(
    two_cases: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    assert gpu.main(["--tiny", "--only", "numerics", "--json", str(file)]) == 1
    raised, differs = json.loads(file.read_text(encoding="utf-8"))["figures"][-2:]
    assert raised["fault"] == "ValueError: no such shape"
    assert differs["reached"] is False and differs["value"] > 0.4
    assert "no such shape" in capsys.readouterr().out


def test_unknown_parts_and_a_missing_gpu_are_refused() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--only", "fft"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main([])


def test_every_op_with_launch_parameters_is_timed_at_the_shape_of_a_real_model() -> None:
    used = {row for case in gpu_cases.timed() for row in case.rows}
    left = {op for op in tuning.rows("default") if not op.endswith("f")}  # attention of float32 serves no real model
    assert used <= left
    assert left - used == {"attend.64x256", "penalise", "rope"}  # correct, see the edges; none is on a decode's path
    assert len({case.name for case in gpu_cases.timed() + gpu_cases.edges()}) == len(
        gpu_cases.timed() + gpu_cases.edges()
    )


def test_the_aims_are_those_that_were_set() -> None:
    aims = {case.name: case.aims for case in gpu_cases.timed() if case.aims}
    assert aims == {
        "decode 64 x 8k": (Aim("roofline", 0.85),),
        "extend 8k": (Aim("roofline", 0.6), Aim("FlexAttention", 0.9)),
        "shared prefix, 128 x (16k + 256)": (Aim("plain paged", 8.0),),
        "sample 256 x 128k, top-p": (Aim("microseconds", 150.0),),
    }
    for case in gpu_cases.timed():
        assert {aim.what for aim in case.aims} <= {"roofline", "microseconds", *case.rivals}


def test_bytes_and_operations_of_attention_are_counted_once_each() -> None:
    decode = gpu_cases_attention.Shape(((1, 8192),) * 64)
    assert decode.moved(2) == 2 * 64 * 8192 * 8 * 128 * 2 + 2 * 64 * 32 * 128 * 2
    assert decode.pairs == 64 * 8192
    extend = gpu_cases_attention.Shape(((3, 5), (1, 2)))
    assert extend.pairs == 3 + 4 + 5 + 2
    shared = gpu_cases_attention.Shape(((1, 20), (1, 24)), common=16)
    assert shared.held == 16 + 4 + 8
    assert gpu_cases_attention.Shape(((2, 9),), window=3).pairs == 6


def test_a_distance_is_relative_and_nan_is_never_near() -> None:
    exact = torch.tensor([1.0, -3.0, torch.inf])
    assert distance(exact, exact) == 0.0
    assert 0 < distance(exact * 1.001, exact) < 1e-3
    assert distance(torch.tensor([1.0, torch.nan, torch.inf]), exact) == float("inf")
    assert distance(torch.tensor([1.0, -3.0, 5.0]), exact) == float("inf")
    assert different((exact,), (exact,)) == 0.0 and different(exact, exact + 1) == 1.0


def test_what_bounds_a_call_is_the_slower_of_memory_and_matrix_units() -> None:
    rooflines = Rooflines(copy=100.0, matmul=1000.0)
    assert rooflines.seconds(200.0, 1000.0) == (2.0, "copy bandwidth")
    assert rooflines.seconds(200.0, 5000.0) == (5.0, "matmul rate")


def test_a_rival_that_does_not_run_is_a_note_and_its_aim_is_not_measured(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(x: torch.Tensor) -> object:
        raise RuntimeError("not here")

    case = _wrong("one")._replace(make=lambda device, dtype: torch.ones(3), rivals={"peer": absent})
    monkeypatch.setattr(gpu_cases, "tiny", lambda: [case._replace(aims=(Aim("peer", 2.0), Aim("roofline", 1e-12)))])
    spent, share, ratio = next(kernels(setting)).run()
    assert spent.value and share.reached and ratio.reached is None
    assert "not here" in ratio.note and not ratio.failed


def test_figures_that_are_no_numbers_are_still_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    write(file, {}, [Figure("numerics", "nan", float("inf"), aim=1e-3, most=True), Figure("engine", "none", note="?")])
    said = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert [(figure["value"], figure["reached"]) for figure in said["figures"]] == [("inf", False), (None, None)]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_rivals_do_the_work_that_they_are_compared_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # minutes on a CPU
    few = {"heads": 4, "kv_heads": 2, "dim": 16, "size": 4}
    shapes = [((1, 9),) * 2, ((6, 6),), ((3, 8),)]
    extra = [
        gpu_cases_attention.case(str(rows), attention_shape(rows, **few), dtypes="fp32", flex=True) for rows in shapes
    ]
    compared = set()
    for case in [*gpu_cases.tiny(), *extra]:
        inputs = case.make(CPU, torch.float32)
        exact = case.exact(inputs)
        exact = exact[0] if isinstance(exact, tuple) else exact
        for rival, prepare in case.rivals.items():
            if rival in ("plain paged", "softmax + topk") or "multinomial" in rival:
                continue  # ours, or random
            found = prepare(case.make(CPU, torch.float32))()
            if rival in ("SDPA", "FlexAttention"):
                found = found.transpose(1, 2).reshape(exact.shape)
            if rival != "torch" or found is not None:  # a mask is applied in place
                assert distance(found, exact) < 1e-4, (case.name, rival)
            compared.add(rival)
    assert {"SDPA", "FlexAttention", "F.rms_norm", "dequantize + matmul", "expert by expert"} <= compared


def test_a_figure_says_whether_its_aim_is_reached() -> None:
    assert Figure("kernels", "a", 0.9, aim=0.85).reached
    assert Figure("kernels", "a", 140.0, "us", 150.0, most=True).reached
    missed = Figure("kernels", "a", 160.0, "us", 150.0, most=True)
    assert missed.reached is False and not missed.failed and "NOT REACHED" in line(missed)
    assert Figure("numerics", "a", 1.0, aim=0.5, most=True).failed
    assert Figure("engine", "a", fault="it fell").failed


FAKE = """
import os, time
from gpu_setting import Item
from gpu_report import Figure

def good(name):
    return [Figure("fake", name, 1.0)]

def bad():
    raise ValueError("bad item")

def items(setting):
    yield Item("one", lambda: good("one"))
    yield Item("two", bad)
    yield Item("three", lambda: os._exit(7))
    yield Item("four", lambda: good("four"))

def slow(setting):
    yield Item("one", lambda: good("one"))
    yield Item("two", lambda: time.sleep(600))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "gpu_fake_part.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "gpu_fake_part"


def test_items_that_fail_or_end_their_process_do_not_stop_the_others(fake: str, setting: Setting) -> None:
    found = {figure.name: figure for figure in apart("fake", Part(fake, "items", 1, lanes=2), setting, 60.0)}
    assert found["one"].value == found["four"].value == 1.0
    assert found["two"].fault == "ValueError: bad item"
    assert found["three"].fault == "its process ended with 7"


def test_a_part_that_hangs_is_ended(fake: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_processes, "GRACE", 0.0)
    *_, last = apart("fake", Part(fake, "slow", 1), setting, 3.0)
    assert "ended after 3 s" in last.fault and last.failed


def test_items_beyond_a_parts_time_are_named(fake: str, setting: Setting) -> None:
    names = [(figure.name, figure.note) for figure in here("fake", Part(fake, "slow", 1), setting, -1.0)]
    assert names == [("one", "no time left"), ("two", "no time left")]


def test_engine_runs_and_peers_do_the_same_work_and_their_ratio_is_given(setting: Setting) -> None:
    ours = [figure for item in gpu_engine.engine(setting) for figure in item.run()]
    assert not any(figure.failed for figure in ours)
    known = {figure.name: figure.value for figure in ours if figure.value is not None}
    reused = next(figure.note for figure in ours if figure.name.endswith("prefix read once"))
    assert reused.startswith("89%"), "the branches' common tokens are in the tree"
    pytest.importorskip("transformers")
    told = setting._replace(known={**KNOWN, **known})
    theirs = [figure for item in gpu_peers.peers(told) for figure in item.run()]
    ratios = {figure.name: figure.value for figure in theirs if figure.name.endswith("ours over theirs")}
    assert len(ratios) == 2 and all(ratios.values())


def test_without_sharing_every_row_reads_the_common_pages_itself() -> None:
    pages = [np.arange(8, dtype=np.int32)] * 6
    cuts, length = np.arange(7, dtype=np.int32), np.full(6, 500, np.int32)
    shape = attention_plan.Shape(64, 4, 2, (16, 64), 8)

    def read() -> int:
        made = attention_plan.plan(pages, cuts, length, shape)
        return sum(int((part.tiles[:, 4] - part.tiles[:, 3]).sum()) for part in made.launches)

    together = read()
    with gpu_engine.unshared():
        alone = read()
    assert alone == 6 * 500 and together < alone / 2


def test_the_busy_share_is_of_the_second_half_and_counts_overlaps_once() -> None:
    assert gpu_engine.busy_share([(0, 10), (50, 60), (55, 70), (90, 100)]) == pytest.approx(0.6)
    assert gpu_engine.busy_share([(0, 100)]) == 1.0
