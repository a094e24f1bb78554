"""Launch plans: what a kernel computes from its parameters, emulated as rows.cuh does it, against strided indexing."""

import itertools
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.variants import ARCHITECTURES
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.catalog import Catalog, Layout
from softmax_ops.launch_plan import LaunchPlan, NoVariant, TooManyDimensions, _select, divisor, plan
from softmax_ops.problem import (
    DTYPE_BYTES,
    MAX_RANK,
    MAX_ROWS,
    MAX_STRIDE,
    OPERANDS,
    Dimension,
    Geometry,
    Part,
    contiguous_strides,
    leading_dimensions,
    parts,
)
from softmax_ops.tile import Tile
from tests.support.geometries import CAUSAL, MASKED, geometry

CATALOG = catalog.load()
KINDS = sorted(CATALOG.tables)  # (direction, dtype, mask kind)
ANY_K = 2**31 - 2**20

examples = settings(deadline=None, database=None, derandomize=True, max_examples=200)
every_direction = pytest.mark.parametrize("direction", OPERANDS)
every_kind = pytest.mark.parametrize(("direction", "dtype", "mask_kind"), KINDS, ids=["-".join(kind) for kind in KINDS])


def planned(of: Geometry, arch: str = "sm_90") -> LaunchPlan:
    return plan(of, CATALOG, arch)


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
    index = [rows.astype(np.uint64)] + [np.zeros(len(rows), np.uint64)] * (MAX_RANK - 1)
    for d in range(MAX_RANK - 1 if p["rows.rank"][0] > 1 else 0):
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


def parameters(launch_plan: LaunchPlan, launch: int = 0) -> dict[str, tuple[Any, ...]]:
    """What a launch passes for operands at address 0."""
    layout, addresses = CATALOG.layout(launch_plan.variant), dict.fromkeys(DYNAMIC, 0)
    return fields(layout, launch_plan.arguments(launch_plan.launches[launch], addresses))


DYNAMIC = [f"{name}.address" for name in ("x", "y", "dy", "dx", "mask", "workspace")] + ["scale", "mask.fill"]


def rows_of(of: Geometry, launch_plan: LaunchPlan) -> list[tuple[int, ...]]:
    """Of every row: addresses of the operands, each at address 0, and columns before the causal edge.

    Launches over the same rows must agree on them.
    """
    turns: list[list[tuple[int, ...]]] = [[] for _ in range(launch_plan.variant.passes)]
    for number, launch in enumerate(launch_plan.launches):
        p = parameters(launch_plan, number)
        assert p["rows.count"] == (launch.rows,) and p["rows.k"] == (of.k,)
        index = row_index(p, np.arange(launch.rows))
        places = [
            p[f"{operand.name}.address"][0] + offset(p, index, f"{operand.name}.strides") * operand.element_bytes
            for operand in of.operands
        ]
        kind = next((kind for kind in ("causal", "band") if f"{kind}.query" in p), None)
        edge = offset(p, index, f"{kind}.query") + p[f"{kind}.offset"][0] if kind else 0 * index[0]
        turns[number % len(turns)] += zip(*(column.tolist() for column in (*places, edge)), strict=True)
    assert all(turn == turns[0] for turn in turns)
    return turns[0]


