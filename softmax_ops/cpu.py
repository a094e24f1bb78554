"""The forward by torch operations: the path of CPU tensors, and the plainest statement of the contract in torch.

Accumulation and exp are in float32, for float64 in float64:

    z = scale * x;   z = fill where the mask hides;   z = -inf where causality hides
    y = exp(z - max z) / sum exp(z - max z)

With fill = -inf a column hidden by the mask is excluded like a causal one: exp(-inf) is exactly 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import Request

# Elements computed at once. Bounds the temporaries to about 3 * 8 MiB whatever the size of x, and keeps them in cache.
_BLOCK_ELEMENTS = 1 << 20


def softmax(request: Request) -> Tensor:
    """Softmax over the last dimension of request.x, [..., Q, K] or [K]; of x's dtype, contiguous unless request.out.

    A row that sees nothing, or only z = -inf, is all zeros. A visible z of +inf or NaN makes the whole row NaN, its
    hidden columns included, as it does in torch's own scale, masked_fill and softmax; the value of a hidden x never
    matters. With a finite fill a column hidden by the mask takes part in maximum and sum with that score.

    The request is taken as valid: it raises nothing of its own. Call it with gradients disabled.
    """
    x = request.x
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if request.out is None else request.out
    if x.numel() == 0:
        return y
    mask = request.mask
    if mask is not None and mask.dtype is not torch.bool:
        mask = mask == 1
    rows_x, rows_y = (x, y) if x.dim() > 1 else (x.unsqueeze(0), y.unsqueeze(0))  # [K] is [1, K]
    hidden = None if mask is None else mask.expand(rows_x.shape)  # a view, of stride 0 where it broadcasts
    _write(rows_y, rows_x, hidden, request.causal_offset, request)
    return y


def _write(y: Tensor, x: Tensor, hidden: Tensor | None, offset: int | None, request: Request) -> None:
    """Fill y [..., Q, K] in blocks of whole rows; offset is the causal offset of the first query present."""
    rows = x.numel() // x.shape[-1]
    if x.numel() <= _BLOCK_ELEMENTS or rows == 1:
        y.copy_(_block(x, hidden, offset, request))
        return
    dim = next(d for d, size in enumerate(x.shape) if size > 1)  # not the last one, since there are several rows
    step = max(1, x.shape[dim] * _BLOCK_ELEMENTS // x.numel())
    for start in range(0, x.shape[dim], step):
        size = min(step, x.shape[dim] - start)
        first = offset + start if offset is not None and dim == x.dim() - 2 else offset
        part = None if hidden is None else hidden.narrow(dim, start, size)
        _write(y.narrow(dim, start, size), x.narrow(dim, start, size), part, first, request)


def _block(x: Tensor, hidden: Tensor | None, offset: int | None, request: Request) -> Tensor:
    """Softmax of x [..., Q, K] in the accumulation type, as a new tensor: y may be the memory of x."""
    z = x.to(torch.float64 if x.dtype is torch.float64 else torch.float32) * request.scale
    if hidden is not None:
        z.masked_fill_(hidden, request.fill)
    if offset is not None:
        future = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu_(offset + 1)  # (Q,K): j > i + offset
        z.masked_fill_(future, -math.inf)
    largest = z.amax(-1, keepdim=True)  # (...,Q,1)
    largest.masked_fill_(largest == -math.inf, 0.0)  # nothing to see: exp(-inf - 0) = 0, where -inf + inf is NaN
    z.sub_(largest).exp_()
    total = z.sum(-1, keepdim=True)  # (...,Q,1), at least 1 where something is visible
    return z.div_(total.masked_fill_(total == 0.0, 1.0))
