"""A limit on time. A kernel that never ends cannot be interrupted: only the end of its process stops it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOST = 75
"""Exit status of a process that can measure nothing more, while another one could (EX_TEMPFAIL of sysexits.h)."""


@contextmanager
def limited(seconds: float, last_words: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Ends this process with status LOST if the block takes longer, after `last_words`, which another thread calls.
    The block may call what it is given, from when on the time counts anew."""
    done, deadline = threading.Event(), time.monotonic() + seconds

    def restart() -> None:
        nonlocal deadline
        deadline = time.monotonic() + seconds

    def watch() -> None:
        while (left := deadline - time.monotonic()) > 0:
            if done.wait(left):
                return
        try:
            last_words()
        finally:
            os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield restart
    finally:
        done.set()
