"""softmax_ops: every cell through the public functions, into `out`, and some cells again without their masks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import softmax_ops
from softmax_ops.explanation import Explanation
from transformer_softmax_lib import scaled_masked_softmax_forward

from ..cells import Cell
from ..tensors import DTYPES, Tensors
from . import OURS, UNMASKED, Call, Provider


def prepare(cell: Cell) -> Call:
    if cell.mask == "like" and cell.direction == "fwd":
        return _like
    log = cell.asks == "log"
    if cell.direction == "bwd":
        backward = softmax_ops.log_softmax_backward if log else softmax_ops.softmax_backward
        return lambda tensors: backward(
            *tensors.inputs, scale=tensors.scale, causal=tensors.causal, key_lengths=tensors.lengths, out=tensors.out
        )
    forward = softmax_ops.log_softmax if log else softmax_ops.softmax
    return lambda tensors: forward(tensors.inputs[0], **_arguments(cell, tensors))


def _arguments(cell: Cell, tensors: Tensors) -> dict[str, Any]:
    """Arguments for a forward, or for `explain`."""
    return {
        "scale": tensors.factor,
        "mask": tensors.mask,
        "bias": tensors.bias,
        "key_lengths": tensors.lengths,
        "causal": tensors.causal,
        "dtype": None if cell.result == cell.dtype else DTYPES[cell.result],
        "out": tensors.out,
    }


def _like(tensors: Tensors) -> Tensor:
    """A mask of the scores' dtype goes through the interface that fills with -10000 and allocates its result."""
    return scaled_masked_softmax_forward(tensors.inputs[0], tensors.mask, tensors.scale)


def explanation(cell: Cell, tensors: Tensors) -> Explanation | None:
    """The kernel that runs; None for a mask that `explain` does not take."""
    if cell.mask == "like":
        return None
    return softmax_ops.explain(
        tensors.inputs[0],
        **_arguments(cell, tensors),
        log=cell.asks == "log",
        backward=cell.direction == "bwd",
    )


def _unmasked(cell: Cell) -> Call:
    if cell.direction == "bwd":
        return lambda tensors: softmax_ops.softmax_backward(*tensors.inputs, out=tensors.out)
    return lambda tensors: softmax_ops.softmax(tensors.inputs[0], out=tensors.out)


def _asks_for_unmasked(cell: Cell) -> str | None:
    """Why the unmasked provider refuses a cell; None if a goal compares the two."""
    masks = ("padding", "bool", "bias") if cell.direction == "fwd" else ("causal",)
    return None if cell.mask in masks else "no goal compares the cell with an unmasked one"


PROVIDER = Provider(OURS, prepare, allowed=1.0)
UNMASKED_PROVIDER = Provider(UNMASKED, _unmasked, refuses=_asks_for_unmasked, plain=True, allowed=1.0)
