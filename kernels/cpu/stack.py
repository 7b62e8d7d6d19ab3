"""A decoder's layers in one call of the native C library, with weights packed for its own products.

Knows: tensor layouts and the C calls. Must not know: families, requests, which implementation the table picks.
A row's result does not depend, to the bit, on the other rows, on how it is cut into chunks or on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from branchwork.kernels.cpu import native
from branchwork.kernels.cpu.product import PANEL, Packed, pack
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.kv import ROW_TAIL
from branchwork.kernels.reference.quant import Quantized
from branchwork.kernels.reference.stack import Gated, LayerParts, StackParts

available = native.available
why = native.why

_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1}


def stack(parts: StackParts) -> NativeStack | None:
    """None for mixtures of experts, and for weights of types and sizes that the library does not take."""
    width = parts.embed.shape[1]
    paired = not any(size % 2 for size in (width, parts.ffn))
    fits = parts.dense and parts.norm.dtype in _ELEMENTS and parts.dim % 8 == 0 and parts.dim <= 1024 and paired
    return NativeStack(parts) if fits else None


class NativeStack:
    """Packed weights and their addresses. A head that is the embedding is held once."""

    def __init__(self, parts: StackParts) -> None:
        self._held: list[Tensor | Packed] = []  # what the addresses below point to
        self._dtype = parts.norm.dtype
        self._element = _ELEMENTS[self._dtype]
        self._sizes = (parts.layers, parts.embed.shape[1], parts.ffn, parts.heads, parts.kv_heads, parts.dim)
        self._eps = parts.eps
        self._vocab = parts.head.shape[0]
        self._norm = self._numbers(parts.norm)
        self._embed = self._product(parts.embed)
        self._embedding = np.frombuffer(self._embed, np.uint8)
        self._head = self._embed if parts.head is parts.embed else self._product(parts.head)
        layers = b"".join(self._layer(parts.layer(i)) for i in range(parts.layers))
        self._layers = np.frombuffer(layers, np.uint8)
        self._angles = parts.angles
        self._cos = self._sin = torch.empty((0, parts.dim // 2))
        self._pools: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())
        self._addresses = np.empty(0, np.int64)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        page_table: Tensor,
        cu_rows: Tensor,
        kv_len: Tensor,
        slots: Tensor,
        wanted: Tensor,
        k: Sequence[Tensor],
        v: Sequence[Tensor],
    ) -> Tensor:
        """As kernels.reference.stack.Stack. Raises ValueError for tensors that do not fit, IndexError for ids, slots
        or pages out of range."""
        tokens, rows = ids.shape[0], kv_len.shape[0]
        if k is not self._pools[0] or v is not self._pools[1]:
            self._adopt(k, v)
        _check(torch.int64, *((tensor, (tokens,)) for tensor in (ids, positions, slots)), (wanted, (wanted.shape[0],)))
        _check(torch.int32, (cu_rows, (rows + 1,)), (kv_len, (rows,)), (page_table, (rows, page_table.shape[1])))
        pages, _, page, _ = k[0].shape
        if page_table.shape[1] * page > self._cos.shape[0]:
            self._turn(page_table.shape[1] * page)
        page_stride, head_stride, _, _ = k[0].stride()
        out = torch.empty((wanted.shape[0], self._sizes[1]))
        call = native.STACK.pack(
            self._layers.ctypes.data, self._embedding.ctypes.data, self._norm, self._addresses.ctypes.data,
            ids.data_ptr(), positions.data_ptr(), slots.data_ptr(), wanted.data_ptr(),
            self._cos.data_ptr(), self._sin.data_ptr(),
            page_table.data_ptr(), cu_rows.data_ptr(), kv_len.data_ptr(), out.data_ptr(),
            page_stride, head_stride, page_table.shape[1], tokens, wanted.shape[0], self._cos.shape[0],
            *self._sizes, page, pages, rows, page_table.shape[1], self._eps, self._sizes[5] ** -0.5,
            k[0].dtype == torch.int8,
        )  # fmt: skip
        native.check(native.library().bw_stack(call, self._element))
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """As kernels.reference.stack.Stack."""
        rows = hidden.shape[0]
        _check(torch.float32, (hidden, (rows, self._sizes[1])))
        out = torch.empty((rows, -(-self._vocab // PANEL) * PANEL))
        native.check(native.library().bw_logits(self._head, hidden.data_ptr(), out.data_ptr(), rows))
        return out[:, : self._vocab]

    def _turn(self, positions: int) -> None:
        """Angles of at least this many positions from now on; those that were there stay, to the bit."""
        begin = self._cos.shape[0]
        cos, sin = self._angles(torch.arange(begin, max(positions, 2 * begin, 1024)))
        self._cos, self._sin = torch.cat((self._cos, cos)), torch.cat((self._sin, sin))

    def _adopt(self, k: Sequence[Tensor], v: Sequence[Tensor]) -> None:
        layers, _, _, _, kv_heads, dim = self._sizes
        first = k[0] if k else torch.empty(0)
        for pool in (*k, *v):
            alike = pool.dtype == first.dtype and pool.dtype in (self._dtype, torch.int8)
            if not alike or pool.stride() != first.stride() or pool.shape != first.shape:
                raise ValueError(
                    f"the pools must be alike, {self._dtype} or int8, got {pool.dtype} {tuple(pool.shape)}"
                )
        row = dim + ROW_TAIL if first.dtype == torch.int8 else dim
        if len(k) != layers or len(v) != layers or first.shape[1::2] != (kv_heads, row):
            raise ValueError(f"{layers} pools [P, {kv_heads}, S, {row}] are needed twice, got {len(k)} and {len(v)}")
        if first.stride()[2:] != (row, 1):
            raise ValueError("the last two dimensions of the pools must be contiguous")
        self._pools = (k, v)
        self._addresses = np.array([pool.data_ptr() for pair in zip(k, v) for pool in pair], np.int64)

    def _layer(self, layer: LayerParts) -> bytes:
        assert isinstance(layer.mlp, Gated)
        norms = layer.qk_norm or (None, None)
        products = (
            self._product(*layer.qkv),
            self._product(*layer.out),
            *(self._product(*part) for part in layer.mlp),
        )
        return (
            native.LAYER.pack(
                self._numbers(layer.norm),
                *(0 if norm is None else self._numbers(norm) for norm in norms),
                self._numbers(layer.post_norm),
            )
            + b"".join(products)
            + native.WINDOW.pack(layer.window, 0)
        )

    def _numbers(self, values: Tensor) -> int:
        """Address of a copy of the values as float32."""
        self._held.append(values := values.float().contiguous().clone())
        return values.data_ptr()

    def _product(self, weight: Tensor | Quantized | Float8, bias: Tensor | None = None) -> bytes:
        """A weight [N, K] as panels of outputs: see native_product.c."""
        self._held.append(packed := pack(weight, bias))
        return packed.struct


def _check(dtype: torch.dtype, *pairs: tuple[Tensor, tuple[int, ...]]) -> None:
    for tensor, shape in pairs:
        if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"contiguous {dtype} {shape} is needed, got {tensor.dtype} {tuple(tensor.shape)}")
