"""Products of the GPU with weights of 8 and 4 bits and of e4m3 against float64, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from branchwork.kernels.reference import float8
from branchwork.kernels.reference import quant as plain
from branchwork.kernels.triton import linear, quant

pytestmark = pytest.mark.interpreted

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}
DTYPES = list(CLOSE)


def soak(*values: object) -> object:
    """A case of the longer runs."""
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_product(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """found is x @ weight.T + bias of float64, rounded to x's type; errors count by the size of what was summed."""
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    size = x.double().abs() @ weight.double().abs().T + 1e-9
    assert found.dtype == x.dtype
    assert ((found.double() - exact).abs() / size).max() < CLOSE[x.dtype]
    assert not found.isnan().any()


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("bits, group", [(8, 32), soak(8, 96), soak(8, 192), soak(4, 32), (4, 64)])
def test_integer_weights_are_never_rounded(bits: int, group: int, offsets: bool, rows: int) -> None:
    weight = plain.quantize(torch.randn(70, 192), bits, group, offsets)
    for dtype in DTYPES if rows == 5 else DTYPES[1:2]:
        x = torch.randn(rows, 200).to(dtype)[:, :192]
        bias = torch.randn(70).to(dtype) if rows != 1 else None
        assert_product(linear.linear(x, weight, bias), x, plain.dequantize(weight), bias)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(
    "block, inputs", [(None, 100), soak(None, 128), soak((32, 64), 128), soak((128, 128), 256), ((32, 64), 160)]
)
def test_e4m3_weights_are_read_exactly(block: tuple[int, int] | None, inputs: int, rows: int) -> None:
    weight = float8.quantize(torch.randn(70, inputs), block)
    for dtype in DTYPES:
        x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(70).to(dtype)
        assert_product(linear.linear(x, weight, bias), x, float8.dequantize(weight), bias)


def test_every_e4m3_byte_is_decoded() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(16, 16).view(torch.float8_e4m3fn)
    numbers = values.float().nan_to_num(0.5)
    weight = float8.Float8(numbers.to(torch.float8_e4m3fn), torch.ones(1, 1), (16, 16))
    assert torch.equal(linear.linear(torch.eye(16), weight, None), numbers.T)
    wrong = linear.linear(torch.eye(16), weight._replace(values=values), None)
    assert wrong[:, [7, 15]].isnan().all() and not wrong[:, :7].isnan().any()  # a NaN spoils all rows of its output


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_does_not_depend_on_the_rows_beside_it(bits: int) -> None:
    weight = plain.quantize(torch.randn(48, 128), bits, 64)
    x = torch.randn(90, 128).bfloat16()
    few, many = linear.linear(x[:32], weight, None), linear.linear(x, weight, None)
    assert torch.equal(linear.linear(x[7:8], weight, None)[0], few[7])
    assert torch.equal(linear.linear(x[40:80], weight, None), many[40:80])


def test_float_weights_go_to_torch() -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    assert torch.equal(linear.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


def test_no_rows_give_no_rows() -> None:
    assert linear.linear(torch.empty(0, 64), plain.quantize(torch.randn(9, 64), 4), None).shape == (0, 9)


def test_what_does_not_fit_is_refused() -> None:
    weight = plain.quantize(torch.randn(16, 64), 8)
    with pytest.raises(ValueError, match="64 inputs"):
        linear.linear(torch.randn(1, 32), weight, None)
    with pytest.raises(ValueError, match="contiguous"):
        quant.linear(torch.randn(1, 32), weight._replace(values=weight.values[:, :32]), None)
    with pytest.raises(ValueError, match="16 inputs"):
        quant.linear(torch.randn(1, 64), float8.quantize(torch.randn(16, 64), (16, 8)), None)
    with pytest.raises(ValueError, match="float16"):
        linear.pack_linear(weight._replace(scales=weight.scales.float()))
