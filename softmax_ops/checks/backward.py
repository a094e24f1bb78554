"""The arguments of `softmax_ops.softmax_backward`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .out import check_apart, check_out, recorded_error
from .scalars import clamped_offset, finite_scale
from .tensors import check_rows, describe

_OP = "softmax_ops.softmax_backward"


class BackwardRequest(NamedTuple):
    """A validated call of the backward; see `check_softmax_backward` for what has been established about each field."""

    dy: Tensor  # [..., Q, K], or [K], which is Q = 1; may be expanded
    y: Tensor  # of dy's shape, dtype and device
    scale: float  # finite
    causal_offset: int | None  # None: not causal; otherwise column j is visible to query i iff j <= i + causal_offset
    out: Tensor | None  # [..., Q, K] with strides of its own, or dy itself, or y itself


def check_softmax_backward(
    dy: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    causal: bool,
    causal_offset: int | None,
    out: Tensor | None,
) -> BackwardRequest:
    """Validate one call of the backward and bring its scalars to plain Python numbers.

    dy             [..., Q, K] or [K], like y; any strides, 0 included: out.sum().backward() hands over one element.
    y              what the forward returned: float16, bfloat16, float32 or float64; strided, on cpu or cuda, any
                   strides.
    scale          that of the forward, under the same limits.
    causal_offset  that of the forward: with causal=True only; K - Q by default; clamped to [-Q, K].
    out            dtype, shape and device of y; last stride 1 unless K <= 1; no two elements at one address. It is dy
                   exactly, or y exactly, and shares no byte with what it is not. Not while autograd records dy, y or
                   out.

    Raises TypeError for an argument of the wrong Python type, ValueError for anything else.
    """
    check_rows(_OP, y, "y")
    check_rows(_OP, dy, "dy")
    if dy.dtype is not y.dtype or dy.shape != y.shape or dy.device != y.device:
        raise _unlike_error(dy, y)
    number = finite_scale(_OP, scale, y)
    offset = clamped_offset(_OP, y, causal, causal_offset)
    if out is not None:
        _check_out(out, dy, y)
    return BackwardRequest(dy, y, number, offset, out)


def _unlike_error(dy: Tensor, y: Tensor) -> ValueError:
    if dy.shape != y.shape:
        advice = "dy is the gradient of this y, element by element, so pass dy.expand_as(y) if it broadcasts"
    else:
        advice = "pass dy.to(y)"
    return ValueError(
        f"{_OP}: dy is a {describe(dy)} and y a {describe(y)}; want one dtype, shape and device for both: {advice}"
    )


def _check_out(out: Tensor, dy: Tensor, y: Tensor) -> None:
    check_out(_OP, out, y, "y")
    if (dy.requires_grad or y.requires_grad or out.requires_grad) and torch.is_grad_enabled():
        raise recorded_error(_OP, dy=dy, y=y, out=out)
    check_apart(_OP, out, dy, "dy")
    check_apart(_OP, out, y, "y")
