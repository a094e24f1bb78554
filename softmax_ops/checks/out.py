"""The tensor a result is written to, `out`."""

from __future__ import annotations

from torch import Tensor

from .memory import may_overlap_itself, may_share, ranges_meet, same_elements
from .tensors import check_plain, describe, type_name


def check_out(op: str, out: Tensor, like: Tensor, name: str) -> None:
    """Refuse an out that differs from `like`, [..., K], in more than strides, or that cannot be written row by row."""
    if not isinstance(out, Tensor):
        raise TypeError(f"{op}: out is of type {type_name(out)}; want a torch.Tensor like {name}, or None")
    check_plain(op, out, "out")
    if out.dtype is not like.dtype or out.shape != like.shape or out.device != like.device:
        raise ValueError(
            f"{op}: out is a {describe(out)} and {name} a {describe(like)}; want one dtype, shape and device for both: "
            f"allocate out with torch.empty_like({name})"
        )
    if out.shape[-1] > 1 and out.stride(-1) != 1:
        raise ValueError(
            f"{op}: out is a {describe(out)}; want last stride 1: write into a contiguous out and copy it from there"
        )
    if not out.is_contiguous() and may_overlap_itself(out.shape, out.stride()):
        raise ValueError(
            f"{op}: out is a {describe(out)}, which has, or cannot be shown not to have, several elements at one "
            "address; want each stride to exceed the reach of the smaller ones: pass out.contiguous()"
        )


def check_apart(op: str, out: Tensor, other: Tensor, name: str) -> None:
    """Refuse an out, as `check_out` wants it, of which one write could change another element of `other`, [..., K]."""
    if out is not other and ranges_meet(out, other) and not same_elements(out, other) and may_share(out, other):
        raise ValueError(
            f"{op}: out, a {describe(out)}, overlaps {name}, a {describe(other)}, {out.data_ptr() - other.data_ptr()} "
            f"bytes after it; want out to be {name} exactly, or apart from it (views with different strides count as "
            "overlapping if their address ranges do): write to a new tensor"
        )


def recorded_error(op: str, **tensors: Tensor) -> ValueError:
    """For writing to out, one of the tensors, while autograd would have to record that for one of them."""
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.requires_grad)
    return ValueError(
        f"{op}: {name} requires grad ({describe(tensor)}), and a result written to out= is invisible to autograd: "
        "call without out (and not in place), or under torch.no_grad()"
    )
