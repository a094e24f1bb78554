"""Where a request is computed: by torch operations on the CPU, by a kernel on a GPU.

The latter: the tensors in integers, their plan and its launch, copies where no kernel can follow.
"""

from __future__ import annotations

import math
import operator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import cpu, current, driver, launcher, operands
from .checks import BackwardRequest, Request
from .explanation import Explanation, explain_geometry
from .launch_plan import LaunchPlan, TooManyDimensions
from .operands import Named
from .problem import OPERANDS, General, Geometry, Operand

_DTYPES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
_ACCESS_BYTES = 16
_PER_COLUMN = ("mask", "bias")
"""Operands that have a number for each column; others have one for each row."""


def forward(request: Request, batch_invariant: bool = False) -> Any:
    """The softmax of a valid request, where its tensors are; with return_lse (that, lse).

    Nothing may have to be recorded by autograd.
    """
    if not current.on_gpu(request.x):
        return cpu.softmax(request)
    if request.general:
        return _general_forward(request, batch_invariant)
    scalars = Scalars(request.scale, request.fill, request.causal_offset, batch_invariant)
    others = {} if request.mask is None else {"mask": request.mask}
    return compute("fwd", (request.x,), others, request.out, scalars)


def backward(request: BackwardRequest, batch_invariant: bool = False) -> Any:
    """The gradient of a valid request, where its tensors are; with return_dot (that, d)."""
    if not current.on_gpu(request.y):
        return cpu.softmax_backward(request)
    if request.general:
        return _general_backward(request, batch_invariant)
    scalars = Scalars(request.scale, 0.0, request.causal_offset, batch_invariant)
    return compute("bwd", (request.dy, request.y), {}, request.out, scalars)


def _general_forward(request: Request, batch_invariant: bool) -> Any:
    x = request.x
    named, general = operands.of_forward(request)
    if request.return_lse:
        named["lse"] = _of_rows(x, -math.inf)
        if x.numel() == 0 and "sinks" in named:
            named["lse"].copy_(named["sinks"].expand_as(named["lse"]))
    scalars = Scalars(request.scale, request.fill, request.causal_offset, batch_invariant, general)
    y = compute("fwd", (x,), named, request.out, scalars, request.dtype)
    return (y, named["lse"]) if request.return_lse else y


def _general_backward(request: BackwardRequest, batch_invariant: bool) -> Any:
    y = request.y
    named, general = operands.of_backward(request)
    if request.return_dot:
        named["d"] = _of_rows(y, 0.0)
        if y.numel() == 0 and "dlse" in named:
            named["d"].sub_(named["dlse"])
    scalars = Scalars(request.scale, 0.0, request.causal_offset, batch_invariant, general)
    dx = compute("bwd", (request.dy, y), named, request.out, scalars, request.dtype)
    return (dx, named["d"]) if request.return_dot else dx


def _of_rows(rows: Tensor, empty: float) -> Tensor:
    """Numbers per row to be written; those of rows without columns are known."""
    dtype, shape = operands.accumulator(rows.dtype), rows.shape[:-1]
    if rows.numel() == 0:
        return torch.full(shape, empty, dtype=dtype, device=rows.device)
    return torch.empty(shape, dtype=dtype, device=rows.device)


class Scalars(NamedTuple):
    """What a call has beside its tensors."""

    scale: float
    fill: float
    causal_offset: int | None
    batch_invariant: bool
    general: General | None = None  # of a general request


