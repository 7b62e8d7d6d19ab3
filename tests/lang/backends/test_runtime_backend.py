"""The runtime backend against an in-process gateway that speaks protocol.py on a real ROUTER socket."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import zmq
import zmq.auth

import branchwork as bw
from branchwork.lang import protocol
from branchwork.lang.backends import link as link_module
from branchwork.lang.constraint import capture_names
from branchwork.lang.ir import Text
from branchwork.lang.machine import Call, NodeDone, Program, Reply
from branchwork.lang.transcript import NodeFailed

MODEL = protocol.ModelInfo(
    name="fake", family="none", context=100, vocab=10, eos_ids=(), frames=protocol.ChatFrames(start="<s>")
)
Greeting = Callable[[protocol.Hello], list[protocol.GatewayMessage]]


def welcome(window: int = 64, version: int = protocol.VERSION) -> protocol.GatewayMessage:
    return protocol.Welcome(version, MODEL, window)


class FakeGateway:
    """Answers every gen with its prompt in capitals, every select with its first choice; holds them while `held`.

    The captures of a gen are their names in capitals; they are sent at once.
    """

    def __init__(self, endpoint: str, greet: Greeting | None = None, window: int = 64) -> None:
        self.endpoint, self.window = endpoint, window
        self.greet = greet or (lambda hello: [welcome(window)])
        self.held = threading.Event()
        self.frames: list[protocol.ClientMessage] = []
        self.under_way = self.peak = 0
        self._stop = threading.Event()
        self._programs: dict[tuple[bytes, int], Program] = {}
        self._streams: dict[tuple[bytes, int], bool] = {}
        self._calls: list[tuple[bytes, int, Call]] = []
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._bound.wait(5)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def saw(self, kind: type) -> list[Any]:
        return [message for message in list(self.frames) if isinstance(message, kind)]

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            self._socket = socket
            socket.bind(self.endpoint)
            self.bound = socket.getsockopt_string(zmq.LAST_ENDPOINT)
            self._bound.set()
            while not self._stop.is_set():
                if socket.poll(10):
                    identity, frame = socket.recv_multipart()
                    self._handle(identity, protocol.decode_client(frame))
                if not self.held.is_set():
                    self._answer()

    def _send(self, identity: bytes, message: protocol.GatewayMessage) -> None:
        self._socket.send_multipart([identity, protocol.encode(message)])

    def _handle(self, identity: bytes, message: protocol.ClientMessage) -> None:
        self.frames.append(message)
        match message:
            case protocol.Hello():
                for reply in self.greet(message):
                    self._send(identity, reply)
            case protocol.Open(program, stream):
                self._streams[identity, program] = stream
                self._programs[identity, program] = Program(MODEL.frames)
            case protocol.Nodes(program, branch, nodes):
                self.under_way += len(nodes)
                self.peak = max(self.peak, self.under_way)
                self._programs[identity, program].feed(branch, nodes)
                self._pump(identity, program)
            case protocol.Cancel(program, branch):
                self._programs[identity, program].cancel(branch)
                self._pump(identity, program)
            case protocol.Close(program):
                self._programs[identity, program].close()
                self._pump(identity, program)
            case protocol.Ask(number, what):
                error = "" if what == "stats" else f"unknown question {what!r}"
                self._send(identity, protocol.Answer(number, {"requests": 3} if not error else {}, error))

    def _pump(self, identity: bytes, number: int) -> None:
        credit = 0
        program = self._programs[identity, number]
        for output in program.settle():
            match output:
                case Call():
                    self._calls.append((identity, number, output))
                    for name in capture_names(output.constraint):
                        program.capture(output.id, name, name.upper())
                        self._send(identity, protocol.Captured(number, output.branch, output.node, name, name.upper()))
                    continue
                case NodeDone(branch, node, values, meta, captures) if values:
                    for character in values[0] if self._streams[identity, number] else "":
                        self._send(identity, protocol.Delta(number, branch, node, character))
                    self._send(identity, protocol.Done(number, branch, node, values, meta, captures))
                case NodeFailed(branch, node, code, why):
                    self._send(identity, protocol.Failed(number, branch, node, code, why))
            credit += 1
        if credit:
            self.under_way -= credit
            self._send(identity, protocol.Credit(credit))

    def _answer(self) -> None:
        calls, self._calls = self._calls, []
        for identity, number, call in calls:
            program = self._programs[identity, number]
            prompt = program.branch(call.branch).text
            if "poison" in prompt:
                program.fail(call.id, "context_length", "5000 tokens, the limit is 100")
            else:
                value = call.choices[0] if call.kind == "select" else prompt.upper()
                captures = {name: name.upper() for name in capture_names(call.constraint)}
                program.reply(call.id, Reply((value,) * call.params.n, ({"k": 1},) * call.params.n, captures))
            self._pump(identity, number)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/gate"


@pytest.fixture
def gateway(endpoint: str) -> Iterator[FakeGateway]:
    fake = FakeGateway(endpoint)
    yield fake
    fake.stop()


def test_a_program_runs_over_the_socket(gateway: FakeGateway) -> None:
    def body(s: bw.ProgramState) -> None:
        s += "ab" + bw.gen("x", n=2) + bw.select("c", ["q", "r"])
        forks = s.fork(2)
        forks += lambda i: f"{i}" + bw.gen("y")
        forks.join()
        s += forks[0].ref("y")

    backend = bw.connect(gateway.endpoint)
    assert backend.model.name == "fake"
    state = bw.function(body).run(backend=backend)
    assert state.text() == "abABqABABQ0"
    assert (state["x"], state["c"], state["y"]) == (["AB", "AB"], "q", ["ABABQ0", "ABABQ1"])
    assert state.meta("c") == {"k": 1}
    assert list(bw.function(lambda s: (s.__iadd__("ab"), s.gen("x"))).stream(backend=backend).text_iter("x"))[:2] == [
        "A",
        "B",
    ]
    assert backend.stats() == {"requests": 3}
    backend.close()


def test_a_part_of_a_turn_arrives_before_the_turn(gateway: FakeGateway) -> None:
    def body(s: bw.ProgramState) -> None:
        gateway.held.set()
        s += "a" + bw.turn(bw.gen("x", type=Literal["X"]), bw.optional("-", bw.gen("y", regex="Y")), name="all")
        assert (s["x"], s["y"]) == ("X", "Y")
        assert not s.live.machine.idle
        gateway.held.clear()
        assert s["all"] == "A"

    backend = bw.connect(gateway.endpoint)
    state = bw.function(body).run(backend=backend).sync()
    assert (state["x"], state["y"], state.meta("y")) == ("X", "Y", {"k": 1})
    (nodes,) = [laid.node for message in gateway.saw(protocol.Nodes) for laid in message.nodes if laid.id == 1]
    assert (capture_names(nodes.constraint), nodes.readers) == (("x", "y"), {})
    backend.close()


def test_what_is_laid_between_two_turns_leaves_as_one_message(gateway: FakeGateway) -> None:
    backend = bw.connect(gateway.endpoint)

    def body(s: bw.ProgramState) -> None:
        s += "a" + bw.gen("x") + "b" + bw.gen("y")

    bw.function(body).run(backend=backend).sync()
    assert [len(message.nodes) for message in gateway.saw(protocol.Nodes)] == [4]


def test_a_finished_program_is_closed_and_a_dropped_one_too(gateway: FakeGateway) -> None:
    backend = bw.connect(gateway.endpoint)
    state = bw.function(lambda s: s.gen("x")).run(backend=backend).sync()
    eventually(lambda: len(gateway.saw(protocol.Close)) == 1)
    gateway.held.set()
    bw.function(lambda s: s.gen("x")).run(backend=backend)
    eventually(lambda: len(gateway.saw(protocol.Close)) == 2)
    assert state["x"] == ""


def test_laying_blocks_past_what_may_be_unsent_and_goes_on_with_credit(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "UNSENT", 4)
    gateway = FakeGateway(endpoint, window=8)
    gateway.held.set()
    backend = bw.connect(endpoint)
    laid: list[int] = []

    def body(s: bw.ProgramState) -> None:
        for i in range(40):
            s += bw.gen(f"x{i}")
            laid.append(i)

    state = bw.function(body).stream(backend=backend)
    eventually(lambda: len(laid) == 12)  # 8 under way, 4 unsent
    time.sleep(0.1)
    assert len(laid) == 12
    gateway.held.clear()
    state.sync()
    assert len(laid) == 40 and gateway.peak <= 8

    def wide(s: bw.ProgramState) -> None:
        expression = bw.gen("y0") + ""
        for i in range(1, 30):
            expression = expression + bw.gen(f"y{i}")
        s += expression  # more nodes at once than the window holds

    assert bw.function(wide).run(backend=backend)["y29"] == ""
    assert gateway.peak <= 8
    gateway.stop()


def test_a_failed_node_reaches_its_reader(gateway: FakeGateway) -> None:
    def body(s: bw.ProgramState) -> None:
        s += "poison" + bw.gen("x")
        s += bw.gen("y")

    state = bw.function(body).run(backend=bw.connect(gateway.endpoint))
    with pytest.raises(bw.ProgramError, match=r"context_length.*5000 tokens") as caught:
        state["y"]
    assert caught.value.cause is not None and caught.value.cause.code == "context_length"


def test_cancel_goes_to_the_gateway(gateway: FakeGateway) -> None:
    gateway.held.set()

    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks += bw.gen("x")
        forks[1].cancel()
        with pytest.raises(bw.ProgramError, match="cancelled"):
            forks[1]["x"]

    bw.function(body).run(backend=bw.connect(gateway.endpoint))
    eventually(lambda: [m.branch for m in gateway.saw(protocol.Cancel)] == [2])


def test_when_the_runtime_goes_every_waiter_gets_an_error_within_two_seconds(endpoint: str) -> None:
    gateway = FakeGateway(endpoint, window=4)
    gateway.held.set()
    backend = bw.connect(endpoint)

    def body(s: bw.ProgramState) -> None:
        for i in range(50):  # blocks at the window
            s += bw.gen(f"x{i}")

    states = [bw.function(body).stream(backend=backend) for _ in range(3)]
    time.sleep(0.1)
    begin = time.monotonic()
    gateway.stop()
    for state in states:
        with pytest.raises(bw.ProgramError) as caught:
            state["x49"]
        assert caught.value.code == "runtime_lost"
    assert time.monotonic() - begin < 2
    with pytest.raises(bw.RuntimeLost):
        bw.function(body).run(backend=backend)
    with pytest.raises(bw.RuntimeLost):
        backend.stats()


def test_a_runtime_that_answers_nothing_any_more_counts_as_lost(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "SILENCE", 0.5)
    gateway.held.set()
    state = bw.function(lambda s: s.gen("x")).run(backend=bw.connect(gateway.endpoint))
    with pytest.raises(bw.ProgramError, match="silent"):
        state["x"]


def test_open_programs_are_pinged_so_that_the_gateway_sees_their_client(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "PING", 0.1)
    monkeypatch.setattr(link_module, "SILENCE", 1.0)
    gateway.held.set()
    state = bw.function(lambda s: s.gen("x")).run(backend=bw.connect(gateway.endpoint))
    time.sleep(1.5)
    gateway.held.clear()
    assert state["x"] == ""  # the answered pings kept it alive
    assert [m.what for m in gateway.saw(protocol.Ask)][:2] == ["ping", "ping"]


def test_nobody_there_is_said_within_the_timeout(endpoint: str) -> None:
    begin = time.monotonic()
    with pytest.raises(bw.RuntimeUnavailable, match="nobody answered at ipc:"):
        bw.connect(endpoint, timeout=0.3)
    assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize(
    ("greeting", "error", "says"),
    [
        (welcome(version=99), bw.RuntimeUnavailable, "protocol version 99"),
        (protocol.Refused("token", "wrong token"), bw.Refused, "wrong token"),
    ],
)
def test_a_gateway_that_does_not_fit_is_a_clear_error(
    endpoint: str, greeting: protocol.GatewayMessage, error: type[Exception], says: str
) -> None:
    gateway = FakeGateway(endpoint, lambda hello: [greeting])
    with pytest.raises(error, match=says):
        bw.connect(endpoint, token="secret", timeout=5)
    assert gateway.saw(protocol.Hello)[0].token == "secret"
    gateway.stop()


def test_something_else_behind_the_endpoint_is_a_clear_error(endpoint: str) -> None:
    class Garbage(FakeGateway):
        def _send(self, identity: bytes, message: protocol.GatewayMessage) -> None:
            self._socket.send_multipart([identity, b"\xffHTTP/1.1 400"])

    gateway = Garbage(endpoint)
    with pytest.raises(bw.RuntimeUnavailable, match="does not speak"):
        bw.connect(endpoint, timeout=5)
    gateway.stop()


def test_loading_keeps_the_client_waiting(endpoint: str) -> None:
    gateway = FakeGateway(endpoint, lambda hello: [protocol.Loading("weights", 0.5), welcome()])
    assert bw.connect(endpoint, timeout=2).model == MODEL
    gateway.stop()


@pytest.mark.parametrize("endpoint_", ["tcp://192.0.2.1:5555", "tcp://example.org:1", "tcp://*:5", "udp://x"])
def test_leaving_the_machine_needs_keys(endpoint_: str) -> None:
    with pytest.raises(bw.Refused, match="curve_keys"):
        bw.connect(endpoint_, timeout=0.2)


def test_an_endpoint_that_is_none_is_a_clear_error() -> None:
    with pytest.raises(bw.RuntimeUnavailable, match="cannot be connected to"):
        bw.connect("tcp://localhost:notaport", timeout=0.2)


def test_curve_keys_let_the_right_client_in(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder in (right, wrong):
        folder.mkdir()
        zmq.auth.create_certificates(folder, "server")
        zmq.auth.create_certificates(folder, "client")
    public, secret = zmq.auth.load_certificate(right / "server.key_secret")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.curve_server, socket.curve_secretkey, socket.curve_publickey = True, secret, public
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                if socket.poll(50):
                    identity, _ = socket.recv_multipart()
                    socket.send_multipart([identity, protocol.encode(welcome())])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert bw.connect(f"tcp://127.0.0.1:{port}", curve_keys=right, timeout=5).model == MODEL
            with pytest.raises(bw.Refused, match=r"server\.key"):
                bw.connect(f"tcp://127.0.0.1:{port}", curve_keys=tmp_path, timeout=0.5)
            with pytest.raises(bw.RuntimeUnavailable, match="keys"):
                bw.connect(f"tcp://127.0.0.1:{port}", curve_keys=wrong, timeout=0.5)
        finally:
            done.set()
            thread.join()


def test_a_node_too_large_for_a_message_fails_with_both_figures(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MAX_FRAME", 2000)
    backend = bw.connect(gateway.endpoint)

    def many(s: bw.ProgramState) -> None:
        expression = Text("a" * 500) + bw.gen("x")
        for _ in range(10):
            expression = expression + ("b" * 500)
        s += expression

    assert bw.function(many).run(backend=backend)["x"] == "A" * 500  # split over several messages
    state = bw.function(lambda s: s.__iadd__(Text("a" * 3000) + bw.gen("x"))).run(backend=backend)
    with pytest.raises(bw.ProgramError, match=r"too_large.*the limit is 2000"):
        state["x"]


def test_a_forked_child_is_told_to_connect_again(gateway: FakeGateway) -> None:
    backend = bw.connect(gateway.endpoint)
    pid = os.fork()
    if pid == 0:
        try:
            bw.function(lambda s: None).run(backend=backend)
        except bw.RuntimeUnavailable:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert bw.function(lambda s: s.gen("x")).run(backend=backend)["x"] == ""


def test_a_forked_child_that_exits_leaves_its_parents_runtime_alone(spawned: None) -> None:
    with bw.Runtime("fake", mode="serve") as runtime:
        pid = os.fork()
        if pid == 0:
            runtime.shutdown()
            os._exit(0)
        os.waitpid(pid, 0)
        assert Path(runtime.endpoint.removeprefix("ipc://")).exists()
        assert bw.function(lambda s: s.gen("x")).run(backend=runtime)["x"] == ""


def test_a_process_that_ends_with_a_program_under_way_ends_quietly(gateway: FakeGateway) -> None:
    gateway.held.set()
    code = (
        f"import branchwork as bw; b = bw.connect({gateway.endpoint!r})\n"
        "s = bw.function(lambda s: s.gen('x')).run(backend=b)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    eventually(lambda: len(gateway.saw(protocol.Close)) == 1)


# --- a runtime of one's own, played by a script in the place of the gateway's entry point

_SCRIPT = """
import os, sys, zmq
sys.path.insert(0, {tests!r})
from branchwork.lang import protocol
mode = dict(o.split("=") for o in sys.argv[sys.argv.index("--option") + 1::2])["mode"]
endpoint = sys.argv[sys.argv.index("--endpoint") + 1]
if mode == "crash":
    sys.exit("no such file: weights")
