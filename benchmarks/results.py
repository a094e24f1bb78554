"""Results of a machine: one JSON file, rewritten whole after each cell, so that a run can stop at any time.

A row belongs to the environment that measured it: device, driver, versions, sources. While the facts that decide
figures stay the same, a cell with a figure is done; otherwise it is measured again and the newer row replaces the
older one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from softmax_ops.artifacts import files

from . import ceilings
from .cells import Cell
from .providers import OURS
from .timing import Spread, spread

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"
FILE = "cells.json"

TURN_LIMIT_S = 60.0
"""Time of a provider's turn in a cell, compilers included, after which it counts as hanging."""

PATIENCE = 3
"""Kernels that fail in consecutive cells and thereby end a run: after so many, it is not the kernel."""

DECIDING = ("device", "torch", "triton", "kernels", "method", "package")
"""The facts of an environment that decide figures: if one changes, figures are stale. The others are only reported."""


@dataclass(frozen=True)
class Row:
    """One measured cell. Times are microseconds of one call, a number per round; names are those of providers.

    ceilings    times of copies, which moved `ceiling_bytes`.
    errors      largest error in units of its bound (correctness.py); `wrong` are the providers beyond what is allowed.
    absent      why a provider cannot run on the machine; `refused`: why it does not take this cell; `failed`: what it
                raised, or under "cell" what the whole cell raised.
    lost        what it raised when it took the process with it: nothing more could be measured there.
    """

    cell: str
    bytes: int
    date: str
    environment: int = 0
    sets: int = 0
    kernel: str | None = None
    clocks: dict[str, int] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    ceilings: dict[str, list[float]] = field(default_factory=dict)
    ceiling_bytes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def is_failure(self) -> bool:
        """Whether ours raised or was wrong, or no ceiling was measured, so that there is no figure."""
        return OURS in self.failed or OURS in self.wrong or not self.ceilings

    def is_done(self, present: Set[str]) -> bool:
        """Whether the cell needs no further run with these providers. A failure is tried again, unless ours or a
        ceiling took the process with it: a peer that did is left out then. So is a cell measured without one of the
        peers, because it was left out or not installed."""
        if self.is_failure:
            return not self.lost.keys().isdisjoint({OURS, *ceilings.NAMES})
        return not (self.absent.keys() & present) - self.lost.keys()

    @property
    def why(self) -> str:
        """The reason for a row without a figure of ours."""
        if OURS in self.wrong:
            return f"wrong by {self.errors[OURS]} times its bound"
        raised = {**self.failed, **self.lost}
        return self.refused.get(OURS) or "; ".join(f"{name}: {words}" for name, words in raised.items())

    def ended(self, name: str, why: str) -> Row:
        """The row of a cell that was not measured to its end: by whose turn, or by nobody's, and why."""
        return replace(self, lost={**self.lost, name: why}) if name else replace(self, failed={"cell": why})

    def compared(self, name: str) -> bool:
        """Whether a provider has a figure that counts."""
        return name in self.times and name not in self.wrong

    @property
    def ceiling(self) -> str:
        """The name of the fastest copy."""
        return min(self.ceilings, key=lambda name: spread(self._scaled(name)).median)

    def _scaled(self, ceiling: str) -> list[float]:
        share = self.bytes / self.ceiling_bytes[ceiling]
        return [value * share for value in self.ceilings[ceiling]]

    @property
    def ceiling_us(self) -> float:
        """The ceiling's time for the bytes of the cell."""
        return spread(self._scaled(self.ceiling)).median

    def us(self, name: str) -> Spread:
        return spread(self.times[name])

    def share(self, name: str) -> Spread:
        """Ceiling time / provider's time, within each round."""
        pairs = zip(self._scaled(self.ceiling), self.times[name], strict=True)
        return spread([ceiling / own for ceiling, own in pairs])

    def ratio(self, name: str, other: str = OURS) -> float:
        """Median over rounds of the time of a provider or ceiling over that of another."""
        return spread([own / theirs for own, theirs in self._pairs(name, other)]).median

    def beyond(self, name: str, other: str) -> float:
        """Median over rounds of the microseconds by which one takes longer than the other."""
        return spread([own - theirs for own, theirs in self._pairs(name, other)]).median

    def _pairs(self, name: str, other: str) -> Iterator[tuple[float, float]]:
        measured = self.ceilings | self.times
        return zip(measured[name], measured[other], strict=True)

    def gigabytes_per_second(self, name: str) -> float:
        return self.bytes / self.us(name).median / 1e3


@dataclass
class Results:
    """Everything measured on one device."""

    environments: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)

    def row(self, cell: Cell) -> Row | None:
        return self.rows.get(cell.key)

    def good(self, cell: Cell) -> Row | None:
        """The row of a cell, if it has a figure of ours."""
        row = self.row(cell)
        return None if row is None or row.is_failure or not row.compared(OURS) else row

    def number_of(self, environment: dict[str, Any]) -> int:
        """The environment's index in the list; a new one is appended."""
        if environment not in self.environments:
            self.environments.append(environment)
        return self.environments.index(environment)

    def current(self, environment: dict[str, Any]) -> dict[str, Row]:
        """The rows measured under the same deciding facts, by the keys of their cells."""
        same = [all(then.get(fact) == environment.get(fact) for fact in DECIDING) for then in self.environments]
        return {key: row for key, row in self.rows.items() if same[row.environment]}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps(self.environments, indent=1)
        rows = ",\n".join(json.dumps(asdict(row)) for row in self.rows.values())
        files.replace(path, f'{{"schema": {SCHEMA},\n"environments": {head},\n"rows": [\n{rows}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Results:
        """The contents of a file; empty results if it does not exist. Raises ValueError for another schema."""
        if not path.exists():
            return cls()
        data = json.loads(path.read_text())
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{path} has schema {data.get('schema')}, this program reads {SCHEMA}: move it away")
        rows = [Row(**{**row, "wrong": tuple(row["wrong"])}) for row in data["rows"]]
        return cls(data["environments"], {row.cell: row for row in rows})


def folder_of(device: str) -> str:
    """The name of a device's folder.

    >>> folder_of("NVIDIA H200")
    'nvidia-h200'
    """
    return "-".join(device.lower().replace("/", " ").split())
