"""What a kernel variant is. A name and a `Spec` determine each other, and a `Spec` determines the source.

softmax_<fwd|bwd>_<dtype>_<mask>_<plan>_k<largest K|any>_v<vec>_t<threads>r<rows per CTA>[c<cluster>]

The dtype is f16, bf16, f32 or f64, or two of them joined by "to" if input and output differ.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from softmax_ops.artifacts.catalog import argument_bytes
from softmax_ops.artifacts.constants import ACCESS_BYTES, WORD_BYTES

from .axes import Direction, DType, Plan
from .features import BAND, CAPPED_GRADIENT, EPILOGUE, EPILOGUE_GRADIENT, Feature, Fields, Mask

ANY_K = 2**31 - 2**20
"""Longest row of plans without a limit of their own. Column numbers are 32-bit, and so must be those of the vectors
that lie beyond the last column."""

LONGEST_APART = 32
"""Longest rows of a `tile` that need not follow each other in memory. As separate rows, longer ones would take twice as
many instructions as in registers."""


def operands(direction: Direction) -> Fields:
    """The arguments that every kernel of a direction has, in the order of its C++ struct."""
    rows = (("rows.count", "i"), ("rows.k", "i"), ("rows.rank", "i"), ("rows.divisors", "9I"))
    addresses = ((f"{tensor}.address", "P") for tensor in direction.tensors)
    strides = ((f"{tensor}.strides", "4i") for tensor in direction.tensors)
    return (*addresses, ("scale", "A"), *rows, *strides)


_NAME = re.compile(
    r"softmax_(?P<direction>fwd|bwd)_(?P<dtype>[a-z0-9]+)_(?P<mask>[a-z]+)_(?P<plan>[a-z]+)"
    r"_k(?P<max_k>[1-9]\d*|any)_v(?P<vec>[1-9]\d*)_t(?P<threads>[1-9]\d*)r(?P<rows>[1-9]\d*)(c(?P<cluster>[1-9]\d*))?"
)


@dataclass(frozen=True)
class Spec:
    """One kernel.

    `vec` is the alignment in elements that it requires of every row: 16 bytes, or 1 for unaligned rows.
    The latter also move in 16-byte accesses wherever their own alignment allows (in most f64 kernels: in 8-byte ones);
    `access` is the number of elements in one access.
    """

    direction: Direction
    dtype: DType
    mask: Mask
    plan: Plan
    max_k: int
    vec: int
    threads: int
    rows: int
    cluster: int = 1

    @cached_property
    def name(self) -> str:
        longest = "any" if self.max_k == ANY_K else self.max_k
        cluster = f"c{self.cluster}" if self.cluster > 1 else ""
        return (
            f"softmax_{self.direction.label}_{self.dtype.value}_{self.mask.label}_{self.plan.label}"
            f"_k{longest}_v{self.vec}_t{self.threads}r{self.rows}{cluster}"
        )

    @classmethod
    def from_name(cls, name: str) -> "Spec":
        """The inverse of `name`. Raises ValueError when it is not the name of a variant."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name!r} is not a variant name: "
                "softmax_<fwd|bwd>_<dtype>_<mask>_<plan>_k<K>_v<vec>_t<threads>r<rows>[c<cluster>]"
            )
        try:
            spec = cls(
                next(direction for direction in Direction if direction.label == match["direction"]),
                DType(match["dtype"]),
                next(mask for mask in Mask if mask.label == match["mask"]),
                next(plan for plan in Plan if plan.label == match["plan"]),
                ANY_K if match["max_k"] == "any" else int(match["max_k"]),
                vec=int(match["vec"]),
                threads=int(match["threads"]),
                rows=int(match["rows"]),
                cluster=int(match["cluster"] or 1),
            )
        except (StopIteration, ValueError):
            raise ValueError(f"{name!r} is not a variant name: no such element type, mask kind or plan") from None
        if spec.name != name:
            raise ValueError(f"{name!r} is not a variant name: it is written {spec.name}")
        return spec

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of the kernel. A backward starts from the results of the forward and only needs to know which
        columns are visible."""
        if self.mask.has_epilogue and self.direction is Direction.BACKWARD:
            return (BAND,)
        return self.mask.features

    @property
    def epilogue(self) -> Feature | None:
        """The feature that finishes a row once its reduction is known; None where that is a single factor or sum."""
        if not self.mask.has_epilogue:
            return None
        if self.direction is Direction.FORWARD:
            return EPILOGUE
        return CAPPED_GRADIENT if self.mask.general else EPILOGUE_GRADIENT

    @property
    def elements_per_lane(self) -> int:
        """Columns that a lane holds in whole vectors, of each tensor."""
        return self.access * self.chunks

    @property
    def threads_per_row(self) -> int:
        """Threads of a CTA that share a row; an upper limit if the launch decides how many.

        In a `tile` kernel each lane holds 64 bytes of a row. It holds 32 bytes in the backward, which has two tensors;
        in aligned rows, because lanes whose data starts 64 bytes apart would have four-way bank conflicts; and in
        16-bit rows with a mask or a bias, of which neighbouring lanes then read neighbouring columns, from fewer lines
        of memory. f64 keeps 64 bytes, since 32 would be only four columns.
        """
        if self.plan is Plan.TILE:
            masked = self.mask in (Mask.BOOLCAUSAL, Mask.LIKE, Mask.BIAS) and self.dtype.bytes == 2
            halved = self.direction is Direction.BACKWARD or self.vec > 1 or masked
            held = 32 if halved and self.dtype is not DType.F64 else 64
            return max(self.max_k * self.dtype.bytes // held, 1)
        return self.threads // self.rows

    @property
    def by_warp(self) -> bool:
        """Whether each warp holds neighbouring vectors, and a launch has as many warps as the row needs."""
        return self.plan in (Plan.BLOCK, Plan.CLUSTER)

    @property
    def skips_warps(self) -> bool:
        """Whether a warp that sees none of its columns skips them. Beside a tensor mask it does not: where all columns
        are visible, as with padding alone, it would cost an instruction each."""
        return self.by_warp and self.direction is Direction.FORWARD and self.mask in (Mask.CAUSAL, Mask.BAND)

    @property
    def lanes(self) -> int:
        """Lanes to which neighbouring vectors are dealt in turn: those of a warp if `by_warp`, else all that share a
        row."""
        return 32 if self.by_warp else self.threads_per_row

    @property
    def access(self) -> int:
        """Elements of one vector in registers. Four in `tile` kernels for unaligned rows, so that one branch
        skips four columns."""
        if self.dtype is DType.F64 and (self.mask.general or not self.plan.in_pieces):
            return self.vec
        return 4 if self.plan is Plan.TILE and self.vec == 1 else self.dtype.vector

    @property
    def unaligned(self) -> bool:
        """Whether unaligned rows move in vectors, with single columns at their ends.

        Vectors are cut at the 16-byte boundaries of the output; in a `tile`, which reads from shared memory, at its
        first word. False for f64 rows that are held in registers or a tile, and for the general kind of f64:
        these move element by element.
        """
        return self.access > self.vec

    @property
    def flat(self) -> bool:
        """Whether it takes only rows that a tile moves as one range."""
        return self.plan is Plan.TILE and self.max_k > LONGEST_APART

    @property
    def edges(self) -> int:
        """Single columns per lane of an unaligned row. Fewer than a vector of them lie at either end; in a `tile`,
        fewer than a word at the first one."""
        head = self.word if self.plan is Plan.TILE else self.access
        return -(-(head - 1 + self.access - 1) // self.lanes)

    @property
    def word(self) -> int:
        """Elements that move at a time between registers and the shared memory of unaligned rows: 4 bytes;
        one of f64."""
        return max(WORD_BYTES // self.dtype.bytes, 1)

    @property
    def chunks(self) -> int:
        """Vectors that a lane holds at once. In pieces of f64 and of the general kind they have 16 bytes of scores,
        because their code per element is long and is repeated for each."""
        if self.plan.in_pieces:
            few = self.dtype is DType.F64 or self.mask.general
            return ACCESS_BYTES // self.dtype.bytes // self.access if few else self.plan.piece_vectors
        return -(-self.max_k // (self.access * self.threads_per_row * self.cluster))

    @property
    def warps(self) -> int:
        return self.threads // 32

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: the rows of a tile's inputs."""
        return (len(self.direction.tensors) - 1) * self.tile_bytes

    @property
    def tile_bytes(self) -> int:
        """Shared memory for one input of a tile, with room for one more vector, since data is stored at the output's
        offset from a 16-byte boundary; 0 for other plans."""
        return self.tile_elements * self.dtype.bytes + ACCESS_BYTES if self.plan is Plan.TILE else 0

    @property
    def tile_elements(self) -> int:
        """Elements of one input that a tile holds; 0 for other plans."""
        return self.direction.tile_vectors * self.threads * self.dtype.vector if self.plan is Plan.TILE else 0

    @property
    def piece(self) -> int:
        """Columns of the pieces in which a CTA goes over a row; 0: the CTA holds its part of the row."""
        return self.threads * self.access * self.chunks if self.plan.in_pieces else 0

    @property
    def splits(self) -> bool:
        """Whether CTAs that communicate through a workspace share a row, in launches one after the other."""
        return self.plan is Plan.SPLIT

    @property
    def partial_bytes(self) -> int:
        """Size of the partial result of a part of a row: maximum and sum in the forward, the sum of y dy in the
        backward."""
        accumulator = 8 if self.dtype is DType.F64 else 4
        return accumulator * (2 if self.direction is Direction.FORWARD else 1)

    @property
    def arguments(self) -> Fields:
        """Fields of the kernel's parameter struct in order, each with its `struct` format in native alignment."""
        accumulator = "d" if self.dtype is DType.F64 else "f"
        features = (feature.fields for feature in (*self.features, self.epilogue) if feature is not None)
        structs = (operands(self.direction), *features, self.plan.fields)
        return tuple(
            (name, format.replace("A", accumulator))
            for fields in structs
            if fields
            for name, format in (*fields, ("", "0q"))
        )

    @property
    def argument_bytes(self) -> int:
        return argument_bytes(self.arguments)

    @property
    def numeric(self) -> str:
        """The C++ class of the arithmetic of exponentials. Scores that are sums have no 16-bit type: there the type of
        the results decides."""
        return f"NumericOfSums<{self.output}>" if self.mask.sums else "Numeric<Element>"

    @property
    def output(self) -> str:
        """The C++ type of a result."""
        return "Output" if self.dtype.converts else "Element"

    def feature_type(self, feature: Feature) -> str:
        return feature.type.format(numeric=self.numeric)
