"""Opens the C library of native CPU kernels, if it was built, and says why not otherwise.

Knows: where the build leaves the library, its C signatures and structs. Must not know: tensors, the runtime.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import struct
from pathlib import Path

import torch  # noqa: F401  loaded first, so that the library binds to the OpenMP pool torch already runs

# The C structs of native.c, packed by `struct` (a ctypes.Structure costs microseconds to fill).
ATTENTION = struct.Struct("@7P4q9if2i")
ROTARY = struct.Struct("@10P7q5i")
SAMPLING = struct.Struct("@8P2q")
PRODUCT = struct.Struct("@4P4i")
PACKING = struct.Struct("@6P4i")
QUANTIZING = struct.Struct("@4Pq4i")
LAYER = struct.Struct("@4P")  # then five products, then WINDOW
WINDOW = struct.Struct("@2i")
STACK = struct.Struct("@14P6q10i2fi")

_ERRORS: dict[int, type[Exception]] = {-1: IndexError, -2: ValueError, -3: MemoryError, -4: IndexError}
_MESSAGES = {
    -1: "a page number or slot lies outside the KV pool",
    -2: "cu_rows does not divide q into rows, or a row has more tokens than kv_len, or kv_len exceeds its page table",
    -3: "no memory for the kernel's scratch space",
    -4: "a token id lies outside the vocabulary, a position outside its page table or a wanted place outside the step",
}
_FEATURES = ("AVX512-BF16", "AVX512-VNNI", "AVX-VNNI", "NEON", "NEON dot products")


def _open() -> tuple[ctypes.CDLL | None, str]:
    places = [Path(__file__).with_name("_native" + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return None, (
            "the native library was not built: install a C compiler with OpenMP (Debian: apt install gcc; "
            "macOS: brew install llvm libomp) and reinstall branchwork"
        )
    try:
        library = ctypes.CDLL(str(found))
    except OSError as error:
        return None, f"the native library {found.name} does not load ({error}): reinstall branchwork"
    pointer, wide, narrow = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name, arguments in {
        "paged_attention": [ctypes.c_char_p, narrow],
        "rotary": [ctypes.c_char_p, narrow],
        "store_kv": [ctypes.c_char_p, narrow],
        "rms_norm": [*[pointer] * 5, *[wide] * 4, ctypes.c_float, narrow],
        "silu_mul": [pointer, pointer, wide, wide, wide, narrow],
        "gelu": [pointer, pointer, wide, wide, narrow],
        "sample": [ctypes.c_char_p],
        "stack": [ctypes.c_char_p, narrow],
        "logits": [ctypes.c_char_p, pointer, pointer, wide],
        "linear": [ctypes.c_char_p, pointer, pointer, wide, narrow],
        "weight_rows": [ctypes.c_char_p, pointer, pointer, wide],
        "pack": [ctypes.c_char_p],
        "quantize": [ctypes.c_char_p, narrow],
        "vector_width": [narrow],
        "read": [pointer, wide, pointer],
        "features": [],
    }.items():
        function = getattr(library, f"bw_{name}")
        function.argtypes = arguments
        function.restype = ctypes.c_int
    return library, ""


_LIBRARY, why = _open()
available = _LIBRARY is not None


def library() -> ctypes.CDLL:
    """The open library. Raises RuntimeError with the remedy when there is none: ask `available` first."""
    if _LIBRARY is None:
        raise RuntimeError(why)
    return _LIBRARY


def check(code: int) -> None:
    """Raise what a kernel's negative return code stands for."""
    if code < 0:
        raise _ERRORS[code](_MESSAGES[code])


def vector_width(floats: int = 0) -> int:
    """Use vectors of at most this many floats from now on (0: the widest here); returns the choice. For tests."""
    return int(library().bw_vector_width(floats))


def features() -> list[str]:
    """What this processor multiplies bfloat16 and small integers with, by name; none on a machine without."""
    bits = int(library().bw_features())
    return [name for n, name in enumerate(_FEATURES) if bits >> n & 1]
