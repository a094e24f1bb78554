"""Valid and invalid calls of the forward: every rule of `check_softmax`, by a call that keeps it or breaks it."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from softmax_ops.checks import Request, check_softmax, memory
from softmax_ops.checks.tensors import describe
from softmax_ops.planning.geometry import strides_nest

B, H, Q, K = 2, 3, 4, 6
INF, NAN = math.inf, math.nan


def check(x: Any = None, **arguments: Any) -> Request:
    defaults: dict[str, Any] = {"scale": 1.0, "mask": None, "causal": False, "causal_offset": None, "out": None}
    return check_softmax(torch.zeros(B, H, Q, K) if x is None else x, **(defaults | arguments))


def refuse(error: type[Exception], *words: str, x: Any = None, **arguments: Any) -> None:
    with pytest.raises(error) as raised:
        check(x, **arguments)
    assert type(raised.value) is error
    message = str(raised.value)
    assert message.startswith("softmax_ops.softmax: ")
    for word in words:
        assert word in message, message


def on_cuda(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A CUDA tensor without memory, created without a GPU."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda:0")


def lazily_negated(*shape: int) -> torch.Tensor:
    """A float32 view whose memory holds the opposite of its values."""
    return torch.zeros(*shape, dtype=torch.complex64).conj().imag


# x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(K,), (Q, K), (B, H, Q, K), (2, 1, 2, 1, 2, K), (0,), (Q, 0), (0, K)])
def test_x_is_passed_on(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, dtype=dtype)
    request = check(x)
    assert request.x is x
    assert request == Request(x, 1.0, None, None, None, -INF)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(K, Q).t(), torch.zeros(Q, 2 * K)[:, ::2], torch.zeros(1, K).expand(Q, K), on_cuda(Q, K)],
    ids=["transposed", "last stride 2", "stride 0", "cuda"],
)
def test_x_may_have_any_strides_and_be_on_cuda(x: torch.Tensor) -> None:
    assert check(x).x is x


@pytest.mark.parametrize("x", [[1.0, 2.0], np.zeros(3), 1.0], ids=["list", "ndarray", "float"])
def test_x_must_be_a_tensor(x: Any) -> None:
    refuse(TypeError, "x is of type", type(x).__name__, "torch.as_tensor", x=x)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), ["int64 tensor of shape (2, 3), strides (3, 1), on cpu", "bfloat16"]),
        (torch.zeros(2, 3, dtype=torch.bool), ["bool tensor", "x.to(torch.float32)"]),
        (torch.zeros(2, 3, dtype=torch.float8_e5m2), ["float8_e5m2", "x.to(torch.float32)"]),
        (torch.zeros(0, 3, dtype=torch.int32), ["int32 tensor of shape (0, 3)"]),
        (torch.zeros(2, 3, dtype=torch.complex64), ["complex64", "real"]),
        (torch.tensor(1.0), ["0-d", "x.reshape(1)"]),
        (torch.zeros(2, 3).to_sparse(), ["layout sparse_coo and shape (2, 3), on cpu", "x.to_dense()"]),
        (lazily_negated(2, 3), ["negated", "x.resolve_neg()"]),
    ],
    ids=["int", "bool", "float8", "empty int", "complex", "0-d", "sparse", "negated"],
)
def test_x_is_refused(x: torch.Tensor, words: list[str]) -> None:
    refuse(ValueError, *words, x=x)


@pytest.mark.filterwarnings("ignore")
def test_prototype_tensors_are_refused() -> None:
    """Quantized, nested and compressed layouts; creating some of these already warns."""
    refuse(ValueError, "quint8", "x.dequantize()", x=torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8))
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    refuse(ValueError, "nested float32", "to_padded_tensor", x=ragged)
    refuse(ValueError, "sparse_csr", "x.to_dense()", x=torch.ones(2, 3).to_sparse_csr())


# scale


@pytest.mark.parametrize(
    ("scale", "value"),
    [
        (0.125, 0.125),
        (0, 0.0),
        (-3, -3.0),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(2), 2.0),
        (Fraction(1, 4), 0.25),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.1, dtype=torch.float64), 0.1),
        (torch.tensor(3), 3.0),
        (2.0**127, 2.0**127),
    ],
)
def test_scale_becomes_a_float(scale: Any, value: float) -> None:
    got = check(scale=scale).scale
    assert type(got) is float
    assert got == value


@pytest.mark.parametrize(
    "scale",
    [True, "1.0", 1j, [1.0], Decimal(1), np.bool_(True), np.ones(()), torch.tensor(True), torch.tensor(1j)],
    ids=lambda scale: type(scale).__name__,
)
def test_scale_must_be_a_real_number(scale: Any) -> None:
    refuse(TypeError, "scale is", "want a real number", "float(scale)", scale=scale)
    refuse(TypeError, "scale is None", "want a real number: pass 1.0 for no scale", scale=None)


@pytest.mark.parametrize(
    "scale",
    [INF, -INF, NAN, np.float32(INF), torch.tensor(NAN), 10**400],
    ids=["inf", "-inf", "nan", "numpy inf", "tensor nan", "huge int"],
)
def test_scale_must_be_finite(scale: Any) -> None:
    refuse(ValueError, "scale is", "finite", scale=scale, x=torch.zeros(K, dtype=torch.float64))


def test_scale_must_be_finite_in_the_accumulation_type() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.zeros(K, dtype=dtype)
        refuse(ValueError, "scale is -1e+39", "1.701e+38", describe(x), x=x, scale=-1e39)
    assert check(torch.zeros(K, dtype=torch.float64), scale=-1e39).scale == -1e39


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (on_cuda(), ["on cuda:0", "both on one device"]),
        (torch.zeros((), device="meta"), ["on meta", "both on one device"]),
        (torch.ones(2, 2), ["shape (2, 2)", "one element, or one for each row"]),
        (torch.tensor(1.0, requires_grad=True), ["requires grad", "scale.detach()"]),
    ],
    ids=["cuda", "meta", "matrix", "requires grad"],
)
def test_scale_tensor_is_refused(scale: torch.Tensor, words: list[str]) -> None:
    refuse(ValueError, "scale is a float32 tensor", *words, scale=scale)


# mask


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize(
    "shape", [(B, H, Q, K), (B, 1, 1, K), (B, 1, Q, 1), (1, H, 1, K), (Q, K), (K,), (1,), (), (1, 1, 1, 1)], ids=str
)
def test_mask_is_passed_on_unexpanded(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape, dtype=dtype)
    assert check(mask=mask).mask is mask


@pytest.mark.parametrize(
    "shape",
    [(K + 1,), (B, Q, K), (Q, 1, K), (B, H, Q, 2), (B, K), (1, B, H, Q, K), (1, 1, 1, 1, 1), (0,), (0, 1, 1, 1)],
    ids=str,
)
def test_mask_must_broadcast(shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    refuse(ValueError, f"mask has shape {shape}", f"x has shape {(B, H, Q, K)}", "[B, 1, 1, K]", mask=mask)


def test_mask_of_an_empty_x_must_broadcast() -> None:
    empty = torch.zeros(0, Q, K)
    for shape in [(0, Q, K), (1, Q, K), (1,)]:
        assert check(empty, mask=torch.zeros(shape, dtype=torch.bool)).mask is not None
    refuse(ValueError, "mask has shape (2, 1, 6)", x=empty, mask=torch.zeros(2, 1, K, dtype=torch.bool))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(Q, K), ["float32", "additive", "mask == 1"]),
        (torch.zeros(Q, K, dtype=torch.float16), ["float16", "additive"]),
        (torch.zeros(Q, K, requires_grad=True), ["additive"]),
        (torch.zeros(Q, K, dtype=torch.int64), ["int64", "mask == 1", "mask == 0 if they keep"]),
        (torch.zeros(Q, K, dtype=torch.int8), ["int8", "mask == 1"]),
        (torch.zeros(Q, K, dtype=torch.complex64), ["complex64", "want dtype bool or uint8"]),
        (torch.zeros(Q, K, dtype=torch.bool, device="meta"), ["on meta", "on cpu", "mask.to(x.device)"]),
        (on_cuda(Q, K, dtype=torch.bool), ["on cuda:0", "on cpu", "mask.to(x.device)"]),
        (torch.zeros(Q, K, dtype=torch.bool).to_sparse(), ["mask is a bool tensor of layout", "mask.to_dense()"]),
    ],
    ids=["float32", "float16", "requires grad", "int64", "int8", "complex", "meta", "cuda", "sparse"],
)
def test_mask_is_refused(mask: torch.Tensor, words: list[str]) -> None:
    refuse(ValueError, *words, mask=mask)


@pytest.mark.parametrize("mask", [[True], np.zeros(K, dtype=bool), True], ids=["list", "ndarray", "bool"])
def test_mask_must_be_a_tensor(mask: Any) -> None:
    advice = ["torch.as_tensor(mask)"] if isinstance(mask, np.ndarray) else []
    refuse(TypeError, "mask is of type", type(mask).__name__, *advice, mask=mask)


# causal, causal_offset


@pytest.mark.parametrize(
    ("shape", "offset", "expected"),
    [
        ((B, H, 4, 6), None, 2),  # bottom-right: K - Q
        ((6, 4), None, -2),
        ((6,), None, 5),  # [K] means Q = 1
        ((4, 6), 0, 0),
        ((4, 6), np.int64(-1), -1),
        ((4, 6), -4, -4),
        ((4, 6), 6, 6),
        ((4, 6), -5, -4),  # clamped to [-Q, K], which does not change the result
        ((4, 6), 7, 6),
        ((4, 6), -(10**30), -4),
        ((4, 6), 10**30, 6),
        ((6,), -9, -1),
        ((0, 6), -3, 0),
        ((4, 0), None, -4),
    ],
)
def test_causal_offset(shape: tuple[int, ...], offset: Any, expected: int) -> None:
    got = check(torch.zeros(shape), causal=True, causal_offset=offset).causal_offset
    assert type(got) is int
    assert got == expected


def test_not_causal_has_no_offset() -> None:
    assert check(causal=False).causal_offset is None


@pytest.mark.parametrize("causal", [1, 0, None, "True", np.bool_(True), torch.tensor(True)], ids=lambda c: repr(c))
def test_causal_must_be_a_bool(causal: Any) -> None:
    refuse(TypeError, "causal is", type(causal).__name__, "want a bool", causal=causal)


@pytest.mark.parametrize("offset", [True, 1.0, "1", np.float64(1)], ids=lambda o: repr(o))
def test_causal_offset_must_be_an_int(offset: Any) -> None:
    refuse(TypeError, "causal_offset is", type(offset).__name__, "j <= i + ", causal=True, causal_offset=offset)


@pytest.mark.parametrize("offset", [0, 2])
def test_causal_offset_needs_causal(offset: int) -> None:
    refuse(ValueError, f"causal_offset is {offset}", "causal=True", causal_offset=offset)


# out: metadata


@pytest.mark.parametrize("out", [[1.0], np.zeros((Q, K))], ids=["list", "ndarray"])
def test_out_must_be_a_tensor(out: Any) -> None:
    refuse(TypeError, "out is of type", type(out).__name__, x=torch.zeros(Q, K), out=out)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (torch.zeros(Q, K, dtype=torch.float16), ["float16 tensor", "float32 tensor", "torch.empty_like(x)"]),
        (torch.zeros(Q, K + 1), ["(4, 7)", "(4, 6)"]),
        (torch.zeros(1, Q, K), ["(1, 4, 6)"]),
        (torch.zeros(1, K), ["(1, 6)"]),
        (torch.zeros(Q, K, device="meta"), ["on meta", "on cpu"]),
        (torch.zeros(K, Q).t(), ["strides (1, 4)", "last stride 1"]),
        (torch.zeros(Q, 2 * K)[:, ::2], ["strides (12, 2)", "last stride 1"]),
        (torch.zeros(Q, K).to_sparse(), ["sparse_coo"]),
        (lazily_negated(Q, K), ["out", "negated"]),
    ],
    ids=["dtype", "shape", "more dims", "broadcastable", "device", "transposed", "last stride 2", "sparse", "negated"],
)
def test_out_must_be_like_x(out: torch.Tensor, words: list[str]) -> None:
    refuse(ValueError, *words, x=torch.zeros(Q, K), out=out)


def test_empty_out_is_validated() -> None:
    empty = torch.zeros(0, K)
    assert check(empty, out=empty).out is empty
    assert check(empty, out=torch.zeros(1, K).expand(1, K)[:0]).out is not None
    refuse(ValueError, "(0, 7)", x=empty, out=torch.zeros(0, K + 1))
    buffer = torch.zeros(Q, K)
    assert check(empty, out=buffer[2:2], mask=buffer.view(torch.uint8)[2, :K]) is not None  # they share no byte


def test_out_of_one_column_may_have_any_last_stride() -> None:
    x, out = torch.zeros(Q, 1), torch.zeros(Q, 3)[:, ::3].as_strided((Q, 1), (3, 7))
    assert check(x, out=out).out is out


@pytest.mark.parametrize("name", ["x", "out", "in place"])
def test_out_is_not_differentiable(name: str) -> None:
    x = torch.zeros(Q, K, requires_grad=name != "out")
    out = x if name == "in place" else torch.zeros(Q, K, requires_grad=name == "out")
    refuse(ValueError, f"{'out' if name == 'out' else 'x'} requires grad", "autograd", "no_grad", x=x, out=out)
    with torch.no_grad():
        assert check(x, out=out).out is out
    assert check(x.detach(), out=out.detach()).out is not None


# out: memory


def test_out_may_be_x() -> None:
    x = torch.zeros(Q, 2 * K)[:, :K]
    assert check(x, out=x).out is x
    assert check(x, out=x.view(Q, K)).out is not x
    one = torch.zeros(1, K)
    assert check(one, out=one.as_strided((1, K), (17, 1))).out is not one  # the stride of a single row does not matter


def test_out_may_interleave_with_x() -> None:
    """One buffer: scores in its left half, results in its right half."""
    buffer = torch.zeros(B, Q, 2 * K)
    left, right = buffer[..., :K], buffer[..., K:]
    assert check(left, out=right).out is right
    assert check(right, out=left).out is left
    heads = torch.zeros(B, Q, 2, K).transpose(1, 2)
    assert check(heads[:, 0], out=heads[:, 1]).out is not None


@pytest.mark.parametrize("shift", [1, K - 1, K, K + 1, -1, -K])
def test_out_may_not_overlap_x_partly(shift: int) -> None:
    buffer = torch.zeros(3 * Q * K)
    x, out = (buffer[Q * K + at :][: Q * K].view(Q, K) for at in (0, shift))
    refuse(ValueError, "overlaps x", f"{4 * shift} bytes after it", "new tensor", x=x, out=out)


def test_out_may_not_share_x_at_other_strides() -> None:
    buffer = torch.zeros(2 * Q * K)
    out = buffer.view(Q, 2 * K)[:, :K]
    for start in (0, K):  # K: the first row fits between two rows of out, the second one does not
        refuse(ValueError, "overlaps x", x=buffer[start:][: Q * K].view(Q, K), out=out)
    matrix = torch.zeros(Q, K)
    refuse(ValueError, "overlaps x", x=matrix[:1].expand(Q, K), out=matrix)


def test_out_may_not_share_part_of_an_element() -> None:
    memory = bytearray(64)
    x, out = (torch.frombuffer(memory, dtype=torch.float16, offset=at, count=K) for at in (0, 2 * K - 1))
    refuse(ValueError, "overlaps x", x=x, out=out)
    assert check(x, out=torch.frombuffer(memory, dtype=torch.float16, offset=2 * K, count=K)).out is not None


def test_out_may_not_overlap_itself() -> None:
    x = torch.zeros(B, Q, K)
    refuse(ValueError, "strides (24, 0, 1)", "one address", x=x, out=torch.zeros(B, Q, K)[:, :1].expand(B, Q, K))
    refuse(ValueError, "strides (24, 5, 1)", x=x, out=torch.zeros(B * Q * K).as_strided((B, Q, K), (24, 5, 1)))
    refuse(ValueError, "one address", x=x[:1, :1].expand(B, Q, K), out=x[:1, :1].expand(B, Q, K))
    swapped = torch.zeros(Q, B, K).transpose(0, 1)
    assert check(x, out=swapped).out is swapped


def test_out_may_not_overlap_the_mask() -> None:
    x, out = torch.zeros(2, Q, K)
    mask = out.view(torch.uint8)[1, :K]
    refuse(ValueError, "mask", "uint8 tensor of shape (6,)", "mask.clone()", x=x, out=out, mask=mask)
    assert check(x, out=out, mask=x.view(torch.uint8)[1, :K]).x is x
    left, last = out[:, :-1], out[-1, -2:].view(torch.uint8)  # `last`: the last element of left, then one beyond it
    refuse(ValueError, "mask", x=x[:, :-1], out=left, mask=last[3:4])
    assert check(x[:, :-1], out=left, mask=last[4:5]).out is left


# The memory tests against a list of addresses

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def addresses(shape: list[int], strides: list[int]) -> list[int]:
    return [sum(i * s for i, s in zip(at, strides, strict=True)) for at in itertools.product(*map(range, shape))]


@given(sizes, st.data())
@settings(deadline=None, database=None, derandomize=True, max_examples=300)
def test_self_overlap_is_never_missed(shape: list[int], data: st.DataObject) -> None:
    strides = data.draw(st.lists(st.integers(0, 20), min_size=len(shape), max_size=len(shape)))
    flat = addresses(shape, strides)
    if strides_nest(shape, strides):
        assert len(set(flat)) == len(flat)


@given(sizes, st.data())
@settings(deadline=None, database=None, derandomize=True, max_examples=300)
def test_sharing_is_exact_for_equal_strides(shape: list[int], data: st.DataObject) -> None:
    """Views nested like slices and transposes of a buffer, at every kind of distance, in int8 and float32 alike."""
    order = data.draw(st.permutations(range(len(shape))))
    strides, reach = [0] * len(shape), 1
    for dim in order:
        strides[dim] = reach + data.draw(st.integers(0, 3))
        reach = strides[dim] * shape[dim]
    distance = data.draw(st.integers(0, reach + 1))
    assert strides_nest(shape, strides)
    buffer = torch.zeros(2 * reach + 2, dtype=data.draw(st.sampled_from([torch.int8, torch.float32])))
    x, out = (buffer.as_strided(shape, strides, at) for at in (0, distance))
    flat = addresses(shape, strides)
    shares = not set(flat).isdisjoint(a + distance for a in flat)
    assert memory.may_share(out, x) == shares
    assert memory.may_share(x, out) == shares
