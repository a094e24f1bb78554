"""Which accesses are ordered before which others: the happens-before relation behind the race check.

Time is the number of the executed instruction (`step`), one clock for the whole grid. An access at step s by one lane
is ordered before the current access of another lane only if a barrier in which both took part completed after s:
the block's, the cluster's (by the step at which the earlier lane *arrived*), or the warp's. Within a lane, program
order counts. Shuffles, votes and the accidental order of the schedule do not count. Blocks without a common cluster
are never ordered. An asynchronous store counts as a lane of its own, numbered from ASYNC: it is ordered before the
lanes that waited at its mbarrier (mbarriers.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .formats import Values

LANE, WARP, BLOCK, CLUSTER, GRID = 1, 2, 3, 4, 5  # how far apart the lanes of a set are
ASYNC = 1 << 30  # the "lane" that writes what an mbarrier counts is this plus the number of the mbarrier


class Order:
    """Clocks of one launch. Lanes are numbered block * stride + thread, with stride a multiple of 32."""

    def __init__(self, grid: int, stride: int, cluster: int) -> None:
        self.stride = stride
        self.cluster = cluster
        self.step = 1
        self.block_synced = np.zeros(grid, np.int32)
        self.warp_synced: Values | None = None  # [lane of the wave, lane of its warp]
        self.first_lane = 0
        self.lanes = 0

    def start_wave(self, first_lane: int, lanes: int) -> None:
        """Lanes of earlier waves share no barrier with lanes of this one, so only the latter need clocks."""
        self.first_lane, self.lanes = first_lane, lanes
        self.warp_synced = None
        self.arrived = np.zeros((2, lanes), np.int32)  # step of arrival: newest, older
        self.behind = np.zeros(lanes, np.bool_)  # has not yet waited for the newest completed one
        self.landed: list[Values] = []  # for each mbarrier: step of each lane's last wait

    def sync_blocks(self, blocks: Values) -> None:
        self.block_synced[blocks] = self.step

    def sync_warps(self, lanes: Values, members: Values) -> None:
        """bar.warp.sync by the wave's `lanes`, each with the mask of its warp's members."""
        if self.warp_synced is None:
            self.warp_synced = np.zeros((self.lanes, 32), np.int32)
        took_part = (members[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)).astype(np.bool_)
        self.warp_synced[lanes] = np.where(took_part, self.step, self.warp_synced[lanes])

    def sync_clusters(self, lanes: Values, arrivals: Values) -> None:
        """Completes a cluster barrier of the wave's `lanes`; each arrived at its own step."""
        self.arrived[1, lanes] = self.arrived[0, lanes]
        self.arrived[0, lanes] = arrivals
        self.behind[lanes] = True

    def waited(self, lanes: Values) -> None:
        self.behind[lanes] = False

    def ordered(self, before: Values, scope: Values | int, step: Values, lane: Values) -> Values:
        """True where an access at `step` by `before` happens before the current one by `lane`.

        `scope` says what `before` stands for: itself (LANE), or several lanes of its WARP, BLOCK, CLUSTER or GRID.
        """
        block_before, block = before // self.stride, lane // self.stride
        same_block = block_before == block
        done = same_block & (scope <= BLOCK) & (step < self.block_synced[block])
        if done.all():
            return done
        done |= (before == lane) & (scope == LANE)
        if self.warp_synced is not None:
            done |= self._by_warp(before, scope, step, lane)
        if self.cluster > 1:
            done |= self._by_cluster(before, scope, step, lane)
        if self.landed:
            done |= self._by_mbarrier(before, step, lane)
        return done

    def _by_warp(self, before: Values, scope: Values | int, step: Values, lane: Values) -> Values:
        assert self.warp_synced is not None
        synced = self.warp_synced[lane - self.first_lane, before % 32]
        everyone = self.warp_synced[lane - self.first_lane].min(axis=-1) if np.any(scope == WARP) else synced
        since = np.where(scope == WARP, everyone, synced)
        return (before >> 5 == lane >> 5) & (scope <= WARP) & (step < since)

    def _by_cluster(self, before: Values, scope: Values | int, step: Values, lane: Values) -> Values:
        per_cluster = self.stride * self.cluster
        same = before // per_cluster == lane // per_cluster
        local = np.clip(before - self.first_lane, 0, self.lanes - 1)
        behind = self.behind[lane - self.first_lane].astype(np.intp)
        since = self.arrived[behind, local]
        if np.any(scope != LANE):
            block, cluster = self._earliest(self.stride), self._earliest(per_cluster)
            since = np.where(scope == CLUSTER, cluster[behind, local // per_cluster], since)
            since = np.where((scope == WARP) | (scope == BLOCK), block[behind, local // self.stride], since)
        return same & (scope <= CLUSTER) & (step < since)

    def _by_mbarrier(self, before: Values, step: Values, lane: Values) -> Values:
        done = np.zeros(before.shape, np.bool_)
        stores = np.flatnonzero(before >= ASYNC)
        if stores.size:
            waited = np.array(self.landed)[before[stores] - ASYNC, lane[stores] - self.first_lane]
            done[stores] = step[stores] < waited
        return done

    def _earliest(self, group: int) -> Values:
        """First arrival in each group of lanes, ignoring lanes that do not exist."""
        arrived = np.where(self.arrived == 0, np.iinfo(np.int32).max, self.arrived).reshape(2, -1, group).min(axis=2)
        return np.where(arrived == np.iinfo(np.int32).max, 0, arrived)

    def span(self, one: Values, other: Values) -> NDArray[np.int8]:
        """How far apart two lanes are, from LANE if they are the same up to GRID."""
        result = np.full(one.shape, GRID, np.int8)
        per_cluster = self.stride * self.cluster
        result[one // per_cluster == other // per_cluster] = CLUSTER
        result[one // self.stride == other // self.stride] = BLOCK
        result[one >> 5 == other >> 5] = WARP
        result[one == other] = LANE
        return result
