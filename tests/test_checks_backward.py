"""Valid and invalid calls of the backward: every rule of `check_softmax_backward`, kept or broken."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from softmax_ops.checks import BackwardRequest, check_softmax_backward
from softmax_ops.checks.tensors import describe
from tests.test_checks import lazily_negated, on_cuda

B, H, Q, K = 2, 3, 4, 6
INF, NAN = math.inf, math.nan


def check(dy: Any = None, y: Any = None, **arguments: Any) -> BackwardRequest:
    """dy and y are zeros; if one is given, the other is zeros like it."""
    if dy is None:
        dy = torch.zeros(B, H, Q, K) if y is None else torch.zeros_like(y)
    if y is None:
        y = torch.zeros(dy.shape, dtype=dy.dtype, device=dy.device)
    defaults: dict[str, Any] = {"scale": 1.0, "causal": False, "causal_offset": None, "out": None}
    return check_softmax_backward(dy, y, **(defaults | arguments))


def refuse(error: type[Exception], *words: str, **arguments: Any) -> None:
    with pytest.raises(error) as raised:
        check(**arguments)
    assert type(raised.value) is error
    message = str(raised.value)
    assert message.startswith("softmax_ops.softmax_backward: ")
    for word in words:
        assert word in message, message


# dy and y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(K,), (Q, K), (B, H, Q, K), (2, 1, 2, 1, 2, K), (0,), (Q, 0), (0, K)])
def test_tensors_are_passed_on(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    dy, y = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    request = check(dy, y)
    assert request.dy is dy and request.y is y
    assert request == BackwardRequest(dy, y, 1.0, None, None)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(K, Q).t(),
        torch.zeros(Q, 2 * K)[:, ::2],
        torch.zeros(1, K).expand(Q, K),
        torch.zeros(Q, 1).expand(Q, K),
        torch.zeros(()).expand(Q, K),
    ],
    ids=["transposed", "last stride 2", "expanded rows", "expanded columns", "one element"],
)
def test_tensors_may_have_any_strides(tensor: torch.Tensor) -> None:
    assert check(dy=tensor).dy is tensor
    assert check(y=tensor).y is tensor


def test_what_the_backward_of_a_sum_hands_over() -> None:
    received: list[torch.Tensor] = []
    y = torch.zeros(Q, K, requires_grad=True)
    y.register_hook(received.append)
    y.sum().backward()
    assert received[0].stride() == (0, 0)
    assert check(received[0], y.detach()).dy is received[0]


def test_tensors_may_be_on_cuda_and_require_grad() -> None:
    """Whether autograd can record the call is for the caller to decide, unless there is an out."""
    assert check(on_cuda(Q, K), on_cuda(Q, K)).out is None
    assert check(torch.zeros(Q, K, requires_grad=True), torch.zeros(Q, K, requires_grad=True)).out is None


@pytest.mark.parametrize("given", [[1.0, 2.0], np.zeros(3), 1.0], ids=["list", "ndarray", "float"])
def test_tensors_must_be_tensors(given: Any) -> None:
    other = torch.zeros(3)
    for name, pair in {"dy": {"dy": given, "y": other}, "y": {"dy": other, "y": given}}.items():
        refuse(TypeError, f"{name} is of type", type(given).__name__, f"torch.as_tensor({name})", **pair)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), ["int64 tensor of shape (2, 3), strides (3, 1), on cpu", "bfloat16"]),
        (torch.zeros(2, 3, dtype=torch.float8_e5m2), ["float8_e5m2", "{}.to(torch.float32)"]),
        (torch.zeros(0, 3, dtype=torch.int32), ["int32 tensor of shape (0, 3)"]),
        (torch.zeros(2, 3, dtype=torch.complex64), ["complex64", "pass {}.real"]),
        (torch.zeros(2, 3, dtype=torch.complex64).conj(), ["complex64", "pass {}.real"]),
        (torch.tensor(1.0), ["0-d", "{}.reshape(1)"]),
        (torch.zeros(2, 3).to_sparse(), ["layout sparse_coo and shape (2, 3), on cpu", "{}.to_dense()"]),
        (lazily_negated(2, 3), ["negated", "{}.resolve_neg()"]),
    ],
    ids=["int", "float8", "empty int", "complex", "conjugate", "0-d", "sparse", "negated"],
)
def test_tensors_are_refused(tensor: torch.Tensor, words: list[str]) -> None:
    other = torch.zeros(2, 3)
    for name, pair in {"dy": {"dy": tensor, "y": other}, "y": {"dy": other, "y": tensor}}.items():
        refuse(ValueError, f"{name} is a", *(word.format(name) for word in words), **pair)


@pytest.mark.filterwarnings("ignore")
def test_prototype_tensors_are_refused() -> None:
    """Quantized, nested and compressed layouts; creating some of these already warns."""
    y = torch.ones(2, 3)
    quantized = torch.quantize_per_tensor(y, 0.1, 0, torch.quint8)
    refuse(ValueError, "quint8", "dy.dequantize()", dy=quantized, y=y)
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    refuse(ValueError, "nested float32", "dy.to_padded_tensor(0)", dy=ragged, y=y)
    refuse(ValueError, "sparse_csr", "dy.to_dense()", dy=y.to_sparse_csr(), y=y)


@pytest.mark.parametrize(
    ("dy", "advice"),
    [
        (torch.zeros(Q, K, dtype=torch.float16), "dy.to(y)"),
        (torch.zeros(Q, K, dtype=torch.float64), "dy.to(y)"),
        (on_cuda(Q, K), "dy.to(y)"),
        (torch.zeros(Q, K + 1), "dy.expand_as(y)"),
        (torch.zeros(1, K), "dy.expand_as(y)"),
        (torch.zeros(1, Q, K), "dy.expand_as(y)"),
        (torch.zeros(K), "dy.expand_as(y)"),
    ],
    ids=["float16", "float64", "cuda", "shape", "broadcastable", "more dims", "fewer dims"],
)
def test_dy_must_be_like_y(dy: torch.Tensor, advice: str) -> None:
    y = torch.zeros(Q, K)
    refuse(ValueError, f"dy is a {describe(dy)} and y a {describe(y)}", "one dtype, shape", advice, dy=dy, y=y)


# scale, causal, causal_offset: the rules of the forward, under the name of the backward


@pytest.mark.parametrize(
    ("scale", "value"),
    [(0.125, 0.125), (-3, -3.0), (torch.tensor(0.1, dtype=torch.float64), 0.1), (2.0**127, 2.0**127)],
)
def test_scale_becomes_a_float(scale: Any, value: float) -> None:
    got = check(scale=scale).scale
    assert type(got) is float
    assert got == value


@pytest.mark.parametrize("scale", [True, "1.0", 1j, None, torch.tensor(True)], ids=lambda scale: type(scale).__name__)
def test_scale_must_be_a_real_number(scale: Any) -> None:
    refuse(TypeError, "scale is", "want a real number", scale=scale)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (INF, ["scale is inf", "1.701e+38", "float32 tensor"]),
        (torch.tensor(NAN), ["scale is nan", "finite"]),
        (-1e39, ["scale is -1e+39", "1.701e+38"]),
        (10**400, ["beyond the range of float"]),
        (on_cuda(), ["on cuda:0", "both on one device"]),
        (torch.ones(2, 2), ["shape (2, 2)", "one element, or one for each row"]),
        (torch.tensor(1.0, requires_grad=True), ["requires grad", "scale.detach()"]),
    ],
    ids=["inf", "nan", "too large", "huge int", "cuda", "matrix", "requires grad"],
)
def test_scale_is_refused(scale: Any, words: list[str]) -> None:
    refuse(ValueError, *words, scale=scale)


def test_scale_must_be_finite_in_the_accumulation_type() -> None:
    refuse(ValueError, "scale is -1e+39", dy=torch.zeros(K, dtype=torch.float16), scale=-1e39)
    assert check(torch.zeros(K, dtype=torch.float64), scale=-1e39).scale == -1e39


@pytest.mark.parametrize(
    ("shape", "offset", "expected"),
    [
        ((B, H, 4, 6), None, 2),  # bottom-right: K - Q
        ((6, 4), None, -2),
        ((6,), None, 5),  # [K] means Q = 1
        ((4, 6), np.int64(-1), -1),
        ((4, 6), -5, -4),  # clamped to [-Q, K], which does not change the result
        ((4, 6), 10**30, 6),
        ((0, 6), -3, 0),
    ],
)
def test_causal_offset(shape: tuple[int, ...], offset: Any, expected: int) -> None:
    got = check(torch.zeros(shape), causal=True, causal_offset=offset).causal_offset
    assert type(got) is int
    assert got == expected


def test_causal_is_refused() -> None:
    refuse(TypeError, "causal is 1 of type int", "want a bool", causal=1)
    refuse(TypeError, "causal_offset is 1.0 of type float", "want an int", causal=True, causal_offset=1.0)
    refuse(ValueError, "causal_offset is 0", "causal=True", causal_offset=0)


# out: metadata


@pytest.mark.parametrize("out", [[1.0], np.zeros((Q, K))], ids=["list", "ndarray"])
def test_out_must_be_a_tensor(out: Any) -> None:
    refuse(TypeError, "out is of type", type(out).__name__, "like y", y=torch.zeros(Q, K), out=out)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (torch.zeros(Q, K, dtype=torch.float64), ["float64 tensor", "float32 tensor", "torch.empty_like(y)"]),
        (torch.zeros(Q, K + 1), ["(4, 7)", "(4, 6)"]),
        (torch.zeros(1, Q, K), ["(1, 4, 6)"]),
        (torch.zeros(Q, K, device="meta"), ["on meta", "on cpu"]),
        (torch.zeros(K, Q).t(), ["strides (1, 4)", "last stride 1"]),
        (torch.zeros(Q, K).to_sparse(), ["sparse_coo"]),
        (lazily_negated(Q, K), ["out", "negated"]),
    ],
    ids=["dtype", "shape", "more dims", "device", "transposed", "sparse", "negated"],
)
def test_out_must_be_like_y(out: torch.Tensor, words: list[str]) -> None:
    refuse(ValueError, *words, y=torch.zeros(Q, K), out=out)


def test_empty_out_is_validated() -> None:
    dy, y = torch.zeros(1, K).expand(0, K), torch.zeros(0, K)
    for out in (dy, y, torch.zeros(0, K)):
        assert check(dy, y, out=out).out is out
    refuse(ValueError, "(0, 7)", y=y, out=torch.zeros(0, K + 1))


def test_out_of_one_column_may_have_any_last_stride() -> None:
    out = torch.zeros(3 * Q).as_strided((Q, 1), (3, 7))
    assert check(torch.zeros(Q, 1), out=out).out is out


@pytest.mark.parametrize("name", ["dy", "y", "out"])
def test_out_is_not_differentiable(name: str) -> None:
    tensors = {each: torch.zeros(Q, K, requires_grad=each == name) for each in ("dy", "y", "out")}
    given = f"{name} requires grad ({describe(tensors[name])})"
    refuse(ValueError, given, "autograd", "no_grad", **tensors)
    with torch.no_grad():
        assert check(**tensors).out is tensors["out"]
    refuse(ValueError, given, **(tensors | {"out": tensors[name]}))


# out: memory


@pytest.mark.parametrize("name", ["dy", "y"])
def test_out_may_be_dy_or_y(name: str) -> None:
    pair = {"dy": torch.zeros(Q, 2 * K)[:, :K], "y": torch.zeros(Q, K)}
    assert check(**pair, out=pair[name]).out is pair[name]
    assert check(**pair, out=pair[name].view(Q, K)).out is not pair[name]


def test_out_may_be_both() -> None:
    y = torch.zeros(Q, K)
    assert check(y, y, out=y).out is y
    assert check(y, y.view(Q, K), out=y).out is y


def test_out_may_be_y_where_dy_is_one_element() -> None:
    y, ones = torch.zeros(Q, K), torch.ones(())
    assert check(ones.expand(Q, K), y, out=y).out is y


def test_out_may_interleave_with_both() -> None:
    """One buffer with three parts per row."""
    parts = torch.zeros(B, Q, 3, K).unbind(2)
    assert check(parts[0], parts[1], out=parts[2]).out is parts[2]
    assert check(parts[2], parts[1], out=parts[0]).out is parts[0]
    assert check(parts[0], parts[1], out=parts[1]).out is parts[1]


@pytest.mark.parametrize("shift", [1, K - 1, K, K + 1, -1, -K])
@pytest.mark.parametrize("elsewhere", ["apart", "out", "shared"])
def test_out_may_not_overlap_partly(shift: int, elsewhere: str) -> None:
    """It may overlap neither dy nor y, wherever the other one is: apart, exactly out, or the same as the first."""
    buffer = torch.zeros(3 * Q * K)
    tensor, out = (buffer[Q * K + at :][: Q * K].view(Q, K) for at in (0, shift))
    other = {"apart": torch.zeros(Q, K), "out": out, "shared": tensor}[elsewhere]
    bytes_after = f"{4 * shift} bytes after it"
    refuse(ValueError, "overlaps dy", "dy exactly", bytes_after, "new tensor", dy=tensor, y=other, out=out)
    name = "dy" if elsewhere == "shared" else "y"
    refuse(ValueError, f"overlaps {name}", f"{name} exactly", bytes_after, dy=other, y=tensor, out=out)


def test_out_may_not_share_an_expanded_dy() -> None:
    y = torch.zeros(Q, K)
    for part in (y[:1], y[:, :1], y[1, 1]):
        refuse(ValueError, "overlaps dy", "new tensor", dy=part.expand(Q, K), y=y, out=y)


def test_out_may_not_overlap_itself() -> None:
    for dy in (torch.zeros(1, K).expand(Q, K), torch.zeros(B, 1, K).expand(B, Q, K)):
        refuse(ValueError, describe(dy), "one address", dy=dy, out=dy)
    constant = torch.zeros(()).expand(Q, K)
    refuse(ValueError, "strides (0, 0)", "last stride 1", dy=constant, out=constant)
    refuse(
        ValueError,
        "strides (24, 5, 1)",
        out=torch.zeros(B * Q * K).as_strided((B, Q, K), (24, 5, 1)),
        dy=torch.zeros(B, Q, K),
    )
