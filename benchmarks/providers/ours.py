"""softmax_ops: every cell by its public functions, into `out`."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

import softmax_ops
from softmax_ops.dispatch import Scalars, explain
from softmax_ops.explanation import Explanation
from transformer_softmax_lib import scaled_masked_softmax_forward

from ..cells import Cell
from ..tensors import Tensors
from . import OURS, Call, Provider


def prepare(cell: Cell) -> Call:
    return _backward if cell.direction == "bwd" else _like if cell.mask == "like" else _forward


def _forward(tensors: Tensors) -> Tensor:
    bias: dict[str, Any] = {} if tensors.bias is None else {"bias": tensors.bias}
    return softmax_ops.softmax(
        tensors.inputs[0],
        scale=tensors.scale,
        mask=tensors.mask,
        causal=tensors.causal,
        out=tensors.out,
        **bias,
    )


def _like(tensors: Tensors) -> Tensor:
    """A mask of the scores' dtype: the interface that takes it fills with -10000 and allocates its result."""
    return scaled_masked_softmax_forward(tensors.inputs[0], tensors.mask, tensors.scale)


def _backward(tensors: Tensors) -> Tensor:
    dy, y = tensors.inputs
    return softmax_ops.softmax_backward(dy, y, scale=tensors.scale, causal=tensors.causal, out=tensors.out)


def refuses(cell: Cell) -> str | None:
    if cell.mask == "bias" and "bias" not in inspect.signature(softmax_ops.softmax).parameters:
        return "softmax takes no bias yet"
    return None


def explanation(cell: Cell, tensors: Tensors) -> Explanation | None:
    """What runs; None where a bias is not explained by the same arguments."""
    if cell.mask == "bias":
        return None
    offset = cell.shape[3] - cell.shape[2] if cell.causal else None
    scalars = Scalars(tensors.scale, 0.0, offset, False)
    return explain(cell.direction, tensors.inputs, tensors.mask, tensors.out, scalars)


PROVIDER = Provider(OURS, prepare, refuses=refuses, allowed=1.0)
