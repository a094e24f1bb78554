"""Policy: which plan and which tile serve a row length. The one home of every threshold of that choice.

MEASURED has what was chosen by timing on a GPU. Everything else follows from arithmetic, stated at each number, and
`row_plans` lists it. The budget is that of an H200: about 29 lane-instructions per 16-bit element and 48 KiB of reads
in flight per SM hide under the traffic.
"""

from dataclasses import dataclass, replace

from softmax_ops.artifacts.constants import MAX_CLUSTER

from .axes import Direction, DType, Plan
from .features import Mask
from .spec import ANY_K, LONGEST_APART

MAX_SPLIT_ROWS = 128
"""Up to this many rows, several CTAs share a row that is too long for a cluster. With more rows, one CTA per row
already occupies most of the SMs (80 to 188)."""

CLUSTERS = (("sm_90", "sm_100", "sm_103"), MAX_CLUSTER), (("sm_120",), 8)
"""Architectures with thread block clusters, and the most CTAs that a cluster may have there."""


@dataclass(frozen=True)
class RowPlan:
    """A plan for rows of up to `max_k` columns whose starts are multiples of `vec` elements, with the CTA that computes
    them. It serves the lengths `k` (first, last), from `min_rows` to `max_rows` rows (0: any number), on
    `architectures` (empty: all).

    `measured` is the measurement by which it was chosen, as `python -m codegen tune` prints it, "sm_90: ..."; empty if
    it was chosen by arithmetic.
    """

    plan: Plan
    max_k: int
    vec: int
    threads: int
    rows: int
    cluster: int = 1
    k: tuple[int, int] = (0, 0)
    min_rows: int = 0
    max_rows: int = 0
    architectures: tuple[str, ...] = ()
    measured: str = ""

    def serves(self, arch: str, vec: int, rows: int) -> bool:
        """Whether it is for this many rows, aligned to `vec` elements, of a length in `k`."""
        alike = self.vec <= vec and (not self.architectures or arch in self.architectures)
        return alike and self.min_rows <= rows and (not self.max_rows or rows <= self.max_rows)


MEASURED: dict[tuple[Direction, DType, Mask], tuple[RowPlan, ...]] = {}
"""Row plans that a measurement chose, as `python -m codegen tune` proposes them, by direction, element types and mask
kind. Dispatch tries them before those of the same alignment that arithmetic chose. Empty: no GPU has run the sweep."""


def row_plans(direction: Direction, dtype: DType, mask: Mask = Mask.NONE) -> list[RowPlan]:
    """The row plans of an element type that follow from arithmetic, in the order in which dispatch tries them; the
    first one that is long enough and whose conditions the rows meet is taken. All aligned plans come before those for
    unaligned rows.

    The general kind has no tiles: its shortest rows use WARP. Its lanes hold half as many columns, because its code
    per column is long and is repeated for each column that a lane holds. The band kind has the general plans for short
    unaligned rows, for short rows of the backward, and for those that nobody holds. Its clusters, and its
    other plans in the forward, are those of the other kinds. Aligned rows of f64 have no kernels of their own: a warp
    reads 256 bytes at a time as it is, and wider accesses would save at most 5 of some 80 instructions per element.
    """
    held = [] if mask.has_epilogue else _tiles(direction, dtype)
    held += _warps(direction, dtype, mask) + _blocks(direction, dtype, _has_half_blocks(direction, mask))
    held.sort(key=lambda plan: (plan.max_k, -plan.vec))
    held = _without_overlap(held, dtype)
    longest = held[-1]
    block = longest if mask.general else _blocks(direction, dtype, half=False)[-1]
    beyond = longest.k[1] + 1
    flat = _flat_tiles(direction, dtype, mask)
    plans = flat + held + _clusters(direction, dtype, mask, block, beyond) + _pieces(beyond, mask.has_epilogue)
    plans.sort(key=lambda plan: -plan.vec)
    return [plan for plan in plans if plan.vec == 1] if dtype is DType.F64 else plans


def _has_half_blocks(direction: Direction, mask: Mask) -> bool:
    """Whether a thread of a block holds half as many columns. In the backward of the band kind it does: kernels for
    unaligned rows would spill on sm_100 and sm_120."""
    return mask.general or (mask is Mask.BAND and direction is Direction.BACKWARD)


