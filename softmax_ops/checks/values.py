"""Tensors beside the scores. Their values stay on the device: only type, shape and device are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .scalars import check_no_gradient, finite_scale
from .tensors import check_plain, described, type_name

MASK_DTYPES = frozenset((torch.bool, torch.uint8))


def accumulation(rows: Tensor) -> torch.dtype:
    """The dtype in which sums and exponentials of rows are computed and values per row are stored."""
    return torch.float64 if rows.dtype is torch.float64 else torch.float32


def scale_of(op: str, given: Any, rows: Tensor, name: str) -> tuple[float, Tensor | None]:
    """The scale as a number and None; or 1 and a tensor of the accumulation type, of one element or one per row.

    For float64 rows, float32 is widened.
    """
    if not isinstance(given, Tensor) or (given.dim() == 0 and given.device.type == "cpu"):
        return finite_scale(op, given, rows), None
    said = f"{op}: scale is {described(given)}"
    check_plain(op, given, "scale")
    _check_float(op, given, rows, "scale", name, "a number, a 0-d CPU tensor, or a float32 tensor")
    check_no_gradient(op, given, "scale")
    count = given.numel()
    if type(count) is int and count == 1:  # a compiler's symbol is not 1
        return 1.0, given.reshape(()).to(accumulation(rows))
    if not broadcasts(given.shape, rows.shape[:-1]):
        raise ValueError(
            f"{said} and {name} has shape {tuple(rows.shape)}; want one element, or one for each row, aligned at the "
            f"right with {tuple(rows.shape[:-1])}: reshape it, for instance [B] to [B, 1, 1]"
        )
    return 1.0, given.to(accumulation(rows))


def per_head(op: str, given: Any, rows: Tensor, name: str) -> Tensor:
    """A value per head: [H] of the accumulation type, for rows [..., H, Q, K]."""
    check_tensor(op, given, name, "a float32 torch.Tensor [H]")
    if rows.dim() < 3:
        raise ValueError(
            f"{op}: {name} is one number for each head, and x has shape {tuple(rows.shape)}; want x [..., H, Q, K]: "
            "give x the dimension of the heads, such as x.unsqueeze(-3), or of the queries: x.unsqueeze(-2)"
        )
    _check_float(op, given, rows, name, "x", "a float32 tensor")
    heads = rows.shape[-3]
    if given.dim() != 1 or given.shape[0] != heads:
        raise ValueError(
            f"{op}: {name} has shape {tuple(given.shape)} and x has shape {tuple(rows.shape)}; want one number for "
            f"each head, shape ({heads},): heads are the third dimension from the right. If two dimensions are heads, "
            "pass x.flatten(-4, -3); if there are no queries, x.unsqueeze(-2)"
        )
    return given.to(accumulation(rows))


def per_row(op: str, given: Any, rows: Tensor, name: str) -> Tensor:
    """A value per row: [..., Q] of the accumulation type, as the forward returns lse for rows [..., Q, K]."""
    wanted = accumulation(rows)
    check_tensor(op, given, name, "a torch.Tensor like the lse that the forward returns")
    if given.dtype is not wanted or given.shape != rows.shape[:-1] or given.device != rows.device:
        raise ValueError(
            f"{op}: {name} is {described(given)} and y {described(rows)}; want one {str(wanted)[6:]} for each row, "
            f"shape {tuple(rows.shape[:-1])}, on y's device, as return_lse=True gives it"
        )
    return given


def check_key_lengths(op: str, given: Any, rows: Tensor, name: str) -> None:
    """Refuse all but int32 [B] for rows [B, ..., K]."""
    check_tensor(op, given, "key_lengths", "an int32 torch.Tensor [B]")
    if rows.dim() < 2:
        raise ValueError(
            f"{op}: key_lengths is one number for each batch, and {name} has shape {tuple(rows.shape)}; "
            f"want {name} [B, ..., K]: pass {name}.unsqueeze(0)"
        )
    if given.dtype is not torch.int32:
        raise ValueError(f"{op}: key_lengths is {described(given)}; want dtype int32: pass key_lengths.int()")
    check_device(op, given, rows, "key_lengths", name)
    if given.dim() != 1 or given.shape[0] != rows.shape[0]:
        raise ValueError(
            f"{op}: key_lengths has shape {tuple(given.shape)} and {name} has shape {tuple(rows.shape)}; want one "
            f"length for each of {name}'s first dimension, shape ({rows.shape[0]},): if the rows of a "
            "batch entry have different lengths, pass a mask"
        )


def check_mask(op: str, given: Any, x: Tensor) -> None:
    """Refuse all but a bool or uint8 tensor that broadcasts to x, [..., Q, K]."""
    check_tensor(op, given, "mask", "a bool or uint8 torch.Tensor")
    if given.dtype not in MASK_DTYPES:
        raise _mask_dtype_error(op, given)
    check_broadcast(op, given, x, "mask", "x")


def check_bias(op: str, given: Any, x: Tensor) -> None:
    """Refuse all but a tensor of x's dtype or float32 that broadcasts to x, [..., Q, K]."""
    check_tensor(op, given, "bias", "a torch.Tensor of x's dtype or float32")
    if given.dtype is not x.dtype and given.dtype is not torch.float32:
        advice = "a mask that hides goes to mask=" if given.dtype in (torch.bool, torch.uint8) else "pass bias.to(x)"
        raise ValueError(
            f"{op}: bias is {described(given)} and x {described(x)}; want x's dtype or float32 for what is added to "
            f"the scores: {advice}"
        )
    check_broadcast(op, given, x, "bias", "x")


