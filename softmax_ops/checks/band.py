"""Which columns a query sees by position: causal, causal_offset and window, turned into bounds."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..planning.geometry import EVERYWHERE
from .scalars import clamped_offset
from .tensors import check_plain, described
from .values import check_device

# The largest offset from which a kernel computes distances, in 32 bits with room for the number of a query.
_FAR = 2**30


class Band(NamedTuple):
    """Column j is visible to query i if i + offset - left <= j <= i + offset + right; None means no bound."""

    offset: int | None
    offset_tensor: Tensor | None  # one integer, or one for each batch entry, to be added to offset
    left: int | None
    right: int | None


def band_of(
    op: str, rows: Tensor, name: str, *, causal: Any, causal_offset: Any, window: Any, alibi: bool = False
) -> Band:
    """The band of rows, [..., Q, K] or [K]. All None if neither causal, window nor alibi is given.

    causal         right = 0, whatever the window's right bound.
    causal_offset  K - Q by default. A number, also as a 0-d CPU tensor, or int32 or int64 on the device of rows: one,
                   or [B] for rows [B, ..., Q, K]; with causal, a window or alibi only.
    window         (left, right), each an integer from 0 or None; or None.

    Offset and bounds are clamped to [-Q, K] if that leaves the same columns visible; not the offset with alibi, which
    measures distances from it.
    """
    left, right = window_bounds(op, window)
    if causal is True:
        right = 0
    placed = left is not None or right is not None or alibi
    asked = True if causal is False and placed else causal  # whether anything uses the offset
    if isinstance(causal_offset, Tensor) and (causal_offset.dim() or causal_offset.device.type != "cpu"):
        _check_offset_tensor(op, causal_offset, rows, name)
        clamped_offset(op, rows, asked, 0 if asked is True else causal_offset)  # refuses an offset that nothing uses
        return Band(0, causal_offset, _near(left), _near(right))
    if isinstance(causal_offset, Tensor) and causal_offset.dtype in (torch.int32, torch.int64):
        causal_offset = int(causal_offset)
    offset = clamped_offset(op, rows, asked, causal_offset)
    if offset is None or (left is None and not alibi and not right):
        return Band(offset, None, left, right)
    if causal_offset is not None:
        offset = int(causal_offset)
    if alibi and type(offset) is int and abs(offset) > _FAR:
        raise ValueError(
            f"{op}: causal_offset is {offset}; want at most 2^30 in magnitude with alibi_slopes, which measure "
            "distances from it"
        )
    columns, queries = rows.shape[-1], rows.shape[-2] if rows.dim() > 1 else 1
    numbers = (columns, queries, offset, *(bound for bound in (left, right) if bound is not None))
    if all(type(number) is int for number in numbers):  # not while a compiler traces symbols
        return _tight(Band(offset, None, left, right), queries, columns, alibi)
    return Band(offset, None, left, right)


def _tight(band: Band, queries: int, columns: int, alibi: bool) -> Band:
    """A band that shows the same columns to `queries` rows, with the smallest possible offset and bounds."""
    offset = band.offset or 0
    low = -queries if band.left is None else max(-queries, min(offset - band.left, columns))
    high = columns if band.right is None else max(-queries, min(offset + band.right, columns))
    offset = offset if alibi else max(low, min(offset, high))
    left = None if band.left is None else max(0, offset - low)
    right = None if band.right is None else max(0, high - offset)
    return Band(offset, None, left, right)


def window_bounds(op: str, window: Any) -> tuple[int | None, int | None]:
    """(left, right) of a window; (None, None) without one."""
    if window is None:
        return None, None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(
            f"{op}: window is {window!r}; want (left, right), columns before and after a query's own that it sees, "
            "None for all of them: for instance window=(1023, 0)"
        )
    left, right = (_bound(op, window, bound) for bound in window)
    return left, right


def _bound(op: str, window: Any, bound: Any) -> Any:
    if bound is None or isinstance(bound, torch.SymInt):  # a compiler's, which is looked at when it has a value
        return bound
    if isinstance(bound, bool) or not isinstance(bound, Integral):
        raise TypeError(f"{op}: window is {window!r}; want each of its two an int from 0, or None")
    if bound < 0:
        raise ValueError(
            f"{op}: window is {window!r}; want each of its two an int from 0, or None for no bound (-1 "
            "elsewhere); to move the window, pass causal_offset"
        )
    return int(bound)


def _near(bound: int | None) -> int | None:
    return None if bound is None else min(bound, EVERYWHERE)


def _check_offset_tensor(op: str, offset: Tensor, rows: Tensor, name: str) -> None:
    check_plain(op, offset, "causal_offset")
    of_batches = rows.dim() > 2 and offset.shape == rows.shape[:1]
    if offset.dtype not in (torch.int32, torch.int64) or not (of_batches or offset.numel() == 1):
        raise ValueError(
            f"{op}: causal_offset is {described(offset)} and {name} {described(rows)}; want an int, or int32 or "
            f"int64 on {name}'s device: one, or shape [B] for {name} [B, ..., Q, K], one for each batch entry: column "
            "j is visible to query i if j <= i + causal_offset"
        )
    check_device(op, offset, rows, "causal_offset", name)
