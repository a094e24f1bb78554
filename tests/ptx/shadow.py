"""Shadow memory: which lanes wrote and read each granule last, and which bytes were ever written.

A granule is the largest piece that no access has split so far: it starts at 32 bytes and is halved when a narrower
access occurs, so that neighbouring bytes are never confused and wide accesses cost one entry each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fault import Fault
from .formats import Values
from .order import ASYNC, GRID, LANE, Order

NOBODY, HOST = -1, -2
_FIELDS = ("writer", "written", "reader", "readers", "read")
WIDEST = 32  # bytes of the widest access


class Shadow:
    """Shadow of one memory of `nbytes` bytes (a multiple of 32)."""

    def __init__(self, nbytes: int, initialised: bool) -> None:
        self.granule = WIDEST
        count = nbytes // WIDEST
        self.writer = np.full(count, HOST if initialised else NOBODY, np.int32)
        self.written = np.zeros(count, np.int32)  # step
        self.reader = np.full(count, NOBODY, np.int32)  # one of the readers since the last write
        self.readers = np.zeros(count, np.int8)  # how far apart they are: LANE ... GRID
        self.read = np.zeros(count, np.int32)  # step of the last of them

    def cells(self, position: Values, width: int) -> Values:
        """Granules of the accesses of `width` bytes at `position`: [accesses * granules each]."""
        while width < self.granule:
            self._split()
        first = position // self.granule
        count = width // self.granule
        if count == 1:
            return first
        return np.asarray((first[:, None] + np.arange(count)).ravel())

    def _split(self) -> None:
        self.granule //= 2
        for name in _FIELDS:
            setattr(self, name, np.repeat(getattr(self, name), 2))

    def track(
        self, position: Values, width: int, kind: str, lane: Values, order: Order, where: tuple[str, Values]
    ) -> None:
        """Records and checks an access ("read" or "write") by each lane; `where` is the place to report."""
        try:
            if kind == "read":
                self.on_read(position, width, lane, order)
            else:
                self.on_write(position, width, lane, order)
        except Fault as fault:
            first = int(where[1][np.argmax(lane == fault.lane)])
            fault.what += f": {where[0]}[{first}:{first + width}]"
            raise

    def on_read(self, position: Values, width: int, lane: Values, order: Order) -> None:
        cells = self.cells(position, width)
        if cells.size != lane.size:
            lane = np.repeat(lane, cells.size // lane.size)
        writer = self.writer[cells]
        if (writer == NOBODY).any():
            raise Fault("uninitialised", "reads bytes that were never written", int(lane[writer == NOBODY][0]))
        self._after_writer(cells, writer, lane, order, "read")
        self._join_readers(cells, lane, order)

    def on_write(self, position: Values, width: int, lane: Values, order: Order) -> None:
        cells = self.cells(position, width)
        if cells.size != lane.size:
            lane = np.repeat(lane, cells.size // lane.size)
        self._after_writer(cells, self.writer[cells], lane, order, "write")
        self._after_readers(cells, lane, order)
        self.writer[cells] = lane
        self.written[cells] = order.step
        self.reader[cells] = NOBODY
        if (clash := self.writer[cells] != lane).any():
            raise Fault("same-address", "two threads store to one address in one instruction", int(lane[clash][0]))

    def forget(self, position: Values, width: int) -> None:
        """Marks bytes that will change at an unknown time: reading them is an error until they are written."""
        cells = self.cells(position, width)
        self.writer[cells] = NOBODY

    def _after_writer(self, cells: Values, writer: Values, lane: Values, order: Order, verb: str) -> None:
        known = writer >= 0
        if not known.any():
            return
        if known.all():
            done = order.ordered(writer, LANE, self.written[cells], lane)
        else:
            done = ~known
            done[known] = order.ordered(writer[known], LANE, self.written[cells[known]], lane[known])
        if not done.all():
            first = int(np.argmin(done))
            raise Fault("race", f"{verb} races with a write by {_who(writer[first], order)}", int(lane[first]))

    def _after_readers(self, cells: Values, lane: Values, order: Order) -> None:
        reader = self.reader[cells]
        known = np.flatnonzero(reader >= 0)
        if not known.size:
            return
        at = cells[known]
        done = order.ordered(reader[known], self.readers[at], self.read[at], lane[known])
        if not done.all():
            first = known[np.argmin(done)]
            several = "" if self.readers[cells[first]] == LANE else " and others"
            what = f"write races with a read by {_who(reader[first], order)}{several}"
            raise Fault("race", what, int(lane[first]))

    def _join_readers(self, cells: Values, lane: Values, order: Order) -> None:
        """Earlier readers that are ordered before this one need not be tracked any more; it joins the others."""
        before, spread = self.reader[cells], self.readers[cells]
        known = (before >= 0) & ((before != lane) | (spread != LANE))
        if known.any():
            known[known] = ~order.ordered(before[known], spread[known], self.read[cells[known]], lane[known])
        self.reader[cells] = lane
        self.read[cells] = order.step
        winner = self.reader[cells]
        if not known.any() and (winner == lane).all():
            self.readers[cells] = LANE
            return
        span = order.span(winner, lane)
        span[known] = np.maximum(span[known], np.maximum(spread[known], order.span(before[known], lane[known])))
        for scope in range(LANE, GRID + 1):
            self.readers[cells[span == scope]] = scope

    def settle(self) -> None:
        """After a launch: what it wrote is initialised for the next one, and nothing races with it."""
        self.writer[self.writer >= 0] = HOST
        self.reader[:] = NOBODY

    def bytes_mask(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.repeat(which, self.granule)


def _who(lane: int, order: Order) -> str:
    if lane >= ASYNC:
        return "an asynchronous store"
    block, thread = divmod(int(lane), order.stride)
    return f"thread {thread} of block {block}"
