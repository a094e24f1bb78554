"""torch.ops.softmax_ops: both directions as operators, for torch.compile, torch.export, fake tensors, dispatch modes.

Eager calls that need none of these do not come here: the dispatcher costs ten times as much as a launch.
"""

# No `from __future__ import annotations`: before 2.5 torch infers schemas from types, not from strings.

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .autograd import gradients, keep, saves_lse
from .batching import vmapped
from .checks import (
    BackwardRequest,
    Request,
    check_softmax,
    check_softmax_backward,
)
from .checks.values import accumulation
from .schema import by_name, concrete, for_checks, in_order
from .transforms import Backward, Forward


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
    return_lse = return_lse or saves_lse(given)
    return check_softmax(x, return_lse=return_lse, **for_checks(given))


def _checked_backward(dy: Tensor, y: Tensor, **given: Any) -> BackwardRequest:
    return check_softmax_backward(dy, y, **for_checks(given))


@general.register_fake
def _(x, *rest, **named):
    request = _checked(**by_name("general", (x, *rest)) | named)
    shape, wide = (x.shape[:-1], accumulation(x)) if request.return_lse else ((0,), x.dtype)
    return x.new_empty(x.shape, dtype=request.dtype), x.new_empty(shape, dtype=wide)


@general_backward.register_fake
def _(dy, y, *rest, **named):
    request = _checked_backward(**by_name("general_backward", (dy, y, *rest)) | named)
    shape, wide = (y.shape[:-1], accumulation(y)) if request.return_dot else ((0,), y.dtype)
    return y.new_empty(y.shape, dtype=request.dtype), y.new_empty(shape, dtype=wide)


@softmax.register_fake
def _(x, scale=1.0, mask=None, causal=False, causal_offset=None, batch_invariant=False):
    check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=concrete(causal_offset), out=None)
    return x.new_empty(x.shape)


@softmax_backward.register_fake
def _(dy, y, scale=1.0, causal=False, causal_offset=None, batch_invariant=False):
    check_softmax_backward(dy, y, scale=scale, causal=causal, causal_offset=concrete(causal_offset), out=None)
    return y.new_empty(y.shape)


_ABSENT = {"bias": None, "key_lengths": None, "window": None, "sinks": None, "softcap": None, "log": False}
"""Arguments of `general` that a gradient would depend on, as in a plain call."""


def _setup_softmax(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, scale, _, causal, causal_offset, batch_invariant = inputs
    plain = {"scale": scale, "causal": causal, "causal_offset": causal_offset, "batch_invariant": batch_invariant}
    keep(ctx, {**_ABSENT, "x": x, **plain}, output, None)


def _of_softmax(ctx: Any, dy: Tensor) -> tuple:
    return gradients(ctx, dy, None, x=True, bias=False, sinks=False)["x"], None, None, None, None, None


def _setup_softmax_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    Backward.setup_context(ctx, in_order("general_backward", by_name("softmax_backward", inputs)), output)


def _of_softmax_backward(ctx: Any, of_dx: Tensor) -> tuple:
    of_dy, of_y, *_ = Backward.backward(ctx, of_dx, None)
    return of_dy, of_y, None, None, None, None


softmax.register_autograd(_of_softmax, setup_context=_setup_softmax)
softmax_backward.register_autograd(_of_softmax_backward, setup_context=_setup_softmax_backward)
general.register_autograd(Forward.backward, setup_context=Forward.setup_context)
general_backward.register_autograd(Backward.backward, setup_context=Backward.setup_context)

if hasattr(softmax, "register_vmap"):  # torch 2.5
    softmax.register_vmap(partial(vmapped, "softmax", softmax))
    softmax_backward.register_vmap(partial(vmapped, "softmax_backward", softmax_backward))
    general.register_vmap(partial(vmapped, "general", general))
    general_backward.register_vmap(partial(vmapped, "general_backward", general_backward))
