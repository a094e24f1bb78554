"""How the rows of a tile lie in shared memory."""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

from .artifacts.catalog import Variant
from .problem import Dimension, Geometry

PHASE_BYTES = 16
"""Ranges are copied in accesses of so many bytes: a CTA's begins where the first one's does, modulo that."""

CROWDING_BYTES = 32
"""Rows of a multiple of this length start in 4 of the 32 banks, or fewer."""


class Tile(NamedTuple):
    """The kernel's arguments."""

    rows_per_cta: int
    pitch: int  # elements from one row to the next
    flat: bool  # one range, copied as such


def tile_of(geometry: Geometry, variant: Variant, inner_first: Sequence[Dimension]) -> Tile | None:
    """As many rows as fit; None where the variant has no tile.

    Rows that follow each other in every tensor are one range, of whole periods of its phase where one fits. Others are
    an odd number of vectors apart, so that neighbours start in different banks. So are rows that start anywhere, which
    lanes read one element at a time, where their own length would crowd them into few banks.
    """
    if variant.plan != "tile":
        return None
    k, vec = geometry.k, variant.vec
    crowded = vec == 1 and k * geometry.element_bytes % CROWDING_BYTES == 0
    if crowded or not _is_flat(geometry, inner_first):
        pitch = (k // vec | 1) * vec
        return Tile(variant.tile_elements // pitch, pitch, flat=False)
    rows = variant.tile_elements // k
    period = PHASE_BYTES // gcd(k * geometry.element_bytes, PHASE_BYTES)
    return Tile(rows // period * period if rows >= period else rows, k, flat=True)


def _is_flat(geometry: Geometry, inner_first: Sequence[Dimension]) -> bool:
    """Whether the rows of each tensor follow each other without a gap."""
    expected = geometry.k
    tensors = len(geometry.inputs) + 1
    for dimension in inner_first:
        if dimension.size > 1 and any(stride != expected for stride in dimension.strides[:tensors]):
            return False
        expected *= dimension.size
    return True
