"""Calls in integers to plan and to launch."""

from typing import Any

from softmax_ops.problem import Geometry, Operands

MASKED = ("bool", "boolcausal", "like")
CAUSAL = ("causal", "boolcausal")


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements.

    >>> contiguous((2, 3, 5))
    (15, 5, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def broadcast(mask_shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Strides of a contiguous mask that is aligned at the right, 0 where it broadcasts."""
    strides = (stride if size > 1 else 0 for size, stride in zip(mask_shape, contiguous(mask_shape), strict=True))
    return (0,) * (rank - len(mask_shape)) + tuple(strides)


def geometry(
    shape: tuple[int, ...],
    dtype: str = "f16",
    mask_kind: str = "none",
    *,
    mask_shape: tuple[int, ...] | None = None,
    alignment: int | Operands = 16,
    **changes: Any,
) -> Geometry:
    """Contiguous x and y at addresses of this alignment, a mask of x's shape or `mask_shape`, bottom-right causal."""
    masked = mask_kind in MASKED
    facts: dict[str, Any] = {
        "x_strides": contiguous(shape),
        "y_strides": contiguous(shape),
        "mask_strides": broadcast(mask_shape or shape, len(shape)) if masked else (0,) * len(shape),
        "alignment": alignment if isinstance(alignment, Operands) else Operands(alignment, alignment, alignment),
        "causal_offset": shape[-1] - shape[-2] if mask_kind in CAUSAL else None,
    }
    return Geometry(dtype, mask_kind, shape, **(facts | changes))
