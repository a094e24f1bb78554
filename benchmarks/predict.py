"""What an H200 would reach, predicted from instructions and bytes alone; kept apart from everything measured.

    share = min(instructions, accesses, flight, traffic)
    instructions   budget / lane-instructions per element, at most 1; the budget is 29 for the 4 bytes that an element
                   of a 16-bit forward moves, and proportional to the bytes otherwise
    accesses       budget / 128 passes per element, at most 1: an SM issues 128 lane-instructions in a cycle, while its
                   load/store unit takes a pass of a warp: a line of global memory, a set of words without a bank
                   conflict in shared memory, a shuffle (tests/ptx/passes.py)
    flight         bytes that the CTAs on an SM request before they wait / bytes that must be in flight, at most 1; the
                   latter is 48 KiB if half the traffic is reads, and proportional to that part otherwise
    traffic        bytes that must move / bytes that do, second reads included unless L2 holds the rows

Instructions are those that the interpreter executes for a full CTA of rows of this length, with the features that the
cell asks for, times the kernel's machine instructions per PTX instruction; with a causal mask or key lengths, half of
each row is visible. CTAs on an SM are limited by registers, threads, shared memory and the size of the launch.
Predictions are too favourable in that they ignore latency of launches, barriers and clusters, the last wave, and
phases in which no CTA loads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from codegen import build, disassembly, variants
from codegen.axes import Plan
from codegen.spec import Spec
from softmax_ops.artifacts import catalog, files
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.constants import ACCESS_BYTES, DTYPE_BYTES
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.explanation import explain_geometry
from softmax_ops.planning.geometry import (
    BIASED,
    General,
    Operand,
    broadcast_strides,
    contiguous_geometry,
    contiguous_strides,
    kind_of_general,
)
from softmax_ops.planning.launch_plan import LaunchPlan, plan
from tests.support.cases import full_cta
from tests.support.engines import InterpreterEngine
from tests.support.features import Features
from tests.support.work import INSTRUCTIONS_PER_BYTE, accesses, lane_instructions

from .cells import Cell
from .goals import SMALL_BYTES, least_share

FILE = Path(__file__).parent / "predictions" / "h200.json"
ARCH = "sm_90"

FLIGHT_BYTES = 48 << 10
MULTIPROCESSORS = 132
L2_BYTES = 60 << 20
SM_REGISTERS, SM_THREADS, SM_CTAS, SM_SHARED, CTA_SHARED = 65536, 2048, 32, 228 << 10, 1 << 10
"""H200: registers, threads, CTAs and shared memory of an SM, and the shared memory that each CTA takes for itself."""

IMPLIED = {
    ("causal", "fwd"): 0.75 / 0.78,
    ("causal", "bwd"): 0.667 / 0.70,
    ("padding", "fwd"): 0.97 / 1.02,
    ("bool", "fwd"): 0.97 / 1.06,
    ("like", "fwd"): 0.97 / 1.06,
    ("bias", "fwd"): 0.97 / 1.06,
}
"""Shares that the goals for masks imply, by mask and direction: bytes over the time allowed."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one cell."""

    cell: str
    variant: str
    source: str  # digest of the variant's source at the time of counting
    bytes: int  # bytes that must move
    planned_bytes: int  # bytes that do move, as `explain` counts them
    instructions: float  # per element
    accesses: float  # passes through the load/store unit per element, times the instructions that one takes
    budget: float  # instructions per element that bandwidth allows
    registers: int
    ctas_per_sm: float
    flight_bytes: int  # per SM
    shares: dict[str, float]
    goal: float | None  # share wanted; None without a goal, or if latency decides, which is not predicted

    @property
    def share(self) -> float:
        return min(self.shares.values())

    @property
    def limit(self) -> str:
        """Which term keeps the cell from the ceiling."""
        return min(self.shares, key=lambda name: self.shares[name]) if self.share < 1 else ""

    @property
    def falls_short(self) -> bool:
        return self.goal is not None and self.share < self.goal


def wanted(cell: Cell) -> float | None:
    """The share that a goal demands for a cell, stated or implied."""
    if cell.mask == "none":
        least = least_share(cell)
        return None if least is None else least[1]
    return None if cell.full_bytes <= SMALL_BYTES else IMPLIED[cell.mask, cell.direction]


