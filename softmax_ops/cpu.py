"""Both directions by torch operations: used for CPU tensors, and the plainest statement of the contract in torch.

Accumulation and exp use float32, or float64 for float64. Forward:

    z = scale * x;   z = fill where the mask hides;   z = -inf where causality hides
    y = exp(z - max z) / sum exp(z - max z)

With fill = -inf, a column hidden by the mask is excluded like a causal one: exp(-inf) is exactly 0. Backward:

    y = dy = 0 where causality hides;   dx = scale * y * (dy - sum y dy)

The formulas of general requests are in `_forward_general` and `_backward_general`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import operands
from .checks import BackwardRequest, Request
from .checks.values import accumulation

# Elements computed at once. This bounds the temporaries to about 3 * 8 MiB whatever the size of x, and keeps them in
# cache.
_BLOCK_ELEMENTS = 1 << 20


def softmax(request: Request) -> Any:
    """Softmax over the last dimension of request.x, [..., Q, K] or [K]; of x's dtype, contiguous unless request.out.

    A general request gives its own dtype, log y with request.log, and (result, lse [..., Q]) with request.return_lse.

    A row that sees nothing, or only z = -inf, is all zeros. A visible z of +inf or NaN makes the whole row NaN, its
    hidden columns included, as in torch's own scale, masked_fill and softmax; the value of a hidden x never
    matters. With a finite fill, a column hidden by the mask takes part in maximum and sum with the fill as its score.

    The request must be valid: nothing is checked here. Call it with gradients disabled.
    """
    return _softmax_general(request) if request.general else softmax_plain(request)


def softmax_plain(request: Request) -> Tensor:
    """Softmax of a request that is not general; torch.compile of 2.4 cannot trace the test whether one is."""
    x, mask = request.x, request.mask
    y = _result(x, request.out)
    if x.numel() == 0:  # without columns there is no maximum
        return y
    tensors = [y, x]
    if mask is not None:
        tensors.append(_hides(mask).expand(x.shape))  # a view, with stride 0 where it broadcasts
    for (y_part, x_part, *hidden_part), offset in _blocks(tensors, request.causal_offset):
        y_part.copy_(_forward(x_part, hidden_part[0] if hidden_part else None, offset, request))
    return y


def softmax_whole(request: Request) -> Tensor:
    """`softmax_plain` in one piece and without out, for what looks at operations: compilers, modes, transforms."""
    x, mask = request.x, request.mask
    if x.shape[-1] == 0:
        return torch.empty_like(x)
    rows = x.unsqueeze(0) if x.dim() == 1 else x
    y = _forward(rows, None if mask is None else _hides(mask), request.causal_offset, request)
    return y.to(x.dtype).reshape(x.shape)


def softmax_backward(request: BackwardRequest) -> Any:
    """Gradient of the forward's x, [..., Q, K] or [K]; of y's dtype, contiguous unless request.out.

    A general request gives its own dtype, and (gradient, d [..., Q]) with request.return_dot.

    Columns that causality hides are not read. Their dx is 0, as it is where y is 0, in particular where the forward saw
    a mask; but in a row whose sum of y * dy is NaN or inf, these columns are NaN too: 0 times that sum.

    The request must be valid: nothing is checked here. Call it with gradients disabled.
    """
    if request.general:
        return _softmax_backward_general(request)
    dx = _result(request.y, request.out)
    for (dx_part, dy_part, y_part), offset in _blocks([dx, request.dy, request.y], request.causal_offset):
        dx_part.copy_(_backward(dy_part, y_part, offset, request.scale))
    return dx


def _softmax_general(request: Request) -> Any:
    """A general request in blocks: whatever broadcasts becomes a view of x's shape, with stride 0 where it does."""
    x, wide = request.x, accumulation(request.x)
    y = _result(x, request.out, request.dtype)
    lse = torch.full(x.shape[:-1], -math.inf, dtype=wide, device=x.device)
    if x.numel() == 0:  # the sum of nothing and a sink
        if request.sinks is not None:
            lse.copy_(request.sinks[:, None].expand(lse.shape))
        return (y, lse) if request.return_lse else y
    given = {
        "y": y,
        "x": x,
        "lse": lse.unsqueeze(-1),
        "mask": None if request.mask is None else _hides(request.mask),
        "bias": request.bias,
        **_of_rows(x, request),
        "slopes": _by_head(request.alibi_slopes),
        "sinks": _by_head(request.sinks),
    }
    present = {name: tensor.expand(x.shape) for name, tensor in given.items() if tensor is not None}
    for parts, offset in _blocks(list(present.values()), request.causal_offset):
        part = dict(zip(present, parts, strict=True))
        result, row = _forward_general(part, offset, request)
        part["y"].copy_(result)
        part["lse"][..., :1].copy_(row)
    return (y, lse) if request.return_lse else y


