"""Global memory: named buffers in a 64-bit address space. Each access is checked against the buffer it falls in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .fault import Fault
from .formats import Values
from .lanes import WARP
from .order import Order
from .passes import reached
from .shadow import NOBODY, WIDEST, Shadow

Access = Literal["read", "write", "readwrite"]
ALIGNMENT = 256  # of a buffer's address, as with cudaMalloc
SECTOR = 32  # bytes
FIRST = 0x7F_0000_0000
GAP = 1 << 33  # between buffers: an index that is off by any 32-bit amount does not reach another buffer
POISON = 0xFF  # NaN in every float format


@dataclass
class Traffic:
    """What one launch did to one buffer: lane accesses by width in bytes, bytes, and the 32-byte sectors that each
    store of a warp reaches, whole or in part."""

    reads: Counter[int] = field(default_factory=Counter)
    writes: Counter[int] = field(default_factory=Counter)
    sectors_written: int = 0

    @property
    def bytes_read(self) -> int:
        return sum(width * count for width, count in self.reads.items())

    @property
    def bytes_written(self) -> int:
        return sum(width * count for width, count in self.writes.items())


class Buffer:
    """Bytes at an address. `valid` marks those that the kernel may touch (None: all)."""

    def __init__(self, name: str, address: int, data: NDArray[np.uint8], access: Access) -> None:
        self.name = name
        self.address = address
        self.nbytes = data.size
        self.access = access
        self.lead = address % WIDEST
        size = -(-(self.lead + self.nbytes) // WIDEST) * WIDEST
        self.storage = np.full(size, POISON, np.uint8)
        self.storage[self.lead : self.lead + self.nbytes] = data
        self.shadow = Shadow(size, initialised=access != "write")
        self.traffic = Traffic()
        self.invalid: NDArray[np.int64] | None = None  # count of invalid bytes before each byte
        self.valid: NDArray[np.bool_] | None = None

    def restrict(self, valid: NDArray[np.bool_]) -> None:
        if valid.shape != (self.nbytes,):
            raise ValueError(f"{self.name}: valid must have one bool per byte, [{self.nbytes}], not {valid.shape}")
        self.valid = valid
        self.invalid = np.concatenate([[0], np.cumsum(~valid)])

    @property
    def bytes(self) -> NDArray[np.uint8]:
        return self.storage[self.lead : self.lead + self.nbytes]

    def inner(self, per_granule: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A granule mask as a mask of the buffer's bytes."""
        return self.shadow.bytes_mask(per_granule)[self.lead : self.lead + self.nbytes]

    def count(self, offset: Values, width: int, kind: str, lane: Values) -> None:
        """Counts accesses of `width` bytes at `offset` by one instruction of each lane's warp."""
        if kind == "read":
            self.traffic.reads[width] += offset.size
        else:
            self.traffic.writes[width] += offset.size
            self.traffic.sectors_written += reached(lane // WARP, (self.address % SECTOR + offset) // SECTOR).size

    def check(self, offset: Values, width: int, kind: str, lane: Values) -> None:
        """Checks bounds, guard bytes and access rights of accesses of `width` bytes at `offset`."""
        outside = (offset < 0) | (offset + width > self.nbytes)
        if outside.any():
            self._fault("bounds", f"{kind} out of bounds", offset, width, lane, outside)
        if self.invalid is not None:
            guard = self.invalid[offset + width] != self.invalid[offset]
            if guard.any():
                self._fault("bounds", f"{kind} of bytes outside the valid rows", offset, width, lane, guard)
        if kind == "write" and self.access == "read":
            self._fault("read-only", f"{kind} to a read-only buffer", offset, width, lane, offset >= 0)

    def _fault(self, kind: str, what: str, offset: Values, width: int, lane: Values, bad: Values) -> None:
        first = int(np.argmax(bad))
        place = f"{self.name}[{int(offset[first])}:{int(offset[first]) + width}] of {self.nbytes} bytes"
        raise Fault(kind, f"{what}: {place}", int(lane[first]))

    def track(self, offset: Values, width: int, kind: str, lane: Values, order: Order) -> None:
        """Checks for uninitialised reads and races. A read-only buffer has neither."""
        if self.access != "read":
            self.shadow.track(offset + self.lead, width, kind, lane, order, (self.name, offset))


class GlobalMemory:
    """Buffers by name. `add` gives the address to pass to the kernel."""

    def __init__(self) -> None:
        self.buffers: dict[str, Buffer] = {}
        self._sorted: list[Buffer] = []
        self._borders = np.zeros(0, np.int64)  # halfway between neighbours: an address belongs to the nearest buffer

    def add(
        self,
        name: str,
        data: int | NDArray[Any],
        access: Access = "read",
        *,
        offset: int = 0,
        at: int | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> int:
        """Adds a copy of `data` (its bytes, or that many bytes) at an address `offset` bytes past a multiple of 256.

        A buffer of access "write" starts poisoned, whatever data contains, and reading it before it is written is a
        fault. `at` sets the address. `valid` has one bool per byte: it is a fault if the kernel touches the others.
        """
        if name in self.buffers:
            raise ValueError(f"there is a buffer {name!r} already")
        if isinstance(data, int):
            content = np.full(data, POISON, np.uint8)
        else:
            content = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        address = self._free() + offset if at is None else at
        buffer = Buffer(name, address, content, access)
        if valid is not None:
            buffer.restrict(np.asarray(valid, np.bool_).reshape(-1))
        self._insert(buffer)
        return address

    def _free(self) -> int:
        top = max((buffer.address + buffer.nbytes for buffer in self._sorted), default=0)
        return -(-max(FIRST, top + GAP) // ALIGNMENT) * ALIGNMENT

    def _insert(self, buffer: Buffer) -> None:
        end = buffer.address + buffer.nbytes
        for other in self._sorted:
            if buffer.address < other.address + other.nbytes and other.address < end:
                raise ValueError(f"buffer {buffer.name!r} overlaps {other.name!r}")
        self.buffers[buffer.name] = buffer
        self._sorted = sorted(self.buffers.values(), key=lambda each: each.address)
        ends = [each.address + each.nbytes for each in self._sorted[:-1]]
        starts = [each.address for each in self._sorted[1:]]
        self._borders = np.array([(end + start) // 2 for end, start in zip(ends, starts, strict=True)], np.int64)

    def read(self, name: str) -> NDArray[np.uint8]:
        """A copy of a buffer's bytes."""
        return self.buffers[name].bytes.copy()

    def unwritten(self, name: str) -> NDArray[np.bool_]:
        """True for each (valid) byte that is not initialised: neither given nor written so far."""
        buffer = self.buffers[name]
        missing = buffer.inner(buffer.shadow.writer == NOBODY)
        return missing if buffer.valid is None else missing & buffer.valid

    def writers(self, name: str) -> NDArray[np.int64]:
        """For each byte the lane that wrote it last in the last launch; negative if none did."""
        buffer = self.buffers[name]
        each = np.repeat(buffer.shadow.writer, buffer.shadow.granule)[buffer.lead : buffer.lead + buffer.nbytes]
        return each.astype(np.int64)

    def start(self) -> None:
        """Prepares for a launch: everything earlier is settled, and nothing is counted yet."""
        for buffer in self._sorted:
            buffer.shadow.settle()
            buffer.traffic = Traffic()

    def traffic(self) -> dict[str, Traffic]:
        """What the last launch did to each buffer."""
        return {name: buffer.traffic for name, buffer in self.buffers.items()}

    def places(self, address: Values, width: int, kind: str, lane: Values) -> Iterator[tuple[Any, Buffer, Values]]:
        """(which of the accesses, buffer, offsets in it); most instructions touch only one buffer."""
        if not self._sorted:
            raise Fault("bounds", f"{kind} at {int(address[0]):#x}: there is no buffer", int(lane[0]))
        low, high = np.searchsorted(self._borders, [address.min(), address.max()], "right").tolist()
        if low == high:
            yield slice(None), self._sorted[low], address - self._sorted[low].address
            return
        owner = np.searchsorted(self._borders, address, "right")
        for index in np.unique(owner):
            which = np.flatnonzero(owner == index)
            buffer = self._sorted[index]
            yield which, buffer, address[which] - buffer.address
