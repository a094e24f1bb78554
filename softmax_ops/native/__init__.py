"""The compiled part: launches and repeated calls, without running the interpreter between their steps.

calls.h says what it contains. Building a wheel compiles it, and so does `make` in a checkout. If that was not possible,
or if SOFTMAX_OPS_NATIVE is `never`, launcher.py launches in Python, and every call is checked and planned again.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from ..artifacts import settings

_module: ModuleType | None
try:
    _module = import_module(".calls", __name__)
except ImportError as error:
    _module, problem = None, str(error)
    """Why there is none; empty where there is."""
else:
    problem = ""
    os.register_at_fork(after_in_child=_module.forget_threads)


def compiled() -> ModuleType | None:
    """The compiled module, if it was built and is wanted."""
    return None if settings.read("SOFTMAX_OPS_NATIVE") == "never" else _module
