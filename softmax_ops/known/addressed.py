"""Finds the executable for operands that differ from earlier ones in nothing but their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..artifacts.constants import ACCESS_BYTES
from ..checks.memory import bytes_reached
from ..launcher import Executable

ADDRESSES = 64
"""Combinations of addresses to remember; when there are more, all are forgotten."""

_BOUNDARY = ACCESS_BYTES - 1
"""The bits of an address that give its offset from a 16-byte boundary."""


class Addressed:
    """Executables by the addresses of their operands, given in the order of the launch.

    The offsets of operands from 16-byte boundaries decide which kernel serves. Whether `out`, operand number `written`,
    overlaps another operand is checked once per combination of addresses. Without `out` (-1) nothing can overlap.
    """

    def __init__(self, operands: Sequence[Tensor], written: int, inputs: int):
        """Out may lie exactly on one of the first `inputs` operands if that has the strides and dtype of out."""
        self._written = written
        self._reach = [bytes_reached(operand) for operand in operands]
        out = operands[written]
        self._in_place = [
            place < inputs and each.stride() == out.stride() and each.dtype is out.dtype
            for place, each in enumerate(operands)
        ]
        self._by_boundaries: dict[tuple[int, ...], Executable] = {}
        self.by_addresses: dict[tuple[int, ...], Executable] = {}
        """Results of earlier calls of `find`."""

    def add(self, executable: Executable, addresses: tuple[int, ...]) -> None:
        """Register the executable for operands with the same offsets from 16-byte boundaries as these."""
        self._by_boundaries[_boundaries(addresses)] = executable

    def find(self, addresses: tuple[int, ...]) -> Executable | None:
        """None if no executable is known, if out overlaps an input, or if an operand has no memory (address 0)."""
        return self.by_addresses.get(addresses) or self._judge(addresses)

    def _judge(self, addresses: tuple[int, ...]) -> Executable | None:
        executable = self._by_boundaries.get(_boundaries(addresses))
        if executable is None or 0 in addresses or self._overlaps(addresses):
            return None
        if len(self.by_addresses) >= ADDRESSES:
            self.by_addresses.clear()
        self.by_addresses[addresses] = executable
        return executable

    def _overlaps(self, addresses: tuple[int, ...]) -> bool:
        """Whether out may share bytes with an operand without being exactly that operand."""
        if self._written < 0:
            return False
        at, reach = addresses[self._written], self._reach[self._written]
        for place, (address, bytes) in enumerate(zip(addresses, self._reach, strict=True)):
            same = self._in_place[place] and at == address
            if place != self._written and not same and -reach < at - address < bytes:
                return True
        return False


def _boundaries(addresses: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(address & _BOUNDARY for address in addresses)
