"""The tensors of a cell: random, never all zeros, in enough sets to make the L2 cache useless."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from .cells import Cell

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
SCALE = 0.125
LEAST_BYTES = 256 << 20
"""Least number of bytes that a round over all sets moves; at least 3 x L2 too."""

BLOCK = 1 << 24
"""Elements drawn or compared at once, since they take float64 meanwhile."""


@dataclass(frozen=True)
class Tensors:
    """One set: x (forward) or dy and y (backward), the output [B, H, Q, K], and a mask or bias that broadcasts to it.

    scales    float32 [B, H, Q] on the device, used instead of `scale`.
    lengths   int32 [B]: columns from this index on are hidden.
    """

    inputs: tuple[Tensor, ...]
    out: Tensor
    mask: Tensor | None
    bias: Tensor | None
    causal: bool
    scale: float = SCALE
    scales: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def factor(self) -> float | Tensor:
        """What scores are multiplied by: `scales` if there are any, otherwise `scale`."""
        return self.scale if self.scales is None else self.scales


def sets_of(cell: Cell, l2_bytes: int) -> int:
    """Number of sets of tensors to rotate over."""
    return ceil(max(3 * l2_bytes, LEAST_BYTES) / cell.full_bytes)


def make(cell: Cell, device: str, sets: int, seed: int) -> list[Tensors]:
    """Sets of random tensors; the same seed gives the same numbers on the same device."""
    generator = torch.Generator(device).manual_seed(seed)
    return [_set(cell, {"device": device, "generator": generator}) for _ in range(sets)]


def _set(cell: Cell, how: dict[str, Any]) -> Tensors:
    dtype, device = DTYPES[cell.dtype], how["device"]
    out = torch.empty(cell.shape, dtype=DTYPES[cell.result], device=device)
    mask, bias = _mask(cell, how), None
    if cell.mask == "bias" and cell.mask_shape:
        bias = torch.randn(cell.mask_shape, dtype=dtype, **how)
    scores = torch.randn(cell.shape, dtype=dtype, **how).mul_(4)
    inputs: tuple[Tensor, ...] = (scores,)
    if cell.direction == "bwd":
        _softmax_in_place(scores, cell)
        inputs = (torch.randn(cell.shape, dtype=dtype, **how), scores)
    return Tensors(inputs, out, mask, bias, cell.causal, scales=_scales(cell, how), lengths=_lengths(cell, how))


def _scales(cell: Cell, how: dict[str, Any]) -> Tensor | None:
    """Scales for temperatures from 0.5 to 2, one per row."""
    return torch.rand(cell.shape[:3], **how).mul_(1.5).add_(0.5) if cell.asks == "temperature" else None


def _lengths(cell: Cell, how: dict[str, Any]) -> Tensor | None:
    """The cell's key lengths in random order."""
    if cell.key_lengths is None:
        return None
    lengths = torch.tensor(cell.key_lengths, dtype=torch.int32, device=how["device"])
    return lengths[torch.randperm(len(lengths), **how)]


def _mask(cell: Cell, how: dict[str, Any]) -> Tensor | None:
    """A mask that hides 0.3 of the columns, or the end of each sequence, at most half of it; never a whole row."""
    if cell.mask_shape is None or cell.mask == "bias":
        return None
    if cell.mask == "padding":
        batch = cell.shape[0]
        lengths = torch.randint(cell.k - cell.k // 2, cell.k + 1, (batch, 1, 1, 1), **how)
        return torch.arange(cell.k, device=how["device"]) >= lengths
    hidden = torch.rand(cell.mask_shape, **how) < 0.3
    hidden[..., 0] = False
    return hidden.to(DTYPES[cell.dtype]) if cell.mask == "like" else hidden


def _softmax_in_place(scores: Tensor, cell: Cell) -> None:
    """Turns scores into the result that a forward would have saved."""
    for place in blocks(cell.shape):
        z = scores[place].float() * SCALE
        if cell.causal:
            z = z.masked_fill(later(cell, place, scores.device), -torch.inf)
        result = z.log_softmax(-1) if cell.asks == "log" else z.softmax(-1)
        scores[place] = result.to(scores.dtype)


Place = tuple[slice, slice, slice]


def blocks(shape: tuple[int, ...], limit: int = BLOCK) -> Iterator[Place]:
    """Index ranges of a [B, H, Q, K] tensor, each with at most `limit` elements unless a single row has more."""
    batch, heads, queries, k = shape
    step_q = min(queries, max(limit // k, 1))
    step_h = min(heads, max(limit // (k * queries), 1))
    step_b = min(batch, max(limit // (k * queries * heads), 1))
    for b in range(0, batch, step_b):
        for h in range(0, heads, step_h):
            for q in range(0, queries, step_q):
                yield slice(b, b + step_b), slice(h, h + step_h), slice(q, q + step_q)


def of_block(broadcast: Tensor, place: Place) -> Tensor:
    """The part of a mask or bias for a place."""
    cut = [slice(None) if size == 1 else part for size, part in zip(broadcast.shape[:3], place, strict=True)]
    return broadcast[tuple(cut)]


def later(cell: Cell, place: Place, device: torch.device) -> Tensor:
    """True where column j > i + K - Q, [queries of the place, K]: what the causal mask hides."""
    queries, k = cell.shape[-2:]
    last = torch.arange(queries, device=device)[place[2]] + (k - queries)
    return torch.arange(k, device=device) > last[:, None]
