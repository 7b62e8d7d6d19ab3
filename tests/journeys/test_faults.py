"""What goes wrong is said at the line that caused it, within a bounded time, and nothing is held afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import branchwork as bw

pytestmark = pytest.mark.timeout(90)
HERE = Path(__file__).name


@bw.function
def complete(s: Any, text: str, **knobs: Any) -> None:
    s += text
    s += bw.gen("out", **knobs)


def line_of(program: Any, words: str) -> int:
    """The line of this file on which a program's body says `words`."""
    body = program.body
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    start = body.__code__.co_firstlineno
    return next(number for number in range(start, len(source)) if words in source[number - 1])


def sapling() -> Path:
    from branchwork.runtime.loading.hub import find_model

    return find_model("sapling")


def test_a_prompt_over_the_context_is_refused_with_both_figures(runtime: bw.Runtime) -> None:
    state = complete.run("word " * 3000, backend=runtime)
    with pytest.raises(bw.ProgramError) as caught:
        _ = state["out"]
    assert caught.value.code == "context_length"
    assert "2048" in str(caught.value)
    assert f"{HERE}:{line_of(complete, 's += bw.gen')}" in str(caught.value)


def test_the_command_tells_the_line_in_a_sentence(runtime: bw.Runtime, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    body = "import branchwork as bw\n@bw.function\ndef f(s):\n    s += bw.gen('x')\nprint(f.run()['x'])\n"
    file.write_text(body, encoding="utf-8")
    command = [sys.executable, "-m", "branchwork", "run", str(file), "--endpoint", runtime.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "empty_prompt" in done.stderr and "wrong.py:4]" in done.stderr


def test_an_empty_prompt_is_refused(runtime: bw.Runtime) -> None:
    with pytest.raises(bw.ProgramError, match="empty_prompt") as caught:
        _ = complete.run("", backend=runtime)["out"]
    assert f"{HERE}:{line_of(complete, 's += bw.gen')}" in str(caught.value)


def test_a_fork_before_any_text_works(runtime: bw.Runtime) -> None:
    @bw.function
    def early(s: Any) -> Any:
        forks = s.fork(2)
        for number, branch in enumerate(forks):
            branch += f"Number {number} is" + bw.gen("x", max_tokens=3)
        return [branch["x"] for branch in forks]

    assert len(early.run(backend=runtime).ret_value) == 2


def test_a_gen_without_a_name_appends_its_text(runtime: bw.Runtime) -> None:
    @bw.function
    def nameless(s: Any) -> None:
        s += "One, two," + bw.gen(max_tokens=4, ignore_eos=True) + " end."

    text = nameless.run(backend=runtime, temperature=0).text()
    assert text.startswith("One, two,") and text.endswith(" end.") and len(text) > len("One, two, end.")


def test_reading_an_unknown_variable_names_the_known_ones(runtime: bw.Runtime) -> None:
    state = complete.run("Hello", max_tokens=2, backend=runtime)
    with pytest.raises(bw.ProgramError, match="out"):
        _ = state["other"]


def test_a_bad_parameter_is_raised_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="temperature=-1"):
        bw.gen("x", temperature=-1)
    with pytest.raises(ValueError, match="choices"):
        bw.select("x", choices=[])


def test_a_bad_stop_pattern_is_told_with_its_place(runtime: bw.Runtime) -> None:
    with pytest.raises((bw.ProgramError, ValueError), match="stop_regex"):
        complete.run("Hello", max_tokens=2, stop_regex="(", backend=runtime)["out"]


@pytest.mark.parametrize(
    ("model", "words"),
    [("no-such-model", "no-such-model"), ("nobody/no-such-model", "hub"), ("/no/such/directory", "/no/such/directory")],
)
def test_an_unknown_model_is_named_with_what_to_do(model: str, words: str) -> None:
    with pytest.raises(bw.RuntimeStartError, match=words):
        bw.Runtime(model)


def test_a_corrupt_checkpoint_names_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(sapling(), broken, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(bw.RuntimeStartError, match=r"model\.safetensors"):
        bw.Runtime(str(broken))


def test_a_bad_runtime_option_names_the_known_ones() -> None:
    with pytest.raises(bw.RuntimeStartError, match="page_size"):
        bw.Runtime("sapling", pagesize=16)


def test_an_endpoint_with_nobody_behind_it_is_told_soon(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(bw.RuntimeUnavailable, match="nobody"):
        bw.connect(f"ipc://{tmp_path}/nobody", timeout=1)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:5570", "tcp://0.0.0.0:5570"])
def test_another_machine_needs_curve_keys(endpoint: str) -> None:
    with pytest.raises(bw.BackendError, match="CURVE"):
        bw.connect(endpoint, timeout=1)


def test_serving_other_machines_needs_curve_keys() -> None:
    command = [sys.executable, "-m", "branchwork", "serve", "--endpoint", "tcp://0.0.0.0:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "curve-keys" in done.stderr


def test_keys_open_a_runtime_to_their_holders_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    branchwork = [sys.executable, "-m", "branchwork"]
    subprocess.run([*branchwork, "keys", str(keys)], check=True, timeout=60, capture_output=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    command = [*branchwork, "serve", "--endpoint", endpoint, "--curve-keys", str(keys), "-o", "pages=2000"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        backend = bw.connect(endpoint, curve_keys=keys, timeout=30)
        assert complete.run("Hello", max_tokens=2, backend=backend).text().startswith("Hello")
        backend.close()
        with pytest.raises(bw.RuntimeUnavailable):
            bw.connect(endpoint, timeout=1)
        server.send_signal(signal.SIGINT)
        assert server.wait(15) == 0
    finally:
        server.kill()
        server.wait()


def test_a_killed_runtime_ends_what_waits_with_a_clear_error() -> None:
    started = bw.Runtime("sapling", threads=1, pages=4000)
    state = complete.run("Hello there", max_tokens=1500, ignore_eos=True, backend=started)
    os.kill(started.pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(bw.ProgramError, match="runtime_lost") as caught:
        _ = state["out"]
    assert time.monotonic() - begun < 10
    assert HERE in str(caught.value)
    with pytest.raises(bw.BackendError):
        complete.run("Hello again", max_tokens=2, backend=started)["out"]
    started.shutdown()


def test_a_killed_engine_is_replaced_and_the_program_goes_on() -> None:
    with bw.Runtime("sapling", threads=1, pages=4000) as started:
        calm = complete.run("The old garden was", max_tokens=400, ignore_eos=True, seed=5, backend=started)["out"]
        state = complete.run("The old garden was", max_tokens=400, ignore_eos=True, seed=5, backend=started)
        (engine,) = psutil.Process(started.pid).children()
        engine.kill()
        assert state["out"] == calm


def test_a_killed_client_leaves_nothing_held(runtime: bw.Runtime) -> None:
    code = (
        "import sys, branchwork as bw\n"
        "backend = bw.connect(sys.argv[1])\n"
        "@bw.function\n"
        "def long(s):\n"
        "    s += 'Once upon a time' + bw.gen('x', max_tokens=1900, ignore_eos=True)\n"
        "states = [long.run(backend=backend) for _ in range(8)]\n"
        "print('running', flush=True)\n"
        "states[0].sync()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, runtime.endpoint], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "running\n"
    until(lambda: runtime.stats()["running"] == 8)
    child.kill()
    child.wait()
    until(lambda: runtime.stats()["leases"] == 0)


def test_cancelling_frees_the_lease_at_once(runtime: bw.Runtime) -> None:
    state = complete.run("Once upon a time", max_tokens=1900, ignore_eos=True, backend=runtime)
    until(lambda: runtime.stats()["leases"] == 1)
    state.cancel()
    until(lambda: runtime.stats()["leases"] == 0, seconds=2)
    with pytest.raises(bw.ProgramError, match="cancelled"):
        _ = state["out"]


def test_an_exception_in_the_body_ends_its_program(runtime: bw.Runtime) -> None:
    @bw.function
    def wrong(s: Any) -> None:
        s += "Once upon a time" + bw.gen("x", max_tokens=1900, ignore_eos=True)
        raise LookupError("of the author's own")

    with pytest.raises(LookupError, match="author's own"):
        wrong.run(backend=runtime)
    until(lambda: runtime.stats()["leases"] == 0)


def test_1000_random_programs_with_cancellations_hold_no_page(runtime: bw.Runtime) -> None:
    draw = random.Random(7)

    @bw.function
    def any_program(s: Any, seed: int) -> None:
        own = random.Random(seed)
        s += bw.user("Say something about " + " ".join(own.choices(["river", "stone", "garden", "paper"], k=6)))
        s += bw.assistant(bw.gen("a", max_tokens=own.randint(1, 12), n=own.choice((1, 1, 1, 3))))
        if own.random() < 0.5:
            forks = s.fork(own.randint(1, 4))
            forks += lambda i: f" {i} " + bw.gen("b", max_tokens=own.randint(1, 8))
            if own.random() < 0.5:
                forks.join()
        if own.random() < 0.3:
            s += bw.select("c", choices=["yes", "no", "yes and no"])

    def one(number: int) -> None:
        state = any_program.run(number, backend=runtime, ignore_eos=True)
        if draw.random() < 0.4:
            state.cancel()
        else:
            state.sync()

    for number in range(1000):
        one(number)
    until(lambda: runtime.stats()["leases"] == 0)
    runtime.flush_cache()
    stats = runtime.stats()
    assert stats["pages_used"] == 0 and stats["programs"] <= 1


def until(true: Any, seconds: float = 15) -> None:
    """Wait for a condition that other processes bring about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.05)
