"""The operands of the general kind besides inputs and output: tensors by name.

A mask and a bias broadcast to [..., K] from the right; values per row broadcast to [...] in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import BackwardRequest, Request
from .checks.values import accumulation
from .planning.geometry import General

Named = dict[str, Tensor]


def of_forward(request: Request) -> tuple[Named, General]:
    """Operands that a general request reads besides x."""
    x = request.x
    named = {
        "mask": request.mask,
        "bias": None if request.bias is None else _bias(request.bias, x),
        "slopes": _of_heads(request.alibi_slopes),
        "sinks": _of_heads(request.sinks),
        **of_rows(x, request),
    }
    general = General(request.left, request.right, request.softcap or 0.0, request.log)
    return _given(named), general


def of_backward(request: BackwardRequest) -> tuple[Named, General]:
    """Operands that a general request reads besides dy and y."""
    named = {
        "lse": request.lse,
        "dlse": request.grad_lse,
        **of_rows(request.y, request),
    }
    general = General(request.left, request.right, request.softcap or 0.0, request.log)
    return _given(named), general


def _given(named: dict[str, Tensor | None]) -> Named:
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def of_rows(rows: Tensor, request: Request | BackwardRequest) -> dict[str, Tensor | None]:
    """Numbers for each row, broadcast to rows.shape[:-1]: scales, offsets and lengths."""
    scale, offset, lengths = request.scale_tensor, request.offset_tensor, request.key_lengths
    return {
        "row_scale": None if scale is None else scale.to(accumulation(rows)),
        "offsets": None if offset is None else _of_batches(_lower_half(offset), rows),
        "lengths": None if lengths is None else _of_batches(lengths, rows),
    }


def _of_batches(values: Tensor, rows: Tensor) -> Tensor:
    """One value, or one for each batch entry, for rows [B, ..., Q, K]."""
    return values.reshape(()) if values.numel() == 1 else values.reshape(-1, *(1 for _ in rows.shape[1:-1]))


def _lower_half(integers: Tensor) -> Tensor:
    """What kernels read of 64-bit integers: the same memory as int32."""
    return integers if integers.dtype is torch.int32 else integers.unsqueeze(-1).view(torch.int32)[..., 0]


def _of_heads(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.unsqueeze(-1)


def _bias(bias: Tensor, x: Tensor) -> Tensor:
    """The bias expanded to x's last dimension, along which kernels do not broadcast, in x's dtype or the
    accumulator's."""
    wide = accumulation(x)
    if bias.dtype is not x.dtype and bias.dtype is not wide:
        bias = unexpanded(bias).to(wide)
    whole = bias.dim() > 0 and bias.shape[-1] == x.shape[-1]
    if whole and (bias.stride(-1) == 1 or x.shape[-1] == 1):
        return bias
    bias = unexpanded(bias)
    return bias.expand(*(bias.shape[:-1]), x.shape[-1]).contiguous()


def unexpanded(tensor: Tensor) -> Tensor:
    """A view in which the leading dimensions that repeat themselves have size 1, so that a copy need not repeat
    them."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride()[:-1])]
