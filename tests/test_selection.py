"""Which variant serves a call: by row length, alignment, number of rows and architecture."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from codegen.variants import ARCHITECTURES
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.catalog import Catalog
from softmax_ops.artifacts.constants import MAX_CLUSTER
from softmax_ops.planning.geometry import DTYPE_BYTES, General, Geometry, kind_of_general
from softmax_ops.planning.launch_plan import plan
from softmax_ops.planning.selection import NoVariant, select
from tests.support.geometries import geometry
from tests.support.planning import ANY_K, CATALOG, every_direction, every_kind, parameters, planned, rows_of

CLUSTER_CTAS = {"sm_90": 16, "sm_100": 16, "sm_103": 16, "sm_120": 8}
"""Most CTAs that share a row in a cluster; GPUs before sm_90 have no clusters."""


LONGEST_BLOCK = {"f16": 16384, "bf16": 16384, "f32": 16384, "f64": 8192}
LONGEST_BLOCK_OF_GENERAL = {
    **{("fwd", dtype): k for dtype, k in {"f16": 8192, "bf16": 8192, "f32": 8192, "f64": 2048}.items()},
    **{("bwd", dtype): k for dtype, k in {"f16": 8192, "bf16": 8192, "f32": 4096, "f64": 2048}.items()},
}
"""Columns that one CTA holds, also in a cluster."""


def whole_vectors(dtype: str, k: int) -> int:
    """Columns of a row that need registers in vectors: in all types but f64, edge columns have their own."""
    return k if dtype == "f64" else k - k % vector(dtype)


def vector(dtype: str) -> int:
    """Columns in 16 bytes of the wider element type, read or written."""
    return 16 // max(DTYPE_BYTES[each] for each in dtype.split("to"))


def cluster_columns(dtype: str, aligned: bool) -> int:
    """Columns of each CTA, except in the general kind: those of a block, and one warp more if that does not spill."""
    more = DTYPE_BYTES[dtype] == 2 or (dtype.startswith("f32") and aligned)
    longest = LONGEST_BLOCK[dtype.split("to")[0]]
    return longest * 17 // 16 if more else longest


def documented_plan(
    dtype: str, k: int, rows: int, arch: str, direction: str, mask_kind: str, aligned: bool, apart: bool
) -> str:
    """Who holds a row: the whole policy in a few lines, independent of codegen.plans, which makes it. Alignment matters
    only in clusters of f32, in warps of 16 bits and of the band kind, and in short rows of 16 bits without a mask or in
    the backward: these are in a tile unless they lie `apart` or in few banks; the general kind, which has no tiles,
    holds half as much, depending on direction. So does the band kind, except in clusters and, in the forward, in blocks
    and aligned warps."""
    held = whole_vectors(dtype, k)
    general = mask_kind in ("band", "general") or (mask_kind in ("bool", "boolcausal") and dtype == "f64")
    lean = mask_kind == "band" and dtype != "f64" and (direction == "fwd" or dtype.startswith("f32"))
    half = general and not (lean and direction == "fwd")
    read = dtype.split("to")[0]
    longest = LONGEST_BLOCK_OF_GENERAL[direction, read] if half else LONGEST_BLOCK[read]
    if k <= 32 and not general:
        return "tile"
    ranges = DTYPE_BYTES[dtype] == 2 and (mask_kind == "none" or direction == "bwd") and not general
    if k <= 68 and ranges and not (aligned or apart or k % 16 == 0):
        return "tile"
    in_warp = 1024 if half or (lean and not aligned) else 2048
    if dtype == "f32" and not general:
        in_warp = 640 * 4
    if DTYPE_BYTES[dtype] == 2 and not (general or aligned or mask_kind in ("like", "bias")):
        in_warp = 1536 * 2
    if held * DTYPE_BYTES[dtype] <= in_warp:
        return "warp"
    if held <= longest:
        return "block"
    columns = cluster_columns(dtype, aligned) if lean or not general else longest
    if lean and direction == "bwd" and not aligned:
        columns = 14 * 1024
    if held <= columns * CLUSTER_CTAS.get(arch, 0):
        return "cluster"
    return "split" if rows <= 128 else "stream"


def row_lengths(table: tuple[catalog.Entry, ...]) -> Iterator[tuple[int, str, int]]:
    """(K, architecture, rows): all combinations at the ends of every bucket; one combination each, in turn, for every K
    up to 2100 and many up to 300000."""
    ends = {end + d for entry in table for end in entry.k for d in (-1, 0, 1)}
    yield from itertools.product(sorted(k for k in ends if 0 < k <= ANY_K), ARCHITECTURES, (1, 128, 129))
    turn = itertools.cycle(itertools.product(ARCHITECTURES, (1, 128, 129)))
    yield from ((k, *next(turn)) for k in (*range(1, 2101), *range(2101, 300000, 97), *range(2104, 300000, 1016)))


@every_kind
def test_every_row_length_is_served_as_documented(direction: str, dtype: str, mask_kind: str) -> None:
    """On every architecture, by a variant that ships for it; no row length falls between two plans."""
    any_length = geometry((1, 1), dtype, mask_kind, direction=direction)
    for k, arch, rows in row_lengths(CATALOG.tables[direction, dtype, mask_kind]):
        for alignment, gap in ((16, 0), (1, 0), (1, 3)):
            operands = tuple(o._replace(strides=(k + gap, 1), alignment=alignment) for o in any_length.operands)
            of_length = any_length._replace(shape=(rows, k), operands=operands)
            found, _, reason, _ = select(of_length, CATALOG, arch, MAX_CLUSTER)
            aligned = alignment == 16 and k % vector(dtype) == 0
            apart = gap > 0 and rows > 1
            at = (k, rows, alignment, gap, arch)
            documented = documented_plan(dtype, k, rows, arch, direction, mask_kind, aligned, apart)
            assert found.plan == documented, at
            held = k - 4 if found.flat else whole_vectors(dtype, k)
            assert arch in found.architectures and held <= found.max_k and reason, at
            assert (found.direction, found.dtype) == (direction, dtype), at
            own = dtype != "f64" and found.plan not in ("split", "stream")
            assert (found.vec > 1) == (aligned and own), at


def test_how_rows_lie_does_not_choose_a_batch_invariant_kernel() -> None:
    """A single row of a tensor with gaps between its rows is a range, all of its rows are not."""
    apart: dict[str, Any] = {"strides": {"x": (52, 1)}}
    kernels = {planned(geometry((rows, 49), **apart, batch_invariant=True)).variant.name for rows in (1, 4)}
    assert kernels == {"softmax_fwd_f16_none_warp_k64_v1_t128r32"}
    assert planned(geometry((4, 49), batch_invariant=True)).variant.name in kernels
    assert planned(geometry((1, 49), **apart)).variant.plan == planned(geometry((4, 49))).variant.plan == "tile"
    assert planned(geometry((4, 49), **apart)).variant.plan == "warp"


def test_a_plan_says_whether_its_tile_was_measured_on_the_architecture() -> None:
    words = "sm_90: H200, some day"
    entries = tuple(replace(entry, measured=words) for entry in CATALOG.tables["fwd", "f16", "none"])
    measured = Catalog(CATALOG.variants, CATALOG.layouts, {("fwd", "f16", "none"): entries})
    read = Catalog.from_json(measured.to_json())
    assert plan(geometry((4, 1000)), read, "sm_90").measured == words
    for known, arch in ((read, "sm_100"), (CATALOG, "sm_90")):
        said = plan(geometry((4, 1000)), known, arch).measured
        assert said.startswith("by arithmetic") and said.endswith(f"not measured on {arch}")


@every_kind
@pytest.mark.parametrize("alignment", [16, 1])
def test_the_first_variant_that_fits_is_taken(direction: str, dtype: str, mask_kind: str, alignment: int) -> None:
    """At the ends of every bucket, at all short lengths, and at many in between."""
    table = CATALOG.tables[direction, dtype, mask_kind]
    ends = {end + d for entry in table for end in entry.k for d in (-1, 0, 1)}
    for k in sorted((ends | {*range(1, 70), *range(72, 300000, 10036)}) & {*range(1, 300000)}):
        found = planned(geometry((3, k), dtype, mask_kind, direction=direction, alignment=alignment))
        fits = (
            e
            for e in table
            if e.k[0] <= k <= e.k[1]
            and (e.vec == 1 or (alignment == 16 and k % e.vec == 0))
            and not (CATALOG.variants[e.name].flat and k % 16 == 0)
            and (not e.architectures or "sm_90" in e.architectures)
        )
        assert found.variant.name == next(fits).name, k
        assert found.variant.dtype == dtype and found.reason


@pytest.mark.parametrize(
    ("of", "arch", "kernel"),
    [
        (geometry((3, 5, 100), "f32", "bool"), "sm_90", "boolcausal warp"),
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
    """A causal kernel without an offset: its edge is beyond the last column."""
    found = planned(of, arch)
    assert f"{found.variant.mask} {found.variant.plan}" == kernel
    assert {edge for *_, edge in rows_of(of, found)} == {of.k}


@pytest.mark.parametrize(
    ("general", "operands", "kind"),
    [
        (General(), (), "band"),
        (General(left=100, right=0, logarithms=True), ("row_scale", "offsets", "lengths", "sinks", "lse"), "band"),
        (General(), ("row_scale", "lse", "dlse", "d"), "band"),
        (General(softcap=30.0), (), "general"),
        *((General(), ("lse", name), "general") for name in ("mask", "bias", "slopes")),
    ],
)
def test_which_requests_change_no_score(general: General, operands: tuple[str, ...], kind: str) -> None:
    """Only they have kernels of the band kind, which know of nothing else."""
    assert kind_of_general(general, operands) == kind


@pytest.mark.parametrize(
    ("of", "found"),
    [
        (geometry((3, 5, 2000), mask_kind="band"), "band block"),
        (geometry((3, 5, 1001), mask_kind="band"), "band block"),
        (geometry((3, 5, 1000), mask_kind="band", direction="bwd"), "general block"),
        (geometry((3, 5, 1000), "f32", "band", direction="bwd"), "general block"),
        (geometry((3, 5, 20000), "f32", "band", direction="bwd"), "band cluster"),
        (geometry((3, 5, 504), mask_kind="band"), "band warp"),
        (geometry((3, 5, 501), mask_kind="band"), "general warp"),
        (geometry((300, 5, 300000), mask_kind="band"), "general stream"),
        (geometry((3, 5, 1000), "f64", "band"), "general block"),
        (geometry((3, 5, 1000), "f64", "bool"), "general block"),
        (geometry((3, 5, 20), "f64", "boolcausal"), "general warp"),
    ],
)
def test_the_general_kind_serves_what_has_no_kernels_of_its_own(of: Geometry, found: str) -> None:
    variant = planned(of).variant
    assert f"{variant.mask} {variant.plan}" == found


@pytest.mark.parametrize(("mask_kind", "right"), [("bool", 2**40), ("boolcausal", 0)])
def test_a_masked_row_of_f64_has_the_band_of_its_kind(mask_kind: str, right: int) -> None:
    found = parameters(planned(geometry((3, 5, 20), "f64", mask_kind)))
    assert (found["band.left"], found["band.right"]) == ((2**40,), (right,))
    assert found["band.offset"] == (15 if mask_kind == "boolcausal" else 0,)


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
        bool_masked(alignments={"mask": 8}),  # eight mask bytes are read at once
        bool_masked(strides={"mask": (5, 1, 0)}, alignments={"mask": 1}),  # one mask byte per row
        bool_masked(strides={"mask": (0, 0, 1)}),
        geometry((1, 1, 1000), strides={"x": (7, 7, 1)}),  # a size of 1 takes no steps
        backward(strides={"dy": (0, 0, 1)}),  # all rows are the same
    ],
)
def test_rows_that_are_aligned_after_all(of: Geometry) -> None:
    assert planned(of).variant.vec == 8


def test_no_variant() -> None:
    """What is missing, and the nearest alternative."""
    longest = r"^no fwd f16 none kernel ships for rows of 2146435073 columns; the longest is 2146435072$"
    with pytest.raises(NoVariant, match=longest):
        planned(geometry((3, ANY_K + 1)))
    assert planned(geometry((3, ANY_K))).variant.plan == "split"
    with pytest.raises(
        NoVariant,
        match=r"^no fwd f64 kernel ships for mask kind 'like'; these do: band, bool, boolcausal, causal, "
        r"general, none$",
    ):
        planned(geometry((3, 7), "f64", "like"))
    with pytest.raises(NoVariant, match=r"^no bwd f16 kernel ships for mask kind 'bool'; these do: band, causal, gen"):
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
    ("k", "plan_", "reason"),
    [
        (139264, "cluster", r"first in its table for K = 139264"),
        (139272, "split", r".*none_cluster_k278528_v8_\w+: on sm_120 it holds at most 139264 columns.*"),
    ],
)
def test_small_clusters_hold_shorter_rows(k: int, plan_: str, reason: str) -> None:
    """A variant with an entry for each architecture is passed over for what keeps its own entry from serving."""
    found = planned(geometry((128, k)), "sm_120")
    assert found.variant.plan == plan_ and re.fullmatch(reason, found.reason)


@pytest.mark.parametrize(
    ("arch", "runs_like"),
    [("sm_91", "sm_90"), ("sm_104", "sm_103"), ("sm_121", "sm_120"), ("sm_87", "sm_86")],
)
def test_a_newer_gpu_of_the_same_major_runs_as_its_sibling(arch: str, runs_like: str) -> None:
    """sm_121 with clusters of 8, like sm_120."""
    for k in (1000, 16384, 16392, 131072, 131073, 262144, 262145):
        found, sibling = (planned(geometry((3, k)), each) for each in (arch, runs_like))
        assert (found.variant, found.launches) == (sibling.variant, sibling.launches), k


def test_an_older_gpu_of_the_same_major_does_not() -> None:
    """Its cubins may use features that the older one lacks."""
    key, k = ("fwd", "f16", "none"), 20000
    newer = [replace(entry, architectures=("sm_103",)) for entry in CATALOG.tables[key] if "cluster" in entry.name]
    only = replace(CATALOG, tables={key: (*newer, *CATALOG.tables[key][-2:])})
    plans = {arch: plan(geometry((3, k)), only, arch).variant.plan for arch in ("sm_90", "sm_100", "sm_103", "sm_104")}
    assert plans == {"sm_90": "split", "sm_100": "split", "sm_103": "cluster", "sm_104": "cluster"}


@pytest.mark.parametrize("arch", ["sm_99", "sm_110", "sm_130"])
def test_another_major_does_not(arch: str) -> None:
    """sm_110 is between two architectures with clusters, but can run the cubins of neither."""
    assert planned(geometry((3, 20000)), arch).variant.plan == ("cluster" if arch == "sm_99" else "split")
