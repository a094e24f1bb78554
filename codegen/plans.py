"""Policy: which plan and which tile serve a row length. The one home of every threshold.

Nothing here has been measured on a GPU yet: the tiles follow from arithmetic, stated at each number. The budget is that
of an H200: about 29 lane-instructions per 16-bit element and 48 KiB of reads in flight per SM hide under the traffic.
"""

from dataclasses import dataclass, replace

from .axes import Direction, DType, Plan
from .spec import ANY_K, MAX_CLUSTER

MAX_SPLIT_ROWS = 128
"""Rows up to which several CTAs share one where no cluster can: about as many as an SM each (80 .. 188) would have."""

CLUSTERS = (("sm_90", "sm_100", "sm_103"), MAX_CLUSTER), (("sm_120",), 8)
"""Architectures with thread block clusters, and the CTAs that one may have."""


@dataclass(frozen=True)
class RowPlan:
    """Who holds a row of up to `max_k` columns, at which alignment (elements), in which CTA. It serves rows of lengths
    `k`, at most `max_rows` of them (0: any number), on some architectures (none named: on all).

    `measured` is the measurement that chose it, in the words of `python -m codegen tune`, "sm_90: ..."; empty:
    arithmetic did.
    """

    plan: Plan
    max_k: int
    vec: int
    threads: int
    rows: int
    cluster: int = 1
    k: tuple[int, int] = (0, 0)
    max_rows: int = 0
    architectures: tuple[str, ...] = ()
    measured: str = ""


def row_plans(direction: Direction, dtype: DType, general: bool = False) -> list[RowPlan]:
    """All row plans of an element type, in the order in which dispatch tries them: the first that is long enough and
    whose conditions the rows meet. The aligned plan of a bucket comes before the one for rows that start anywhere.

    The general kind has no tiles, its shortest rows are those of a warp; and half of everything else, because what it
    may do to a score takes code for each that a lane holds.
    """
    held = ([] if general else _tiles(direction, dtype)) + _warps(dtype, general) + _blocks(direction, dtype, general)
    held.sort(key=lambda plan: (plan.max_k, -plan.vec))
    held = _without_overlap(held, dtype)
    longest = held[-1]
    return held + _clusters(dtype, longest) + _pieces(longest.k[1] + 1, general)


def _without_overlap(plans: list[RowPlan], dtype: DType) -> list[RowPlan]:
    """Each serves the rows that are longer than those of its predecessor of the same alignment."""
    longest: dict[int, int] = {}
    result = []
    for plan in plans:
        k = plan.max_k + _beside_vectors(plan, dtype)
        result.append(replace(plan, k=(longest.get(plan.vec, 0) + 1, k)))
        longest[plan.vec] = k
    return result


def _beside_vectors(plan: RowPlan, dtype: DType) -> int:
    """Columns that a row may have beyond `max_k`. The fewer than a vector at either end of rows that start anywhere
    have registers of their own: 1025 columns of 16 bits are 128 vectors like 1024. Not in f64, nor in tiles."""
    has_edges = plan.vec == 1 and plan.plan is not Plan.TILE and dtype is not DType.F64
    return dtype.vector - 1 if has_edges else 0


