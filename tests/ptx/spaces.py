"""State spaces: every load and store gets its bytes here, after all checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .declarations import MODULE_BASE
from .fault import Fault
from .formats import Values
from .lanes import Active, Lanes
from .memory import POISON, GlobalMemory
from .order import Order
from .passes import through_banks, through_lines
from .shadow import WIDEST, Shadow

RANK_SHIFT = 24  # a shared::cluster address is (rank in the cluster + 1) << 24 | offset; smaller ones: own block
SHARED_WINDOW = 1 << 48  # generic address of shared memory, then local memory
LOCAL_WINDOW = 1 << 49
_OFFSET = (1 << RANK_SHIFT) - 1


class SharedMemory:
    """Shared memory of the blocks of one wave, `nbytes` each, poisoned."""

    def __init__(self, lanes: Lanes, nbytes: int) -> None:
        self.lanes = lanes
        self.nbytes = nbytes
        self.stride = max(-(-nbytes // WIDEST) * WIDEST, WIDEST)
        self.storage = np.full(self.stride * lanes.blocks, POISON, np.uint8)
        self.shadow = Shadow(self.storage.size, initialised=False)
        self.exited = np.zeros(lanes.blocks, np.bool_)
        self.remote_step = np.zeros(lanes.blocks, np.int32)  # last access from another block of the cluster
        self.remote_lane = np.zeros(lanes.blocks, np.int64)

    def positions(self, address: Values, width: int, kind: str, active: Active) -> Values:
        lane = self.lanes.first + active.index
        offset, tag = address & _OFFSET, address >> RANK_SHIFT
        outside = (offset + width > self.nbytes) | (tag < 0) | (tag > self.lanes.cluster)
        if outside.any():
            first = int(np.argmax(outside))
            place = f"shared[{int(offset[first])}:{int(offset[first]) + width}] of {self.nbytes} bytes"
            what = f"{kind} out of bounds: {place}"
            if tag[first]:
                what += f", address {int(address[first]):#x} of a cluster of {self.lanes.cluster}"
            raise Fault("bounds", what, int(lane[first]))
        block = active.index // self.lanes.stride
        if tag.any():
            block = self._remote(block, tag, lane)
        return np.asarray(block * self.stride + offset)

    def _remote(self, own: Values, tag: Values, lane: Values) -> Values:
        """Blocks of distributed shared memory; the other block must not exit before the access is over."""
        block = np.where(tag > 0, own - own % self.lanes.cluster + tag - 1, own)
        gone = self.exited[block]
        if gone.any():
            raise Fault("race", "accesses the shared memory of a block that has exited", int(lane[np.argmax(gone)]))
        return np.asarray(block)

    def used_by(self, active: Active, position: Values, order: Order) -> None:
        """Records accesses from other blocks of the cluster."""
        block = position // self.stride
        other = block != active.index // self.lanes.stride
        self.remote_step[block[other]] = order.step
        self.remote_lane[block[other]] = self.lanes.first + active.index[other]

    def exit(self, index: Values, order: Order) -> None:
        """The blocks of these lanes of the wave exit for good: no other block may still use their memory."""
        blocks = np.unique(index // self.lanes.stride)
        self.exited[blocks] = True
        used = blocks[self.remote_step[blocks] > 0]
        if not used.size:
            return
        last = self.lanes.first + used * self.lanes.stride
        done = order.ordered(self.remote_lane[used], 1, self.remote_step[used], last)
        if not done.all():
            block = int(used[np.argmin(done)])
            thread = int(self.remote_lane[block]) % self.lanes.stride
            reader = int(self.remote_lane[block]) // self.lanes.stride
            what = f"block exits while thread {thread} of block {reader} may still use its shared memory"
            raise Fault("race", what, self.lanes.first + block * self.lanes.stride)


class State:
    """The state of one wave in execution: lanes, memories and clocks."""

    def __init__(
        self,
        lanes: Lanes,
        memory: GlobalMemory,
        params: NDArray[np.uint8],
        param_bytes: int,
        order: Order,
        shared_bytes: int,
        local_bytes: int,
        count: Counter[tuple[str, str, int]],
        passes: Counter[str],
    ) -> None:
        self.lanes, self.memory, self.params, self.order = lanes, memory, params, order
        self.count, self.passes = count, passes
        self.param_bytes = param_bytes
        self.shared = SharedMemory(lanes, shared_bytes)
        self.local_bytes = local_bytes
        self.local_stride = -(-local_bytes // WIDEST) * WIDEST
        self.local = np.full(self.local_stride * lanes.count, POISON, np.uint8)
        self.local_shadow = Shadow(self.local.size, initialised=False)
        self.fenced = np.zeros(lanes.count, np.int32)  # step of the last fence of each lane
        self.first_step = order.step
        self.copies: list[Any] = []  # cp.async in flight
        self.groups = np.zeros(lanes.count, np.int64)  # cp.async groups committed by each lane
        self.mbarriers: dict[int, Any] = {}  # by position in shared memory

    def load(
        self, active: Active, space: str, address: Values, element: Any, count: int = 1, strong: bool = False
    ) -> Values:
        """Values of one access of `count` elements per lane: [lanes] or, for a vector, [lanes, count]"""
        width = np.dtype(element).itemsize * count
        shape = (active.size,) if count == 1 else (active.size, count)
        result = None
        for which, storage, position in self.places(active, space, address, width, "read", strong):
            words = storage.view(element) if count == 1 else storage.view(element).reshape(-1, count)
            found = words[position // width]
            if found.shape == shape:
                return found
            if result is None:
                result = np.empty(shape, element)
            result[which] = found
        assert result is not None
        return result

    def store(self, active: Active, space: str, address: Values, values: Values, strong: bool = False) -> None:
        """Stores [lanes, count] values, one access per lane."""
        count = values.shape[1]
        width = values.dtype.itemsize * count
        for which, storage, position in self.places(active, space, address, width, "write", strong):
            storage.view(values.dtype).reshape(-1, count)[position // width] = values[which]

    def places(
        self, active: Active, space: str, address: Values, width: int, kind: str, strong: bool = False
    ) -> Iterator[tuple[Any, NDArray[np.uint8], Values]]:
        """(which of the accesses, memory, positions in it), checked, tracked and counted.

        `strong` accesses (volatile, relaxed, atomic ...) do not race with each other.
        """
        address = address.astype(np.int64, copy=False)
        lane = self.lanes.first + active.index
        self._check_alignment(address, width, kind, lane)
        space, address = self._resolve(space, address, lane)
        self.count[space, kind, width] += active.size
        if space == "global":
            self.passes["global"] += through_lines(address, lane)
            yield from self._global_places(address, width, kind, lane, strong)
        elif space == "shared":
            self.passes["shared"] += through_banks(address & _OFFSET, width, lane)
            position = self.shared.positions(address, width, kind, active)
            if self.lanes.cluster > 1:
                self.shared.used_by(active, position, self.order)
            where = ("shared", address & _OFFSET)
            self.shared.shadow.track(position, width, kind, lane, self.order, strong, where)
            yield slice(None), self.shared.storage, position
        elif space == "local":
            self._check_size("local", address, width, self.local_bytes, lane)
            position = active.index * self.local_stride + address
            self.local_shadow.track(position, width, kind, lane, self.order, strong, ("local", address))
            yield slice(None), self.local, position
        else:
            self._check_size("param", address, width, self.param_bytes, lane)
            yield slice(None), self.params, address

    def asynchronous(self, kind: str, active: Active, address: Values, width: int) -> Values:
        """Positions in shared memory that the hardware accesses for the lanes; an mbarrier tells when it is done."""
        self._check_alignment(address, width, kind, self.lanes.first + active.index)
        return self.shared.positions(address, width, kind, active)

    @staticmethod
    def _check_alignment(address: Values, width: int, kind: str, lane: Values) -> None:
        misaligned = address & (width - 1)
        if misaligned.any():
            first = int(np.argmax(misaligned != 0))
            what = f"{kind} of {width} bytes at an address that is {int(address[first]) % width} past a multiple"
            raise Fault("alignment", what, int(lane[first]))

    def _resolve(self, space: str, address: Values, lane: Values) -> tuple[str, Values]:
        """The concrete state space, and addresses in it."""
        if space.startswith("shared") and (address < 1 << 32).all():
            return "shared", address
        if space in ("global", "const"):
            return "global", address
        if space in ("param", "local"):
            return space, address
        window = address & (SHARED_WINDOW | LOCAL_WINDOW)
        if (window != window[0]).any():
            raise Fault("unsupported", "generic access to several state spaces at once", int(lane[0]))
        if window[0] == SHARED_WINDOW:
            return "shared", address - SHARED_WINDOW
        if window[0] == LOCAL_WINDOW:
            return "local", address - LOCAL_WINDOW
        return "global", address

    def _global_places(
        self, address: Values, width: int, kind: str, lane: Values, strong: bool
    ) -> Iterator[tuple[Any, NDArray[np.uint8], Values]]:
        for which, buffer, offset in self.memory.places(address, width, kind, lane):
            buffer.check(offset, width, kind, lane[which])
            buffer.count(offset, width, kind, lane[which])
            buffer.track(offset, width, kind, lane[which], self.order, strong)
            yield which, buffer.storage, offset + buffer.lead

    def fence(self, active: Active) -> None:
        self.fenced[active.index] = self.order.step
        self.order.signals.fence(self.lanes.first + active.index, self.order.step)

    def signal(self, active: Active, address: Values, kind: str) -> None:
        """A strong access that may pass order to another block: a write posts, a read takes, an atomic does both."""
        for index, where in zip(active.index.tolist(), address.tolist(), strict=True):
            if kind != "write":
                self.order.signals.take(self.lanes.first + index, where)
            if kind != "read":
                self.order.signals.post(self.lanes.first + index, where)

    @staticmethod
    def _check_size(space: str, address: Values, width: int, nbytes: int, lane: Values) -> None:
        outside = (address < 0) | (address + width > nbytes)
        if outside.any():
            first = int(np.argmax(outside))
            place = f"{space}[{int(address[first])}:{int(address[first]) + width}] of {nbytes} bytes"
            raise Fault("bounds", f"out of bounds: {place}", int(lane[first]))


def module_buffers(memory: GlobalMemory, program: Any) -> None:
    """Adds module variables as buffers at the addresses of their symbols."""
    for variable in program.variables:
        name = f"{variable.symbol.space} {variable.symbol.name}"
        if name not in memory.buffers:
            access: Any = "read" if variable.symbol.space == "const" else "readwrite"
            data = np.frombuffer(variable.initial, np.uint8)
            memory.add(name, data, access, at=variable.symbol.address)


assert MODULE_BASE < SHARED_WINDOW
