"""The upper bound of any kernel's speed: the fastest of several copies of the same bytes, timed in the same run.

Forward: a copy. Causal: a copy that reads the visible triangle and writes everything, or the full copy. Backward: the
sum of two tensors into a third. Float32 results of 16-bit scores: a copy that converts, or plain copies of the scores.
Each time is scaled by the bytes of the cell over the bytes that the copy moved, which also covers key lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from softmax_ops.artifacts.constants import DTYPE_BYTES

from .cells import Cell
from .providers import Call, Provider, needs
from .tensors import Tensors


@dataclass(frozen=True)
class Ceiling:
    """A way to move bytes, and the number of bytes that it moves."""

    name: str
    call: Call
    bytes: Callable[[Cell], int]
    absent: Callable[[], str | None] = lambda: None

    @property
    def provider(self) -> Provider:
        """A provider that runs this ceiling for any cell."""
        return Provider(self.name, lambda cell: self.call, self.absent)


def of_cell(cell: Cell) -> list[Ceiling]:
    if cell.direction == "bwd":
        return [_SUM, _TRITON_SUM]
    if cell.result != cell.dtype:
        return list(_CONVERTING)
    return [*_COPIES, *(_TRIANGLES if cell.causal else ())]


def _full(cell: Cell) -> int:
    return cell.full_bytes


def _triangle(cell: Cell) -> int:
    return (cell.visible + cell.elements) * DTYPE_BYTES[cell.dtype]


def _scores_twice(cell: Cell) -> int:
    return cell.elements * 2 * DTYPE_BYTES[cell.dtype]


def _memcpy(tensors: Tensors) -> Tensor:
    return tensors.out.copy_(tensors.inputs[0])


def _elementwise(tensors: Tensors) -> Tensor:
    """A vectorised kernel with one read and one write; copy_ itself would be a memcpy."""
    return torch.neg(tensors.inputs[0], out=tensors.out)


def _foreach(tensors: Tensors) -> Tensor:
    torch._foreach_copy_([tensors.out], list(tensors.inputs[:1]))
    return tensors.out


def _half(tensors: Tensors) -> Tensor:
    """The first half of a float32 output's memory, which holds 16-bit scores unconverted."""
    (x,) = tensors.inputs
    return tensors.out.view(-1).view(x.dtype)[: x.numel()].view(x.shape)


def _unconverted(tensors: Tensors) -> Tensor:
    return _half(tensors).copy_(tensors.inputs[0])


def _elementwise_unconverted(tensors: Tensors) -> Tensor:
    return torch.neg(tensors.inputs[0], out=_half(tensors))


def _triton(tensors: Tensors) -> Tensor:
    from . import triton_softmax

    return triton_softmax.copy(tensors.inputs[0], tensors.out)


def _tril(tensors: Tensors) -> Tensor:
    x = tensors.inputs[0]
    return torch.tril(x, x.shape[3] - x.shape[2], out=tensors.out)


def _triton_triangle(tensors: Tensors) -> Tensor:
    from . import triton_softmax

    return triton_softmax.copy_visible(tensors.inputs[0], tensors.out)


def _sum(tensors: Tensors) -> Tensor:
    a, b = tensors.inputs
    return torch.add(a, b, out=tensors.out)


def _triton_sum(tensors: Tensors) -> Tensor:
    from . import triton_softmax

    a, b = tensors.inputs
    return triton_softmax.add(a, b, tensors.out)


_NEEDS_TRITON = needs("triton", "triton")
_COPIES = (
    Ceiling("memcpy", _memcpy, _full),
    Ceiling("elementwise", _elementwise, _full),
    Ceiling("foreach", _foreach, _full),
    Ceiling("triton copy", _triton, _full, _NEEDS_TRITON),
)
_CONVERTING = (
    Ceiling("converting copy", _memcpy, _full),
    Ceiling("memcpy", _unconverted, _scores_twice),
    Ceiling("elementwise", _elementwise_unconverted, _scores_twice),
    Ceiling("triton copy", _triton, _scores_twice, _NEEDS_TRITON),
)
_TRIANGLES = (
    Ceiling("tril", _tril, _triangle),
    Ceiling("triton triangle", _triton_triangle, _triangle, _NEEDS_TRITON),
)
_SUM = Ceiling("add", _sum, _full)
_TRITON_SUM = Ceiling("triton add", _triton_sum, _full, _NEEDS_TRITON)

NAMES = frozenset(each.name for each in (*_COPIES, *_CONVERTING, *_TRIANGLES, _SUM, _TRITON_SUM))