def _tiles(direction: Direction, dtype: DType) -> list[RowPlan]:
    """Short rows as one flat range. 256 threads with four vectors each: 16 KiB per CTA, and 64 KiB in flight with four
    CTAs on an SM.

    From 32 columns on a group of lanes reads a row into registers. In shorter rows that start anywhere head and tail
    would be most of it. Rows of up to 16 columns pass by half as many as lanes of longer ones have: at K = 9, 28
    instructions per 16-bit element instead of 36. Those of f64 pass by none, so that the shortest have fewer.
    """
    threads = 256
    shortest = 8 if dtype is DType.F64 else 16
    capacity = direction.tile_vectors * threads * dtype.vector
    return [RowPlan(Plan.TILE, k, vec, threads, capacity // k) for k in (shortest, 32) for vec in (dtype.vector, 1)]


def _warps(dtype: DType, general: bool) -> list[RowPlan]:
    """Rows of up to 2 KiB in 4 to 32 lanes, four vectors to a lane: 64 bytes in flight per lane, and the ten shuffles
    of a full warp spread over 32 elements of 16 bits (0.6 instructions per element).

    What an SM has in flight are the columns of a row, not the lanes' capacity for them. Two lengths of 16 bits between
    powers of two have kernels of their own, in 16 lanes: 384 aligned columns, of which a causal mask leaves half, in
    three vectors, whose fewer registers leave room for more rows; and the 577 of a vision transformer in five.
    """
    threads, vectors, fewest = (128, 2, 8) if general else (128, 4, 4)
    longest = 32 * vectors * dtype.vector
    lengths = [(k, max(k // (vectors * dtype.vector), fewest)) for k in (64, 128, 256, 512, 1024) if k <= longest]
    plans = [RowPlan(Plan.WARP, k, vec, threads, threads // lanes) for k, lanes in lengths for vec in (dtype.vector, 1)]
    if dtype.bytes == 2 and not general:
        between = (384, dtype.vector), (640, dtype.vector), (640, 1)
        plans += [RowPlan(Plan.WARP, k, vec, threads, threads // 16) for k, vec in between]
    return plans


def _blocks(direction: Direction, dtype: DType, general: bool) -> list[RowPlan]:
    """Rows of up to 16384 columns (f64: 8192) in one CTA. One kernel serves them all: each warp holds neighbouring
    columns, and a launch has as many warps as hold the row.

    Forward: 32 elements of 16 or 32 bits in each of at most 512 threads, about 50 registers a thread, keep 36 warps on
    an SM. Backward: two tensors, kept as they were read, in the same 32 registers. 1024 threads with 8 elements of f64,
    in either direction, end at 8192. The general kind needs more than the 64 registers that 1024 threads would have.
    """
    most, share = (512, 2) if general else (1024, 1)
    per_thread = {
        Direction.FORWARD: {DType.F16: 32, DType.BF16: 32, DType.F32: 32, DType.F64: 8},
        Direction.BACKWARD: {DType.F16: 32, DType.BF16: 32, DType.F32: 16, DType.F64: 8},
    }[direction][dtype.input] // share
    longest = min(16384, most * per_thread)
    return [RowPlan(Plan.BLOCK, longest, vec, longest // per_thread, 1) for vec in (dtype.vector, 1)]


def _clusters(dtype: DType, block: RowPlan) -> list[RowPlan]:
    """Longer rows in the registers of 2 to 16 CTAs of the largest block; the launch takes as few as hold the row."""
    longest = block.max_k * MAX_CLUSTER
    return [
        RowPlan(
            *(Plan.CLUSTER, longest, vec, block.threads),
            rows=1,
            cluster=MAX_CLUSTER,
            k=(block.k[1] + 1, block.max_k * ctas),
            architectures=architectures,
        )
        for vec in (dtype.vector, 1)
        for architectures, ctas in CLUSTERS
    ]


def _pieces(min_k: int, general: bool) -> list[RowPlan]:
    """Rows that no registers hold are read twice, the second time from L2 as far as it keeps them. One kernel serves
    every alignment: whether a row is aligned is a question per row, not per vector of a loop.

    Few rows are split among CTAs of 256 threads with two vectors each (4096 columns of 16 bits, 64 CTAs at K = 256k);
    many rows stream through CTAs of 512 threads, of which two keep 32 KiB in flight on an SM. The general kind has
    registers for three CTAs of 256 threads.
    """
    lengths = (min_k, ANY_K)
    return [
        RowPlan(Plan.SPLIT, ANY_K, 1, 256, rows=1, k=lengths, max_rows=MAX_SPLIT_ROWS),
        RowPlan(Plan.STREAM, ANY_K, 1, 256 if general else 512, rows=1, k=lengths),
    ]
