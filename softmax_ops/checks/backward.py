"""The arguments of `softmax_ops.softmax_backward`."""

from __future__ import annotations

import torch
from torch import Tensor

from .band import band_of
from .out import check_apart, check_out, check_unmet, check_unrecorded, gradient_dtype
from .request import BackwardRequest, simplified
from .scalars import positive_softcap
from .tensors import check_rows, described
from .values import check_key_lengths, per_row, scale_of

_OP = "softmax_ops.softmax_backward"
_LOG_OP = "softmax_ops.log_softmax_backward"
_READ_BESIDE = ("scale_tensor", "offset_tensor", "key_lengths", "lse", "grad_lse")


def check_softmax_backward(
    dy: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    causal: bool,
    causal_offset: int | Tensor | None,
    out: Tensor | None,
    window: tuple[int | None, int | None] | None = None,
    key_lengths: Tensor | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
    grad_lse: Tensor | None = None,
    dtype: torch.dtype | None = None,
    log: bool = False,
    return_dot: bool = False,
) -> BackwardRequest:
    """Validate a call of the backward and bring its scalars to plain Python numbers. If only plain arguments are used,
    the request is plain.

    dy             [..., Q, K] or [K], like y; any strides, 0 included: out.sum().backward() passes an expanded element.
    y              what the forward returned: float16, bfloat16, float32 or float64; strided, on cpu or cuda, any
                   strides.
    scale, causal, causal_offset, window, key_lengths, softcap
                   those of the forward, as `check_softmax` takes them.
    out            shape and device of y, dtype of dx; last stride 1 unless K <= 1; no two elements at one address. It
                   shares no byte with any input, except that it may be dy or y exactly if they have that dtype. Not
                   allowed while autograd records an input or out.
    lse, grad_lse  [..., Q] float32, or float64 for float64 y, on y's device. lse is for softcap, which needs it.
    dtype          y's, or float16 or bfloat16 for float32 y; out's, if both are given.

    Raises TypeError for an argument of the wrong Python type, ValueError for anything else.
    """
    op = _LOG_OP if log else _OP
    _check_pair(op, dy, y)
    number, scale_tensor = scale_of(op, scale, y, "y")
    band = band_of(op, y, "y", causal=causal, causal_offset=causal_offset, window=window)
    if key_lengths is not None:
        check_key_lengths(op, key_lengths, y, "y")
    cap = positive_softcap(op, softcap, y)
    if (cap is None) != (lse is None):
        given, other = ("softcap", "lse") if lse is None else ("lse", "softcap")
        raise ValueError(
            f"{op}: {given} is given without {other}; want both or none, since the capped scores are log y + lse: "
            "pass the lse that the forward returns with return_lse=True, and its softcap"
        )
    result = gradient_dtype(op, dtype, out, y, "y")
    request = BackwardRequest(
        dy,
        y,
        number,
        band.offset,
        out,
        scale_tensor=scale_tensor,
        offset_tensor=band.offset_tensor,
        key_lengths=key_lengths,
        left=band.left,
        right=band.right,
        softcap=cap,
        lse=None if lse is None else per_row(op, lse, y, "lse"),
        grad_lse=None if grad_lse is None else per_row(op, grad_lse, y, "grad_lse"),
        log=log,
        dtype=result,
        return_dot=return_dot,
    )
    if out is not None:
        _check_out(op, out, dy, y, result)
        check_unrecorded(op, lse=lse, grad_lse=grad_lse)
        for name in _READ_BESIDE:
            check_unmet(op, out, getattr(request, name), name)
    return simplified(request, y.dtype)


def _check_pair(op: str, dy: Tensor, y: Tensor) -> None:
    check_rows(op, y, "y")
    check_rows(op, dy, "dy")
    if dy.dtype is not y.dtype or dy.shape != y.shape or dy.device != y.device:
        raise _unlike_error(op, dy, y)


def _unlike_error(op: str, dy: Tensor, y: Tensor) -> ValueError:
    if dy.shape != y.shape:
        advice = "dy is the gradient of this y, element by element, so pass dy.expand_as(y) if it broadcasts"
    else:
        advice = "pass dy.to(y)"
    return ValueError(
        f"{op}: dy is {described(dy)} and y {described(y)}; want one dtype, shape and device for both: {advice}"
    )


def _check_out(op: str, out: Tensor, dy: Tensor, y: Tensor, dtype: torch.dtype | None) -> None:
    check_out(op, out, y, "y", dtype)
    check_unrecorded(op, dy=dy, y=y, out=out)
    check_apart(op, out, dy, "dy")
    check_apart(op, out, y, "y")
