"""cp.async: copies from global to shared memory that complete when the lane waits for them.

A copy is checked for races twice: when it is issued (from then on the bytes are in flight, and reading them is an
error) and when it completes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..formats import Values
from ..lanes import Active
from ..operands import Step, address, reader, unsupported
from ..program import Immediate, Instruction
from ..spaces import State
from .registry import operation


class Copy(NamedTuple):
    """Copies issued by one instruction: one entry per lane. `size` bytes are read; the rest of `width` becomes zero."""

    lanes: Values
    group: Values
    target: Values
    source: Values
    size: Values
    width: int

    def of(self, which: Values) -> Copy:
        return Copy(
            self.lanes[which], self.group[which], self.target[which], self.source[which], self.size[which], self.width
        )


@operation("cp.async")
def build_copy(instruction: Instruction) -> Step:
    form = instruction.parts[2]
    if form == "commit_group":
        return _commit
    if form == "wait_group":
        return _wait(instruction)
    if form == "wait_all":
        return lambda state, active: complete(state, active, None)
    if form not in ("ca", "cg"):
        raise unsupported(f"cp.async.{form}")
    return _issue(instruction)


def _issue(instruction: Instruction) -> Step:
    """cp.async.ca|cg.shared.global [target], [source], width{, size}"""
    operands = instruction.operands
    if not isinstance(operands[2], Immediate):
        raise unsupported("cp.async of a width that is not a constant")
    width, target, source = operands[2].value, address(operands[0]), address(operands[1])
    hinted = instruction.has("L2::cache_hint")
    given = operands[3:-1] if hinted else operands[3:]
    size = reader(given[0], "u32") if given else None

    def step(state: State, active: Active) -> None:
        to, start = target(state, active), source(state, active)
        count = np.full(active.size, width) if size is None else np.broadcast_to(size(state, active), active.size)
        for _ in state.places(active, "shared", to, width, "write"):
            pass
        positions = state.shared.positions(to, width, "write", active)
        state.shared.shadow.forget(positions, width)
        group = state.groups[active.index]
        state.copies.append(Copy(active.index, group, to, start, count.astype(np.int64), width))

    return step


def _commit(state: State, active: Active) -> None:
    state.groups[active.index] += 1


def _wait(instruction: Instruction) -> Step:
    """cp.async.wait_group n: completes all groups of this lane except the newest n."""
    allowed = instruction.operands[0]
    if not isinstance(allowed, Immediate):
        raise unsupported("cp.async.wait_group of a number that is not a constant")
    return lambda state, active: complete(state, active, allowed.value)


def complete(state: State, active: Active, allowed: int | None) -> None:
    """Performs the copies that the active lanes wait for; `allowed` None: all copies, committed or not."""
    waits = np.zeros(state.lanes.count, np.bool_)
    waits[active.index] = True
    pending: list[Copy] = []
    for copy in state.copies:
        done = waits[copy.lanes]
        if allowed is not None:
            done = done & (copy.group < state.groups[copy.lanes] - allowed)
        if done.any():
            _carry_out(state, copy.of(done))
        if not done.all():
            pending.append(copy.of(~done))
    state.copies = pending


def _carry_out(state: State, copy: Copy) -> None:
    data = np.zeros((copy.lanes.size, copy.width), np.uint8)
    for size in np.unique(copy.size).tolist():
        which = copy.size == size
        if size:
            part = Active(copy.lanes[which])
            data[which, :size] = state.load(part, "global", copy.source[which], np.uint8, size)
    state.store(Active(copy.lanes), "shared", copy.target, data)
