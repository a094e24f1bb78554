"""The tensor a result is written to, `out`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ..planning.geometry import strides_nest
from .memory import may_share, ranges_meet, same_elements
from .tensors import check_plain, describe, described, type_name

_HALF = (torch.float16, torch.bfloat16)


def result_dtype(op: str, dtype: Any, out: Tensor | None, rows: Tensor, name: str) -> torch.dtype | None:
    """The dtype of a forward's result, None for that of its scores `rows`: theirs, or float32 for 16 bits."""
    return _agreed(op, dtype, out, rows, name, (torch.float32,) if rows.dtype in _HALF else ())


def gradient_dtype(op: str, dtype: Any, out: Tensor | None, rows: Tensor, name: str) -> torch.dtype | None:
    """The dtype of a backward's result, None for that of the forward's, `rows`: theirs, or 16 bits for float32."""
    return _agreed(op, dtype, out, rows, name, _HALF if rows.dtype is torch.float32 else ())


def _agreed(op: str, dtype: Any, out: Any, rows: Tensor, name: str, others: tuple[torch.dtype, ...]) -> Any:
    if dtype is None:
        if isinstance(out, Tensor) and out.dtype in others:
            return out.dtype
        return None  # an out of any other dtype is check_out's to refuse
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{op}: dtype is {dtype!r} of type {type_name(dtype)}; want a torch.dtype, or None")
    if dtype is not rows.dtype and dtype not in others:
        wanted = " or ".join(str(each) for each in (rows.dtype, *others))
        raise ValueError(
            f"{op}: dtype is {dtype} and {name} {described(rows)}; want {wanted}: convert the result, or {name}"
        )
    if isinstance(out, Tensor) and out.dtype is not dtype:
        given, advice = "out", "leave one of the two out"
        if out is rows:
            given, advice = f"{name}, which the result is written to,", "leave dtype out, or do not write in place"
        raise ValueError(f"{op}: {given} is {described(out)} and dtype is {dtype}; want them to agree: {advice}")
    return None if dtype is rows.dtype else dtype


def check_out(op: str, out: Tensor, like: Tensor, name: str, dtype: torch.dtype | None = None) -> None:
    """Refuse an out that differs from `like`, [..., K], in more than strides, or that cannot be written row by row.

    If a dtype is given, out must have it.
    """
    if not isinstance(out, Tensor):
        raise TypeError(f"{op}: out is of type {type_name(out)}; want a torch.Tensor like {name}, or None")
    check_plain(op, out, "out")
    if not is_dynamo_compiling() and out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{op}: out is {described(out)} made in inference mode, and the call is outside; want both inside, as for "
            "every operation in place: write to a clone"
        )
    if out.dtype is not (dtype or like.dtype) or out.shape != like.shape or out.device != like.device:
        raise _unlike_error(op, out, like, name, dtype)
    given = f"{name}, which the result is written to," if out is like else "out"
    if out.shape[-1] > 1 and out.stride(-1) != 1:
        raise ValueError(
            f"{op}: {given} is {described(out)}; want last stride 1: write into a contiguous out and copy it from there"
        )
    if not out.is_contiguous() and not strides_nest(out.shape, out.stride()):
        raise ValueError(
            f"{op}: {given} is {described(out)}, which has, or cannot be shown not to have, several elements at one "
            "address; want each stride to exceed the reach of the smaller ones: pass a contiguous out"
        )


def _unlike_error(op: str, out: Tensor, like: Tensor, name: str, dtype: torch.dtype | None) -> ValueError:
    wanted, made = "one dtype, shape and device for both", name
    if dtype is not None:
        wanted, made = f"{str(dtype)[6:]} and {name}'s shape and device", f"{name}, dtype={dtype}"
    return ValueError(
        f"{op}: out is {described(out)} and {name} {described(like)}; want {wanted}: "
        f"allocate out with torch.empty_like({made})"
    )


def check_apart(op: str, out: Tensor, other: Tensor, name: str) -> None:
    """Refuse an out that satisfies `check_out` if one write to it could change another element of `other`, [..., K]."""
    if out is other or not ranges_meet(out, other):
        return
    if out.dtype is not other.dtype or (not same_elements(out, other) and may_share(out, other)):
        raise ValueError(
            f"{op}: out, {described(out)}, overlaps {name}, {described(other)}, {out.data_ptr() - other.data_ptr()} "
            f"bytes after it; want out to be {name} exactly, or apart from it (views with different strides or dtypes "
            "count as overlapping if their address ranges do): write to a new tensor"
        )


def check_unmet(op: str, out: Tensor, other: Tensor | None, name: str) -> None:
    """Refuse an out whose address range meets that of another input. `name` is the request's field."""
    if other is not None and ranges_meet(out, other):
        name = {"scale_tensor": "scale", "offset_tensor": "causal_offset"}.get(name, name)
        raise ValueError(
            f"{op}: the address range of out, {described(out)}, meets that of {name}, {described(other)}; "
            f"want them apart: pass {name}.clone()"
        )


def check_unrecorded(op: str, **tensors: Tensor | None) -> None:
    """Refuse to write to out, one of the tensors, if autograd would have to record that for any of them."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{op}: {name} requires grad ({describe(tensor)}), and a result written to out= is invisible to "
                "autograd: call without out (and not in place), or under torch.no_grad()"
            )
