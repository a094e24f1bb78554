"""The Triton row softmax of `benchmarks/triton_softmax.py`."""

from __future__ import annotations

from torch import Tensor

from ..cells import ASKS, Cell
from ..tensors import Tensors
from . import Call, Provider, needs


def prepare(cell: Cell) -> Call:
    from .. import triton_softmax

    def forward(tensors: Tensors) -> Tensor:
        (x,) = tensors.inputs
        return triton_softmax.forward(
            x, tensors.out, scale=tensors.scale, mask=tensors.mask, bias=tensors.bias, causal=tensors.causal
        )

    def backward(tensors: Tensors) -> Tensor:
        dy, y = tensors.inputs
        return triton_softmax.backward(dy, y, tensors.out, scale=tensors.scale, causal=tensors.causal)

    return backward if cell.direction == "bwd" else forward


def refuses(cell: Cell) -> str | None:
    return f"the Triton rows have no {ASKS[cell.asks]}" if cell.asks else None


PROVIDER = Provider("triton", prepare, absent=needs("triton", "triton"), refuses=refuses)
