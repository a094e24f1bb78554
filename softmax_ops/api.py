"""The torch interface: a checked call goes to the kernels when x is on a GPU, to torch operations on the CPU."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu, launcher
from .checks import Request, check_softmax
from .explanation import Explanation, explain_geometry
from .plan import LaunchPlan, TooManyDimensions
from .problem import Geometry, Operands

_DTYPES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
_MASK_KINDS = {  # (there is a mask, causal)
    (False, False): "none",
    (False, True): "causal",
    (True, False): "bool",
    (True, True): "boolcausal",
}
_ACCESS_BYTES = 16


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
    NotImplementedError when a gradient would have to flow through; KernelNotFound when no kernel for this GPU can be
    had; NoVariant when none ships for rows of this length; DriverError when CUDA refuses.
    """
    request = check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, out=out)
    if x.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "softmax_ops.softmax: x requires a gradient, and the backward is not part of this version: "
            "call it under torch.no_grad(), or pass x.detach()."
        )
    if x.device.type == "cpu":
        with torch.no_grad():
            return cpu.softmax(request)
    return _softmax_cuda(request, batch_invariant)


def softmax_(x: Tensor, **arguments) -> Tensor:
    """`softmax` in place: writes to x, and returns it. Takes softmax's keyword arguments but `out`."""
    return softmax(x, out=x, **arguments)


def explain(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
    arch: str | None = None,
) -> Explanation:
    """What `softmax` would do with the same arguments: kernel, tile, grid, bytes, where its cubin comes from, and why.

    Loads and launches no kernel; what `softmax` would have to copy first is copied. For CPU tensors it tells what a GPU
    of architecture `arch` ("sm_90") would run.
    """
    request = check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, out=out)
    if arch is None:
        arch = _architecture(x) if x.device.type == "cuda" else "sm_90"
    request = _with_unit_strides(request)
    try:
        return _explain(request, batch_invariant, arch)
    except TooManyDimensions:
        return _explain(_contiguous(request), batch_invariant, arch)


def _explain(request: Request, batch_invariant: bool, arch: str) -> Explanation:
    y = torch.empty(request.x.shape, dtype=request.x.dtype, device="meta") if request.out is None else request.out
    return explain_geometry(_geometry(_metadata(request, y, batch_invariant)), arch)


def _architecture(x: Tensor) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(x.device))


def _softmax_cuda(request: Request, batch_invariant: bool) -> Tensor:
    request = _with_unit_strides(request)
    x, mask = request.x, request.mask
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if request.out is None else request.out
    if x.numel() == 0:
        return y
    try:
        plan = _plan(_metadata(request, y, batch_invariant))
    except TooManyDimensions:
        return _softmax_copied(request, y, batch_invariant)
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        launcher.executable(plan, x.device.index, stream).launch(
            x=x.data_ptr(),
            y=y.data_ptr(),
            mask=0 if mask is None else mask.data_ptr(),
            scale=request.scale,
            fill=request.fill,
            stream=stream,
        )
    return y


def _softmax_copied(request: Request, y: Tensor, batch_invariant: bool) -> Tensor:
    """For strides that no kernel can follow: x, the mask and the result as contiguous copies."""
    result = _softmax_cuda(_contiguous(request), batch_invariant)
    return result if request.out is None else y.copy_(result)


def _contiguous(request: Request) -> Request:
    mask = None if request.mask is None else request.mask.expand(request.x.shape).contiguous()
    return request._replace(x=request.x.contiguous(), mask=mask, out=None)


def _with_unit_strides(request: Request) -> Request:
    """x and mask with the last stride that kernels want; a mask may also be broadcast along the row."""
    x, mask = request.x, request.mask
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    if mask is not None and mask.dim() and mask.shape[-1] > 1 and mask.stride(-1) not in (0, 1):
        mask = mask.contiguous()
    return request._replace(x=x, mask=mask)


class _Metadata(NamedTuple):
    """What torch knows of a call, as it comes: the key of its plan, cheaper to make and to hash than a Geometry."""

    dtype: torch.dtype
    shape: torch.Size
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    mask_shape: torch.Size | None
    mask_strides: tuple[int, ...]
    alignment: tuple[int, int, int]
    causal_offset: int | None
    batch_invariant: bool


def _metadata(request: Request, y: Tensor, batch_invariant: bool) -> _Metadata:
    x, mask = request.x, request.mask
    return _Metadata(
        x.dtype,
        x.shape,
        x.stride(),
        y.stride(),
        None if mask is None else mask.shape,
        () if mask is None else mask.stride(),
        (_alignment(x), _alignment(y), _ACCESS_BYTES if mask is None else _alignment(mask)),
        request.causal_offset,
        batch_invariant,
    )


@lru_cache(maxsize=launcher.PLANS)
def _plan(metadata: _Metadata) -> LaunchPlan:
    return launcher.plan_for(_geometry(metadata))


def _geometry(of: _Metadata) -> Geometry:
    """In integers: [K] is [1, K], and what broadcasts has stride 0."""
    rank = max(len(of.shape), 2)
    return Geometry(
        dtype=_DTYPES[of.dtype],
        mask_kind=_MASK_KINDS[of.mask_shape is not None, of.causal_offset is not None],
        shape=(1,) * (rank - len(of.shape)) + tuple(of.shape),
        x_strides=_strides(of.shape, of.x_strides, rank),
        y_strides=_strides(of.shape, of.y_strides, rank),
        mask_strides=_strides(of.mask_shape or (), of.mask_strides, rank),
        alignment=Operands(*of.alignment),
        causal_offset=of.causal_offset,
        batch_invariant=of.batch_invariant,
    )


def _strides(shape: tuple[int, ...], strides: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Of a tensor that broadcasts, from the right, to `rank` dimensions; in elements."""
    present = zip(shape, strides, strict=True)
    return (0,) * (rank - len(shape)) + tuple(stride if size > 1 else 0 for size, stride in present)


def _alignment(tensor: Tensor) -> int:
    """The largest power of two, at most 16, that divides the address, in bytes."""
    address = tensor.data_ptr() | _ACCESS_BYTES
    return address & -address