def compute(
    direction: str,
    inputs: tuple[Tensor, ...],
    others: Named,
    out: Tensor | None,
    scalars: Scalars,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The operation of a direction on tensors of one GPU: its result, in `out` if there is one, or a new one of a dtype.

    `others` are a mask, and what a general request has, by the names of operands. A mask of a floating-point dtype,
    which is that of the inputs, hides where it is 1.
    """
    x = inputs[0]
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device) if out is None else out
    if x.numel() == 0:
        return y
    tensors, others = _followed((*inputs, y), others)
    with _current(current.ordinal(x)):
        try:
            _launch(direction, tensors, others, scalars)
        except TooManyDimensions:
            tensors, others = _contiguous(tensors, others)
            _launch(direction, tensors, others, scalars)
            if tensors[-1] is not y:
                y.copy_(tensors[-1])
    if out is not None and not out.is_inference():
        current.increment_version((out,))
    return y


def explain(
    direction: str,
    inputs: tuple[Tensor, ...],
    others: Named,
    out: Tensor | None,
    scalars: Scalars,
    arch: str | None = None,
    dtype: torch.dtype | None = None,
) -> Explanation:
    """What `compute` would do; for CPU tensors on a GPU of an architecture, "sm_90" unless said."""
    x = inputs[0]
    if arch is None:
        arch = driver.architecture(x.device.index) if x.device.type == "cuda" else "sm_90"
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device="meta") if out is None else out
    tensors, others = _followed((*inputs, y), others)
    try:
        return explain_geometry(_geometry(_metadata(direction, tensors, others, scalars, arch)), arch)
    except TooManyDimensions:
        tensors, others = _contiguous(tensors, others)
        return explain_geometry(_geometry(_metadata(direction, tensors, others, scalars, arch)), arch)


def executable(
    direction: str, tensors: tuple[Tensor, ...], others: Named, scalars: Scalars
) -> launcher.Executable | None:
    """What computes these tensors, inputs and output, as they are, with the kernel loaded; None if some must be copied.

    Raises what `compute` does.
    """
    followed, beside = _followed(tensors, others)
    if any(map(operator.is_not, (*followed, *beside.values()), (*tensors, *others.values()))):
        return None
    try:
        return _executable(direction, tensors, others, scalars)
    except TooManyDimensions:
        return None


def _executable(direction: str, tensors: tuple[Tensor, ...], others: Named, scalars: Scalars) -> launcher.Executable:
    device = current.ordinal(tensors[0])
    plan = _plan(_metadata(direction, tensors, others, scalars, driver.architecture(device)))
    return launcher.executable(plan, device, current.stream(device))


def _launch(direction: str, tensors: tuple[Tensor, ...], others: Named, scalars: Scalars) -> None:
    found = _executable(direction, tensors, others, scalars)
    workspace = tensors[0].new_empty(found.workspace_bytes, dtype=torch.uint8) if found.workspace_bytes else None
    found.launch(
        tuple(tensor.data_ptr() for tensor in (*tensors, *others.values())),
        scale=scalars.scale,
        fill=scalars.fill,
        workspace=0 if workspace is None else workspace.data_ptr(),
        stream=current.stream(found.device),
    )


def _current(device: int) -> AbstractContextManager:
    """The default stream is that of the current device: inside, it is this one."""
    return nullcontext() if current.device() == device else torch.cuda.device(device)


def _followed(tensors: tuple[Tensor, ...], others: Named) -> tuple[tuple[Tensor, ...], Named]:
    """Tensors with the last stride that kernels want; a mask may also be broadcast along the row."""
    mask = others.get("mask")
    if mask is not None and mask.dim() and mask.shape[-1] > 1 and mask.stride(-1) not in (0, 1):
        others = others | {"mask": mask.contiguous()}
    return tuple(map(_with_unit_stride, tensors)), others


def _with_unit_stride(tensor: Tensor) -> Tensor:
    """Itself, or a copy of what is not expanded: of a gradient that is one number everywhere, a single row."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    leading = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride()[:-1])
    return tensor[leading].contiguous().expand(tensor.shape)


def _contiguous(tensors: tuple[Tensor, ...], others: Named) -> tuple[tuple[Tensor, ...], Named]:
    """Copies of what is read, and a new output. Numbers per row that are written have no gaps anyway."""
    *inputs, y = tensors
    output = y if y.is_contiguous() else torch.empty(y.shape, dtype=y.dtype, device=y.device)
    copies = {
        name: tensor.expand(y.shape if name in _PER_COLUMN else y.shape[:-1]).contiguous()
        for name, tensor in others.items()
    }
    return (*(tensor.contiguous() for tensor in inputs), output), copies


class _Metadata(NamedTuple):
    """What torch knows of a call, as it comes: the key of its plan, cheaper to make and to hash than a Geometry."""

    direction: str
    shape: torch.Size
    tensors: tuple[tuple, ...]  # dtype, strides, alignment of inputs and output
    others: tuple[tuple, ...]  # name, dtype, strides, alignment, shape
    causal_offset: int | None
    batch_invariant: bool
    general: General | None
    arch: str


def _metadata(direction: str, tensors: tuple[Tensor, ...], others: Named, scalars: Scalars, arch: str) -> _Metadata:
    return _Metadata(
        direction,
        tensors[0].shape,
        tuple([(tensor.dtype, tensor.stride(), alignment(tensor)) for tensor in tensors]),
        tuple([(name, each.dtype, each.stride(), alignment(each), each.shape) for name, each in others.items()]),
        scalars.causal_offset,
        scalars.batch_invariant,
        scalars.general,
        arch,
    )


@lru_cache(maxsize=launcher.PLANS)
def _plan(metadata: _Metadata) -> LaunchPlan:
    return launcher.plan_for(_geometry(metadata), metadata.arch)


def _geometry(of: _Metadata) -> Geometry:
    """In integers: [K] is [1, K], and what broadcasts has stride 0."""
    rank = max(len(of.shape), 2)
    operands = [
        Operand(name, _strides(of.shape, strides, rank), alignment, dtype.itemsize)
        for name, (dtype, strides, alignment) in zip(OPERANDS[of.direction], of.tensors, strict=True)
    ]
    for name, dtype, strides, alignment, shape in of.others:
        if name in _PER_COLUMN:
            moves = _strides(shape, strides, rank)
        else:
            moves = (*_strides(shape, strides, rank - 1), 0)
        operands.append(Operand(name, moves, alignment, dtype.itemsize))
    read, written = of.tensors[0][0], of.tensors[-1][0]
    return Geometry(
        direction=of.direction,
        dtype=_DTYPES[read] if read is written else f"{_DTYPES[read]}to{_DTYPES[written]}",
        mask_kind=_mask_kind(of),
        shape=(1,) * (rank - len(of.shape)) + tuple(of.shape),
        operands=tuple(operands),
        causal_offset=of.causal_offset,
        batch_invariant=of.batch_invariant,
        general=of.general,
    )


def _mask_kind(of: _Metadata) -> str:
    if of.general is not None:
        return "general"
    if of.others and of.others[0][1].is_floating_point:
        return "like"
    return ("bool" if of.others else "") + ("" if of.causal_offset is None else "causal") or "none"


def _strides(shape: tuple[int, ...], strides: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Of a tensor that broadcasts, from the right, to `rank` dimensions; in elements."""
    present = zip(shape, strides, strict=True)
    return (0,) * (rank - len(shape)) + tuple(stride if size > 1 else 0 for size, stride in present)


def alignment(tensor: Tensor) -> int:
    """The largest power of two, at most 16, that divides the address, in bytes."""
    address = tensor.data_ptr() | _ACCESS_BYTES
    return address & -address
