"""torch: the chain (x * scale).masked_fill(mask, -10000).softmax(-1), eager and compiled, and torch.softmax alone.

The chain ends in log_softmax(-1), or takes dtype=float32, if a cell asks for that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cells import ASKS, Cell
from ..tensors import DTYPES, Tensors
from . import Call, Provider

FILL = -10000.0


def _chain(
    x: Tensor,
    hidden: Tensor | None,
    bias: Tensor | None,
    scale: float | Tensor,
    lengths: Tensor | None,
    dtype: torch.dtype | None,
    log: bool,
) -> Tensor:
    """The chain. The mask for lengths is made in every call, since lengths change from step to step."""
    z = x * (scale if isinstance(scale, float) else scale.unsqueeze(-1))
    if bias is not None:
        z = z + bias
    if lengths is not None:
        hidden = torch.arange(x.shape[-1], device=x.device) >= lengths.view(-1, 1, 1, 1)
    if hidden is not None:
        z = z.masked_fill(hidden.bool(), FILL)
    return z.log_softmax(-1, dtype=dtype) if log else z.softmax(-1, dtype=dtype)


def _chain_backward(dy: Tensor, y: Tensor, hidden: Tensor | None, scale: float, log: bool) -> Tensor:
    """The operations that autograd runs for the chain."""
    aten = torch.ops.aten
    dz = (aten._log_softmax_backward_data if log else aten._softmax_backward_data)(dy, y, -1, y.dtype)
    if hidden is not None:
        dz = dz.masked_fill(hidden, 0)
    return dz * scale


def _call(cell: Cell, forward: Callable[..., Tensor], backward: Callable[..., Tensor]) -> Call:
    """The causal mask is made once, as a model would do."""
    later: list[Tensor] = []

    def hidden(tensors: Tensors) -> Tensor | None:
        if not cell.causal:
            return tensors.mask
        if not later:
            queries, k = cell.shape[-2:]
            everything = torch.ones(queries, k, dtype=torch.bool, device=tensors.out.device)
            later.append(everything.triu(k - queries + 1))
        return later[0]

    log, dtype = cell.asks == "log", None if cell.result == cell.dtype else DTYPES[cell.result]
    if cell.direction == "bwd":
        return lambda tensors: backward(*tensors.inputs, hidden(tensors), tensors.scale, log)
    return lambda tensors: forward(
        tensors.inputs[0], hidden(tensors), tensors.bias, tensors.factor, tensors.lengths, dtype, log
    )


def _eager(cell: Cell) -> Call:
    return _call(cell, _chain, _chain_backward)


def _compiled(cell: Cell) -> Call:
    """Compiled for this exact shape. Without the reset, dynamo would fall back to eager after eight shapes."""
    torch._dynamo.reset()
    return _call(cell, torch.compile(_chain, dynamic=False), torch.compile(_chain_backward, dynamic=False))


def _softmax(cell: Cell) -> Call:
    if cell.direction == "bwd":
        return lambda tensors: torch.ops.aten._softmax_backward_data(*tensors.inputs, -1, tensors.out.dtype)
    return lambda tensors: torch.softmax(tensors.inputs[0], -1, out=tensors.out)


def _chain_only(cell: Cell) -> str | None:
    return f"left to the torch chain: {ASKS[cell.asks]}" if cell.asks else None


def _no_compiler() -> str | None:
    return None if torch.cuda.is_available() else "torch.compile is not run without a GPU"


PROVIDERS = [
    Provider("torch chain", _eager),
    Provider("torch.softmax", _softmax, refuses=_chain_only, plain=True),
    Provider("torch.compile", _compiled, absent=_no_compiler),
]
