"""How the rows of a tile lie in shared memory."""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

from ..artifacts.catalog import Variant
from ..artifacts.constants import ACCESS_BYTES, WORD_BYTES
from .geometry import Dimension, Geometry

CROWDING_BYTES = 32
"""If rows are a multiple of this length, all of them start in at most 4 of the 32 banks."""


class Tile(NamedTuple):
    """The kernel's TileParams."""

    rows_per_cta: int
    pitch: int  # elements from one row to the next
    flat: bool  # one range, copied as such


def tile_of(geometry: Geometry, variant: Variant, inner_first: Sequence[Dimension]) -> Tile | None:
    """The layout in shared memory of as many rows as fit; None if the variant is no `tile`.

    A range is copied as such; its number of rows keeps the next CTA's range at the same offset from a 16-byte boundary,
    if that many rows fit. Otherwise rows are placed an odd number of vectors apart, so that neighbours start in
    different banks; unaligned rows an odd number of words, with room for the element of a word by which they
    may be shifted.
    """
    if variant.plan != "tile":
        return None
    k, vec = geometry.k, variant.vec
    if not is_flat(geometry, vec, inner_first):
        apart = vec if vec > 1 else max(WORD_BYTES // geometry.element_bytes, 1)
        longest = k if vec > 1 else k + apart - 1
        pitch = (-(-longest // apart) | 1) * apart
        return Tile(variant.tile_elements // pitch, pitch, flat=False)
    rows = variant.tile_elements // k
    period = ACCESS_BYTES // gcd(k * geometry.element_bytes, ACCESS_BYTES)
    return Tile(rows // period * period if rows >= period else rows, k, flat=True)


def is_flat(geometry: Geometry, vec: int, inner_first: Sequence[Dimension]) -> bool:
    """Whether a tile moves the rows as one range: those of every tensor follow each other without gaps, and their
    length does not crowd them into few banks. It cannot where they are aligned, since lanes then read vectors."""
    if vec == 1 and geometry.k * geometry.element_bytes % CROWDING_BYTES == 0:
        return False
    expected = geometry.k
    tensors = len(geometry.inputs) + 1
    for dimension in inner_first:
        if dimension.size > 1 and any(stride != expected for stride in dimension.strides[:tensors]):
            return False
        expected *= dimension.size
    return True
