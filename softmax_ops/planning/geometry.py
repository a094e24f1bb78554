"""A call in integers, as the launcher takes it, without torch.

`Geometry` is everything that decides which kernel runs and how; equal geometries share one launch plan. The rest of a
call (addresses, scale, fill, stream) is passed at the launch.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from ..artifacts.constants import ACCESS_BYTES, DTYPE_BYTES

DTYPE_NAMES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
"""Element types of tensors, by the names that torch has for them."""

OPERANDS = {"fwd": ("x", "y"), "bwd": ("dy", "y", "dx")}
"""Tensors of every call of a direction, the output last. Operands that only some calls have come after them."""

BIASED = ("f16", "bf16")
"""Element types for which a bias of that type, and nothing else, is a mask kind; other biases use the general kind."""

WITH_A_TENSOR = ("bool", "boolcausal", "like", "bias")
"""Mask kinds that always read a tensor beside the scores."""

MAX_RANK = 4
"""Leading dimensions that a kernel supports, after coalescing."""

MAX_ROWS = 2**31 - 2**10
"""Rows of one launch, at most. Row numbers are 32-bit inside a kernel (offsets are 64-bit), including those that the
last CTA counts beyond the last row."""

MAX_BYTES = 2**44
"""Largest extent of a tensor, from its first element to its last: more than any GPU holds, and few enough launches to
plan at once."""

EVERYWHERE = 2**40
"""Window bound in columns that hides nothing, whatever offset is read from device memory."""

MAX_STRIDE = 2**31 - 1
"""Elements between two rows of one launch, at most. Strides are 32-bit inside a kernel, so that one instruction
multiplies them."""


class Operand(NamedTuple):
    """How a tensor's rows lie in memory, without its address."""

    name: str  # x, y, dy, dx; mask, bias; or numbers per row: row_scale, offsets, lengths, slopes, sinks, lse, dlse, d
    strides: tuple[int, ...]  # elements, for [..., Q, K]; 0 where it broadcasts. The last is 1, that of a mask 0 or 1
    alignment: int  # the largest power of two, at most 16, that divides its address in bytes
    element_bytes: int


class General(NamedTuple):
    """Arguments of the kinds `general` and `band` besides their operands.

    Query i has position p = i + the geometry's offset.
    """

    left: int | None = None  # columns before p that it sees; None: all
    right: int | None = None  # columns after p that it sees; None: all. 0 is causal
    softcap: float = 0.0  # z = softcap tanh(z / softcap); 0: none
    logarithms: bool = False  # results are logarithms of the probabilities


class Geometry(NamedTuple):
    """The rows of a call, [..., Q, K]. A named tuple, because it is hashed at every launch."""

    direction: str  # fwd, bwd
    dtype: str
    mask_kind: str  # none, causal, bool, boolcausal, like, bias, band, general
    shape: tuple[int, ...]
    operands: tuple[Operand, ...]  # in the order of OPERANDS, then the mask and others if there are any
    causal_offset: int | None = None
    batch_invariant: bool = False
    general: General | None = None  # of mask kinds band and general

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
    def output(self) -> Operand:
        return self.operands[len(OPERANDS[self.direction]) - 1]

    @property
    def inputs(self) -> tuple[Operand, ...]:
        """The tensors that are read, without mask and further operands."""
        return self.operands[: len(OPERANDS[self.direction]) - 1]

    @property
    def mask(self) -> Operand | None:
        return self.operand("mask")

    def operand(self, name: str) -> Operand | None:
        return next((operand for operand in self.operands if operand.name == name), None)


_OF_BAND = frozenset(("row_scale", "offsets", "lengths", "sinks", "lse", "dlse", "d"))
"""Operands of the mask kind `band`: a number per row, none of which changes a score by itself."""


def kind_of_general(general: General, operands: Iterable[str]) -> str:
    """The mask kind of a general request whose operands besides inputs and output have these names."""
    return "band" if not general.softcap and _OF_BAND.issuperset(operands) else "general"


