"""What a kernel variant is. A name and a `Spec` determine each other, and a `Spec` determines the source.

softmax_<fwd|bwd>_<f16|bf16|f32|f64>_<mask>_<plan>_k<largest K>_v<vec>_t<threads>r<rows per CTA>
"""

import re
import struct
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import ClassVar

ACCESS_BYTES = 16
"""Width of a vector access in bytes: the widest load and store of sm_70 .. sm_90."""


class Direction(Enum):
    FORWARD = "fwd"


class DType(Enum):
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"

    @property
    def bytes(self) -> int:
        return {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}[self.value]

    @property
    def element(self) -> str:
        """The C++ type of an element."""
        return {"f16": "cutlass::half_t", "bf16": "cutlass::bfloat16_t", "f32": "float", "f64": "double"}[self.value]

    @property
    def accumulator(self) -> str:
        """The C++ type of scores, maximum and sum."""
        return "double" if self is DType.F64 else "float"

    @property
    def vector(self) -> int:
        """Elements of one 16-byte access."""
        return ACCESS_BYTES // self.bytes


@dataclass(frozen=True)
class Section:
    """Consecutive fields of a kernel's by-value struct: (what the launcher puts there, `struct` format)."""

    fields: tuple[tuple[str, str], ...]

    @property
    def format(self) -> str:
        """In native alignment, closed by the padding that C++ gives a struct of 64-bit members."""
        return "".join(format for _, format in self.fields) + "0q"


@dataclass(frozen=True)
class Feature:
    """What acts on a score between the load and the softmax: a header, its C++ class, its run-time arguments.

    `type` and `section` may name {element} and {accumulator}; a section's formats write "A" for the accumulator.
    """

    name: str
    header: str
    type: str
    section: Section


VISIBLE_TO_QUERY = Feature("causal", "causal.cuh", "Causal", Section((("causal.offset", "q"), ("causal.query", "4q"))))


def _tensor_mask(element: str) -> Feature:
    section = Section(
        (("mask.address", "P"), ("mask.fill", "A"), ("mask.column_stride", "i"), ("mask.strides", "4q")),
    )
    return Feature("mask", "tensor_mask.cuh", f"TensorMask<{element}, {{accumulator}}>", section)


class Mask(Enum):
    """Mask kinds, each the features that make it up, in the order in which they act."""

    NONE = "none", ()
    CAUSAL = "causal", (VISIBLE_TO_QUERY,)
    BOOL = "bool", (_tensor_mask("uint8_t"),)
    BOOLCAUSAL = "boolcausal", (VISIBLE_TO_QUERY, _tensor_mask("uint8_t"))
    LIKE = "like", (_tensor_mask("{element}"),)

    def __init__(self, label: str, features: tuple[Feature, ...]):
        self.label = label
        self.features = features


class Plan(Enum):
    """Who holds a row."""

    TILE = "tile", Section((("tile.rows_per_cta", "i"), ("tile.flat", "i")))
    WARP = "warp", Section(())
    BLOCK = "block", Section(())

    def __init__(self, label: str, section: Section):
        self.label = label
        self.section = section


OPERANDS = Section(
    (
        ("x.address", "P"),
        ("y.address", "P"),
        ("scale", "A"),
        ("rows.count", "i"),
        ("rows.k", "i"),
        ("rows.rank", "i"),
        ("rows.divisors", "9I"),
        ("x.strides", "4q"),
        ("y.strides", "4q"),
    )
)

_NAME = re.compile(
    r"softmax_(?P<direction>fwd)_(?P<dtype>f16|bf16|f32|f64)_(?P<mask>[a-z]+)_(?P<plan>[a-z]+)"
    r"_k(?P<max_k>[1-9]\d*)_v(?P<vec>[1-9]\d*)_t(?P<threads>[1-9]\d*)r(?P<rows>[1-9]\d*)"
)