import threading
sys.path.insert(0, {here!r})
import test_runtime_backend as fake
def greet(hello):
    if mode == "refuse":
        return [protocol.Refused("unknown_model", "no model of that name")]
    if mode == "secret" and hello.token != os.environ["BRANCHWORK_TOKEN"]:
        return [protocol.Refused("token", "wrong token")]
    return [protocol.Loading("weights", 0.5), fake.welcome()]
gateway = fake.FakeGateway(endpoint, greet)
if mode == "refuse":
    import time; time.sleep(0.5); gateway.stop(); sys.exit(1)
print("gateway: listening on", gateway.bound, file=sys.stderr, flush=True)
if mode == "hold":
    gateway.held.set()
sys.stdin.read()
gateway.stop()
"""


@pytest.fixture
def spawned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that Runtime starts runs the script with the same arguments."""
    script = tmp_path / "main.py"
    script.write_text(_SCRIPT.format(tests=str(Path(__file__).parents[2]), here=str(Path(__file__).parent)))
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[1:3] == ["-m", "branchwork.runtime.gateway.main"]
        return real([command[0], str(script), *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_a_runtime_of_ones_own_starts_serves_and_ends(spawned: None, capsys: pytest.CaptureFixture[str]) -> None:
    with bw.Runtime("fake", progress=True, mode="serve") as runtime:
        folder = Path(runtime.endpoint.removeprefix("ipc://")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert bw.function(lambda s: (s.__iadd__("ab"), s.gen("x"))).run(backend=runtime)["x"] == "AB"
        assert runtime.stats() == {"requests": 3}
        pid = runtime.pid
    assert "weights 50%" in capsys.readouterr().err
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    runtime.shutdown()


def test_a_runtime_of_ones_own_may_listen_on_loopback_tcp_with_a_secret(spawned: None) -> None:
    with bw.Runtime("fake", endpoint="tcp://127.0.0.1:*", mode="secret") as runtime:
        assert runtime.endpoint.startswith("tcp://127.0.0.1:") and not runtime.endpoint.endswith("*")
        assert bw.function(lambda s: s.gen("x")).run(backend=runtime)["x"] == ""
        with pytest.raises(bw.Refused, match="token"):
            bw.connect(runtime.endpoint, timeout=2)
    with pytest.raises(bw.Refused, match="loopback"):
        bw.Runtime("fake", endpoint="tcp://0.0.0.0:*")


@pytest.mark.parametrize(("mode", "says"), [("crash", "no such file: weights"), ("refuse", "no model of that name")])
def test_a_runtime_that_does_not_start_says_why(spawned: None, mode: str, says: str) -> None:
    with pytest.raises(bw.RuntimeStartError, match=says):
        bw.Runtime("fake", mode=mode)


def test_the_death_of_a_runtime_of_ones_own_reaches_every_reader(spawned: None) -> None:
    runtime = bw.Runtime("fake", mode="hold")
    state = bw.function(lambda s: s.gen("x")).run(backend=runtime)
    begin = time.monotonic()
    os.kill(runtime.pid, 9)
    with pytest.raises(bw.ProgramError, match="killed by signal 9") as caught:
        state["x"]
    assert caught.value.code == "runtime_lost"
    assert time.monotonic() - begin < 2
    runtime.shutdown()


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


@pytest.mark.parametrize("knobs", [{"stop": "\ud800"}, {"regex": "[\ud800a]b"}])
def test_a_gen_that_no_message_can_hold_fails_and_the_others_run(gateway: FakeGateway, knobs: dict[str, Any]) -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks[0].__iadd__("a" + bw.gen("x", **knobs))
        forks[1].__iadd__("b" + bw.gen("x"))
        with pytest.raises(bw.ProgramError, match=r"not_sent.*surrogates not allowed"):
            forks[0]["x"]
        assert forks[1]["x"] == "B"

    bw.function(body).run(backend=bw.connect(gateway.endpoint))
