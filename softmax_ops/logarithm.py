"""The logarithm of softmax, and its gradient: for losses, samplers and scores of sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import ops, routes  # noqa: F401 (ops registers torch.ops.softmax_ops)
from .api import Window
from .known.calls import backward, forward


def log_softmax(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | Tensor | None = None,
    window: Window | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Any:
    """The logarithm of `softmax`, with the same arguments, computed without taking the logarithm of a probability:

        log y_ij = z_ij - m_i - log(sum_j exp(z_ij - m_i) + exp(sink_h - m_i)) over visible j, -inf elsewhere

    Returns and raises what `softmax` does. A row in which everything is hidden is -inf.
    """
    if not is_dynamo_compiling():
        y = forward.run(
            x,
            scale,
            mask,
            bias,
            key_lengths,
            causal,
            causal_offset,
            window,
            alibi_slopes,
            sinks,
            softcap,
            dtype,
            return_lse,
            batch_invariant,
            out,
            True,
        )
        if y is not None:
            return y
    return routes.softmax(
        x,
        log=True,
        scale=scale,
        mask=mask,
        bias=bias,
        key_lengths=key_lengths,
        causal=causal,
        causal_offset=causal_offset,
        window=window,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        softcap=softcap,
        dtype=dtype,
        return_lse=return_lse,
        batch_invariant=batch_invariant,
        out=out,
    )


def log_softmax_backward(
    dy: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor = 1.0,
    causal: bool = False,
    causal_offset: int | Tensor | None = None,
    window: Window | None = None,
    key_lengths: Tensor | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
    grad_lse: Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`softmax_backward` for `log_softmax`: y is its result, dy the gradient of y. Where y is -inf, dy has no effect.

    dx = scale * (dy - exp(y) * (sum_j dy_j - grad_lse)), with softcap times 1 - ((y + lse) / softcap)^2
    """
    if not is_dynamo_compiling():
        dx = backward.run(
            dy,
            y,
            scale,
            causal,
            causal_offset,
            window,
            key_lengths,
            softcap,
            lse,
            grad_lse,
            dtype,
            batch_invariant,
            out,
            True,
        )
        if dx is not None:
            return dx
    return routes.softmax_backward(
        dy,
        y,
        log=True,
        scale=scale,
        causal=causal,
        causal_offset=causal_offset,
        window=window,
        key_lengths=key_lengths,
        softcap=softcap,
        lse=lse,
        grad_lse=grad_lse,
        dtype=dtype,
        batch_invariant=batch_invariant,
        out=out,
    )
