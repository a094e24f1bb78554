"""Gradients and tangents of the forward. Those of the backward, and what else transforms need, are in `transforms`.

For its gradient the forward saves its result, for softcap and sinks also lse, and nothing else of the size of the
scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .checks import without_backward
from .checks.values import accumulation
from .modes import primal
from .schema import Arguments, as_float, on_device, to_operator


class Softmax(torch.autograd.Function):
    """(x, bias, sinks, arguments) -> (y, lse), or log y for y. lse is None where neither the caller nor the gradient
    needs it.

    `arguments` are the others of `api.softmax` by name, without `out`, and `log`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, sinks: Tensor | None, arguments: Arguments) -> Any:
        from . import api

        given = arguments | {"bias": bias, "sinks": sinks}
        given["return_lse"] = with_lse = arguments["return_lse"] or saves_lse(given)
        log = given.pop("log")
        result: Any = api.log_softmax(x, **given) if log else api.softmax(x, **given)
        y, lse = result if with_lse else (result, None)
        keep(ctx, given | {"x": x, "log": log}, y, lse)
        return y, lse

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, grad_lse: Tensor | None) -> tuple:
        wanted = dict(zip(("x", "bias", "sinks"), ctx.needs_input_grad, strict=False))
        found = gradients(ctx, dy, grad_lse, **wanted)
        return found["x"], found["bias"], found["sinks"], None


def record(*, x: Tensor, bias: Tensor | None, sinks: Tensor | None, out: None, **arguments: Any) -> Any:
    """A valid call of the forward that autograd records, with the arguments of `api.softmax` and `log`."""
    y, lse = Softmax.apply(x, bias, sinks, arguments)
    return (y, lse) if arguments["return_lse"] else y


def is_recordable(given: Arguments) -> bool:
    """Whether autograd may record a valid call of the forward with these arguments of `api.softmax`."""
    if given["out"] is not None or without_backward(given):
        return False
    others = (value for name, value in given.items() if name not in ("x", "bias", "sinks"))
    return not any(isinstance(each, Tensor) and each.requires_grad for each in others)


def saves_lse(given: Arguments) -> bool:
    """Whether the gradient of a call with these arguments of `api.softmax` needs lse."""
    return given["softcap"] is not None or given["sinks"] is not None


def keep(ctx: Any, given: Arguments, y: Tensor, lse: Tensor | None) -> None:
    """Save what the gradient of a call needs: y, lse for softcap and sinks, what broadcasts, and in forward mode x.

    given  the arguments of `api.softmax`, without `out`, and `log`.
    """
    x, bias, sinks = given["x"], given["bias"], given["sinks"]
    scale, offset, window = given["scale"], given["causal_offset"], given["window"]
    if window is not None and window[0] is None and window[1] is None:
        window = None
    if window is None and not given["causal"]:
        offset = None  # only slopes measure from it
    scale_tensor = scale if on_device(scale) else None
    offset_tensor = offset if isinstance(offset, Tensor) else None
    ctx.numbers = {
        "scale": as_float(scale) if scale_tensor is None else 1.0,
        "causal": given["causal"],
        "causal_offset": offset if offset_tensor is None else None,
        "window": window,
        "softcap": given["softcap"],
        "log": given["log"],
        "batch_invariant": given["batch_invariant"],
    }
    ctx.x_dtype, ctx.bias_like = x.dtype, None if bias is None else (bias.shape, bias.dtype)
    saved = y, lse if saves_lse(given) else None, scale_tensor, given["key_lengths"], offset_tensor, sinks
    ctx.save_for_backward(*saved)
    if forward_ad._current_level >= 0:  # what is saved for tangents stays alive until the backward
        ctx.save_for_forward(*saved, x)
    ctx.set_materialize_grads(False)


def gradients(
    ctx: Any, dy: Tensor | None, grad_lse: Tensor | None, *, x: bool, bias: bool, sinks: bool
) -> dict[str, Tensor | None]:
    """The requested gradients of x, bias and sinks, from those of y (or log y) and of lse, either of which may be None.

    Takes one launch, and a second one if the bias needs dz and x needs scale * dz.
    """
    saved = _alive(ctx.saved_tensors)  # once: a checkpoint hands out what it saved a single time
    y, lse, scale_tensor, _, _, sink_values = saved
    # Autograd itself makes lazily negated gradients, of complex numbers.
    dy = y.new_zeros(()).expand(y.shape) if dy is None else dy.resolve_neg()
    grad_lse = None if grad_lse is None else grad_lse.resolve_neg()
    dx: Any = None
    dz: Any = None
    d: Any = None
    scaled = scale_tensor is not None or ctx.numbers["scale"] != 1.0
    if bias:
        wide = torch.promote_types(y.dtype, ctx.bias_like[1])  # rounded to 16 bits, a sum of small gradients would be 0
        rows = (y.to(wide), *saved[1:])
        dz, d = _rows(ctx.numbers, rows, dy.to(wide), grad_lse, scaled=False, dtype=wide, return_dot=sinks)
        if x and not scaled:
            dx = dz.to(ctx.x_dtype)
    if (x and dx is None) or (sinks and d is None):
        dx, d = _rows(ctx.numbers, saved, dy, grad_lse, scaled=True, dtype=ctx.x_dtype, return_dot=sinks)
    return {
        "x": dx if x else None,
        "bias": None if dz is None else _summed(dz, *ctx.bias_like),
        "sinks": _of_sinks(sink_values, lse, d) if sinks else None,
    }


