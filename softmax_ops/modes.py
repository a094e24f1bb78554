"""What observes a call: autograd, a transform of torch.func, or a compiler or mode that sees only operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .checks.out import check_out, check_unrecorded

_PLAIN = (Tensor, torch.nn.Parameter)


def needs_operator(*arguments: Any) -> bool:
    """Whether the call must go through an operator: under a compiler, a tracer, a dispatch mode, or with a tensor
    subclass or a meta tensor."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(isinstance(each, Tensor) and (type(each) not in _PLAIN or each.is_meta) for each in arguments)
    )


def is_stand_in(value: Any) -> bool:
    """Whether a value stands for a tensor without being one, such as the proxies by which torch.fx records a call."""
    return not isinstance(value, Tensor) and hasattr(type(value), "__torch_function__")


def is_differentiated(*inputs: Tensor) -> bool:
    """Whether autograd records a call with these inputs, or a transform of torch.func is active."""
    return is_recorded(*inputs) or in_functorch()


def is_recorded(*inputs: Any) -> bool:
    """Whether autograd records a call with these inputs, some of which may not be tensors."""
    return torch.is_grad_enabled() and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in inputs)


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active."""
    return _in_forward_mode() or in_functorch()


def _in_forward_mode() -> bool:
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()


def in_functorch() -> bool:
    """Whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()


def refuse_tangents(op: str, given: Mapping[str, Any]) -> None:
    """Refuse dual tensors outside torch.func: operators and numbers would drop their tangents in silence."""
    if is_dynamo_compiling() or not _in_forward_mode() or in_functorch():
        return
    for name, value in given.items():
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                f"{op}: {name} has a tangent, and there is no rule for forward mode AD; want tensors without one, or "
                "this softmax in torch operations"
            )


def no_rule(op: str) -> NotImplementedError:
    """The error for a call inside a transform that has no rule for it."""
    return NotImplementedError(
        f"{op}: a transform of torch.func, such as vmap or grad, is at work; want arguments that have rules for it: x, "
        "mask, causal and numbers as scale and causal_offset; or call it outside, with the batch as a dimension of x, "
        "where torch.autograd.grad differentiates it"
    )


def copied(
    op: str, result: Tensor, out: Tensor, *, dtype: torch.dtype | None = None, **inputs: Tensor | None
) -> Tensor:
    """The result copied to out, by an operation that compilers and transforms support. Out may overlap the inputs.

    Out must be like the last of the inputs, apart from the dtype if one is given.
    """
    name, like = list(inputs.items())[-1]
    assert like is not None
    wanted = dtype or like.dtype
    if not isinstance(out, Tensor) or (out.shape, out.dtype, out.device) != (like.shape, wanted, like.device):
        check_out(op, out, like, name, dtype)  # raises; of the rest that it wants, nothing matters to a copy
    check_unrecorded(op, **inputs, out=out)
    return out.copy_(result)
