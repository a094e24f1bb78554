"""Geometry -> launch plan: the variant, the grids, and the bytes of the parameter struct. Needs no torch and no
driver."""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from ..artifacts.catalog import Catalog, Layout, Variant, argument_bytes
from ..artifacts.constants import ACCESS_BYTES, MAX_CLUSTER
from .geometry import (
    EVERYWHERE,
    MAX_RANK,
    MAX_ROWS,
    Dimension,
    General,
    Geometry,
    LaunchRows,
    launch_rows,
    leading_dimensions,
)
from .selection import select
from .split import pieces_of, turns_of
from .tile import tile_of

SCALARS = ("scale", "mask.fill")
"""Fields that a launch fills in, like every `<operand>.address`; all others are fixed by the plan."""

WARP = 32
"""Threads of a warp."""

WORKSPACE = "workspace.address"
"""Field with the address of scratch memory (LaunchPlan.workspace_bytes) for the partial results of split rows."""


class TooManyDimensions(ValueError):
    """The operands' strides do not describe their rows by at most MAX_RANK leading dimensions: copy them first."""


@dataclass(frozen=True)
class Launch:
    """One grid of a plan. `template` is the parameter struct with the dynamic fields left 0."""

    grid: int
    threads: int  # per CTA
    cluster: int  # CTAs per cluster
    rows: int
    offset: tuple[int, ...]  # added to each operand's address, in bytes
    template: bytes


@dataclass(frozen=True)
class LaunchPlan:
    """How a geometry is computed: one variant, launched once. `split` takes two launches, for rows of very many pieces
    three. More are needed only for more than 2^31 rows, or more than 2^31 elements from one row to the next."""

    geometry: Geometry
    variant: Variant
    launches: tuple[Launch, ...]
    fields: tuple[tuple[str, int, str], ...]  # dynamic fields: name, offset in the struct, `struct` format
    workspace_bytes: int
    reason: str  # why this variant
    measured: str  # the measurement that chose its tile, or that there is none

    @property
    def cluster(self) -> int:
        """CTAs of a cluster, at most."""
        return max(launch.cluster for launch in self.launches)

    def arguments(self, launch: Launch, values: Mapping[str, float]) -> bytes:
        """The parameter struct of one launch, with addresses and scalars by field name; fields without a value are
        0."""
        offsets = {f"{operand.name}.address": 0 for operand in self.geometry.operands}
        offsets.update(zip(offsets, launch.offset, strict=True))
        buffer = bytearray(launch.template)
        for name, offset, format in self.fields:
            if name in values:
                struct.pack_into(format, buffer, offset, values[name] + offsets.get(name, 0))
        return bytes(buffer)


