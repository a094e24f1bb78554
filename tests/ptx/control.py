"""Instructions that move lanes: branches, exits, barriers, and warp operations that wait for their members."""

from __future__ import annotations

import numpy as np

from . import mbarriers
from .fault import Fault
from .formats import Values
from .lanes import Active
from .operands import Reader, Step, address, reader, unsupported, writer
from .program import Immediate, Instruction
from .schedule import AT_BLOCK, AT_CLUSTER, AT_MBARRIER, Control, Scheduler


def control_of(instruction: Instruction) -> Control | None:
    """The control function of an instruction, or None if it simply falls through."""
    head = instruction.parts[:3]
    if head[0] == "bra":
        return _branch(instruction.target)
    if head[0] == "ret":
        return _exit
    if head[:2] == ("bar", "warp"):
        return None
    if head[:2] == ("barrier", "cluster"):
        return _cluster_arrive(instruction) if head[2] == "arrive" else _cluster_wait
    if head == ("mbarrier", "try_wait", "parity"):
        return _mbarrier_wait(instruction)
    if head[0] in ("bar", "barrier"):
        return _block_barrier(instruction)
    return None


def _branch(target: int) -> Control:
    def control(scheduler: Scheduler, pc: int, active: Active, chosen: Active | None) -> None:
        scheduler.enqueue(pc + 1, scheduler.rest(active, chosen))
        if chosen is not None:
            scheduler.enqueue(target, chosen.index)

    return control


def _first(scheduler: Scheduler, active: Active, which: Values) -> int:
    return scheduler.state.lanes.first + int(active.index[np.argmax(which)])


def _exit(scheduler: Scheduler, pc: int, active: Active, chosen: Active | None) -> None:
    scheduler.enqueue(pc + 1, scheduler.rest(active, chosen))
    if chosen is not None:
        scheduler.exit(chosen)


# ---- barriers of the block


def _block_barrier(instruction: Instruction) -> Control:
    """bar.sync and barrier.sync, for all threads of the block."""
    if [part for part in instruction.parts[1:] if part not in ("cta", "aligned")] != ["sync"]:
        raise unsupported(f"the barrier {instruction.opcode}")
    number, count = (*instruction.operands, None)[:2]
    if not isinstance(number, Immediate) or not isinstance(count, Immediate | None):
        raise unsupported("a barrier whose number or thread count is not a constant")

    def control(scheduler: Scheduler, pc: int, active: Active, chosen: Active | None) -> None:
        scheduler.enqueue(pc + 1, scheduler.rest(active, chosen))
        if chosen is None:
            return
        if count is not None and count.value != scheduler.state.lanes.stride:
            what = f"a barrier of {count.value} threads in a block of {scheduler.state.lanes.threads}"
            raise Fault("unsupported", what, _first(scheduler, chosen, np.array([True])))
        scheduler.park(AT_BLOCK, pc, chosen.index)

    return control


# ---- barriers of the cluster


def _cluster_arrive(instruction: Instruction) -> Control:
    relaxed = instruction.has("relaxed")

    def control(scheduler: Scheduler, pc: int, active: Active, chosen: Active | None) -> None:
        if chosen is not None:
            twice = (scheduler.arrived_at[chosen.index] > 0) | scheduler.may_pass[chosen.index]
            if twice.any():
                raise Fault("divergent barrier", "arrives again before it has waited", _first(scheduler, chosen, twice))
            state = scheduler.state
            # A relaxed arrival orders only what an earlier fence covers; 1 is before every access.
            ordered = np.maximum(state.fenced[chosen.index], 1) if relaxed else np.int32(state.order.step)
            scheduler.arrived_at[chosen.index] = ordered
        scheduler.enqueue(pc + 1, active.index)

    return control


def _cluster_wait(scheduler: Scheduler, pc: int, active: Active, chosen: Active | None) -> None:
    scheduler.enqueue(pc + 1, scheduler.rest(active, chosen))
    if chosen is None:
        return
    passing = scheduler.may_pass[chosen.index]
    never = ~passing & (scheduler.arrived_at[chosen.index] == 0)
    if never.any():
        raise Fault(
            "divergent barrier", "waits at a cluster barrier without arriving", _first(scheduler, chosen, never)
        )
    scheduler.pass_cluster(chosen.index[passing])
    scheduler.enqueue(pc + 1, chosen.index[passing])
    scheduler.park(AT_CLUSTER, pc, chosen.index[~passing])


# ---- mbarriers


def _mbarrier_wait(instruction: Instruction) -> Control:
    """mbarrier.try_wait, which may wait as long as it likes: here until the phase is complete."""
    out, where = writer(instruction.operands[0]), address(instruction.operands[1])
    parity = reader(instruction.operands[2], "u32")
    if len(instruction.operands) > 3:
        raise unsupported("a time limit of try_wait")

    def control(scheduler: Scheduler, pc: int, active: Active, chosen: Active | None) -> None:
        scheduler.enqueue(pc + 1, scheduler.rest(active, chosen))
        if chosen is None:
            return
        state = scheduler.state
        found = mbarriers.find(state, chosen, where(state, chosen))
        parities = np.broadcast_to(parity(state, chosen), chosen.size).tolist()
        waits = np.array([one.open(each) for one, each in zip(found, parities, strict=True)])
        out(state, chosen, np.ones(chosen.size, np.bool_))
        mbarriers.waited(state, chosen.index[~waits], found[~waits])
        scheduler.enqueue(pc + 1, chosen.index[~waits])
        scheduler.park(AT_MBARRIER, pc, chosen.index[waits])
        for place in np.flatnonzero(waits).tolist():
            scheduler.awaited[int(chosen.index[place])] = found[place], parities[place]

    return control


# ---- warp operations


def collective(members: Reader, step: Step) -> Control:
    """A warp operation: lanes wait until all lanes in their member mask have arrived."""

    def control(scheduler: Scheduler, pc: int, active: Active, chosen: Active | None) -> None:
        rest = scheduler.rest(active, chosen)
        if chosen is not None:
            parked = scheduler.collective.pop(pc, None)
            here = chosen if parked is None else Active(np.union1d(parked, chosen.index))
            masks = np.broadcast_to(members(scheduler.state, here), here.size)
            ready = scheduler.complete(pc, here.index, masks)
            if ready.size:
                scheduler.status[ready] = 0
                step(scheduler.state, here if ready.size == here.size else Active(ready))
                scheduler.enqueue(pc + 1, ready)
        scheduler.enqueue(pc + 1, rest)

    return control
