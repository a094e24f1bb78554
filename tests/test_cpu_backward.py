"""The CPU path of the backward against the reference: shapes, strides, causal offsets, out, and non-finite values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from softmax_ops import cpu
from softmax_ops.checks import check_softmax_backward
from tests.support import reference
from tests.support.reference import DTYPE_NAMES, DTYPES, assert_close, to_numpy

INF, NAN = math.inf, math.nan
SHAPE = (2, 3, 5, 7)  # B, H, Q, K

every_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))


def softmax_backward(dy: torch.Tensor, y: torch.Tensor, **arguments: Any) -> torch.Tensor:
    defaults: dict[str, Any] = {"scale": 1.0, "causal": False, "causal_offset": None, "out": None}
    return cpu.softmax_backward(check_softmax_backward(dy, y, **(defaults | arguments)))


def verify(dy: torch.Tensor, y: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """softmax_backward(dy, y), after comparing it with the reference; hidden columns must be exactly 0."""
    offset = arguments.get("causal_offset")
    if arguments.get("causal") and offset is None:
        offset = y.shape[-1] - (y.shape[-2] if y.dim() > 1 else 1)
    inputs = (to_numpy(dy).copy(), to_numpy(y).copy(), float(arguments.get("scale", 1.0)), offset)  # out may be either
    with np.errstate(invalid="ignore"):  # inf times 0
        expected, magnitude = reference.softmax_backward(*inputs), reference.backward_magnitude(*inputs)

    dx = softmax_backward(dy, y, **arguments)
    assert dx.dtype == y.dtype
    assert_close(dx, expected, DTYPE_NAMES[y.dtype], floor=0.0, magnitude=magnitude)
    hidden = ~reference.visible(expected.shape, None, offset)
    assert (to_numpy(dx)[hidden & ~np.isnan(expected)] == 0).all()
    return dx


def gradients(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1).to(dtype)


def probabilities(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    return torch.softmax(gradients(*shape, dtype=torch.float64, seed=seed), -1).to(dtype)


def call(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """dy and y."""
    return gradients(*shape, dtype=dtype), probabilities(*shape, dtype=dtype)


@pytest.fixture(params=[None, 10], ids=["one block", "blocks of 10"])
def block_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' tensors fit into one block; with 10 elements per block, a [5, 7] matrix is computed row by row."""
    if request.param is not None:
        monkeypatch.setattr(cpu, "_BLOCK_ELEMENTS", request.param)


# Shapes, strides, scale

SHAPES = [(7,), (5, 7), SHAPE, (2, 1, 2, 3, 2, 7), (3, 1), (3, 1000), (2, 9, 4)]


