"""Both directions by torch operations: the path of CPU tensors, and the plainest statement of the contract in torch.

Accumulation and exp are in float32, for float64 in float64. Forward:

    z = scale * x;   z = fill where the mask hides;   z = -inf where causality hides
    y = exp(z - max z) / sum exp(z - max z)

With fill = -inf a column hidden by the mask is excluded like a causal one: exp(-inf) is exactly 0. Backward:

    y = dy = 0 where causality hides;   dx = scale * y * (dy - sum y dy)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .checks import BackwardRequest, Request

# Elements computed at once. Bounds the temporaries to about 3 * 8 MiB whatever the size of x, and keeps them in cache.
_BLOCK_ELEMENTS = 1 << 20


def softmax(request: Request) -> Tensor:
    """Softmax over the last dimension of request.x, [..., Q, K] or [K]; of x's dtype, contiguous unless request.out.

    A row that sees nothing, or only z = -inf, is all zeros. A visible z of +inf or NaN makes the whole row NaN, its
    hidden columns included, as it does in torch's own scale, masked_fill and softmax; the value of a hidden x never
    matters. With a finite fill a column hidden by the mask takes part in maximum and sum with that score.

    The request is taken as valid: it raises nothing of its own. Call it with gradients disabled.
    """
    x, mask = request.x, request.mask
    y = _result(x, request.out)
    if x.numel() == 0:  # there is no maximum of no columns
        return y
    tensors = [y, x]
    if mask is not None:
        hidden = mask if mask.dtype is torch.bool else mask == 1
        tensors.append(hidden.expand(x.shape))  # a view, of stride 0 where it broadcasts
    for (y_part, x_part, *hidden_part), offset in _blocks(tensors, request.causal_offset):
        y_part.copy_(_forward(x_part, hidden_part[0] if hidden_part else None, offset, request))
    return y


def softmax_backward(request: BackwardRequest) -> Tensor:
    """Gradient of the forward's x, [..., Q, K] or [K]; of y's dtype, contiguous unless request.out.

    Columns that causality hides are not read, and their dx is 0; so it is where y is 0, in particular where the forward
    saw a mask. A row whose sum of y * dy is NaN or inf is NaN in those columns too: 0 times that.

    The request is taken as valid: it raises nothing of its own. Call it with gradients disabled.
    """
    dx = _result(request.y, request.out)
    for (dx_part, dy_part, y_part), offset in _blocks([dx, request.dy, request.y], request.causal_offset):
        dx_part.copy_(_backward(dy_part, y_part, offset, request.scale))
    return dx


def _result(like: Tensor, out: Tensor | None) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device) if out is None else out


def _blocks(tensors: list[Tensor], offset: int | None) -> Iterator[tuple[list[Tensor], int | None]]:
    """Parts [..., Q', K] that cover tensors of one shape, [..., Q, K] or [K], in whole rows.

    `offset`, and what comes with a part, is the causal offset of the first query present.
    """
    first = tensors[0]
    if first.dim() == 1:
        yield [tensor.unsqueeze(0) for tensor in tensors], offset  # [K] is [1, K]
        return
    shape, elements = first.shape, first.numel()
    if elements <= _BLOCK_ELEMENTS or elements == shape[-1]:
        yield tensors, offset
        return
    dim = next(d for d, size in enumerate(shape) if size > 1)  # not the last one, since there are several rows
    step = max(1, shape[dim] * _BLOCK_ELEMENTS // elements)
    for start in range(0, shape[dim], step):
        size = min(step, shape[dim] - start)
        parts = [tensor.narrow(dim, start, size) for tensor in tensors]
        yield from _blocks(parts, offset + start if offset is not None and dim == len(shape) - 2 else offset)


def _forward(x: Tensor, hidden: Tensor | None, offset: int | None, request: Request) -> Tensor:
    """Softmax of x [..., Q, K] in the accumulation type, as a new tensor: y may be the memory of x."""
    z = x.to(_accumulation(x)) * request.scale
    if hidden is not None:
        z.masked_fill_(hidden, request.fill)
    if offset is not None:
        z.masked_fill_(_future(x, offset), -math.inf)
    largest = z.amax(-1, keepdim=True)  # (...,Q,1)
    largest.masked_fill_(largest == -math.inf, 0.0)  # nothing to see: exp(-inf - 0) = 0, where -inf + inf is NaN
    z.sub_(largest).exp_()
    total = z.sum(-1, keepdim=True)  # (...,Q,1), at least 1 where something is visible
    return z.div_(total.masked_fill_(total == 0.0, 1.0))


def _backward(dy: Tensor, y: Tensor, offset: int | None, scale: float) -> Tensor:
    """Gradient for dy, y [..., Q, K] in the accumulation type, as a new tensor: dx may be the memory of dy or y."""
    dy, y = dy.to(_accumulation(dy)), y.to(_accumulation(y))
    if offset is not None:
        future = _future(y, offset)
        dy, y = dy.masked_fill(future, 0.0), y.masked_fill(future, 0.0)
    dot = (y * dy).sum(-1, keepdim=True)  # (...,Q,1)
    return (dy - dot).mul_(y).mul_(scale)


def _accumulation(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def _future(rows: Tensor, offset: int) -> Tensor:
    """(Q,K): True where causality hides, j > i + offset."""
    return torch.ones(rows.shape[-2:], dtype=torch.bool, device=rows.device).triu_(offset + 1)
