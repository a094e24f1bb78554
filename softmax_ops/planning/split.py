"""How CTAs and launches share rows that are split into pieces."""

from typing import NamedTuple

from ..artifacts.catalog import Variant

MOST_PARTIAL_BYTES = 32 << 20
"""Bytes of partial results that the CTAs of split rows read in all before a launch of its own combines them: what L2
delivers in a few microseconds, about as long as a launch takes. They grow with the square of a row's length."""


class Turn(NamedTuple):
    """One launch over rows: the kernel's SplitParams."""

    ctas: int  # of a row
    known: int  # partial results of a row that each of them combines
    writes: bool


def pieces_of(k: int, variant: Variant) -> int:
    """Pieces into which a row of k columns is split, each with a CTA of its own; 1 for other plans."""
    return -(-k // variant.piece) if variant.splits else 1


def turns_of(k: int, variant: Variant, rows: int) -> list[Turn]:
    """The launches over the same rows: one, or those of pieces.cuh."""
    if not variant.splits:
        return [Turn(1, 0, True)]
    pieces = pieces_of(k, variant)
    measure, combine = Turn(pieces, 0, False), Turn(1, pieces, False)
    if rows * pieces**2 * variant.partial_bytes > MOST_PARTIAL_BYTES:
        return [measure, combine, Turn(pieces, 1, True)]
    return [measure, Turn(pieces, pieces, True)]
