"""Gradients and tangents of the forward. Those of the backward, and what else transforms need, are in `transforms`.

For its gradient the forward saves its result, for softcap and sinks also lse, and nothing else of the size of the
scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .checks import Request
from .checks.values import accumulation
from .schema import separated


class Softmax(torch.autograd.Function):
    """(x, scale, mask, causal, causal_offset, batch_invariant) -> y"""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        from . import api

        x, scale, mask, causal, causal_offset, batch_invariant = inputs
        y = api.softmax(
            x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, batch_invariant=batch_invariant
        )
        Softmax.keep(ctx, inputs, y)
        return y

    @staticmethod
    def keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Of the tensors, the gradient needs only the result."""
        _, ctx.scale, _, ctx.causal, ctx.causal_offset, ctx.batch_invariant = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        from . import api

        (y,) = _alive(ctx.saved_tensors)
        if torch._C._functorch.is_legacy_batchedtensor(dy):  # of is_grads_batched=True: only operators take it
            numbers = ctx.scale, ctx.causal, ctx.causal_offset, ctx.batch_invariant
            dx = torch.ops.softmax_ops.softmax_backward(dy, y, *numbers)
        else:
            dx = api.softmax_backward(
                dy,
                y,
                scale=ctx.scale,
                causal=ctx.causal,
                causal_offset=ctx.causal_offset,
                batch_invariant=ctx.batch_invariant,
            )
        return dx, None, None, None, None, None


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


