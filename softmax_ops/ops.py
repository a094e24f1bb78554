"""torch.ops.softmax_ops: both directions as operators, for torch.compile, torch.export, fake tensors, dispatch modes.

Eager calls that need none of these do not come here: the dispatcher costs ten times as much as a launch.
"""

# No `from __future__ import annotations`: before 2.5 torch infers schemas from types, not from strings.

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .autograd import (
    GeneralBackward,
    Softmax,
    SoftmaxBackward,
    general_gradients,
    keep,
    vmap_softmax,
    vmap_softmax_backward,
)
from .checks import (
    BackwardRequest,
    Request,
    check_general,
    check_general_backward,
    check_softmax,
    check_softmax_backward,
)
from .checks.scalars import check_no_gradient
from .checks.values import accumulation
from .modes import no_rule


@torch.library.custom_op("softmax_ops::softmax", mutates_args=())
def softmax(
    x: Tensor,
    scale: float = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """`softmax_ops.softmax` without out=: a new contiguous tensor."""
    request = check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, out=None)
    return dispatch.forward(request, batch_invariant)


@torch.library.custom_op("softmax_ops::softmax_backward", mutates_args=())
def softmax_backward(
    dy: Tensor,
    y: Tensor,
    scale: float = 1.0,
    causal: bool = False,
    causal_offset: int | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """`softmax_ops.softmax_backward` without out=: a new contiguous tensor."""
    request = check_softmax_backward(dy, y, scale=scale, causal=causal, causal_offset=causal_offset, out=None)
    return dispatch.backward(request, batch_invariant)


@torch.library.custom_op("softmax_ops::general", mutates_args=())
def general(
    x: Tensor,
    scale: float = 1.0,
    scale_tensor: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | None = None,
    offset_tensor: Tensor | None = None,
    left: int | None = None,
    right: int | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    log: bool = False,
    return_lse: bool = False,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """`softmax_ops.softmax` or, with log, `log_softmax` with all arguments except out=: new tensors (y, lse).

    scale and causal_offset, there a number or a tensor, are two arguments each here; window is (left, right). lse has
    no elements unless it is requested or needed by the gradient of sinks or softcap.
    """
    request = _checked(**locals())
    result: Any = dispatch.forward(request, batch_invariant)
    return result if request.return_lse else (result, x.new_empty(0))


@torch.library.custom_op("softmax_ops::general_backward", mutates_args=())
def general_backward(
    dy: Tensor,
    y: Tensor,
    scale: float = 1.0,
    scale_tensor: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | None = None,
    offset_tensor: Tensor | None = None,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
    grad_lse: Tensor | None = None,
    dtype: torch.dtype | None = None,
    log: bool = False,
    return_dot: bool = False,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gradient of `general` with respect to x: new tensors (dx, d). d has no elements unless it is requested."""
    request = _checked_backward(**locals())
    result: Any = dispatch.backward(request, batch_invariant)
    return result if request.return_dot else (result, y.new_empty(0))


def _checked(x: Tensor, return_lse: bool, **given: Any) -> Request:
    return_lse = return_lse or given["softcap"] is not None or given["sinks"] is not None
    return check_general(x, return_lse=return_lse, **_joined(given))


def _checked_backward(dy: Tensor, y: Tensor, **given: Any) -> BackwardRequest:
    return check_general_backward(dy, y, **_joined(given))


def _joined(given: dict[str, Any]) -> dict[str, Any]:
    """Joins the arguments that operators take separately, for the checks. A tensor stays on the device."""
    given = {name: _known(value) for name, value in given.items() if name != "batch_invariant"}
    scale, offset = given.pop("scale_tensor"), given.pop("offset_tensor")
    if scale is not None:
        given["scale"] = scale.reshape(1) if scale.dim() == 0 else scale
    if offset is not None:
        given["causal_offset"] = offset.reshape(1) if offset.dim() == 0 else offset
    return given | {"window": (given.pop("left"), given.pop("right")), "out": None}


@general.register_fake
def _(x, *rest, **named):
    request = _checked(**_by_name(general, x, *rest, **named))
    shape, wide = (x.shape[:-1], accumulation(x)) if request.return_lse else ((0,), x.dtype)
    return x.new_empty(x.shape, dtype=request.dtype), x.new_empty(shape, dtype=wide)


@general_backward.register_fake
def _(dy, y, *rest, **named):
    request = _checked_backward(**_by_name(general_backward, dy, y, *rest, **named))
    shape, wide = (y.shape[:-1], accumulation(y)) if request.return_dot else ((0,), y.dtype)
    return y.new_empty(y.shape, dtype=request.dtype), y.new_empty(shape, dtype=wide)


def _by_name(operator: Any, *given: Any, **named: Any) -> dict[str, Any]:
    """The arguments of a call of an operator, defaults included."""
    schema = operator._opoverload._schema.arguments
    values = {argument.name: argument.default_value for argument in schema}
    return values | dict(zip(values, given, strict=False)) | named


def _setup_general(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    given = dict(zip(_ARGUMENTS, inputs, strict=True))
    op = "softmax_ops.log_softmax" if given["log"] else "softmax_ops.softmax"
    with torch.enable_grad():  # as in the call, which autograd records behind no_grad
        for name, tensor in ("scale", given["scale_tensor"]), ("alibi_slopes", given["alibi_slopes"]):
            if tensor is not None:
                check_no_gradient(op, tensor, name)
    keep(ctx, given | {"right": 0 if given["causal"] else given["right"]}, *output)


def _general_gradients(ctx: Any, dy: Tensor | None, grad_lse: Tensor | None) -> tuple:
    wanted = dict(zip(_ARGUMENTS, ctx.needs_input_grad, strict=False))  # defaults at the end are left out
    given = grad_lse if grad_lse is not None and grad_lse.numel() else None
    found = general_gradients(ctx, dy, given, **{name: wanted.get(name, False) for name in ("x", "bias", "sinks")})
    return tuple(found.get(name) for name in _ARGUMENTS)


_ARGUMENTS = [argument.name for argument in general._opoverload._schema.arguments]


@softmax.register_fake
def _(x, scale=1.0, mask=None, causal=False, causal_offset=None, batch_invariant=False):
    check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=_known(causal_offset), out=None)
    return x.new_empty(x.shape)


@softmax_backward.register_fake
def _(dy, y, scale=1.0, causal=False, causal_offset=None, batch_invariant=False):
    check_softmax_backward(dy, y, scale=scale, causal=causal, causal_offset=_known(causal_offset), out=None)
    return y.new_empty(y.shape)


def _known(value: Any) -> Any:
    """An offset that varies is a valid one: every integer is."""
    return 0 if isinstance(value, torch.SymInt) else value


softmax.register_autograd(Softmax.backward, setup_context=Softmax.keep)
softmax_backward.register_autograd(SoftmaxBackward.backward, setup_context=SoftmaxBackward.keep)


def _refuse_vmap(op: str) -> Callable[..., Any]:
    def rule(*given: Any, **named: Any) -> Any:
        raise no_rule(op)

    return rule


general.register_autograd(_general_gradients, setup_context=_setup_general)
general_backward.register_autograd(GeneralBackward.backward)

if hasattr(softmax, "register_vmap"):  # torch 2.5
    softmax.register_vmap(partial(vmap_softmax, torch.ops.softmax_ops.softmax))
    softmax_backward.register_vmap(partial(vmap_softmax_backward, torch.ops.softmax_ops.softmax_backward))
    general.register_vmap(_refuse_vmap("softmax_ops.general"))
    general_backward.register_vmap(_refuse_vmap("softmax_ops.general_backward"))
