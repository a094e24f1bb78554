"""Geometry -> launch plan: which variant, which grid, and the bytes of its parameter struct. No torch, no driver."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from .artifacts.catalog import Catalog, Entry, Layout, Variant, argument_bytes
from .problem import MAX_RANK, Dimension, Geometry, Operands, Part, leading_dimensions, parts

DYNAMIC = ("x.address", "y.address", "scale", "mask.address", "mask.fill")
"""Fields that a launch fills in; every other one is fixed by the plan."""


class TooManyDimensions(ValueError):
    """The operands' strides do not describe their rows by at most MAX_RANK leading dimensions: copy them first."""


class NoVariant(LookupError):
    """No shipped kernel serves the geometry."""


@dataclass(frozen=True)
class Launch:
    """One grid of a plan. `offset` moves the operands' addresses, in bytes; `template` is the parameter struct with the
    dynamic fields left 0."""

    grid: int
    rows: int
    offset: Operands
    template: bytes


@dataclass(frozen=True)
class LaunchPlan:
    """How a geometry is computed: one variant, launched once (more often only beyond 2^31 rows)."""

    geometry: Geometry
    variant: Variant
    launches: tuple[Launch, ...]
    fields: tuple[tuple[str, int, str], ...]  # dynamic fields: name, offset in the struct, `struct` format
    reason: str  # why this variant

    def arguments(
        self, launch: Launch, *, x: int, y: int, mask: int = 0, scale: float = 1.0, fill: float = 0.0
    ) -> bytes:
        """The parameter struct of one launch, for operands at these addresses."""
        values = {
            "x.address": x + launch.offset.x,
            "y.address": y + launch.offset.y,
            "mask.address": mask + launch.offset.mask,
            "scale": scale,
            "mask.fill": fill,
        }
        buffer = bytearray(launch.template)
        for name, offset, format in self.fields:
            struct.pack_into(format, buffer, offset, values[name])
        return bytes(buffer)


def plan(geometry: Geometry, catalog: Catalog) -> LaunchPlan:
    """The launch plan of a geometry with at least one row and one column.

    Raises TooManyDimensions when the operands must be copied first, NoVariant when nothing that ships serves it.
    """
    dimensions = leading_dimensions(geometry)
    if len(dimensions) > MAX_RANK:
        raise TooManyDimensions(
            f"{len(dimensions)} leading dimensions remain after coalescing; kernels take {MAX_RANK}"
        )
    variant, reason = _select(geometry, catalog)
    if variant.plan != "tile":
        # Rows that share a mask row run one after the other, so that it is fetched once.
        dimensions.sort(key=lambda dimension: dimension.strides.mask == 0)
    layout = catalog.layout(variant)
    return LaunchPlan(
        geometry=geometry,
        variant=variant,
        launches=tuple(_launch(geometry, variant, layout, part) for part in parts(tuple(dimensions))),
        fields=_dynamic_fields(layout),
        reason=reason,
    )


def _select(geometry: Geometry, catalog: Catalog) -> tuple[Variant, str]:
    """The first entry of the dispatch table that is long enough and whose alignment the rows have."""
    try:
        entries = catalog.candidates(geometry.direction, geometry.dtype, geometry.mask_kind, geometry.k)
    except LookupError as error:
        raise NoVariant(str(error)) from None
    obstacles: list[str] = []
    for entry in entries:
        obstacle = _misalignment(geometry, entry)
        if obstacle is None:
            reason = f"first in its table for K = {geometry.k}" if not obstacles else "; ".join(obstacles)
            return catalog.variants[entry.name], reason
        obstacles.append(f"not {entry.name}: {obstacle}")
    raise NoVariant("; ".join(obstacles))