def plan(geometry: Geometry, catalog: Catalog, arch: str, largest_cluster: int = MAX_CLUSTER) -> LaunchPlan:
    """The launch plan of a geometry with at least one row and one column, on GPUs of an architecture ("sm_90").

    largest_cluster   CTAs of the largest cluster that the GPU can run; 1: it cannot run clusters.

    Raises TooManyDimensions when the operands must be copied first, NoVariant when no shipped kernel serves the
    geometry.
    """
    dimensions = leading_dimensions(geometry)
    if len(dimensions) > MAX_RANK:
        raise TooManyDimensions(
            f"{len(dimensions)} leading dimensions remain after coalescing; kernels take {MAX_RANK}: "
            "copy the operands to contiguous ones of one shape"
        )
    variant, cluster, reason, measured = select(geometry, catalog, arch, largest_cluster)
    broadcast = geometry.operand("bias") or geometry.mask
    if broadcast is not None and variant.plan != "tile":
        # Rows that share a row of the bias or mask run one after the other, so that it is fetched once. The rows of a
        # tile stay as they lie in memory: it is one range there.
        position = geometry.operands.index(broadcast)
        dimensions.sort(key=lambda dimension: dimension.strides[position] == 0)
    layout = catalog.layout(variant)
    launches = [
        launch
        for rows in launch_rows(tuple(dimensions), MAX_ROWS // cluster)
        for launch in _launches(geometry, variant, cluster, layout, rows)
    ]
    partials = geometry.rows * pieces_of(geometry.k, variant) if variant.splits else 0
    return LaunchPlan(
        geometry=geometry,
        variant=variant,
        launches=tuple(launches),
        fields=_dynamic_fields(layout),
        workspace_bytes=partials * variant.partial_bytes,
        reason=reason,
        measured=measured,
    )


def _launches(geometry: Geometry, variant: Variant, cluster: int, layout: Layout, rows: LaunchRows) -> list[Launch]:
    inner_first = rows.dimensions[::-1]
    tile = tile_of(geometry, variant, inner_first)
    rows_per_cta = tile.rows_per_cta if tile else variant.rows
    offset = geometry.causal_offset if geometry.causal_offset is not None else geometry.k
    values: dict[str, tuple[float, ...]] = {
        **_zeros(layout),
        "rows.count": (rows.total,),
        "rows.k": (geometry.k,),
        "rows.rank": (len(inner_first),),
        "rows.divisors": _divisors(inner_first),
        "causal.offset": (offset + rows.query,),
        "causal.query": _padded(dimension.query for dimension in inner_first),
        **({f"tile.{name}": (int(value),) for name, value in tile._asdict().items()} if tile else {}),
        "cluster.columns": (_part_of_cta(geometry, variant, cluster),),
        "cluster.shift": (cluster.bit_length() - 1,),
        "split.pieces": (pieces_of(geometry.k, variant),),
    }
    # Also where no feature is asked for: general kernels serve masked rows of f64.
    general = geometry.general or General(right=None if geometry.causal_offset is None else 0)
    values.update(_general(geometry, general, rows))
    for position, operand in enumerate(geometry.operands):
        values[f"{operand.name}.strides"] = _padded(dimension.strides[position] for dimension in inner_first)
        values[f"{operand.name}.column_stride"] = (operand.strides[-1],)
    operands = zip(rows.offset, geometry.operands, strict=True)
    addresses = tuple(offset * operand.element_bytes for offset, operand in operands)
    return [
        Launch(
            grid=-(-rows.total // rows_per_cta) * cluster * turn.ctas,
            threads=_threads(geometry, variant, cluster),
            cluster=cluster,
            rows=rows.total,
            offset=addresses,
            template=_pack(layout, values | {f"split.{name}": (int(value),) for name, value in turn._asdict().items()}),
        )
        for turn in turns_of(geometry.k, variant, rows.total)
    ]


def _general(geometry: Geometry, general: General, rows: LaunchRows) -> dict[str, tuple[float, ...]]:
    """Fields of the kinds `band` and `general` other than addresses and strides of operands."""
    bias, cap = geometry.operand("bias"), general.softcap
    return {
        "band.offset": ((geometry.causal_offset or 0) + rows.query,),
        "band.left": (EVERYWHERE if general.left is None else general.left,),
        "band.right": (EVERYWHERE if general.right is None else general.right,),
        "band.query": _padded(dimension.query for dimension in rows.dimensions[::-1]),
        "bias.wide": (int(bias is not None and bias.element_bytes > geometry.element_bytes),),
        "mask.column_stride": (1,),
        "softcap.cap": (cap,),
        "softcap.twice_inverse": (2 / cap if cap else 0.0,),
        "epilogue.logarithms": (int(general.logarithms),),
        "gradient.logarithms": (int(general.logarithms),),
        "gradient.inverse_cap": (1 / cap if cap else 0.0,),
    }


@cache
def _zeros(layout: Layout) -> dict[str, tuple[float, ...]]:
    """Zeros for every field: they remain in fields of absent operands (a null address turns a feature off) and in
    dynamic fields, which the launch fills."""
    return {name: (0,) * len(struct.unpack(format, bytes(struct.calcsize(format)))) for name, format in layout if name}


def _part_of_cta(geometry: Geometry, variant: Variant, cluster: int) -> int:
    """Columns of a row for each CTA of its cluster, whole vectors. The last one also has what is left of the row."""
    vector = ACCESS_BYTES // geometry.element_bytes
    return -(-variant.in_vectors(geometry.k) // (cluster * vector)) * vector


def _threads(geometry: Geometry, variant: Variant, cluster: int) -> int:
    """Threads of a CTA. If the launch decides: the fewest warps that hold the CTA's part of the row, by K alone."""
    if not variant.by_warp:
        return variant.threads
    columns = _part_of_cta(geometry, variant, cluster) if cluster > 1 else variant.in_vectors(geometry.k)
    warps = -(-columns // (WARP * variant.chunks * variant.access))
    return WARP * max(warps, 1)


def _divisors(inner_first: tuple[Dimension, ...]) -> tuple[int, ...]:
    """Divisor, multiplier and shift of dimensions d0 .. d2, as rows.cuh defines them; the outermost, d3, needs none."""
    sizes = [dimension.size for dimension in inner_first[: MAX_RANK - 1]]
    sizes += [1] * (MAX_RANK - 1 - len(sizes))
    return tuple(number for size in sizes for number in divisor(size))


def divisor(size: int) -> tuple[int, int, int]:
    """(divisor, multiplier, shift): n // size == (2 n multiplier >> 32) >> shift for 0 <= n < 2^31.

    >>> _, multiplier, shift = divisor(7)
    >>> [((2 * n * multiplier) >> 32) >> shift for n in (0, 6, 7, 2**31 - 1)] == [0, 0, 1, (2**31 - 1) // 7]
    True
    """
    shift = (size - 1).bit_length()
    return size, -(-(1 << (31 + shift)) // size), shift


def _padded(numbers: Iterable[int]) -> tuple[int, ...]:
    numbers = tuple(numbers)
    return numbers + (0,) * (MAX_RANK - len(numbers))


def _pack(layout: Layout, values: Mapping[str, tuple[float, ...]]) -> bytes:
    return _struct(layout).pack(*(number for name, _ in layout if name for number in values[name]))


@cache
def _struct(layout: Layout) -> struct.Struct:
    return struct.Struct("".join(format for _, format in layout))


@cache
def _dynamic_fields(layout: Layout) -> tuple[tuple[str, int, str], ...]:
    fields = []
    for position, (name, format) in enumerate(layout):
        if name in SCALARS or name.endswith(".address"):
            fields.append((name, argument_bytes(layout[: position + 1]) - struct.calcsize(format), format))
    return tuple(fields)