def expected_rows(of: Geometry, launch_plan: LaunchPlan) -> list[tuple[int, ...]]:
    """The same by indexing every leading dimension; where nothing is causal the edge is where it hides nothing."""
    rows: list[tuple[int, ...]] = []
    has_edge = {"causal.query", "band.query"} & {*dict(CATALOG.layout(launch_plan.variant))}
    for index in itertools.product(*map(range, of.shape[:-1])):
        places = [
            operand.element_bytes * sum(i * stride for i, stride in zip(index, operand.strides, strict=False))
            for operand in of.operands
        ]
        edge = (of.k if of.causal_offset is None else index[-1] + of.causal_offset) if has_edge else 0
        rows.append((*places, edge))
    return rows


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Up to five leading dimensions; each operand in its own order in memory, padded, all but the output broadcast."""
    direction, dtype, mask_kind = draw(st.sampled_from(KINDS))
    general = mask_kind == "general"
    k = draw(st.sampled_from([1, 7, 8, 48, 1000, 5000, 20000, 50257, 300000]))
    shape = (*draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)), k)

    def strides(may_broadcast: bool) -> tuple[int, ...]:
        order = draw(st.permutations(range(len(shape) - 1)))
        found = [0] * (len(shape) - 1) + [1]
        step = shape[-1] + draw(st.sampled_from([0, 0, 0, 1, 8]))
        for d in order[::-1] if draw(st.booleans()) else range(len(shape) - 2, -1, -1):
            if not (may_broadcast and draw(st.integers(0, 3)) == 0):
                found[d] = step
                step = step * shape[d] + draw(st.sampled_from([0, 0, 0, 8]))
        return tuple(found)

    *inputs, output = OPERANDS[direction]
    moves = {name: strides(may_broadcast=True) for name in inputs} | {output: strides(may_broadcast=False)}
    if mask_kind in MASKED:
        moves["mask"] = (*strides(may_broadcast=True)[:-1], draw(st.integers(0, 1)))
    if mask_kind == "bias":
        moves["bias"] = strides(may_broadcast=True)
    changes: dict[str, Any] = {"causal_offset": draw(st.integers(-5, 60))} if mask_kind in CAUSAL or general else {}
    return geometry(
        shape,
        dtype,
        mask_kind,
        direction=direction,
        strides=moves,
        alignment=draw(st.sampled_from([1, 8, 16])),
        batch_invariant=draw(st.booleans()),
        **changes,
    )


@given(geometries(), st.sampled_from(ARCHITECTURES))
@examples
def test_rows_are_where_the_strides_say(of: Geometry, arch: str) -> None:
    """Every row once, with the mask row and the causal edge that belong to it, whatever was merged and reordered."""
    try:
        launch_plan = planned(of, arch)
    except TooManyDimensions:
        assert len(leading_dimensions(of)) > MAX_RANK
        return
    assert sorted(rows_of(of, launch_plan)) == sorted(expected_rows(of, launch_plan))
    column_stride = parameters(launch_plan).get("mask.column_stride")
    if of.general is None:
        assert column_stride == (None if of.mask is None else (of.mask.strides[-1],))


@given(geometries(), st.integers(1, 30))
@examples
def test_parts_are_the_rows_in_order(of: Geometry, limit: int) -> None:
    """For limits that cut at every depth."""

    def walk(dimensions: tuple[Dimension, ...]) -> list[tuple[int, ...]]:
        steps = [(*dimension.strides, dimension.query) for dimension in dimensions]
        return [
            tuple(sum(i * step[n] for i, step in zip(index, steps, strict=True)) for n in range(len(of.operands) + 1))
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
    heads, queries = Dimension(2**20, (2**20, 2**20, 0), 0), Dimension(2**13, (64, 64, 64), 1)
    cut = parts((heads, queries))
    assert [part.rows for part in cut] == [2**31 - 2**13] * 4 + [2**15]
    assert [part.offset for part in cut] == [(i * (2**18 - 1) * 2**20, i * (2**18 - 1) * 2**20, 0) for i in range(5)]
    assert parts((queries._replace(size=MAX_ROWS),)) == [Part((queries._replace(size=MAX_ROWS),), (0, 0, 0), 0)]
    one_more = parts((queries._replace(size=MAX_ROWS + 1),))
    assert [(part.rows, part.offset[0], part.query) for part in one_more] == [
        (MAX_ROWS, 0, 0),
        (1, 64 * MAX_ROWS, MAX_ROWS),
    ]


def test_parts_beyond_32_bit_strides() -> None:
    """A launch for each step of the dimension, wherever it stands, and of no other."""
    heads, batch = Dimension(3, (4096, 64, 0), 0), Dimension(2, (64, MAX_STRIDE + 1, 0), 0)
    cut = parts((heads, batch, Dimension(5, (8, 8, 1), 1)))
    assert [(part.rows, part.offset) for part in cut] == [(15, (0, 0, 0)), (15, (64, MAX_STRIDE + 1, 0))]
    assert max(stride for part in cut for dimension in part.dimensions for stride in dimension.strides) == 4096
    found = planned(geometry((2, 3, 64), strides={"y": (-MAX_STRIDE - 1, 64, 1)}))
    assert [launch.rows for launch in found.launches] == [3, 3]
    assert found.launches[1].offset == (3 * 64 * 2, (-MAX_STRIDE - 1) * 2)  # bytes


def test_a_causal_problem_beyond_32_bit_row_numbers() -> None:
    """The query number that a later launch begins with is in its offset."""
    found = planned(geometry((2**31 + 5, 64), mask_kind="boolcausal", causal_offset=-3))
    first, second = found.launches
    assert (first.rows, second.rows) == (MAX_ROWS, 2**31 + 5 - MAX_ROWS)
    assert parameters(found)["causal.offset"] == (-3,)
    assert parameters(found, 1)["causal.offset"] == (-3 + MAX_ROWS,)
    assert second.offset == (MAX_ROWS * 64 * 2, MAX_ROWS * 64 * 2, MAX_ROWS * 64)  # bytes
    addresses = [parameters(found, 1)[f"{name}.address"] for name in ("x", "y", "mask")]
    assert addresses == [(offset,) for offset in second.offset]


def test_the_largest_launch() -> None:
    """Almost 2^31 rows through three divisors, looked at where they carry."""
    sizes = (MAX_ROWS // (3 * 7 * 11), 3, 7, 11)
    shape = (*sizes, 64)
    strides = (*(stride + 8 * (3 - d) for d, stride in enumerate(contiguous_strides(shape)[:-1])), 1)
    found = planned(geometry(shape, strides={"x": strides, "y": strides}))
    (launch,), p = found.launches, parameters(found)
    assert p["rows.rank"] == (4,)
    rows = np.array([0, 10, 11, 76, 77, 230, 231, 2**30, launch.rows - 1], dtype=np.int64)
    index = np.unravel_index(rows, sizes)
    expected = sum(i.astype(np.int64) * stride for i, stride in zip(index, strides, strict=False))
    assert offset(p, row_index(p, rows), "x.strides").tolist() == np.asarray(expected).tolist()


@pytest.mark.parametrize("k", [33, 100, 1000, 4096, 16384, 2**17, 2**18, 2**18 + 1])
@pytest.mark.parametrize("alignment", [16, 1])
def test_row_and_cta_numbers_stay_32_bit(k: int, alignment: int) -> None:
    """Also the rows that the last CTA counts beyond the last one, and all CTAs of clusters."""
    found = planned(geometry((MAX_ROWS, k), alignment=alignment))
    assert sum(launch.rows for launch in found.launches) == MAX_ROWS
    for launch in found.launches:
        assert launch.grid < 2**31
        assert found.variant.plan == "tile" or launch.grid // launch.cluster * found.variant.rows <= 2**31


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
    assert dimensions((2, 3, 5, 8), direction="bwd") == [(30, 0)]
    assert dimensions((1, 1, 8)) == [(1, 0)]
    assert dimensions((4, 1, 5, 8), strides={"x": (40, 999, 8, 1)}) == [(20, 0)]  # a size of 1 takes no steps


def test_what_differs_keeps_dimensions_apart() -> None:
    assert dimensions((2, 3, 5, 8), strides={"x": (240, 80, 16, 1)}) == [(30, 0)]  # padded rows, one after the other
    gap = (128, 40, 8, 1)  # in one tensor alone
    assert dimensions((2, 3, 5, 8), strides={"x": gap}) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), strides={"y": gap}) == [(2, 0), (15, 0)]
    for name in OPERANDS["bwd"]:
        assert dimensions((2, 3, 5, 8), direction="bwd", strides={name: gap}) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="bool", mask_shape=(2, 1, 1, 8)) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="bool", mask_shape=(5, 8)) == [(6, 0), (5, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="causal") == [(6, 0), (5, 1)]  # queries are counted
    assert dimensions((2, 3, 1, 8), mask_kind="causal") == [(6, 0)]  # a single one needs no count


def test_broadcast_dimensions_merge() -> None:
    assert dimensions((2, 3, 5, 8), strides={"x": (0, 0, 0, 1)}) == [(30, 0)]
    assert dimensions((2, 3, 5, 8), strides={"x": (0, 0, 8, 1)}) == [(6, 0), (5, 0)]
    assert dimensions((2, 3, 5, 8), direction="bwd", strides={"dy": (0, 0, 0, 1)}) == [(30, 0)]


def test_too_many_dimensions() -> None:
    strides: dict[str, tuple[int, ...]] = {"x": (10**5, 10**4, 10**3, 10**2, 10, 1)}
    with pytest.raises(TooManyDimensions, match="5 leading dimensions remain after coalescing; kernels take 4"):
        planned(geometry((2, 2, 2, 2, 2, 8), strides=strides))
    assert len(planned(geometry((1, 2, 2, 2, 2, 8), strides=strides)).launches) == 1


@pytest.mark.parametrize("k", [1000, 4096, 20000, 300000])
def test_heads_that_share_a_mask_row_run_one_after_the_other(k: int) -> None:
    """[B, H, Q, K] with a mask [B, 1, Q, K]: heads become the fastest dimension, for all plans but tiles."""
    heads = 3
    of = geometry((2, heads, 5, k), mask_kind="bool", mask_shape=(2, 1, 5, k))
    masks = [mask for _, _, mask, _ in rows_of(of, planned(of))]
    assert masks == [row * k for row in range(10) for _ in range(heads)]


def test_rows_of_a_tile_stay_in_order() -> None:
    """They are one range of memory, whatever the mask."""
    tile = geometry((2, 3, 5, 7), mask_kind="bool", mask_shape=(2, 1, 5, 7))
    found = planned(tile)
    assert found.variant.plan == "tile"
    assert rows_of(tile, found) == expected_rows(tile, found)


def test_more_than_65535_batches_and_heads() -> None:
    """One dimension of the grid, which may have 2^31 - 1 CTAs."""
    (launch,) = planned(geometry((300, 300, 7, 1000))).launches
    assert launch.grid == -(-300 * 300 * 7 // 4)
    (launch,) = planned(geometry((70000, 1, 4096))).launches
    assert launch.grid == 70000
    (launch,) = planned(geometry((70000, 1, 50000))).launches
    assert launch.grid == 4 * 70000


def test_offsets_beyond_32_bits() -> None:
    found = planned(geometry((3, 2**20, 4096), mask_kind="bool"))
    (launch,), p = found.launches, parameters(found)
    last = row_index(p, np.array([launch.rows - 1]))
    assert offset(p, last, "x.strides").tolist() == [(3 * 2**20 - 1) * 4096]
    wide: dict[str, tuple[int, ...]] = {"x": (2**40, 4096, 1), "y": (2**41, 4096, 1)}
    found = planned(geometry((3, 2**20, 4096), mask_kind="bool", strides=wide))
    assert [launch.offset[:2] for launch in found.launches] == [(i * 2**41, i * 2**42) for i in range(3)]  # bytes


# Which variant


CLUSTER_CTAS = {"sm_90": 16, "sm_100": 16, "sm_103": 16, "sm_120": 8}
"""In which rows are held by several CTAs; GPUs before sm_90 have no clusters."""


LONGEST_BLOCK = {"f16": 16384, "bf16": 16384, "f32": 16384, "f64": 8192}
LONGEST_BLOCK_OF_GENERAL = {
    **{("fwd", dtype): k for dtype, k in {"f16": 8192, "bf16": 8192, "f32": 8192, "f64": 2048}.items()},
    **{("bwd", dtype): k for dtype, k in {"f16": 8192, "bf16": 8192, "f32": 4096, "f64": 2048}.items()},
}
"""Columns that one CTA holds, of a cluster too."""


def whole_vectors(dtype: str, k: int) -> int:
    """Columns of a row that the registers of its vectors must hold: those beside them have others, but in f64."""
    return k if dtype == "f64" else k - k % (16 // DTYPE_BYTES[dtype])


def cluster_columns(dtype: str, aligned: bool) -> int:
    """Of each CTA, other than of the general kind: those of a block, and of a warp more where nothing spills."""
    more = DTYPE_BYTES[dtype] == 2 or (dtype == "f32" and aligned)
    return LONGEST_BLOCK[dtype] * 17 // 16 if more else LONGEST_BLOCK[dtype]


def documented_plan(dtype: str, k: int, rows: int, arch: str, direction: str, general: bool, aligned: bool) -> str:
    """Who holds a row: the whole policy in a few lines, apart from codegen.plans where it is made. Alignment has a part
    in it in clusters of f32 only; direction and mask where the general kind holds half as much, in no tiles."""
    held = whole_vectors(dtype, k)
    longest = LONGEST_BLOCK_OF_GENERAL[direction, dtype.split("to")[0]] if general else LONGEST_BLOCK[dtype]
    if k <= 32 and not general:
        return "tile"
    if held * DTYPE_BYTES[dtype] <= (1024 if general else 2048):
        return "warp"
    if held <= longest:
        return "block"
    if k <= (longest if general else cluster_columns(dtype, aligned)) * CLUSTER_CTAS.get(arch, 0):
        return "cluster"
    return "split" if rows <= 128 else "stream"


def row_lengths(table: tuple[catalog.Entry, ...]) -> Iterator[tuple[int, str, int]]:
    """(K, architecture, rows): at the ends of every bucket all of them; for every K up to 2100, and many up to 300000,
    one of each in turn."""
    ends = {end + d for entry in table for end in entry.k for d in (-1, 0, 1)}
    yield from itertools.product(sorted(k for k in ends if 0 < k <= ANY_K), ARCHITECTURES, (1, 128, 129))
    turn = itertools.cycle(itertools.product(ARCHITECTURES, (1, 128, 129)))
    yield from ((k, *next(turn)) for k in (*range(1, 2101), *range(2101, 300000, 97), *range(2104, 300000, 1016)))


@every_kind
def test_every_row_length_is_served_as_documented(direction: str, dtype: str, mask_kind: str) -> None:
    """On every architecture, by a variant that ships for it; no row length falls between two plans."""
    any_length = geometry((1, 1), dtype, mask_kind, direction=direction)
    for k, arch, rows in row_lengths(CATALOG.tables[direction, dtype, mask_kind]):
        for alignment in (16, 1):
            operands = tuple(o._replace(strides=(k, 1), alignment=alignment) for o in any_length.operands)
            entry, reason = _select(any_length._replace(shape=(rows, k), operands=operands), CATALOG, arch)
            found = CATALOG.variants[entry.name]
            aligned = alignment == 16 and k * DTYPE_BYTES[dtype] % 16 == 0
            at = (k, rows, alignment, arch)
            documented = documented_plan(dtype, k, rows, arch, direction, mask_kind == "general", aligned)
            assert found.plan == documented, at
            assert arch in found.architectures and whole_vectors(dtype, k) <= found.max_k and reason, at
            assert (found.direction, found.dtype) == (direction, dtype), at
            assert (found.vec > 1) == (aligned and found.plan not in ("split", "stream")), at


def test_a_plan_says_whether_its_tile_was_measured_on_the_architecture() -> None:
    words = "sm_90: H200, some day"
    entries = tuple(replace(entry, measured=words) for entry in CATALOG.tables["fwd", "f16", "none"])
    measured = Catalog(CATALOG.variants, CATALOG.layouts, {("fwd", "f16", "none"): entries})
    read = Catalog.from_json(measured.to_json())
    assert plan(geometry((4, 1000)), read, "sm_90").measured == words
    for known, arch in ((read, "sm_100"), (CATALOG, "sm_90")):
        said = plan(geometry((4, 1000)), known, arch).measured
        assert said.startswith("by arithmetic") and said.endswith(f"nobody measured it on {arch}")


@every_kind
@pytest.mark.parametrize("alignment", [16, 1])
def test_the_first_variant_that_fits_is_taken(direction: str, dtype: str, mask_kind: str, alignment: int) -> None:
    """At the ends of every bucket, at all short lengths, and at many between."""
    table = CATALOG.tables[direction, dtype, mask_kind]
    ends = {end + d for entry in table for end in entry.k for d in (-1, 0, 1)}
    for k in sorted((ends | {*range(1, 70), *range(72, 300000, 10036)}) & {*range(1, 300000)}):
        found = planned(geometry((3, k), dtype, mask_kind, direction=direction, alignment=alignment))
        fits = (
            e
            for e in table
            if e.k[0] <= k <= e.k[1]
            and (e.vec == 1 or (alignment == 16 and k % e.vec == 0))
            and (not e.architectures or "sm_90" in e.architectures)
        )
        assert found.variant.name == next(fits).name, k
        assert found.variant.dtype == dtype and found.reason


@pytest.mark.parametrize(
    ("of", "arch", "kernel"),
    [
        (geometry((3, 5, 100), "f64", "bool"), "sm_90", "boolcausal warp"),
        (geometry((3, 5, 20000), "f16", "bool"), "sm_90", "boolcausal cluster"),
        (geometry((3, 5, 20000), "f16", "bool"), "sm_80", "boolcausal split"),
        (geometry((30, 5, 20000), "f16", "bool"), "sm_80", "boolcausal stream"),
        (geometry((3, 5, 7), direction="bwd"), "sm_90", "causal tile"),
        (geometry((3, 5, 1000), direction="bwd"), "sm_90", "causal warp"),
        (geometry((3, 5, 20000), direction="bwd"), "sm_90", "causal cluster"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mask_kind,
)
def test_a_kernel_that_could_hide_more_does_not(of: Geometry, arch: str, kernel: str) -> None:
    """Of a causal kernel without an offset: its edge is beyond the last column."""
    found = planned(of, arch)
    assert f"{found.variant.mask} {found.variant.plan}" == kernel
    assert {edge for *_, edge in rows_of(of, found)} == {of.k}


@pytest.mark.parametrize(
    ("of", "bucket"),
    [
        (geometry((3, 256)), "k256_v8"),
        (geometry((3, 384)), "k384_v8"),
        (geometry((3, 384), "bf16", "boolcausal"), "k384_v8"),
        (geometry((3, 384), direction="bwd"), "k384_v8"),
        (geometry((3, 392)), "k512_v8"),
        (geometry((3, 384), alignment=2), "k512_v1"),
        (geometry((3, 513)), "k512_v1"),
        (geometry((3, 519)), "k512_v1"),
        (geometry((3, 521)), "k640_v1"),
        (geometry((3, 577)), "k640_v1"),
        (geometry((3, 647)), "k640_v1"),
        (geometry((3, 649)), "k1024_v1"),
        (geometry((3, 640)), "k640_v8"),
        (geometry((3, 648)), "k1024_v8"),
        (geometry((3, 648), alignment=2), "k1024_v1"),
        (geometry((3, 1025)), "k1024_v1"),
        (geometry((3, 384), "f32"), "k512_v4"),
        (geometry((3, 515), "f32"), "k512_v1"),
        (geometry((3, 384), mask_kind="general"), "k512_v8"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else f"{value.direction}-{value.dtype}-{value.mask_kind}-{value.k}"
    ),
)
def test_which_warps_hold_a_row(of: Geometry, bucket: str) -> None:
    assert f"_warp_{bucket}_" in planned(of).variant.name


def bool_masked(**changes: Any) -> Geometry:
    return geometry((3, 5, 1000), mask_kind="bool", **changes)


def backward(**changes: Any) -> Geometry:
    return geometry((3, 5, 1000), direction="bwd", **changes)


MISALIGNED = {
    "K = 1001 is not a multiple of 8": geometry((3, 5, 1001), mask_kind="bool"),
    "x starts on a boundary of 8 bytes, not 16": bool_masked(alignments={"x": 8}),
    "out starts on a boundary of 2 bytes, not 16": bool_masked(alignments={"y": 2}),
    "mask starts on a boundary of 4 bytes, not 8": bool_masked(alignments={"mask": 4}),
    "a stride of x is not a multiple of 8": bool_masked(strides={"x": (5010, 1002, 1)}),
    "a stride of out is not a multiple of 8": bool_masked(strides={"y": (5004, 1000, 1)}),
    "a stride of mask is not a multiple of 8": bool_masked(strides={"mask": (0, 1004, 1)}),
    "dy starts on a boundary of 2 bytes, not 16": backward(alignments={"dy": 2}),
    "y starts on a boundary of 8 bytes, not 16": backward(alignments={"y": 8}),
    "out starts on a boundary of 8 bytes, not 16": backward(alignments={"dx": 8}),
    "a stride of dy is not a multiple of 8": backward(strides={"dy": (0, 1001, 1)}),
    "a stride of y is not a multiple of 8": backward(strides={"y": (5010, 1002, 1)}),
}


@pytest.mark.parametrize(("obstacle", "of"), MISALIGNED.items(), ids=list(MISALIGNED))
def test_rows_that_are_not_aligned_go_elsewhere(obstacle: str, of: Geometry) -> None:
    aligned = planned(backward() if of.direction == "bwd" else bool_masked()).variant
    assert aligned.vec == 8
    assert planned(of).variant.vec == 1
    assert planned(of).reason == f"not {aligned.name}: {obstacle}"


@pytest.mark.parametrize(
    "of",
    [
        bool_masked(alignments={"mask": 8}),  # eight mask bytes are one access of 8
        bool_masked(strides={"mask": (5, 1, 0)}, alignments={"mask": 1}),  # one mask byte for a row
        bool_masked(strides={"mask": (0, 0, 1)}),
        geometry((1, 1, 1000), strides={"x": (7, 7, 1)}),  # nothing moves along a size of 1
        backward(strides={"dy": (0, 0, 1)}),  # one row for all
    ],
)
def test_rows_that_are_aligned_after_all(of: Geometry) -> None:
    assert planned(of).variant.vec == 8


def test_no_variant() -> None:
    """What is missing, and what there is instead."""
    longest = r"^no fwd f16 none kernel ships for rows of 2146435073 columns; the longest is 2146435072$"
    with pytest.raises(NoVariant, match=longest):
        planned(geometry((3, ANY_K + 1)))
    assert planned(geometry((3, ANY_K))).variant.plan == "split"
    with pytest.raises(
        NoVariant,
        match=r"^no fwd f64 kernel ships for mask kind 'like'; these do: bool, boolcausal, causal, general, none$",
    ):
        planned(geometry((3, 7), "f64", "like"))
    with pytest.raises(NoVariant, match=r"^no bwd f16 kernel ships for mask kind 'bool'; these do: causal, general"):
        planned(geometry((3, 7), "f16", "bool", direction="bwd"))


# Architectures


@every_direction
@pytest.mark.parametrize("arch", ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89"])
def test_there_are_no_clusters_before_sm_90(direction: str, arch: str) -> None:
    for rows, instead in [(128, "split"), (129, "stream")]:
        found = planned(geometry((rows, 16392), direction=direction), arch)
        assert (found.variant.plan, {launch.cluster for launch in found.launches}) == (instead, {1})
        assert f"c16: not for {arch}" in found.reason


@pytest.mark.parametrize(
    ("arch", "runs_like"),
    [("sm_91", "sm_90"), ("sm_104", "sm_103"), ("sm_121", "sm_120"), ("sm_87", "sm_86")],
)
def test_a_newer_gpu_of_the_same_major_runs_as_its_sibling(arch: str, runs_like: str) -> None:
    """sm_121 with clusters of 8, as sm_120 does."""
    for k in (1000, 16384, 16392, 131072, 131073, 262144, 262145):
        found, sibling = (planned(geometry((3, k)), each) for each in (arch, runs_like))
        assert (found.variant, found.launches) == (sibling.variant, sibling.launches), k


def test_an_older_gpu_of_the_same_major_does_not() -> None:
    """Its cubins may use what the older one lacks."""
    key, k = ("fwd", "f16", "none"), 20000
    newer = [replace(entry, architectures=("sm_103",)) for entry in CATALOG.tables[key] if "cluster" in entry.name]
    only = replace(CATALOG, tables={key: (*newer, *CATALOG.tables[key][-2:])})
    plans = {arch: plan(geometry((3, k)), only, arch).variant.plan for arch in ("sm_90", "sm_100", "sm_103", "sm_104")}
    assert plans == {"sm_90": "split", "sm_100": "split", "sm_103": "cluster", "sm_104": "cluster"}


@pytest.mark.parametrize("arch", ["sm_99", "sm_110", "sm_130"])
def test_another_major_does_not(arch: str) -> None:
    """sm_110 is between two that have clusters, and no cubin of theirs is for it."""
    assert planned(geometry((3, 20000)), arch).variant.plan == ("cluster" if arch == "sm_99" else "split")


# Threads


@pytest.mark.parametrize(
    ("of", "threads"),
    [
        # 16 bits, aligned: a warp holds 1024 columns.
        (geometry((3, 1032)), 64),
        (geometry((3, 2040)), 64),
        (geometry((3, 2048)), 64),
        (geometry((3, 2056)), 96),
        (geometry((3, 8192)), 256),
        (geometry((3, 16376)), 512),
        (geometry((3, 16384)), 512),
        (geometry((3, 8192), "bf16", direction="bwd"), 256),
        # Anywhere: seven more, beside the vectors.
        (geometry((3, 1500)), 64),
        (geometry((3, 2055)), 64),
        (geometry((3, 2057)), 96),
        (geometry((3, 16391)), 512),
        (geometry((3, 2056), alignment=2), 96),
        # f32: 1024 columns, three more; 512 in the backward. f64: 256.
        (geometry((3, 516), "f32"), 32),
        (geometry((3, 1024), "f32"), 32),
        (geometry((3, 1027), "f32"), 32),
        (geometry((3, 1028), "f32"), 64),
        (geometry((3, 1024), "f32", direction="bwd"), 64),
        (geometry((3, 1028), "f32", direction="bwd"), 96),
        (geometry((3, 257), "f64"), 64),
        (geometry((3, 8191), "f64"), 1024),
        (geometry((3, 8192), "f64"), 1024),
        # The general kind: half of that.
        (geometry((3, 520), mask_kind="general"), 64),
        (geometry((3, 1025), mask_kind="general"), 64),
        (geometry((3, 260), "f32", "general"), 32),
        # Clusters: what a CTA has of the row, in whole vectors.
        (geometry((3, 16392)), 288),  # 8200
        (geometry((3, 18432)), 288),  # 9216
        (geometry((3, 18433)), 320),  # 9224
        (geometry((3, 32768)), 512),
        (geometry((3, 34816)), 544),
        (geometry((3, 34817)), 288),  # 8712 in each of four
        (geometry((3, 140000), "f32"), 288),  # 8752 in each of 16
        # Others have all that they are compiled for.
        (geometry((3, 7)), 256),
        (geometry((3, 40)), 128),
        (geometry((3, 1024)), 128),
        (geometry((3, 1031)), 128),
        (geometry((3, 10**6)), 256),
        (geometry((300, 10**6)), 512),
    ],
    ids=lambda value: f"{value.direction}-{value.dtype}-{value.k}" if isinstance(value, Geometry) else None,
)
def test_as_many_warps_as_hold_the_row(of: Geometry, threads: int) -> None:
    found = planned(of)
    assert {launch.threads for launch in found.launches} == {threads}, found.variant.name


@every_kind
def test_no_warp_too_few_and_none_too_many(direction: str, dtype: str, mask_kind: str) -> None:
    """The vectors of a row in any phase have their registers, and a warp less would not hold them."""
    entries = [entry for entry in CATALOG.tables[direction, dtype, mask_kind] if CATALOG.variants[entry.name].by_warp]
    for entry in entries:
        variant = CATALOG.variants[entry.name]
        first, last = entry.k[0] + -entry.k[0] % entry.vec, entry.k[1]
        for k in {first, *range(first, last, 100 * entry.vec + entry.vec), last}:
            found = planned(geometry((3, k), dtype, mask_kind, direction=direction, alignment=entry.vec * 2))
            if found.variant != variant:
                continue
            (launch,) = found.launches
            columns = k if launch.cluster == 1 else parameters(found)["cluster.columns"][0]
            held = launch.threads * variant.access * variant.chunks
            at_most = columns - columns % variant.access
            assert held - 32 * variant.access * variant.chunks < at_most <= held, (entry.name, k)
            assert launch.threads % 32 == 0 and launch.threads <= variant.threads


# Rows that several CTAs share


def pieces(k: int, head: int, count: int, columns: int) -> list[tuple[int, int]]:
    """(begin, size) of every piece, by piece_of_row of pieces.cuh; `head` columns lie before the row's first vector."""
    begins = [0, *(min(head + i * columns, k) for i in range(1, count))]
    ends = [min(head + (i + 1) * columns, k) for i in range(count)]
    return [(begin, end - begin) for begin, end in zip(begins, ends, strict=True)]


