"""torch.func, forward mode and second derivatives, for both directions.

A call that they see goes to `Forward` or `Backward`, with the arguments of an operator for general requests in its
order. Each transform takes off one layer, down to the operator, which finds out whether the request is plain.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .autograd import gradients, keep, saves_lse, tangents
from .batching import vmapped
from .checks import BackwardRequest, check_has_backward, check_softmax_backward
from .checks.scalars import check_no_gradient
from .derivatives import Gradients, pulled_back, pushed_forward
from .modes import forward_mode, primal
from .schema import Arguments, by_name, for_checks, from_operator, in_order

_NO_DERIVATIVE = ("scale_tensor", "alibi_slopes")
_WITHOUT_BACKWARD = ("softcap", "bias", "alibi_slopes")  # together


@torch._disable_dynamo  # which fails on the rules of these Functions where a transform is outside of what it compiles
def forward(**given: Any) -> tuple[Tensor, Tensor]:
    """What torch.ops.softmax_ops.general returns. The arguments must be valid."""
    return Forward.apply(*in_order("general", _detached(given)))


@torch._disable_dynamo
def backward(**given: Any) -> tuple[Tensor, Tensor]:
    """What torch.ops.softmax_ops.general_backward returns, like `forward`."""
    return Backward.apply(*in_order("general_backward", _detached(given)))


def _detached(given: Arguments) -> Arguments:
    """Under no_grad, what has no gradient does not ask for one: inside a Function torch forgets about no_grad."""
    if torch.is_grad_enabled():
        return given
    return given | {name: given[name].detach() for name in _NO_DERIVATIVE if given.get(name) is not None}


class Forward(torch.autograd.Function):
    """(the arguments of torch.ops.softmax_ops.general) -> (y, lse)

    torch inspects the signature of a forward that has a setup_context in every call, which takes 50 us: what autograd
    alone records goes to `autograd.Softmax`.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.softmax_ops.general(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor | None]) -> None:
        given = by_name("general", inputs)
        op = "softmax_ops.log_softmax" if given["log"] else "softmax_ops.softmax"
        _check_no_gradient(op, given)
        ctx.op, ctx.given = op, {name: True for name in _WITHOUT_BACKWARD if given[name] is not None}
        keep(ctx, from_operator(given), *output)
        ctx.with_lse = given["return_lse"] or saves_lse(given)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, grad_lse: Tensor | None) -> tuple:
        check_has_backward(ctx.op, ctx.given)
        wanted = by_name("general", ctx.needs_input_grad, default=False)
        of_lse = grad_lse if grad_lse is not None and grad_lse.numel() else None
        found = gradients(ctx, dy, of_lse, **{name: wanted[name] for name in ("x", "bias", "sinks")})
        return tuple(found.get(name) for name in wanted)

    @staticmethod
    def jvp(ctx: Any, *of_inputs: Any) -> tuple[Tensor, Tensor]:
        given = by_name("general", of_inputs, default=None)
        _check_no_tangent(given)
        found = {name: given[name] for name in ("x", "bias", "sinks")}
        with forward_mode():
            t, t_lse = tangents(ctx, **found, with_lse=ctx.with_lse)
            return t, t.new_zeros(0) if t_lse is None else t_lse

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple:
        return vmapped("general", Forward.apply, info, in_dims, *inputs)


class Backward(torch.autograd.Function):
    """(the arguments of torch.ops.softmax_ops.general_backward) -> (dx, d)"""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.softmax_ops.general_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        given = by_name("general_backward", inputs)
        _check_no_gradient("softmax_ops.softmax_backward", given)
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        ctx.names, ctx.numbers = list(tensors), {name: given[name] for name in given if name not in tensors}
        ctx.save_for_backward(*tensors.values())
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*tensors.values())
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_dx: Tensor | None, of_d: Tensor | None) -> tuple:
        found = pulled_back(
            _request(ctx, ctx.saved_tensors), of_dx, of_d if ctx.numbers["return_dot"] else None
        )._asdict()
        return tuple(found.get(name) for name in by_name("general_backward", ()))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        given = by_name("general_backward", tangents, default=None)
        _check_no_tangent(given)
        with forward_mode():
            request = _request(ctx, map(primal, ctx.saved_tensors))
            t_dx, t_d = pushed_forward(request, Gradients(**{name: given[name] for name in Gradients._fields}))
            return t_dx, t_d if request.return_dot else t_dx.new_zeros(0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple:
        return vmapped("general_backward", Backward.apply, info, in_dims, *inputs)


def _request(ctx: Any, saved: Iterable[Tensor]) -> BackwardRequest:
    given = ctx.numbers | dict(zip(ctx.names, saved, strict=True))
    return check_softmax_backward(**for_checks(given))


def _check_no_gradient(op: str, given: dict[str, Any]) -> None:
    """Refuse tensors that require grad and have no gradient."""
    with torch.enable_grad():  # as in the call, which autograd records behind no_grad
        for name in _NO_DERIVATIVE:
            if given.get(name) is not None:
                check_no_gradient(op, given[name], name.removesuffix("_tensor"))


def _check_no_tangent(tangents: dict[str, Any]) -> None:
    for name in _NO_DERIVATIVE:
        if tangents.get(name) is not None:
            short = name.removesuffix("_tensor")
            raise NotImplementedError(
                f"softmax_ops: {short} has a tangent, and no derivative with respect to {short} is computed: want "
                f"{short} without one, or this softmax in torch operations"
            )
