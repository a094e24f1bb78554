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
    return _distinct(lane // WARP, address // LINE_BYTES).size


def through_banks(address: Values, width: int, lane: Values) -> int:
    """Passes of one access of `width` bytes per lane to shared memory, at addresses within a block."""
    words = max(width // WORD_BYTES, 1)
    together = lane * words // WARP  # the lanes that are served at once
    word = address[:, None] // WORD_BYTES + np.arange(words)
    served = _distinct(np.repeat(together, words), word.reshape(-1))
    banks, words_of_bank = np.unique(served >> 40 << 5 | served % BANKS, return_counts=True)
    _, first = np.unique(banks >> 5, return_index=True)
    return int(np.maximum.reduceat(words_of_bank, first).sum())


def _distinct(group: Values, number: Values) -> Values:
    """The distinct pairs, as group << 40 | number."""
    return np.unique(group.astype(np.int64) << 40 | number)
