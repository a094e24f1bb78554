"""Calls that ask for more than scale, mask and causality: with a bias, a window, lse, log y and the like.

`softmax` and `softmax_backward` take what `checks.check_general` and `checks.check_general_backward` take. Like the
plain ones they go to an operator where somebody looks on who knows operators only, through autograd where that records,
and straight to a kernel or the CPU path otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import dispatch
from .autograd import General, GeneralBackward
from .checks import check_general, check_general_backward
from .checks.band import window_bounds
from .checks.out import gradient_dtype, result_dtype
from .checks.scalars import finite_scale
from .known import general as known
from .modes import copied, in_functorch, is_recorded, is_transformed, needs_operator, no_rule


def softmax(x: Tensor, *, log: bool, batch_invariant: bool, out: Tensor | None, **arguments: Any) -> Any:
    """y or log y, or (that, lse), as `api.softmax` describes it."""
    op = "softmax_ops.log_softmax" if log else "softmax_ops.softmax"
    given = {"x": x, "log": log, "batch_invariant": batch_invariant, "out": out, **arguments}
    if not is_dynamo_compiling():
        result = known.found(given)
        if result is not None:
            return result
    operator = needs_operator(x, out, *arguments.values())
    recorded = is_recorded(x, arguments.get("bias"), arguments.get("sinks"))
    if out is not None and (operator or is_transformed()):
        if isinstance(x, Tensor):
            arguments["dtype"] = result_dtype(op, arguments.get("dtype"), out, x, "x")
        result = softmax(x, log=log, batch_invariant=batch_invariant, out=None, **arguments)
        y, *lse = result if arguments.get("return_lse") else (result,)
        recorded_too = {"bias": arguments.get("bias"), "sinks": arguments.get("sinks")}
        y = copied(op, y, out, dtype=arguments["dtype"], **recorded_too, x=x)
        return (y, *lse) if lse else y
    if operator:
        if recorded:
            _refuse_without_backward(op, arguments)
        y, lse = torch.ops.softmax_ops.general(
            x, log=log, batch_invariant=batch_invariant, **_for_operator(op, x, arguments)
        )
        return (y, lse) if arguments.get("return_lse") else y
    if in_functorch():
        raise no_rule(op)
    request = check_general(x, out=out, log=log, **arguments)
    if not request.general:  # nothing new after all, such as dtype=x.dtype
        from . import api

        _, number, mask, offset, *_ = request
        placed: dict[str, Any] = {"causal": offset is not None, "causal_offset": offset}
        return api.softmax(x, scale=number, mask=mask, **placed, batch_invariant=batch_invariant, out=out)
    if recorded or is_transformed():
        _refuse_without_backward(op, arguments)
        y, lse = General.apply(x, request.bias, request.sinks, request, batch_invariant)
        return (y, lse) if request.return_lse else y
    result = dispatch.forward(request, batch_invariant)
    y, lse = result if request.return_lse else (result, None)
    known.remember(given, request, batch_invariant, y, lse)
    return result


def softmax_backward(
    dy: Tensor, y: Tensor, *, log: bool, batch_invariant: bool, out: Tensor | None, **arguments: Any
) -> Any:
    """dx, or (dx, d) with return_dot=True, as `api.softmax_backward` describes it."""
    op = "softmax_ops.log_softmax_backward" if log else "softmax_ops.softmax_backward"
    operator = needs_operator(dy, y, out, *arguments.values())
    if out is not None and (operator or is_transformed()):
        if isinstance(y, Tensor):
            arguments["dtype"] = gradient_dtype(op, arguments.get("dtype"), out, y, "y")
        dx = softmax_backward(dy, y, log=log, batch_invariant=batch_invariant, out=None, **arguments)
        return copied(op, dx, out, dtype=arguments["dtype"], dy=dy, y=y)
    if operator:
        dx, d = torch.ops.softmax_ops.general_backward(
            dy, y, log=log, batch_invariant=batch_invariant, **_for_operator(op, y, arguments)
        )
        return (dx, d) if arguments.get("return_dot") else dx
    if in_functorch():
        raise no_rule(op)
    request = check_general_backward(dy, y, out=out, log=log, **arguments)
    if not request.general:
        from . import api

        _, _, number, offset, *_ = request
        placed: dict[str, Any] = {"causal": offset is not None, "causal_offset": offset}
        return api.softmax_backward(dy, y, scale=number, **placed, batch_invariant=batch_invariant, out=out)
    lse, grad_lse = request.lse, request.grad_lse
    if is_recorded(dy, y, lse, grad_lse) or is_transformed():
        rest = {name: value for name, value in arguments.items() if name not in ("lse", "grad_lse")}
        rest |= {"log": log, "batch_invariant": batch_invariant}
        dx, d = GeneralBackward.apply(dy, y, lse, grad_lse, rest)
        return (dx, d) if request.return_dot else dx
    return dispatch.backward(request, batch_invariant)


def _for_operator(op: str, rows: Tensor, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with numbers and tensors apart, as the operators take them."""
    given = dict(arguments)
    given["left"], given["right"] = window_bounds(op, given.pop("window", None))
    if _on_device(given["scale"]):
        given["scale_tensor"], given["scale"] = given["scale"], 1.0
    elif isinstance(given["scale"], Tensor):
        given["scale"] = finite_scale(op, given["scale"], rows)
    if _on_device(given["causal_offset"]):
        given["offset_tensor"], given["causal_offset"] = given["causal_offset"], None
    elif isinstance(given["causal_offset"], Tensor):
        given["causal_offset"] = int(given["causal_offset"])
    return given


def _on_device(value: Any) -> bool:
    """Whether it stays a tensor. One of no dimensions on the CPU is a number."""
    return isinstance(value, Tensor) and (value.dim() > 0 or value.device.type != "cpu")


def _refuse_without_backward(op: str, arguments: dict[str, Any]) -> None:
    beside = [name for name in ("bias", "alibi_slopes") if arguments.get(name) is not None]
    if arguments.get("softcap") is not None and beside:
        raise NotImplementedError(
            f"{op}: softcap with {' and '.join(beside)} has no backward, since the scores before it cannot be had from "
            "the result, and an input requires grad; want softcap alone, or the call under torch.no_grad()"
        )
