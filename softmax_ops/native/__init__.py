"""The compiled part: launches and repeated calls, without running the interpreter between their steps.

calls.h says what it contains. Building a wheel compiles it, and so does `make` in a checkout. If that was not possible,
or if SOFTMAX_OPS_NATIVE is `never`, launcher.py launches in Python, and every call is checked and planned again.
"""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ..artifacts import settings


def digest_of_sources() -> str:
    """Digest of the C sources beside this file; empty in a wheel, which has none."""
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))
    return hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest() if sources else ""


_module: ModuleType | None
try:
    _module = import_module(".calls", __name__)
    if digest_of_sources() not in ("", getattr(_module, "sources", None)):
        raise ImportError("it was compiled from other sources than those beside it: run `python hatch_build.py`")
except ImportError as error:
    _module, problem = None, str(error)
    """Why there is none; empty where there is."""
else:
    problem = ""
    os.register_at_fork(after_in_child=_module.forget_threads)


def compiled() -> ModuleType | None:
    """The compiled module, if it was built and is wanted."""
    return None if settings.read("SOFTMAX_OPS_NATIVE") == "never" else _module