# ---- what is asked for


def launch_plan(cell: Cell) -> LaunchPlan:
    kind = {"padding": "bool"}.get(cell.mask, cell.mask)
    dtype = cell.dtype if cell.result == cell.dtype else f"{cell.dtype}to{cell.result}"
    if is_general(cell) and not _is_biased(cell):
        general, operands = General(logarithms=_log(cell)), tuple(_operands(cell))
        kind = kind_of_general(general, (operand.name for operand in operands))
        of = contiguous_geometry(cell.shape, dtype, kind, direction=cell.direction)._replace(general=general)
        of = of._replace(operands=(*of.operands, *operands))
    else:
        of = contiguous_geometry(cell.shape, dtype, kind, direction=cell.direction, mask_shape=cell.mask_shape)
    return plan(of, catalog.load(), ARCH)


def is_general(cell: Cell) -> bool:
    return cell.mask == "bias" or bool(cell.asks)


def _is_biased(cell: Cell) -> bool:
    """Whether the cell's bias makes it a mask kind of its own."""
    return cell.mask == "bias" and not cell.asks and cell.dtype in BIASED


def _log(cell: Cell) -> bool:
    return cell.asks == "log"


def _operands(cell: Cell) -> Iterator[Operand]:
    """What a general request reads besides its inputs."""
    size = DTYPE_BYTES[cell.dtype]
    if cell.mask == "bias" and cell.mask_shape:
        yield Operand("bias", broadcast_strides(cell.mask_shape, cell.shape), ACCESS_BYTES, size)
    if cell.asks == "temperature":
        yield Operand("row_scale", (*contiguous_strides(cell.shape[:-1]), 0), ACCESS_BYTES, 4)
    if cell.asks == "lengths":
        yield Operand("lengths", (1, 0, 0, 0), ACCESS_BYTES, 4)


def features(cell: Cell) -> Features | None:
    """The cell's features for a full CTA; None if it asks for none."""
    if not is_general(cell):
        return None
    return Features(
        logarithms=_log(cell),
        bias="q" if cell.mask == "bias" else None,
        row_scale="q" if cell.asks == "temperature" else None,
        lengths=cell.asks == "lengths",
    )


# ---- counting


class Work(NamedTuple):
    """Per element, both in lane-instructions."""

    instructions: float
    accesses: float


