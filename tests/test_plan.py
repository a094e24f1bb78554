"""Launch plans: what a kernel computes from its parameters, emulated as rows.cuh does it, against strided indexing."""

import itertools
import struct
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.catalog import Layout
from softmax_ops.plan import LaunchPlan, NoVariant, TooManyDimensions, divisor, plan
from softmax_ops.problem import MAX_RANK, MAX_ROWS, Dimension, Geometry, Operands, Part, leading_dimensions, parts
from tests.geometries import CAUSAL, contiguous, geometry

CATALOG = catalog.load()
KINDS = sorted(key[1:] for key in CATALOG.tables)  # (dtype, mask kind)
MAX_K = 16384

examples = settings(deadline=None, database=None, derandomize=True, max_examples=200)


def planned(of: Geometry) -> LaunchPlan:
    return plan(of, CATALOG)


# What a kernel sees


def fields(layout: Layout, arguments: bytes) -> dict[str, tuple[Any, ...]]:
    """The parameter struct by name, each field read at its offset in the C struct."""
    found, before = {}, ""
    for name, format in layout:
        offset = struct.calcsize(before + "0" + format[-1])
        if name:
            found[name] = struct.unpack_from(format, arguments, offset)
        before += format
    assert struct.calcsize(before) == len(arguments)
    return found


def row_index(p: dict[str, tuple[Any, ...]], rows: np.ndarray) -> list[np.ndarray]:
    """RowIndex of rows.cuh: numbers along d0, d1, d2, d3, in 32-bit arithmetic."""
    (rank,) = p["rows.rank"]
    index = [rows.astype(np.uint64)] + [np.zeros(len(rows), np.uint64)] * (MAX_RANK - 1)
    for d in range(min(rank, MAX_RANK) - 1):
        size, multiplier, shift = (np.uint64(number) for number in p["rows.divisors"][3 * d : 3 * d + 3])
        product = (2 * index[d] & np.uint64(0xFFFFFFFF)) * multiplier
        index[d + 1] = product >> np.uint64(32) >> shift
        index[d] = index[d] - index[d + 1] * size
    return [numbers.astype(np.int64) for numbers in index]


def offset(p: dict[str, tuple[Any, ...]], index: list[np.ndarray], strides: str) -> np.ndarray:
    """RowIndex::offset of rows.cuh."""
    total = index[0] * p[strides][0]
    if p["rows.rank"][0] > 1:
        for d in range(1, MAX_RANK):
            total = total + index[d] * p[strides][d]
    return total


def rows_of(of: Geometry, launch_plan: LaunchPlan) -> list[tuple[int, ...]]:
    """Of every row: addresses of x, y and mask for operands at address 0, and columns before the causal edge."""
    layout = CATALOG.layout(launch_plan.variant)
    seen: list[tuple[int, ...]] = []
    for launch in launch_plan.launches:
        p = fields(layout, launch_plan.arguments(launch, x=0, y=0, mask=0))
        assert p["rows.count"] == (launch.rows,) and p["rows.k"] == (of.k,)
        index = row_index(p, np.arange(launch.rows))
        x = p["x.address"][0] + offset(p, index, "x.strides") * of.element_bytes
        y = p["y.address"][0] + offset(p, index, "y.strides") * of.element_bytes
        mask = p["mask.address"][0] + offset(p, index, "mask.strides") * of.mask_bytes if of.mask_bytes else 0 * x
        edge = offset(p, index, "causal.query") + p["causal.offset"][0] if "causal.query" in p else 0 * x
        seen += list(zip(x.tolist(), y.tolist(), mask.tolist(), edge.tolist(), strict=True))
    return seen


