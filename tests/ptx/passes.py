"""Passes of a warp's instruction through the load/store unit of an SM, which takes one per cycle.

An access to global memory needs one for each 128-byte line that it reaches; an access to shared memory as many as make
every bank deliver one 4-byte word at a time, where accesses of 8 and 16 bytes are served by half and by quarter warp.
Lanes that read the same word share it.
"""

from __future__ import annotations

import numpy as np

from .formats import Values
from .lanes import WARP

LINE_BYTES = 128
BANKS, WORD_BYTES = 32, 4


def through_lines(address: Values, lane: Values) -> int:
    """Passes of one access per lane to global memory."""
    return reached(lane // WARP, address // LINE_BYTES).size


def through_banks(address: Values, width: int, lane: Values) -> int:
    """Passes of one access of `width` bytes per lane to shared memory, at addresses within a block."""
    words = max(width // WORD_BYTES, 1)
    together = lane * words // WARP  # the lanes that are served at once
    word = address[:, None] // WORD_BYTES + np.arange(words)
    served = reached(np.repeat(together - together[0], words), word.reshape(-1))
    bank = served >> 40 << 5 | served % BANKS
    words_of_bank = np.bincount(bank, minlength=-(-int(bank[-1] + 1) // BANKS) * BANKS)
    return int(words_of_bank.reshape(-1, BANKS).max(axis=1).sum())


def reached(group: Values, number: Values) -> Values:
    """The distinct pairs in order, as group << 40 | number."""
    pairs = group.astype(np.int64) << 40 | number
    if (pairs[1:] < pairs[:-1]).any():
        pairs.sort()
    other = np.empty(pairs.size, np.bool_)
    other[0] = True
    np.not_equal(pairs[1:], pairs[:-1], out=other[1:])
    return pairs[other]
