"""Where a call goes that the fast path does not know.

To an operator if a compiler, tracer, dispatch mode or tensor subclass must see it, to `transforms` if one of
torch.func's or forward mode must, through an autograd.Function if autograd must record it, and otherwise straight to a
kernel or to the CPU implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function

from . import cpu, dispatch, transforms
from .autograd import record, saves_lse
from .checks import check_has_backward, check_masked_fill, check_softmax, check_softmax_backward
from .checks.out import check_out, check_unrecorded, gradient_dtype, result_dtype
from .checks.scalars import check_flag, check_no_gradient, check_types
from .checks.tensors import check_one_shape
from .checks.values import accumulation
from .known import calls as known
from .modes import is_compiled_transform, is_recorded, is_traced, is_transformed, needs_operator, stand_ins
from .operands import unexpanded
from .schema import Arguments, as_float, as_int, check_width, checkable, in_graph, on_device, to_operator

_PLAIN_ARGUMENTS = ("scale", "mask", "causal", "causal_offset")
"""What the plain operators take besides scores or gradients; that of the backward takes no mask."""


def softmax(x: Tensor, *, log: bool, batch_invariant: bool, out: Tensor | None, **arguments: Any) -> Any:
    """y or log y, or with return_lse (y, lse); arguments as in `api.softmax`."""
    op = "softmax_ops.log_softmax" if log else "softmax_ops.softmax"
    given = {"x": x, "log": log, "batch_invariant": batch_invariant, "out": out, **arguments}
    recorded = is_recorded(x, arguments["bias"], arguments["sinks"])
    if not is_dynamo_compiling():
        result = None if recorded else known.forward.found(given)  # for what autograd records a key takes too long
        if result is not None:
            return result
        if found := stand_ins(given.values()):
            return _handed_over(op, found, ("x",), given)
    check_flag(op, batch_invariant, "batch_invariant")
    transformed = is_transformed(given)
    if transformed or needs_operator(x, out, *arguments.values()):
        return _observed_softmax(op, given, transformed, recorded)
    request = check_softmax(x, out=out, log=log, **arguments)
    if recorded:
        check_has_backward(op, arguments)
        result = record(**given)
        if not saves_lse(arguments) or request.return_lse:
            return result  # the call within, with the same arguments, is known by now
    else:
        result = dispatch.forward(request, batch_invariant)
    y, lse = result if request.return_lse else (result, None)
    known.forward.remember(given, request, y, lse)
    return result


def _observed_softmax(op: str, given: Arguments, transformed: bool, recorded: bool) -> Any:
    """A call that transforms have to see, or a compiler, a mode or a subclass."""
    x, out = given["x"], given["out"]
    arguments = {name: value for name, value in given.items() if name not in ("x", "out", "batch_invariant")}
    if out is not None and isinstance(x, Tensor):
        arguments["dtype"] = result_dtype(op, arguments["dtype"], out, x, "x")
    _check_observed(op, given)
    if is_traced():
        arguments["scale"] = in_graph(arguments["scale"], x)
    else:
        check_softmax(x, **checkable(arguments))
    if recorded:
        check_has_backward(op, arguments)
    if not transformed and _is_plain(arguments):
        numbers = _numbers(op, arguments)
        y = torch.ops.softmax_ops.softmax(x, **numbers, batch_invariant=given["batch_invariant"])
        lse = None
    else:
        inputs = {"x": x, "batch_invariant": given["batch_invariant"], **to_operator(op, x, arguments)}
        y, lse = (transforms.forward if transformed else torch.ops.softmax_ops.general)(**inputs)
    if out is not None:
        y = _copied(op, y, out, dtype=arguments["dtype"], bias=arguments["bias"], sinks=arguments["sinks"], x=x)
    return (y, lse) if arguments["return_lse"] else y


def masked_fill(x: Tensor, scale: float, mask: Tensor | None, fill: float) -> Tensor:
    """A plain call, invisible to autograd, in which scores hidden by the mask become `fill`.

    None of our operators has a fill: compilers, dispatch modes and the like see torch's operations instead, and
    transforms a softmax of what torch has filled.
    """
    given = {"x": x, "scale": scale, "mask": mask, "fill": fill, "out": None}
    compiled = is_compiled_transform()
    if compiled or is_transformed(given):
        from . import api

        request = check_masked_fill(x, mask, scale, fill)
        scores = x.to(accumulation(x)) * request.scale
        scores = scores if mask is None else scores.masked_fill(mask == 1, fill)
        return (_of_operations(scores) if compiled else api.softmax(scores)).to(x.dtype)
    with torch.no_grad():
        y = None if is_dynamo_compiling() else known.masked_fill.found(given)
        if y is not None:
            return y
        request = check_masked_fill(x, mask, scale, fill)
        if needs_operator(x, mask):
            return cpu.softmax_whole(request)
        if mask is not None and mask.is_floating_point() and (mask.dtype is not x.dtype or mask.element_size() == 8):
            request = request._replace(mask=unexpanded(mask) == 1)  # of another dtype than x's, or float64: no kernel
        y = dispatch.forward(request)
        known.masked_fill.remember(given, request, y)
        return y


def _of_operations(scores: Tensor) -> Tensor:
    """A softmax made of torch's differentiable operations. A row of -inf is all zeros."""
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def softmax_backward(
    dy: Tensor, y: Tensor, *, log: bool, batch_invariant: bool, out: Tensor | None, **arguments: Any
) -> Any:
    """dx, or (dx, d) with return_dot=True; arguments as in `api.softmax_backward`."""
    op = "softmax_ops.log_softmax_backward" if log else "softmax_ops.softmax_backward"
    given = {"dy": dy, "y": y, "log": log, "batch_invariant": batch_invariant, "out": out, **arguments}
    recorded = is_recorded(dy, y, arguments["lse"], arguments["grad_lse"])
    with_dot = bool(arguments.get("return_dot"))
    if not is_dynamo_compiling():
        dx = None if recorded or with_dot else known.backward.found(given)
        if dx is not None:
            return dx
        if found := stand_ins(given.values()):
            return _handed_over(op, found, ("dy", "y"), given)
    check_flag(op, batch_invariant, "batch_invariant")
    transformed = is_transformed(given)
    operator = not transformed and needs_operator(dy, y, out, *arguments.values())
    if operator or transformed or recorded:
        return _observed_backward(op, given, transformed=not operator)
    request = check_softmax_backward(dy, y, out=out, log=log, **arguments)
    result = dispatch.backward(request, batch_invariant)
    if not with_dot:
        known.backward.remember(given, request, result)
    return result


