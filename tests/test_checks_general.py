"""Valid and invalid general calls: every rule of `check_softmax` and `check_softmax_backward`, kept or broken."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from softmax_ops.checks import BackwardRequest, Request, check_softmax, check_softmax_backward
from tests.test_checks import lazily_negated, on_cuda

B, H, Q, K = 2, 3, 4, 6
INF, NAN = math.inf, math.nan
PLAIN = {"scale": 1.0, "causal": False, "causal_offset": None, "out": None}


def check(x: Any = None, **arguments: Any) -> Request:
    return check_softmax(torch.zeros(B, H, Q, K) if x is None else x, **({"mask": None} | PLAIN | arguments))


def check_backward(y: Any = None, **arguments: Any) -> BackwardRequest:
    y = torch.zeros(B, H, Q, K) if y is None else y
    return check_softmax_backward(torch.zeros_like(y), y, **(PLAIN | arguments))


def refuse(error: type[Exception], *words: str, backward: bool = False, **arguments: Any) -> None:
    with pytest.raises(error) as raised:
        (check_backward if backward else check)(**arguments)
    assert type(raised.value) is error
    message = str(raised.value)
    name = ("log_" if arguments.get("log") else "") + ("softmax_backward" if backward else "softmax")
    assert message.startswith(f"softmax_ops.{name}: "), message
    for word in words:
        assert word in message, message


# how arguments are converted


def test_everything_is_passed_on() -> None:
    x = torch.zeros(B, H, Q, K, dtype=torch.float16)
    given: dict[str, Any] = {
        "mask": torch.zeros(K, dtype=torch.bool),
        "bias": torch.zeros(H, 1, K),
        "key_lengths": torch.zeros(B, dtype=torch.int32),
        "alibi_slopes": torch.zeros(H),
        "sinks": torch.zeros(H, requires_grad=True),
        "softcap": 3,
        "return_lse": True,
        "log": True,
    }
    request = check(x, scale=torch.ones(H, Q), window=(1, None), causal=True, dtype=torch.float32, **given)
    assert request.general and request.x is x and request.scale == 1.0 and request.scale_tensor is not None
    for name, value in given.items():
        assert getattr(request, name) is value or getattr(request, name) == value, name
    assert (request.left, request.right, request.causal_offset) == (1, 0, K - Q)
    assert request.dtype is torch.float32 and type(request.softcap) is float


@pytest.mark.parametrize(
    "more",
    [
        {"bias": torch.zeros(K)},
        {"key_lengths": torch.zeros(B, dtype=torch.int32)},
        {"window": (1, None)},
        {"window": (None, 1)},
        {"alibi_slopes": torch.zeros(H)},
        {"sinks": torch.zeros(H)},
        {"softcap": 1.0},
        {"return_lse": True},
        {"log": True},
        {"scale": torch.ones(1)},
        {"causal": True, "causal_offset": torch.ones(1, dtype=torch.int64)},
        {"x": torch.zeros(B, H, Q, K).half(), "dtype": torch.float32},
        {"x": torch.zeros(B, H, Q, K).half(), "out": torch.zeros(B, H, Q, K)},
    ],
    ids=lambda more: " ".join(more),
)
def test_what_makes_a_general_request(more: dict[str, Any]) -> None:
    request = check(**more)
    assert request.general
    assert request.dtype is (torch.float32 if "x" in more else request.x.dtype)


@pytest.mark.parametrize("arguments", [{}, {"causal": True}, {"causal": True, "causal_offset": 9}, {"scale": 0.5}])
def test_what_asks_for_nothing_new_is_plain(arguments: dict[str, Any]) -> None:
    x = torch.zeros(Q, K)
    request = check(x, **arguments)
    more: dict[str, Any]
    for more in ({"dtype": torch.float32}, {"window": (None, None)}, {"return_lse": False, "log": False}):
        assert check(x, **arguments, **more) == request and not request.general
    backward = check_backward(x, **arguments)
    again = check_backward(x, **arguments, dtype=torch.float32, return_dot=False)
    assert again[1:] == backward[1:] and not backward.general and check_backward(x, **arguments, log=True).general


@pytest.mark.parametrize("shape", [(1,), (), (1, 1, 1, 1, 1, 1), (Q,), (H, 1), (B, H, Q), (B, 1, 1)], ids=str)
def test_scale_in_a_tensor(shape: tuple[int, ...]) -> None:
    if shape == ():
        assert check(on_cuda(B, H, Q, K), scale=on_cuda()).scale_tensor is not None
        return
    scale = torch.full(shape, 2.0)
    request, backward = check(scale=scale), check_backward(scale=scale)
    for found in (request.scale_tensor, backward.scale_tensor):
        assert found is not None and found.shape == (() if scale.numel() == 1 else shape)
        assert found.data_ptr() == scale.data_ptr()
    wide = check(torch.zeros(B, H, Q, K, dtype=torch.float64), scale=scale).scale_tensor
    assert wide is not None and wide.dtype is torch.float64 and (wide == 2).all()


@pytest.mark.parametrize(
    ("arguments", "band"),
    [
        ({"window": (1, 2)}, (2, 1, 2)),
        ({"window": [1, 2], "causal_offset": 0}, (0, 1, 2)),
        ({"window": (1, 2), "causal": True}, (2, 1, 0)),
        ({"window": (None, 1)}, (2, None, 1)),
        ({"window": (np.int64(1), None), "causal_offset": torch.tensor(-1)}, (-1, 1, None)),
        ({"window": (99, 99)}, (2, 6, 4)),  # tight: [-Q, K]
        ({"window": (1, 1), "causal_offset": 50}, (6, 0, 0)),
        ({"window": (1, 1), "causal_offset": -50}, (-4, 0, 0)),
        ({"window": (10**30, 10**30), "causal_offset": 10**30}, (6, 6, 0)),
        ({"key_lengths": torch.zeros(B, dtype=torch.int32)}, (None, None, None)),
        ({"softcap": 1.0, "causal": True, "causal_offset": 99}, (6, None, 0)),
    ],
)
def test_band(arguments: dict[str, Any], band: tuple[int | None, ...]) -> None:
    request = check(**arguments)
    assert (request.causal_offset, request.left, request.right) == band
    if "key_lengths" not in arguments and "softcap" not in arguments:
        backward = check_backward(**arguments)
        assert (backward.causal_offset, backward.left, backward.right) == band


def test_offset_in_a_tensor_is_added_to_nothing() -> None:
    offset = torch.ones(1, 1, dtype=torch.int32)
    for found in (check(causal=True, causal_offset=offset), check_backward(causal=True, causal_offset=offset)):
        assert (found.causal_offset, found.left, found.right) == (0, None, 0) and found.offset_tensor is offset
    assert check(torch.zeros(Q, K), causal=True, causal_offset=torch.tensor(1)).causal_offset == 1  # a number
    assert check(torch.zeros(Q, H, K), causal=True, causal_offset=torch.ones(Q).int()).offset_tensor is not None
    with pytest.raises(ValueError, match=r"shape \[B\] for x"):  # rows of [Q, K] are queries of one batch entry
        check(torch.zeros(Q, K), causal=True, causal_offset=torch.ones(Q).int())


def test_slopes_measure_from_the_offset_they_are_given() -> None:
    request = check(alibi_slopes=torch.zeros(H), causal_offset=1000)
    assert (request.causal_offset, request.left, request.right) == (1000, None, None)
    assert check(alibi_slopes=torch.zeros(H)).causal_offset == K - Q
    assert check(alibi_slopes=torch.zeros(H), causal_offset=1000, window=(1000, 0)).left == 1000


# what is refused

HEADS = "one number for each head, shape (3,)"
REFUSED: dict[str, tuple[type[Exception], dict[str, Any], list[str]]] = {
    "scale: dtype": (ValueError, {"scale": torch.ones(1).half()}, ["float16", "float32 tensor", "scale.float()"]),
    "scale: float64": (ValueError, {"scale": torch.ones(1).double()}, ["float64", "scale.float()"]),
    "scale: bool": (ValueError, {"scale": torch.ones(1).bool()}, ["bool tensor", "a number, a 0-d CPU tensor"]),
    "scale: shape": (ValueError, {"scale": torch.ones(B)}, ["shape (2,)", "(2, 3, 4)", "[B] to [B, 1, 1]"]),
    "scale: of columns": (ValueError, {"scale": torch.ones(Q, K)}, ["shape (4, 6)", "one for each row"]),
    "scale: empty": (ValueError, {"scale": torch.ones(0)}, ["shape (0,)", "one element"]),
    "scale: device": (ValueError, {"scale": on_cuda(1)}, ["on cuda:0", "one device", "scale.to(x.device)"]),
    "scale: sparse": (ValueError, {"scale": torch.ones(Q).to_sparse()}, ["scale is a", "scale.to_dense()"]),
    "scale: grad": (ValueError, {"scale": torch.ones(Q, requires_grad=True)}, ["requires grad", "multiply by it"]),
    "bias: type": (TypeError, {"bias": [0.0]}, ["bias is of type list", "x's dtype or float32"]),
    "bias: dtype": (ValueError, {"bias": torch.zeros(K).half()}, ["float16", "x's dtype or float32", "bias.to(x)"]),
    "bias: mask": (ValueError, {"bias": torch.zeros(K).bool()}, ["bool tensor", "mask="]),
    "bias: shape": (ValueError, {"bias": torch.zeros(Q, 2)}, ["(4, 2)", "(2, 3, 4, 6)", "[1, H, Q, K]"]),
    "bias: rank": (ValueError, {"bias": torch.zeros(1, 1, 1, 1, K)}, ["no more of them than x has"]),
    "bias: device": (ValueError, {"bias": on_cuda(K)}, ["one device", "bias.to(x.device)"]),
    "bias: negated": (ValueError, {"bias": lazily_negated(K)}, ["bias is a lazily negated view"]),
    "lengths: type": (TypeError, {"key_lengths": [1, 2]}, ["key_lengths is of type list", "int32 torch.Tensor [B]"]),
    "lengths: dtype": (ValueError, {"key_lengths": torch.zeros(B).long()}, ["int64", "int32", "key_lengths.int()"]),
    "lengths: shape": (ValueError, {"key_lengths": torch.zeros(3).int()}, ["shape (3,)", "(2,)", "pass a mask"]),
    "lengths: 2-D": (ValueError, {"key_lengths": torch.zeros(B, 1).int()}, ["shape (2, 1)", "(2,)"]),
    "lengths: device": (
        ValueError,
        {"key_lengths": on_cuda(B, dtype=torch.int32)},
        ["on cuda:0", "key_lengths.to(x.device)"],
    ),
    "lengths: row": (
        ValueError,
        {"x": torch.zeros(K), "key_lengths": torch.zeros(1).int()},
        ["x has shape (6,)", "x.unsqueeze(0)"],
    ),
    "window: type": (TypeError, {"window": 3}, ["window is 3", "(left, right)", "window=(1023, 0)"]),
    "window: length": (TypeError, {"window": (1, 2, 3)}, ["(1, 2, 3)", "(left, right)"]),
    "window: float": (TypeError, {"window": (1.0, 2)}, ["(1.0, 2)", "an int from 0, or None"]),
    "window: bool": (TypeError, {"window": (True, None)}, ["(True, None)", "an int from 0"]),
    "window: negative": (ValueError, {"window": (-1, 2)}, ["(-1, 2)", "an int from 0", "pass causal_offset"]),
    "offset: alone": (ValueError, {"causal_offset": torch.ones(1).int()}, ["causal_offset is", "a window"]),
    "offset: no window": (ValueError, {"causal_offset": 1, "window": (None, None)}, ["causal=True", "alibi_slopes"]),
    "offset: dtype": (
        ValueError,
        {"causal": True, "causal_offset": torch.ones(1)},
        ["float32 tensor of shape (1,)", "int32 or int64"],
    ),
    "offset: size": (
        ValueError,
        {"causal": True, "causal_offset": torch.ones(3).int()},
        ["shape (3,)", "shape [B] for x [B, ..., Q, K]"],
    ),
    "offset: device": (
        ValueError,
        {"causal": True, "causal_offset": on_cuda(1, dtype=torch.int32)},
        ["one device", "causal_offset.to(x.device)"],
    ),
    "causal": (TypeError, {"causal": 0, "window": (1, 1)}, ["causal is 0", "want a bool"]),
    "offset: far from slopes": (
        ValueError,
        {"causal_offset": -(2**30) - 1, "alibi_slopes": torch.zeros(H)},
        ["causal_offset is -1073741825", "at most 2^30 in magnitude with alibi_slopes"],
    ),
    "offset: beside no bool": (
        TypeError,
        {"causal": torch.tensor([True, False]), "causal_offset": torch.tensor([1])},
        ["causal is tensor([ True, False]) of type Tensor; want a bool"],
    ),
    "slopes: type": (TypeError, {"alibi_slopes": 0.5}, ["alibi_slopes is of type float", "[H]"]),
    "slopes: shape": (ValueError, {"alibi_slopes": torch.zeros(Q)}, ["shape (4,)", HEADS, "third dimension"]),
    "slopes: rank": (ValueError, {"alibi_slopes": torch.zeros(H, 1, 1)}, ["shape (3, 1, 1)", HEADS]),
    "slopes: grad": (ValueError, {"alibi_slopes": torch.zeros(H, requires_grad=True)}, ["requires grad", "as a bias"]),
    "sinks: dtype": (ValueError, {"sinks": torch.zeros(H).half()}, ["float16", "sinks.float()"]),
    "sinks: device": (ValueError, {"sinks": on_cuda(H)}, ["on cuda:0", "sinks.to(x.device)"]),
    "sinks: no heads": (
        ValueError,
        {"x": torch.zeros(Q, K), "sinks": torch.zeros(1)},
        ["x has shape (4, 6)", "[..., H, Q, K]", "x.unsqueeze(-3)"],
    ),
    "softcap: 0": (ValueError, {"softcap": 0}, ["softcap is 0.0", "above 0", "pass None"]),
    "softcap: negative": (ValueError, {"softcap": -1.0}, ["softcap is -1.0"]),
    "softcap: inf": (ValueError, {"softcap": INF}, ["softcap is inf", "finite"]),
    "softcap: nan": (ValueError, {"softcap": NAN}, ["softcap is nan"]),
    "softcap: huge": (
        ValueError,
        {"softcap": 10**400},
        ["softcap is an integer beyond the range of float", "pass None"],
    ),
    "softcap: small": (ValueError, {"softcap": 1e-39}, ["1.175e-38"]),
    "softcap: tensor": (TypeError, {"softcap": torch.tensor(1.0)}, ["softcap is tensor(1.)", "pass a float"]),
    "dtype: type": (TypeError, {"dtype": "float32"}, ["dtype is 'float32' of type str", "torch.dtype"]),
    "dtype: narrower": (
        ValueError,
        {"dtype": torch.float16},
        ["torch.float16", "want torch.float32", "convert the result"],
    ),
    "dtype: wider": (ValueError, {"dtype": torch.float64}, ["torch.float64", "want torch.float32"]),
    "dtype: of 16 bits": (
        ValueError,
        {"x": torch.zeros(K).half(), "dtype": torch.bfloat16},
        ["torch.bfloat16", "want torch.float16 or torch.float32"],
    ),
    "dtype and out": (
        ValueError,
        {"x": torch.zeros(K).half(), "dtype": torch.float32, "out": torch.zeros(K).half()},
        ["out is a float16", "dtype is torch.float32", "agree"],
    ),
    "dtype, in place": (
        ValueError,
        {"x": (x := torch.zeros(K).half()), "dtype": torch.float32, "out": x},
        ["x, which the result is written to, is a float16", "leave dtype out, or do not write in place"],
    ),
    "out: dtype": (
        ValueError,
        {"x": torch.zeros(K).half(), "out": torch.zeros(K).bfloat16()},
        ["bfloat16 tensor", "torch.empty_like(x)"],
    ),
    "out: shape, of another dtype": (
        ValueError,
        {"x": torch.zeros(K).half(), "out": torch.zeros(K + 1)},
        ["want float32 and x's shape and device", "torch.empty_like(x, dtype=torch.float32)"],
    ),
    "offset in a tensor, of nothing": (
        ValueError,
        {"causal_offset": torch.ones(1, dtype=torch.int32)},
        ["causal_offset is an int32 tensor of shape (1,)", "causal is False; pass causal=True"],
    ),
    "return_lse": (TypeError, {"return_lse": 2}, ["return_lse is 2", "want a bool"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    error, arguments, words = REFUSED[name]
    refuse(error, *words, **arguments)
    refuse(error, *words, log=True, **arguments)


BACKWARD_REFUSED: dict[str, tuple[type[Exception], dict[str, Any], list[str]]] = {
    "scale": (ValueError, {"scale": torch.ones(5)}, ["shape (5,)", "y has shape (2, 3, 4, 6)"]),
    "window": (ValueError, {"window": (-1, 0)}, ["window is (-1, 0)"]),
    "lengths": (ValueError, {"key_lengths": torch.zeros(3).int()}, ["shape (3,)", "y's first dimension"]),
    "offset alone": (ValueError, {"causal_offset": 3}, ["causal_offset is 3", "causal=True"]),
    "softcap alone": (ValueError, {"softcap": 1.0}, ["softcap is given without lse", "return_lse=True"]),
    "lse alone": (ValueError, {"lse": torch.zeros(B, H, Q)}, ["lse is given without softcap"]),
    "lse: type": (TypeError, {"lse": 1.0, "softcap": 1.0}, ["lse is of type float"]),
    "lse: shape": (
        ValueError,
        {"lse": torch.zeros(B, H, Q, 1), "softcap": 1.0},
        ["shape (2, 3, 4, 1)", "one float32 for each row, shape (2, 3, 4)"],
    ),
    "grad_lse: dtype": (ValueError, {"grad_lse": torch.zeros(B, H, Q).half()}, ["grad_lse is a float16", "float32"]),
    "grad_lse: device": (ValueError, {"grad_lse": on_cuda(B, H, Q)}, ["on cuda:0", "on y's device"]),
    "dtype": (
        ValueError,
        {"dtype": torch.float64},
        ["torch.float64", "torch.float32 or torch.float16 or torch.bfloat16"],
    ),
    "dtype of 16 bits": (
        ValueError,
        {"y": torch.zeros(K).half(), "dtype": torch.float32},
        ["dtype is torch.float32", "want torch.float16"],
    ),
}


@pytest.mark.parametrize("name", BACKWARD_REFUSED)
def test_refused_by_the_backward(name: str) -> None:
    error, arguments, words = BACKWARD_REFUSED[name]
    refuse(error, *words, backward=True, **arguments)
    refuse(error, *words, backward=True, log=True, **arguments)


# out


@pytest.mark.parametrize("which", ["bias", "sinks", "x"])
def test_out_is_not_differentiable(which: str) -> None:
    tensors: dict[str, Any] = {"x": torch.zeros(B, H, Q, K), "bias": torch.zeros(K), "sinks": torch.zeros(H)}
    tensors[which].requires_grad_()
    refuse(ValueError, f"{which} requires grad", "autograd", out=torch.zeros(B, H, Q, K), **tensors)
    with torch.no_grad():
        assert check(out=torch.zeros(B, H, Q, K), **tensors).general


@pytest.mark.parametrize("which", ["lse", "grad_lse"])
def test_out_of_the_backward_is_not_differentiable(which: str) -> None:
    tensors = {"lse": torch.zeros(B, H, Q), "grad_lse": torch.zeros(B, H, Q)}
    tensors[which].requires_grad_()
    arguments: dict[str, Any] = {"softcap": 1.0, "out": torch.zeros(B, H, Q, K), **tensors}
    refuse(ValueError, f"{which} requires grad", "autograd", backward=True, **arguments)
    with torch.no_grad():
        assert check_backward(**arguments).general


def parts(buffer: Tensor) -> dict[str, Tensor]:
    """Arguments that are views of a float32 buffer."""
    return {
        "scale": buffer.view(-1)[:1],
        "bias": buffer.view(-1)[:K],
        "alibi_slopes": buffer.view(-1)[:H],
        "sinks": buffer.view(-1)[:H],
        "key_lengths": buffer.view(torch.int32).view(-1)[:B],
        "mask": buffer.view(torch.uint8).view(-1)[:K],
    }


@pytest.mark.parametrize("name", ["scale", "bias", "alibi_slopes", "sinks", "key_lengths", "mask"])
def test_out_shares_nothing_with_what_is_read_beside(name: str) -> None:
    out = torch.zeros(B, H, Q, K)
    given = parts(out)[name]
    arguments: dict[str, Any] = {name: given}
    refuse(ValueError, f"meets that of {name}", f"{name}.clone()", out=out, return_lse=True, **arguments)
    assert check(out=out, return_lse=True, **{name: given.clone()}).out is out


def test_out_of_another_dtype_is_not_x() -> None:
    memory = torch.zeros(Q, K, dtype=torch.float32)
    x = memory.view(torch.float16)[:, :K]
    refuse(ValueError, "overlaps x", "new tensor", x=x, out=memory)
    refuse(ValueError, "overlaps x", x=memory[0].view(torch.float16)[:K], out=memory[0])  # same address and stride
    y = torch.zeros(Q, K)
    refuse(ValueError, "overlaps y", backward=True, y=y, out=y.view(torch.float16)[:, :K])
    assert check(x, out=torch.zeros(Q, K)).dtype is torch.float32
    assert check_backward(y, out=torch.zeros(Q, K).half()).dtype is torch.float16
