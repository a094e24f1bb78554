"""What observes a call: autograd, a transform of torch.func, or a compiler or mode that sees only operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

TENSOR_TYPES = (Tensor, torch.nn.Parameter)
"""Types whose operations are torch's own; subclasses may override them."""

_USUAL = {*TENSOR_TYPES, type(None), bool, int, float, tuple, torch.dtype}


def needs_operator(*arguments: Any) -> bool:
    """Whether the call must go through an operator: under a compiler, a tracer, a dispatch mode, torch.func's
    functionalize, or with a tensor subclass or a meta tensor."""
    return (
        is_traced()
        or _is_functionalized()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(isinstance(each, Tensor) and (type(each) not in TENSOR_TYPES or each.is_meta) for each in arguments)
    )


def is_traced() -> bool:
    """Whether a compiler or a tracer records the operations of a call."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def stand_ins(values: Iterable[Any]) -> list[Any]:
    """Those values that stand for a tensor without being one, such as the proxies by which torch.fx records a call."""
    strange = [each for each in values if type(each) not in _USUAL]
    return [each for each in strange if not isinstance(each, Tensor) and hasattr(type(each), "__torch_function__")]


def is_recorded(*inputs: Any) -> bool:
    """Whether autograd records a call with these inputs, some of which may not be tensors."""
    return torch.is_grad_enabled() and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in inputs)


def is_transformed(given: Mapping[str, Any]) -> bool:
    """Whether torch.func transforms a call with these arguments, or forward mode differentiates it. A compiler looks
    after both itself, and so does an operator after functionalize, and after vmap while torch.export traces.
    """
    if is_dynamo_compiling():
        _refuse_tangents()
        _refuse_gradients()
        return False
    if torch._C._are_functorch_transforms_active():
        exported = torch.compiler.is_compiling() and _innermost() == torch._C._functorch.TransformType.Vmap
        return not (exported or _is_functionalized())
    return _in_forward_mode() and any(isinstance(each, Tensor) and _is_dual(each) for each in given.values())


def is_followed(tensor: Tensor) -> bool:
    """Whether a transform of torch.func or forward mode follows what becomes of a tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or (_in_forward_mode() and _is_dual(tensor))


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a transform of torch.func or forward mode differentiates with respect to a tensor."""
    if _in_forward_mode() and _is_dual(tensor):
        return True
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if tensor.requires_grad:
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def _is_functionalized() -> bool:
    """Whether the innermost transform of torch.func is functionalize, which has a rule for operators alone."""
    if is_dynamo_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    return _innermost() == torch._C._functorch.TransformType.Functionalize


def _innermost() -> Any:
    """The kind of the innermost transform of torch.func, of which there is one."""
    return torch._C._functorch.peek_interpreter_stack().key()


def may_be_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is active, whatever it follows."""
    return _in_forward_mode() or torch._C._are_functorch_transforms_active()


def is_compiled_transform() -> bool:
    """Whether torch.compile traces a call inside of a transform of torch.func, which no_grad would hide it from."""
    return is_dynamo_compiling() and torch._C._are_functorch_transforms_active()


def _in_forward_mode() -> bool:
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()


def _is_dual(tensor: Tensor) -> bool:
    if is_dynamo_compiling():
        _refuse_tangents()
    return forward_ad.unpack_dual(tensor).tangent is not None


def _refuse_tangents() -> None:
    """While torch.compile traces, which loses the tangents of forward mode: an error makes it leave the frame to
    Python. This also holds for the frames of this package that it compiles one by one after that."""
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "softmax_ops: torch.compile does not see tangents of forward mode; call softmax_ops outside"
        )


def _is_within_grad() -> bool:
    stack = torch._C._functorch.get_interpreter_stack()
    return any(each.key() == torch._C._functorch.TransformType.Grad for each in stack)


# torch.compile cannot trace it, and guards the stack of transforms anyway. This does what
# torch.compiler.assume_constant_result does, without importing torch._dynamo.
vars(_is_within_grad)["_dynamo_marked_constant"] = True


def _refuse_gradients() -> None:
    """While torch.compile traces inside of torch.func.grad, which has no rule for operators: as for tangents."""
    if torch._C._are_functorch_transforms_active() and _is_within_grad():
        raise NotImplementedError(
            "softmax_ops: torch.compile cannot trace operators inside of torch.func.grad; compile the function inside"
        )


@contextmanager
def forward_mode() -> Iterator[None]:
    """Forward mode inside a rule of forward mode, where torch turns it off: outer levels, of a jvp of a jvp, need it.

    What the rule's own level has saved must be without its tangents (`primal`).
    """
    before = torch._C._is_fwd_grad_enabled()
    torch._C._set_fwd_grad_enabled(True)
    try:
        yield
    finally:
        torch._C._set_fwd_grad_enabled(before)


def primal(tensor: Any) -> Any:
    """A tensor, or None, without its tangent."""
    return None if tensor is None else forward_ad.unpack_dual(tensor).primal
