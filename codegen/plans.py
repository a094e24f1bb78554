"""Policy: which plan and which tile serve a row length. The one home of every threshold.

Nothing here has been measured on a GPU yet: the tiles follow from arithmetic, stated at each number. The budget is that
of an H200: about 29 lane-instructions per 16-bit element and 48 KiB of reads in flight per SM hide under the traffic.
"""

from dataclasses import dataclass

from .spec import DType, Plan

MAX_K = 16384
"""Longest row that the plans below hold: 32 elements in each of 512 threads."""


@dataclass(frozen=True)
class RowPlan:
    """Rows of at most `max_k` columns: who holds them, at which alignment (elements), in which CTA."""

    plan: Plan
    max_k: int
    vec: int
    threads: int
    rows: int


def row_plans(dtype: DType) -> list[RowPlan]:
    """All row plans of an element type, in the order in which dispatch tries them: the first that is long enough and
    whose alignment the rows have. The aligned plan of a bucket comes before the one for rows that start anywhere."""
    plans = _tiles(dtype) + _warps(dtype) + _blocks(dtype)
    return sorted(plans, key=lambda plan: (plan.max_k, -plan.vec))


def _tiles(dtype: DType) -> list[RowPlan]:
    """Short rows as one flat range. 256 threads with two vectors each: 8 KiB per CTA, and 64 KiB in flight with eight
    CTAs on an SM.

    Aligned rows leave the tile at 32 columns: from there a group of lanes reads a row into registers. Rows that start
    anywhere stay in it up to 1 KiB: below, head and tail would be a large part of a row's accesses.
    """
    threads = 256
    capacity = 2 * threads * dtype.vector
    longest = 1024 // dtype.bytes
    anywhere = [k for k in (8, 32, 64, 128, 256, 512) if k <= longest]
    buckets = [(k, 1) for k in anywhere] + [(k, dtype.vector) for k in (8, 32)]
    return [RowPlan(Plan.TILE, k, vec, threads, capacity // k) for k, vec in buckets]


def _warps(dtype: DType) -> list[RowPlan]:
    """Rows of up to 2 KiB in 4 to 32 lanes, four vectors to a lane: 64 bytes in flight per lane, and the ten shuffles
    of a full warp spread over 32 elements of 16 bits (0.6 instructions per element)."""
    threads, vectors = 128, 4
    longest = 32 * vectors * dtype.vector
    lengths = [k for k in (64, 128, 256, 512, 1024) if k <= longest]
    aligned = [(k, max(k // (vectors * dtype.vector), 4)) for k in lengths]
    plans = [RowPlan(Plan.WARP, k, dtype.vector, threads, threads // lanes) for k, lanes in aligned]
    return [*plans, RowPlan(Plan.WARP, longest, 1, threads, threads // 32)]


def _blocks(dtype: DType) -> list[RowPlan]:
    """Rows of up to 16384 columns in one CTA. Buckets grow by 4: the vectors of a thread are a loop that ends at K.

    128 threads with 32 elements of 16 or 32 bits each (16 of f64), about 50 registers a thread, keep 8 CTAs on an SM.
    """
    per_thread = 16 if dtype is DType.F64 else 32
    lengths = [4096, MAX_K]
    return [RowPlan(Plan.BLOCK, k, vec, k // per_thread, 1) for k in lengths for vec in (dtype.vector, 1)]
