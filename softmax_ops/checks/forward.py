"""The arguments of `softmax_ops.softmax`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .memory import ranges_meet
from .out import check_apart, check_out, recorded_error
from .scalars import clamped_offset, finite_scale
from .tensors import check_plain, check_rows, describe, type_name

_OP = "softmax_ops.softmax"
_MASKED_FILL = "transformer_softmax_lib.scaled_masked_softmax_forward"
_MASK_DTYPES = frozenset((torch.bool, torch.uint8))


class Request(NamedTuple):
    """A validated call of the forward; see `check_softmax` for what has been established about each field."""

    x: Tensor  # [..., Q, K], or [K], which is Q = 1
    scale: float  # finite
    mask: Tensor | None  # not expanded, right-aligned broadcastable to x; exactly 1 hides. Of a float dtype: x's
    causal_offset: int | None  # None: not causal; otherwise column j is visible to query i iff j <= i + causal_offset
    out: Tensor | None  # [..., Q, K] with strides of its own, or x itself
    fill: float = -float("inf")  # score of a column hidden by the mask; -inf excludes it, finite is masked fill


def check_softmax(
    x: Tensor,
    *,
    scale: float | Tensor,
    mask: Tensor | None,
    causal: bool,
    causal_offset: int | None,
    out: Tensor | None,
) -> Request:
    """Validate one call of the forward and bring its scalars to plain Python numbers.

    x              [..., Q, K] or [K]; float16, bfloat16, float32 or float64; strided, on cpu or cuda, any strides.
    scale          finite number, or 0-d CPU tensor that requires no gradient. Unless x is float64 its magnitude is at
                   most 2^127, so that it is finite in the float32 it is applied in.
    mask           bool or uint8 on x's device; no more dimensions than x, each 1 or equal to x's, aligned at the right.
    causal_offset  any integer, with causal=True only; K - Q (bottom-right) by default. Clamped to [-Q, K]: beyond it
                   every offset hides all columns, or none.
    out            dtype, shape and device of x; last stride 1 unless K <= 1; no two elements at one address. It is x
                   exactly, or shares no byte with x and mask. Not while autograd records x or out.

    Raises TypeError for an argument of the wrong Python type, ValueError for anything else.
    """
    check_rows(_OP, x, "x")
    number = finite_scale(_OP, scale, x)
    if mask is not None:
        if isinstance(mask, Tensor) and mask.dtype not in _MASK_DTYPES:
            raise _mask_dtype_error(mask)
        _check_mask(_OP, mask, x, "x")
    offset = clamped_offset(_OP, x, causal, causal_offset)
    if out is not None:
        _check_out(out, x, mask)
    return Request(x, number, mask, offset, out)


def check_masked_fill(input: Tensor, mask: Tensor | None, scale: float | Tensor, fill: float) -> Request:
    """Validate a call of `transformer_softmax_lib.scaled_masked_softmax_forward`.

    As `check_softmax`, but that a mask may be float16 or of input's dtype too, and what it hides scores `fill`.
    """
    check_rows(_MASKED_FILL, input, "input")
    number = finite_scale(_MASKED_FILL, scale, input)
    if mask is not None:
        wanted = {*_MASK_DTYPES, torch.float16, input.dtype}
        if isinstance(mask, Tensor) and mask.dtype not in wanted:
            raise ValueError(
                f"{_MASKED_FILL}: mask is a {describe(mask)}; want bool, uint8, float16 or input's dtype, where 1 "
                "hides a column: convert it with mask == 1"
            )
        _check_mask(_MASKED_FILL, mask, input, "input")
    return Request(input, number, mask, None, None, fill)


def _check_mask(op: str, mask: Tensor, x: Tensor, name: str) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: mask is of type {type_name(mask)}; want a bool or uint8 torch.Tensor, or None")
    check_plain(op, mask, "mask")
    if mask.device != x.device:
        raise ValueError(
            f"{op}: mask is a {describe(mask)} and {name} a {describe(x)}; want both on one device: "
            f"pass mask.to({name}.device)"
        )
    if not _broadcasts(mask.shape, x.shape):
        raise ValueError(
            f"{op}: mask has shape {tuple(mask.shape)} and {name} has shape {tuple(x.shape)}; want each dimension of "
            f"mask, aligned at the right, to be 1 or {name}'s, and no more of them than {name} has: reshape the mask, "
            "for instance [B, K] to [B, 1, 1, K]"
        )


def _mask_dtype_error(mask: Tensor) -> ValueError:
    given = f"{_OP}: mask is a {describe(mask)}; want dtype bool or uint8, where 1 hides a column"
    if mask.is_floating_point():
        return ValueError(
            f"{given}. A float mask looks additive (0 keeps, -inf hides), which is not supported: "
            "pass mask < 0 if it is, mask == 1 if its ones hide"
        )
    return ValueError(f"{given}: convert it with mask == 1")


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    if len(shape) > len(target):
        return False
    return all(n in (1, size) for n, size in zip(reversed(shape), reversed(target), strict=False))


def _check_out(out: Tensor, x: Tensor, mask: Tensor | None) -> None:
    check_out(_OP, out, x, "x")
    if (x.requires_grad or out.requires_grad) and torch.is_grad_enabled():
        raise recorded_error(_OP, x=x, out=out)
    check_apart(_OP, out, x, "x")
    if mask is not None and ranges_meet(out, mask):
        raise ValueError(
            f"{_OP}: the address range of out, a {describe(out)}, meets that of mask, a {describe(mask)}; "
            "want them apart: pass mask.clone()"
        )
