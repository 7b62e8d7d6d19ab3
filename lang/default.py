"""The backend of programs that are not told which one to run on.

Knows: that a runtime of the shipped model can be started. Must not know: programs, states.
"""

from __future__ import annotations

import threading

from branchwork.lang.backend import Backend, meant

_lock = threading.Lock()
_default: Backend | None = None


def set_default_backend(backend: Backend | None) -> None:
    """What programs run on when they are not told; None goes back to an embedded runtime started on first use."""
    global _default
    _default = meant(backend)


def chosen() -> Backend | None:
    """The default backend, None while none has been set or started."""
    return _default


def default_backend() -> Backend:
    """The default backend. With none set, starts a Runtime of the model that ships inside the package."""
    global _default
    with _lock:
        if _default is None:
            from branchwork.lang.backends.runtime import Runtime

            _default = Runtime()
        return _default
