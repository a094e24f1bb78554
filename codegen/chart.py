"""Which plan serves which row length on which architecture: the table in docs/plans.md, and docs/plans.svg."""

import io
import re
from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise, product
from math import log2
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .axes import Direction, DType, Plan
from .features import Mask
from .plans import CLUSTERS, MAX_SPLIT_ROWS, RowPlan, row_plans
from .spec import ANY_K
from .variants import ARCHITECTURES, MASKS, dispatch

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "plans.md"
PICTURE = DOCS / "plans.svg"
COMMAND = "python -m codegen plans --write"

Key = TypeVar("Key")
Kind = tuple[Direction, DType, bool]
"""What `row_plans` depends on: direction, element types, and whether it is the general mask kind."""

FEW, MANY = MAX_SPLIT_ROWS, MAX_SPLIT_ROWS + 1
"""Numbers of rows on either side of the only threshold in rows."""


class Span(NamedTuple):
    """Row lengths from `first` to `last` columns, served by one row plan."""

    first: int
    last: int
    plan: RowPlan


def spans(kind: Kind, arch: str, vec: int, rows: int) -> list[Span]:
    """What dispatch chooses for this many rows aligned to `vec` elements, in order of K: the first plan that fits.
    Lengths between two multiples of `vec` belong to the span before them."""
    usable = [
        plan
        for plan in row_plans(*kind)
        if plan.vec <= vec
        and (not plan.architectures or arch in plan.architectures)
        and (not plan.max_rows or rows <= plan.max_rows)
    ]
    ends = sorted({plan.k[0] for plan in usable} | {plan.k[1] + 1 for plan in usable})
    found: list[Span] = []
    for first, end in pairwise(ends):
        if -(-first // vec) * vec < end:
            found.append(Span(first, end - 1, next(plan for plan in usable if plan.k[0] <= first <= plan.k[1])))
        else:
            found[-1] = found[-1]._replace(last=end - 1)
    return found


def alike(keys: Iterable[Key], of: Callable[[Key], Hashable]) -> list[list[Key]]:
    """The keys grouped by the value of `of`, in order of the first member of each group."""
    groups: dict[Hashable, list[Key]] = {}
    for key in keys:
        groups.setdefault(of(key), []).append(key)
    return list(groups.values())


KINDS: list[Kind] = [
    (direction, dtype, general)
    for general, direction, dtype in product((False, True), Direction, DType)
    if any(mask.general is general for mask in MASKS.get((direction, dtype), ()))
]
ARCHITECTURE_GROUPS = alike(ARCHITECTURES, lambda arch: tuple(arch in some for some, _ in CLUSTERS))
"""Architectures grouped so that dispatch treats those of a group alike."""


# ---- the table


def table() -> str:
    """Two tables in Markdown (the lengths that each plan serves, and its CTAs) and what has been measured of them."""
    return f"{markdown(_lengths())}\n\n{markdown(_ctas())}\n\n{_measured(_rows())}\n"


def _rows() -> list[tuple[Kind, RowPlan]]:
    return [(kind, plan) for kind in KINDS for plan in row_plans(*kind)]


def _measured(rows: list[tuple[Kind, RowPlan]]) -> str:
    """Which rows a measurement chose, and where."""
    found = [
        f"* {direction.label} {dtype.value}, {plan.plan.label} up to {plan.max_k}: {plan.measured}"
        for (direction, dtype, _), plan in rows
        if plan.measured
    ]
    rest = "follow from the budgets of bytes in flight and of instructions, on every architecture: nobody measured them"
    return "\n".join([f"{len(found)} of {len(rows)} rows were chosen by a measurement; the others {rest}.", *found])


def _lengths() -> list[list[str]]:
    """K by plan, with one line for all element types and architectures for which it is the same."""
    heads = {plan: plan.label for plan in Plan} | {Plan.SPLIT: f"split, to {MAX_SPLIT_ROWS} rows"}
    lines = [
        [_names(kinds), _range(archs[0], archs[-1]), *(ranges.get(plan, "") for plan in Plan)]
        for kinds in alike(
            KINDS, lambda kind: tuple(tuple(_held(kind, archs[0]).items()) for archs in ARCHITECTURE_GROUPS)
        )
        for archs in ARCHITECTURE_GROUPS
        for ranges in [_held(kinds[0], archs[0])]
    ]
    return [["rows of", "architectures", *heads.values()], *lines]


def _held(kind: Kind, arch: str) -> dict[Plan, str]:
    """The range of K that each plan serves on an architecture, over all numbers of rows."""
    found: dict[Plan, str] = {}
    for plan in Plan:
        by_alignment = {
            name: [span for rows in (FEW, MANY) for span in spans(kind, arch, vec, rows) if span.plan.plan is plan]
            for name, vec in _alignments(kind)
        }
        if any(by_alignment.values()):
            found[plan] = _either({name: _extent(some) for name, some in by_alignment.items()})
    return found


def _alignments(kind: Kind) -> tuple[tuple[str, int], ...]:
    return ("aligned", kind[1].vector), ("anywhere", 1)


def _extent(some: list[Span]) -> str:
    if not some:
        return "none"
    last = max(span.last for span in some)
    return _range(min(span.first for span in some), "" if last == ANY_K else last)


def _either(texts: dict[str, str]) -> str:
    """One text for both alignments where they agree."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def _range(first: Any, last: Any) -> str:
    return f"{first}" if first == last else f"{first} .. {last}".rstrip()


def _names(kinds: list[Kind]) -> str:
    """The element types of some kinds; after the direction if the two directions differ."""
    general = "general " if all(each for *_, each in kinds) else ""
    found = [", ".join(dtype.value for own, dtype, _ in kinds if own is direction) for direction in Direction]
    if found[0] == found[1]:
        return general + found[0]
    named = zip(Direction, found, strict=True)
    return general + "; ".join(f"{direction.label} {names}" for direction, names in named if names)


def _ctas() -> list[list[str]]:
    """Who shares a row, by plan and longest row."""
    columns = alike(KINDS, lambda kind: tuple(_cells(kind).items()))
    cells = [_cells(kinds[0]) for kinds in columns]
    keys = sorted({key for column in cells for key in column}, key=lambda key: (list(Plan).index(key[0]), key[1]))
    lines = [
        [plan.label, "any K" if max_k == ANY_K else str(max_k), *(column.get((plan, max_k), "") for column in cells)]
        for plan, max_k in keys
    ]
    return [["plan", "K up to", *map(_names, columns)], *lines]


def _cells(kind: Kind) -> dict[tuple[Plan, int], str]:
    """The CTA of each plan, by its longest row."""
    found: dict[tuple[Plan, int], dict[str, str]] = {}
    direction, dtype, general = kind
    for plan, spec in dispatch(direction, dtype, Mask.GENERAL if general else Mask.CAUSAL) or ():
        text = f"{spec.lanes} x {spec.rows}"
        if spec.by_warp:
            text = f"to {text}"
        if spec.piece:
            text = f"{spec.threads}, {spec.piece} columns"
        elif spec.cluster > 1:
            text = f"to {spec.lanes} in each of 2 .. {spec.cluster}"
        found.setdefault((plan.plan, plan.max_k), {})["anywhere" if plan.vec == 1 else "aligned"] = text
    return {key: _either(texts) for key, texts in found.items()}


def markdown(rows: list[list[str]]) -> str:
    head, *lines = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


# ---- the page


def with_block(page: str, block: str, command: str = COMMAND) -> str:
    """The page with the text between the comments that mark the command's output replaced by `block`."""
    marked = re.compile(rf"(<!-- begin: {re.escape(command)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(marked.findall(page)) != 1:
        raise ValueError(f"the page has no single block between <!-- begin: {command} --> and <!-- end -->")
    return marked.sub(lambda match: f"{match[1]}\n{block.strip()}\n\n{match[2]}", page)


def write() -> None:
    """Brings the page and the picture up to date."""
    PAGE.write_text(with_block(PAGE.read_text(), table()))
    PICTURE.write_text(draw())


# ---- the picture

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
    hatched: bool  # serves rows that start anywhere; aligned ones have a plan of their own


def boxes(kind: Kind, arch: str) -> list[Box]:
    """The boxes of one lane of the picture. Each interval of K is divided among the plans that serve it; the plan that
    dispatch tries first is on top."""
    lanes = [spans(kind, arch, vec, rows) for rows in (FEW, MANY) for _, vec in _alignments(kind)]
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
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.hashsalt": "plans", "svg.fonttype": "none", "hatch.linewidth": 0.5}
    style |= {"font.family": "DejaVu Sans", "font.size": 9}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(11, 4.5))
        _fill(figure.add_axes((0.19, 0.17, 0.8, 0.82)))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _fill(axes: Any) -> None:
    """All lanes, their names, the axis of K and the legend."""
    groups = alike(KINDS, lambda kind: tuple(tuple(boxes(kind, archs[0])) for archs in ARCHITECTURE_GROUPS))
    names, bottoms = [], []
    for number, kinds in enumerate(groups):
        for place, archs in enumerate(ARCHITECTURE_GROUPS):
            bottoms.append(-1.25 * (number * (len(ARCHITECTURE_GROUPS) + 0.4) + place))
            names.append(f"{_names(kinds)}   {_range(archs[0], archs[-1])}")
            _lane(axes, bottoms[-1], boxes(kinds[0], archs[0]))
    axes.set_yticks([bottom + 0.5 for bottom in bottoms], names)
    ticks = range(0, int(log2(LONGEST)) + 1, 2)
    axes.set_xticks(ticks, [_short(2**tick) for tick in ticks])
    axes.set(xlim=(0, log2(LONGEST)), ylim=(bottoms[-1] - 0.2, 1.1), xlabel="K, columns of a row")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "right", "top"]].set_visible(False)
    _legend(axes)


