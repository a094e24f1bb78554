"""Checks of the torch interface: a call of the forward becomes a `Request`, or an error that says what to change.

Only metadata is read (type, dtype, shape, strides, device, address): nothing is launched, copied or synchronised.
A valid call pays for the comparisons alone, since each message is built in the branch that raises it. A wrong Python
type raises TypeError, everything else ValueError.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

_OP = "softmax_ops.softmax"
_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_MASK_DTYPES = frozenset((torch.bool, torch.uint8))
_DEVICE_TYPES = frozenset(("cpu", "cuda"))

# The largest |scale| by accumulation type. f32: up to it scale * log2(e), which kernels fold into one constant, is
# finite too. f64: every finite double.
_SCALE_LIMIT_F32 = 2.0**127
_SCALE_LIMIT_F64 = sys.float_info.max


class Request(NamedTuple):
    """A validated call of the forward; see `check_softmax` for what has been established about each field."""

    x: Tensor  # [..., Q, K], or [K], which is Q = 1
    scale: float  # finite
    mask: Tensor | None  # bool or uint8, not expanded, right-aligned broadcastable to x; exactly 1 hides
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
    _check_x(x)
    number = _finite_scale(scale, x)
    if mask is not None:
        _check_mask(mask, x)
    offset = _causal_offset(x, causal, causal_offset)
    if out is not None:
        _check_out(out, x, mask)
    return Request(x, number, mask, offset, out)


def describe(tensor: Tensor) -> str:
    """A tensor's metadata in words: `float16 tensor of shape (2, 3), strides (3, 1), on cuda:0`."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided:  # has no strides; str(layout) is such as torch.sparse_coo
        layout = str(tensor.layout).removeprefix("torch.")
        return f"{dtype} tensor of layout {layout} and shape {tuple(tensor.shape)}, on {tensor.device}"
    if tensor.is_nested:  # strided by its layout, yet without one shape
        return f"nested {dtype} tensor on {tensor.device}"
    return f"{dtype} tensor of shape {tuple(tensor.shape)}, strides {tensor.stride()}, on {tensor.device}"


def _check_x(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{_OP}: x is of type {_type(x)}; want a torch.Tensor: convert it with torch.as_tensor(x)")
    _check_plain(x, "x")
    if x.dtype not in _DTYPES:
        raise _x_dtype_error(x)
    if x.dim() == 0:
        raise ValueError(f"{_OP}: x is a 0-d {describe(x)}; want at least a row, [..., K]: pass x.reshape(1)")
    if x.device.type not in _DEVICE_TYPES:
        raise ValueError(f"{_OP}: x is a {describe(x)}; want a tensor on cpu or cuda: {_device_advice(x)}")


def _check_plain(tensor: Tensor, name: str) -> None:
    """Refuse tensors whose values are not simply what lies at base + sum of index * stride."""
    if tensor.layout is not torch.strided:
        raise ValueError(f"{_OP}: {name} is a {describe(tensor)}; want a dense strided tensor: pass {name}.to_dense()")
    if tensor.is_nested:
        raise ValueError(
            f"{_OP}: {name} is a {describe(tensor)}; want one shape for all rows: "
            f"pass {name}.to_padded_tensor(0) with a mask that hides the padding"
        )
    if tensor.is_neg():
        raise ValueError(
            f"{_OP}: {name} is a lazily negated view ({describe(tensor)}), whose memory holds the opposite sign; "
            f"want a plain tensor: pass {name}.resolve_neg()"
        )


def _x_dtype_error(x: Tensor) -> ValueError:
    if x.is_quantized:
        advice = "pass x.dequantize()"
    elif x.is_complex():
        advice = "softmax is defined for real scores only, so pass x.real or x.abs()"
    else:
        advice = "convert it with x.to(torch.float32)"
    return ValueError(f"{_OP}: x is a {describe(x)}; want dtype float16, bfloat16, float32 or float64: {advice}")


def _device_advice(x: Tensor) -> str:
    if x.is_meta:
        return "a meta tensor holds no values; torch.ops.softmax_ops.softmax computes its result's shape"
    return "move it with x.cuda() or x.cpu()"


def _finite_scale(given: Any, x: Tensor) -> float:
    scale: float = given if type(given) is float else _float(given)
    limit = _SCALE_LIMIT_F64 if x.dtype is torch.float64 else _SCALE_LIMIT_F32
    if -limit <= scale <= limit:  # false for NaN
        return scale
    raise ValueError(
        f"{_OP}: scale is {scale}; want a finite number, at most {limit:.4g} in magnitude for a {describe(x)}: "
        "check how it was computed; to hide columns use mask"
    )


def _float(scale: Any) -> float:
    if isinstance(scale, Tensor):
        return _scale_of_tensor(scale)
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"{_OP}: scale is {scale!r} of type {_type(scale)}; want a real number: pass float(scale)")
    try:
        return float(scale)
    except OverflowError:
        raise ValueError(f"{_OP}: scale is an integer beyond the range of float; want a finite number") from None


