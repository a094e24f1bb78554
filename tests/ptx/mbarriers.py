"""mbarrier objects in shared memory, and the asynchronous stores that they count.

A store lands when the phase that counts it completes, the latest moment that the hardware allows: an earlier read gives
the old bytes. The store is ordered before what a lane does after waiting for that phase, whatever else that lane waited
for. Barriers and fences do not pass this order on to other lanes, although the hardware would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fault import Fault
from .formats import Values
from .lanes import Active
from .order import ASYNC, LANE
from .spaces import State

NBYTES = 8
NEVER = np.iinfo(np.int32).max  # the step assigned to a store that has not landed


@dataclass(eq=False)
class Mbarrier:
    """One object: arrivals and bytes that its open phase still waits for, and the stores that then land."""

    writer: int  # in the shadow, as the writer of the stores that it counts
    block: int
    initialiser: int  # lane
    initialised: int  # step
    arrivals: int
    missing: int
    bytes: int = 0
    phases: int = 0  # completed ones
    under_way: list[tuple[int, Values]] = field(default_factory=list)  # position, bytes

    def open(self, parity: int) -> bool:
        """True until the phase of this parity is complete."""
        return self.phases & 1 == parity

    def __str__(self) -> str:
        return f"{self.missing} arrivals and {self.bytes} bytes are missing"


def find(state: State, active: Active, address: Values) -> NDArray[Any]:
    """The object at each lane's address; its initialisation must be ordered before the current access."""
    positions = state.asynchronous("mbarrier operation", active, address, NBYTES)
    lanes = state.lanes.first + active.index
    found = np.empty(active.size, object)
    for position in np.unique(positions).tolist():
        here = positions == position
        one = state.mbarriers.get(position)
        if one is None:
            raise Fault("uninitialised", "uses an mbarrier that was never initialised", int(lanes[here][0]))
        before, step = (np.full(here.sum(), value) for value in (one.initialiser, one.initialised))
        ready = state.order.ordered(before, LANE, step, lanes[here])
        if not ready.all():
            what = "uses an mbarrier that another thread may still be initialising"
            raise Fault("race", what, int(lanes[here][np.argmin(ready)]))
        found[here] = one
    return found


def initialise(state: State, active: Active, address: Values, count: Any) -> None:
    """Each lane's object expects `count` arrivals in every phase."""
    lanes = (state.lanes.first + active.index).tolist()
    counts = np.broadcast_to(count, active.size).tolist()
    for _, storage, positions in state.places(active, "shared", address, NBYTES, "write"):
        for lane, position, arrivals in zip(lanes, positions.tolist(), counts, strict=True):
            if position in state.mbarriers:
                raise Fault("unsupported", "initialises an mbarrier a second time", lane)
            storage[position : position + NBYTES] = 0
            writer, block = ASYNC + len(state.mbarriers), position // state.shared.stride
            state.mbarriers[position] = Mbarrier(writer, block, lane, state.order.step, arrivals, arrivals)
            state.order.landed.append(np.zeros(state.lanes.count, np.int32))


def arrive(state: State, active: Active, address: Values, nbytes: Any) -> None:
    """One arrival by each lane, which adds `nbytes` to the bytes that the phase waits for."""
    for one, expected in zip(find(state, active, address), np.broadcast_to(nbytes, active.size).tolist(), strict=True):
        one.missing -= 1
        one.bytes += expected
        _complete(state, one)


def store(state: State, active: Active, address: Values, values: Values, counter: Values) -> None:
    """Stores [lanes, count] values, one access per lane, to the block whose mbarrier counts their bytes."""
    width = values.dtype.itemsize * values.shape[1]
    found = find(state, active, counter)
    positions = state.asynchronous("asynchronous store", active, address, width)
    shadow, lanes = state.shared.shadow, state.lanes.first + active.index
    shadow.track(positions, width, "write", lanes, state.order, ("shared", positions % state.shared.stride))
    cells = shadow.cells(positions, width)
    shadow.writer[cells] = np.repeat([one.writer for one in found], cells.size // active.size)
    shadow.written[cells] = NEVER
    for lane, one, position, value in zip(lanes.tolist(), found, positions.tolist(), values, strict=True):
        if position // state.shared.stride != one.block:
            raise Fault("bounds", "asynchronous store to another block than that of its mbarrier", lane)
        one.under_way.append((position, np.ascontiguousarray(value).view(np.uint8)))
        one.bytes -= width
        _complete(state, one)


def _complete(state: State, one: Mbarrier) -> None:
    """If nothing is missing any more, the stores land and the next phase begins."""
    if one.missing or one.bytes:
        return
    shadow = state.shared.shadow
    for position, data in one.under_way:
        state.shared.storage[position : position + data.size] = data
        shadow.written[shadow.cells(np.array([position]), data.size)] = state.order.step
    one.under_way = []
    one.missing = one.arrivals
    one.phases += 1


def waited(state: State, index: Values, found: NDArray[Any]) -> None:
    """Makes what landed known to these lanes of the wave."""
    for one in set(found.tolist()):
        state.order.landed[one.writer - ASYNC][index[found == one]] = state.order.step
