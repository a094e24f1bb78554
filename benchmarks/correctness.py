"""Checks results against the formula in float64, block by block, in the same run that times them.

    forward    |y - y64|   <= y64 (u + 2^-22 (8 + |z| + |m|)) + a
    backward   |dx - dx64| <= |dx64| u + 2^-20 scale y (|dy| + sum_j |y_j dy_j|) + a
    log        |l - l64|   <= |l64| u + 2^-22 (8 + |z| + |m|) + a
      backward |dx - dx64| <= |dx64| u + 2^-20 scale (|dy| + exp(l) sum_j |dy_j|) + a

u is half a unit in the last place of the output, a its smallest subnormal in f16 and 2^-126 otherwise; the other terms
cover rounding scores and sums to 24 bits. The kernels' own tests are stricter (tests/support/reference.py); this check
runs on gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cells import Cell
from .tensors import Place, Tensors, blocks, later, of_block

UNIT = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}
HOPELESS = 1e9
LEAST = {"f16": 2.0**-24, "bf16": 2.0**-126, "f32": 2.0**-126}


def worst(cell: Cell, tensors: Tensors, results: Sequence[Tensor], plain: bool = False) -> list[float]:
    """The largest error of each result in units of its bound; 1 or less is right. HOPELESS if a result is not a number.

    plain   the results are the plain softmax, or its backward, without the cell's scale and mask.
    """
    if not results:
        return []
    found = torch.zeros(len(results), dtype=torch.float64, device=results[0].device)
    compute = _forward if cell.direction == "fwd" else _backward
    for place in blocks(cell.shape):
        wanted, bound = compute(cell, tensors, place, plain)
        for worst_yet, result in zip(found, results, strict=True):
            errors = (result[place].double() - wanted).abs_().div_(bound).nan_to_num_(HOPELESS, HOPELESS)
            torch.maximum(worst_yet, errors.max(), out=worst_yet)
    return found.tolist()


def _forward(cell: Cell, tensors: Tensors, place: Place, plain: bool) -> tuple[Tensor, Tensor]:
    z = tensors.inputs[0][place].double()
    if not plain:
        z = z * (tensors.scale if tensors.scales is None else tensors.scales[place].double().unsqueeze(-1))
        if tensors.bias is not None:
            z = z + of_block(tensors.bias, place).double()
        if tensors.mask is not None:
            z = z.masked_fill(of_block(tensors.mask, place) == 1, -torch.inf)
        if cell.causal:
            z = z.masked_fill(later(cell, place, z.device), -torch.inf)
        if tensors.lengths is not None:
            lengths = tensors.lengths[place[0]].view(-1, 1, 1, 1)
            z = z.masked_fill(torch.arange(cell.k, device=z.device) >= lengths, -torch.inf)
    top = z.amax(-1, keepdim=True)
    rounding = (z.abs().nan_to_num_(posinf=0.0) + top.abs() + 8) * 2.0**-22
    if cell.asks == "log":
        log = torch.log_softmax(z, -1)
        return log, log.abs() * UNIT[cell.result] + rounding + LEAST[cell.result]
    y = torch.softmax(z, -1)
    return y, y * (rounding + UNIT[cell.result]) + LEAST[cell.result]


def _backward(cell: Cell, tensors: Tensors, place: Place, plain: bool) -> tuple[Tensor, Tensor]:
    scale = 1.0 if plain else tensors.scale
    dy, y = (tensor[place].double() for tensor in tensors.inputs)
    if cell.asks == "log":
        y = y.exp()
        wanted = scale * (dy - y * dy.sum(-1, keepdim=True))
        rounding = 2.0**-20 * scale * (dy.abs() + y * dy.abs().sum(-1, keepdim=True))
    else:
        products = y * dy
        wanted = scale * y * (dy - products.sum(-1, keepdim=True))
        rounding = 2.0**-20 * scale * y * (dy.abs() + products.abs().sum(-1, keepdim=True))
    return wanted, wanted.abs() * UNIT[cell.result] + rounding + LEAST[cell.result]
