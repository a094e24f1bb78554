"""The torch interface. A call like an earlier one goes straight to its kernel (`known`), any other through `routes`."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import dispatch, ops, routes  # noqa: F401 (ops registers torch.ops.softmax_ops)
from .checks import check_has_backward, check_softmax
from .checks.scalars import check_flag
from .explanation import Explanation
from .keywords import Forward, Window
from .known.calls import backward, forward


@overload
def softmax(
    x: Tensor, *, return_lse: Literal[False] = False, out: Tensor | None = None, **arguments: Unpack[Forward]
) -> Tensor: ...
@overload
def softmax(
    x: Tensor, *, return_lse: Literal[True], out: Tensor | None = None, **arguments: Unpack[Forward]
) -> tuple[Tensor, Tensor]: ...
@overload
def softmax(
    x: Tensor, *, return_lse: bool, out: Tensor | None = None, **arguments: Unpack[Forward]
) -> Tensor | tuple[Tensor, Tensor]: ...
def softmax(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | Tensor | None = None,
    window: Window | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Any:
    """Softmax over the last dimension of scores, fused with a scale, a mask and everything else that changes scores.

        s = scale * x;   s = softcap * tanh(s / softcap);   z_ij = s_ij - slope_h * |i + causal_offset - j| + bias_ij
        y_ij = exp(z_ij - m_i) / (sum_j exp(z_ij - m_i) + exp(sink_h - m_i)) over visible j, 0 elsewhere

    x                [..., Q, K] or [K]; float16, bfloat16, float32 or float64, on a GPU or the CPU, any strides (a last
                     stride other than 1 is copied first).
    scale            number, or 0-d CPU tensor, up to 2^127 in magnitude (for float64 any finite one); never rounded to
                     x's dtype. Or a float32 (for float64 x also float64) tensor on x's device, with one element or one
                     for each row: broadcast against x.shape[:-1] from the right.
    mask             bool or uint8, broadcast against x from the right; a byte of exactly 1 (True) hides a score. Other
                     bytes viewed as bool (255) hide nothing on a GPU: pass bytes != 0.
    bias             x's dtype or float32, broadcast like a mask; differentiable. -inf in it hides.
    key_lengths      int32 [B] on x's device, B = x.shape[0]: columns at and beyond the length are hidden, and not read.
    causal           column j is visible to query i when j <= i + causal_offset.
    causal_offset    K - Q by default, which aligns the last query with the last column; 0 aligns the first query with
                     the first column. A number, or int32 or int64 on x's device, of which the lower 32 bits count: one,
                     or [B] for x [B, ..., Q, K]. Also used by window and alibi_slopes. key_lengths do not move it:
                     where queries end at the length, pass key_lengths - Q.
    window           (left, right), integers or None: i + causal_offset - left <= j <= i + causal_offset + right is
                     visible; with causal, right is 0. Other columns are not read.
    alibi_slopes     float32 (for float64 x also float64) [H] on x's device, H = x.shape[-3].
    sinks            like alibi_slopes: a score for each head that joins the sum without a column; differentiable. -inf:
                     no sink.
    softcap          number above 0 that bounds |s|. For no cap pass None, not a huge number: the error of kernels is
                     1e-7 of the cap.
    dtype            x's, or torch.float32 for float16 and bfloat16: the result before it is rounded. out's too.
    return_lse       return (y, lse): lse = m + log(sum), [..., Q] float32 (float64 for float64), differentiable.
    batch_invariant  a row keeps its bits in any batch and wherever it lies. Kernels are chosen regardless of the number
                     of rows; where rows of the result start off 16-byte boundaries (K = 50257), it is copied.
    out              tensor of x's shape, device and `dtype` to write to; may be x itself.

    Returns a tensor of x's shape and dtype, contiguous unless `out` is given. Sums and exponentials are computed in
    float32 (float64 for float64). A row in which everything is hidden or z = -inf is all zeros, and its lse is -inf, or
    the sink; a visible NaN or z = +inf makes its row NaN. docs/attention_inputs.md says which arguments can be
    combined.

    Raises TypeError or ValueError, before anything is launched, for arguments that do not fit together;
    NotImplementedError for a derivative that is not supported; KernelNotFound when no kernel for this GPU
    is found; NoVariant when none ships for rows of this length; NotLoaded when a kernel would have to be loaded after
    `freeze()` or while a CUDA graph is captured; DriverError when CUDA reports an error.
    """
    values = (
        x,
        scale,
        mask,
        bias,
        key_lengths,
        causal,
        causal_offset,
        window,
        alibi_slopes,
        sinks,
        softcap,
        dtype,
        return_lse,
        batch_invariant,
        out,
        False,
    )
    if not is_dynamo_compiling() and (y := forward.run(*values)) is not None:
        return y
    return routes.softmax(**forward.named(values))


@overload
def softmax_(x: Tensor, *, return_lse: Literal[False] = False, **arguments: Unpack[Forward]) -> Tensor: ...
@overload
def softmax_(x: Tensor, *, return_lse: Literal[True], **arguments: Unpack[Forward]) -> tuple[Tensor, Tensor]: ...
@overload
def softmax_(x: Tensor, *, return_lse: bool, **arguments: Unpack[Forward]) -> Tensor | tuple[Tensor, Tensor]: ...
def softmax_(x: Tensor, **arguments: Any) -> Any:
    """`softmax` in place: takes its keyword arguments except `out`, writes to x, and returns what `softmax` returns."""
    if "out" in arguments:
        raise TypeError("softmax_ops.softmax_: out is given, and the result goes to x: leave it out, or call softmax")
    return softmax(x, out=x, **arguments)


@overload
def log_softmax(
    x: Tensor, *, return_lse: Literal[False] = False, out: Tensor | None = None, **arguments: Unpack[Forward]
) -> Tensor: ...
@overload
def log_softmax(
    x: Tensor, *, return_lse: Literal[True], out: Tensor | None = None, **arguments: Unpack[Forward]
) -> tuple[Tensor, Tensor]: ...
@overload
def log_softmax(
    x: Tensor, *, return_lse: bool, out: Tensor | None = None, **arguments: Unpack[Forward]
) -> Tensor | tuple[Tensor, Tensor]: ...
def log_softmax(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | Tensor | None = None,
    window: Window | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Any:
    """The logarithm of `softmax`, with the same arguments, computed without taking the logarithm of a probability:

        log y_ij = z_ij - m_i - log(sum_j exp(z_ij - m_i) + exp(sink_h - m_i)) over visible j, -inf elsewhere

    Returns and raises what `softmax` does. A row in which everything is hidden is -inf. In the gradient, a result of
    -inf is taken for a hidden column, also where a float16 result overflowed (below -65504); dtype=torch.float32 keeps
    it.
    """
    values = (
        x,
        scale,
        mask,
        bias,
        key_lengths,
        causal,
        causal_offset,
        window,
        alibi_slopes,
        sinks,
        softcap,
        dtype,
        return_lse,
        batch_invariant,
        out,
        True,
    )
    if not is_dynamo_compiling() and (y := forward.run(*values)) is not None:
        return y
    return routes.softmax(**forward.named(values))


def softmax_backward(
    dy: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    causal: bool = False,
    causal_offset: int | Tensor | None = None,
    window: Window | None = None,
    key_lengths: Tensor | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
    grad_lse: Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Gradient of `softmax` with respect to its scores, from the gradient of its result and the result itself.

        dx = scale * y * (dy - sum_j y_j dy_j + grad_lse), with softcap times 1 - ((log y + lse) / softcap)^2

    dy, y            [..., Q, K] or [K], of one shape, dtype and device, as `softmax` takes them. dy may be expanded.
    scale            that of the forward. Mask, bias, slopes and sinks are not passed: y contains all that is needed.
    causal           only visible columns of dy and y are read; elsewhere dx is 0, or NaN if the row's sum is NaN.
    causal_offset, window, key_lengths
                     those of the forward; leave out an offset that only slopes used.
    softcap, lse     those of the forward, both or neither; lse [..., Q], float32 (float64 for float64 y). Not supported
                     after a forward with bias or slopes.
    grad_lse         [..., Q], of the dtype of lse: its gradient, if it was used.
    dtype            of dx: y's, or a 16-bit dtype for float32 y, if x had that dtype. out's too.
    batch_invariant  a row keeps its bits in any batch and wherever it lies. Kernels are chosen regardless of the number
                     of rows; where rows of the result start off 16-byte boundaries (K = 50257), it is copied.
    out              tensor of y's shape, device and `dtype` to write to; may be dy or y itself.

    Returns a tensor of y's shape and dtype, contiguous unless `out` is given. The products and their sum are computed
    in float32 (float64 for float64).

    Raises what `softmax` raises.
    """
    values = (
        dy,
        y,
        scale,
        causal,
        causal_offset,
        window,
        key_lengths,
        softcap,
        lse,
        grad_lse,
        dtype,
        batch_invariant,
        out,
        False,
    )
    if not is_dynamo_compiling() and (dx := backward.run(*values)) is not None:
        return dx
    return routes.softmax_backward(**backward.named(values))


