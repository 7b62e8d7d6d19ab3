"""Native products equal their definition for every kind of weight, and to the bit themselves however they are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from branchwork import kernels
from branchwork.kernels import table
from branchwork.kernels.cpu import native, product
from branchwork.kernels.reference import linear as reference
from branchwork.kernels.reference.quant import Quantized, dequantize, quantize

pytestmark = pytest.mark.skipif(not product.available, reason=product.why)

ROWS = (1, 2, 3, 5, 8, 12, 13, 64, 65, 512)
# N, K, group
SIZES = ((33, 32, 32), (96, 192, 64), (40, 384, 128), (70, 1056, 32), (64, 4864, 128))
INTEGERS = [(bits, offsets) for bits in (8, 4) for offsets in (False, True)]


@pytest.fixture(params=[16, 8, 4])
def width(request: pytest.FixtureRequest) -> Iterator[int]:
    found = native.vector_width(request.param)
    try:
        if found != request.param:
            pytest.skip(f"no vectors of {request.param} floats here")
        yield found
    finally:
        native.vector_width()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(outputs: int, inputs: int, group: int, bits: int, offsets: bool) -> Quantized:
    """A weight that uses every value there is, the most negative ones included."""
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(0, 256, (outputs, inputs * bits // 8), dtype=torch.uint8, generator=generator)
    scales = torch.randn(outputs, inputs // group, generator=generator).half() / 50
    shifts = torch.randn(outputs, inputs // group, generator=generator).half() / 50 if offsets else None
    return Quantized(values.view(torch.int8) if bits == 8 else values, scales, shifts, bits, group)


def far(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize("bits, offsets", INTEGERS)
@pytest.mark.parametrize("outputs, inputs, group", SIZES)
def test_integer_products_equal_the_definition(
    outputs: int, inputs: int, group: int, bits: int, offsets: bool, width: int, threads: int
) -> None:
    weight, bias = integers(outputs, inputs, group, bits, offsets), numbers(outputs, seed=1)
    packed = product.pack(weight, bias)
    x = numbers(ROWS[-1], inputs, seed=2)
    expected = reference.linear(x.double(), weight, bias)
    for count in ROWS:
        assert far(product.linear(x[:count], packed, None), expected[:count]) < 1e-5, f"{count} rows"


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("outputs, inputs", [(33, 32), (40, 35), (96, 192), (70, 1056), (64, 4864)])
def test_float_products_equal_the_definition(
    outputs: int, inputs: int, dtype: torch.dtype, near: float, width: int, threads: int
) -> None:
    weight, bias, x = numbers(outputs, inputs).to(dtype), numbers(outputs, seed=1).to(dtype), numbers(512, inputs)
    packed = product.pack(weight)
    expected = x.to(dtype).double() @ weight.double().T + bias.double()
    for count in ROWS:
        assert far(product.linear(x[:count].to(dtype), packed, bias), expected[:count]) < near, f"{count} rows"


@pytest.mark.parametrize("bits, offsets", INTEGERS)
@pytest.mark.parametrize("outputs, inputs, group", SIZES)
def test_integer_products_are_the_same_bits_with_every_instruction_set(
    outputs: int, inputs: int, group: int, bits: int, offsets: bool
) -> None:
    packed = product.pack(integers(outputs, inputs, group, bits, offsets), numbers(outputs, seed=1))
    x = numbers(77, inputs, seed=2)
    found = []
    for width in (16, 8, 4):
        native.vector_width(width)
        found.append(product.linear(x, packed, None))
    native.vector_width()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_a_row_of_a_packed_product_is_to_the_bit_what_it_gives_alone(kind: str, width: int, threads: int) -> None:
    weight: Tensor | Quantized = numbers(200, 1056)
    if kind in ("int8", "int4"):
        weight = quantize(numbers(200, 1056), 8 if kind == "int8" else 4)
    else:
        weight = numbers(200, 1056).to(getattr(torch, kind))
    packed = product.pack(weight)
    x = numbers(300, 1056, seed=3).to(packed.dtype or torch.float32)
    alone = torch.cat([product.linear(row[None], packed, None) for row in x])
    for count in (*range(1, 27), 63, 64, 65, 130, 300):
        assert torch.equal(product.linear(x[300 - count :], packed, None), alone[300 - count :]), f"{count} rows"


@pytest.mark.parametrize("bits, offsets", INTEGERS)
def test_a_packed_weight_comes_back_row_by_row(bits: int, offsets: bool) -> None:
    weight = integers(70, 192, 64, bits, offsets)
    packed = product.pack(weight)
    assert packed.shape == (70, 192)
    assert torch.equal(packed.to_dense(), dequantize(weight))
    ids = torch.tensor([69, 0, 33])
    assert torch.equal(product.rows(packed, ids), dequantize(weight)[ids])
    with pytest.raises(IndexError):
        product.rows(packed, torch.tensor([70]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_weights_come_back_whole(dtype: torch.dtype) -> None:
    weight = numbers(45, 37).to(dtype)
    assert torch.equal(product.pack(weight).to_dense(), weight)


def test_results_have_the_type_of_x_and_not_finite_inputs_spread() -> None:
    weight = quantize(numbers(40, 64), 4)
    packed = kernels.pack_linear(weight)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert kernels.linear(numbers(3, 64).to(dtype), packed).dtype == dtype
    x = numbers(2, 64)
    x[1, 40] = torch.inf
    found = kernels.linear(x, packed)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_every_implementation_takes_integer_weights() -> None:
    weight, x = quantize(numbers(40, 64), 4), numbers(5, 64, seed=1)
    expected = x @ dequantize(weight).T
    for pack, multiply in zip(table.TABLE["pack_linear"]["cpu"], table.TABLE["linear"]["cpu"], strict=True):
        if table.why_missing(pack):
            continue
        packed = table.load(pack)(weight, torch.float32)
        assert far(table.load(multiply)(x, packed, None), expected) < 0.02, pack.name


def test_shapes_and_types_that_do_not_fit_are_errors() -> None:
    packed = product.pack(numbers(40, 64))
    for x in (numbers(3, 63), numbers(64), numbers(3, 64).bfloat16()):
        with pytest.raises(ValueError):
            product.linear(x, packed, None)
    with pytest.raises(ValueError, match="bias"):
        product.linear(numbers(3, 64), packed, numbers(41))
    with pytest.raises(ValueError, match="bias"):
        product.pack(numbers(40, 64), numbers(41))
    with pytest.raises(ValueError, match="float32"):
        product.pack(numbers(40, 64).half())
    with pytest.raises(ValueError, match="float16"):
        product.pack(quantize(numbers(40, 64), 4)._replace(offsets=torch.zeros(40, 1).half()))
