"""QuACK's softmax (quack-kernels 0.6): two-dimensional, whole 16-byte vectors, no scale, no mask.

Uses the installed package, or objects compiled ahead of time (quack_objects.py).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor

from .. import quack_objects
from ..cells import Cell
from ..tensors import Tensors
from . import Call, Provider


def prepare(cell: Cell) -> Call:
    """Raises LookupError if the objects have no function for the cell."""
    compute = _installed(cell) if find_spec("quack") else _compiled(cell)

    def call(tensors: Tensors) -> Tensor:
        compute(*(tensor.view(-1, cell.k) for tensor in (*tensors.inputs, tensors.out)))
        return tensors.out

    return call


def _installed(cell: Cell) -> Callable[..., None]:
    from quack.softmax import _softmax_backward, _softmax_fwd

    return _softmax_backward if cell.direction == "bwd" else _softmax_fwd


def _compiled(cell: Cell) -> Callable[..., None]:
    found = quack_objects.load()(quack_objects.name_of(cell))
    if found is None:
        raise LookupError(f"{quack_objects.LIBRARY.name} has no {quack_objects.name_of(cell)}")
    return found


def absent() -> str | None:
    if find_spec("quack"):
        return None
    if not quack_objects.LIBRARY.exists():
        return "quack-kernels is not installed, and `python -m benchmarks quack` has built no objects of it"
    return None if find_spec("tvm_ffi") else "apache-tvm-ffi is not installed, which the objects of QuACK need"


PROVIDER = Provider("quack", prepare, absent=absent, refuses=quack_objects.refuses, plain=True)
