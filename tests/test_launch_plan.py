"""Launch plans: what a kernel computes from its parameters, against strided indexing; parts, divisors, dimensions."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.variants import ARCHITECTURES
from softmax_ops.planning.geometry import (
    MAX_RANK,
    MAX_ROWS,
    MAX_STRIDE,
    OPERANDS,
    Dimension,
    Geometry,
    LaunchRows,
    contiguous_strides,
    launch_rows,
    leading_dimensions,
)
from softmax_ops.planning.launch_plan import TooManyDimensions, divisor
from tests.support.geometries import geometry
from tests.support.planning import examples, expected_rows, geometries, offset, parameters, planned, row_index, rows_of


@given(geometries(), st.sampled_from(ARCHITECTURES))
@examples
def test_rows_are_where_the_strides_say(of: Geometry, arch: str) -> None:
    """Every row once, with its own mask row and causal edge, however dimensions were merged and reordered."""
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
def test_launches_have_the_rows_in_order(of: Geometry, limit: int) -> None:
    """With limits that cut at every depth."""

    def walk(dimensions: tuple[Dimension, ...]) -> list[tuple[int, ...]]:
        steps = [(*dimension.strides, dimension.query) for dimension in dimensions]
        return [
            tuple(sum(i * step[n] for i, step in zip(index, steps, strict=True)) for n in range(len(of.operands) + 1))
            for index in itertools.product(*(range(dimension.size) for dimension in dimensions))
        ]

    dimensions = tuple(leading_dimensions(of))
    cut = launch_rows(dimensions, limit)
    start = [(*part.offset, part.query) for part in cut]
    rows = [
        tuple(map(sum, zip(start[i], row, strict=True))) for i, part in enumerate(cut) for row in walk(part.dimensions)
    ]
    assert rows == walk(dimensions)
    assert all(part.total <= limit for part in cut)


def test_launches_beyond_32_bit_row_numbers() -> None:
    """They are few, and cut at a multiple of the outermost steps."""
    heads, queries = Dimension(2**20, (2**20, 2**20, 0), 0), Dimension(2**13, (64, 64, 64), 1)
    cut = launch_rows((heads, queries))
    assert [part.total for part in cut] == [2**31 - 2**13] * 4 + [2**15]
    assert [part.offset for part in cut] == [(i * (2**18 - 1) * 2**20, i * (2**18 - 1) * 2**20, 0) for i in range(5)]
    assert launch_rows((queries._replace(size=MAX_ROWS),)) == [
        LaunchRows((queries._replace(size=MAX_ROWS),), (0, 0, 0), 0)
    ]
    one_more = launch_rows((queries._replace(size=MAX_ROWS + 1),))
    assert [(part.total, part.offset[0], part.query) for part in one_more] == [
        (MAX_ROWS, 0, 0),
        (1, 64 * MAX_ROWS, MAX_ROWS),
    ]


def test_launches_beyond_32_bit_strides() -> None:
    """A launch for each step of the dimension, wherever it is, and for no other dimension."""
    heads, batch = Dimension(3, (4096, 64, 0), 0), Dimension(2, (64, MAX_STRIDE + 1, 0), 0)
    cut = launch_rows((heads, batch, Dimension(5, (8, 8, 1), 1)))
    assert [(part.total, part.offset) for part in cut] == [(15, (0, 0, 0)), (15, (64, MAX_STRIDE + 1, 0))]
    assert max(stride for part in cut for dimension in part.dimensions for stride in dimension.strides) == 4096
    found = planned(geometry((2, 3, 64), strides={"y": (-MAX_STRIDE - 1, 64, 1)}))
    assert [launch.rows for launch in found.launches] == [3, 3]
    assert found.launches[1].offset == (3 * 64 * 2, (-MAX_STRIDE - 1) * 2)  # bytes


def test_a_causal_problem_beyond_32_bit_row_numbers() -> None:
    """The query number at which a later launch begins is part of its offset."""
    found = planned(geometry((2**31 + 5, 64), mask_kind="boolcausal", causal_offset=-3))
    first, second = found.launches
    assert (first.rows, second.rows) == (MAX_ROWS, 2**31 + 5 - MAX_ROWS)
    assert parameters(found)["causal.offset"] == (-3,)
    assert parameters(found, 1)["causal.offset"] == (-3 + MAX_ROWS,)
    assert second.offset == (MAX_ROWS * 64 * 2, MAX_ROWS * 64 * 2, MAX_ROWS * 64)  # bytes
    addresses = [parameters(found, 1)[f"{name}.address"] for name in ("x", "y", "mask")]
    assert addresses == [(offset,) for offset in second.offset]


def test_the_largest_launch() -> None:
    """Almost 2^31 rows through three divisors, checked where they carry."""
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
    """Including rows that the last CTA counts beyond the last row, and all CTAs of clusters."""
    found = planned(geometry((MAX_ROWS, k), alignment=alignment))
    assert sum(launch.rows for launch in found.launches) == MAX_ROWS
    for launch in found.launches:
        assert launch.grid <= 2**31 - 1
        assert found.variant.plan == "tile" or launch.grid // launch.cluster * found.variant.rows <= 2**31


# Divisors


NOTABLE = sorted({n for e in range(32) for n in (2**e - 1, 2**e, 2**e + 1, 3 * 2**e) if 0 < n < 2**31})


def quotients(size: int, numerators: np.ndarray) -> np.ndarray:
    _, multiplier, shift = divisor(size)
    assert 0 < multiplier < 2**32
    return ((2 * numerators.astype(np.uint64)) * np.uint64(multiplier)) >> np.uint64(32) >> np.uint64(shift)


def test_divisors_at_the_edges() -> None:
    """Every notable divisor with every notable numerator, and with the numerators around its multiples."""
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
    assert dimensions((4, 1, 5, 8), strides={"x": (40, 999, 8, 1)}) == [(20, 0)]  # a dimension of size 1 takes no steps


def test_what_differs_keeps_dimensions_apart() -> None:
    assert dimensions((2, 3, 5, 8), strides={"x": (240, 80, 16, 1)}) == [(30, 0)]  # padded rows, one after another
    gap = (128, 40, 8, 1)  # in one tensor only
    assert dimensions((2, 3, 5, 8), strides={"x": gap}) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), strides={"y": gap}) == [(2, 0), (15, 0)]
    for name in OPERANDS["bwd"]:
        assert dimensions((2, 3, 5, 8), direction="bwd", strides={name: gap}) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="bool", mask_shape=(2, 1, 1, 8)) == [(2, 0), (15, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="bool", mask_shape=(5, 8)) == [(6, 0), (5, 0)]
    assert dimensions((2, 3, 5, 8), mask_kind="causal") == [(6, 0), (5, 1)]  # queries are counted
    assert dimensions((2, 3, 1, 8), mask_kind="causal") == [(6, 0)]  # a single query needs no count


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
    """[B, H, Q, K] with a mask [B, 1, Q, K]: heads become the fastest dimension, in all plans except tiles."""
    heads = 3
    of = geometry((2, heads, 5, k), mask_kind="bool", mask_shape=(2, 1, 5, k))
    masks = [mask for _, _, mask, _ in rows_of(of, planned(of))]
    assert masks == [row * k for row in range(10) for _ in range(heads)]


def test_rows_of_a_tile_stay_in_order() -> None:
    """They form one range of memory, whatever the mask."""
    tile = geometry((2, 3, 5, 7), mask_kind="bool", mask_shape=(2, 1, 5, 7))
    found = planned(tile)
    assert found.variant.plan == "tile"
    assert rows_of(tile, found) == expected_rows(tile, found)


def test_more_than_65535_batches_and_heads() -> None:
    """They share one dimension of the grid, which may have 2^31 - 1 CTAs."""
    (launch,) = planned(geometry((300, 300, 7, 1000))).launches
    assert launch.grid == -(-300 * 300 * 7 // 4)
    (launch,) = planned(geometry((70000, 1, 4096))).launches
    assert launch.grid == 70000
    (launch,) = planned(geometry((70000, 1, 50000))).launches
    assert launch.grid == 8 * 70000


def test_offsets_beyond_32_bits() -> None:
    found = planned(geometry((3, 2**20, 4096), mask_kind="bool"))
    (launch,), p = found.launches, parameters(found)
    last = row_index(p, np.array([launch.rows - 1]))
    assert offset(p, last, "x.strides").tolist() == [(3 * 2**20 - 1) * 4096]
    wide: dict[str, tuple[int, ...]] = {"x": (2**40, 4096, 1), "y": (2**41, 4096, 1)}
    found = planned(geometry((3, 2**20, 4096), mask_kind="bool", strides=wide))
    assert [launch.offset[:2] for launch in found.launches] == [(i * 2**41, i * 2**42) for i in range(3)]  # bytes
