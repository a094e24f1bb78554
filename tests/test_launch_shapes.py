"""The shape of a launch: the warps that hold a row, the CTAs that share one, the rows of a tile."""

import itertools
import re
from collections import Counter
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.variants import ARCHITECTURES
from softmax_ops.planning.geometry import DTYPE_BYTES, MAX_RANK, OPERANDS, Geometry, leading_dimensions
from softmax_ops.planning.launch_plan import LaunchPlan, plan
from softmax_ops.planning.tile import Tile
from tests.support.geometries import geometry
from tests.support.planning import (
    ANY_K,
    CATALOG,
    every_direction,
    every_kind,
    examples,
    geometries,
    parameters,
    planned,
    rows_of,
)
from tests.test_selection import CLUSTER_CTAS, LONGEST_BLOCK, cluster_columns, whole_vectors

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
        # Unaligned rows: seven more, outside whole vectors.
        (geometry((3, 1545)), 64),
        (geometry((3, 2055)), 64),
        (geometry((3, 2057)), 96),
        (geometry((3, 16391)), 512),
        (geometry((3, 2056), alignment=2), 96),
        # f32: 1024 columns, three more; 512 in the backward. f64: 256.
        (geometry((3, 644), "f32"), 32),
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
        # Clusters: a CTA's part of the row, in whole vectors.
        (geometry((3, 16392)), 160),  # 4104 in each of four
        (geometry((3, 20480)), 160),  # 5120
        (geometry((3, 20487)), 160),  # 5120, and seven columns more in the last
        (geometry((3, 20488)), 192),  # 5128
        (geometry((3, 32768)), 256),
        (geometry((3, 32776)), 160),  # 4104 in each of eight
        (geometry((3, 262144)), 512),
        (geometry((3, 278528)), 544),
        (geometry((3, 140000), "f32"), 288),  # 8752 in each of 16
        # Other plans have all the warps that they are compiled for.
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
    """The registers hold all vectors of a row in any phase, and with one warp less they would not."""
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


# Rows shared by several CTAs


def pieces(k: int, head: int, count: int, columns: int, of_cluster: bool) -> list[tuple[int, int]]:
    """(begin, size) of every piece, as piece_of_row of pieces.cuh; `head` columns precede the row's first vector."""
    begins = [0, *(min(head + i * columns, k) for i in range(1, count))]
    ends = [min(head + (i + 1) * columns, k) for i in range(count)]
    if of_cluster:
        ends[-1] = k
    return [(begin, end - begin) for begin, end in zip(begins, ends, strict=True)]


def assert_pieces_cover(k: int, count: int, columns: int, vector: int, of_cluster: bool) -> None:
    """For any start of the row: no gap or overlap, each cut at a vector, and none with more whole vectors than fit."""
    for head in range(vector):
        cut = pieces(k, head, count, columns, of_cluster)
        assert [begin for begin, _ in cut[1:]] == list(itertools.accumulate(size for _, size in cut[:-1]))
        assert sum(size for _, size in cut) == k
        assert all(begin == k or (begin - head) % vector == 0 for begin, _ in cut[1:])
        assert cut[0][1] - head <= columns and all(0 <= size <= columns for _, size in cut[1:-1])
        assert 0 <= cut[-1][1] <= columns + (vector - 1 if of_cluster else 0)


