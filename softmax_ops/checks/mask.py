"""The tensor that hides columns, `mask`."""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import check_plain, describe, type_name
from .values import broadcasts

MASK_DTYPES = frozenset((torch.bool, torch.uint8))


def check_mask(op: str, mask: Tensor, x: Tensor) -> None:
    """Refuse anything but a bool or uint8 tensor that broadcasts to x, [..., Q, K], on its device."""
    if isinstance(mask, Tensor) and mask.dtype not in MASK_DTYPES:
        raise _mask_dtype_error(op, mask)
    check_broadcast(op, mask, x, "x")


def check_broadcast(op: str, mask: Tensor, x: Tensor, name: str) -> None:
    """Refuse a mask that does not broadcast to x, [..., Q, K], called `name`."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: mask is of type {type_name(mask)}; want a bool or uint8 torch.Tensor, or None")
    check_plain(op, mask, "mask")
    if mask.device != x.device:
        raise ValueError(
            f"{op}: mask is a {describe(mask)} and {name} a {describe(x)}; want both on one device: "
            f"pass mask.to({name}.device)"
        )
    if not broadcasts(mask.shape, x.shape):
        raise ValueError(
            f"{op}: mask has shape {tuple(mask.shape)} and {name} has shape {tuple(x.shape)}; want each dimension of "
            f"mask, aligned at the right, to be 1 or {name}'s, and no more of them than {name} has: reshape the mask, "
            "for instance [B, K] to [B, 1, 1, K]"
        )


def _mask_dtype_error(op: str, mask: Tensor) -> ValueError:
    given = f"{op}: mask is a {describe(mask)}; want dtype bool or uint8, where 1 hides a column"
    if mask.is_floating_point():
        return ValueError(
            f"{given}. A float mask looks additive (0 keeps, -inf hides): pass it as bias= if it is, or mask < 0, "
            "which is read faster; mask == 1 if its ones hide"
        )
    return ValueError(
        f"{given}: pass mask == 1 if its ones hide, or mask == 0 if they keep, as in an attention_mask of Hugging Face"
    )