def assert_pieces_cover(k: int, count: int, columns: int, vector: int) -> None:
    """Wherever the row begins: without gap or overlap, each cut at a vector, none with more whole vectors than fit."""
    for head in range(vector):
        cut = pieces(k, head, count, columns)
        assert [begin for begin, _ in cut[1:]] == list(itertools.accumulate(size for _, size in cut[:-1]))
        assert sum(size for _, size in cut) == k
        assert all(begin == k or (begin - head) % vector == 0 for begin, _ in cut[1:])
        assert cut[0][1] - head <= columns and all(0 <= size <= columns for _, size in cut[1:])


@pytest.mark.parametrize(("arch", "most"), CLUSTER_CTAS.items(), ids=list(CLUSTER_CTAS))
@pytest.mark.parametrize(
    ("direction", "dtype"), [("fwd", "f16"), ("fwd", "f32"), ("fwd", "f64"), ("bwd", "bf16"), ("bwd", "f64")]
)
def test_a_cluster_is_as_small_as_holds_the_row(direction: str, dtype: str, arch: str, most: int) -> None:
    """A power of two of CTAs, each with whole vectors of the row and no more than its registers hold."""
    vector = 16 // DTYPE_BYTES[dtype]
    sizes = set()
    for ctas, more in itertools.product([2**i for i in range(1, most.bit_length())], (-1, 0, 1, 1000)):
        k = cluster_columns(dtype, True) * ctas + more
        capacity = cluster_columns(dtype, k % vector == 0)
        found = planned(geometry((3, k), dtype, direction=direction), arch)
        if k > capacity * most:
            assert (found.variant.plan, found.launches[0].cluster) == ("split", 1)
            continue
        (launch,), (columns,) = found.launches, parameters(found)["cluster.columns"]
        wanted = next(2**i for i in range(1, 5) if 2**i * capacity >= k)
        assert (launch.cluster, launch.grid) == (wanted, 3 * wanted)
        assert launch.cluster <= found.variant.cluster == 16
        assert found.variant.max_k // found.variant.cluster == capacity
        assert columns <= capacity and columns % vector == 0
        assert_pieces_cover(k, launch.cluster, columns, vector)
        sizes.add(launch.cluster)
    assert sizes == {2**i for i in range(1, most.bit_length())}


