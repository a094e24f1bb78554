"""Where a request is computed: by torch operations on the CPU, by a kernel on a GPU.

The latter: the tensors in integers, their plan and its launch, copies where no kernel can follow.
"""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu, current, driver, launcher
from .checks import BackwardRequest, Request
from .explanation import Explanation, explain_geometry
from .launch_plan import LaunchPlan, TooManyDimensions
from .problem import OPERANDS, Geometry, Operand

_DTYPES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
_ACCESS_BYTES = 16


def forward(request: Request, batch_invariant: bool = False) -> Tensor:
    """The softmax of a valid request, where its tensors are. Nothing may have to be recorded by autograd."""
    if not current.on_gpu(request.x):
        return cpu.softmax(request)
    scalars = Scalars(request.scale, request.fill, request.causal_offset, batch_invariant)
    return compute("fwd", (request.x,), request.mask, request.out, scalars)


def backward(request: BackwardRequest, batch_invariant: bool = False) -> Tensor:
    """The gradient of a valid request, where its tensors are."""
    if not current.on_gpu(request.y):
        return cpu.softmax_backward(request)
    scalars = Scalars(request.scale, 0.0, request.causal_offset, batch_invariant)
    return compute("bwd", (request.dy, request.y), None, request.out, scalars)


class Scalars(NamedTuple):
    """What a call has beside its tensors."""

    scale: float
    fill: float
    causal_offset: int | None
    batch_invariant: bool