def expected_rows(of: Geometry) -> list[tuple[int, ...]]:
    """The same by indexing every leading dimension; where nothing is causal the edge is where it hides nothing."""
    rows: list[tuple[int, ...]] = []
    for index in itertools.product(*map(range, of.shape[:-1])):
        x, y, mask = (
            sum(i * stride for i, stride in zip(index, strides, strict=False))
            for strides in (of.x_strides, of.y_strides, of.mask_strides)
        )
        has_edge = "causal.query" in dict(CATALOG.layout(planned(of).variant))
        edge = (of.k if of.causal_offset is None else index[-1] + of.causal_offset) if has_edge else 0
        rows.append((x * of.element_bytes, y * of.element_bytes, mask * of.mask_bytes, edge))
    return rows


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Up to five leading dimensions; x, y and mask each in its own order in memory, padded, x and mask broadcast."""
    dtype, mask_kind = draw(st.sampled_from(KINDS))
    shape = (*draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)), draw(st.sampled_from([1, 7, 8, 48, 1000])))

    def strides(may_broadcast: bool) -> tuple[int, ...]:
        order = draw(st.permutations(range(len(shape) - 1)))
        found = [0] * (len(shape) - 1) + [1]
        step = shape[-1] + draw(st.sampled_from([0, 0, 0, 1, 8]))
        for d in order[::-1] if draw(st.booleans()) else range(len(shape) - 2, -1, -1):
            if not (may_broadcast and draw(st.integers(0, 3)) == 0):
                found[d] = step
                step = step * shape[d] + draw(st.sampled_from([0, 0, 0, 8]))
        return tuple(found)

    masked = bool(geometry(shape, dtype, mask_kind).mask_bytes)
    changes: dict[str, Any] = {"causal_offset": draw(st.integers(-5, 60))} if mask_kind in CAUSAL else {}
    mask_strides = (*strides(may_broadcast=True)[:-1], draw(st.integers(0, 1))) if masked else (0,) * len(shape)
    return geometry(
        shape,
        dtype,
        mask_kind,
        x_strides=strides(may_broadcast=True),
        y_strides=strides(may_broadcast=False),
        mask_strides=mask_strides,
        alignment=draw(st.sampled_from([1, 8, 16])),
        **changes,
    )


@given(geometries())
@examples
def test_rows_are_where_the_strides_say(of: Geometry) -> None:
    """Every row once, with the mask row and the causal edge that belong to it, whatever was merged and reordered."""
    try:
        launch_plan = planned(of)
    except TooManyDimensions:
        assert len(leading_dimensions(of)) > MAX_RANK
        return
    assert sorted(rows_of(of, launch_plan)) == sorted(expected_rows(of))
    column_stride = fields(CATALOG.layout(launch_plan.variant), launch_plan.launches[0].template).get(
        "mask.column_stride"
    )
    assert column_stride in (None, (of.mask_strides[-1],))


@given(geometries(), st.integers(1, 30))
@examples
def test_parts_are_the_rows_in_order(of: Geometry, limit: int) -> None:
    """For limits that cut at every depth."""

    def walk(dimensions: tuple[Dimension, ...]) -> list[tuple[int, ...]]:
        steps = [(*dimension.strides, dimension.query) for dimension in dimensions]
        return [
            tuple(sum(i * step[n] for i, step in zip(index, steps, strict=True)) for n in range(4))
            for index in itertools.product(*(range(dimension.size) for dimension in dimensions))
        ]

    dimensions = tuple(leading_dimensions(of))
    cut = parts(dimensions, limit)
    start = [(*part.offset, part.query) for part in cut]
    rows = [
        tuple(map(sum, zip(start[i], row, strict=True))) for i, part in enumerate(cut) for row in walk(part.dimensions)
    ]
    assert rows == walk(dimensions)
    assert all(part.rows <= limit for part in cut)


def test_parts_beyond_32_bit_row_numbers() -> None:
    """Few, and cut where a whole number of the outermost steps fits."""
    heads, queries = Dimension(2**20, Operands(2**20, 2**20, 0), 0), Dimension(2**13, Operands(64, 64, 64), 1)
    cut = parts((heads, queries))
    assert [part.rows for part in cut] == [2**31 - 2**13] * 4 + [2**15]
    assert [part.offset for part in cut] == [
        Operands(i * (2**18 - 1) * 2**20, i * (2**18 - 1) * 2**20, 0) for i in range(5)
    ]
    assert parts((queries._replace(size=MAX_ROWS),)) == [Part((queries._replace(size=MAX_ROWS),), Operands(0, 0, 0), 0)]
    one_more = parts((queries._replace(size=MAX_ROWS + 1),))
    assert [(part.rows, part.offset.x, part.query) for part in one_more] == [
        (MAX_ROWS, 0, 0),
        (1, 64 * MAX_ROWS, MAX_ROWS),
    ]


def test_a_causal_problem_beyond_32_bit_row_numbers() -> None:
    """The query number that a later launch begins with is in its offset."""
    of = geometry((2**31 + 5, 64), mask_kind="boolcausal", causal_offset=-3)
    first, second = planned(of).launches
    layout = CATALOG.layout(planned(of).variant)
    assert (first.rows, second.rows) == (MAX_ROWS, 2**31 + 5 - MAX_ROWS)
    assert fields(layout, first.template)["causal.offset"] == (-3,)
    assert fields(layout, second.template)["causal.offset"] == (-3 + MAX_ROWS,)
    assert second.offset == Operands(MAX_ROWS * 64 * 2, MAX_ROWS * 64 * 2, MAX_ROWS * 64)  # bytes


def test_the_largest_launch() -> None:
    """Almost 2^31 rows through three divisors, looked at where they carry."""
    sizes = (MAX_ROWS // (3 * 7 * 11), 3, 7, 11)
    shape = (*sizes, 64)
    strides = (*(stride + 8 * (3 - d) for d, stride in enumerate(contiguous(shape)[:-1])), 1)
    of = geometry(shape, x_strides=strides, y_strides=strides)
    (launch,) = planned(of).launches
    p = fields(CATALOG.layout(planned(of).variant), launch.template)
    assert p["rows.rank"] == (4,)
    rows = np.array([0, 10, 11, 76, 77, 230, 231, 2**30, launch.rows - 1], dtype=np.int64)
    index = np.unravel_index(rows, sizes)
    expected = sum(i.astype(np.int64) * stride for i, stride in zip(index, strides, strict=False))
    assert offset(p, row_index(p, rows), "x.strides").tolist() == np.asarray(expected).tolist()


@pytest.mark.parametrize("k", [33, 100, 1000, 4096, 16384])
@pytest.mark.parametrize("alignment", [16, 1])
def test_row_numbers_stay_32_bit(k: int, alignment: int) -> None:
    """Also those that the last CTA counts beyond the last row."""
    found = planned(geometry((MAX_ROWS, k), alignment=alignment))
    (launch,) = found.launches
    assert launch.grid < 2**31
    assert found.variant.plan == "tile" or launch.grid * found.variant.rows <= 2**31


# Divisors


NOTABLE = sorted({n for e in range(32) for n in (2**e - 1, 2**e, 2**e + 1, 3 * 2**e) if 0 < n < 2**31})


def quotients(size: int, numerators: np.ndarray) -> np.ndarray:
    _, multiplier, shift = divisor(size)
    assert 0 < multiplier < 2**32
    return ((2 * numerators.astype(np.uint64)) * np.uint64(multiplier)) >> np.uint64(32) >> np.uint64(shift)


def test_divisors_at_the_edges() -> None:
    """Every notable divisor with every notable numerator, and the numerators around its multiples."""
    for size in NOTABLE:
        multiples = size * np.linspace(1, (2**31 - 1) // size, 50).astype(np.int64)
        numerators = np.concatenate([[0], NOTABLE, multiples - 1, multiples, np.minimum(multiples + 1, 2**31 - 1)])
        assert (quotients(size, numerators) == numerators.astype(np.uint64) // np.uint64(size)).all(), size


@given(st.integers(1, 2**31 - 1), st.lists(st.integers(0, 2**31 - 1), min_size=1))
@examples
def test_divisors(size: int, numerators: list[int]) -> None:
    around = [n // size * size + d for n in numerators for d in (-1, 0, size - 1)]
    tested = np.array([n for n in numerators + around if 0 <= n < 2**31], dtype=np.int64)
    assert quotients(size, tested).tolist() == (tested // size).tolist()


# Dimensions


def dimensions(shape: tuple[int, ...], **changes: Any) -> list[tuple[int, int]]:
    return [(dimension.size, dimension.query) for dimension in leading_dimensions(geometry(shape, **changes))]


def test_contiguous_dimensions_merge() -> None:
    assert dimensions((2, 3, 5, 8)) == [(30, 0)]
    assert dimensions((1, 1, 8)) == [(1, 0)]
    assert dimensions((4, 1, 5, 8), x_strides=(40, 999, 8, 1)) == [(20, 0)]  # the stride of a size of 1 is never taken


def test_what_differs_keeps_dimensions_apart() -> None:
    assert dimensions((2, 3, 5, 8), x_strides=(240, 80, 16, 1)) == [(30, 0)]  # padded rows, one after the other
    assert dimensions((2, 3, 5, 8), x_strides=(128, 40, 8, 1)) == [(2, 0), (15, 0)]  # a gap in x alone
    assert dimensions((2, 3, 5, 8), y_strides=(128, 40, 8, 1)) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="bool", mask_shape=(2, 1, 1, 8)) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="bool", mask_shape=(5, 8)) == [(6, 0), (5, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="causal") == [(6, 0), (5, 1)]  # queries are counted
    assert dimensions((2, 3, 1, 8), mask_kind="causal") == [(6, 0)]  # a single one needs no count


def test_broadcast_dimensions_merge() -> None:
    assert dimensions((2, 3, 5, 8), x_strides=(0, 0, 0, 1)) == [(30, 0)]
    assert dimensions((2, 3, 5, 8), x_strides=(0, 0, 8, 1)) == [(6, 0), (5, 0)]


def test_too_many_dimensions() -> None:
    strides = (10**5, 10**4, 10**3, 10**2, 10, 1)
    with pytest.raises(TooManyDimensions, match="5 leading dimensions remain after coalescing; kernels take 4"):
        planned(geometry((2, 2, 2, 2, 2, 8), x_strides=strides))
    assert len(planned(geometry((1, 2, 2, 2, 2, 8), x_strides=strides)).launches) == 1


def test_heads_that_share_a_mask_row_run_one_after_the_other() -> None:
    """[B, H, Q, K] with a mask [B, 1, Q, K]: heads become the fastest dimension, for all plans but tiles."""
    heads = 3
    of = geometry((2, heads, 5, 1000), mask_kind="bool", mask_shape=(2, 1, 5, 1000))
    masks = [mask for _, _, mask, _ in rows_of(of, planned(of))]
    assert masks == [row * 1000 for row in range(10) for _ in range(heads)]
    tile = geometry((2, heads, 5, 7), mask_kind="bool", mask_shape=(2, 1, 5, 7))
    assert planned(tile).variant.plan == "tile"
    assert rows_of(tile, planned(tile)) == expected_rows(tile)  # a tile's rows are one range of memory


def test_more_than_65535_batches_and_heads() -> None:
    """One dimension of the grid, which may have 2^31 - 1 CTAs."""
    (launch,) = planned(geometry((300, 300, 7, 1000))).launches
    assert launch.grid == -(-300 * 300 * 7 // 4)
    (launch,) = planned(geometry((70000, 1, 4096))).launches
    assert launch.grid == 70000


def test_offsets_beyond_32_bits() -> None:
    of = geometry((3, 2**20, 4096), mask_kind="bool")
    layout = CATALOG.layout(planned(of).variant)
    (launch,) = planned(of).launches
    p = fields(layout, launch.template)
    last = row_index(p, np.array([launch.rows - 1]))
    assert offset(p, last, "x.strides").tolist() == [(3 * 2**20 - 1) * 4096]
    wide = of._replace(x_strides=(2**40, 4096, 1), y_strides=(2**41, 4096, 1))
    (launch,) = planned(wide).launches
    p = fields(layout, launch.template)
    assert (p["x.strides"][1], p["y.strides"][1]) == (2**40, 2**41)


# Which variant


every_kind = pytest.mark.parametrize(("dtype", "mask_kind"), KINDS, ids=["-".join(kind) for kind in KINDS])


@every_kind
def test_every_row_length_is_served(dtype: str, mask_kind: str) -> None:
    """By a variant that takes rows which start anywhere, if by no other."""
    for k in range(1, MAX_K + 1):
        last = CATALOG.candidates("fwd", dtype, mask_kind, k)[-1]
        assert last.vec == 1 and CATALOG.variants[last.name].max_k >= k, k


@every_kind
@pytest.mark.parametrize("alignment", [16, 1])
def test_the_first_variant_that_fits_is_taken(dtype: str, mask_kind: str, alignment: int) -> None:
    """At the ends of every bucket, at all short lengths, and at many between."""
    table = CATALOG.tables["fwd", dtype, mask_kind]
    ends = {end + d for entry in table for end in entry.k for d in (-1, 0, 1)}
    for k in sorted((ends | {*range(1, 70), *range(72, MAX_K, 1036)}) & {*range(1, MAX_K + 1)}):
        found = planned(geometry((3, k), dtype, mask_kind, alignment=alignment))
        fits = (e for e in table if e.k[0] <= k <= e.k[1] and (e.vec == 1 or (alignment == 16 and k % e.vec == 0)))
        assert found.variant.name == next(fits).name, k
        assert found.variant.dtype == dtype and found.reason


def test_f64_takes_its_boolean_mask_through_the_causal_kernel() -> None:
    """bool is boolcausal with an edge beyond the last column."""
    of = geometry((3, 5, 100), "f64", "bool")
    assert planned(of).variant.mask == "boolcausal"
    assert {edge for *_, edge in rows_of(of, planned(of))} == {100}


ALIGNED = geometry((3, 5, 1000), mask_kind="bool")
MISALIGNED = {
    "K = 1001 is not a multiple of 8": geometry((3, 5, 1001), mask_kind="bool"),
    "x starts on a boundary of 8 bytes, not 16": ALIGNED._replace(alignment=Operands(8, 16, 16)),
    "out starts on a boundary of 2 bytes, not 16": ALIGNED._replace(alignment=Operands(16, 2, 16)),
    "mask starts on a boundary of 4 bytes, not 8": ALIGNED._replace(alignment=Operands(16, 16, 4)),
    "a stride of x is not a multiple of 8": ALIGNED._replace(x_strides=(5010, 1002, 1)),
    "a stride of out is not a multiple of 8": ALIGNED._replace(y_strides=(5004, 1000, 1)),
    "a stride of mask is not a multiple of 8": ALIGNED._replace(mask_strides=(0, 1004, 1)),
}


@pytest.mark.parametrize(("obstacle", "of"), MISALIGNED.items(), ids=list(MISALIGNED))
def test_rows_that_are_not_aligned_go_elsewhere(obstacle: str, of: Geometry) -> None:
    assert planned(ALIGNED).variant.vec == 8
    assert planned(of).variant.vec == 1
    assert planned(of).reason == f"not {planned(ALIGNED).variant.name}: {obstacle}"


@pytest.mark.parametrize(
    "of",
    [
        ALIGNED._replace(alignment=Operands(16, 16, 8)),  # eight mask bytes are one access of 8
        ALIGNED._replace(mask_strides=(5, 1, 0), alignment=Operands(16, 16, 1)),  # one mask byte for a row
        ALIGNED._replace(mask_strides=(0, 0, 1)),
        geometry((1, 1, 1000), x_strides=(7, 7, 1)),  # nothing moves along a size of 1
    ],
)
def test_rows_that_are_aligned_after_all(of: Geometry) -> None:
    assert planned(of).variant.vec == 8


def test_no_variant() -> None:
    """What is missing, and what there is instead."""
    with pytest.raises(
        NoVariant, match=r"^no fwd f16 none kernel ships for rows of 50257 columns; the longest is 16384$"
    ):
        planned(geometry((3, 50257)))
    with pytest.raises(
        NoVariant,
        match=r"^no fwd f64 kernel ships for mask kind 'like'; these do: bool, boolcausal, causal, none$",
    ):
        planned(geometry((3, 7), "f64", "like"))


# Tiles


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_rows_of_a_tile(dtype: str) -> None:
    """As many as fit, in whole periods where one fits: then every CTA begins at the 16-byte phase of the first."""
    for k in range(1, 513):
        of = geometry((1000, k), dtype, alignment=Operands(2, 2, 2))
        found = planned(of)
        (launch,) = found.launches
        if found.variant.plan != "tile":
            continue
        (rows,) = fields(CATALOG.layout(found.variant), launch.template)["tile.rows_per_cta"]
        assert launch.grid == -(-1000 // rows)
        assert 0 < rows * k <= found.variant.tile_elements
        period = next(n for n in range(1, 17) if n * k * of.element_bytes % 16 == 0)
        most = found.variant.tile_elements // k
        assert rows == most - most % period if most >= period else rows == most


def test_flat_tiles() -> None:
    """Only where rows of x, and rows of y, follow each other without a gap."""

    def flat(**changes: Any) -> bool:
        found = planned(geometry((2, 3, 5, 7), **changes))
        return bool(fields(CATALOG.layout(found.variant), found.launches[0].template)["tile.flat"][0])

    assert flat()
    assert flat(mask_kind="boolcausal", mask_shape=(2, 1, 1, 7))
    assert not flat(x_strides=(120, 40, 8, 1))
    assert not flat(y_strides=(120, 40, 8, 1))
    assert not flat(x_strides=(35, 70, 7, 1), y_strides=(35, 70, 7, 1))  # permuted
    assert not flat(x_strides=(0, 35, 7, 1))


@given(geometries())
@examples
def test_flat_tiles_hold_rows_in_order(of: Geometry) -> None:
    """Then row r of the launch begins K elements after row r - 1, in x and in y."""
    if len(leading_dimensions(of)) > MAX_RANK:
        return
    found = planned(of)
    if (
        found.variant.plan == "tile"
        and fields(CATALOG.layout(found.variant), found.launches[0].template)["tile.flat"][0]
    ):
        size = of.k * of.element_bytes
        assert [row[:2] for row in rows_of(of, found)] == [(r * size, r * size) for r in range(prod(of.shape[:-1]))]
