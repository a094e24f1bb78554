"""A call in integers: what the launcher is given, without torch.

`Geometry` is everything that decides which kernel runs and how; equal geometries share one launch plan. The rest of a
call (addresses, scale, fill, stream) is passed at the launch.
"""

from math import prod
from typing import NamedTuple

MASK_BYTES = {"bool": 1, "boolcausal": 1}
DTYPE_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}

MAX_RANK = 4
"""Leading dimensions that a kernel can tell apart, after coalescing."""

MAX_ROWS = 2**31 - 2**10
"""Rows of one launch. Row numbers are 32-bit inside a kernel (offsets are 64-bit), also those that the last CTA counts
beyond the last row."""


class Operands(NamedTuple):
    """One number per operand of the forward: strides or offsets in elements, alignments or addresses in bytes."""

    x: int
    y: int
    mask: int


class Geometry(NamedTuple):
    """Rows of x, y and mask: shape [..., Q, K] and, per dimension, strides in elements (0 where the mask broadcasts).

    The last stride of x and y is 1, that of the mask 0 or 1. `alignment` is the largest power of two, at most 16, that
    divides an operand's address in bytes. A named tuple, because it is hashed at every launch.
    """

    dtype: str
    mask_kind: str  # none, causal, bool, boolcausal, like
    shape: tuple[int, ...]
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    mask_strides: tuple[int, ...]  # of zeros where there is no mask
    alignment: Operands
    causal_offset: int | None = None
    batch_invariant: bool = False
    direction: str = "fwd"

    @property
    def k(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def element_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def mask_bytes(self) -> int:
        """Bytes of a mask element; 0 without a mask."""
        return self.element_bytes if self.mask_kind == "like" else MASK_BYTES.get(self.mask_kind, 0)


class Dimension(NamedTuple):
    """A leading dimension: its size, how far the operands move along it (elements), and whether it counts queries."""

    size: int
    strides: Operands
    query: int  # 1 for the query dimension of a causal problem, else 0


def leading_dimensions(geometry: Geometry) -> list[Dimension]:
    """The leading dimensions, outermost first, merged wherever one stride describes two for every operand.

    >>> g = Geometry("f16", "none", (2, 3, 4, 8), (96, 32, 8, 1), (96, 32, 8, 1), (0, 0, 0, 0), Operands(16, 16, 16))
    >>> leading_dimensions(g)
    [Dimension(size=24, strides=Operands(x=8, y=8, mask=0), query=0)]
    """
    dimensions: list[Dimension] = []
    last = len(geometry.shape) - 2
    for position, size in enumerate(geometry.shape[:-1]):
        if size == 1:
            continue
        strides = Operands(geometry.x_strides[position], geometry.y_strides[position], geometry.mask_strides[position])
        inner = Dimension(size, strides, int(geometry.causal_offset is not None and position == last))
        if dimensions and _continues(dimensions[-1], inner):
            outer = dimensions.pop()
            inner = inner._replace(size=outer.size * size)
        dimensions.append(inner)
    return dimensions or [Dimension(1, Operands(0, 0, 0), 0)]


def _continues(outer: Dimension, inner: Dimension) -> bool:
    """Whether a step of `outer` is `inner.size` steps of `inner`, for every operand and for the query number."""
    steps = zip((*outer.strides, outer.query), (*inner.strides, inner.query), strict=True)
    return all(far == inner.size * near for far, near in steps)


class Part(NamedTuple):
    """Rows of one launch, and where they begin: offsets of the operands in elements, and of the query number."""

    dimensions: tuple[Dimension, ...]
    offset: Operands
    query: int

    @property
    def rows(self) -> int:
        return prod(dimension.size for dimension in self.dimensions)


def parts(dimensions: tuple[Dimension, ...], limit: int = MAX_ROWS) -> list[Part]:
    """The rows in as few launches as have at most `limit` rows each, cut along the outermost dimension."""
    rows = prod(dimension.size for dimension in dimensions)
    if rows <= limit:
        return [Part(dimensions, Operands(0, 0, 0), 0)]
    outer, inner = dimensions[0], dimensions[1:]
    step = limit // (rows // outer.size)
    if step == 0:
        return [_moved(part, outer, i) for i in range(outer.size) for part in parts(inner, limit)]
    return [
        _moved(Part((outer._replace(size=min(step, outer.size - start)), *inner), Operands(0, 0, 0), 0), outer, start)
        for start in range(0, outer.size, step)
    ]


def _moved(part: Part, along: Dimension, steps: int) -> Part:
    offset = Operands(*(old + steps * stride for old, stride in zip(part.offset, along.strides, strict=True)))
    return part._replace(offset=offset, query=part.query + steps * along.query)