def _scale_of_tensor(scale: Tensor) -> float:
    given = f"{_OP}: scale is a {describe(scale)}"
    if scale.device.type != "cpu":
        raise ValueError(
            f"{given}; want a number or a 0-d CPU tensor, since reading a value from {scale.device} would make the "
            "host wait for the device on every call: read it once, outside the loop, with float(scale)"
        )
    if scale.layout is not torch.strided or scale.dim() != 0:
        raise ValueError(f"{given}; want a number or a 0-d CPU tensor: pass float(scale) if it has one element")
    if scale.dtype is torch.bool or scale.is_complex():
        raise TypeError(f"{given}; want a real number: pass float(scale)")
    if scale.requires_grad:
        raise ValueError(
            f"{given} that requires grad, and no gradient with respect to scale is computed: pass scale.detach(), "
            "or multiply x by it and leave scale at 1"
        )
    return float(scale)


def _check_mask(mask: Tensor, x: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{_OP}: mask is of type {_type(mask)}; want a bool or uint8 torch.Tensor, or None")
    # Neither dtype can require grad, so that needs no check of its own.
    if mask.dtype not in _MASK_DTYPES:
        raise _mask_dtype_error(mask)
    _check_plain(mask, "mask")
    if mask.device != x.device:
        raise ValueError(
            f"{_OP}: mask is a {describe(mask)} and x a {describe(x)}; want both on one device: pass mask.to(x.device)"
        )
    if not _broadcasts(mask.shape, x.shape):
        raise ValueError(
            f"{_OP}: mask has shape {tuple(mask.shape)} and x has shape {tuple(x.shape)}; want each dimension of mask, "
            "aligned at the right, to be 1 or x's, and no more of them than x has: reshape the mask, for instance "
            "[B, K] to [B, 1, 1, K]"
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


def _causal_offset(x: Tensor, causal: Any, causal_offset: Any) -> int | None:
    if causal is False:
        if causal_offset is None:
            return None
        raise ValueError(f"{_OP}: causal_offset is {causal_offset!r} and causal is False; pass causal=True as well")
    if causal is not True:
        raise TypeError(f"{_OP}: causal is {causal!r} of type {_type(causal)}; want a bool: pass True or False")
    columns = x.shape[-1]
    queries = x.shape[-2] if x.dim() > 1 else 1
    if causal_offset is None:
        return columns - queries
    if isinstance(causal_offset, bool) or not isinstance(causal_offset, Integral):
        raise TypeError(
            f"{_OP}: causal_offset is {causal_offset!r} of type {_type(causal_offset)}; want an int: column j is "
            "visible to query i if j <= i + causal_offset"
        )
    return max(-queries, min(int(causal_offset), columns))


def _check_out(out: Tensor, x: Tensor, mask: Tensor | None) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"{_OP}: out is of type {_type(out)}; want a torch.Tensor like x, or None")
    _check_plain(out, "out")
    if out.dtype is not x.dtype or out.shape != x.shape or out.device != x.device:
        raise ValueError(
            f"{_OP}: out is a {describe(out)} and x a {describe(x)}; want one dtype, shape and device for both: "
            "allocate out with torch.empty_like(x)"
        )
    if out.shape[-1] > 1 and out.stride(-1) != 1:
        raise ValueError(
            f"{_OP}: out is a {describe(out)}; want last stride 1: write into a contiguous out and copy it from there"
        )
    if (x.requires_grad or out.requires_grad) and torch.is_grad_enabled():
        name = "x" if x.requires_grad else "out"
        raise ValueError(
            f"{_OP}: {name} requires grad ({describe(x)}), and a result written to out= is invisible to autograd: "
            "call without out (and not in place), or under torch.no_grad()"
        )
    _check_memory(out, x, mask)


def _check_memory(out: Tensor, x: Tensor, mask: Tensor | None) -> None:
    """Refuse an out of which one write could change another element, an unread element of x, or the mask."""
    if not out.is_contiguous() and _may_overlap_itself(out.shape, out.stride()):
        raise ValueError(
            f"{_OP}: out is a {describe(out)}, which has, or cannot be shown not to have, several elements at one "
            "address; want each stride to exceed the reach of the smaller ones: pass out.contiguous()"
        )
    if out is not x and _meet(_byte_range(out), _byte_range(x)) and not _same_elements(out, x) and _may_share(out, x):
        raise ValueError(
            f"{_OP}: out, a {describe(out)}, overlaps x, a {describe(x)}, {out.data_ptr() - x.data_ptr()} bytes after "
            "it; want out to be x exactly, or apart from it (views with different strides count as overlapping "
            "if their address ranges do): write to a new tensor"
        )
    if mask is not None and _meet(_byte_range(out), _byte_range(mask)):
        raise ValueError(
            f"{_OP}: the address range of out, a {describe(out)}, meets that of mask, a {describe(mask)}; "
            "want them apart: pass mask.clone()"
        )


def _may_overlap_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """False if the strides nest: each one exceeds the reach, sum of (size - 1) * stride, of all smaller ones.

    Exact for every slice, transpose and expansion of a contiguous tensor. Some as_strided layouts, such as shape (2, 3)
    with strides (3, 2), do not nest and are still free of overlap; they count as overlapping.
    """
    reach = 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def _byte_range(tensor: Tensor) -> tuple[int, int]:
    """First address and one past the last one; nothing between them for an empty tensor, which is contiguous."""
    first = tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that move the address, the largest stride first."""
    return sorted(((t, n) for t, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1), reverse=True)


def _same_elements(out: Tensor, x: Tensor) -> bool:
    return out.data_ptr() == x.data_ptr() and all(
        n == 1 or s == t for n, s, t in zip(out.shape, out.stride(), x.stride(), strict=True)
    )


def _may_share(out: Tensor, x: Tensor) -> bool:
    """Whether out, whose strides nest, may share a byte with x of the same shape and dtype.

    Exact if both step through memory alike, such as buf[:, :K] and buf[:, K:]; otherwise True. An address in both means
    that the distance of the bases is a sum of e * stride over the dimensions, |e| < size. Strides nest, so what the
    inner dimensions add is below the stride, and for each dimension at most two values of e are possible.
    """
    steps = _steps(out)
    if steps != _steps(x):
        return True
    item = out.element_size()
    distances = {x.data_ptr() - out.data_ptr()}
    for stride, size in [*((t * item, n) for t, n in steps), (1, item)]:
        distances = {d - e * stride for d in distances for e in (d // stride, d // stride + 1) if abs(e) < size}
    return 0 in distances


def _type(value: object) -> str:
    return type(value).__name__
