"""The interpreter of these tests rounds as a chip does and catches the faults that the stock one lets pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from branchwork.kernels.triton.language import jit, tl

pytestmark = pytest.mark.interpreted


@jit
def copy_kernel(x, out, size, SHIFT: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at + SHIFT, mask=at < size if MASKED else at >= 0, other=0.0)
    tl.store(out + at, value, mask=at < size)


@jit
def number_kernel(out, STRIDE: tl.constexpr):
    program = tl.program_id(0)
    tl.store(out + program * STRIDE, program.to(tl.float32))


@jit
def relay_kernel(out):
    program = tl.program_id(0)
    before = tl.load(out + program)
    tl.store(out + program + 1, before + 1.0)


@jit
def scatter_kernel(out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at // 2, at.to(tl.float32))


@jit
def arithmetic_kernel(a, b, out, total, product, SIZE: tl.constexpr):
    row, col = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    x, y = tl.load(a + row * SIZE + col), tl.load(b + row * SIZE + col)
    tl.store(out + row * SIZE + col, x * y + x)
    tl.store(total + tl.arange(0, SIZE), tl.sum(x, axis=1))
    tl.store(product + row * SIZE + col, tl.dot(x, y))


@jit
def round_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


def error_of(kernel: Any, grid: int, *arguments: Any, **constexprs: Any) -> str:
    with pytest.raises(Exception) as raised:
        kernel[(grid,)](*arguments, **constexprs)
    return repr(raised.value)


def test_a_forgotten_mask_is_caught() -> None:
    x, out = torch.rand(50), torch.rand(50)
    copy_kernel[(2,)](x, out, 50, SHIFT=0, MASKED=True, BLOCK=32)
    assert torch.equal(x, out)
    assert "OutOfBounds" in error_of(copy_kernel, 2, x, out, 50, SHIFT=0, MASKED=False, BLOCK=32)


@pytest.mark.parametrize("shift", [-1, 1])
def test_off_by_one_is_caught(shift: int) -> None:
    assert "OutOfBounds" in error_of(
        copy_kernel, 2, torch.rand(50), torch.rand(50), 50, SHIFT=shift, MASKED=True, BLOCK=32
    )


def test_programs_that_write_or_read_each_others_places_are_caught() -> None:
    number_kernel[(3,)](torch.rand(3), STRIDE=1)
    with pytest.raises(Exception, match="two programs"):
        number_kernel[(3,)](torch.rand(3), STRIDE=0)
    with pytest.raises(Exception, match="another one writes"):
        relay_kernel[(3,)](torch.zeros(4))
    assert "lanes of one store" in error_of(scatter_kernel, 1, torch.zeros(8), BLOCK=16)


def test_bfloat16_is_rounded_to_even_by_every_operation() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    out, product, total = torch.empty(16, 16).bfloat16(), torch.empty(16, 16), torch.empty(16).bfloat16()
    arithmetic_kernel[(1,)](a, b, out, total, product, SIZE=16)
    assert torch.equal(out, a * b + a)
    torch.testing.assert_close(total, a.float().sum(1).bfloat16(), rtol=2**-7, atol=0)
    torch.testing.assert_close(product, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrow_floats_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.cat((torch.randn(1000) * 50, torch.randn(1047) * 0.01, torch.tensor([1.999])))
    out = torch.empty(2048, dtype=dtype)
    round_kernel[(1,)](x, out, BLOCK=2048)
    assert torch.equal(out.float(), x.to(dtype).float())


def test_what_a_kernel_leaves_unwritten_is_not_a_number() -> None:
    assert torch.empty(5).isnan().all()
