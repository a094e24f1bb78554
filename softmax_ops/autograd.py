"""Gradients of both directions, for autograd and for torch.func.

The forward saves its result, for softcap and sinks also lse, and nothing else of the size of the scores. With plain
arguments the backward is differentiable too; that second derivative is rarely needed and uses torch operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .checks import Request
from .checks.values import accumulation
from .modes import in_functorch


class Softmax(torch.autograd.Function):
    """(x, scale, mask, causal, causal_offset, batch_invariant) -> y"""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _softmax(*inputs)
        Softmax.keep(ctx, inputs, y)
        return y

    @staticmethod
    def keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Of the tensors, the gradient needs only the result."""
        _, ctx.scale, _, ctx.causal, ctx.causal_offset, ctx.batch_invariant = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        (y,) = ctx.saved_tensors
        return _backward(ctx, dy, y), None, None, None, None, None


class SoftmaxBackward(torch.autograd.Function):
    """(dy, y, scale, causal, causal_offset, batch_invariant) -> dx"""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        SoftmaxBackward.keep(ctx, inputs, None)
        return _softmax_backward(*inputs)

    @staticmethod
    def keep(ctx: Any, inputs: tuple, output: Tensor | None) -> None:
        dy, y, ctx.scale, ctx.causal, ctx.causal_offset, ctx.batch_invariant = inputs
        ctx.save_for_backward(dy, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        """The gradients of L = sum_i g_i dx_i = scale * sum_i g_i y_i (dy_i - sum_j y_j dy_j):

        dL/ddy = scale * y * (g - sum_j y_j g_j)
        dL/dy  = scale * (g * (dy - sum_j y_j dy_j) - dy * sum_j y_j g_j)
        """
        dy, y = ctx.saved_tensors
        ddy = _backward(ctx, g, y)
        g, dy, p = (_visible(ctx, tensor).to(accumulation(y)) for tensor in (g, dy, y))
        dot = (p * dy).sum(-1, keepdim=True)
        weight = (p * g).sum(-1, keepdim=True)
        second = ctx.scale * (g * (dy - dot) - dy * weight)
        return ddy, second.to(y.dtype), None, None, None, None


class TransformedSoftmax(Softmax):
    """For transforms of torch.func, which require setup_context apart from forward, and a rule for vmap.

    torch inspects the signature of such a forward in every call, which takes 50 us; autograd alone avoids that.
    """

    @staticmethod
    def forward(x: Tensor, scale, mask, causal, causal_offset, batch_invariant) -> Tensor:
        return _softmax(x, scale, mask, causal, causal_offset, batch_invariant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        Softmax.keep(ctx, inputs, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return vmap_softmax(softmax, info, in_dims, *arguments)


class TransformedSoftmaxBackward(SoftmaxBackward):
    """Like `TransformedSoftmax`."""

    @staticmethod
    def forward(dy: Tensor, y: Tensor, scale, causal, causal_offset, batch_invariant) -> Tensor:
        return _softmax_backward(dy, y, scale, causal, causal_offset, batch_invariant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        SoftmaxBackward.keep(ctx, inputs, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return vmap_softmax_backward(softmax_backward, info, in_dims, *arguments)


def softmax(*inputs: Any) -> Tensor:
    """y from the inputs of `Softmax`, for a call that autograd records or a transform sees."""
    return (TransformedSoftmax if in_functorch() else Softmax).apply(*inputs)


def softmax_backward(*inputs: Any) -> Tensor:
    """dx from the inputs of `SoftmaxBackward`, for a call that autograd records or a transform sees."""
    return (TransformedSoftmaxBackward if in_functorch() else SoftmaxBackward).apply(*inputs)


class General(torch.autograd.Function):
    """(x, bias, sinks, request, batch_invariant) -> (y, lse), lse None where nobody needs it"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, sinks: Tensor | None, request: Request, batch_invariant):
        from . import dispatch

        with_lse = request._replace(return_lse=request.return_lse or request.softcap is not None or sinks is not None)
        result: Any = dispatch.forward(with_lse, batch_invariant)
        y, lse = result if with_lse.return_lse else (result, None)
        keep(ctx, request._asdict() | {"batch_invariant": batch_invariant}, y, lse)
        return y, lse

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, grad_lse: Tensor | None) -> tuple:
        wanted = dict(zip(("x", "bias", "sinks"), ctx.needs_input_grad, strict=False))
        found = general_gradients(ctx, dy, grad_lse, **wanted)
        return found["x"], found["bias"], found["sinks"], None, None


class GeneralBackward(torch.autograd.Function):
    """(dy, y, lse, grad_lse, the other arguments of `routes.softmax_backward`) -> (dx, d), d None unless asked for"""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, y: Tensor, lse: Tensor | None, grad_lse: Tensor | None, arguments: dict) -> Any:
        from . import routes

        result = routes.softmax_backward(dy, y, lse=lse, grad_lse=grad_lse, out=None, **arguments)
        return result if arguments.get("return_dot") else (result, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        raise NotImplementedError(
            "softmax_ops: this gradient has none itself: only that of softmax with a number as scale, mask and causal "
            "has, not with more (such as a bias, a window, softcap, return_lse) nor that of log_softmax; want "
            "create_graph=False, or this softmax in torch operations"
        )


def keep(ctx: Any, request: Mapping[str, Any], y: Tensor, lse: Tensor | None) -> None:
    """Save what the gradient of a general request needs: y, lse for softcap and sinks, and what broadcasts.

    request   its fields by name: a Request's, or an operator's arguments.
    """
    x, bias, sinks = request["x"], request["bias"], request["sinks"]
    bounded = request["left"] is not None or request["right"] is not None
    offset = request["causal_offset"] if request["offset_tensor"] is None else None
    ctx.numbers = {name: request[name] for name in ("scale", "softcap", "log", "batch_invariant")}
    ctx.numbers |= {"window": (request["left"], request["right"]), "causal_offset": offset if bounded else None}
    ctx.x_dtype, ctx.bias_like = x.dtype, None if bias is None else (bias.shape, bias.dtype)
    moved = request["offset_tensor"] if bounded else None
    saved_lse = lse if request["softcap"] is not None or sinks is not None else None
    ctx.save_for_backward(y, saved_lse, request["scale_tensor"], request["key_lengths"], moved, sinks)
    ctx.set_materialize_grads(False)


def general_gradients(
    ctx: Any, dy: Tensor | None, grad_lse: Tensor | None, *, x: bool, bias: bool, sinks: bool
) -> dict[str, Tensor | None]:
    """The requested gradients of x, bias and sinks, from those of y (or log y) and of lse, either of which may be None.

    Takes one launch, and a second one if the bias needs dz and x needs scale * dz.
    """
    saved = ctx.saved_tensors  # once: a checkpoint hands out what it saved a single time
    y, lse, scale_tensor, _, _, sink_values = saved
    if dy is None:
        dy = y.new_zeros(()).expand(y.shape)
    dx: Any = None
    dz: Any = None
    d: Any = None
    scaled = scale_tensor is not None or ctx.numbers["scale"] != 1.0
    if bias:
        dz, d = _rows(ctx, saved, dy, grad_lse, scaled=False, dtype=y.dtype, return_dot=sinks)
        if x and not scaled:
            dx = dz.to(ctx.x_dtype)
    if (x and dx is None) or (sinks and d is None):
        dx, d = _rows(ctx, saved, dy, grad_lse, scaled=True, dtype=ctx.x_dtype, return_dot=sinks)
    return {
        "x": dx if x else None,
        "bias": None if dz is None else _summed(dz, *ctx.bias_like),
        "sinks": _of_sinks(sink_values, lse, d) if sinks else None,
    }


def _rows(
    ctx: Any, saved: tuple, dy: Tensor, grad_lse: Tensor | None, *, scaled: bool, dtype: torch.dtype, return_dot: bool
) -> Any:
    """(dx, d) by `GeneralBackward`, whose own gradient raises. d is None unless requested."""
    if torch._C._functorch.is_legacy_batchedtensor(dy):
        raise NotImplementedError(
            "softmax_ops: is_grads_batched=True has no rule for what was asked for here: call torch.autograd.grad once "
            "for each gradient"
        )
    y, lse, scale, key_lengths, offset, _ = saved
    arguments = ctx.numbers | {"causal": False, "key_lengths": key_lengths, "dtype": dtype, "return_dot": return_dot}
    if not scaled:
        arguments["scale"] = 1.0
    elif scale is not None:
        arguments["scale"] = scale
    if offset is not None:
        arguments["causal_offset"] = offset
    return GeneralBackward.apply(dy, y, lse if ctx.numbers["softcap"] is not None else None, grad_lse, arguments)


def _summed(dz: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """dz [..., Q, K] summed over the broadcast dimensions, to the bias's shape and dtype."""
    aligned = (1,) * (dz.dim() - len(shape)) + tuple(shape)
    dims = [dim for dim, (size, of_dz) in enumerate(zip(aligned, dz.shape, strict=True)) if size != of_dz]
    wide = torch.promote_types(dz.dtype, dtype)  # adding in a narrow dtype would round every term first
    total = dz.sum(dims, keepdim=True, dtype=wide) if dims else dz
    return total.to(dtype).reshape(shape)


def _of_sinks(sinks: Tensor, lse: Tensor, d: Tensor) -> Tensor:
    """[H]: - sum over rows of exp(sink - lse) * d, for d and lse [..., H, Q]."""
    share = (sinks.to(lse.dtype).unsqueeze(-1) - lse).exp()  # the sink's share of the row's sum
    share = share.masked_fill(lse == -torch.inf, 0.0)  # neither columns nor a sink: -inf minus -inf
    total = (share * d).sum([dim for dim in range(d.dim()) if dim != d.dim() - 2])
    return -total.to(sinks.dtype)


def vmap_softmax(
    apply: Callable[..., Tensor], info: Any, in_dims: tuple, x: Tensor, scale=1.0, mask=None, *rest
) -> tuple[Tensor, int]:
    """vmap's rule: one call of `apply` for the whole batch. [K] becomes Q = 1, so that the batch is not taken for
    queries.

    Serves an autograd.Function, which passes every argument, and an operator, which omits trailing defaults.
    """
    rank = x.dim() - (in_dims[0] is not None)
    x = _batched(x, in_dims[0], max(rank, 2), info.batch_size)
    if mask is not None:
        mask = _batched(mask, in_dims[2], max(rank, 2), 1)
    return _as_given(apply(x, scale, mask, *rest), rank), 0


def vmap_softmax_backward(
    apply: Callable[..., Tensor], info: Any, in_dims: tuple, dy: Tensor, y: Tensor, *rest
) -> tuple[Tensor, int]:
    """Like `vmap_softmax`."""
    rank = y.dim() - (in_dims[1] is not None)
    dy = _batched(dy, in_dims[0], max(rank, 2), info.batch_size)
    y = _batched(y, in_dims[1], max(rank, 2), info.batch_size)
    return _as_given(apply(dy, y, *rest), rank), 0


def _softmax(x: Tensor, scale, mask, causal, causal_offset, batch_invariant) -> Tensor:
    from . import api

    return api.softmax(
        x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, batch_invariant=batch_invariant
    )


def _softmax_backward(dy: Tensor, y: Tensor, scale, causal, causal_offset, batch_invariant) -> Tensor:
    from . import api

    return api.softmax_backward(
        dy, y, scale=scale, causal=causal, causal_offset=causal_offset, batch_invariant=batch_invariant
    )


def _backward(ctx: Any, dy: Tensor, y: Tensor) -> Tensor:
    """The gradient, itself differentiable. Only operators can take the batched tensors of `is_grads_batched=True`."""
    batched = torch._C._functorch.is_legacy_batchedtensor(dy)
    compute = torch.ops.softmax_ops.softmax_backward if batched else _softmax_backward
    return compute(dy, y, ctx.scale, ctx.causal, ctx.causal_offset, ctx.batch_invariant)


def _visible(ctx: Any, tensor: Tensor) -> Tensor:
    """The tensor with 0 where causality hides a column."""
    if not ctx.causal:
        return tensor
    k, queries = tensor.shape[-1], tensor.shape[-2] if tensor.dim() > 1 else 1
    offset = k - queries if ctx.causal_offset is None else ctx.causal_offset
    seen = torch.ones(queries, k, dtype=torch.bool, device=tensor.device).tril(offset)
    return torch.where(seen if tensor.dim() > 1 else seen[0], tensor, 0)


def _batched(tensor: Tensor, dim: int | None, rank: int, size: int) -> Tensor:
    """[size, ...] with `rank` dimensions after the batch, aligned at the right. With size 1 a batch is not expanded."""
    moved = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    moved = moved.reshape(moved.shape[0], *(1,) * (rank + 1 - moved.dim()), *moved.shape[1:])
    return moved if size == 1 else moved.expand(size, *moved.shape[1:])


def _as_given(result: Tensor, rank: int) -> Tensor:
    """The batch and `rank` dimensions: drops the query dimension that was added to a single row."""
    return result if result.dim() == rank + 1 else result.squeeze(1)
