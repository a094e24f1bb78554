"""Geometry -> the variant that serves it, and why. Needs no torch and no driver."""

from collections.abc import Iterable
from typing import NamedTuple

from ..artifacts.catalog import Catalog, Entry, Variant
from ..artifacts.constants import ACCESS_BYTES
from ..artifacts.cubin import runs_on
from .geometry import Geometry, leading_dimensions
from .tile import is_flat


class NoVariant(LookupError):
    """No shipped kernel serves the geometry."""


class Selection(NamedTuple):
    variant: Variant
    cluster: int  # CTAs that share a row
    reason: str  # why this variant
    measured: str  # the measurement that chose its tile, or that there is none


def select(geometry: Geometry, catalog: Catalog, arch: str, largest_cluster: int) -> Selection:
    """The first entry of the dispatch table that serves the rows, and why earlier entries do not.

    Raises NoVariant when no entry serves them.
    """
    key = geometry.direction, geometry.dtype, geometry.mask_kind
    try:
        entries = catalog.candidates(*key, geometry.k)
    except LookupError as error:
        raise NoVariant(str(error)) from None
    here = [entry for entry in entries if _serves(entry, arch)]
    elsewhere = {entry.name for entry in entries}.difference(entry.name for entry in here)
    obstacles = [f"not {name}: {_limit(name, arch, catalog.tables[key])}" for name in sorted(elsewhere)]
    for entry in here:
        variant = catalog.variants[entry.name]
        obstacle = _obstacle(geometry, entry, variant)
        cluster = _cluster(geometry.k, variant, entry, largest_cluster)
        if obstacle is None and cluster > largest_cluster:
            obstacle = f"the GPU cannot run clusters of {cluster} CTAs"
        if obstacle is None:
            reason = "; ".join(obstacles) or f"first in its table for K = {geometry.k}"
            return Selection(variant, cluster, reason, _measured(entry, arch))
        obstacles.append(f"not {entry.name}: {obstacle}")
    raise NoVariant("; ".join(obstacles))


def _serves(entry: Entry, arch: str) -> bool:
    return not entry.architectures or any(runs_on(built, arch) for built in entry.architectures)


def _limit(name: str, arch: str, table: Iterable[Entry]) -> str:
    """Why no entry of a variant serves rows of this length on the architecture."""
    longest = max((entry.k[1] for entry in table if entry.name == name and _serves(entry, arch)), default=None)
    return f"not for {arch}" if longest is None else f"on {arch} it holds at most {longest} columns"


def _obstacle(geometry: Geometry, entry: Entry, variant: Variant) -> str | None:
    """Why an entry for the architecture does not serve; None when it does."""
    if (entry.min_rows or entry.max_rows) and geometry.batch_invariant:
        return "chosen by the number of rows"
    if geometry.rows < entry.min_rows:
        return f"{geometry.rows} rows are less than {entry.min_rows}"
    if entry.max_rows and geometry.rows > entry.max_rows:
        return f"{geometry.rows} rows are more than {entry.max_rows}"
    if variant.flat and geometry.batch_invariant:
        return "chosen by how rows lie, which one row alone does not show"
    if variant.flat and not is_flat(geometry, entry.vec, leading_dimensions(geometry)[::-1]):
        return "rows are not one range that suits a tile"
    return _misalignment(geometry, entry.vec)


def _misalignment(geometry: Geometry, vec: int) -> str | None:
    """Why some rows do not start on a multiple of `vec` elements; None when all do."""
    if vec == 1:
        return None
    if geometry.k % vec:
        return f"K = {geometry.k} is not a multiple of {vec}"
    for operand in geometry.operands:
        if operand.strides[-1] == 0:
            continue
        name = "out" if operand is geometry.output else operand.name
        boundary = min(vec * operand.element_bytes, ACCESS_BYTES)
        if operand.alignment % boundary:
            return f"{name} starts on a boundary of {operand.alignment} bytes, not {boundary}"
        leading = zip(geometry.shape[:-1], operand.strides, strict=False)
        if any(stride * operand.element_bytes % boundary for length, stride in leading if length > 1):
            return f"a stride of {name} is not a multiple of {boundary // operand.element_bytes}"
    return None


def _cluster(k: int, variant: Variant, entry: Entry, largest: int) -> int:
    """CTAs that share a row: the smallest power of two of CTAs that hold it with several on an SM, or, if the GPU does
    not run such a cluster, as many as it does; at least those that just hold it. The number of rows does not matter,
    so a row keeps its bits."""
    if variant.cluster == 1:
        return 1
    held = variant.max_k // variant.cluster
    row = variant.in_vectors(k)
    sharing, fewest = (max(1 << (-(-row // columns) - 1).bit_length(), 2) for columns in (variant.cta_columns, held))
    most = min(largest, entry.k[1] // held)
    return max(min(sharing, 1 << most.bit_length() - 1), fewest)


def _measured(entry: Entry, arch: str) -> str:
    """The measurement that chose an entry, if it was made on this architecture."""
    if entry.measured.startswith(f"{arch}: "):
        return entry.measured
    return f"by arithmetic, from bytes in flight and instructions: not measured on {arch}"