def _observed_backward(op: str, given: Arguments, transformed: bool) -> Any:
    """A call that autograd or transforms have to see, or a compiler, a mode or a subclass."""
    dy, y, out = given["dy"], given["y"], given["out"]
    arguments = {name: value for name, value in given.items() if name not in ("dy", "y", "out", "batch_invariant")}
    if out is not None and isinstance(y, Tensor):
        arguments["dtype"] = gradient_dtype(op, arguments["dtype"], out, y, "y")
    _check_observed(op, given)
    if is_traced():
        arguments["scale"] = in_graph(arguments["scale"], y)
    else:
        check_softmax_backward(dy, y, **checkable(arguments))
    if not transformed and _is_plain(arguments):
        numbers = _numbers(op, arguments)
        dx = torch.ops.softmax_ops.softmax_backward(dy, y, **numbers, batch_invariant=given["batch_invariant"])
        d = None
    else:
        inputs = {"dy": dy, "y": y, "batch_invariant": given["batch_invariant"], **to_operator(op, y, arguments)}
        dx, d = (transforms.backward if transformed else torch.ops.softmax_ops.general_backward)(**inputs)
    if out is not None:
        beside = {name: arguments[name] for name in ("lse", "grad_lse")}
        dx = _copied(op, dx, out, dtype=arguments["dtype"], **beside, dy=dy, y=y)
    return (dx, d) if arguments.get("return_dot") else dx


def _copied(
    op: str, result: Tensor, out: Tensor, *, dtype: torch.dtype | None = None, **inputs: Tensor | None
) -> Tensor:
    """The result copied to out, by an operation that compilers and transforms support. Out may overlap the inputs.

    Out must be like the last of the inputs, apart from the dtype if one is given.
    """
    name, like = list(inputs.items())[-1]
    assert like is not None
    wanted = dtype or like.dtype
    is_like = isinstance(out, Tensor) and (out.shape, out.dtype, out.device) == (like.shape, wanted, like.device)
    if not is_like or (type(out) is type(like) is Tensor and like.is_meta):
        check_out(op, out, like, name, dtype)  # what else it wants, nothing traced needs: a copy has any strides
    check_unrecorded(op, **inputs, out=out)
    return out.copy_(result)


def _handed_over(op: str, found: list[Any], inputs: tuple[str, ...], given: Arguments) -> Any:
    """Passes the call to __torch_function__ of the stand-ins for tensors found among its arguments."""
    from . import api

    named = {name: value for name, value in given.items() if name not in (*inputs, "log")}
    call = getattr(api, op.partition(".")[2])
    return handle_torch_function(call, found, *(given[name] for name in inputs), **named)


def _is_plain(arguments: Arguments) -> bool:
    """Whether a plain operator takes the call: scale and causal_offset as numbers, and nothing beyond its arguments."""
    if on_device(arguments["scale"]) or isinstance(arguments["causal_offset"], Tensor):
        return False
    return all(value is None or value is False or name in _PLAIN_ARGUMENTS for name, value in arguments.items())


def _numbers(op: str, arguments: Arguments) -> Arguments:
    """The arguments of a plain call for an operator."""
    scale, offset = as_float(arguments["scale"]), as_int(arguments["causal_offset"])
    check_width(op, causal_offset=offset)
    plain = {name: value for name, value in arguments.items() if name in _PLAIN_ARGUMENTS}
    return {**plain, "scale": scale, "causal_offset": offset}


def _check_observed(op: str, given: Arguments) -> None:
    """Refuse what an operator would take without a word: scalars of another type, and the gradient of a scale.

    And nested tensors, with a better message than its own; but not while torch.compile traces, since not every version
    can trace is_nested.
    """
    check_types(op, given)
    if isinstance(given["scale"], Tensor):
        check_no_gradient(op, given["scale"], "scale")
    if is_dynamo_compiling():
        return
    for name, value in given.items():
        if isinstance(value, Tensor):
            check_one_shape(op, value, name)
