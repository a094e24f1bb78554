"""Explains why a cell falls short: hardware counters of our kernel, read by Nsight Compute (ncu)."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .cells import Cell

METRICS = {
    "read": "dram__bytes_read.sum",
    "written": "dram__bytes_write.sum",
    "issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__thread_inst_executed.sum",
    "time": "gpu__time_duration.sum",
    "registers": "launch__registers_per_thread",
}
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "ns": 1e-3, "us": 1, "ms": 1e3, "nsecond": 1e-3}
UNITS |= {"usecond": 1, "msecond": 1e3}
"""Factors to bytes and microseconds for ncu's units; 1 for percentages and counts."""

TIMEOUT_S = 120

CHECKOUT = Path(__file__).resolve().parents[1]


class NoProfile(RuntimeError):
    """ncu is missing, or reported nothing."""


@dataclass(frozen=True)
class Profile:
    """Counters of all launches of one call together; percentages and registers are those of the longest launch."""

    cell: Cell
    kernels: tuple[str, ...]
    read: float
    written: float
    instructions: float
    time: float
    issue: float
    occupancy: float
    registers: float

    def __str__(self) -> str:
        moved = self.read + self.written
        return (
            f"{self.cell.key}: {', '.join(self.kernels)}\n"
            f"  DRAM {self.read / 1e6:.1f} MB read, {self.written / 1e6:.1f} written: "
            f"{moved / self.cell.bytes:.3f} of the {self.cell.bytes / 1e6:.1f} that must move; "
            f"{moved / self.time / 1e3:.0f} GB/s\n"
            f"  issue active {self.issue:.1f} %, occupancy {self.occupancy:.1f} %, {self.registers:.0f} registers, "
            f"{self.instructions / self.cell.elements:.1f} lane-instructions per element, {self.time:.1f} us"
        )


def profile(cell: Cell) -> Profile:
    """Runs the cell's kernel once under ncu, in a process of its own, without fixing clocks. Raises NoProfile."""
    ncu = shutil.which("ncu")
    if ncu is None:
        raise NoProfile("ncu is not here: install Nsight Compute")
    options = ["--csv", "--page", "raw", "--clock-control", "none", "--kernel-name", "regex:^softmax_(fwd|bwd)_"]
    options += ["--metrics", ",".join(METRICS.values())]
    command = [ncu, *options, sys.executable, "-m", "benchmarks", "once", cell.key]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise NoProfile(f"ncu was not done with {cell.key} after {TIMEOUT_S} s") from None
    if done.returncode:
        raise NoProfile(f"ncu failed: {(done.stdout + done.stderr).strip()[-300:]}")
    return read(cell, done.stdout)


def read(cell: Cell, said: str) -> Profile:
    """Parses the output of `ncu --csv --page raw`: a line of names, one of units, one per launch. Raises NoProfile."""
    start = said.find('"ID"')
    head, units, *launches = list(csv.reader(io.StringIO(said[start:]))) if start >= 0 else ([], [])
    if not launches:
        raise NoProfile(f"ncu saw no kernel of ours: {said.strip()[-300:]}")
    found = [{name: _number(row, head, units, metric) for name, metric in METRICS.items()} for row in launches]
    longest = max(found, key=lambda each: each["time"])
    summed = {name: sum(each[name] for each in found) for name in ("read", "written", "instructions", "time")}
    kernels = tuple(row[head.index("Kernel Name")] for row in launches)
    return Profile(cell, kernels, **summed, **{name: longest[name] for name in ("issue", "occupancy", "registers")})


def _number(row: list[str], head: list[str], units: list[str], metric: str) -> float:
    place = head.index(metric)
    return float(row[place].replace(",", "")) * UNITS.get(units[place], 1)


def once(cell: Cell) -> None:
    """One call on the GPU, for ncu to profile. The kernels that make the tensors have other names."""
    from . import tensors
    from .device import Cuda
    from .providers import ours

    device = Cuda()
    (made,) = tensors.make(cell, device.torch_device, 1, seed=0)
    ours.prepare(cell)(made)
    device.synchronize()
