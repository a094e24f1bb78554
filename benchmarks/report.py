"""Turns results into text: the README's table, and the page with goals, costs and every measured cell."""

from __future__ import annotations

from pathlib import Path

from codegen.pages import markdown, with_block

from . import plots
from .cells import CORE, QUICK, Cell, cells
from .costs import FILE as COSTS
from .costs import Costs
from .goals import Verdict, verdicts
from .providers import OURS, PEERS, every
from .results import FILE, FOLDER, Results, Row

CHECKOUT = Path(__file__).resolve().parents[1]
README, PAGE = CHECKOUT / "README.md", CHECKOUT / "docs" / "benchmarks.md"
_COMMAND = "python -m benchmarks report"
README_MARK, GOALS_MARK, CELLS_MARK = (f"{_COMMAND}: {part}" for part in ("table", "goals", "cells"))
NOTHING = "Not measured yet: no GPU has run the benchmark."


def write(root: Path = FOLDER, readme: Path = README, page: Path = PAGE, costs: Path | None = None) -> list[Path]:
    """Updates README, page and plots from the results of every device under `root`; returns the files written."""
    devices = {path.parent.name: Results.load(path) for path in sorted(root.glob(f"*/{FILE}"))}
    known = Costs.load(costs or root / COSTS)
    readme.write_text(with_block(readme.read_text(), table(devices), README_MARK))
    text = with_block(page.read_text(), goals(devices, known), GOALS_MARK)
    page.write_text(with_block(text, every_cell(devices), CELLS_MARK))
    written = [readme, page]
    for device, results in devices.items():
        written += plots.draw(device, results, page.parent)
    return written


# ---- the README's table


def table(devices: dict[str, Results]) -> str:
    """The first dozen cells of the core: share of the ceiling, and times of the peers in units of ours."""
    parts = []
    for results in devices.values():
        rows = [(cell, row) for cell in cells()[:QUICK] if (row := results.good(cell))]
        if rows:
            parts.append(f"{_measured_on(results, rows[0][1])}\n\n{_shares(rows)}")
    return "\n\n".join(parts) or NOTHING


def _measured_on(results: Results, row: Row) -> str:
    facts = results.environments[row.environment]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("driver", "torch", "triton") if facts.get(name))
    return (
        f"{facts['device']}, {row.date}; {versions}. Share: time of the fastest copy of the same bytes over our time, "
        "median of the rounds. Right of it, how many times longer each peer takes; those in brackets compute the "
        "softmax alone, without scale and mask."
    )


def _shares(rows: list[tuple[Cell, Row]]) -> str:
    plain = {provider.name for provider in every() if provider.plain}
    heads = ["cell", "scores", "us", "GB/s", "share of ceiling", *PEERS]
    lines = []
    for cell, row in rows:
        peers = []
        for name in PEERS:
            ratio = f"{row.ratio(name):.2f}" if row.compared(name) else _why_not(row, name)
            peers.append(f"({ratio})" if name in plain and row.compared(name) else ratio)
        own = row.share(OURS)
        name = f"{cell.case}, {cell.mask}" + (", backward" if cell.direction == "bwd" else "")
        scores = f"{'x'.join(map(str, cell.shape))} {cell.dtype}"
        bandwidth = f"{row.gigabytes_per_second(OURS):.0f}"
        lines.append([name, scores, f"{row.us(OURS).median:.1f}", bandwidth, f"{own.median:.3f}", *peers])
    return markdown([heads, *lines])


def _why_not(row: Row, name: str) -> str:
    """The reason in one word; the page has it in full."""
    if name in row.wrong:
        return "wrong"
    return "absent" if name in row.absent else "refuses" if name in row.refused else "failed"


# ---- the page


def goals(devices: dict[str, Results], costs: Costs) -> str:
    """Every goal for every device; says that nothing is measured if there are no results."""
    parts = [f"**{device}**\n\n{_goals(verdicts(results, costs))}" for device, results in devices.items()]
    parts = parts or [_goals(verdicts(Results(), costs))]
    return "\n\n".join([*parts, _costs(costs)])


def _goals(found: list[Verdict]) -> str:
    lines = [[str(each.number), each.what, each.goal, each.state, each.figure.replace("|", " ")] for each in found]
    return markdown([["#", "what", "goal", "state", "figure"], *lines])


def _costs(costs: Costs) -> str:
    if not costs.figures:
        return "Costs of compiling and loading: not measured."
    figures = costs.figures.values()
    lines = [[each.name, f"{each.value:,}", each.date, each.machine, each.note] for each in figures]
    return markdown([["cost", "figure", "date", "machine", "of what"], *lines])


def every_cell(devices: dict[str, Results]) -> str:
    """Every measured cell in rank order, including failures, and why a peer has no figure."""
    parts = []
    for device, results in devices.items():
        rows = [(rank, row) for rank, cell in enumerate(cells(), 1) if (row := results.row(cell))]
        reasons = sorted({f"{name}: {why}" for _, row in rows for name, why in row.absent.items()})
        lines = [_line(rank, row) for rank, row in rows]
        head = ["rank", "cell", "kernel", "ceiling us", "share p20", "median", "p80", "GB/s", *PEERS]
        core = sum(rank <= CORE for rank, _ in rows)
        text = f"**{device}**: {len(rows)} of {len(cells())} cells, {core} of the core's {CORE}."
        if reasons:
            text += f" Absent: {'; '.join(reasons)}."
        pictures = "\n".join(f"![{name}]({device}-{name}.svg)" for name in plots.PICTURES)
        parts.append(f"{text}\n\n{pictures}\n\n{markdown([head, *lines])}")
    return "\n\n".join(parts) or NOTHING


def _line(rank: int, row: Row) -> list[str]:
    name = row.cell.replace("|", ", ")
    if row.is_failure or not row.compared(OURS):
        return [str(rank), name, row.kernel or "", f"**no figure**: {row.why}", *[""] * (4 + len(PEERS))]
    own = row.share(OURS)
    peers = [f"{row.ratio(peer):.2f}" if row.compared(peer) else _why_not(row, peer) for peer in PEERS]
    figures = [f"{row.ceiling_us:.1f} ({row.ceiling})", *(f"{value:.3f}" for value in own)]
    return [str(rank), name, row.kernel or "", *figures, f"{row.gigabytes_per_second(OURS):.0f}", *peers]