def check_broadcast(op: str, given: Tensor, rows: Tensor, name: str, rows_name: str) -> None:
    """Refuse a mask or bias on another device than rows, [..., Q, K], or that does not broadcast to them."""
    check_device(op, given, rows, name, rows_name)
    if not broadcasts(given.shape, rows.shape):
        example = "[H, Q, K] to [1, H, Q, K]" if name == "bias" else "[B, K] to [B, 1, 1, K]"
        raise ValueError(
            f"{op}: {name} has shape {tuple(given.shape)} and {rows_name} has shape {tuple(rows.shape)}; want each "
            f"dimension of {name}, aligned at the right, to be 1 or {rows_name}'s, and no more of them than "
            f"{rows_name} has: reshape the {name}, for instance {example}"
        )


def check_tensor(op: str, given: Any, name: str, wanted: str) -> None:
    if not isinstance(given, Tensor):
        advice = f": convert it with torch.as_tensor({name})" if hasattr(given, "__array__") else ""
        raise TypeError(f"{op}: {name} is of type {type_name(given)}; want {wanted}, or None{advice}")
    check_plain(op, given, name)


def check_device(op: str, given: Tensor, rows: Tensor, name: str, rows_name: str) -> None:
    if given.device != rows.device:
        raise ValueError(
            f"{op}: {name} is {described(given)} and {rows_name} {described(rows)}; want both on one device: "
            f"pass {name}.to({rows_name}.device)"
        )


def broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether each dimension, aligned at the right, is 1 or the target's."""
    if len(shape) > len(target):
        return False
    # In this order: whether a size that depends on data is 1 cannot be told while a compiler traces.
    return all(n == size or n == 1 for n, size in zip(reversed(shape), reversed(target), strict=False))


def _check_float(op: str, given: Tensor, rows: Tensor, name: str, rows_name: str, wanted: str) -> None:
    """Refuse all but float32, or rows' float64, on the device of rows."""
    if given.dtype is not torch.float32 and given.dtype is not accumulation(rows):
        also = " or float64" if rows.dtype is torch.float64 else ""
        raise ValueError(
            f"{op}: {name} is {described(given)}; want {wanted}{also} on {rows_name}'s device: pass {name}.float()"
        )
    check_device(op, given, rows, name, rows_name)


def _mask_dtype_error(op: str, mask: Tensor) -> ValueError:
    given = f"{op}: mask is {described(mask)}; want dtype bool or uint8, where 1 hides a column"
    if mask.is_floating_point():
        return ValueError(
            f"{given}. A float mask looks additive (0 keeps, -inf hides): pass it as bias= if it is, or mask < 0, "
            "which is read faster; mask == 1 if its ones hide"
        )
    return ValueError(
        f"{given}: pass mask == 1 if its ones hide, or mask == 0 if they keep, as in an attention_mask of Hugging Face"
    )
