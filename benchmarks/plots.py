"""Plots of results: share of the ceiling against row length, one line per provider."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from codegen.pages import svg

from .cells import Cell, cells
from .providers import OURS
from .results import Results

COLOURS = {
    OURS: "#d55e00",
    "torch chain": "#999999",
    "torch.softmax": "#56b4e9",
    "torch.compile": "#0072b2",
    "triton": "#009e73",
    "liger": "#cc79a7",
    "quack": "#e69f00",
}
PICTURES = ("aligned", "odd", "backward", "causal")
_TITLES = {
    "aligned": "forward, powers of two, f16, 1 GiB of scores",
    "odd": "forward, a column more and less, f16, 1 GiB of scores",
    "backward": "backward, powers of two, f16, 1 GiB of scores",
    "causal": "causal forward, f16, models",
}

Lines = dict[str, list[tuple[int, float]]]
"""(K, share) by provider."""


def draw(device: str, results: Results, folder: Path) -> list[Path]:
    """Writes one SVG per picture into a folder; the same results give the same bytes."""
    written = []
    for name in PICTURES:
        path = folder / f"{device}-{name}.svg"
        path.write_text(_svg(f"{_TITLES[name]} ({device})", lines(results, name)))
        written.append(path)
    return written


def lines(results: Results, picture: str) -> Lines:
    """The lines of a picture: the share of every provider that counts, by increasing K."""
    found: Lines = defaultdict(list)
    for cell in sorted((cell for cell in cells() if _shown(cell, picture)), key=lambda cell: cell.k):
        row = results.row(cell)
        if row is None or not row.ceilings:
            continue
        for name in row.times:
            if row.compared(name):
                found[name].append((cell.k, row.share(name).median))
    return dict(found)


def _shown(cell: Cell, picture: str) -> bool:
    if cell.dtype != "f16":
        return False
    if picture == "causal":
        return cell.causal and cell.direction == "fwd" and cell.shape[2] == cell.k
    power = cell.k & (cell.k - 1) == 0
    direction = "bwd" if picture == "backward" else "fwd"
    return cell.case == "sweep" and cell.direction == direction and power == (picture != "odd")


def _svg(title: str, shown: Lines) -> str:
    return svg((8, 4), {}, partial(_fill, title, shown))


def _fill(title: str, shown: Lines, figure: Any) -> None:
    axes = figure.add_axes((0.08, 0.12, 0.7, 0.8))
    for name in COLOURS:
        if name in shown:
            axes.plot(*zip(*shown[name], strict=True), marker=".", label=name, color=COLOURS[name])
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="K, columns of a row", ylabel="share of the ceiling", ylim=(0, 1.1), title=title)
    axes.set_xscale("log", base=2)
    if shown:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
