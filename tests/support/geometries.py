"""Geometries to plan and to launch."""

from typing import Any

from softmax_ops.problem import DTYPE_BYTES, OPERANDS, General, Geometry, Operand, broadcast_strides, contiguous_strides

MASKED = ("bool", "boolcausal", "like")
CAUSAL = ("causal", "boolcausal")


def geometry(
    shape: tuple[int, ...],
    dtype: str = "f16",
    mask_kind: str = "none",
    *,
    direction: str = "fwd",
    mask_shape: tuple[int, ...] | None = None,
    alignment: int = 16,
    strides: dict[str, tuple[int, ...]] | None = None,
    alignments: dict[str, int] | None = None,
    **changes: Any,
) -> Geometry:
    """Contiguous tensors at addresses with this alignment, a mask of their shape or `mask_shape`, bottom-right causal.

    `strides` and `alignments` override the defaults of the operands named.
    """
    size, *_ = sizes = [DTYPE_BYTES[each] for each in dtype.split("to")]
    *inputs, output = OPERANDS[direction]
    facts = [(name, contiguous_strides(shape), size) for name in inputs]
    facts.append((output, contiguous_strides(shape), sizes[-1]))
    if mask_kind in MASKED:
        facts.append(("mask", broadcast_strides(mask_shape or shape, shape), size if mask_kind == "like" else 1))
    if mask_kind == "bias":
        facts.append(("bias", broadcast_strides(mask_shape or shape, shape), size))
    operands = tuple(
        Operand(name, (strides or {}).get(name, moves), (alignments or {}).get(name, alignment), bytes)
        for name, moves, bytes in facts
    )
    offset = shape[-1] - shape[-2] if mask_kind in CAUSAL else None
    facts_of_kind = {"causal_offset": offset, "general": General() if mask_kind in ("band", "general") else None}
    return Geometry(direction, dtype, mask_kind, shape, operands, **facts_of_kind | changes)
