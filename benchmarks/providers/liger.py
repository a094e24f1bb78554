"""Liger's softmax (liger-kernel 0.8): the functions behind `LigerSoftmaxFunction`, without autograd around them."""

from __future__ import annotations

from torch import Tensor

from ..cells import ASKS, Cell
from ..tensors import Tensors
from . import Call, Provider, needs

LONGEST = 65536
"""Columns of a row, at most: `calculate_settings` raises for more."""


def prepare(cell: Cell) -> Call:
    from liger_kernel.ops.softmax import _softmax_backward, _softmax_forward
    from liger_kernel.ops.utils import calculate_settings

    block, warps = calculate_settings(cell.k)

    def forward(tensors: Tensors) -> Tensor:
        return _softmax_forward(tensors.inputs[0])[0]

    def backward(tensors: Tensors) -> Tensor:
        return _softmax_backward(*tensors.inputs, block, warps, False)

    return backward if cell.direction == "bwd" else forward


def refuses(cell: Cell) -> str | None:
    if cell.asks:
        return f"Liger's softmax has no {ASKS[cell.asks]}"
    return f"Liger takes K <= {LONGEST}" if cell.k > LONGEST else None


PROVIDER = Provider(
    "liger",
    prepare,
    absent=needs("liger_kernel", "liger-kernel"),
    refuses=refuses,
    plain=True,
    allowed=512.0,  # its backward rounds the products y dy to 16 bits before it adds them up
)
