"""Types of the public interface, for type checkers."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

Window = tuple[int | None, int | None]


class Forward(TypedDict, total=False):
    """Keyword arguments of `softmax` and `log_softmax`, except `return_lse` and `out`."""

    scale: float | Tensor
    mask: Tensor | None
    bias: Tensor | None
    key_lengths: Tensor | None
    causal: bool
    causal_offset: int | Tensor | None
    window: Window | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    softcap: float | None
    dtype: torch.dtype | None
    batch_invariant: bool