def compute(
    direction: str, inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None, scalars: Scalars
) -> Tensor:
    """The operation of a direction on tensors of one GPU: its result, in `out` if there is one.

    A mask of a floating-point dtype, which is that of the inputs, hides where it is 1.
    """
    x = inputs[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if x.numel() == 0:
        return y
    tensors, mask = _with_unit_strides((*inputs, y), mask)
    with _current(current.ordinal(x)):
        try:
            _launch(direction, tensors, mask, scalars)
        except TooManyDimensions:
            tensors, mask = _contiguous(tensors, mask)
            _launch(direction, tensors, mask, scalars)
            if tensors[-1] is not y:
                y.copy_(tensors[-1])
    if out is not None and not out.is_inference():
        current.increment_version((out,))
    return y


def explain(
    direction: str,
    inputs: tuple[Tensor, ...],
    mask: Tensor | None,
    out: Tensor | None,
    scalars: Scalars,
    arch: str | None = None,
) -> Explanation:
    """What `compute` would do; for CPU tensors on a GPU of an architecture, "sm_90" unless said."""
    x = inputs[0]
    if arch is None:
        arch = driver.architecture(x.device.index) if x.device.type == "cuda" else "sm_90"
    y = torch.empty(x.shape, dtype=x.dtype, device="meta") if out is None else out
    tensors, mask = _with_unit_strides((*inputs, y), mask)
    try:
        return explain_geometry(_geometry(_metadata(direction, tensors, mask, scalars, arch)), arch)
    except TooManyDimensions:
        tensors, mask = _contiguous(tensors, mask)
        return explain_geometry(_geometry(_metadata(direction, tensors, mask, scalars, arch)), arch)


def executable(
    direction: str, tensors: tuple[Tensor, ...], mask: Tensor | None, scalars: Scalars
) -> launcher.Executable | None:
    """What computes these tensors, inputs and output, as they are, with the kernel loaded; None if some must be copied.

    Raises what `compute` does.
    """
    followed, followed_mask = _with_unit_strides(tensors, mask)
    if followed_mask is not mask or any(map(operator.is_not, followed, tensors)):
        return None
    try:
        return _executable(direction, tensors, mask, scalars)
    except TooManyDimensions:
        return None


def _executable(
    direction: str, tensors: tuple[Tensor, ...], mask: Tensor | None, scalars: Scalars
) -> launcher.Executable:
    device = current.ordinal(tensors[0])
    plan = _plan(_metadata(direction, tensors, mask, scalars, driver.architecture(device)))
    return launcher.executable(plan, device, current.stream(device))


def _launch(direction: str, tensors: tuple[Tensor, ...], mask: Tensor | None, scalars: Scalars) -> None:
    found = _executable(direction, tensors, mask, scalars)
    workspace = tensors[0].new_empty(found.workspace_bytes, dtype=torch.uint8) if found.workspace_bytes else None
    found.launch(
        tuple(tensor.data_ptr() for tensor in (tensors if mask is None else (*tensors, mask))),
        scale=scalars.scale,
        fill=scalars.fill,
        workspace=0 if workspace is None else workspace.data_ptr(),
        stream=current.stream(found.device),
    )


def _current(device: int) -> AbstractContextManager:
    """The default stream is that of the current device: inside, it is this one."""
    return nullcontext() if current.device() == device else torch.cuda.device(device)


def _with_unit_strides(tensors: tuple[Tensor, ...], mask: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Tensors and mask with the last stride that kernels want; a mask may also be broadcast along the row."""
    if mask is not None and mask.dim() and mask.shape[-1] > 1 and mask.stride(-1) not in (0, 1):
        mask = mask.contiguous()
    return tuple(map(_with_unit_stride, tensors)), mask


def _with_unit_stride(tensor: Tensor) -> Tensor:
    """Itself, or a copy of what is not expanded: of a gradient that is one number everywhere, a single row."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    leading = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride()[:-1])
    return tensor[leading].contiguous().expand(tensor.shape)


def _contiguous(tensors: tuple[Tensor, ...], mask: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Copies of the inputs and the mask, and a new output."""
    *inputs, y = tensors
    mask = None if mask is None else mask.expand(y.shape).contiguous()
    output = y if y.is_contiguous() else torch.empty(y.shape, dtype=y.dtype, device=y.device)
    return (*(tensor.contiguous() for tensor in inputs), output), mask


class _Metadata(NamedTuple):
    """What torch knows of a call, as it comes: the key of its plan, cheaper to make and to hash than a Geometry."""

    direction: str
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[tuple[int, ...], ...]
    alignments: tuple[int, ...]
    mask: tuple[torch.Size, tuple[int, ...], int, torch.dtype] | None  # shape, strides, alignment
    causal_offset: int | None
    batch_invariant: bool
    arch: str


def _metadata(
    direction: str, tensors: tuple[Tensor, ...], mask: Tensor | None, scalars: Scalars, arch: str
) -> _Metadata:
    return _Metadata(
        direction,
        tensors[0].dtype,
        tensors[0].shape,
        tuple(tensor.stride() for tensor in tensors),
        tuple(map(alignment, tensors)),
        None if mask is None else (mask.shape, mask.stride(), alignment(mask), mask.dtype),
        scalars.causal_offset,
        scalars.batch_invariant,
        arch,
    )


@lru_cache(maxsize=launcher.PLANS)
def _plan(metadata: _Metadata) -> LaunchPlan:
    return launcher.plan_for(_geometry(metadata), metadata.arch)


def _geometry(of: _Metadata) -> Geometry:
    """In integers: [K] is [1, K], and what broadcasts has stride 0."""
    rank, size = max(len(of.shape), 2), of.dtype.itemsize
    named = zip(OPERANDS[of.direction], of.strides, of.alignments, strict=True)
    operands = [Operand(name, _strides(of.shape, strides, rank), alignment, size) for name, strides, alignment in named]
    if of.mask is not None:
        shape, strides, alignment, dtype = of.mask
        operands.append(Operand("mask", _strides(shape, strides, rank), alignment, dtype.itemsize))
    return Geometry(
        direction=of.direction,
        dtype=_DTYPES[of.dtype],
        mask_kind=_mask_kind(of),
        shape=(1,) * (rank - len(of.shape)) + tuple(of.shape),
        operands=tuple(operands),
        causal_offset=of.causal_offset,
        batch_invariant=of.batch_invariant,
    )


def _mask_kind(of: _Metadata) -> str:
    if of.mask is not None and of.mask[3].is_floating_point:
        return "like"
    return ("" if of.mask is None else "bool") + ("" if of.causal_offset is None else "causal") or "none"


def _strides(shape: tuple[int, ...], strides: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Of a tensor that broadcasts, from the right, to `rank` dimensions; in elements."""
    present = zip(shape, strides, strict=True)
    return (0,) * (rank - len(shape)) + tuple(stride if size > 1 else 0 for size, stride in present)


def alignment(tensor: Tensor) -> int:
    """The largest power of two, at most 16, that divides the address, in bytes."""
    address = tensor.data_ptr() | _ACCESS_BYTES
    return address & -address
