"""Every message between a client and the gateway, and the version of the conversation.

Knows: nodes and results as text. Must not know: sockets, tokens' tensors, the engine.
A client's DEALER socket sends ClientMessage frames and receives GatewayMessage frames, one msgpack frame each.
Program numbers are chosen by the client and belong to its connection; branch 0 is a program's first branch.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

import msgspec

from branchwork.lang.ir import Laid, Placed

VERSION = 4
MAX_FRAME = 16 * 2**20  # bytes of one message; larger ones are refused before decoding


class Frame(msgspec.Struct, frozen=True):
    """What a chat template puts around one role's text."""

    begin: str
    end: str


class ChatFrames(msgspec.Struct, frozen=True, kw_only=True):
    """A model's chat template as literal frames. `roles` is empty for a model without one (plain text roles).

    start: text before the first message (a BOS token's text, often empty).
    default_system: whole text that the template inserts when the first role is not system, else "".
    """

    roles: dict[str, Frame] = {}
    start: str = ""
    default_system: str = ""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """knobs: sampling parameters that hold where a program says nothing (lang.params)."""

    name: str
    family: str
    context: int  # tokens
    vocab: int
    eos_ids: tuple[int, ...]
    frames: ChatFrames
    pages: int = 0  # KV pages of the engine
    page_size: int = 1  # tokens of one page
    device: str = "cpu"
    knobs: dict[str, Any] = {}


# --- client to gateway


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    version: int
    token: str = ""  # shared secret where the transport has no permissions of its own (loopback TCP)
    client: str = ""


class Budget(msgspec.Struct, frozen=True, array_like=True):
    """What a whole program may use; past it everything of it that is not done fails with code budget.

    tokens: generated ones, of all its branches together. seconds: from its opening on. None: without limit.
    """

    tokens: int | None = None
    seconds: float | None = None


class Open(msgspec.Struct, frozen=True, tag="open"):
    """A program begins; its branch 0 exists from here on. Deltas are sent only when `stream`."""

    program: int
    stream: bool = False
    budget: Budget | None = None


class Start(msgspec.Struct, frozen=True, tag="start", omit_defaults=True):
    """A program of a template begins and is laid wholly: Open, and all of its Nodes with the arguments filled in.

    define: the template's nodes, with its first Start on a connection; later ones name it by its number alone.
    Counts as `size` nodes under way.
    """

    program: int
    template: int
    size: int  # nodes of the template
    arguments: tuple[str, ...] = ()
    define: tuple[Placed, ...] = ()
    stream: bool = False
    budget: Budget | None = None


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """No program of this template will be started again on this connection."""

    template: int


class Nodes(msgspec.Struct, frozen=True, tag="nodes"):
    program: int
    branch: int
    nodes: tuple[Laid, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop a branch (and its descendants), or the whole program when branch is None."""

    program: int
    branch: int | None = None


class Close(msgspec.Struct, frozen=True, tag="close"):
    """No more nodes will come and nobody reads: whatever still runs is cancelled, leases are freed."""

    program: int


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A question about the runtime, answered by Answer with the same number: stats, flush_cache, shutdown; models
    (those that are loaded), "stop NAME" (let one go)."""

    number: int
    what: str


ClientMessage = Hello | Open | Start | Forget | Nodes | Cancel | Close | Ask

# --- gateway to client


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    version: int
    model: ModelInfo
    window: int  # nodes that may be under way unacknowledged on this connection


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    code: str
    message: str


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The runtime is not ready yet; a Welcome follows."""

    stage: str
    fraction: float = 0.0


class Credit(msgspec.Struct, frozen=True, tag="credit"):
    """`nodes` more nodes may be sent. One with 0 nodes comes at least every second: the gateway is alive."""

    nodes: int


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """More text of node `node` (sample 0 of it)."""

    program: int
    branch: int
    node: int
    text: str
    meta: dict[str, Any] = {}


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Node `node` is complete. values: one text per sample; meta: one dict per sample (see lang.machine.Meta keys).

    captures: see lang.machine.Reply.
    """

    program: int
    branch: int
    node: int
    values: tuple[str, ...]
    meta: tuple[dict[str, Any], ...] = ()
    captures: dict[str, Any] = {}


class Captured(msgspec.Struct, frozen=True, tag="captured"):
    """The value of one capture of node `node` is certain while the rest is under way (gens of one sample only).

    A text, or for a capture inside a Repeat the list of them once the Repeat is over. Done says it again.
    """

    program: int
    branch: int
    node: int
    name: str
    value: Any


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Node `node` could not be executed; the branch stops there. code is short and stable, message says what to do."""

    program: int
    branch: int
    node: int
    code: str
    message: str


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    number: int
    value: dict[str, Any] = {}
    error: str = ""


GatewayMessage = Welcome | Refused | Loading | Credit | Delta | Captured | Done | Failed | Answer


def is_private(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint; any other needs CURVE keys, on both sides."""
    parts = urlsplit(endpoint)
    return parts.scheme in ("ipc", "inproc") or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def encode(message: ClientMessage | GatewayMessage) -> bytes:
    return _ENCODER.encode(message)


def decode_client(frame: bytes) -> ClientMessage:
    """Raises msgspec.DecodeError (ValueError) for anything that is not a well-typed client message."""
    try:
        return _FROM_CLIENT.decode(frame)
    except RecursionError:
        raise msgspec.DecodeError("the message is nested too deep") from None


def decode_gateway(frame: bytes) -> GatewayMessage:
    return _FROM_GATEWAY.decode(frame)


def _exact(value: Any) -> str:
    """A text of a class of its own (numpy's, one that marks text as safe ...) as the text that it is."""
    if isinstance(value, str):
        return str.__str__(value)
    raise NotImplementedError(f"a {type(value).__name__} cannot be sent")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_exact)
_FROM_CLIENT: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_FROM_GATEWAY: msgspec.msgpack.Decoder[GatewayMessage] = msgspec.msgpack.Decoder(GatewayMessage)
