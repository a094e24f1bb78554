"""The arguments of `softmax_ops.softmax` and `log_softmax`, and those of `transformer_softmax_lib`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .band import band_of
from .out import check_apart, check_out, check_unmet, check_unrecorded, result_dtype
from .request import Request, simplified
from .scalars import check_flag, check_no_gradient, finite_scale, positive_softcap
from .tensors import DTYPES, check_rows, described
from .values import (
    MASK_DTYPES,
    check_bias,
    check_broadcast,
    check_key_lengths,
    check_mask,
    check_tensor,
    per_head,
    scale_of,
)

_OPS = {False: "softmax_ops.softmax", True: "softmax_ops.log_softmax"}
_MASKED_FILL = "transformer_softmax_lib.scaled_masked_softmax_forward"
_READ_BESIDE = ("mask", "scale_tensor", "bias", "key_lengths", "offset_tensor", "alibi_slopes", "sinks")


def check_softmax(
    x: Tensor,
    *,
    scale: float | Tensor,
    mask: Tensor | None,
    causal: bool,
    causal_offset: int | Tensor | None,
    out: Tensor | None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    window: tuple[int | None, int | None] | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
    log: bool = False,
    op: str = "",
) -> Request:
    """Validate a call of the forward and bring its scalars to plain Python numbers. If only plain arguments are used,
    the request is plain.

    x              [..., Q, K] or [K]; float16, bfloat16, float32 or float64; strided, on cpu or cuda, any strides.
    scale          finite number, or 0-d CPU tensor that requires no gradient; unless x is float64 its magnitude is at
                   most 2^127, so that it is finite in the float32 it is applied in. Or a float32 tensor on x's device
                   (for float64 x also float64), of one element or one for each row.
    mask           bool or uint8 on x's device; no more dimensions than x, each 1 or equal to x's, aligned at the right.
    causal_offset  only with causal=True, a window or alibi_slopes; K - Q (bottom-right) by default: `band_of`.
    out            shape and device of x, dtype of the result; last stride 1 unless K <= 1; no two elements at one
                   address. It shares no byte with any input, except that it may be x exactly if x has that dtype. Not
                   allowed while autograd records an input or out.
    bias           x's dtype or float32, broadcastable like a mask.
    key_lengths    int32 [B] on x's device, B = x.shape[0] of at least two dimensions.
    window         (left, right), each an integer from 0 or None.
    alibi_slopes, sinks
                   [H] float32 (for float64 x also float64) on x's device, H = x.shape[-3]. Slopes require no gradient.
    softcap        finite number above 0.
    dtype          x's, or float32 for float16 and bfloat16; out's, if both are given.
    op             the name in messages; default: softmax or log_softmax.

    Raises TypeError for an argument of the wrong Python type, ValueError for anything else.
    """
    op = op or _OPS[log is True]
    check_rows(op, x, "x")
    number, scale_tensor = scale_of(op, scale, x, "x")
    if mask is not None:
        check_mask(op, mask, x)
    slopes = None if alibi_slopes is None else per_head(op, alibi_slopes, x, "alibi_slopes")
    band = band_of(op, x, "x", causal=causal, causal_offset=causal_offset, window=window, alibi=slopes is not None)
    request = Request(
        x,
        number,
        mask,
        band.offset,
        out,
        scale_tensor=scale_tensor,
        bias=bias,
        key_lengths=key_lengths,
        offset_tensor=band.offset_tensor,
        left=band.left,
        right=band.right,
        alibi_slopes=slopes,
        sinks=None if sinks is None else per_head(op, sinks, x, "sinks"),
        softcap=positive_softcap(op, softcap, x),
        dtype=result_dtype(op, dtype, out, x, "x"),
        log=log,
        return_lse=return_lse,
    )
    _check_added(op, request, alibi_slopes)
    if out is not None:
        _check_written(op, request)
    return simplified(request, x.dtype)


def check_masked_fill(input: Tensor, mask: Tensor | None, scale: float | Tensor, fill: float) -> Request:
    """Validate a call of `transformer_softmax_lib.scaled_masked_softmax_forward`.

    Like `check_softmax`, except that a mask may also be of any float dtype that input may have, and that hidden scores
    become `fill`.
    """
    check_rows(_MASKED_FILL, input, "input")
    number = finite_scale(_MASKED_FILL, scale, input)
    if mask is not None:
        check_tensor(_MASKED_FILL, mask, "mask", "a torch.Tensor of bool, uint8 or a float dtype")
        if mask.dtype not in (*MASK_DTYPES, *DTYPES):
            raise ValueError(
                f"{_MASKED_FILL}: mask is {described(mask)}; want bool, uint8, float16, bfloat16, float32 or float64, "
                "where 1 hides a column: convert it with mask == 1"
            )
        check_broadcast(_MASKED_FILL, mask, input, "mask", "input")
    return Request(input, number, mask, None, None, fill)


def check_has_backward(
    op: str,
    given: Mapping[str, Any],
    why: str = ", and an input requires grad; want softcap alone, or the call under torch.no_grad()",
) -> None:
    """Refuse arguments of a forward, by name, whose gradient cannot be computed from its results."""
    beside = without_backward(given)
    if beside:
        advice = ". A bias that only hides goes to mask=bias < 0, which has one" if "bias" in beside else ""
        raise NotImplementedError(
            f"{op}: softcap with {' and '.join(beside)} has no backward, which recovers scores from y and lse "
            f"alone{why}{advice}"
        )


def without_backward(given: Mapping[str, Any]) -> list[str]:
    """The names of arguments of a forward that have no backward because there is a softcap too."""
    if given.get("softcap") is None:
        return []
    return [name for name in ("bias", "alibi_slopes") if given.get(name) is not None]


def _check_added(op: str, request: Request, alibi_slopes: Tensor | None) -> None:
    """Checks what only a general request has."""
    if request.bias is not None:
        check_bias(op, request.bias, request.x)
    if request.key_lengths is not None:
        check_key_lengths(op, request.key_lengths, request.x, "x")
    if alibi_slopes is not None:
        check_no_gradient(op, alibi_slopes, "alibi_slopes")
    check_flag(op, request.return_lse, "return_lse")


def _check_written(op: str, request: Request) -> None:
    """Refuse an out that cannot be written, is recorded by autograd, or would overwrite what is still to be read."""
    out, x, bias, sinks = request.out, request.x, request.bias, request.sinks
    assert out is not None
    check_out(op, out, x, "x", request.dtype)
    check_unrecorded(op, x=x, bias=bias, sinks=sinks, out=out)
    check_apart(op, out, x, "x")
    for name in _READ_BESIDE:
        check_unmet(op, out, getattr(request, name), name)
