"""A limit on time. A kernel that never ends cannot be interrupted: only the end of its process stops it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOST = 75
"""Exit status of a process that can measure nothing more, while another one could (EX_TEMPFAIL of sysexits.h)."""


CELL_LIMIT_S = 60.0
"""Time of a benchmark's cell, compilers included, after which it counts as hanging."""


@contextmanager
def limited(seconds: float, last_words: Callable[[], object]) -> Iterator[None]:
    """Ends this process with status LOST if the block takes longer, after `last_words`, which another thread calls."""

    def end() -> None:
        try:
            last_words()
        finally:
            os._exit(LOST)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
