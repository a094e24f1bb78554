"""The torch interface: a checked call goes to kernels if its tensors are on a GPU, to torch operations on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import dispatch, ops, recent  # noqa: F401 (ops registers torch.ops.softmax_ops)
from .autograd import Softmax, SoftmaxBackward
from .checks import check_softmax, check_softmax_backward
from .checks.out import check_out, recorded_error
from .checks.scalars import finite_scale
from .explanation import Explanation
from .known import Flags

_PLAIN = (Tensor, torch.nn.Parameter)
_SOFTMAX = "softmax_ops.softmax"
_BACKWARD = "softmax_ops.softmax_backward"


def softmax(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Softmax over the last dimension of scores, with scale and mask fused.

        z = scale * x;   y_ij = exp(z_ij - m_i) / sum_j exp(z_ij - m_i) over visible j, 0 elsewhere

    x                [..., Q, K] or [K]; float16, bfloat16, float32 or float64, on a GPU or the CPU, any strides (a last
                     stride other than 1 is copied first).
    scale            finite number, or 0-d CPU tensor; never rounded to x's dtype.
    mask             bool or uint8, broadcast against x from the right; exactly 1 (True) hides a score.
    causal           column j is visible to query i when j <= i + causal_offset.
    causal_offset    K - Q by default, which aligns the last query with the last column; 0 aligns the first ones.
    batch_invariant  choose the kernel without looking at the number of rows: a row's bits never depend on its batch.
    out              tensor of x's shape, dtype and device to write to, x itself included.

    Returns a tensor of x's shape and dtype, contiguous unless `out` is given. Sums and exponentials are computed in
    float32 (float64 for float64). A row that sees nothing, or only z = -inf, is all zeros; a visible NaN or z = +inf
    makes its row NaN.

    Raises TypeError or ValueError, before anything is launched, for arguments that do not fit together;
    KernelNotFound when no kernel for this GPU can be had; NoVariant when none ships for rows of this length; NotLoaded
    when a kernel would have to be loaded after `freeze()` or while a CUDA graph is captured; DriverError when CUDA
    refuses.
    """
    if not torch.compiler.is_dynamo_compiling():
        known = recent.softmax(x, scale, causal, causal_offset, batch_invariant, mask, out)
        if known is not None:
            return known
    operator = needs_operator(x, mask, out)
    if out is not None and (operator or is_transformed()):
        y = softmax(
            x,
            scale=scale,
            mask=mask,
            causal=causal,
            causal_offset=causal_offset,
            batch_invariant=batch_invariant,
        )
        return _copied(_SOFTMAX, y, out, x=x)
    if operator:
        scale = _number(_SOFTMAX, scale, x)
        return torch.ops.softmax_ops.softmax(x, scale, mask, causal, causal_offset, batch_invariant)
    request = check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, out=out)
    if _is_differentiated(x):
        return Softmax.apply(x, request.scale, mask, causal, causal_offset, batch_invariant)
    result = dispatch.forward(request, batch_invariant)
    flags = Flags(causal, causal_offset, batch_invariant)
    recent.remember("fwd", (x,), mask, out, result, flags, request.causal_offset)
    return result


def softmax_(x: Tensor, **arguments) -> Tensor:
    """`softmax` in place: writes to x, and returns it. Takes softmax's keyword arguments but `out`."""
    return softmax(x, out=x, **arguments)


def softmax_backward(
    dy: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    causal: bool = False,
    causal_offset: int | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Gradient of `softmax` with respect to its scores, from the gradient of its result and the result itself.

        dx = scale * y * (dy - sum_j y_j dy_j)

    dy, y            [..., Q, K] or [K], of one shape, dtype and device, as `softmax` takes them. dy may be expanded.
    scale            that of the forward; a mask needs no argument, for y is 0 where it hid.
    causal           dy and y are read as far as they are visible, and dx is 0 elsewhere.
    causal_offset    that of the forward.
    batch_invariant  choose the kernel without looking at the number of rows: a row's bits never depend on its batch.
    out              tensor of y's shape, dtype and device to write to, dy or y itself included.

    Returns a tensor of y's shape and dtype, contiguous unless `out` is given. The products and their sum are computed
    in float32 (float64 for float64).

    Raises what `softmax` raises.
    """
    if not torch.compiler.is_dynamo_compiling():
        known = recent.softmax_backward(dy, y, scale, causal, causal_offset, batch_invariant, out)
        if known is not None:
            return known
    operator = needs_operator(dy, y, out)
    if out is not None and (operator or is_transformed()):
        dx = softmax_backward(
            dy, y, scale=scale, causal=causal, causal_offset=causal_offset, batch_invariant=batch_invariant
        )
        return _copied(_BACKWARD, dx, out, dy=dy, y=y)
    if operator:
        scale = _number(_BACKWARD, scale, y)
        return torch.ops.softmax_ops.softmax_backward(dy, y, scale, causal, causal_offset, batch_invariant)
    request = check_softmax_backward(dy, y, scale=scale, causal=causal, causal_offset=causal_offset, out=out)
    if _is_differentiated(dy, y):
        return SoftmaxBackward.apply(dy, y, request.scale, causal, causal_offset, batch_invariant)
    dx = dispatch.backward(request, batch_invariant)
    flags = Flags(causal, causal_offset, batch_invariant)
    recent.remember("bwd", (dy, y), None, out, dx, flags, request.causal_offset)
    return dx


def explain(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
    backward: bool = False,
    arch: str | None = None,
) -> Explanation:
    """What `softmax` would do with the same arguments: kernel, tile, grid, bytes, where its cubin comes from, and why.

    With backward=True: what `softmax_backward` would do with dy and y like x (a mask plays no part in it). Loads and
    launches no kernel; what would have to be copied first is copied. For CPU tensors it tells what a GPU of
    architecture `arch` ("sm_90") would run.
    """
    request = check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, out=out)
    scalars = dispatch.Scalars(request.scale, request.fill, request.causal_offset, batch_invariant)
    if backward:
        return dispatch.explain("bwd", (x, x), {}, out, scalars, arch)
    return dispatch.explain("fwd", (x,), {} if mask is None else {"mask": mask}, out, scalars, arch)


def needs_operator(*tensors: Tensor | None) -> bool:
    """Whether somebody looks on who knows operators only: a compiler, a dispatch mode, a tensor subclass."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(isinstance(tensor, Tensor) and type(tensor) not in _PLAIN for tensor in tensors)
    )


def _is_differentiated(*inputs: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return recorded or is_transformed()


def is_transformed() -> bool:
    """Batched or differentiated by a transform of torch.func, or differentiated in forward mode."""
    in_forward_mode = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
    return in_forward_mode or torch._C._are_functorch_transforms_active()


def _copied(op: str, result: Tensor, out: Tensor, **inputs: Tensor) -> Tensor:
    """The result in out, by an operation that compilers and transforms know. Out may overlap the inputs in any way."""
    name, like = list(inputs.items())[-1]
    if not isinstance(out, Tensor) or (out.shape, out.dtype, out.device) != (like.shape, like.dtype, like.device):
        check_out(op, out, like, name)  # raises; of the rest that it wants, nothing matters to a copy
    if torch.is_grad_enabled() and (out.requires_grad or any(tensor.requires_grad for tensor in inputs.values())):
        raise recorded_error(op, **inputs, out=out)
    return out.copy_(result)


def _number(op: str, scale: float | Tensor, rows: Tensor) -> float:
    """For the operators, whose scale is a number."""
    return finite_scale(op, scale, rows) if isinstance(scale, Tensor) else scale
