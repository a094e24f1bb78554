"""Geometries to plan and to launch, with layouts of their own."""

from typing import Any

from softmax_ops.planning.geometry import Geometry, contiguous_geometry

MASKED = ("bool", "boolcausal", "like")
CAUSAL = ("causal", "boolcausal")


def geometry(
    shape: tuple[int, ...],
    dtype: str = "f16",
    mask_kind: str = "none",
    *,
    strides: dict[str, tuple[int, ...]] | None = None,
    alignments: dict[str, int] | None = None,
    batch_invariant: bool = False,
    **facts: Any,
) -> Geometry:
    """That of contiguous tensors, except that `strides` and `alignments` override those of the operands named."""
    found = contiguous_geometry(shape, dtype, mask_kind, **facts)
    operands = tuple(
        operand._replace(
            strides=(strides or {}).get(operand.name, operand.strides),
            alignment=(alignments or {}).get(operand.name, operand.alignment),
        )
        for operand in found.operands
    )
    return found._replace(operands=operands, batch_invariant=batch_invariant)
