"""The path of a call that is not like an earlier one.

It goes to an operator if a compiler, tracer, dispatch mode or tensor subclass must see it, to `transforms` if one of
torch.func's or forward mode must, through an autograd.Function if autograd must record it, and otherwise straight to a
kernel or to the CPU implementation.

A *plain* call uses only scale, mask and causality: on the last of these ways it has checks of its own, which take half
the time. *General* calls have a bias, a window, lse, log y and the like.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function

from . import cpu, dispatch, transforms
from .autograd import General, Softmax
from .checks import (
    check_general,
    check_general_backward,
    check_has_backward,
    check_masked_fill,
    check_softmax,
    check_softmax_backward,
)
from .checks.out import gradient_dtype, result_dtype
from .checks.scalars import check_flag
from .checks.tensors import check_one_shape
from .known import calls as known
from .modes import copied, is_recorded, is_traced, is_transformed, needs_operator, stand_ins
from .schema import as_float, as_int, check_width, concrete, on_device, separated

_PLAIN = ("scale", "mask", "causal", "causal_offset")
"""The arguments of a plain call; a backward takes no mask."""


def softmax(x: Tensor, *, log: bool, batch_invariant: bool, out: Tensor | None, **arguments: Any) -> Any:
    """y or log y, or (that, lse), as `api.softmax` describes it."""
    op = "softmax_ops.log_softmax" if log else "softmax_ops.softmax"
    given = {"x": x, "log": log, "batch_invariant": batch_invariant, "out": out, **arguments}
    recorded = is_recorded(x, arguments.get("bias"), arguments.get("sinks"))
    if not recorded and not is_dynamo_compiling():  # what autograd records is never known
        result = known.forward.found(given)
        if result is not None:
            return result
    if not is_dynamo_compiling() and (found := stand_ins(given.values())):
        return _handed_over(op, found, ("x",), given)
    check_flag(op, batch_invariant, "batch_invariant")
    transformed = is_transformed(given)
    operator = not transformed and needs_operator(x, out, *arguments.values())
    if out is not None and (operator or transformed):
        if isinstance(x, Tensor):
            arguments["dtype"] = result_dtype(op, arguments.get("dtype"), out, x, "x")
        result = softmax(x, log=log, batch_invariant=batch_invariant, out=None, **arguments)
        y, *lse = result if arguments.get("return_lse") else (result,)
        y = copied(op, y, out, dtype=arguments["dtype"], bias=arguments.get("bias"), sinks=arguments.get("sinks"), x=x)
        return (y, *lse) if lse else y
    plain = not log and _is_plain(arguments) and not _converts(x, out, arguments)
    if operator or transformed:
        _check_shapes(op, given)
        if operator and not is_traced():
            check_general(x, out=None, log=log, **{name: concrete(value) for name, value in arguments.items()})
        if recorded:
            check_has_backward(op, arguments)
        if operator and plain:
            return torch.ops.softmax_ops.softmax(x, **_numbers(op, arguments), batch_invariant=batch_invariant)
        inputs = {"x": x, "log": log, "batch_invariant": batch_invariant, **separated(op, x, arguments)}
        y, lse = (torch.ops.softmax_ops.general if operator else transforms.forward)(**inputs)
        return (y, lse) if arguments.get("return_lse") else y
    if plain:
        return _softmax(x, given, batch_invariant=batch_invariant, out=out, **_plain(arguments))
    request = check_general(x, out=out, log=log, **arguments)
    if not request.general:  # nothing new after all, such as dtype=x.dtype
        plain_again: dict[str, Any] = {"scale": request.scale, "mask": request.mask, **_placed(request.causal_offset)}
        return _softmax(x, given, **plain_again, batch_invariant=batch_invariant, out=out)
    if recorded:
        check_has_backward(op, arguments)
        y, lse = General.apply(x, request.bias, request.sinks, request, batch_invariant)
        return (y, lse) if request.return_lse else y
    result = dispatch.forward(request, batch_invariant)
    y, lse = result if request.return_lse else (result, None)
    known.forward.remember(given, request, y, lse)
    return result


def _softmax(
    x: Tensor,
    given: dict[str, Any],
    *,
    scale: float | Tensor,
    mask: Tensor | None,
    causal: bool,
    causal_offset: int | Tensor | None,
    batch_invariant: bool,
    out: Tensor | None,
) -> Tensor:
    """A plain call of the forward; `given` are the arguments under which `known` will remember it."""
    request = check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, out=out)
    if is_recorded(x):
        return Softmax.apply(x, request.scale, mask, causal, causal_offset, batch_invariant)
    y = dispatch.forward(request, batch_invariant)
    known.forward.remember(given, request, y)
    return y


def masked_fill(x: Tensor, scale: float, mask: Tensor | None, fill: float) -> Tensor:
    """A plain call, invisible to autograd, in which scores hidden by the mask become `fill`.

    None of our operators has a fill: compilers, dispatch modes, transforms and the like see torch's operations instead.
    """
    given = {"x": x, "scale": scale, "mask": mask, "fill": fill, "out": None}
    if not is_dynamo_compiling():
        y = known.masked_fill.found(given)
        if y is not None:
            return y
    request = check_masked_fill(x, mask, scale, fill)
    if mask is not None and mask.is_floating_point() and (mask.dtype is not x.dtype or mask.element_size() == 8):
        request = request._replace(mask=mask == 1)  # of another dtype than x's, and in float64, no kernel reads it
    if needs_operator(x, mask) or is_transformed(given):
        with torch.no_grad():
            return cpu.softmax_whole(request)
    with torch.no_grad():
        y = dispatch.forward(request)
    known.masked_fill.remember(given, request, y)
    return y


def softmax_backward(
    dy: Tensor, y: Tensor, *, log: bool, batch_invariant: bool, out: Tensor | None, **arguments: Any
) -> Any:
    """dx, or (dx, d) with return_dot=True, as `api.softmax_backward` describes it."""
    op = "softmax_ops.log_softmax_backward" if log else "softmax_ops.softmax_backward"
    given = {"dy": dy, "y": y, "log": log, "batch_invariant": batch_invariant, "out": out, **arguments}
    recorded = is_recorded(dy, y, arguments.get("lse"), arguments.get("grad_lse"))
    if not recorded and not is_dynamo_compiling() and not arguments.get("return_dot"):
        dx = known.backward.found(given)
        if dx is not None:
            return dx
    if not is_dynamo_compiling() and (found := stand_ins(given.values())):
        return _handed_over(op, found, ("dy", "y"), given)
    check_flag(op, batch_invariant, "batch_invariant")
    transformed = is_transformed(given)
    operator = not transformed and needs_operator(dy, y, out, *arguments.values())
    transformed = transformed or (recorded and not operator)
    if out is not None and (operator or transformed):
        if isinstance(y, Tensor):
            arguments["dtype"] = gradient_dtype(op, arguments.get("dtype"), out, y, "y")
        dx = softmax_backward(dy, y, log=log, batch_invariant=batch_invariant, out=None, **arguments)
        beside = {name: arguments.get(name) for name in ("lse", "grad_lse")}
        return copied(op, dx, out, dtype=arguments["dtype"], **beside, dy=dy, y=y)
    plain = not log and _is_plain(arguments) and not _converts(y, out, arguments)
    if operator or transformed:
        _check_shapes(op, given)
        if operator and not is_traced():
            check_general_backward(
                dy, y, out=None, log=log, **{name: concrete(value) for name, value in arguments.items()}
            )
        if operator and plain:
            numbers = _numbers(op, arguments)
            return torch.ops.softmax_ops.softmax_backward(dy, y, **numbers, batch_invariant=batch_invariant)
        inputs = {"dy": dy, "y": y, "log": log, "batch_invariant": batch_invariant, **separated(op, y, arguments)}
        dx, d = (torch.ops.softmax_ops.general_backward if operator else transforms.backward)(**inputs)
        return (dx, d) if arguments.get("return_dot") else dx
    if plain:
        return _softmax_backward(dy, y, given, batch_invariant=batch_invariant, out=out, **_plain(arguments))
    request = check_general_backward(dy, y, out=out, log=log, **arguments)
    if not request.general:
        plain_again: dict[str, Any] = {"scale": request.scale, **_placed(request.causal_offset)}
        return _softmax_backward(dy, y, given, **plain_again, batch_invariant=batch_invariant, out=out)
    result = dispatch.backward(request, batch_invariant)
    if not request.return_dot:
        known.backward.remember(given, request, result)
    return result


def _softmax_backward(
    dy: Tensor,
    y: Tensor,
    given: dict[str, Any],
    *,
    scale: float | Tensor,
    causal: bool,
    causal_offset: int | Tensor | None,
    batch_invariant: bool,
    out: Tensor | None,
) -> Tensor:
    """A plain call of the backward; `given` are the arguments under which `known` will remember it."""
    request = check_softmax_backward(dy, y, scale=scale, causal=causal, causal_offset=causal_offset, out=out)
    dx = dispatch.backward(request, batch_invariant)
    known.backward.remember(given, request, dx)
    return dx


def _handed_over(op: str, found: list[Any], inputs: tuple[str, ...], given: dict[str, Any]) -> Any:
    """The call as the stand-ins for tensors found among its arguments answer it."""
    from . import api

    named = {name: value for name, value in given.items() if name not in (*inputs, "log")}
    call = getattr(api, op.partition(".")[2])
    return handle_torch_function(call, found, *(given[name] for name in inputs), **named)


def _is_plain(arguments: dict[str, Any]) -> bool:
    return all(value is None or value is False or name in _PLAIN for name, value in arguments.items())


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in _PLAIN}


def _converts(rows: Tensor, out: Tensor | None, arguments: dict[str, Any]) -> bool:
    """Whether the result has another dtype than rows, or scale or causal_offset is a tensor that stays one."""
    scale, causal_offset = arguments["scale"], arguments["causal_offset"]
    if isinstance(out, Tensor) and isinstance(rows, Tensor) and out.dtype is not rows.dtype:
        return True
    return on_device(scale) or isinstance(causal_offset, Tensor)


def _numbers(op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a plain call for an operator."""
    scale, offset = as_float(arguments["scale"]), as_int(arguments["causal_offset"])
    check_width(op, causal_offset=offset)
    return {**_plain(arguments), "scale": scale, "causal_offset": offset}


def _check_shapes(op: str, given: dict[str, Any]) -> None:
    """Refuse nested tensors before an operator does, with a better message. Not while torch.compile traces, since not
    every version can trace is_nested.
    """
    if is_dynamo_compiling():
        return
    for name, value in given.items():
        if isinstance(value, Tensor):
            check_one_shape(op, value, name)


def _placed(causal_offset: int | None) -> dict[str, Any]:
    """The causal arguments of a request that has this offset."""
    return {"causal": causal_offset is not None, "causal_offset": causal_offset}
