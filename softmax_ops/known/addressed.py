"""What computes operands that differ in nothing but their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..checks.memory import bytes_reached
from ..launcher import Executable

ADDRESSES = 1024
"""Combinations of addresses that are remembered; then all are forgotten."""

_BOUNDARY = 15
"""The bits of an address that tell where it lies between two 16-byte boundaries."""


class Addressed:
    """Executables by the addresses of their operands, given in the order of the launch.

    Which boundaries operands start on decides which kernel serves; whether `out`, the operand at the place `written`,
    overlaps another is to be looked at once per combination. Without `out` (-1) nothing can overlap.
    """

    def __init__(self, operands: Sequence[Tensor], written: int, inputs: int):
        """In place of one of the first `inputs` operands, if its strides and dtype are those of out, is no overlap."""
        self._written = written
        self._reach = [bytes_reached(operand) for operand in operands]
        out = operands[written]
        self._in_place = [
            place < inputs and each.stride() == out.stride() and each.dtype is out.dtype
            for place, each in enumerate(operands)
        ]
        self._by_boundaries: dict[tuple[int, ...], Executable] = {}
        self.by_addresses: dict[tuple[int, ...], Executable] = {}
        """Those that were found."""

    def add(self, executable: Executable, addresses: tuple[int, ...]) -> None:
        """What computes operands that lie relative to 16-byte boundaries as these do."""
        self._by_boundaries[_boundaries(addresses)] = executable

    def find(self, addresses: tuple[int, ...]) -> Executable | None:
        """None where it is not known, where out overlaps what is read, or where an operand has no memory (0)."""
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
        """Whether out may share bytes with an operand that it is not exactly."""
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
