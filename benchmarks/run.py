"""The run: cells in rank order until the budget is spent, each written when it is done."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softmax_ops.artifacts import catalog

from .cells import Cell
from .device import Device
from .measure import DeviceLost, describe, measure
from .providers import Provider
from .results import Results, Row


def environment(device: Device) -> dict[str, Any]:
    """What figures depend on: the device's facts, and what the kernels and the benchmark are made of."""
    return {
        **device.facts(),
        "kernels": hashlib.sha256(catalog.location().read_bytes()).hexdigest()[:16],
        "method": _digest(Path(__file__).parent),
    }


def _digest(folder: Path) -> str:
    """Of what measures: cells and their reports may change without making figures old."""
    names = ("ceilings", "correctness", "device", "measure", "tensors", "timing", "triton_softmax")
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in names)).hexdigest()[:16]


def run(
    cells: Sequence[Cell],
    device: Device,
    providers: Sequence[Provider],
    path: Path,
    budget_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> Results:
    """Measures what the file at `path` lacks. Raises DeviceLost when nothing more can be measured."""
    results = Results.load(path)
    number = results.number_of(environment(device))
    left = [cell for cell in cells if not results.done(cell, number)]
    say(f"{device.name}: {len(cells) - len(left)} of {len(cells)} cells measured before; {path}")
    for provider in providers:
        if reason := provider.why_absent():
            say(f"absent: {provider.name}: {reason}")
    deadline = now() + budget_s
    for done, cell in enumerate(left):
        if now() >= deadline:
            say(f"budget spent: {len(left) - done} of {len(cells)} cells are left; run again to go on")
            break
        date = time.strftime("%Y-%m-%d")
        try:
            row = measure(cell, device, providers, date)
        except DeviceLost as lost:
            _keep(results, lost.row, number, path)
            raise
        say(describe(_keep(results, row, number, path)))
    return results


def _keep(results: Results, row: Row, number: int, path: Path) -> Row:
    row = replace(row, environment=number)
    results.rows[row.cell] = row
    results.save(path)
    return row