@every_direction
@pytest.mark.parametrize("k", [16392, 20000, 32769, 50257, 100000, 131072])
def test_how_a_row_is_shared_depends_on_its_length_alone(direction: str, k: int) -> None:
    """So that its bits do not depend on what else is in the batch, nor on the GPU's kind."""
    shared = {
        (launch.cluster, *parameters(found)["cluster.columns"], launch.threads)
        for arch in CLUSTER_CTAS
        for shape in [(k,), (1, k), (7, k), (2, 64, k), (10**6, k)]
        for alignment in (16, 1)
        for invariant in (False, True)
        for found in [
            planned(
                geometry(
                    (1,) * (2 - len(shape)) + shape, direction=direction, alignment=alignment, batch_invariant=invariant
                ),
                arch,
            )
        ]
        for launch in found.launches
    }
    assert len(shared) == 1


PARTIAL_BYTES = {("fwd", "f16"): 8, ("fwd", "f64"): 16, ("bwd", "f32"): 4, ("bwd", "f64"): 8}
"""Maximum and sum, or the sum of products alone, in the accumulation type."""


@pytest.mark.parametrize(("kind", "partial"), PARTIAL_BYTES.items(), ids=["-".join(kind) for kind in PARTIAL_BYTES])
@pytest.mark.parametrize("rows", [1, 3, 128])
@pytest.mark.parametrize("k", [278529, 278528 + 4096, 10**6, ANY_K])
def test_few_rows_are_split(kind: tuple[str, str], partial: int, rows: int, k: int) -> None:
    """Two launches that differ in nothing but the pass: one CTA for every piece of every row, a partial of each."""
    direction, dtype = kind
    size = DTYPE_BYTES[dtype]
    found = planned(geometry((rows, k), dtype, direction=direction))
    assert found.variant.plan == "split" and found.variant.piece % (16 // size) == 0
    segments = -(-k // found.variant.piece)
    assert found.workspace_bytes == rows * segments * partial
    first, second = found.launches
    assert (first.grid, first.cluster, first.rows) == (rows * segments, 1, rows)
    assert [parameters(found, turn)["split.pass"] for turn in range(2)] == [(0,), (1,)]
    assert {parameters(found, turn)["split.segments"] for turn in range(2)} == {(segments,)}
    assert parameters(found) == parameters(found, 1) | {"split.pass": (0,)}
    assert (second.grid, second.cluster, second.rows, second.offset) == (first.grid, 1, rows, first.offset)
    if k < ANY_K:
        assert_pieces_cover(k, segments, found.variant.piece, 16 // size)


@every_direction
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_many_rows_stream(direction: str, arch: str) -> None:
    """One CTA for a row, and no workspace: beyond 128 rows, or where the number of rows must not matter."""
    for rows, invariant in [(129, False), (2, True), (1, True), (128, True)]:
        of = geometry((rows, 300000), direction=direction, batch_invariant=invariant)
        found = planned(of, arch)
        (launch,) = found.launches
        assert (found.variant.plan, found.workspace_bytes) == ("stream", 0)
        assert (launch.grid, launch.cluster) == (rows, 1)
        why = "chosen by the number of rows" if invariant else "129 rows are more than 128"
        assert re.search(rf"_split_kany_v1_t\d+r1: {why}", found.reason)
    assert planned(geometry((128, 300000), direction=direction), arch).variant.plan == "split"


@given(geometries(), st.sampled_from(ARCHITECTURES))
@examples
def test_batch_invariant_plans_do_not_look_at_the_rows(of: Geometry, arch: str) -> None:
    """One row of the call alone runs the same variant in clusters of the same size."""
    if len(leading_dimensions(of)) > MAX_RANK:
        return
    alone = of._replace(shape=(1,) * (len(of.shape) - 1) + of.shape[-1:], batch_invariant=True)
    whole = planned(of._replace(batch_invariant=True), arch)
    assert whole.workspace_bytes == 0
    if whole.variant.vec > 1 or planned(alone, arch).variant.vec == 1:  # a single row takes no steps
        single = planned(alone, arch)
        assert (single.variant, single.launches[0].cluster) == (whole.variant, whole.launches[0].cluster)


# Tiles


@every_direction
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_rows_of_a_tile(direction: str, dtype: str) -> None:
    """As many as fit, in whole periods where one fits: then every CTA begins at the 16-byte phase of the first.

    Rows that are not aligned and would start in few banks are apart.
    """
    for k in range(1, 513):
        of = geometry((1000, k), dtype, direction=direction, alignment=2)
        found = planned(of)
        (launch,) = found.launches
        if found.variant.plan != "tile":
            continue
        (rows,), (pitch,), (flat,) = (parameters(found)[f"tile.{name}"] for name in Tile._fields)
        assert launch.grid == -(-1000 // rows)
        assert 0 < rows * pitch <= found.variant.tile_elements
        assert flat == (k * of.element_bytes % 32 != 0)
        if not flat:
            assert pitch == k + 1
            continue
        assert pitch == k
        period = next(n for n in range(1, 17) if n * k * of.element_bytes % 16 == 0)
        most = found.variant.tile_elements // k
        assert rows == most - most % period if most >= period else rows == most


def bank_conflict(found: LaunchPlan) -> int:
    """Words that one of the 32 banks has to deliver at once, when lanes read the first vector or element of theirs."""
    variant, size = found.variant, found.geometry.element_bytes
    (pitch,) = parameters(found)["tile.pitch"]
    width = variant.vec * size
    apart = variant.vec if variant.vec > 1 or size == 8 else 4  # elements from lane to lane
    first = [(n // variant.lanes * pitch + n % variant.lanes * apart) * size for n in range(min(128 // width, 32))]
    words = {(start + byte) // 4 for start in first for byte in range(width)}
    return max(Counter(word % 32 for word in words).values())


@every_direction
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
@pytest.mark.parametrize("alignment", [16, 8])
def test_banks_of_a_tile(direction: str, dtype: str, alignment: int) -> None:
    """Of lanes that read at once at most four meet in a bank; in aligned rows of f16 and f32 two."""
    for k in range(1, 33):
        of = geometry((1000, k), dtype, direction=direction, alignment=alignment)
        apart = of._replace(operands=tuple(each._replace(strides=(64, 1)) for each in of.operands))
        for found in (planned(of), planned(apart)):
            assert bank_conflict(found) <= (2 if found.variant.vec > 2 else 4), (k, found.variant.name)


def test_flat_tiles() -> None:
    """Only where rows of each tensor follow each other without a gap."""

    def flat(**changes: Any) -> bool:
        return bool(parameters(planned(geometry((2, 3, 5, 7), **changes)))["tile.flat"][0])

    assert flat()
    assert flat(mask_kind="boolcausal", mask_shape=(2, 1, 1, 7))
    for direction, tensors in OPERANDS.items():
        assert flat(direction=direction)
        for name in tensors:
            assert not flat(direction=direction, strides={name: (120, 40, 8, 1)})
        assert not flat(direction=direction, strides=dict.fromkeys(tensors, (35, 70, 7, 1)))  # permuted
        assert not flat(direction=direction, strides={tensors[0]: (0, 35, 7, 1)})
        assert not flat(direction=direction, strides={tensors[0]: (0, 0, 0, 1)})


@given(geometries())
@examples
def test_flat_tiles_hold_rows_in_order(of: Geometry) -> None:
    """Then row r of the launch begins K elements after row r - 1, in every tensor."""
    if len(leading_dimensions(of)) > MAX_RANK:
        return
    found = planned(of)
    if found.variant.plan == "tile" and parameters(found)["tile.flat"][0]:
        size, tensors = of.k * of.element_bytes, len(OPERANDS[of.direction])
        assert [row[:tensors] for row in rows_of(of, found)] == [
            (r * size,) * tensors for r in range(prod(of.shape[:-1]))
        ]