def tangents(
    ctx: Any, *, x: Tensor | None, bias: Tensor | None, sinks: Tensor | None, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """The tangents t(.) of y, or log y, and of lse if wanted, from those of x, bias and sinks, which may be None:

        t(z) = scale * (1 - tanh(scale * x / softcap)^2) * t(x) + t(bias)
        t(lse) = sum_j y_j t(z_j) + exp(sink - lse) t(sink);   t(y) = y * (t(z) - t(lse));   t(log y) = t(z) - t(lse)

    Takes one launch of the backward, since the Jacobian of a softmax is symmetric.
    """
    *saved, scores = map(primal, ctx.saved_tensors)
    y, lse, scale_tensor, _, _, sink_values = saved
    numbers, wide = ctx.numbers | {"softcap": None, "log": False}, accumulation(y)
    scale, softcap, log = (ctx.numbers[name] for name in ("scale", "softcap", "log"))
    if x is not None and bias is None and sinks is None and softcap is None and not log and not with_lse:
        seen = torch.where(y == 0.0, 0.0, x.to(y.dtype))  # the tangent of a hidden score may be NaN
        t, _ = _rows(numbers, saved, seen, None, scaled=True, dtype=y.dtype, return_dot=False)
        return t, None
    saved[0] = y.to(wide).exp() if log else y.to(wide)
    hidden = y == -torch.inf if log else y == 0.0
    z = saved[0].new_zeros(())
    if scale_tensor is not None:
        scale = scale_tensor.to(wide)
        scale = scale.reshape(()) if scale.numel() == 1 else scale.unsqueeze(-1)
    if x is not None:
        z = scale * x.to(wide)
        if softcap is not None:
            seen = scores.to(wide).masked_fill(hidden, 0.0)  # a hidden score may be NaN, also for a later derivative
            z = z * (1.0 - (scale * seen / softcap).tanh().square())
    if bias is not None:
        z = z + bias.to(wide)
    z = torch.where(hidden, 0.0, z)
    less = None if sinks is None else -_share_of(sink_values, lse) * sinks.to(wide).unsqueeze(-1)
    t, t_lse = _rows(numbers, saved, z, less, scaled=False, dtype=wide, return_dot=True)
    if log:
        t = (z - t_lse.unsqueeze(-1)).masked_fill(y == -torch.inf, 0.0)
    return t.to(y.dtype), t_lse if with_lse else None


def _alive(saved: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """Without the wrappers of transforms of torch.func that have ended, which have no memory."""
    if is_dynamo_compiling():  # which compiled autograd traces with, and which has none
        return saved
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
    from . import api, routes

    y, lse, scale, key_lengths, offset, _ = saved
    assert y is not None
    log, arguments = numbers["log"], {name: value for name, value in numbers.items() if name != "log"}
    arguments |= {"key_lengths": key_lengths, "grad_lse": grad_lse, "dtype": None if dtype is y.dtype else dtype}
    arguments["lse"] = None if numbers["softcap"] is None else lse
    if not scaled:
        arguments["scale"] = 1.0
    elif scale is not None:
        arguments["scale"] = scale
    if offset is not None:
        arguments["causal_offset"] = offset
    if not is_dynamo_compiling() and any(map(_is_batched, (dy, grad_lse))):  # only operators take them
        arguments = to_operator("softmax_ops.softmax_backward", y, arguments)
        return torch.ops.softmax_ops.general_backward(dy, y, **arguments, log=log, return_dot=return_dot)
    if return_dot:
        return routes.softmax_backward(dy, y, log=log, out=None, **arguments, return_dot=True)
    return (api.log_softmax_backward if log else api.softmax_backward)(dy, y, **arguments), None


def _is_batched(gradient: Tensor | None) -> bool:
    """Whether a gradient is one of is_grads_batched=True."""
    return gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)


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
    below = sinks.to(lse.dtype).unsqueeze(-1) - lse
    return below.masked_fill(lse == -torch.inf, -torch.inf).exp()  # neither columns nor a sink: -inf minus -inf
