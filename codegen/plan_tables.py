"""Which plan serves which row length on which architecture: the tables in docs/plans.md."""

from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise, product
from typing import Any, NamedTuple, TypeVar

from .axes import Direction, DType, Plan
from .features import Mask
from .pages import DOCS, markdown, with_block
from .plans import CLUSTERS, MAX_SPLIT_ROWS, MEASURED, RowPlan, row_plans
from .spec import ANY_K
from .variants import ARCHITECTURES, MASKS, computed_by, dispatch, variant

PAGE = DOCS / "plans.md"
COMMAND = "python -m codegen plans --write"

Key = TypeVar("Key")
Kind = tuple[Direction, DType, Mask]
"""What `row_plans` depends on: direction, element types, and mask kind; NONE stands for all those planned like it."""

FEW, MANY = MAX_SPLIT_ROWS, MAX_SPLIT_ROWS + 1
"""Numbers of rows on either side of the only threshold in rows."""


class Span(NamedTuple):
    """Row lengths from `first` to `last` columns, served by one row plan."""

    first: int
    last: int
    plan: RowPlan


def spans(kind: Kind, arch: str, vec: int, rows: int) -> list[Span]:
    """What dispatch chooses for this many rows aligned to `vec` elements, in order of K: the first plan that fits,
    apart from those that are only for ranges, or that a measurement chose. Lengths between two multiples of `vec`
    belong to the span before them."""
    usable = [plan for plan in row_plans(*kind) if plan.serves(arch, vec, rows) and not variant(*kind, plan).flat]
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
    (direction, dtype, mask)
    for mask, direction, dtype in product((Mask.NONE, Mask.BAND, Mask.GENERAL), Direction, DType)
    if mask in MASKS.get((direction, dtype), ())
    and (not mask.has_epilogue or computed_by(direction, dtype, mask) is mask)
]
ARCHITECTURE_GROUPS = alike(ARCHITECTURES, lambda arch: tuple(arch in some for some, _ in CLUSTERS))
"""Architectures grouped so that dispatch treats those of a group alike."""


def table() -> str:
    """Tables in Markdown (the lengths that each plan serves; its CTAs, for kinds with and without an epilogue) and what
    a measurement chose instead."""
    tables = [_lengths(), *(_ctas(kinds) for kinds in alike(KINDS, lambda kind: kind[2].has_epilogue))]
    return "\n\n".join([*map(markdown, tables), measured()]) + "\n"


def measured() -> str:
    """The row plans that a measurement chose, which the tables leave out, and how many follow from arithmetic."""
    planned = sum(len(row_plans(*kind)) for kind in KINDS)
    budgets = "the budgets of bytes in flight and of instructions, on every architecture"
    said = f"These {planned} row plans follow from {budgets}"
    found = [
        f"* {direction.label} {dtype.value} {mask.label}, K = {interval(*plan.k)} on {', '.join(plan.architectures)}: "
        f"`{variant(direction, dtype, computed_by(direction, dtype, mask), plan).name}`. {plan.measured}"
        for (direction, dtype, mask), plans in MEASURED.items()
        for plan in plans
    ]
    if not found:
        return f"{said}: none has been measured."
    return "\n".join(
        [f"{said}. A measurement has chosen {len(found)} more, which dispatch tries before them:", "", *found]
    )


def _lengths() -> list[list[str]]:
    """K by plan, with one line for all element types and architectures for which it is the same."""
    heads = {plan: plan.label for plan in Plan} | {Plan.SPLIT: f"split, to {MAX_SPLIT_ROWS} rows"}
    lines = [
        [names_of(kinds), interval(archs[0], archs[-1]), *(ranges.get(plan, "") for plan in Plan)]
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
            for name, vec in alignments(kind)
        }
        if any(by_alignment.values()):
            found[plan] = _either({name: _extent(some) for name, some in by_alignment.items()})
    return found


def alignments(kind: Kind) -> tuple[tuple[str, int], ...]:
    return ("aligned", kind[1].vector), ("unaligned", 1)


def _extent(some: list[Span]) -> str:
    if not some:
        return "none"
    last = max(span.last for span in some)
    return interval(min(span.first for span in some), "" if last == ANY_K else last)


def _either(texts: dict[str, str]) -> str:
    """A single text for both alignments if they agree."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def interval(first: Any, last: Any) -> str:
    return f"{first}" if first == last else f"{first} .. {last}".rstrip()


def names_of(kinds: list[Kind]) -> str:
    """The element types of some kinds; after the direction if the two directions differ."""
    mask = kinds[0][-1]
    kind = f"{mask.label} " if mask.has_epilogue else ""
    found = [", ".join(dtype.value for own, dtype, _ in kinds if own is direction) for direction in Direction]
    if found[0] == found[1]:
        return kind + found[0]
    named = zip(Direction, found, strict=True)
    return kind + "; ".join(f"{direction.label} {names}" for direction, names in named if names)


def _ctas(kinds: list[Kind]) -> list[list[str]]:
    """Lanes that share a row, by plan and longest row."""
    columns = alike(kinds, lambda kind: tuple(_cells(kind).items()))
    cells = [_cells(kinds[0]) for kinds in columns]
    keys = sorted({key for column in cells for key in column}, key=lambda key: (list(Plan).index(key[0]), key[1]))
    lines = [
        [plan.label, "any K" if max_k == ANY_K else str(max_k), *(column.get((plan, max_k), "") for column in cells)]
        for plan, max_k in keys
    ]
    return [["plan", "K up to", *map(names_of, columns)], *lines]


def _cells(kind: Kind) -> dict[tuple[Plan, int], str]:
    """The CTA of each plan, by its longest row."""
    found: dict[tuple[Plan, int], dict[str, str]] = {}
    for plan, spec in dispatch(*kind) or ():
        text = f"{spec.threads_per_row} x {spec.rows}"
        if spec.by_warp:
            text = f"to {text}"
        if spec.piece:
            text = f"{spec.threads}, {spec.piece} columns"
        elif spec.cluster > 1:
            text = f"to {spec.threads_per_row} in each of 2 .. {spec.cluster}"
        found.setdefault((plan.plan, plan.max_k), {})["unaligned" if plan.vec == 1 else "aligned"] = text
    return {key: _either(texts) for key, texts in found.items()}


def write() -> None:
    """Updates the page."""
    PAGE.write_text(with_block(PAGE.read_text(), table(), COMMAND))
