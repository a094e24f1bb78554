"""Runs a kernel over its grid, in waves of blocks, and reports what it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .lanes import Lanes, padded
from .memory import GlobalMemory, Traffic
from .operations import compile_program
from .order import ASYNC, Order
from .program import Program
from .schedule import Code, Scheduler
from .spaces import State

WAVE_LANES = 1 << 14  # lanes that run at once: enough to hide Python's overhead, few enough for the cache


@dataclass(frozen=True)
class Report:
    """What a launch did, counted in lanes (threads), except for `passes`, which are of warps.

    `traffic` has the accesses to each buffer, `passes` the passes through the load/store unit (passes.py) for "global",
    "shared" and "shuffle". `reached_at` and `executed_at` have one number per instruction of `program.instructions`:
    lanes that reached it, and lanes whose guard held.
    """

    program: Program
    traffic: dict[str, Traffic]
    passes: Counter[str]
    reached_at: tuple[int, ...]
    executed_at: tuple[int, ...]

    @property
    def executed(self) -> Counter[str]:
        """Executed lane-instructions by opcode."""
        counter: Counter[str] = Counter()
        for instruction, count in zip(self.program.instructions, self.executed_at, strict=True):
            counter[instruction.opcode] += count
        return counter


@lru_cache(maxsize=256)
def _compiled(program: Program) -> tuple[Code, ...]:
    return compile_program(program)


def run(
    program: Program,
    *,
    grid: int,
    block: int,
    params: bytes,
    memory: GlobalMemory,
    cluster: int = 1,
    shared_bytes: int = 0,
) -> Report:
    """Launches `grid` blocks of `block` threads; `shared_bytes` is the size of the dynamic shared memory.

    `params` are the bytes of the kernel's parameters. What the kernel wrote stays in memory. Raises Fault.
    """
    _check_launch(program, grid, block, cluster, params)
    memory.start()
    code = _compiled(program)
    passes: Counter[str] = Counter()
    reached, executed = [0] * len(code), [0] * len(code)
    order = Order(grid, padded(block), cluster)
    shared = program.shared_dynamic + shared_bytes if shared_bytes else program.shared_static
    data = np.frombuffer(params.ljust(-(-len(params) // 32) * 32, b"\0"), np.uint8)
    with np.errstate(all="ignore"):
        for first, blocks in waves(grid, block, cluster):
            lanes = Lanes(first, blocks, block, grid, cluster)
            lanes.registers = [None] * len(program.register_bits)
            order.start_wave(lanes.first, lanes.count)
            state = State(lanes, memory, data, program.param_bytes, order, shared, passes)
            Scheduler(state, code, reached, executed).run()
    return Report(program, memory.traffic(), passes, tuple(reached), tuple(executed))


def waves(grid: int, block: int, cluster: int) -> list[tuple[int, int]]:
    """(first block, blocks) of each wave; a cluster is never split."""
    size = max(WAVE_LANES // (padded(block) * cluster), 1) * cluster
    return [(first, min(size, grid - first)) for first in range(0, grid, size)]


def _check_launch(program: Program, grid: int, block: int, cluster: int, params: bytes) -> None:
    if grid < 1 or block < 1 or cluster < 1 or grid % cluster:
        raise ValueError(f"cannot launch {grid} blocks of {block} threads in clusters of {cluster}")
    if block > (program.max_threads or 1024):
        raise ValueError(f"{program.entry} allows {program.max_threads or 1024} threads per block, not {block}")
    if len(params) != program.param_bytes:
        raise ValueError(f"{program.entry} has {program.param_bytes} bytes of parameters, not {len(params)}")
    if grid * padded(block) >= ASYNC:
        raise ValueError(f"{grid} blocks of {block} threads are more lanes than the interpreter counts")
