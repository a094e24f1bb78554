"""Gradients of both directions, for autograd and for torch.func.

The forward saves its result and nothing else. The backward has a gradient too, in torch operations: that of dx is
seldom asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Softmax(torch.autograd.Function):
    """(x, scale, mask, causal, causal_offset, batch_invariant) -> y"""

    @staticmethod
    def forward(x: Tensor, scale, mask, causal, causal_offset, batch_invariant) -> Tensor:
        from . import api

        return api.softmax(
            x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, batch_invariant=batch_invariant
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """The result is all that the gradient needs."""
        _, ctx.scale, _, ctx.causal, ctx.causal_offset, ctx.batch_invariant = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        (y,) = ctx.saved_tensors
        return _backward(ctx, dy, y), None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return vmap_softmax(Softmax.apply, info, in_dims, *arguments)


class SoftmaxBackward(torch.autograd.Function):
    """(dy, y, scale, causal, causal_offset, batch_invariant) -> dx"""

    @staticmethod
    def forward(dy: Tensor, y: Tensor, scale, causal, causal_offset, batch_invariant) -> Tensor:
        from . import api

        return api.softmax_backward(
            dy, y, scale=scale, causal=causal, causal_offset=causal_offset, batch_invariant=batch_invariant
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        dy, y, ctx.scale, ctx.causal, ctx.causal_offset, ctx.batch_invariant = inputs
        ctx.save_for_backward(dy, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        """Of L = sum_i g_i dx_i = scale * sum_i g_i y_i (dy_i - sum_j y_j dy_j):

        dL/ddy = scale * y * (g - sum_j y_j g_j)
        dL/dy  = scale * (g * (dy - sum_j y_j dy_j) - dy * sum_j y_j g_j)
        """
        dy, y = ctx.saved_tensors
        ddy = _backward(ctx, g, y)
        wide = torch.float64 if y.dtype is torch.float64 else torch.float32
        g, dy, p = (_visible(ctx, tensor).to(wide) for tensor in (g, dy, y))
        dot = (p * dy).sum(-1, keepdim=True)
        weight = (p * g).sum(-1, keepdim=True)
        second = ctx.scale * (g * (dy - dot) - dy * weight)
        return ddy, second.to(y.dtype), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return vmap_softmax_backward(SoftmaxBackward.apply, info, in_dims, *arguments)


def vmap_softmax(
    apply: Callable[..., Tensor], info: Any, in_dims: tuple, x: Tensor, scale=1.0, mask=None, *rest
) -> tuple[Tensor, int]:
    """One call of `apply` for a batch of them. [K] is Q = 1: the batch is no query.

    The rule of an autograd.Function, which gets every argument, and of an operator, which gets none of the last ones
    that are defaults.
    """
    rank = x.dim() - (in_dims[0] is not None)
    x = _batched(x, in_dims[0], max(rank, 2), info.batch_size)
    if mask is not None:
        mask = _batched(mask, in_dims[2], max(rank, 2), 1)
    return _as_given(apply(x, scale, mask, *rest), rank), 0


def vmap_softmax_backward(
    apply: Callable[..., Tensor], info: Any, in_dims: tuple, dy: Tensor, y: Tensor, *rest
) -> tuple[Tensor, int]:
    """As `vmap_softmax`."""
    rank = y.dim() - (in_dims[1] is not None)
    dy = _batched(dy, in_dims[0], max(rank, 2), info.batch_size)
    y = _batched(y, in_dims[1], max(rank, 2), info.batch_size)
    return _as_given(apply(dy, y, *rest), rank), 0


def _backward(ctx: Any, dy: Tensor, y: Tensor) -> Tensor:
    """The gradient, which has one. What `torch.autograd.grad(is_grads_batched=True)` hands over only operators take."""
    batched = torch._C._functorch.is_legacy_batchedtensor(dy)
    apply = torch.ops.softmax_ops.softmax_backward if batched else SoftmaxBackward.apply
    return apply(dy, y, ctx.scale, ctx.causal, ctx.causal_offset, ctx.batch_invariant)


def _visible(ctx: Any, tensor: Tensor) -> Tensor:
    """0 where causality hides."""
    if not ctx.causal:
        return tensor
    k, queries = tensor.shape[-1], tensor.shape[-2] if tensor.dim() > 1 else 1
    offset = k - queries if ctx.causal_offset is None else ctx.causal_offset
    seen = torch.ones(queries, k, dtype=torch.bool, device=tensor.device).tril(offset)
    return torch.where(seen if tensor.dim() > 1 else seen[0], tensor, 0)


def _batched(tensor: Tensor, dim: int | None, rank: int, size: int) -> Tensor:
    """[size, ...] with `rank` dimensions behind the batch, aligned at the right. A batch of 1 stands for any."""
    moved = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    moved = moved.reshape(moved.shape[0], *(1,) * (rank + 1 - moved.dim()), *moved.shape[1:])
    return moved if size == 1 else moved.expand(size, *moved.shape[1:])


def _as_given(result: Tensor, rank: int) -> Tensor:
    """The batch and `rank` dimensions: without the query of a row alone."""
    return result if result.dim() == rank + 1 else result.squeeze(1)