def keep(ctx: Any, request: Mapping[str, Any], y: Tensor, lse: Tensor | None) -> None:
    """Save what the gradient of a general request needs: y, lse for softcap and sinks, and what broadcasts. In forward
    mode also x.

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
    saved = y, saved_lse, request["scale_tensor"], request["key_lengths"], moved, sinks
    ctx.save_for_backward(*saved)
    if forward_ad._current_level >= 0:  # what is saved for tangents stays alive until the backward
        ctx.save_for_forward(*saved, x)
    ctx.set_materialize_grads(False)


def general_gradients(
    ctx: Any, dy: Tensor | None, grad_lse: Tensor | None, *, x: bool, bias: bool, sinks: bool
) -> dict[str, Tensor | None]:
    """The requested gradients of x, bias and sinks, from those of y (or log y) and of lse, either of which may be None.

    Takes one launch, and a second one if the bias needs dz and x needs scale * dz.
    """
    saved = _alive(ctx.saved_tensors)  # once: a checkpoint hands out what it saved a single time
    y, lse, scale_tensor, _, _, sink_values = saved
    if dy is None:
        dy = y.new_zeros(()).expand(y.shape)
    dx: Any = None
    dz: Any = None
    d: Any = None
    scaled = scale_tensor is not None or ctx.numbers["scale"] != 1.0
    if bias:
        dz, d = _rows(ctx.numbers, saved, dy, grad_lse, scaled=False, dtype=y.dtype, return_dot=sinks)
        if x and not scaled:
            dx = dz.to(ctx.x_dtype)
    if (x and dx is None) or (sinks and d is None):
        dx, d = _rows(ctx.numbers, saved, dy, grad_lse, scaled=True, dtype=ctx.x_dtype, return_dot=sinks)
    return {
        "x": dx if x else None,
        "bias": None if dz is None else _summed(dz, *ctx.bias_like),
        "sinks": _of_sinks(sink_values, lse, d) if sinks else None,
    }


def general_tangents(
    ctx: Any, *, x: Tensor | None, bias: Tensor | None, sinks: Tensor | None, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """The tangents t(.) of y, or log y, and of lse if wanted, from those of x, bias and sinks, which may be None:

        t(z) = scale * (1 - tanh(scale * x / softcap)^2) * t(x) + t(bias)
        t(lse) = sum_j y_j t(z_j) + exp(sink - lse) t(sink);   t(y) = y * (t(z) - t(lse));   t(log y) = t(z) - t(lse)

    Takes one launch of the backward, since the Jacobian of a softmax is symmetric.
    """
    *saved, scores = ctx.saved_tensors
    y, lse, scale_tensor, _, _, sink_values = saved
    numbers, wide = ctx.numbers | {"softcap": None, "log": False}, accumulation(y)
    scale, softcap, log = (ctx.numbers[name] for name in ("scale", "softcap", "log"))
    if x is not None and bias is None and sinks is None and softcap is None and not log and not with_lse:
        t, _ = _rows(numbers, saved, x.to(y.dtype), None, scaled=True, dtype=y.dtype, return_dot=False)
        return t, None
    saved[0] = y.to(wide).exp() if log else y.to(wide)
    z = saved[0].new_zeros(())
    if scale_tensor is not None:
        scale = scale_tensor.to(wide).unsqueeze(-1)
    if x is not None:
        z = scale * x.to(wide)
        if softcap is not None:
            z = z * (1.0 - (scale * scores.to(wide) / softcap).tanh().square())
    if bias is not None:
        z = z + bias
    z = torch.where(saved[0] == 0.0, 0.0, z)  # a hidden score may be NaN
    less = None if sinks is None else -_share_of(sink_values, lse) * sinks.to(wide).unsqueeze(-1)
    t, t_lse = _rows(numbers, saved, z, less, scaled=False, dtype=wide, return_dot=True)
    if log:
        t = (z - t_lse.unsqueeze(-1)).masked_fill(y == -torch.inf, 0.0)
    return t.to(y.dtype), t_lse if with_lse else None


def _alive(saved: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """Without the wrappers of transforms of torch.func that have ended, which have no memory."""
    return tuple(None if each is None else torch._C._functorch.unwrap_if_dead(each) for each in saved)


def _rows(
    numbers: dict[str, Any],
    saved: Sequence[Tensor | None],
    dy: Tensor,
    grad_lse: Tensor | None,
    *,
    scaled: bool,
    dtype: torch.dtype,
    return_dot: bool,
) -> Any:
    """(dx, d), differentiable in turn. d is None unless requested."""
    from . import routes

    y, lse, scale, key_lengths, offset, _ = saved
    assert y is not None
    arguments = {**numbers, "causal": False, "key_lengths": key_lengths, "grad_lse": grad_lse, "dtype": dtype}
    arguments |= {"lse": None if numbers["softcap"] is None else lse, "return_dot": return_dot}
    if not scaled:
        arguments["scale"] = 1.0
    elif scale is not None:
        arguments["scale"] = scale
    if offset is not None:
        arguments["causal_offset"] = offset
    if any(each is not None and torch._C._functorch.is_legacy_batchedtensor(each) for each in (dy, grad_lse)):
        # Of is_grads_batched=True: only operators take it.
        arguments = separated("softmax_ops.softmax_backward", y, arguments)
        return torch.ops.softmax_ops.general_backward(dy, y, **arguments)
    result = routes.softmax_backward(dy, y, out=None, **arguments)
    return result if return_dot else (result, None)


def _summed(dz: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """dz [..., Q, K] summed over the broadcast dimensions, to the bias's shape and dtype."""
    aligned = (1,) * (dz.dim() - len(shape)) + tuple(shape)
    dims = [dim for dim, (size, of_dz) in enumerate(zip(aligned, dz.shape, strict=True)) if size != of_dz]
    wide = torch.promote_types(dz.dtype, dtype)  # adding in a narrow dtype would round every term first
    total = dz.sum(dims, keepdim=True, dtype=wide) if dims else dz
    return total.to(dtype).reshape(shape)


def _of_sinks(sinks: Tensor, lse: Tensor, d: Tensor) -> Tensor:
    """[H]: - sum over rows of exp(sink - lse) * d, for d and lse [..., H, Q]."""
    total = (_share_of(sinks, lse) * d).sum([dim for dim in range(d.dim()) if dim != d.dim() - 2])
    return -total.to(sinks.dtype)


def _share_of(sinks: Tensor, lse: Tensor) -> Tensor:
    """[..., H, Q]: the part of a row's sum that is its sink's."""
    share = (sinks.to(lse.dtype).unsqueeze(-1) - lse).exp()
    return share.masked_fill(lse == -torch.inf, 0.0)  # neither columns nor a sink: -inf minus -inf
