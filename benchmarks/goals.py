"""What the kernels must reach on an H200, each goal beside its measured figure, or "not measured" and why."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .cells import ELEMENT_BYTES, SMALL, Cell, cells
from .costs import Costs
from .providers import OURS
from .results import Results, Row

SMALL_BYTES = 40_000_000
CAUSAL_QUERIES = 1024


@dataclass(frozen=True)
class Check:
    """One figure that has to be at least, or at most, a limit."""

    where: str
    value: float
    limit: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def margin(self) -> float:
        """Negative where it falls short, as a part of the limit."""
        short = self.value - self.limit if self.at_least else self.limit - self.value
        return short / self.limit


@dataclass(frozen=True)
class Verdict:
    """A goal with what has been measured of it."""

    number: int
    what: str
    goal: str
    checks: tuple[Check, ...]
    wanted: int  # checks that a whole run would give
    reason: str  # why nothing is measured

    @property
    def state(self) -> str:
        if not self.checks:
            return "not measured"
        if not all(check.met for check in self.checks):
            return "missed"
        return "met" if len(self.checks) >= self.wanted else "met so far"

    @property
    def figure(self) -> str:
        """The worst figure, and how many there are."""
        if not self.checks:
            return f"not measured: {self.reason}"
        worst = min(self.checks, key=lambda check: check.margin)
        missed = sum(not check.met for check in self.checks)
        count = f"{len(self.checks)} of {self.wanted}"
        figure = f"worst {round(worst.value, 3):,.10g} (goal {worst.limit:,.10g}) at {worst.where}"
        return f"{figure}; {missed} missed, {count} measured"


def verdicts(results: Results, costs: Costs) -> list[Verdict]:
    """Of every goal, in order."""
    return [*_forward(results), *(goal(results) for goal in _MEASURED_BY_CELLS), *_of_costs(costs)]


def _verdict(number: int, what: str, goal: str, checks: Iterable[Check], wanted: int) -> Verdict:
    return Verdict(number, what, goal, tuple(checks), wanted, "no GPU has run these cells")


def _pairs(results: Results, chosen: Iterable[Cell], other: Callable[[Cell], Cell]) -> list[tuple[Cell, Row, Row]]:
    """Rows of a cell and of another one, measured in one environment."""
    found = []
    for cell in chosen:
        row, beside = results.good(cell), results.good(other(cell))
        if row and beside and row.environment == beside.environment:
            found.append((cell, row, beside))
    return found


def least_share(cell: Cell) -> tuple[int, float] | None:
    """(goal, share of the ceiling) of an unmasked cell that is so large that bandwidth decides; None for others.

    No goal is about what a cell asks for beside a scale and a mask.
    """
    if cell.mask != "none" or cell.asks or cell.full_bytes <= SMALL_BYTES or cell.k < 8:
        return None
    if cell.direction == "bwd":
        return 4, 0.97
    if cell.k < 128:
        return 3, 0.95
    if cell.aligned:
        return (1, 0.97) if cell.k <= 262144 else None
    return 2, 0.95 if cell.k * ELEMENT_BYTES[cell.dtype] >= 2048 else 0.92


def _shares(results: Results, number: int) -> tuple[list[Check], int]:
    """Of the cells of a goal, and how many there are."""
    chosen = [(cell, least[1]) for cell in cells() if (least := least_share(cell)) and least[0] == number]
    checks = [
        Check(cell.key, row.share(OURS).median, least, True) for cell, least in chosen if (row := results.good(cell))
    ]
    return checks, len(chosen)


def _forward(results: Results) -> list[Verdict]:
    texts = (
        (1, "forward, K = 128 .. 262144 aligned, every dtype", ">= 0.97 of copy speed in every cell"),
        (2, "forward, odd or misaligned K", ">= 0.95 (rows >= 2 KB), >= 0.92 shorter"),
        (3, "forward, K = 8 .. 127", ">= 0.95"),
    )
    return [_verdict(number, what, goal, *_shares(results, number)) for number, what, goal in texts]


def _backward(results: Results) -> Verdict:
    checks, wanted = _shares(results, 4)
    checks += [
        Check(f"{cell.key} against torch", row.ratio("torch.softmax"), 1.9, True)
        for cell in cells()
        if least_share(cell) == (4, 0.97) and (row := results.good(cell)) and row.compared("torch.softmax")
    ]
    goal = ">= 0.97 of 2-read-1-write; >= 1.9x torch's softmax backward"
    return _verdict(4, "backward", goal, checks, 2 * wanted)


def _causal_cells(direction: str) -> list[Cell]:
    return [
        cell
        for cell in cells()
        if cell.causal and cell.direction == direction and cell.shape[2] == cell.k >= CAUSAL_QUERIES
    ]


def _causal(results: Results) -> Verdict:
    """The full copy moves full_bytes: what of the ceilings did so."""
    chosen, checks = _causal_cells("fwd"), []
    for cell in chosen:
        row = results.good(cell)
        if row is None:
            continue
        full = [times for name, times in row.ceilings.items() if row.ceiling_bytes[name] == cell.full_bytes]
        copy = min(statistics.median(times) for times in full)
        checks.append(Check(f"{cell.key} of a full copy", row.us(OURS).median / copy, 0.78, False))
        checks += [
            Check(f"{cell.key} against {name}", row.ratio(name), 1.25, True)
            for name in row.times
            if name not in (OURS, "triton") and row.compared(name)  # our Triton peer reads the triangle
        ]
    goal = "time <= 0.78 of a full copy; >= 1.25x any peer that reads the full matrix"
    return _verdict(5, f"causal forward, Q = K >= {CAUSAL_QUERIES}", goal, checks, 2 * len(chosen))


def _causal_backward(results: Results) -> Verdict:
    chosen = _causal_cells("bwd")
    checks = [
        Check(cell.key, row.us(OURS).median / full.us(OURS).median, 0.70, False)
        for cell, row, full in _pairs(results, chosen, lambda cell: cell.unmasked)
    ]
    return _verdict(6, "causal backward", "<= 0.70 of the full backward's time", checks, len(chosen))


def _masked(results: Results) -> Verdict:
    def limit(cell: Cell) -> float | None:
        if cell.direction == "bwd":
            return None
        return {"padding": 1.02, "bool": 1.06 if cell.shape[1] == 16 else None, "bias": 1.06}.get(cell.mask)

    chosen = [cell for cell in cells() if limit(cell) is not None]
    checks = [
        Check(cell.key, row.us(OURS).median / plain.us(OURS).median, limit(cell) or 0.0, False)
        for cell, row, plain in _pairs(results, chosen, lambda cell: cell.unmasked)
    ]
    what = "key-padding mask / bool mask shared by 16 heads / bias"
    return _verdict(7, what, "<= 1.02 / 1.06 / 1.06 of the unmasked time", checks, len(chosen))


def _peers(results: Results) -> Verdict:
    """QuACK masks nothing, so it is compared where nothing is masked."""
    chosen = [cell for cell in cells() if not cell.asks]
    rows = [(cell, row) for cell in chosen if (row := results.good(cell))]
    checks = [
        Check(f"{cell.key} against the chain", row.ratio("torch chain"), 1.9 if cell.mask == "none" else 3.8, True)
        for cell, row in rows
        if cell.direction == "fwd" and row.compared("torch chain")
    ]
    for name in ("torch.compile", "quack"):
        ratios = {
            cell.key: row.ratio(name)
            for cell, row in rows
            if row.compared(name) and (name != "quack" or cell.mask == "none")
        }
        checks += [Check(f"{key} against {name}", ratio, 0.99, True) for key, ratio in ratios.items()]
        if ratios:
            checks.append(
                Check(f"geometric mean against {name}", statistics.geometric_mean(ratios.values()), 1.03, True)
            )
    goal = ">= 3.8x masked, >= 1.9x unmasked; both others >= 0.99x in every cell, >= 1.03x geometric mean"
    return _verdict(8, "against the torch eager chain; torch.compile; QuACK", goal, checks, 3 * len(chosen))


def _few_rows(results: Results) -> Verdict:
    chosen = [cell for cell in cells() if cell.case.startswith("vocabulary") and cell.rows <= 8 and cell.k == 256000]
    checks = []
    for cell in chosen:
        if (row := results.good(cell)) and "memcpy" in row.ceilings:
            beyond = row.us(OURS).median - statistics.median(row.ceilings["memcpy"])
            checks.append(Check(f"{cell.key}, us beyond the copy", beyond, 2.0, False))
    return _verdict(9, "few rows: M = 1..8, K = 256000, f32", "<= same-size copy node + 2.0 us", checks, len(chosen))


def _small(results: Results) -> Verdict:
    chosen = [cell for cell in cells() if cell.shape in SMALL and cell.case == "small"]
    checks = []
    for cell in chosen:
        if row := results.good(cell):
            many = cell.rows >= results.environments[row.environment]["multiprocessors"]
            beyond = row.us(OURS).median - row.ceiling_us
            checks.append(Check(f"{cell.key}, us beyond the copy", beyond, 1.0 if many else 2.0, False))
    goal = "copy + 1.0 us where rows >= SM count, else + 2.0 us"
    return _verdict(10, "small problems (<= 40 MB)", goal, checks, len(chosen))


_MEASURED_BY_CELLS = (_backward, _causal, _causal_backward, _masked, _peers, _few_rows, _small)


def _of_costs(costs: Costs) -> list[Verdict]:
    def goal(number: int, what: str, text: str, limits: dict[str, float], reason: str) -> Verdict:
        checks = [
            Check(name, value, limit, False)
            for name, limit in limits.items()
            if (value := costs.value(name)) is not None
        ]
        return Verdict(number, what, text, tuple(checks), len(limits), reason)

    return [
        goal(
            11,
            "eager call from Python, out=",
            "<= bare cuLaunchKernelEx of the same cubin in the same run + 1.0 us; stub driver: <= 4x",
            {"eager_beyond_launch_us": 1.0},
            "needs a GPU; `make bench-host` prints the stub driver's part",
        ),
        goal(
            12,
            "first call of a prebuilt variant in a fresh process",
            "<= 5 ms after CUDA is up",
            {"first_call_ms": 5.0},
            "needs a GPU; the stub driver's figure is among the costs",
        ),
        goal(
            13,
            "`make generate` from cold, 2 cores, one architecture; nothing changed",
            "<= 3 min; <= 5 s",
            {"cold_generate_s": 180.0, "unchanged_generate_s": 5.0},
            "`python -m benchmarks costs` measures it",
        ),
        goal(
            14,
            "full bundle, sm_70 .. sm_120",
            "every cubin <= 32 KB, median <= 16 KB; <= 20 min on 2 cores; <= 40 MB",
            {"bundle_minutes": 20.0, "bundle_bytes": 40e6, "bundle_largest": 32768.0, "bundle_median": 16384.0},
            "`python -m benchmarks costs bundle` measures it",
        ),
    ]