def _without_overlap(plans: list[RowPlan], dtype: DType) -> list[RowPlan]:
    """Sets `k`: each plan serves the rows that are too long for the previous plan of the same alignment."""
    longest: dict[int, int] = {}
    result = []
    for plan in plans:
        k = plan.max_k + _beside_vectors(plan, dtype)
        result.append(replace(plan, k=(longest.get(plan.vec, 0) + 1, k)))
        longest[plan.vec] = k
    return result


def _beside_vectors(plan: RowPlan, dtype: DType) -> int:
    """Columns that a row in registers may have beyond `max_k`. In unaligned rows, the columns outside whole
    vectors (fewer than a vector at either end) have registers of their own: 1025 columns of 16 bits need as many
    vectors as 1024. This does not apply to f64 or to tiles."""
    has_edges = plan.vec == 1 and plan.plan is not Plan.TILE and dtype is not DType.F64
    return dtype.vector - 1 if has_edges else 0


def _tiles(direction: Direction, dtype: DType) -> list[RowPlan]:
    """Short rows, moved as one flat range. 256 threads with four vectors each: 16 KiB per CTA, and 64 KiB in flight
    with four CTAs on an SM.

    Most rows of more than 32 columns are read into the registers of a group of lanes instead. Shorter unaligned
    rows would consist mostly of a head and a tail. There are two buckets because a lane skips the unused columns
    of its bucket one branch at a time, each of which takes instructions. f64 skips nothing, so its shorter bucket ends
    at 8.
    """
    shortest = 8 if dtype is DType.F64 else 16
    return [tile(direction, dtype, k, vec) for k in (shortest, LONGEST_APART) for vec in (dtype.vector, 1)]


def _flat_tiles(direction: Direction, dtype: DType, mask: Mask) -> list[RowPlan]:
    """Unaligned rows of 33 to 68 columns of 16 bits that follow each other: the vectors of the lanes hold 64
    columns, and their edges four.

    As an unaligned row in registers such a row is half head and tail: its stores reach 1.6 to 2.3 times the sectors
    that they fill, and with 33 to 50 columns only 25 to 38 KiB are in flight on an SM, where a tile has 64. Masks and
    biases are read from global memory, where the lanes of a tile would each read a line of their own.
    """
    if dtype.bytes > 2 or mask.has_epilogue or (direction is Direction.FORWARD and mask is not Mask.NONE):
        return []
    return [replace(tile(direction, dtype, 64, 1), k=(LONGEST_APART + 1, 68))]


