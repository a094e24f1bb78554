"""Runs one wave: groups of lanes by program counter, lowest first, and the barriers they wait at.

Lanes at the same program counter run as one group. The group with the lowest counter runs until it reaches the counter
of another group, which it joins, or a branch, barrier or exit. So lanes that diverged meet again after the branch. A
lane that must wait is parked. When nothing can run any more, complete barriers release their lanes; if there are none,
the kernel hangs, which is a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fault import Fault
from .formats import Values
from .lanes import WARP, Active
from .mbarriers import Mbarrier, waited
from .operands import Reader, Step
from .program import Instruction
from .spaces import State

RUNS, AT_BLOCK, AT_CLUSTER, AT_WARP, AT_MBARRIER, EXITED, ABSENT = range(7)
STEP_LIMIT = 2_000_000  # instructions of one wave, some 20 seconds: more are taken for an endless loop


@dataclass(frozen=True, slots=True)
class Code:
    """A compiled instruction: `step` if it falls through, otherwise `control`, which also moves the lanes."""

    instruction: Instruction
    guard: Reader | None
    step: Step | None = None
    control: Control | None = None


Control = Callable[["Scheduler", int, Active, "Active | None"], None]  # (…, pc, lanes here, lanes whose guard holds)


class Scheduler:
    """Lanes of one wave, by their position. `reached` and `executed` count lanes for each program counter."""

    def __init__(self, state: State, code: Sequence[Code], reached: list[int], executed: list[int]) -> None:
        self.state, self.code, self.reached, self.executed = state, code, reached, executed
        lanes = state.lanes
        self.runnable: dict[int, NDArray[np.intp]] = {0: np.flatnonzero(lanes.exists)}
        self.status = np.where(lanes.exists, RUNS, ABSENT).astype(np.int8)
        self.at = np.zeros(lanes.count, np.int32)  # program counter of a parked lane
        self.collective: dict[int, NDArray[np.intp]] = {}  # lanes parked at a warp operation
        self.current = 0
        self.arrived_at = np.zeros(lanes.count, np.int32)  # step of arrival at the open cluster barrier; 0: not yet
        self.may_pass = np.zeros(lanes.count, np.bool_)  # the cluster barrier it arrived at is complete
        self.awaited: dict[int, tuple[Mbarrier, int]] = {}  # by lane: the mbarrier and the parity of the phase

    def run(self) -> None:
        """Runs until every lane has exited."""
        try:
            while True:
                while self.runnable:
                    pc = min(self.runnable)
                    self._run_group(pc, self.runnable.pop(pc))
                if (self.status >= EXITED).all():
                    return
                self._release()
        except Fault as fault:
            raise fault.locate(self.code[self.current].instruction, self.state.lanes.stride) from None

    def _run_group(self, pc: int, index: NDArray[np.intp]) -> None:
        state, order = self.state, self.state.order
        limit = min(self.runnable, default=len(self.code))
        active = Active(index)
        while pc < limit:
            self.current = pc
            code = self.code[pc]
            self.reached[pc] += active.size
            chosen: Active | None = active if code.guard is None else self._guarded(code.guard, active)
            order.step += 1
            if chosen is not None:
                self.executed[pc] += chosen.size
            if code.control is not None:
                code.control(self, pc, active, chosen)
                return
            if chosen is not None and code.step is not None:
                code.step(state, chosen)
            pc += 1
        if pc >= len(self.code):
            self.exit(active)
        else:
            self.enqueue(pc, index)

    def _guarded(self, guard: Reader, active: Active) -> Active | None:
        holds = guard(self.state, active)
        if holds.all():
            return active
        return Active(active.index[holds]) if holds.any() else None

    # ---- where lanes go

    def enqueue(self, pc: int, index: NDArray[np.intp]) -> None:
        """Makes lanes continue at `pc`, together with those already there."""
        if not index.size:
            return
        if self.state.order.step - self.state.first_step > STEP_LIMIT:
            raise Fault("deadlock", f"still running after {STEP_LIMIT} instructions", self._lane(index[0]))
        there = self.runnable.get(pc)
        self.runnable[pc] = index if there is None else self._union(there, index)

    def _union(self, one: NDArray[np.intp], other: NDArray[np.intp]) -> Values:
        which = np.zeros(self.state.lanes.count, np.bool_)
        which[one] = True
        which[other] = True
        return np.flatnonzero(which)

    def rest(self, active: Active, chosen: Active | None) -> Values:
        """The active lanes whose guard does not hold."""
        if chosen is None:
            return active.index
        if chosen.size == active.size:
            return active.index[:0]
        other = np.ones(active.size, np.bool_)
        other[np.searchsorted(active.index, chosen.index)] = False
        return active.index[other]

    def park(self, status: int, pc: int, index: NDArray[np.intp]) -> None:
        self.status[index] = status
        self.at[index] = pc

    def resume(self, index: NDArray[np.intp]) -> None:
        """Makes parked lanes continue after the instruction at which they waited."""
        self.status[index] = RUNS
        for pc in np.unique(self.at[index]).tolist():
            self.enqueue(pc + 1, index[self.at[index] == pc])

    def exit(self, active: Active) -> None:
        self.status[active.index] = EXITED
        if self.state.lanes.cluster > 1:
            blocks = np.unique(active.index // self.state.lanes.stride)
            gone = (self.status.reshape(-1, self.state.lanes.stride)[blocks] >= EXITED).all(axis=1)
            if gone.any():
                self._expects_nothing(blocks[gone])
                self.state.shared.exit(blocks[gone] * self.state.lanes.stride, self.state.order)

    def _expects_nothing(self, blocks: Values) -> None:
        for one in self.state.mbarriers.values():
            if one.under_way and one.block in blocks:
                what = "block exits while asynchronous stores to its shared memory are under way"
                raise Fault("race", what, self._lane(one.block * self.state.lanes.stride))

    def complete(self, pc: int, index: NDArray[np.intp], members: Values) -> Values:
        """Of the lanes at a warp operation, those whose member mask is complete; the others stay parked here."""
        lanes = self.state.lanes
        warp = index // WARP
        here = lanes.mask_of(Active(index))
        missing = members & lanes.members[warp] & ~here[warp]
        outside = members >> lanes.in_warp[index] & np.uint32(1) == 0
        if outside.any():
            what = "executes a warp operation whose member mask leaves it out"
            raise Fault("missing lane", what, self._lane(index[np.argmax(outside)]))
        waits = index[missing != 0]
        self.park(AT_WARP, pc, waits)
        if waits.size:
            self.collective[pc] = waits
        return index[missing == 0]

    def _lane(self, index: int | np.intp) -> int:
        return self.state.lanes.first + int(index)

    # ---- when nothing can run

    def _release(self) -> None:
        blocks = self._complete_blocks()
        clusters = self._complete_clusters()
        mbarriers = self._complete_mbarriers()
        if not blocks and not clusters and not mbarriers:
            self._hang()

    def _complete_blocks(self) -> bool:
        """Releases blocks all of whose threads wait at one barrier."""
        lanes = self.state.lanes
        status = self.status.reshape(-1, lanes.stride)
        ready = ((status == AT_BLOCK) | (status == ABSENT)).all(axis=1)
        where = self.at.reshape(-1, lanes.stride)
        ready &= (np.where(lanes.exists.reshape(where.shape), where, where[:, :1]) == where[:, :1]).all(axis=1)
        blocks = np.flatnonzero(ready)
        if not blocks.size:
            return False
        self.state.order.step += 1
        self.state.order.sync_blocks(blocks + lanes.first_block)
        index = np.flatnonzero(np.repeat(ready, lanes.stride) & lanes.exists)
        self.resume(index)
        return True

    def _complete_clusters(self) -> bool:
        """Handles clusters all of whose threads have arrived: releases the lanes that wait for that."""
        lanes = self.state.lanes
        if lanes.cluster == 1 and not (self.status == AT_CLUSTER).any():
            return False
        there = (self.arrived_at > 0) | (self.status == ABSENT)
        ready = there.reshape(-1, lanes.stride * lanes.cluster).all(axis=1)
        index = np.flatnonzero(np.repeat(ready, lanes.stride * lanes.cluster) & lanes.exists)
        self.state.order.step += 1
        self.state.order.sync_clusters(index, self.arrived_at[index])
        self.arrived_at[index] = 0
        self.may_pass[index] = True
        waiting = np.flatnonzero((self.status == AT_CLUSTER) & self.may_pass)
        self.pass_cluster(waiting)
        self.resume(waiting)
        return bool(waiting.size)

    def pass_cluster(self, index: NDArray[np.intp]) -> None:
        self.may_pass[index] = False
        self.state.order.waited(index)

    def _complete_mbarriers(self) -> bool:
        """Releases lanes whose phase of an mbarrier is complete."""
        passing = sorted(lane for lane, (one, parity) in self.awaited.items() if not one.open(parity))
        if not passing:
            return False
        self.state.order.step += 1
        index = np.array(passing)
        waited(self.state, index, np.array([self.awaited.pop(lane)[0] for lane in passing], object))
        self.resume(index)
        return True

    def _hang(self) -> None:
        """Raises a fault that says why nothing can continue."""
        parked = np.flatnonzero((self.status != EXITED) & (self.status != ABSENT))
        first = int(parked[0])
        warps = np.flatnonzero(self.status == AT_WARP)
        if warps.size:
            first = int(warps[0])
            kind, what = "missing lane", f"waits for {self._absentees(first, WARP)}"
        elif first in self.awaited:
            kind, what = "deadlock", f"waits at an mbarrier where {self.awaited[first][0]}"
        else:
            group = self.state.lanes.stride
            group *= self.state.lanes.cluster if self.status[first] == AT_CLUSTER else 1
            start = first // group * group
            others = self.status[start : start + group]
            places = np.unique(self.at[start : start + group][(others != EXITED) & (others != ABSENT)])
            divergent = (others == EXITED).any() or places.size > 1
            kind = "divergent barrier" if divergent else "deadlock"
            what = f"waits for {self._absentees(first, group)}"
        self.current = int(self.at[first])
        raise Fault(kind, what, self._lane(first))

    def _absentees(self, first: int, group: int) -> str:
        """The threads of a warp, block or cluster that are not where `first` is."""
        start = first // group * group
        status, at = self.status[start : start + group], self.at[start : start + group]
        away = start + np.flatnonzero((status != ABSENT) & ((status == EXITED) | (at != at[first - start])))
        if not away.size:
            return "a barrier that never completes"
        lane = int(away[0])
        block, thread = divmod(self._lane(lane), self.state.lanes.stride)
        where = "has exited" if self.status[lane] == EXITED else f"waits at `{self.code[self.at[lane]].instruction}`"
        return f"{away.size} threads that are not here: thread {thread} of block {block} {where}"
