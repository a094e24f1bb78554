"""The compiled part: launches and repeated calls, without running the interpreter between their steps.

calls.h says what it contains. Building a wheel compiles it, and so does `make` in a checkout. If that was not possible,
or if SOFTMAX_OPS_NATIVE is `never`, launcher.py launches in Python, and every call is checked and planned again.
"""

from __future__ import annotations

import os
from types import ModuleType

from ..artifacts import settings

try:
    from . import calls as _calls
except ImportError as error:
    _module: ModuleType | None = None
    problem = str(error)
    """Why there is none; empty where there is."""
else:
    _module, problem = _calls, ""
    os.register_at_fork(after_in_child=_calls.forget_threads)


def compiled() -> ModuleType | None:
    """The compiled module, if it was built and is wanted."""
    return None if settings.read("SOFTMAX_OPS_NATIVE") == "never" else _module
