"""QuACK's softmax (quack-kernels 0.6): two-dimensional, whole 16-byte vectors, no scale, no mask."""

from __future__ import annotations

from torch import Tensor

from ..cells import ELEMENT_BYTES, Cell
from ..tensors import Tensors
from . import Call, Provider, needs


def prepare(cell: Cell) -> Call:
    from quack.softmax import _softmax_backward, _softmax_fwd

    def flat(tensor: Tensor) -> Tensor:
        return tensor.view(-1, cell.k)

    def forward(tensors: Tensors) -> Tensor:
        _softmax_fwd(flat(tensors.inputs[0]), flat(tensors.out))
        return tensors.out

    def backward(tensors: Tensors) -> Tensor:
        dy, y = tensors.inputs
        _softmax_backward(flat(dy), flat(y), flat(tensors.out))
        return tensors.out

    return backward if cell.direction == "bwd" else forward


def refuses(cell: Cell) -> str | None:
    vector = 16 // ELEMENT_BYTES[cell.dtype]
    return f"QuACK takes K that is a multiple of {vector}" if cell.k % vector else None


PROVIDER = Provider("quack", prepare, absent=needs("quack", "quack-kernels"), refuses=refuses, plain=True)