@dataclass(frozen=True)
class Spec:
    """One kernel. `vec` is the alignment that it demands of every row, in elements: 16 bytes, or 1 for rows that
    start anywhere. Those too move in accesses of 16 bytes wherever their own alignment allows (f64: of 8)."""

    direction: Direction
    dtype: DType
    mask: Mask
    plan: Plan
    max_k: int
    vec: int
    threads: int
    rows: int

    @cached_property
    def name(self) -> str:
        return (
            f"softmax_{self.direction.value}_{self.dtype.value}_{self.mask.label}_{self.plan.label}"
            f"_k{self.max_k}_v{self.vec}_t{self.threads}r{self.rows}"
        )

    @classmethod
    def from_name(cls, name: str) -> "Spec":
        """The inverse of `name`. Raises ValueError when it is not the name of a variant."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name!r} is not a variant name: softmax_fwd_<dtype>_<mask>_<plan>_k<K>_v<vec>_t<threads>r<rows>"
            )
        try:
            return cls(
                Direction(match["direction"]),
                DType(match["dtype"]),
                next(mask for mask in Mask if mask.label == match["mask"]),
                next(plan for plan in Plan if plan.label == match["plan"]),
                *(int(match[field]) for field in ("max_k", "vec", "threads", "rows")),
            )
        except StopIteration:
            raise ValueError(f"{name!r} names an unknown mask kind or plan") from None

    TILE_COLUMNS: ClassVar = {DType.F16: 16, DType.BF16: 16, DType.F32: 16, DType.F64: 8}
    """Columns that a lane of a tile holds. exp of a double is 40 instructions: fewer copies keep the kernel small."""

    @property
    def lanes(self) -> int:
        """Threads that share a row."""
        if self.plan is Plan.TILE:
            return min(max(self.max_k // self.TILE_COLUMNS[self.dtype], 1), 32)
        return self.threads // self.rows

    @property
    def access(self) -> int:
        """Elements of one register vector. A tile reads rows from shared memory, at the alignment they have there."""
        if self.plan is Plan.TILE or self.dtype is DType.F64:
            return self.vec
        return self.dtype.vector

    @property
    def ragged(self) -> bool:
        """Rows that start anywhere move in vectors all the same, cut where the output's boundaries lie.

        Not in a tile, which moves them all as one range, and not in f64, where an element is half a vector.
        """
        return self.access > self.vec

    @property
    def chunks(self) -> int:
        """Vectors per lane."""
        return -(-self.max_k // (self.access * self.lanes))

    @property
    def warps(self) -> int:
        return self.threads // 32

    @property
    def ctas_per_sm(self) -> int:
        """That must fit: 1024 threads, which leaves 64 registers to each and is what the smallest SM (sm_75) holds.

        Half of that where a mask as wide as f32 scores doubles the state of a row.
        """
        return (512 if self.mask is Mask.LIKE and self.dtype is DType.F32 else 1024) // self.threads

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: a tile's rows, and a vector more for the phase at which the output begins."""
        return self.tile_elements * self.dtype.bytes + ACCESS_BYTES if self.plan is Plan.TILE else 0

    @property
    def tile_elements(self) -> int:
        """Elements of a tile: every thread moves two vectors."""
        return 2 * self.threads * self.dtype.vector if self.plan is Plan.TILE else 0

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Fields of the kernel's parameter struct in order, each with its `struct` format in native alignment."""
        accumulator = "d" if self.dtype is DType.F64 else "f"
        sections = [OPERANDS, *(feature.section for feature in self.mask.features), self.plan.section]
        fields: list[tuple[str, str]] = []
        for section in sections:
            if section.fields:
                fields += [(name, format.replace("A", accumulator)) for name, format in section.fields]
                fields.append(("", "0q"))
        return tuple(fields)

    @property
    def argument_bytes(self) -> int:
        return struct.calcsize("".join(format for _, format in self.arguments))

    def feature_type(self, feature: Feature) -> str:
        return feature.type.format(element=self.dtype.element, accumulator=self.dtype.accumulator)
