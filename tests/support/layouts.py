"""Tensors in memory: strides, phases and guard bytes."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.support.engines import POISON, Bytes, Operand

GUARD = 64
"""Guard bytes before and after an operand: no vector access that touches the operand reaches past them."""


@dataclass(frozen=True)
class Layout:
    """How a tensor [..., K] lies in memory.

    It starts `phase` elements after an aligned address and leaves `gap` elements after each row. Its leading dimensions
    are nested in `order`, outermost first; `expanded` ones have stride 0.
    """

    phase: int = 0
    gap: int = 0
    order: tuple[int, ...] = ()
    expanded: tuple[int, ...] = ()

    def strides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Strides in elements.

        >>> Layout(gap=2, order=(1, 0)).strides((3, 5, 8))
        (10, 30, 1)
        """
        strides, step = [0] * len(shape), shape[-1] + self.gap
        strides[-1] = 1
        for dimension in reversed(self.order or range(len(shape) - 1)):
            if dimension not in self.expanded:
                strides[dimension] = step
                step *= shape[dimension]
        return tuple(strides)

    def elements(self, shape: tuple[int, ...]) -> int:
        """Number of elements from the first to the last, both included."""
        steps = zip(shape, self.strides(shape), strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps)


def place(tensor: torch.Tensor, layout: Layout) -> Operand:
    """An operand with the tensor's elements in place and everything else poisoned."""
    shape, size = tuple(tensor.shape), tensor.element_size()
    operand = empty(shape, size, layout)
    elements(operand, shape, size, layout)[...] = tensor.contiguous().view(_integer(size)).numpy()
    return operand


def empty(shape: tuple[int, ...], size: int, layout: Layout) -> Operand:
    """An operand of poisoned memory for a tensor of `size` bytes per element."""
    first = GUARD + layout.phase * size
    storage = np.full(first + layout.elements(shape) * size + GUARD, POISON, np.uint8)
    guards = Operand(storage, 0, first, np.zeros(storage.shape, np.bool_))
    marks = Operand(np.zeros(storage.shape, np.uint8), 0, first, guards.valid)
    elements(marks, shape, size, layout)[...] = -1
    return Operand(storage, 0, first, marks.storage != 0)


def elements(operand: Operand, shape: tuple[int, ...], size: int, layout: Layout) -> NDArray[Any]:
    """The tensor in an operand's storage, as a view in integers of `size` bytes."""
    inside = operand.storage[operand.first :]
    words = inside[: inside.size // size * size].view(f"i{size}")
    return np.lib.stride_tricks.as_strided(words, shape, tuple(size * step for step in layout.strides(shape)))


def read(storage: Bytes, operand: Operand, like: torch.Tensor, layout: Layout) -> torch.Tensor:
    """What a kernel left in the operand's memory: a tensor of the shape and dtype of `like`."""
    after = Operand(storage, operand.phase, operand.first, operand.valid)
    found = elements(after, tuple(like.shape), like.element_size(), layout)
    return torch.from_numpy(found.copy()).view(like.dtype)


def alignment(operand: Operand) -> int:
    """The largest power of two, at most 16, that divides the address of the first element."""
    return gcd(operand.phase + operand.first, 16)


def _integer(size: int) -> torch.dtype:
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