class Counter:
    """Compiles every variant that the cells need, and counts what they execute. Raises ToolchainError."""

    def __init__(self, specs: Iterable[Spec]):
        specs = sorted(set(specs), key=lambda spec: spec.name)
        kept = user_cache()
        ptx = build.build(specs, [ARCH], kept, kind="ptx", progress=False)
        self.cubins = {each.variant: each for each in build.build(specs, [ARCH], kept, progress=False).cubins}
        self._opcodes = disassembly.opcodes(self.cubins.values())
        self._engine = InterpreterEngine({each.variant: each for each in ptx.cubins})
        self.work = cache(self._count)

    def _count(self, name: str, k: int, causal: bool, features: Features | None) -> Work:
        """The work of a full CTA; all launches of a plan that has several."""
        case = full_cta(variants.by_name()[name], k)
        if causal:
            case = replace(case, causal_offset=(k - case.shape[-2]) // 2)  # rows see half their columns on average
        if features is not None:
            case = replace(case, features=features)
        if features is not None and features.lengths:  # of two batches, one sees everything and the other nothing
            _, heads, rows, _ = case.shape
            case = replace(case, shape=(2, heads, -(-rows // 2), k))
        call = case.call()
        reports = self._engine.run(call.plan, call.operands).reports
        return Work(
            instructions=lane_instructions(reports, self._opcodes[name], call.elements),
            accesses=accesses(reports, call.elements),
        )


# ---- predicting


def predict(cells: Iterable[Cell]) -> list[Prediction]:
    planned = [(cell, launch_plan(cell)) for cell in cells]
    counter = Counter(variants.by_name()[each.variant.name] for _, each in planned)
    return [_predict(cell, each, counter) for cell, each in planned]


def _predict(cell: Cell, of: LaunchPlan, counter: Counter) -> Prediction:
    name = of.variant.name
    explained = explain_geometry(of.geometry, ARCH)
    work = counter.work(name, cell.k, cell.causal, features(cell))
    budget = INSTRUCTIONS_PER_BYTE * cell.bytes / cell.elements
    ctas = min(resident(of, counter.cubins[name]), of.launches[0].grid / MULTIPROCESSORS)
    flight = round(ctas * asked_by_cta(of) * cell.visible / cell.elements)
    shares = {
        "instructions": min(budget / work.instructions, 1.0),
        "accesses": min(budget / work.accesses, 1.0),
        "flight": min(flight / _under_way(cell), 1.0),
        "traffic": cell.bytes / _moved(cell, of, ctas),
    }
    return Prediction(
        cell=cell.key,
        variant=name,
        source=of.variant.source,
        bytes=cell.bytes,
        planned_bytes=explained.bytes_read + explained.bytes_written,
        instructions=round(work.instructions, 2),
        accesses=round(work.accesses, 2),
        budget=round(budget, 2),
        registers=counter.cubins[name].registers,
        ctas_per_sm=round(ctas, 2),
        flight_bytes=flight,
        shares={key: round(share, 3) for key, share in shares.items()},
        goal=wanted(cell),
    )


def resident(of: LaunchPlan, cubin: Cubin) -> int:
    """CTAs resident on an SM, each quarter of which has registers for warps of its own, allocated in units of 256."""
    threads = of.launches[0].threads
    per_warp = -(-cubin.registers * 32 // 256) * 256
    warps = 4 * (SM_REGISTERS // 4 // per_warp)
    shared = of.variant.shared_bytes + cubin.shared_bytes + CTA_SHARED
    return min(warps // (threads // 32), SM_THREADS // threads, SM_SHARED // shared, SM_CTAS)


def asked_by_cta(of: LaunchPlan) -> int:
    """Bytes of the inputs that a CTA requests before it waits: of its rows, its part of a row, or a piece."""
    variant, launch = of.variant, of.launches[0]
    columns = min(-(-of.geometry.k // launch.cluster), variant.piece or of.geometry.k)
    rows = -(-launch.rows // launch.grid) if variant.plan == Plan.TILE.label else variant.rows
    return rows * columns * sum(operand.element_bytes for operand in of.geometry.inputs)


def _under_way(cell: Cell) -> float:
    """Bytes of reads in flight per SM that saturate DRAM together with the cell's writes."""
    written = cell.elements * DTYPE_BYTES[cell.result]
    return FLIGHT_BYTES * 2 * (1 - written / cell.bytes)


def _moved(cell: Cell, of: LaunchPlan, ctas: float) -> int:
    """Bytes that move: the second read of a row comes from L2 if half of L2 holds everything read in between."""
    if not of.variant.piece:
        return cell.bytes
    row = cell.k * sum(operand.element_bytes for operand in of.geometry.inputs)
    between = row * (cell.rows if of.variant.splits else ctas * MULTIPROCESSORS)
    again = 0 if between <= L2_BYTES / 2 else cell.rows * row
    return cell.bytes + again


# ---- the file


def save(predictions: list[Prediction], path: Path = FILE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(each)) for each in predictions)
    head = f'{{"device": "H200, predicted, never measured", "date": "{time.strftime("%Y-%m-%d")}",\n"cells": [\n'
    files.replace(path, f"{head}{lines}\n]}}\n")


def load(path: Path = FILE) -> tuple[str, list[Prediction]]:
    """(date, predictions) of a file."""
    data = json.loads(path.read_text())
    return data["date"], [Prediction(**each) for each in data["cells"]]


def stale(predictions: Iterable[Prediction], cells: Iterable[Cell]) -> list[str]:
    """Cells that now run another kernel, or the same kernel with changed source."""
    known = {each.cell: (each.variant, each.source) for each in predictions}
    found = []
    for cell in cells:
        variant = launch_plan(cell).variant
        if known.get(cell.key) != (variant.name, variant.source):
            found.append(cell.key)
    return found
