"""Which plan serves which row length on which architecture: docs/plans.svg."""

from itertools import pairwise
from math import log2
from typing import Any, NamedTuple

from .axes import Plan
from .pages import DOCS, svg
from .plan_tables import ARCHITECTURE_GROUPS, FEW, KINDS, MANY, Kind, alignments, alike, interval, names_of, spans
from .plans import MAX_SPLIT_ROWS, row_plans

PICTURE = DOCS / "plans.svg"

COLOURS = {
    Plan.TILE: "#56b4e9",
    Plan.WARP: "#009e73",
    Plan.BLOCK: "#e69f00",
    Plan.CLUSTER: "#cc79a7",
    Plan.SPLIT: "#f0e442",
    Plan.STREAM: "#bbbbbb",
}
LONGEST = 2**20
"""Where the picture ends, in columns."""


class Box(NamedTuple):
    """A rectangle of the picture: rows of more than `left`, up to `right` columns, on a lane of height 1."""

    left: int
    right: int
    bottom: float
    height: float
    plan: Plan
    hatched: bool  # serves unaligned rows; aligned ones have a plan of their own


def boxes(kind: Kind, arch: str) -> list[Box]:
    """The boxes of one lane of the picture. Each interval of K is divided among the plans that serve it; the plan that
    dispatch tries first is on top."""
    lanes = [spans(kind, arch, vec, rows) for rows in (FEW, MANY) for _, vec in alignments(kind)]
    ends = sorted({span.last for lane in lanes for span in lane if span.last < LONGEST} | {0, LONGEST})
    order = row_plans(*kind)
    found = []
    for left, right in pairwise(ends):
        chosen = {span.plan for lane in lanes for span in lane if span.first <= right and left < span.last}
        for place, plan in enumerate(sorted(chosen, key=order.index, reverse=True)):
            hatched = plan.vec == 1 and any(other.vec > 1 for other in chosen)
            found.append(Box(left, right, place / len(chosen), 1 / len(chosen), plan.plan, hatched))
    return found


def draw() -> str:
    """The picture as SVG: the same bytes every time."""
    return svg((11, 5.8), {"hatch.linewidth": 0.5, "font.family": "DejaVu Sans"}, _fill)


def _fill(figure: Any) -> None:
    """Draws the lanes in groups, one lane per group of architectures, with titles, the axis of K and the legend."""
    axes = figure.add_axes((0.11, 0.13, 0.88, 0.86))
    groups = alike(KINDS, lambda kind: tuple(tuple(boxes(kind, archs[0])) for archs in ARCHITECTURE_GROUPS))
    names, bottoms = [], []
    for number, kinds in enumerate(groups):
        for place, archs in enumerate(ARCHITECTURE_GROUPS):
            bottoms.append(-1.25 * (number * (len(ARCHITECTURE_GROUPS) + 1) + place))
            names.append(interval(archs[0], archs[-1]))
            _lane(axes, bottoms[-1], boxes(kinds[0], archs[0]))
        top = bottoms[-len(ARCHITECTURE_GROUPS)] + 1.2
        axes.text(0, top, names_of(kinds), va="bottom", weight="bold")
    axes.set_yticks([bottom + 0.5 for bottom in bottoms], names)
    ticks = range(0, int(log2(LONGEST)) + 1, 2)
    axes.set_xticks(ticks, [_short(2**tick) for tick in ticks])
    axes.set(xlim=(0, log2(LONGEST)), ylim=(bottoms[-1] - 0.2, 2.4), xlabel="K, columns of a row")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "right", "top"]].set_visible(False)
    _legend(axes)


def _lane(axes: Any, bottom: float, lane: list[Box]) -> None:
    """Draws boxes in the colours of their plans, hatched where rows are unaligned; a plan's name in its widest box."""
    from matplotlib.patches import Rectangle

    for box in lane:
        left, right = log2(max(box.left, 1)), log2(box.right)
        axes.add_patch(
            Rectangle((left, bottom + box.bottom), right - left, box.height, **_paint(COLOURS[box.plan], box.hatched))
        )
    for same in alike(lane, lambda box: box.plan):
        widest = min(same, key=lambda box: (box.hatched, max(box.left, 1) / box.right))
        middle = log2(max(widest.left, 1) * widest.right) / 2, bottom + widest.bottom + widest.height / 2
        axes.text(*middle, widest.plan.label, ha="center", va="center_baseline", size=7)


def _paint(colour: str, hatched: bool = False) -> dict[str, Any]:
    return {"facecolor": colour, "edgecolor": "white", "hatch": "////" if hatched else None, "linewidth": 0.6}


def _legend(axes: Any) -> None:
    """Explains the two halves of a lane."""
    from matplotlib.patches import Patch

    handles = [
        Patch(label="rows aligned to 16 bytes", **_paint("#888888")),
        Patch(label="unaligned rows", **_paint("#888888", hatched=True)),
        Patch(label=f"up to {MAX_SPLIT_ROWS} rows, any alignment", **_paint(COLOURS[Plan.SPLIT])),
        Patch(label="more rows, any alignment", **_paint(COLOURS[Plan.STREAM])),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.45, -0.09), ncols=4, frameon=False)


def _short(k: int) -> str:
    """A length in units of 1024 or 1024^2.

    >>> [_short(k) for k in (16, 2048, 2**20)]
    ['16', '2k', '1M']
    """
    return f"{k >> 20}M" if k >= 2**20 else f"{k >> 10}k" if k >= 1024 else str(k)


def write() -> None:
    """Brings the picture up to date; needs matplotlib."""
    PICTURE.write_text(draw())