def _misalignment(geometry: Geometry, entry: Entry) -> str | None:
    """Why the rows do not have the entry's alignment; None when they do."""
    vec = entry.vec
    if vec == 1:
        return None
    if geometry.k % vec:
        return f"K = {geometry.k} is not a multiple of {vec}"
    operands = [
        ("x", geometry.alignment.x, geometry.x_strides, geometry.element_bytes),
        ("out", geometry.alignment.y, geometry.y_strides, geometry.element_bytes),
    ]
    if geometry.mask_bytes and geometry.mask_strides[-1]:
        operands.append(("mask", geometry.alignment.mask, geometry.mask_strides, geometry.mask_bytes))
    for name, alignment, strides, size in operands:
        if alignment % (vec * size):
            return f"{name} starts on a boundary of {alignment} bytes, not {vec * size}"
        if any(stride % vec for length, stride in zip(geometry.shape[:-1], strides, strict=False) if length > 1):
            return f"a stride of {name} is not a multiple of {vec}"
    return None


def _launch(geometry: Geometry, variant: Variant, layout: Layout, part: Part) -> Launch:
    rows_per_cta = _rows_per_cta(geometry, variant)
    inner_first = part.dimensions[::-1]
    offset = geometry.causal_offset if geometry.causal_offset is not None else geometry.k
    values: dict[str, tuple[float, ...]] = {
        "rows.count": (part.rows,),
        "rows.k": (geometry.k,),
        "rows.rank": (len(inner_first),),
        "rows.divisors": _divisors(inner_first),
        "x.strides": _padded(dimension.strides.x for dimension in inner_first),
        "y.strides": _padded(dimension.strides.y for dimension in inner_first),
        "causal.offset": (offset + part.query,),
        "causal.query": _padded(dimension.query for dimension in inner_first),
        "mask.strides": _padded(dimension.strides.mask for dimension in inner_first),
        "mask.column_stride": (geometry.mask_strides[-1],),
        "tile.rows_per_cta": (rows_per_cta,),
        "tile.flat": (int(_is_flat(geometry.k, inner_first)),),
        **{name: (0,) for name in DYNAMIC},
    }
    size = geometry.element_bytes
    return Launch(
        grid=-(-part.rows // rows_per_cta),
        rows=part.rows,
        offset=Operands(part.offset.x * size, part.offset.y * size, part.offset.mask * geometry.mask_bytes),
        template=_pack(layout, values),
    )


def _rows_per_cta(geometry: Geometry, variant: Variant) -> int:
    """Of a tile: as many as fit, rounded so that every CTA's range starts at the phase of the first one's."""
    if variant.plan != "tile":
        return variant.rows
    rows = variant.tile_elements // geometry.k
    vector = 16 // geometry.element_bytes
    period = vector // gcd(geometry.k, vector)
    return max(rows // period * period, 1) if rows >= period else rows


def _is_flat(k: int, inner_first: tuple[Dimension, ...]) -> bool:
    """Whether the rows of x, and those of y, follow each other without a gap."""
    expected = k
    for dimension in inner_first:
        if dimension.size > 1 and (dimension.strides.x != expected or dimension.strides.y != expected):
            return False
        expected *= dimension.size
    return True


def _divisors(inner_first: tuple[Dimension, ...]) -> tuple[int, ...]:
    """Divisor, multiplier and shift of every dimension but the outermost possible one, as rows.cuh defines them."""
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


def _padded(numbers) -> tuple[int, ...]:
    numbers = tuple(numbers)
    return numbers + (0,) * (MAX_RANK - len(numbers))


def _pack(layout: Layout, values: Mapping[str, tuple[float, ...]]) -> bytes:
    flat = [number for name, _ in layout if name for number in values[name]]
    return struct.pack("".join(format for _, format in layout), *flat)


def _dynamic_fields(layout: Layout) -> tuple[tuple[str, int, str], ...]:
    fields = []
    for position, (name, format) in enumerate(layout):
        if name in DYNAMIC:
            fields.append((name, argument_bytes(layout[: position + 1]) - struct.calcsize(format), format))
    return tuple(fields)
