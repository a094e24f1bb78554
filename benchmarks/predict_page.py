"""Writes docs/predictions.md from the predictions, and compares them with what a GPU measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from codegen.pages import markdown, with_block

from .cells import CORE, MASKS, Cell, cells
from .predict import Prediction
from .providers import OURS
from .report import CHECKOUT
from .results import Results

PAGE = CHECKOUT / "docs" / "predictions.md"
COMMAND = "make predictions"


def write(date: str, predictions: list[Prediction], page: Path = PAGE) -> None:
    page.write_text(with_block(page.read_text(), text(date, predictions), COMMAND))


def text(date: str, predictions: list[Prediction]) -> str:
    """The cells that fall short, by kind of row; then the core, cell by cell."""
    known = {each.cell: each for each in predictions}
    pairs = [(cell, known[cell.key]) for cell in cells() if cell.key in known]
    with_goal = [each for _, each in pairs if each.goal is not None]
    short = [(cell, each) for cell, each in pairs if each.falls_short]
    core = [(cell, known[cell.key]) for cell in cells()[:CORE] if cell.key in known]
    return "\n\n".join(
        [
            f"Counted on {date}: {len(pairs)} cells; of {len(with_goal)} that have a goal, {len(short)} are predicted "
            "to fall short.",
            "### Predicted to fall short",
            _short(short) if short else "None.",
            "### The core",
            markdown([_HEAD, *(_line(*pair) for pair in core)]),
        ]
    )


_HEAD = [
    *("cell", "kernel", "MB to move", "of them planned", "instructions per element", "accesses", "budget", "registers"),
    *("CTAs per SM", "KiB in flight", "share", "held back by", "goal"),
]


def _line(cell: Cell, each: Prediction) -> list[str]:
    return [
        cell.key.replace("|", ", "),
        each.variant,
        f"{each.bytes / 1e6:.1f}",
        f"{each.planned_bytes / each.bytes:.2f}",
        f"{each.instructions:.1f}",
        f"{each.accesses:.1f}",
        f"{each.budget:.1f}",
        str(each.registers),
        f"{each.ctas_per_sm:g}",
        f"{each.flight_bytes / 1024:.0f}",
        f"{each.share:.2f}",
        each.limit,
        "latency" if each.goal is None else f"{each.goal:.2f}",
    ]


def _short(short: list[tuple[Cell, Prediction]]) -> str:
    """One line for cells that differ only in mask and row length."""
    groups: dict[tuple[str, ...], list[tuple[Cell, Prediction]]] = defaultdict(list)
    for cell, each in short:
        plan = each.variant.split("_")[4]
        rows = "aligned" if cell.aligned else "unaligned"
        element = "f32" if cell.dtype == "f32" else "f16, bf16"
        groups[each.limit, plan, cell.direction, element, rows].append((cell, each))
    lines = []
    for kind, found in sorted(groups.items()):
        lengths = sorted({cell.k for cell, _ in found})
        masks = [mask for mask in MASKS if any(cell.mask == mask for cell, _ in found)]

        def extent(of: Callable[[Prediction], float], form: str, found=found) -> str:
            values = sorted(of(each) for _, each in found)
            low, high = (format(value, form) for value in (values[0], values[-1]))
            return low if low == high else f"{low} .. {high}"

        lines.append(
            [
                *kind,
                ", ".join(masks),
                ", ".join(map(str, lengths)),
                extent(lambda each: each.share, ".2f"),
                extent(lambda each: each.goal or 0, ".2f"),
                extent(lambda each: each.instructions, ".0f"),
                extent(lambda each: each.accesses, ".0f"),
                extent(lambda each: each.flight_bytes / 1024, ".0f"),
            ]
        )
    head = ["held back by", "plan", "direction", "dtype", "rows", "masks", "K", "share", "goal"]
    return markdown([[*head, "instructions per element", "accesses", "KiB in flight"], *lines])


def compare(predictions: list[Prediction], results: Results) -> str:
    """Predicted and measured shares of the cells that have both, the largest deviation first."""
    by_key = {cell.key: cell for cell in cells()}
    lines = []
    for each in predictions:
        row = results.good(by_key[each.cell]) if each.cell in by_key else None
        if row is not None:
            measured = row.share(OURS).median
            lines.append((measured - each.share, each, measured))
    lines.sort(key=lambda line: -abs(line[0]))
    if not lines:
        return "no cell has been both predicted and measured"
    return "\n".join(
        f"{difference:+.3f}  predicted {each.share:.3f}  measured {measured:.3f}  {each.cell}  {each.limit}"
        for difference, each, measured in lines
    )
