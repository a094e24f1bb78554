"""Computes a request where its tensors are: with torch operations on the CPU, with a kernel on a GPU.

For a kernel the tensors are described in integers (`layouts`), planned and launched; those whose layout no kernel
supports are copied first.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from . import cpu, current, driver, launcher, operands
from .checks import BackwardRequest, Request
from .checks.request import simplified
from .checks.tensors import described
from .checks.values import accumulation
from .explanation import Explanation, explain_geometry
from .layouts import DTYPES, Metadata, Scalars, contiguous, expanded, geometry_of, metadata_of, supported
from .modes import TENSOR_TYPES
from .operands import Named
from .planning.geometry import BIASED, OPERANDS, General, Geometry
from .planning.launch_plan import LaunchPlan, TooManyDimensions


def forward(request: Request, batch_invariant: bool = False) -> Any:
    """The softmax of a valid request, on the device of its tensors; with return_lse (y, lse).

    Call it only where autograd has nothing to record.
    """
    x = request.x
    if not current.on_gpu(x):
        _check_memory(request._asdict())
        return cpu.softmax(request)
    others, scalars = of_forward(request, batch_invariant)
    if request.return_lse:
        others["lse"] = _of_rows(x, -math.inf)
        if x.numel() == 0 and "sinks" in others:
            others["lse"].copy_(others["sinks"].expand_as(others["lse"]))
    y = compute("fwd", (x,), others, request.out, scalars, request.dtype)
    return (y, others["lse"]) if request.return_lse else y


def backward(request: BackwardRequest, batch_invariant: bool = False) -> Any:
    """The gradient of a valid request, on the device of its tensors; with return_dot (dx, d)."""
    y = request.y
    if not current.on_gpu(y):
        _check_memory(request._asdict())
        return cpu.softmax_backward(request)
    others, scalars = of_backward(request, batch_invariant)
    if request.return_dot:
        others["d"] = _of_rows(y, 0.0)
        if y.numel() == 0 and "dlse" in others:
            others["d"].sub_(others["dlse"])
    dx = compute("bwd", (request.dy, y), others, request.out, scalars, request.dtype)
    return (dx, others["d"]) if request.return_dot else dx


def explain_forward(request: Request, batch_invariant: bool = False, arch: str | None = None) -> Explanation:
    """What `forward` would do; for CPU tensors, on a GPU of architecture `arch`, by default "sm_90"."""
    others, scalars = of_forward(request, batch_invariant)
    if request.return_lse:
        others["lse"] = torch.empty(request.x.shape[:-1], dtype=accumulation(request.x), device="meta")
    explain, arch = _explainer(request.x, arch)
    found = _explain("fwd", (request.x,), others, request.out, scalars, arch, explain, request.dtype)
    expanded_bias = others.get("bias") is not request.bias and "bias" not in found.copied
    return replace(found, copied=(*found.copied, "bias")) if expanded_bias else found


def explain_backward(request: Request, batch_invariant: bool = False, arch: str | None = None) -> Explanation:
    """What the backward of a forward would do, with y and dy like x."""
    x, dtype = request.x, request.dtype
    y = x if dtype in (None, x.dtype) else torch.empty(x.shape, dtype=dtype, device="meta")
    shared = ["scale_tensor", "key_lengths", "left", "right", "softcap", "log"]
    if not request.general or request.left is not None or request.right is not None:
        # Otherwise only slopes measure from the offset, and the gradient has them in y.
        shared += ["causal_offset", "offset_tensor"]
    gradient = BackwardRequest(y, y, request.scale, None, request.out, dtype=None if y is x else x.dtype)
    gradient = simplified(gradient._replace(**{name: getattr(request, name) for name in shared}), request.x.dtype)
    others, scalars = of_backward(gradient, batch_invariant)
    explain, arch = _explainer(x, arch)
    return _explain("bwd", (y, y), others, request.out, scalars, arch, explain, x.dtype)


def of_forward(request: Request, batch_invariant: bool) -> tuple[Named, Scalars]:
    """Operands besides x, by name, and scalars of a request."""
    scalars = Scalars(request.scale, request.fill, request.causal_offset, batch_invariant)
    if not request.general:
        return ({} if request.mask is None else {"mask": request.mask}), scalars
    others, general = operands.of_forward(request)
    alone = [*others] == ["bias"] and general == General() and not request.return_lse
    if alone and request.causal_offset is None and _has_kernels_of_bias(request, others["bias"]):
        return others, scalars
    return others, scalars._replace(general=general)


def _has_kernels_of_bias(request: Request, bias: Tensor) -> bool:
    """Whether the mask kind `bias` can serve a request that has a bias and nothing else."""
    dtype = request.x.dtype
    return bias.dtype is dtype and request.dtype in (None, dtype) and DTYPES[dtype] in BIASED


def of_backward(request: BackwardRequest, batch_invariant: bool) -> tuple[Named, Scalars]:
    """Operands besides dy and y, by name, and scalars of a request."""
    scalars = Scalars(request.scale, 0.0, request.causal_offset, batch_invariant)
    if not request.general:
        return {}, scalars
    others, general = operands.of_backward(request)
    return others, scalars._replace(general=general)


def _of_rows(rows: Tensor, empty: float) -> Tensor:
    """A tensor for one result per row; filled with `empty` if the rows have no columns, since then nothing is
    launched."""
    dtype, shape = accumulation(rows), rows.shape[:-1]
    if rows.numel() == 0:
        return torch.full(shape, empty, dtype=dtype, device=rows.device)
    return torch.empty(shape, dtype=dtype, device=rows.device)


def compute(
    direction: str,
    inputs: tuple[Tensor, ...],
    others: Named,
    out: Tensor | None,
    scalars: Scalars,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes one direction on tensors of one GPU. Returns `out` if given, else a new tensor of `dtype`.

    `others` are the further operands by name: a mask, and those of a general request. A mask of a floating-point dtype
    has the dtype of the inputs, and hides where it is 1.
    """
    x = inputs[0]
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device) if out is None else out
    if x.numel() == 0:
        return y
    with current.working_on(current.ordinal(x)):
        written = _as_kernels_take_them(partial(_launch, direction, scalars), (*inputs, y), others, scalars)
        if written is not y:
            y.copy_(written)
    if out is not None and not out.is_inference():
        current.increment_version((out,))
    return y