def _lane(axes: Any, bottom: float, lane: list[Box]) -> None:
    """Boxes in the colours of their plans, hatched where rows start anywhere; each plan's name once, in its widest."""
    from matplotlib.patches import Rectangle

    for box in lane:
        left, right = log2(max(box.left, 1)), log2(box.right)
        axes.add_patch(
            Rectangle((left, bottom + box.bottom), right - left, box.height, **_paint(COLOURS[box.plan], box.hatched))
        )
    for same in alike(lane, lambda box: box.plan):
        widest = min(same, key=lambda box: (box.hatched, max(box.left, 1) / box.right))
        middle = log2(max(widest.left, 1) * widest.right) / 2, bottom + widest.bottom + widest.height / 2
        axes.text(*middle, widest.plan.label, ha="center", va="center_baseline", size=8)


def _paint(colour: str, hatched: bool = False) -> dict[str, Any]:
    return {"facecolor": colour, "edgecolor": "white", "hatch": "////" if hatched else None, "linewidth": 0.6}


def _legend(axes: Any) -> None:
    """What the two halves of a lane are."""
    from matplotlib.patches import Patch

    handles = [
        Patch(label="rows aligned to 16 bytes", **_paint("#888888")),
        Patch(label="rows that start anywhere", **_paint("#888888", hatched=True)),
        Patch(label=f"up to {MAX_SPLIT_ROWS} rows, any alignment", **_paint(COLOURS[Plan.SPLIT])),
        Patch(label="more rows, any alignment", **_paint(COLOURS[Plan.STREAM])),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.42, -0.11), ncols=4, frameon=False)


def _short(k: int) -> str:
    """In units of 1024 or 1024^2.

    >>> [_short(k) for k in (16, 2048, 2**20)]
    ['16', '2k', '1M']
    """
    return f"{k >> 20}M" if k >= 2**20 else f"{k >> 10}k" if k >= 1024 else str(k)
