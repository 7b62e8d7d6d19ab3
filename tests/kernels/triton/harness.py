"""Triton's interpreter made faithful and strict: it rounds as a GPU does, and allows no stray access and no race.

Knows: the interpreter's internals as of Triton 3.9. Must not know: our kernels. Call install() before the first launch.

Stock, it multiplies the bit patterns of bfloat16, truncates where a chip rounds, reads and writes past the end of any
tensor and runs programs one after another, so that none ever sees another's write too early.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

_FP8 = {
    tl.float8e4nv: (torch.float8_e4m3fn, 448.0),
    tl.float8e5: (torch.float8_e5m2, 57344.0),
    tl.float8e4b8: (torch.float8_e4m3fnuz, 240.0),
    tl.float8e5b16: (torch.float8_e5m2fnuz, 57344.0),
}


class OutOfBounds(Exception):
    """An active lane's address lies in no tensor that the kernel was given."""


class Race(Exception):
    """One program writes what another writes otherwise, or reads."""


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(value: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 bit patterns, halves to the even neighbour."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(value), (bits >> 16) | 0x40, rounded).astype(np.uint16).reshape(np.shape(value))


def _bfloat(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16


def _float(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widened(handle.data), tl.float32) if _bfloat(handle) else handle


class FaithfulBuilder(interpreter.InterpreterBuilder):
    """The stock builder with bfloat16 and fp8 arithmetic that rounds, and every access reported to the guard."""

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> TensorHandle:
        wanted = dst_type.scalar
        if src.data.dtype == np.bool_:  # comparisons are typed as their operands
            src = TensorHandle(src.data, tl.int1)
        if src.dtype.scalar == wanted:
            return src
        if _bfloat(src):
            return self.cast_impl(_float(src), dst_type)
        if wanted == tl.bfloat16:
            return TensorHandle(narrowed(src.data), tl.bfloat16)
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: Any, rounding_mode: Any) -> TensorHandle:
        wanted = dst_type.scalar
        if wanted == tl.bfloat16 or _bfloat(src):
            return self.cast_impl(src, dst_type)
        if wanted in _FP8 and src.dtype.scalar not in _FP8:
            kind, top = _FP8[wanted]
            value = torch.from_numpy(np.array(src.data, dtype=np.float32)).clamp(-top, top)
            return TensorHandle(value.to(kind).view(torch.uint8).numpy().reshape(src.data.shape), wanted)
        if src.dtype.scalar in _FP8:
            kind, _ = _FP8[src.dtype.scalar]
            value = torch.from_numpy(np.array(src.data)).view(kind).float().numpy().reshape(src.data.shape)
            return self.cast_impl(TensorHandle(value, tl.float32), dst_type)
        if wanted in (tl.float16, tl.float32, tl.float64):
            return TensorHandle(src.data.astype(interpreter._get_np_dtype(wanted)), wanted)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        if _bfloat(lhs) and _bfloat(rhs) and op not in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
            out = op(widened(lhs.data), widened(rhs.data))
            return TensorHandle(out, tl.int1) if out.dtype == np.bool_ else TensorHandle(narrowed(out), tl.bfloat16)
        out = super().binary_op(lhs, rhs, op)
        return TensorHandle(out.data, tl.int1) if out.data.dtype == np.bool_ else out

    def create_fneg(self, arg: TensorHandle) -> TensorHandle:
        if _bfloat(arg):
            return TensorHandle(arg.data ^ np.uint16(0x8000), tl.bfloat16)
        return self.unary_op(arg, np.negative)

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> TensorHandle:
        """Products and sums in float32 (int32 of int8), as matrix units of 16-bit types do."""
        if min(*a.data.shape, *b.data.shape) < 16:
            raise ValueError(f"a dot needs 16 in each dimension, got {a.data.shape} and {b.data.shape}")
        if a.dtype.scalar != b.dtype.scalar:
            raise ValueError(f"a dot needs operands of one type, got {a.dtype} and {b.dtype}")
        wide = [_float(x) for x in (a, b)]
        wide = [TensorHandle(x.data.astype(np.float32), tl.float32) if x.data.dtype == np.float16 else x for x in wide]
        return super().create_dot(*wide, d, *rest)

    def create_masked_load(self, ptrs: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
        GUARD.touch(ptrs, mask.data, "read")
        return super().create_masked_load(ptrs, mask, *rest)

    def create_masked_store(self, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any) -> Any:
        GUARD.touch(ptrs, mask.data, "write", value.data)
        return super().create_masked_store(ptrs, value, mask, *rest)

    def create_atomic_rmw(self, op: Any, ptr: TensorHandle, val: Any, mask: TensorHandle, *rest: Any) -> TensorHandle:
        GUARD.touch(ptr, mask.data, "atomic")
        return super().create_atomic_rmw(op, ptr, val, mask, *rest)

    def create_atomic_cas(self, ptr: TensorHandle, *rest: Any) -> TensorHandle:
        GUARD.touch(ptr, np.ones(ptr.data.shape, bool), "atomic")
        return super().create_atomic_cas(ptr, *rest)


class Guard:
    """What one launch may touch and what its programs touched."""

    builder: ClassVar[Any] = interpreter.interpreter_builder

    def begin(self, tensors: list[torch.Tensor]) -> None:
        spans = {(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in (x.untyped_storage() for x in tensors)}
        self.spans = np.array(sorted(spans), dtype=np.uint64).reshape(-1, 2)
        self.reads: list[tuple[np.ndarray, int]] = []
        self.writes: list[tuple[np.ndarray, np.ndarray, int]] = []

    def touch(self, ptrs: TensorHandle, mask: np.ndarray, kind: str, value: np.ndarray | None = None) -> None:
        places, active = np.broadcast_arrays(ptrs.data, mask)
        active = active.astype(bool)
        address = places[active]
        if not address.size:
            return
        width = np.uint64(max(1, ptrs.get_element_ty().primitive_bitwidth // 8))
        self._bounds(address, width, kind)
        x, y, z = self.builder.grid_idx
        program = (x * self.builder.grid_dim[1] + y) * self.builder.grid_dim[2] + z
        if kind == "read":
            self.reads.append((address, program))
        elif kind == "write":
            stored = np.ascontiguousarray(np.broadcast_to(value, places.shape)[active])
            bits = stored.view(f"u{stored.dtype.itemsize}").astype(np.uint64)
            if len(np.unique(address)) != len(address):
                self._same(address, bits, "lanes of one store")
            self.writes.append((address, bits, program))

    def _bounds(self, address: np.ndarray, width: np.uint64, kind: str) -> None:
        at = np.searchsorted(self.spans[:, 0], address, side="right").astype(int) - 1
        inside = (at >= 0) & (address + width <= self.spans[np.maximum(at, 0), 1])
        if not inside.all():
            where = int(address[~inside][0])
            begin, end = (int(v) for v in self.spans[max(int(at[~inside][0]), 0)])
            raise OutOfBounds(
                f"{kind} by program {self.builder.grid_idx} at byte {where - begin} of a tensor of {end - begin} bytes"
            )

    def _same(self, address: np.ndarray, bits: np.ndarray, who: str) -> None:
        order = np.argsort(address, kind="stable")
        address, bits = address[order], bits[order]
        if ((address[1:] == address[:-1]) & (bits[1:] != bits[:-1])).any():
            raise Race(f"{who} write different values to one address")

    def end(self) -> None:
        """Raises Race where the launch's programs depended on their order."""
        if not self.writes:
            return
        address = np.concatenate([a for a, _, _ in self.writes])
        self._same(address, np.concatenate([b for _, b, _ in self.writes]), "two programs")
        owner = np.concatenate([np.full(a.shape, program) for a, _, program in self.writes])
        order = np.argsort(address, kind="stable")
        address, owner = address[order], owner[order]
        for read, program in self.reads:
            at = np.minimum(np.searchsorted(address, read), len(address) - 1)
            if ((address[at] == read) & (owner[at] != program)).any():
                raise Race(f"program {program} reads what another one writes")


GUARD = Guard()


class GuardedGrid(interpreter.GridExecutor):
    """A launch between the guard's begin and end."""

    def _init_args_hst(self, args_dev: Any, kwargs: dict[str, Any]) -> Any:
        args, named = super()._init_args_hst(args_dev, kwargs)
        GUARD.begin([x for x in (*args, *named.values()) if isinstance(x, torch.Tensor)])
        return args, named

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        super().__call__(*args, **kwargs)
        GUARD.end()


def _sum(reduce: Any, tensor: Any) -> Any:
    """tl.sum as a chip does it: bfloat16 is added in float32 and rounded."""
    data = tensor.handle.data
    if not _bfloat(tensor.handle):
        return reduce.to_tensor(np.sum(data, axis=reduce.axis, keepdims=reduce.keep_dims), tensor.dtype)
    total = np.sum(widened(data), axis=reduce.axis, keepdims=reduce.keep_dims)
    return reduce.to_tensor(narrowed(np.asarray(total)), tl.bfloat16)


def install() -> None:
    """Repair the interpreter for this process; and torch.empty gives NaN, so that nothing unwritten goes unnoticed."""
    interpreter.interpreter_builder.__class__ = FaithfulBuilder
    interpreter.GridExecutor = GuardedGrid
    interpreter.ReduceOps.sum = _sum
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