def _explainer(x: Tensor, arch: str | None) -> tuple[Callable[[Geometry, str], Explanation], str]:
    """The function that explains a geometry, and the architecture: by default those of the GPU that x is on."""
    if arch is not None or x.is_meta or not current.on_gpu(x):
        return explain_geometry, arch or "sm_90"
    device = current.ordinal(x)
    return partial(explain_geometry, settled=partial(launcher.settled, device=device)), driver.architecture(device)


def _explain(
    direction: str,
    inputs: tuple[Tensor, ...],
    others: Named,
    out: Tensor | None,
    scalars: Scalars,
    arch: str,
    explain: Callable[[Geometry, str], Explanation],
    dtype: torch.dtype | None,
) -> Explanation:
    """What `compute` would do."""
    x = inputs[0]
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device="meta") if out is None else out

    given = (*inputs, y, *others.values())
    names = (*OPERANDS[direction][:-1], "out", *others)

    def attempt(tensors: tuple[Tensor, ...], others: Named) -> Explanation:
        found = explain(geometry_of(metadata_of(direction, tensors, others, scalars, arch)), arch)
        used = zip(names, given, (*tensors, *others.values()), strict=True)
        return replace(found, copied=tuple(name for name, before, now in used if now is not before))

    return _as_kernels_take_them(attempt, (*inputs, y), others, scalars)


def executable(
    direction: str, tensors: tuple[Tensor, ...], others: Named, scalars: Scalars
) -> launcher.Executable | None:
    """The executable, its kernel loaded, for these inputs and this output as they are; None if some must be copied.

    Raises what `compute` does.
    """
    ready, beside = supported(tensors, others, scalars.batch_invariant)
    if any(map(operator.is_not, (*ready, *beside.values()), (*tensors, *others.values()))):
        return None
    try:
        return _executable(direction, tensors, others, scalars)
    except TooManyDimensions:
        return None


def _executable(direction: str, tensors: tuple[Tensor, ...], others: Named, scalars: Scalars) -> launcher.Executable:
    device = current.ordinal(tensors[0])
    plan = _plan(metadata_of(direction, tensors, others, scalars, driver.architecture(device)))
    return launcher.executable(plan, device, current.stream(device))


def _as_kernels_take_them(
    attempt: Callable[..., Any], tensors: tuple[Tensor, ...], others: Named, scalars: Scalars
) -> Any:
    """attempt(tensors, others), on copies where kernels do not take a layout or more dimensions remain than they do."""
    ready = partial(supported, batch_invariant=scalars.batch_invariant)
    try:
        return attempt(*ready(tensors, others))
    except TooManyDimensions:
        tensors = contiguous(tensors)
    try:
        return attempt(*ready(tensors, others))
    except TooManyDimensions:
        return attempt(*ready(tensors, expanded(others, tensors[-1].shape)))


def _launch(direction: str, scalars: Scalars, tensors: tuple[Tensor, ...], others: Named) -> Tensor:
    """The tensor that was written, the last one."""
    addresses = tuple(tensor.data_ptr() for tensor in (*tensors, *others.values()))
    if 0 in addresses:
        raise _without_memory(direction, tensors, others)
    found = _executable(direction, tensors, others, scalars)
    workspace = new_scratch(tensors[0], found.workspace_bytes) if found.workspace_bytes else None
    found.launch(
        addresses,
        scale=scalars.scale,
        fill=scalars.fill,
        workspace=0 if workspace is None else workspace.data_ptr(),
        stream=current.stream(found.device),
    )
    return tensors[-1]


def _check_memory(arguments: dict[str, Any]) -> None:
    """Refuse CPU tensors whose elements are at address 0, where torch's operations would read or write. Those that
    stand for zeros torch knows."""
    for name, value in arguments.items():
        if type(value) in TENSOR_TYPES and value.data_ptr() == 0 and value.numel() and not value._is_zerotensor():
            raise _error_of_memory(name, value)


def _without_memory(direction: str, tensors: tuple[Tensor, ...], others: Named) -> ValueError:
    """The error for a tensor whose elements are at address 0, where a kernel would read or write."""
    named = dict(zip(OPERANDS[direction], tensors, strict=True)) | others
    return _error_of_memory(*next((name, tensor) for name, tensor in named.items() if tensor.data_ptr() == 0))


def _error_of_memory(name: str, tensor: Tensor) -> ValueError:
    return ValueError(
        f"softmax_ops: {name} is {described(tensor)} without memory: its storage was freed, or it stands for zeros "
        "that torch leaves out; want elements in memory: pass a clone of such zeros, or resize the storage back"
    )


def new_scratch(like: Tensor, bytes: int) -> Tensor:
    """Workspace for one launch, on the device of a tensor."""
    return like.new_empty(bytes, dtype=torch.uint8)


@lru_cache(maxsize=launcher.PLANS)
def _plan(metadata: Metadata) -> LaunchPlan:
    return launcher.plan_for(geometry_of(metadata), metadata.arch)
