"""Operations of a warp: shuffles, votes, reductions. They exchange values and order no memory access."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..control import collective
from ..fault import Fault
from ..formats import DTYPE, Values
from ..lanes import WARP, Active
from ..operands import reader, unsupported, writer
from ..program import Instruction, Name, Pair
from ..schedule import Control
from ..spaces import State
from .floats import maximum, minimum
from .registry import modifiers, warp_operation


def _spread(values: Any, active: Active) -> Values:
    return np.broadcast_to(values, active.size)


def source_lane(mode: str, lane: Values, b: Values, c: Values) -> tuple[Values, Values]:
    """(lane of the warp to read, in range) of a shuffle; out of range a lane reads itself.

    c holds the clamp value in bits 0-4 and the segment mask in bits 8-12.
    """
    segment = c >> 8 & 31
    by, low = b & 31, lane & segment
    high = low | (c & 31 & ~segment)
    if mode == "up":
        source = lane - by
        inside = source >= high
    else:
        source = {"down": lane + by, "bfly": lane ^ by, "idx": low | (by & ~segment)}[mode]
        inside = source <= high
    return np.where(inside, source, lane), inside


@warp_operation("shfl.sync")
def build_shuffle(instruction: Instruction) -> Control:
    """shfl.sync.mode.b32 d{|p}, a, b, c, mask"""
    mode = instruction.parts[2]
    if mode not in ("up", "down", "bfly", "idx"):
        raise unsupported(f"shuffle mode .{mode}")
    target = instruction.operands[0]
    pair = target if isinstance(target, Pair) else Pair(target, Name("_"))  # without d|p, p is the sink
    out, out_inside = writer(pair.first), writer(pair.second)
    value = reader(instruction.operands[1], "b32")
    b, c, mask = (reader(operand, "u32") for operand in instruction.operands[2:5])

    def step(state: State, active: Active) -> None:
        lanes = state.lanes
        lane = active.index % WARP
        by, clamp = (np.asarray(read(state, active)).astype(np.int64) for read in (b, c))
        source, inside = source_lane(mode, lane, by, clamp)
        members = _spread(mask(state, active), active) & lanes.members[active.index // WARP]
        absent = members >> source.astype(np.uint32) & np.uint32(1) == 0
        if absent.any():
            first = int(np.argmax(absent))
            what = f"shuffles from lane {int(source[first])}, which is not in its member mask {int(members[first]):#x}"
            raise Fault("missing lane", what, lanes.first + int(active.index[first]))
        state.passes["shuffle"] += np.unique(active.index // WARP).size
        everyone = np.zeros(lanes.count, np.uint32)
        everyone[active.select] = value(state, active)
        out(state, active, everyone[active.index - lane + source])
        out_inside(state, active, inside)

    return collective(mask, step)


def _masks(state: State, active: Active, holds: Values) -> Values:
    """For each active lane, the mask of the lanes of its warp for which `holds` is true."""
    which = np.zeros(state.lanes.count, np.bool_)
    which[active.select] = holds
    return np.asarray(state.lanes.masks(which)[active.index // WARP])


@warp_operation("vote.sync")
def build_vote(instruction: Instruction) -> Control:
    """vote.sync.all, .any, .uni or .ballot"""
    mode = instruction.parts[2]
    out = writer(instruction.operands[0])
    source, mask = reader(instruction.operands[1], "pred"), reader(instruction.operands[2], "u32")

    def step(state: State, active: Active) -> None:
        members = _spread(mask(state, active), active) & state.lanes.members[active.index // WARP]
        votes = _masks(state, active, source(state, active)) & members
        if mode == "ballot":
            out(state, active, votes)
        elif mode == "any":
            out(state, active, votes != 0)
        elif mode == "all":
            out(state, active, votes == members)
        else:
            out(state, active, (votes == members) | (votes == 0))

    return collective(mask, step)


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@warp_operation("redux.sync")
def build_redux(instruction: Instruction) -> Control:
    """redux.sync.op.type d, a, mask"""
    kind, name = instruction.type, instruction.parts[2]
    found = modifiers(instruction, {name}, skip=2)
    if name not in _REDUCTIONS or found != {name}:
        raise unsupported(f"the reduction {instruction.opcode}")
    combine = {"min": minimum, "max": maximum}[name] if kind == "f32" else _REDUCTIONS[name]
    out = writer(instruction.operands[0])
    source, mask = reader(instruction.operands[1], kind), reader(instruction.operands[2], "u32")

    def step(state: State, active: Active) -> None:
        lanes = state.lanes
        members = _spread(mask(state, active), active) & lanes.members[active.index // WARP]
        everyone = np.zeros(lanes.count, DTYPE[kind])
        everyone[active.select] = source(state, active)
        warps = everyone.reshape(-1, WARP)[active.index // WARP]
        result, started = warps[:, 0].copy(), members & np.uint32(1) != 0
        for lane in range(1, WARP):
            takes_part = members >> np.uint32(lane) & np.uint32(1) != 0
            combined = np.where(started, combine(result, warps[:, lane]), warps[:, lane])
            result = np.where(takes_part, combined, result)
            started = started | takes_part
        out(state, active, result)

    return collective(mask, step)


@warp_operation("bar.warp")
def build_warp_barrier(instruction: Instruction) -> Control:
    """bar.warp.sync mask: the only operation of a warp that orders memory accesses."""
    mask = reader(instruction.operands[0], "u32")

    def step(state: State, active: Active) -> None:
        state.order.sync_warps(active.index, _spread(mask(state, active), active))

    return collective(mask, step)