@pytest.mark.parametrize(("arch", "most"), CLUSTER_CTAS.items(), ids=list(CLUSTER_CTAS))
@pytest.mark.parametrize(
    ("direction", "dtype"), [("fwd", "f16"), ("fwd", "f32"), ("fwd", "f64"), ("bwd", "bf16"), ("bwd", "f32")]
)
def test_a_cluster_is_as_small_as_holds_the_row(direction: str, dtype: str, arch: str, most: int) -> None:
    """A power of two of CTAs, each with whole vectors of the row and no more than its registers hold; as far as a
    cluster may have so many CTAs, in a quarter of the warps of two full CTAs, or half of those of one that may fill an
    SM."""
    vector = 16 // DTYPE_BYTES[dtype]
    sizes = set()
    for ctas, more in itertools.product([2**i for i in range(most.bit_length())], (-1, 0, 1, 1000)):
        k = cluster_columns(dtype, True) * ctas + more
        if whole_vectors(dtype, k) <= LONGEST_BLOCK[dtype]:
            continue
        capacity = cluster_columns(dtype, k % vector == 0)
        found = planned(geometry((3, k), dtype, direction=direction), arch)
        whole = whole_vectors(dtype, k)
        if whole > capacity * most:
            assert (found.variant.plan, found.launches[0].cluster) == ("split", 1)
            continue
        (launch,), (columns,) = found.launches, parameters(found)["cluster.columns"]
        fills = dtype == "f64" or (direction, dtype) == ("bwd", "f32") or (dtype == "f32" and k % vector != 0)
        warps = found.variant.threads // 32
        part = 32 * found.variant.chunks * found.variant.access * (warps // 2 if fills else 2 * warps // 4)
        wanted = min(next(2**i for i in range(1, 7) if 2**i * part >= whole), most)
        assert (launch.cluster, launch.grid) == (wanted, 3 * wanted)
        assert launch.cluster <= found.variant.cluster == 16
        assert found.variant.max_k // found.variant.cluster == capacity
        assert columns <= capacity and columns % vector == 0
        assert_pieces_cover(k, launch.cluster, columns, vector, of_cluster=True)
        sizes.add(launch.cluster)
    fewest = 1 if (direction, dtype) == ("bwd", "f32") else 2  # 16 of its warps hold 8704
    assert sizes == {2**i for i in range(fewest, most.bit_length())}


@every_direction
@pytest.mark.parametrize("k", [16392, 50257, 131072, 262144])
def test_a_gpu_with_smaller_clusters_gets_the_largest_that_it_runs(direction: str, k: int) -> None:
    """A power of two of CTAs that hold the row, whatever number the GPU runs; else the row is read twice."""
    of_length = geometry((3, k), direction=direction)
    wanted = plan(of_length, CATALOG, "sm_90").cluster
    fewest = next(2**i for i in range(1, 5) if 2**i * cluster_columns("f16", True) >= k)
    for most in range(1, 17):
        found = plan(of_length, CATALOG, "sm_90", most)
        runs = min(1 << most.bit_length() - 1, wanted)
        assert (found.variant.plan, found.cluster) == (("cluster", runs) if runs >= fewest else ("split", 1)), most


@every_direction
@pytest.mark.parametrize("k", [16392, 20000, 32769, 50257, 100000, 131072])
def test_how_a_row_is_shared_depends_on_its_length_alone(direction: str, k: int) -> None:
    """So its bits do not depend on what else is in the batch, nor on the kind of GPU unless it has smaller clusters."""
    shared = {
        (launch.cluster, *parameters(found)["cluster.columns"], launch.threads)
        for arch, most in CLUSTER_CTAS.items()
        if k <= 65536 or most == 16
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
"""Maximum and sum, or only the sum of products, in the accumulation type."""


@pytest.mark.parametrize(("kind", "partial"), PARTIAL_BYTES.items(), ids=["-".join(kind) for kind in PARTIAL_BYTES])
@pytest.mark.parametrize("rows", [1, 3, 128])
@pytest.mark.parametrize("k", [278536, 278528 + 4096, 10**6, ANY_K])
def test_few_rows_are_split(kind: tuple[str, str], partial: int, rows: int, k: int) -> None:
    """One CTA and one partial for every piece of every row. Every CTA that writes combines the partials, unless that
    takes more than 32 MiB of reads: then one CTA per row does, in a launch before."""
    direction, dtype = kind
    size = DTYPE_BYTES[dtype]
    found = planned(geometry((rows, k), dtype, direction=direction))
    assert found.variant.plan == "split" and found.variant.piece % (16 // size) == 0
    pieces = -(-k // found.variant.piece)
    assert found.workspace_bytes == rows * pieces * partial
    turns = [(pieces, 0, 0), (pieces, pieces, 1)]
    if rows * pieces * pieces * partial > 32 << 20:
        turns = [(pieces, 0, 0), (1, pieces, 0), (pieces, 1, 1)]
    assert len(found.launches) == len(turns)
    first = found.launches[0]
    for turn, (ctas, known, writes) in enumerate(turns):
        own = {"split.ctas": (ctas,), "split.known": (known,), "split.writes": (writes,)}
        assert parameters(found, turn) == parameters(found) | own | {"split.pieces": (pieces,)}
        launch = found.launches[turn]
        assert (launch.grid, launch.cluster, launch.rows, launch.offset) == (rows * ctas, 1, rows, first.offset)
    if k < ANY_K:
        assert_pieces_cover(k, pieces, found.variant.piece, 16 // size, of_cluster=False)


@every_direction
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_many_rows_stream(direction: str, arch: str) -> None:
    """One CTA per row, and no workspace: with more than 128 rows, or if the number of rows must not matter."""
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
    """A single row of the call runs the same variant in clusters of the same size."""
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
    """As many rows as fit, in whole periods if one fits: then every CTA begins at the 16-byte phase of the first.

    Unaligned rows that would start in few banks are kept apart.
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
            words = -(-(k + (of.element_bytes == 2)) * of.element_bytes // 4)
            assert pitch * of.element_bytes == (4 * (words | 1) if of.element_bytes < 8 else 8 * (k | 1))
            continue
        assert pitch == k
        period = next(n for n in range(1, 17) if n * k * of.element_bytes % 16 == 0)
        most = found.variant.tile_elements // k
        assert rows == most - most % period if most >= period else rows == most


def bank_conflict(found: LaunchPlan) -> int:
    """The most words that any of the 32 banks delivers at once when lanes read their first vector, word or f64."""
    variant, size = found.variant, found.geometry.element_bytes
    (pitch,) = parameters(found)["tile.pitch"]
    width = max(variant.vec * size, 4)
    apart = variant.vec if variant.vec > 1 or size == 8 else 4  # elements from one lane to the next
    first = [
        (n // variant.threads_per_row * pitch + n % variant.threads_per_row * apart) * size
        for n in range(min(128 // width, 32))
    ]
    words = {(start + 3 + byte) // 4 for start in first for byte in range(0, width, 4)}
    return max(Counter(word % 32 for word in words).values())


@every_direction
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
@pytest.mark.parametrize("alignment", [16, 8])
def test_banks_of_a_tile(direction: str, dtype: str, alignment: int) -> None:
    """Of the lanes that read at once, at most four use the same bank; two in aligned rows of f16 and f32."""
    for k in range(1, 33):
        of = geometry((1000, k), dtype, direction=direction, alignment=alignment)
        apart = of._replace(operands=tuple(each._replace(strides=(64, 1)) for each in of.operands))
        for found in (planned(of), planned(apart)):
            assert bank_conflict(found) <= (2 if found.variant.vec > 2 else 4), (k, found.variant.name)


def test_flat_tiles() -> None:
    """Only if the rows of each tensor are adjacent."""

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
