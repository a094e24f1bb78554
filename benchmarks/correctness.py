"""Is a result right? Against the formula in float64, block by block, in the run that times it.

    forward    |y - y64|   <= y64 (u + 2^-22 (8 + |z| + |m|)) + a
    backward   |dx - dx64| <= |dx64| u + 2^-20 scale y (|dy| + sum_j |y_j dy_j|) + a

u is half a unit in the last place of the output, a the same of its smallest numbers; the rest is what rounding scores
and sums to 24 bits explains. The kernels' own tests are finer (tests/reference.py); this one runs on gigabytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cells import Cell
from .tensors import Place, Tensors, blocks, later, of_block

UNIT = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}
HOPELESS = 1e9
LEAST = {"f16": 2.0**-24, "bf16": 2.0**-126, "f32": 2.0**-126}


def worst(cell: Cell, tensors: Tensors, result: Tensor, plain: bool = False) -> float:
    """The largest error in units of its bound: 1 or less is right. HOPELESS where something is not a number.

    plain   the result is meant to be the softmax, or its backward, without the cell's scale and mask.
    """
    found = 0.0
    for place in blocks(cell.shape):
        compare = _forward if cell.direction == "fwd" else _backward
        wanted, bound = compare(cell, tensors, place, plain)
        errors = (result.view(cell.shape)[place].double() - wanted).abs_().div_(bound)
        found = max(found, errors.nan_to_num_(HOPELESS, HOPELESS).max().item())
    return found


def _forward(cell: Cell, tensors: Tensors, place: Place, plain: bool) -> tuple[Tensor, Tensor]:
    z = tensors.inputs[0][place].double()
    if not plain:
        z = z * tensors.scale
        if tensors.bias is not None:
            z = z + of_block(tensors.bias, place).double()
        if tensors.mask is not None:
            z = z.masked_fill(of_block(tensors.mask, place) == 1, -torch.inf)
        if cell.causal:
            z = z.masked_fill(later(cell, place, z.device), -torch.inf)
    top = z.amax(-1, keepdim=True)
    y = torch.softmax(z, -1)
    rounding = (z.abs().nan_to_num_(posinf=0.0) + top.abs() + 8) * 2.0**-22
    return y, y * (rounding + UNIT[cell.dtype]) + LEAST[cell.dtype]


def _backward(cell: Cell, tensors: Tensors, place: Place, plain: bool) -> tuple[Tensor, Tensor]:
    scale = 1.0 if plain else tensors.scale
    dy, y = (tensor[place].double() for tensor in tensors.inputs)
    products = y * dy
    wanted = scale * y * (dy - products.sum(-1, keepdim=True))
    rounding = 2.0**-20 * scale * y * (dy.abs() + products.abs().sum(-1, keepdim=True))
    return wanted, wanted.abs() * UNIT[cell.dtype] + rounding + LEAST[cell.dtype]