def sliced(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a part of a larger tensor, surrounded by NaN."""
    inside = torch.full([n + 3 for n in tensor.shape], NAN, dtype=tensor.dtype)
    for dim, size in enumerate(tensor.shape):
        inside = inside.narrow(dim, 1, size)
    return inside.copy_(tensor)


def columns_first(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the last dimension outermost in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_shapes_and_strides(dtype: torch.dtype, shape: tuple[int, ...], causal: bool, block_elements: None) -> None:
    dy, y = call(*shape, dtype=dtype)
    for strided_dy, strided_y in [(dy, y), (sliced(dy), columns_first(y)), (columns_first(dy), sliced(y))]:
        assert verify(strided_dy, strided_y, scale=0.3, causal=causal).is_contiguous()
        assert torch.equal(strided_dy, dy) and torch.equal(strided_y, y)


@every_dtype
@pytest.mark.parametrize("kept", [(), (1,), (7,), (5, 1), (3, 1, 1), (2, 1, 1, 7), (1, 1, 5, 7)], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_expanded_dy(dtype: torch.dtype, kept: tuple[int, ...], causal: bool, block_elements: None) -> None:
    """As from sums over the result: stride 0 in some dimensions, or in all of them."""
    dy, y = gradients(*kept, dtype=dtype).expand(SHAPE), probabilities(*SHAPE, dtype=dtype)
    dx = verify(dy, y, scale=-0.3, causal=causal)
    assert dx.is_contiguous()
    assert torch.equal(dx, verify(dy.contiguous(), y, scale=-0.3, causal=causal))


def test_expanded_y() -> None:
    verify(gradients(*SHAPE), probabilities(3, 1, 7).expand(SHAPE))


@every_dtype
@pytest.mark.parametrize("scale", [1.0, 0.125, -0.7, 0.0, 1 / 3, torch.tensor(0.1, dtype=torch.float64), 30.0])
def test_scale(dtype: torch.dtype, scale: Any) -> None:
    verify(*call(8, 33, dtype=dtype), scale=scale)


@every_dtype
def test_small_probabilities_of_large_gradients(dtype: torch.dtype) -> None:
    """Products below float16's range, and sums above it, occur only as intermediate values."""
    dy, y = torch.full((3, 64), 60000.0, dtype=dtype), torch.full((3, 64), 2.0**-14, dtype=dtype)
    dy[0], dy[1, ::2], y[1, 0] = 2.0**-12, -60000.0, 0.5
    verify(dy, y, scale=0.5)


@pytest.mark.parametrize("shape", [(0,), (5, 0), (0, 5), (2, 0, 7), (0, 0)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_empty(shape: tuple[int, ...], causal: bool) -> None:
    dy, y = torch.zeros(shape, dtype=torch.float16), torch.zeros(shape, dtype=torch.float16)
    dx = softmax_backward(dy, y, causal=causal)
    assert (dx.shape, dx.dtype) == (shape, torch.float16)
    assert softmax_backward(dy, y, out=dy) is dy
    assert softmax_backward(torch.zeros((), dtype=torch.float16).expand(shape), y, out=y) is y


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_gradient_of_the_forward(causal: bool) -> None:
    """From scores to their gradient, against autograd through torch's own operations."""
    x = gradients(*SHAPE, dtype=torch.float64, seed=2).requires_grad_()
    hidden = torch.ones(5, 7, dtype=torch.bool).triu(3) if causal else torch.zeros(5, 7, dtype=torch.bool)
    y = torch.softmax((0.3 * x).masked_fill(hidden, -INF), -1)
    dy = gradients(*SHAPE, dtype=torch.float64)
    y.backward(dy)
    assert x.grad is not None
    torch.testing.assert_close(verify(dy, y.detach(), scale=0.3, causal=causal), x.grad, rtol=1e-12, atol=1e-14)


# Causality


@every_dtype
@pytest.mark.parametrize("q, k", [(5, 7), (7, 5), (1, 7), (5, 1)])
@pytest.mark.parametrize("offset", [None, 0, -1, 1, -5, -9, 4, 12, 10**20])
def test_causal(dtype: torch.dtype, q: int, k: int, offset: int | None, block_elements: None) -> None:
    """Columns beyond the diagonal are NaN or inf, which must not affect anything, in y as in dy."""
    dy, y = call(2, q, k, dtype=dtype)
    edge = k - q if offset is None else offset
    future = torch.tensor([[j > i + edge for j in range(k)] for i in range(q)])
    for garbage in [(NAN, NAN), (INF, NAN), (-INF, 7.0), (5.0, INF)]:
        spoilt = [tensor.masked_fill(future, value) for tensor, value in zip((dy, y), garbage, strict=True)]
        dx = verify(*spoilt, causal=True, causal_offset=offset)
        assert (dx[:, future] == 0).all()


def test_causal_row() -> None:
    """[K] is the last query of a bottom-right causal square; with offset 1, the second one of a top-left one."""
    dy, y = call(6)
    assert torch.equal(softmax_backward(dy, y, causal=True), softmax_backward(dy, y))
    assert verify(dy, y, causal=True, causal_offset=1)[2:].eq(0).all()


@every_dtype
def test_rows_that_saw_nothing_are_zero(dtype: torch.dtype) -> None:
    dy, y = call(3, 5, dtype=dtype)
    y[1] = 0
    assert (verify(dy, y)[1] == 0).all()
    assert (verify(dy, y * NAN, causal=True, causal_offset=-3) == 0).all()


# Non-finite values


@every_dtype
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["dy", "y"])
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype, value: float, name: str) -> None:
    """As in the formula, also in columns that causality hides: 0 * (0 - sum) is NaN."""
    dy, y = call(3, 6, dtype=dtype)
    expected = verify(dy, y, causal=True)
    (dy if name == "dy" else y)[1, 2] = value
    dx = verify(dy, y, causal=True)
    assert dx[1, 5].isnan() and not dx[1].isfinite().any()
    assert torch.equal(dx[[0, 2]], expected[[0, 2]])


def test_infinity_times_zero_is_nan() -> None:
    """In the sum, where it makes the whole row NaN, and with a scale of 0."""
    dy, y = call(2, 5)
    dy[0, 3], y[0, 3] = INF, 0.0
    assert verify(dy, y).isnan().any(-1).tolist() == [True, False]
    assert verify(dy, y)[0].isnan().all()
    y[0, 3] = 1.0
    assert verify(dy, y, scale=0.0)[0].isnan().all()


# out


@every_dtype
def test_out_keeps_its_strides_and_its_surroundings(dtype: torch.dtype, block_elements: None) -> None:
    dy, y = call(*SHAPE, dtype=dtype)
    buffer = torch.full((3, 6, 2, 16), 77.0, dtype=dtype)
    out = buffer.permute(2, 0, 1, 3)[:, :, 1:, 3:10]  # (2,3,5,7), strides (16,192,32,1)
    untouched = torch.ones(buffer.shape, dtype=torch.bool)
    untouched.permute(2, 0, 1, 3)[:, :, 1:, 3:10] = False
    strides, address = out.stride(), out.data_ptr()

    dx = verify(dy, y, out=out, scale=0.3, causal=True)
    assert dx is out
    assert (dx.stride(), dx.data_ptr()) == (strides, address)
    assert (buffer[untouched] == 77).all()
    assert torch.equal(dx, softmax_backward(dy, y, scale=0.3, causal=True))


@every_dtype
@pytest.mark.parametrize("arrange", [torch.clone, sliced], ids=["contiguous", "sliced"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_in_place(
    dtype: torch.dtype, arrange: Callable[[torch.Tensor], torch.Tensor], causal: bool, block_elements: None
) -> None:
    for shape in [SHAPE, (7,)]:
        values = call(*shape, dtype=dtype)
        expected = verify(*values, scale=0.3, causal=causal)
        for over in (0, 1):
            operands = [arrange(tensor) for tensor in values]
            out, other = operands[over], operands[1 - over]
            assert verify(*operands, out=out, scale=0.3, causal=causal) is out
            assert torch.equal(out, expected)
            assert torch.equal(other, values[1 - over])


def test_in_place_over_y_that_is_dy_too(block_elements: None) -> None:
    y = probabilities(*SHAPE)
    expected = verify(y, y)
    assert torch.equal(verify(y, y, out=y), expected)


def test_over_y_with_an_expanded_dy(block_elements: None) -> None:
    y = probabilities(*SHAPE)
    assert verify(torch.tensor(2.0).expand(SHAPE), y, out=y, causal=True) is y


def test_blocks_cover_large_tensors() -> None:
    """A tensor larger than a block, whose rows do not divide it, and a single row larger than a block."""
    verify(*call(3, 700, 1001), causal=True)
    verify(torch.tensor(1.5).expand(2, 2**20 + 1), probabilities(2, 2**20 + 1))
