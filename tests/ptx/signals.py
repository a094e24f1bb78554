"""Order between blocks by means of memory: fence, atomic, atomic, fence.

A lane *releases* what it knows when it executes a fence and then an atomic on some address; a lane that later
executes an atomic on that address and then a fence *acquires* it, and the lane's block knows it from the next barrier
on. What a lane knows at a fence: everything before its block's last barrier, its own accesses, and what it acquired.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .formats import Values


class Known(NamedTuple):
    """What has been released about one block: everything before `synced`, and everything of `lane` before `step`."""

    synced: int
    lane: int
    step: int


Knowledge = dict[int, Known]  # block -> what is known about it; never changed in place


def _merge(one: Knowledge, other: Knowledge) -> Knowledge:
    if not one or not other:
        return one or other
    merged = dict(one)
    for block, known in other.items():
        mine = merged.get(block)
        if mine is None or known.step > mine.step:
            merged[block] = known
    return merged


class Signals:
    """Knowledge that fences and atomics pass between the blocks of one launch."""

    def __init__(self, block_synced: NDArray[np.int32], stride: int) -> None:
        self.block_synced = block_synced
        self.stride = stride
        self.fenced: dict[int, Knowledge] = {}  # lane -> what its last fence covers
        self.loaded: dict[int, Knowledge] = {}  # lane -> seen through atomics, not yet covered by a fence
        self.lane_knows: dict[int, Knowledge] = {}
        self.block_knows: dict[int, Knowledge] = {}
        self.posted: dict[int, Knowledge] = {}  # address -> what was released there

    @property
    def used(self) -> bool:
        return bool(self.lane_knows or self.block_knows)

    def fence(self, lanes: Values, step: int) -> None:
        for lane in lanes.tolist():
            block = lane // self.stride
            if lane in self.loaded:
                self.lane_knows[lane] = _merge(self.lane_knows.get(lane, {}), self.loaded.pop(lane))
            own = {block: Known(int(self.block_synced[block]), lane, step)}
            learnt = _merge(self.lane_knows.get(lane, {}), self.block_knows.get(block, {}))
            self.fenced[lane] = {**learnt, **own}

    def take(self, lane: int, address: int) -> None:
        """Loads what others released at this address; it takes effect with the lane's next fence."""
        if posted := self.posted.get(address):
            self.loaded[lane] = _merge(self.loaded.get(lane, {}), posted)

    def post(self, lane: int, address: int) -> None:
        """Releases what the lane's last fence covers."""
        if lane in self.fenced:
            self.posted[address] = _merge(self.posted.get(address, {}), self.fenced[lane])

    def sync_blocks(self, blocks: Values) -> None:
        """A block barrier makes what its lanes acquired known to the whole block."""
        if not self.lane_knows:
            return
        synced = set(blocks.tolist())
        for lane in [lane for lane in self.lane_knows if lane // self.stride in synced]:
            block = lane // self.stride
            self.block_knows[block] = _merge(self.block_knows.get(block, {}), self.lane_knows.pop(lane))

    def ordered(self, before: Values, alone: Values, step: Values, lane: Values) -> Values:
        """True where an access at `step` by `before` was released to `lane`; `alone`: by that lane only."""
        result = np.zeros(before.shape, np.bool_)
        for i in range(before.size):
            known = self._known(int(lane[i]), int(before[i]) // self.stride)
            if known is not None:
                own = alone[i] and before[i] == known.lane and step[i] < known.step
                result[i] = own or step[i] < known.synced
        return result

    def _known(self, lane: int, block: int) -> Known | None:
        of_block = self.block_knows.get(lane // self.stride, {}).get(block)
        of_lane = self.lane_knows.get(lane, {}).get(block)
        if of_block is None or (of_lane is not None and of_lane.step > of_block.step):
            return of_lane
        return of_block