def tile(direction: Direction, dtype: DType, max_k: int, vec: int, threads: int = 256) -> RowPlan:
    return RowPlan(Plan.TILE, max_k, vec, threads, direction.tile_vectors * threads * dtype.vector // max_k)


def _warps(direction: Direction, dtype: DType, mask: Mask) -> list[RowPlan]:
    """Rows of up to 2 KiB in 4 to 32 lanes, four vectors per lane: 64 bytes in flight per lane, and the ten shuffles of
    a full warp spread over 32 elements of 16 bits (0.6 instructions per element).

    The bytes in flight on an SM are those of the rows, not those that the registers could hold. Therefore some lengths
    between powers of two have kernels of their own, each with the vectors that a lane holds:

    - 16 bits: 384 aligned columns, of which a causal mask leaves half (three, in 16 lanes: fewer registers leave room
      for more rows); the 577 of vision transformers (five, in 16), and with causal or bool masks their 197 (three, in
      8); and unless a bias or a mask of the scores' type is read beside them, 577 aligned columns, and the 1500 of
      Whisper (six, where two warps of a block would have room for four each)
    - f32: those 577 (five, where one warp of a block has room for eight, or two for four each)
    """
    plain = not mask.has_epilogue
    aligned = plain or (mask is Mask.BAND and direction is Direction.FORWARD)
    plans = [*_powers_of_two(dtype, dtype.vector, full=aligned), *_powers_of_two(dtype, 1, full=plain)]
    between: list[tuple[int, int, int]] = []
    if plain and dtype.bytes == 2:
        between = [(384, dtype.vector, 16), (640, 1, 16)]
        if mask not in (Mask.LIKE, Mask.BIAS):
            between += [(640, dtype.vector, 16), (1536, 1, 32)]
        if direction is Direction.FORWARD and mask in (Mask.CAUSAL, Mask.BOOLCAUSAL):
            between.append((192, 1, 8))
    elif plain and dtype is DType.F32:
        between = [(640, dtype.vector, 32), (640, 1, 32)]
    return plans + [RowPlan(Plan.WARP, k, vec, 128, 128 // lanes) for k, vec, lanes in between]


def _powers_of_two(dtype: DType, vec: int, full: bool) -> list[RowPlan]:
    """Warps for 64 to 1024 columns, as far as 32 lanes hold them in 64 bytes of scores each, or in 32 if not `full`."""
    threads = 128
    held, fewest = (64 // dtype.bytes, 4) if full else (32 // dtype.bytes, 8)
    lengths = [(k, max(k // held, fewest)) for k in (64, 128, 256, 512, 1024) if k <= 32 * held]
    return [RowPlan(Plan.WARP, k, vec, threads, threads // lanes) for k, lanes in lengths]


def _blocks(direction: Direction, dtype: DType, half: bool) -> list[RowPlan]:
    """Rows of up to 16384 columns (f64: 8192) in one CTA. One kernel serves all lengths: each warp holds neighbouring
    columns, and a launch has as many warps as the row needs.

    Forward: 32 elements of 16 or 32 bits per thread, at most 512 threads; about 50 registers per thread allow 36 warps
    on an SM. Backward: two tensors, kept in registers as they were read, in the same 32 registers. f64, both
    directions: 8 elements in each of 1024 threads, hence 8192 columns. The general kind needs more than the 64
    registers that 1024 threads would leave to each.
    """
    most, share = (512, 2) if half else (1024, 1)
    per_thread = {
        Direction.FORWARD: {DType.F16: 32, DType.BF16: 32, DType.F32: 32, DType.F64: 8},
        Direction.BACKWARD: {DType.F16: 32, DType.BF16: 32, DType.F32: 16, DType.F64: 8},
    }[direction][dtype.input] // share
    longest = min(16384, most * per_thread)
    return [RowPlan(Plan.BLOCK, longest, vec, longest // per_thread, 1) for vec in (dtype.vector, 1)]


def _clusters(direction: Direction, dtype: DType, mask: Mask, block: RowPlan, min_k: int) -> list[RowPlan]:
    """Longer rows in the registers of 2 to 16 CTAs; the launch takes as few as hold the row with several
    of them on an SM (`occupancy.columns_of_cta`).

    A CTA is one of the block, or has one warp more, since vocabularies go a little beyond 2^18 (262,208 columns). The
    latter holds for rows of 16 bits and aligned ones of f32, with five vectors per lane where 32 warps hold 16384
    columns in four. Unaligned rows of f32 would spill; in the backward of the band kind, on sm_120, they
    would with more than 28 warps.
    """
    plans = []
    for vec in (dtype.vector, 1):
        columns, threads = block.max_k, block.threads
        aligned_f32 = dtype.input is DType.F32 and vec > 1
        if not mask.general and (dtype.bytes == 2 or aligned_f32):
            columns += columns // 16
            threads = min(threads + threads // 16, 1024)
        elif mask is Mask.BAND and direction is Direction.BACKWARD:
            columns -= columns // 8
            threads -= threads // 8
        full = RowPlan(Plan.CLUSTER, columns * MAX_CLUSTER, vec, threads, rows=1, cluster=MAX_CLUSTER)
        beside = _beside_vectors(full, dtype)
        plans += [
            replace(full, k=(min_k, columns * ctas + beside), architectures=architectures)
            for architectures, ctas in CLUSTERS
        ]
    return plans


def _pieces(min_k: int, has_epilogue: bool) -> list[RowPlan]:
    """Rows too long for registers, which are read twice: the second time from L2 if it still has them. One kernel
    serves every alignment, because it tests the alignment once per row and not once per vector.

    If there are few rows, each is split among CTAs of 256 threads with two vectors each (4096 columns of 16 bits, 64
    CTAs at K = 256k). If there are many, each streams through one CTA of 512 threads; two such CTAs keep 32 KiB in
    flight on an SM. Kinds with an epilogue have enough registers for three CTAs of 256 threads.
    """
    lengths = (min_k, ANY_K)
    return [
        RowPlan(Plan.SPLIT, ANY_K, 1, 256, rows=1, k=lengths, max_rows=MAX_SPLIT_ROWS),
        RowPlan(Plan.STREAM, ANY_K, 1, 256 if has_epilogue else 512, rows=1, k=lengths),
    ]
