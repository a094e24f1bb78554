"""mbarriers, the stores that they count, and fences. The wait is in control.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import mbarriers
from ..formats import DTYPE
from ..lanes import Active
from ..operands import Step, address, reader, unsupported
from ..program import Instruction, Name, Vector
from ..spaces import State
from .registry import modifiers, operation

_SCOPES = {"relaxed", "release", "cta", "cluster", "shared", "shared::cta"}


@operation("mbarrier.init")
def build_init(instruction: Instruction) -> Step:
    modifiers(instruction, {"shared", "shared::cta"}, skip=2)
    where, count = address(instruction.operands[0]), reader(instruction.operands[1], "u32")
    return lambda state, active: mbarriers.initialise(state, active, where(state, active), count(state, active))


@operation("mbarrier.arrive")
def build_arrive(instruction: Instruction) -> Step:
    """Supported only without the phase's state as a result: waits are by parity."""
    found = modifiers(instruction, {"expect_tx", *_SCOPES}, skip=2)
    target, place, *rest = instruction.operands
    if not (isinstance(target, Name) and target.name == "_") or len(rest) != ("expect_tx" in found):
        raise unsupported("this form of mbarrier.arrive")
    where, nbytes = address(place), reader(rest[0], "u32") if rest else _nothing
    return lambda state, active: mbarriers.arrive(state, active, where(state, active), nbytes(state, active))


def _nothing(state: State, active: Active) -> Any:
    return np.uint32(0)


@operation("st.async")
def build_store(instruction: Instruction) -> Step:
    found = modifiers(instruction, {"weak", "shared::cluster", "mbarrier::complete_tx::bytes", "v2", "v4"}, skip=2)
    if "shared::cluster" not in found:
        raise unsupported("st.async without .shared::cluster")
    target, source, counter = instruction.operands
    kind, parts = instruction.type, source.parts if isinstance(source, Vector) else (source,)
    where, counts, reads = address(target), address(counter), [reader(part, kind) for part in parts]

    def step(state: State, active: Active) -> None:
        values = np.empty((active.size, len(reads)), DTYPE[kind])
        for place, read in enumerate(reads):
            values[:, place] = read(state, active)
        mbarriers.store(state, active, where(state, active), values, counts(state, active))

    return step


@operation("fence")
def build_fence(instruction: Instruction) -> Step:
    """fence.acq_rel and the one for initialised mbarriers; those of block scope order nothing between blocks."""
    if strange := set(instruction.parts[1:]) - {"acq_rel", "mbarrier_init", "release", "cta", "cluster", "gpu", "sys"}:
        raise unsupported(f"fence .{' .'.join(sorted(strange))}")
    return _nothing if instruction.has("cta") else State.fence