def strides_nest(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether each stride exceeds the reach, sum of (size - 1) * stride, of all smaller ones: then no two elements
    share an address.

    True of every slice, transpose and permutation of a contiguous tensor. Some as_strided layouts, such as shape (2, 3)
    with strides (3, 2), do not nest and are still free of overlap.
    """
    reached = 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride <= reached:
                return False
            reached += (size - 1) * stride
    return True


def reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Number of elements from the first to the last, both and the gaps between included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements.

    >>> contiguous_strides((2, 3, 5))
    (15, 5, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def broadcast_strides(mask: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous mask broadcast to a shape from the right. Raises ValueError if it does not broadcast.

    >>> broadcast_strides((5, 1, 7), (2, 5, 3, 7))
    (0, 7, 0, 1)
    """
    aligned = (1,) * (len(shape) - len(mask)) + tuple(mask)
    if len(aligned) != len(shape) or any(size not in (1, full) for size, full in zip(aligned, shape, strict=True)):
        raise ValueError(f"a mask of shape {mask} does not broadcast to {shape}")
    moving = zip(aligned, contiguous_strides(aligned), strict=True)
    return tuple(stride if size > 1 else 0 for size, stride in moving)


def contiguous_geometry(
    shape: tuple[int, ...],
    dtype: str,
    mask_kind: str = "none",
    *,
    direction: str = "fwd",
    mask_shape: tuple[int, ...] | None = None,
    causal_offset: int | None = None,
    alignment: int = ACCESS_BYTES,
) -> Geometry:
    """The geometry of contiguous tensors at addresses with this alignment, whose mask or bias has their shape or
    `mask_shape`.

    `dtype` may be a pair such as f16tof32; causal kinds are bottom-right by default. Raises ValueError for a mask that
    does not broadcast.
    """
    read, written = DTYPE_BYTES[dtype], DTYPE_BYTES[dtype.split("to")[-1]]
    *inputs, output = OPERANDS[direction]
    strides = contiguous_strides(shape)
    operands = [Operand(name, strides, alignment, read) for name in inputs]
    operands.append(Operand(output, strides, alignment, written))
    if mask_kind in WITH_A_TENSOR:
        name, bytes = "bias" if mask_kind == "bias" else "mask", 1 if "bool" in mask_kind else read
        operands.append(Operand(name, broadcast_strides(mask_shape or shape, shape), alignment, bytes))
    if causal_offset is None and mask_kind in ("causal", "boolcausal"):
        causal_offset = shape[-1] - shape[-2]
    general = General() if mask_kind in ("band", "general") else None
    return Geometry(direction, dtype, mask_kind, shape, tuple(operands), causal_offset, general=general)


class Dimension(NamedTuple):
    """A leading dimension: its size, how far each operand moves along it (elements), and whether it counts queries."""

    size: int
    strides: tuple[int, ...]
    query: int  # 1 for the query dimension where its number decides what a row sees, else 0


def leading_dimensions(geometry: Geometry) -> list[Dimension]:
    """The leading dimensions, outermost first, merged wherever one stride describes two for every operand.

    >>> x, y = (Operand(name, (96, 32, 8, 1), 16, 2) for name in "xy")
    >>> leading_dimensions(Geometry("fwd", "f16", "none", (2, 3, 4, 8), (x, y)))
    [Dimension(size=24, strides=(8, 8), query=0)]
    """
    dimensions: list[Dimension] = []
    last = len(geometry.shape) - 2
    for position, size in enumerate(geometry.shape[:-1]):
        if size == 1:
            continue
        strides = tuple(operand.strides[position] for operand in geometry.operands)
        inner = Dimension(size, strides, int(geometry.causal_offset is not None and position == last))
        if dimensions and _continues(dimensions[-1], inner):
            outer = dimensions.pop()
            inner = inner._replace(size=outer.size * size)
        dimensions.append(inner)
    return dimensions or [Dimension(1, (0,) * len(geometry.operands), 0)]


def _continues(outer: Dimension, inner: Dimension) -> bool:
    """Whether a step of `outer` is `inner.size` steps of `inner`, for every operand and for the query number."""
    steps = zip((*outer.strides, outer.query), (*inner.strides, inner.query), strict=True)
    return all(far == inner.size * near for far, near in steps)


class LaunchRows(NamedTuple):
    """The rows of one launch, with the offset at which they begin: in elements for each operand, and of the query
    number."""

    dimensions: tuple[Dimension, ...]
    offset: tuple[int, ...]
    query: int

    @property
    def total(self) -> int:
        return prod(dimension.size for dimension in self.dimensions)


def launch_rows(dimensions: tuple[Dimension, ...], limit: int = MAX_ROWS) -> list[LaunchRows]:
    """The rows divided into as few launches as possible of at most `limit` rows each, cut along the outermost
    dimension.

    A dimension with a stride beyond MAX_STRIDE is cut at every step; memory is too small for many such steps.
    """
    for position, far in enumerate(dimensions):
        if max(map(abs, far.strides)) > MAX_STRIDE:
            one = Dimension(1, (0,) * len(far.strides), 0)
            near = (*dimensions[:position], one, *dimensions[position + 1 :])
            return [_moved(rows, far, i) for i in range(far.size) for rows in launch_rows(near, limit)]
    count = prod(dimension.size for dimension in dimensions)
    outer, inner = dimensions[0], dimensions[1:]
    start_of_all = (0,) * len(outer.strides)
    if count <= limit:
        return [LaunchRows(dimensions, start_of_all, 0)]
    step = limit // (count // outer.size)
    if step == 0:
        return [_moved(rows, outer, i) for i in range(outer.size) for rows in launch_rows(inner, limit)]
    return [
        _moved(LaunchRows((outer._replace(size=min(step, outer.size - start)), *inner), start_of_all, 0), outer, start)
        for start in range(0, outer.size, step)
    ]


def _moved(rows: LaunchRows, along: Dimension, steps: int) -> LaunchRows:
    offset = tuple(old + steps * stride for old, stride in zip(rows.offset, along.strides, strict=True))
    return rows._replace(offset=offset, query=rows.query + steps * along.query)