def _softmax_backward_general(request: BackwardRequest) -> Any:
    """Like `_softmax_general`."""
    y = request.y
    dx = _result(y, request.out, request.dtype)
    dot = torch.zeros(y.shape[:-1], dtype=accumulation(y), device=y.device)
    if y.numel() == 0:
        if request.grad_lse is not None:
            dot -= request.grad_lse
        return (dx, dot) if request.return_dot else dx
    given = {
        "dx": dx,
        "dy": request.dy,
        "y": y,
        "dot": dot.unsqueeze(-1),
        **_of_rows(y, request),
        "lse": None if request.lse is None else request.lse.unsqueeze(-1),
        "grad_lse": None if request.grad_lse is None else request.grad_lse.unsqueeze(-1),
    }
    present = {name: tensor.expand(y.shape) for name, tensor in given.items() if tensor is not None}
    for parts, offset in _blocks(list(present.values()), request.causal_offset):
        part = dict(zip(present, parts, strict=True))
        result, row = _backward_general(part, offset, request)
        part["dx"].copy_(result)
        part["dot"][..., :1].copy_(row)
    return (dx, dot) if request.return_dot else dx


def _result(like: Tensor, out: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(like.shape, dtype=dtype or like.dtype) if out is None else out


def _hides(mask: Tensor) -> Tensor:
    return mask if mask.dtype is torch.bool else mask == 1


def _of_rows(rows: Tensor, request: Request | BackwardRequest) -> dict[str, Tensor | None]:
    """The numbers for each row that kernels take, [..., 1]."""
    found = operands.of_rows(rows, request)
    return {name: None if each is None else each.unsqueeze(-1) for name, each in found.items()}


def _by_head(values: Tensor | None) -> Tensor | None:
    """[H] reshaped to [H, 1, 1]."""
    return None if values is None else values[:, None, None]


def _blocks(tensors: list[Tensor], offset: int | None) -> Iterator[tuple[list[Tensor], int | None]]:
    """Parts [..., Q', K] that cover tensors of one shape, [..., Q, K] or [K], in whole rows.

    `offset`, like the one returned with each part, is the causal offset of the part's first query.
    """
    first = tensors[0]
    if first.dim() == 1:
        yield [tensor.unsqueeze(0) for tensor in tensors], offset  # [K] is treated as [1, K]
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
    z = x.to(accumulation(x)) * request.scale
    if hidden is not None:
        z = z.masked_fill(hidden, request.fill)
    if offset is not None:
        z.masked_fill_(_future(x, offset), -math.inf)
    largest = z.amax(-1, keepdim=True)  # (...,Q,1)
    largest.masked_fill_(largest == -math.inf, 0.0)  # nothing is visible: exp(-inf - 0) = 0, whereas -inf + inf is NaN
    z.sub_(largest).exp_()
    total = z.sum(-1, keepdim=True)  # (...,Q,1), at least 1 if something is visible
    return z.div_(total.masked_fill_(total == 0.0, 1.0))


def _forward_general(part: dict[str, Tensor], offset: int | None, request: Request) -> tuple[Tensor, Tensor]:
    """y, or log y, of a block [..., Q, K], and lse [..., Q, 1], new tensors of the accumulation type:

    s = scale * x, then softcap * tanh(s / softcap);   z = s - slope * |i + offset - j| + bias, -inf where hidden
    m = max(z, sink);   D = sum exp(z - m) + exp(sink - m);   y = exp(z - m) / D;   log y = z - m - log D
    """
    x = part["x"]
    z = x.to(accumulation(x)) * part.get("row_scale", request.scale)
    if request.softcap is not None:
        z.div_(request.softcap).tanh_().mul_(request.softcap)
    if "slopes" in part:
        z.sub_(part["slopes"] * _distance(part, x, offset).abs())
    if "bias" in part:
        z.add_(part["bias"])
    for hidden in _hidden(part, x, offset, request):
        z.masked_fill_(hidden, -math.inf)
    largest = z.amax(-1, keepdim=True)  # (...,Q,1)
    if "sinks" in part:
        largest = torch.maximum(largest, part["sinks"][..., :1])
    largest.masked_fill_(largest == -math.inf, 0.0)  # as in _forward
    weight = z.sub_(largest).exp()
    total = weight.sum(-1, keepdim=True)
    if "sinks" in part:
        total.add_(part["sinks"][..., :1].sub(largest).exp_())
    lse = total.log().add_(largest)  # log 0 is -inf, for a row that sees nothing
    total.masked_fill_(total == 0.0, 1.0)
    return z.sub_(total.log_()) if request.log else weight.div_(total), lse


def _backward_general(part: dict[str, Tensor], offset: int | None, request: BackwardRequest) -> tuple[Tensor, Tensor]:
    """dx of a block [..., Q, K], and d [..., Q, 1], new tensors of the accumulation type:

    of y:      d = sum y dy - grad_lse;   dz = y * (dy - d)
    of log y:  d = sum dy - grad_lse;     dz = dy - y * d where log y is not -inf; dy is read only there
    dx = scale * dz * (1 - (s / softcap)^2),   s = log y + lse
    """
    wide = accumulation(part["y"])
    dy, given = part["dy"].to(wide), part["y"].to(wide)
    hidden = _hidden(part, given, offset, request)
    if request.log:
        hidden.append(given == -math.inf)
    for each in hidden:
        dy, given = dy.masked_fill(each, 0.0), given.masked_fill(each, -math.inf if request.log else 0.0)
    y = given.exp() if request.log else given
    d = (dy if request.log else y * dy).sum(-1, keepdim=True)  # (...,Q,1)
    if "grad_lse" in part:
        d.sub_(part["grad_lse"][..., :1])
    dz = dy - y * d if request.log else (dy - d).mul_(y)
    if request.softcap is not None:
        s = (given if request.log else y.log()) + part["lse"]
        s.div_(request.softcap)
        dz.mul_((1.0 - s * s).clamp_(min=0.0))  # rounding of y may move s beyond softcap; y = 0 moves it to -inf
    dz.mul_(part.get("row_scale", request.scale))
    return dz.masked_fill_(given == -math.inf, 0.0) if request.log else dz, d


def _backward(dy: Tensor, y: Tensor, offset: int | None, scale: float) -> Tensor:
    """Gradient for dy, y [..., Q, K] in the accumulation type, as a new tensor: dx may be the memory of dy or y."""
    dy, y = dy.to(accumulation(dy)), y.to(accumulation(y))
    if offset is not None:
        future = _future(y, offset)
        dy, y = dy.masked_fill(future, 0.0), y.masked_fill(future, 0.0)
    dot = (y * dy).sum(-1, keepdim=True)  # (...,Q,1)
    return (dy - dot).mul_(y).mul_(scale)


def _future(rows: Tensor, offset: int) -> Tensor:
    """(Q,K): True where causality hides, j > i + offset."""
    return torch.ones(rows.shape[-2:], dtype=torch.bool, device=rows.device).triu_(offset + 1)


def _hidden(
    part: dict[str, Tensor], rows: Tensor, offset: int | None, bounds: Request | BackwardRequest
) -> list[Tensor]:
    """Masks for rows [..., Q, K], one for each thing that hides columns, True where it does."""
    hidden = [part["mask"]] if "mask" in part else []
    if "bias" in part:
        hidden.append(part["bias"] == -math.inf)  # hides NaN and +inf too
    if "lengths" in part:
        hidden.append(torch.arange(rows.shape[-1], device=rows.device) >= part["lengths"])
    if bounds.left is not None:
        hidden.append(_distance(part, rows, offset) < -bounds.left)
    if bounds.right is not None:
        hidden.append(_distance(part, rows, offset) > bounds.right)
    return hidden


def hidden_from(request: BackwardRequest) -> Tensor:
    """Broadcasts to y's shape: True in columns that the gradient takes for hidden."""
    y = request.y
    rows = y.unsqueeze(0) if y.dim() == 1 else y
    bounds = request if request.general or request.causal_offset is None else request._replace(right=0)
    part = {name: tensor for name, tensor in _of_rows(y, request).items() if tensor is not None}
    hidden = _hidden(part, rows, request.causal_offset, bounds)
    if request.log:
        hidden.append(rows == -math.inf)
    every = functools.reduce(torch.logical_or, hidden, torch.zeros(1, 1, dtype=torch.bool, device=y.device))
    return every[0] if y.dim() == 1 else every


def _distance(part: dict[str, Tensor], rows: Tensor, offset: int | None) -> Tensor:
    """(Q,K) or [..., Q, K]: j - (i + offset), the number of columns after a query's own."""
    queries, columns = (torch.arange(size, device=rows.device) for size in rows.shape[-2:])
    distance = columns - queries[:, None] - (offset or 0)
    return distance - part["offsets"] if "offsets" in part else distance
