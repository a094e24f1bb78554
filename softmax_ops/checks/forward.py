"""The arguments of `softmax_ops.softmax`."""

from __future__ import annotations

from torch import Tensor

from .mask import MASK_DTYPES, check_broadcast, check_mask
from .out import check_apart, check_out, check_unmet, check_unrecorded
from .request import Request
from .scalars import clamped_offset, finite_scale
from .tensors import DTYPES, check_rows, describe

_OP = "softmax_ops.softmax"
_MASKED_FILL = "transformer_softmax_lib.scaled_masked_softmax_forward"


def check_softmax(
    x: Tensor,
    *,
    scale: float | Tensor,
    mask: Tensor | None,
    causal: bool,
    causal_offset: int | Tensor | None,
    out: Tensor | None,
) -> Request:
    """Validate one plain call of the forward and bring its scalars to plain Python numbers.

    x              [..., Q, K] or [K]; float16, bfloat16, float32 or float64; strided, on cpu or cuda, any strides.
    scale          finite number, or 0-d CPU tensor that requires no gradient. Unless x is float64 its magnitude is at
                   most 2^127, so that it is finite in the float32 it is applied in.
    mask           bool or uint8 on x's device; no more dimensions than x, each 1 or equal to x's, aligned at the right.
    causal_offset  any integer, not a tensor, and only with causal=True; K - Q (bottom-right) by default. Clamped to
                   [-Q, K]: beyond that every offset hides all columns, or none.
    out            dtype, shape and device of x; last stride 1 unless K <= 1; no two elements at one address. It is x
                   exactly, or shares no byte with x and mask. Not allowed while autograd records x or out.

    Raises TypeError for an argument of the wrong Python type, ValueError for anything else.
    """
    check_rows(_OP, x, "x")
    number = finite_scale(_OP, scale, x)
    if mask is not None:
        check_mask(_OP, mask, x)
    offset = clamped_offset(_OP, x, causal, causal_offset)
    if out is not None:
        check_out(_OP, out, x, "x")
        check_unrecorded(_OP, x=x, out=out)
        check_apart(_OP, out, x, "x")
        check_unmet(_OP, out, mask, "mask")
    return Request(x, number, mask, offset, out)


def check_masked_fill(input: Tensor, mask: Tensor | None, scale: float | Tensor, fill: float) -> Request:
    """Validate a call of `transformer_softmax_lib.scaled_masked_softmax_forward`.

    Like `check_softmax`, except that a mask may also be of any float dtype that input may have, and that hidden scores
    become `fill`.
    """
    check_rows(_MASKED_FILL, input, "input")
    number = finite_scale(_MASKED_FILL, scale, input)
    if mask is not None:
        if isinstance(mask, Tensor) and mask.dtype not in (*MASK_DTYPES, *DTYPES):
            raise ValueError(
                f"{_MASKED_FILL}: mask is a {describe(mask)}; want bool, uint8, float16, bfloat16, float32 or float64, "
                "where 1 hides a column: convert it with mask == 1"
            )
        check_broadcast(_MASKED_FILL, mask, input, "input")
    return Request(input, number, mask, None, None, fill)
