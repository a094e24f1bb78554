"""torch.ops.softmax_ops: both directions as operators, for torch.compile, torch.export, fake tensors, dispatch modes.

Eager calls that need none of these do not come here: the dispatcher costs ten times as much as a launch.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import dispatch
from .autograd import Softmax, SoftmaxBackward, vmap_softmax, vmap_softmax_backward
from .checks import check_softmax, check_softmax_backward


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


@softmax.register_fake
def _(x, scale=1.0, mask=None, causal=False, causal_offset=None, batch_invariant=False):
    check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=_known(causal_offset), out=None)
    return x.new_empty(x.shape)


@softmax_backward.register_fake
def _(dy, y, scale=1.0, causal=False, causal_offset=None, batch_invariant=False):
    check_softmax_backward(dy, y, scale=scale, causal=causal, causal_offset=_known(causal_offset), out=None)
    return y.new_empty(y.shape)


def _known(causal_offset: int | torch.SymInt | None) -> int | None:
    """An offset that varies is a valid one: every integer is."""
    return 0 if isinstance(causal_offset, torch.SymInt) else causal_offset


softmax.register_autograd(Softmax.backward, setup_context=Softmax.setup_context)
softmax_backward.register_autograd(SoftmaxBackward.backward, setup_context=SoftmaxBackward.setup_context)

if hasattr(softmax, "register_vmap"):  # torch 2.5
    softmax.register_vmap(partial(vmap_softmax, torch.ops.softmax_ops.softmax))
    softmax_backward.register_vmap(partial(vmap_softmax_backward, torch.ops.softmax_ops.softmax_backward))
