"""A process that prepares constraints under a memory limit, for a parent that may kill it at any time.

Knows: framing, its limit. Must not know: vocabularies, deadlines (its parent keeps them), what it prepares.
`python -m branchwork.runtime.grammar.worker BYTES`: frames of 4 bytes length and msgpack, jobs on stdin, an answer per
stage on stdout; an empty frame first, when it is ready. It ends with its parent: at the end of stdin.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import traceback
from typing import IO

import msgspec

from branchwork.lang.constraint import TooBig
from branchwork.runtime.grammar.recipe import Answer, Fault, Job, goes_on, prepare, refusal

HEAD = 4  # bytes of a frame's length, little-endian


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, None at the end."""
    head = stream.read(HEAD)
    if len(head) < HEAD:
        return None
    return stream.read(int.from_bytes(head, "little"))


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(HEAD, "little") + data)
    stream.flush()


def limit_memory(more: int) -> None:
    """Allow this process `more` bytes of address space on top of what it has, -1: as much as there is."""
    import resource  # only where there is /proc: this module is imported everywhere

    with open("/proc/self/statm", "rb") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if more < 0 else held + more, most))


def _import_xgrammar(memory: int) -> None:
    """With torch behind it, it takes most of what a job may take, and is not the job's to account for."""
    if sys.platform == "linux":
        limit_memory(-1)
    with contextlib.suppress(ImportError):  # then the stage says so
        import xgrammar  # noqa: F401
    if sys.platform == "linux":
        limit_memory(memory)


def answer(job: Job, memory: int) -> Answer:
    try:
        if job.stage == "xgrammar" and "xgrammar" not in sys.modules:
            _import_xgrammar(memory)
        return prepare(job)
    except MemoryError:
        return refusal(TooBig(f"compiling needs more memory than its limit of {memory / 2**20:,.0f} MiB"))
    except Exception:  # whatever is wrong here, the parent gets to know and goes on
        return Fault(traceback.format_exc())


def _end_with_parent() -> None:
    """Ends the process when the other end of stdin is closed, also in the middle of a job."""
    poll = select.poll()
    poll.register(0, 0)  # only hang-ups, which are always told: frames are read elsewhere
    poll.poll()
    os._exit(0)


def main() -> None:
    memory = int(sys.argv[1])
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an engine prints must not end up between the frames
    if hasattr(select, "poll"):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    # What the stages import and the engines behind it: here, and not at the first job, whose time is counted.
    import llguidance  # noqa: F401
    import outlines_core  # type: ignore[import-untyped]  # noqa: F401

    from branchwork.runtime.grammar import assemble, dfa, flat, frontend, llg  # noqa: F401

    if sys.platform == "linux":
        limit_memory(memory)
    write_frame(stdout, b"")
    decoder, encoder = msgspec.msgpack.Decoder(Job), msgspec.msgpack.Encoder()
    while (frame := read_frame(stdin)) is not None:
        job = decoder.decode(frame)
        while True:
            found = answer(job, memory)
            write_frame(stdout, encoder.encode(found))
            if not job.then or not goes_on(found):
                break
            job = msgspec.structs.replace(job, stage=job.then, then="")


if __name__ == "__main__":
    main()
