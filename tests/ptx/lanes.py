"""Lanes of one wave of blocks: their registers, and the special registers that identify them.

A lane is one CUDA thread. Lanes are numbered block by block, each block rounded up to whole warps, so that a lane's
warp is lane // 32; the lanes that pad a block never run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fault import Fault
from .formats import UNSIGNED, Values

WARP = 32


def padded(threads: int) -> int:
    """Number of lanes that a block of `threads` threads takes."""
    return -(-threads // WARP) * WARP


class Active:
    """The lanes that execute an instruction together: sorted numbers within the wave.

    `select` indexes a register: it is a slice if the lanes are contiguous, which saves a copy.
    """

    __slots__ = ("index", "select", "size")

    def __init__(self, index: NDArray[np.intp]) -> None:
        self.index = index
        self.size = index.size
        first, last = int(index[0]), int(index[-1])
        self.select: Any = slice(first, last + 1) if last - first + 1 == index.size else index


class Lanes:
    """Registers and identity of the lanes of blocks [first_block, first_block + blocks)."""

    def __init__(self, first_block: int, blocks: int, threads: int, grid: int, cluster: int) -> None:
        self.first_block, self.blocks, self.threads = first_block, blocks, threads
        self.grid, self.cluster = grid, cluster
        self.stride = padded(threads)
        self.count = blocks * self.stride
        self.first = first_block * self.stride  # lane number in the grid of lane 0 here
        everyone = np.arange(self.count)
        self.thread = everyone % self.stride
        self.block = first_block + everyone // self.stride
        self.exists = self.thread < threads
        self.in_warp = (everyone % WARP).astype(np.uint32)
        self.members = self.masks(self.exists)
        self.registers: list[Values | None] = []

    def masks(self, which: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """One bit per lane of each warp: [warps]"""
        packed = np.packbits(which.reshape(-1, WARP), axis=1, bitorder="little")
        return np.asarray(packed.view(np.uint32).ravel())

    def mask_of(self, active: Active) -> NDArray[np.uint32]:
        """The active lanes of each warp as a mask: [warps]"""
        which = np.zeros(self.count, np.bool_)
        which[active.select] = True
        return self.masks(which)

    def register(self, slot: int, bits: int) -> Values:
        """A register of all lanes.

        It is created poisoned, with all bits set: NaN as a float. Compilers let lanes read registers that they never
        wrote when the value cannot matter; if it does matter, results are wrong.
        """
        register = self.registers[slot]
        if register is None:
            register = self.registers[slot] = np.empty(self.count, np.bool_ if bits == 1 else UNSIGNED[bits // 8])
            register.view(np.uint8).fill(1 if bits == 1 else 0xFF)
        return register

    def special(self, name: str, active: Active) -> Values:
        """%tid.x and similar registers, as 32-bit unsigned values; scalars if all lanes agree."""
        read = _SPECIAL.get(name)
        if read is None:
            raise Fault("unsupported", f"machine register {name}", self.first + int(active.index[0]))
        return np.asarray(read(self, active.select)).astype(np.uint32)


_SPECIAL: dict[str, Callable[[Lanes, Any], Any]] = {
    "%tid.x": lambda lanes, select: lanes.thread[select],
    "%ntid.x": lambda lanes, select: lanes.threads,
    "%ctaid.x": lambda lanes, select: lanes.block[select],
    "%nctaid.x": lambda lanes, select: lanes.grid,
    "%cluster_ctarank": lambda lanes, select: lanes.block[select] % lanes.cluster,
    "%cluster_nctarank": lambda lanes, select: lanes.cluster,
}
