"""State spaces: every load and store gets its bytes here, after all checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fault import Fault
from .formats import Values
from .lanes import Active, Lanes
from .memory import POISON, GlobalMemory
from .order import Order
from .passes import through_banks, through_lines
from .shadow import WIDEST, Shadow

RANK_SHIFT = 24  # a shared::cluster address is (rank in the cluster + 1) << 24 | offset; smaller ones: own block
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
        passes: Counter[str],
    ) -> None:
        self.lanes, self.memory, self.params, self.order = lanes, memory, params, order
        self.param_bytes, self.passes = param_bytes, passes
        self.shared = SharedMemory(lanes, shared_bytes)
        self.fenced = np.zeros(lanes.count, np.int32)  # step of the last fence of each lane
        self.first_step = order.step
        self.copies: list[Any] = []  # cp.async in flight
        self.groups = np.zeros(lanes.count, np.int64)  # cp.async groups committed by each lane
        self.mbarriers: dict[int, Any] = {}  # by position in shared memory

    def load(self, active: Active, space: str, address: Values, element: Any, count: int = 1) -> Values:
        """Values of one access of `count` elements per lane: [lanes] or, for a vector, [lanes, count]"""
        width = np.dtype(element).itemsize * count
        shape = (active.size,) if count == 1 else (active.size, count)
        result = None
        for which, storage, position in self.places(active, space, address, width, "read"):
            words = storage.view(element) if count == 1 else storage.view(element).reshape(-1, count)
            found = words[position // width]
            if found.shape == shape:
                return found
            if result is None:
                result = np.empty(shape, element)
            result[which] = found
        assert result is not None
        return result

    def store(self, active: Active, space: str, address: Values, values: Values) -> None:
        """Stores [lanes, count] values, one access per lane."""
        count = values.shape[1]
        width = values.dtype.itemsize * count
        for which, storage, position in self.places(active, space, address, width, "write"):
            storage.view(values.dtype).reshape(-1, count)[position // width] = values[which]

    def places(
        self, active: Active, space: str, address: Values, width: int, kind: str
    ) -> Iterator[tuple[Any, NDArray[np.uint8], Values]]:
        """(which of the accesses, memory, positions in it), checked, tracked and counted.

        `space` is "global", "shared" or "param", `kind` "read" or "write".
        """
        address = address.astype(np.int64, copy=False)
        lane = self.lanes.first + active.index
        self._check_alignment(address, width, kind, lane)
        if space == "global":
            self.passes["global"] += through_lines(address, lane)
            yield from self._global_places(address, width, kind, lane)
        elif space == "shared":
            self.passes["shared"] += through_banks(address & _OFFSET, width, lane)
            position = self.shared.positions(address, width, kind, active)
            if self.lanes.cluster > 1:
                self.shared.used_by(active, position, self.order)
            where = ("shared", address & _OFFSET)
            self.shared.shadow.track(position, width, kind, lane, self.order, where)
            yield slice(None), self.shared.storage, position
        else:
            self._check_params(address, width, lane)
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

    def _global_places(
        self, address: Values, width: int, kind: str, lane: Values
    ) -> Iterator[tuple[Any, NDArray[np.uint8], Values]]:
        for which, buffer, offset in self.memory.places(address, width, kind, lane):
            buffer.check(offset, width, kind, lane[which])
            buffer.count(offset, width, kind, lane[which])
            buffer.track(offset, width, kind, lane[which], self.order)
            yield which, buffer.storage, offset + buffer.lead

    def fence(self, active: Active) -> None:
        self.fenced[active.index] = self.order.step

    def _check_params(self, address: Values, width: int, lane: Values) -> None:
        outside = (address < 0) | (address + width > self.param_bytes)
        if outside.any():
            first = int(np.argmax(outside))
            place = f"param[{int(address[first])}:{int(address[first]) + width}] of {self.param_bytes} bytes"
            raise Fault("bounds", f"out of bounds: {place}", int(lane[first]))
