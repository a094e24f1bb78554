"""The goals for the kernels on an H200, each with its measured figure, or "not measured" and the reason."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from softmax_ops.artifacts.constants import DTYPE_BYTES

from .cells import SMALL, Cell, cells
from .costs import Costs
from .providers import OURS, UNMASKED, every
from .results import Results

SMALL_BYTES = 40_000_000
CAUSAL_QUERIES = 1024


@dataclass(frozen=True)
class Check:
    """A figure that must be at least, or at most, a limit."""

    where: str
    value: float
    limit: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def margin(self) -> float:
        """Distance from the limit relative to it; negative if the check fails."""
        short = self.value - self.limit if self.at_least else self.limit - self.value
        return short / self.limit


@dataclass(frozen=True)
class Verdict:
    """A goal and what has been measured for it."""

    number: int
    what: str
    goal: str
    checks: tuple[Check, ...]
    wanted: int  # checks that a complete run would give
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
        """The worst figure, and the number of figures."""
        if not self.checks:
            return f"not measured: {self.reason}"
        worst = min(self.checks, key=lambda check: check.margin)
        missed = sum(not check.met for check in self.checks)
        count = f"{len(self.checks)} of {self.wanted}"
        figure = f"worst {round(worst.value, 3):,.10g} (goal {worst.limit:,.10g}) at {worst.where}"
        return f"{figure}; {missed} missed, {count} measured"


def verdicts(results: Results, costs: Costs) -> list[Verdict]:
    """The verdict on every goal, in order."""
    return [*_forward(results), *(goal(results) for goal in _MEASURED_BY_CELLS), *_of_costs(costs)]


def _verdict(number: int, what: str, goal: str, checks: Iterable[Check], wanted: int) -> Verdict:
    return Verdict(number, what, goal, tuple(checks), wanted, "no GPU has run these cells")


def _against(results: Results, chosen: Iterable[Cell], name: str) -> tuple[dict[str, float], int]:
    """A peer's times in units of ours, by cell, and how many there will be: cells measured without it, or not yet,
    count too if it is on the machine and does not refuse them."""
    (peer,) = (each for each in every() if each.name == name)
    rows = results.rows.values()
    is_there = not rows or any(name not in row.absent for row in rows)
    ratios, left = {}, 0
    for cell in chosen:
        row = results.good(cell)
        if row is None or name in row.absent.keys() - row.lost.keys():
            left += is_there and peer.refuses(cell) is None
        elif row.compared(name):
            ratios[cell.key] = row.ratio(name)
    return ratios, len(ratios) + left


def least_share(cell: Cell) -> tuple[int, float] | None:
    """(goal, share of the ceiling) for an unmasked cell so large that bandwidth decides; None for other cells.

    No goal covers what a cell asks for besides a scale and a mask.
    """
    if cell.mask != "none" or cell.asks or cell.full_bytes <= SMALL_BYTES or cell.k < 8:
        return None
    if cell.direction == "bwd":
        return 4, 0.97
    if cell.k < 128:
        return 3, 0.95
    if cell.aligned:
        return (1, 0.97) if cell.k <= 262144 else None
    return 2, 0.95 if cell.k * DTYPE_BYTES[cell.dtype] >= 2048 else 0.92


def _shares(results: Results, number: int) -> tuple[list[Check], int]:
    """Checks for the cells of a goal, and the number of its cells."""
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
    chosen = [cell for cell in cells() if least_share(cell) == (4, 0.97)]
    ratios, peers = _against(results, chosen, "torch.softmax")
    checks += [Check(f"{key} against torch", ratio, 1.9, True) for key, ratio in ratios.items()]
    goal = ">= 0.97 of 2-read-1-write; >= 1.9x torch's softmax backward"
    return _verdict(4, "backward", goal, checks, wanted + peers)


def _causal_cells(direction: str) -> list[Cell]:
    return [
        cell
        for cell in cells()
        if cell.causal and cell.direction == direction and cell.shape[2] == cell.k >= CAUSAL_QUERIES
    ]


def _causal(results: Results) -> Verdict:
    """A full copy moves full_bytes; the fastest ceiling that moved this many counts."""
    chosen, checks = _causal_cells("fwd"), []
    for cell in chosen:
        row = results.good(cell)
        full = [name for name in row.ceilings if row.ceiling_bytes[name] == cell.full_bytes] if row else []
        if row and full:
            copy = min(full, key=lambda name: statistics.median(row.ceilings[name]))
            checks.append(Check(f"{cell.key} of a full copy", row.ratio(OURS, copy), 0.78, False))
    wanted = len(chosen)
    for peer in every():
        if peer.name not in (OURS, UNMASKED, "triton"):  # our Triton peer reads only the triangle
            ratios, count = _against(results, chosen, peer.name)
            checks += [Check(f"{key} against {peer.name}", ratio, 1.25, True) for key, ratio in ratios.items()]
            wanted += count
    goal = "time <= 0.78 of a full copy; >= 1.25x any peer that reads the full matrix"
    return _verdict(5, f"causal forward, Q = K >= {CAUSAL_QUERIES}", goal, checks, wanted)


def _of_unmasked(results: Results, limits: dict[Cell, float]) -> list[Check]:
    """Checks that our time over that of the same scores unmasked, in the same rounds, is within the limits."""
    return [
        Check(cell.key, row.ratio(OURS, UNMASKED), limit, False)
        for cell, limit in limits.items()
        if (row := results.good(cell)) and row.compared(UNMASKED)
    ]


def _causal_backward(results: Results) -> Verdict:
    limits = dict.fromkeys(_causal_cells("bwd"), 0.70)
    goal = "<= 0.70 of the full backward's time"
    return _verdict(6, "causal backward", goal, _of_unmasked(results, limits), len(limits))


def _masked(results: Results) -> Verdict:
    def limit(cell: Cell) -> float | None:
        if cell.direction == "bwd":
            return None
        return {"padding": 1.02, "bool": 1.06 if cell.shape[1] == 16 else None, "bias": 1.06}.get(cell.mask)

    limits = {cell: most for cell in cells() if (most := limit(cell)) is not None}
    what = "key-padding mask / bool mask shared by 16 heads / bias"
    goal = "<= 1.02 / 1.06 / 1.06 of the unmasked time"
    return _verdict(7, what, goal, _of_unmasked(results, limits), len(limits))


def _peers(results: Results) -> Verdict:
    """QuACK has no masks, so it is compared only in unmasked cells."""
    chosen = [cell for cell in cells() if not cell.asks]
    forward = {cell.key: cell for cell in chosen if cell.direction == "fwd"}
    ratios, wanted = _against(results, forward.values(), "torch chain")
    checks = [
        Check(f"{key} against the chain", ratio, 1.9 if forward[key].mask == "none" else 3.8, True)
        for key, ratio in ratios.items()
    ]
    for name, fair in (("torch.compile", chosen), ("quack", [cell for cell in chosen if cell.mask == "none"])):
        ratios, count = _against(results, fair, name)
        checks += [Check(f"{key} against {name}", ratio, 0.99, True) for key, ratio in ratios.items()]
        if ratios:
            mean = statistics.geometric_mean(ratios.values())
            checks.append(Check(f"geometric mean against {name}", mean, 1.03, True))
        wanted += count + bool(count)
    goal = ">= 3.8x masked, >= 1.9x unmasked; both others >= 0.99x in every cell, >= 1.03x geometric mean"
    return _verdict(8, "against the torch eager chain; torch.compile; QuACK", goal, checks, wanted)


def _few_rows(results: Results) -> Verdict:
    chosen = [cell for cell in cells() if cell.case.startswith("vocabulary") and cell.rows <= 8 and cell.k == 256000]
    checks = [
        Check(f"{cell.key}, us beyond the copy", row.beyond(OURS, "memcpy"), 2.0, False)
        for cell in chosen
        if (row := results.good(cell)) and "memcpy" in row.ceilings
    ]
    return _verdict(9, "few rows: M = 1..8, K = 256000, f32", "<= same-size copy node + 2.0 us", checks, len(chosen))


def _small(results: Results) -> Verdict:
    chosen = [cell for cell in cells() if cell.shape in SMALL and cell.case == "small"]
    checks = []
    for cell in chosen:
        if row := results.good(cell):
            many = cell.rows >= results.environments[row.environment]["multiprocessors"]
            beyond = row.beyond(OURS, row.ceiling)
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