def log_softmax_backward(
    dy: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    causal: bool = False,
    causal_offset: int | Tensor | None = None,
    window: Window | None = None,
    key_lengths: Tensor | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
    grad_lse: Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`softmax_backward` for `log_softmax`: y is its result, dy the gradient of y. Where y is -inf, dy has no effect.

    dx = scale * (dy - exp(y) * (sum_j dy_j - grad_lse)), with softcap times 1 - ((y + lse) / softcap)^2
    """
    values = (
        dy,
        y,
        scale,
        causal,
        causal_offset,
        window,
        key_lengths,
        softcap,
        lse,
        grad_lse,
        dtype,
        batch_invariant,
        out,
        True,
    )
    if not is_dynamo_compiling() and (dx := backward.run(*values)) is not None:
        return dx
    return routes.softmax_backward(**backward.named(values))


def explain(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | Tensor | None = None,
    window: Window | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
    log: bool = False,
    batch_invariant: bool = False,
    out: Tensor | None = None,
    backward: bool = False,
    arch: str | None = None,
) -> Explanation:
    """What `softmax` would do with the same arguments: kernel, tile, grid, bytes, where its cubin comes from, and why.

    With log=True: what `log_softmax` would do. With backward=True: what `softmax_backward` would do with dy and y like
    x (it ignores the mask). Loads and launches no kernel, but copies tensors that the call would have to copy first.
    For tensors on the CPU or on meta it reports what a GPU of architecture `arch` ("sm_90") would run.

    Raises what the call would raise for these arguments under `torch.no_grad()`, and NoVariant for an architecture that
    has no kernels.
    """
    for name, flag in (("log", log), ("batch_invariant", batch_invariant), ("backward", backward)):
        check_flag("softmax_ops.explain", flag, name)
    with torch.no_grad():
        request = check_softmax(
            x,
            scale=scale,
            mask=mask,
            causal=causal,
            causal_offset=causal_offset,
            out=out,
            bias=bias,
            key_lengths=key_lengths,
            window=window,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            softcap=softcap,
            dtype=dtype,
            return_lse=return_lse,
            log=log,
        )
    if backward:
        given = {"softcap": softcap, "bias": bias, "alibi_slopes": alibi_slopes}
        check_has_backward("softmax_ops.explain", given, "; want softcap alone")
        return dispatch.explain_backward(request, batch_invariant, arch)
    return dispatch.explain_forward(request, batch_invariant, arch)
