"""Describes tensors in integers, as planning wants them, and copies those whose layout no kernel supports.

A call's Metadata, as torch reports it, is the key under which its plan is cached; planning takes a Geometry.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .artifacts.constants import ACCESS_BYTES
from .operands import Named, unexpanded
from .planning.geometry import DTYPE_NAMES, OPERANDS, General, Geometry, Operand, kind_of_general

DTYPES = {getattr(torch, name): dtype for name, dtype in DTYPE_NAMES.items()}
_PER_COLUMN = ("mask", "bias")
"""Operands with a value for each column; the others have one for each row."""


class Scalars(NamedTuple):
    """The arguments of a launch that are not tensors."""

    scale: float
    fill: float
    causal_offset: int | None
    batch_invariant: bool
    general: General | None = None  # of a general request


class Metadata(NamedTuple):
    """A call's metadata as torch reports it: the cache key of its plan, cheaper to build and to hash than a
    Geometry."""

    direction: str
    shape: torch.Size
    tensors: tuple[tuple, ...]  # dtype, strides, alignment of inputs and output
    others: tuple[tuple, ...]  # name, dtype, strides, alignment, shape
    causal_offset: int | None
    batch_invariant: bool
    general: General | None
    arch: str


def metadata_of(direction: str, tensors: tuple[Tensor, ...], others: Named, scalars: Scalars, arch: str) -> Metadata:
    """The metadata of a launch on these tensors, the output last."""
    return Metadata(
        direction,
        tensors[0].shape,
        tuple([(tensor.dtype, tensor.stride(), alignment(tensor)) for tensor in tensors]),
        tuple([(name, each.dtype, each.stride(), alignment(each), each.shape) for name, each in others.items()]),
        scalars.causal_offset,
        scalars.batch_invariant,
        scalars.general,
        arch,
    )


def geometry_of(of: Metadata) -> Geometry:
    """The call in integers: [K] becomes [1, K], and broadcast dimensions have stride 0."""
    rank = max(len(of.shape), 2)
    found = [
        Operand(name, _strides(of.shape, strides, rank), alignment, dtype.itemsize)
        for name, (dtype, strides, alignment) in zip(OPERANDS[of.direction], of.tensors, strict=True)
    ]
    for name, dtype, strides, alignment, shape in of.others:
        per_column = name in _PER_COLUMN
        moves = _strides(shape, strides, rank if per_column else rank - 1)
        found.append(Operand(name, moves if per_column else (*moves, 0), alignment, dtype.itemsize))
    read, written = of.tensors[0][0], of.tensors[-1][0]
    return Geometry(
        direction=of.direction,
        dtype=DTYPES[read] if read is written else f"{DTYPES[read]}to{DTYPES[written]}",
        mask_kind=_mask_kind(of),
        shape=(1,) * (rank - len(of.shape)) + tuple(of.shape),
        operands=tuple(found),
        causal_offset=of.causal_offset,
        batch_invariant=of.batch_invariant,
        general=of.general,
    )


def _mask_kind(of: Metadata) -> str:
    if of.general is not None:
        return kind_of_general(of.general, (name for name, *_ in of.others))
    if of.others and of.others[0][1].is_floating_point:
        return "bias" if of.others[0][0] == "bias" else "like"
    return ("bool" if of.others else "") + ("" if of.causal_offset is None else "causal") or "none"


def _strides(shape: tuple[int, ...], strides: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Strides in elements of a tensor broadcast from the right to `rank` dimensions."""
    return (0,) * (rank - len(shape)) + moving(shape, strides)


def moving(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, 0 for dimensions that have no second element to lead to."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))


def alignment(tensor: Tensor) -> int:
    """The largest power of two, at most ACCESS_BYTES, that divides the address in bytes."""
    address = tensor.data_ptr() | ACCESS_BYTES
    return address & -address


def supported(tensors: tuple[Tensor, ...], others: Named, batch_invariant: bool) -> tuple[tuple[Tensor, ...], Named]:
    """The tensors, the output last, copied where kernels do not support the last stride, or where the bits of a row
    would depend on where it lies. A mask may also be broadcast along the row."""
    mask = others.get("mask")
    if mask is not None and mask.dim() and mask.stride(-1) != 0:
        others = others | {"mask": with_unit_stride(mask)}
    tensors = tuple(map(with_unit_stride, tensors))
    return _on_boundaries(tensors, others) if batch_invariant else (tensors, others)


def _on_boundaries(tensors: tuple[Tensor, ...], others: Named) -> tuple[tuple[Tensor, ...], Named]:
    """Copies of the tensors whose rows do not start on the boundaries of aligned kernels, if the choice of kernel or
    the order of a sum would depend on it.

    If rows are whole vectors, aligned ones have kernels of their own. Other rows are cut into vectors at 16-byte
    boundaries of the output. In float64, columns are dealt one by one.
    """
    *inputs, y = tensors
    if y.dtype is torch.float64:
        return tensors, others
    vector = ACCESS_BYTES // max(tensor.element_size() for tensor in tensors)
    y = y if _is_on_boundary(y, vector) else _empty_on_boundary(y, vector)
    if y.shape[-1] % vector == 0:
        inputs = [_on_boundary(tensor, vector) for tensor in inputs]
        others = others | {name: _on_boundary(others[name], vector) for name in _PER_COLUMN if name in others}
    return (*inputs, y), others


def _on_boundary(tensor: Tensor, vector: int) -> Tensor:
    """The tensor itself, or a copy whose rows start where a vector of columns may."""
    if tensor.dim() == 0 or tensor.stride(-1) == 0 or _is_on_boundary(tensor, vector):
        return tensor
    given = unexpanded(tensor)
    return _empty_on_boundary(given, vector).copy_(given).expand(tensor.shape)


def _is_on_boundary(tensor: Tensor, vector: int) -> bool:
    boundary = min(vector * tensor.element_size(), ACCESS_BYTES)
    strides = moving(tensor.shape[:-1], tensor.stride()[:-1])
    return alignment(tensor) >= boundary and not any(stride * tensor.element_size() % boundary for stride in strides)


def _empty_on_boundary(like: Tensor, vector: int) -> Tensor:
    """Uninitialised rows, with a gap after each that is not whole vectors."""
    *leading, k = like.shape
    return like.new_empty((*leading, -(-k // vector) * vector))[..., :k]


def with_unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself or a copy, in which expanded leading dimensions remain expanded."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return unexpanded(tensor).contiguous().expand(tensor.shape)


def contiguous(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Contiguous copies of the inputs, and a new output if y, the last, has gaps."""
    *inputs, y = tensors
    output = y if y.is_contiguous() else torch.empty(y.shape, dtype=y.dtype, device=y.device)
    return (*(tensor.contiguous() for tensor in inputs), output)


def expanded(others: Named, shape: torch.Size) -> Named:
    """Contiguous tensors that broadcast no more, for rows of this shape: copies where they are needed.

    0-d tensors are left alone: a kernel reads the lower half of a 64-bit offset, which is not a row of numbers.
    """

    def whole(tensor: Tensor, shape: torch.Size) -> Tensor:
        return tensor.contiguous() if tensor.shape == shape else tensor.expand(shape).contiguous()

    return {
        name: whole(tensor, shape if name in _PER_COLUMN else shape[:-1]) if tensor.dim() else tensor
        for name, tensor in others.items()
    }
