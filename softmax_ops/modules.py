"""The softmax of attention scores as a layer of a model."""

from __future__ import annotations

import torch
from torch import Tensor

from . import api
from .checks import check_softmax
from .checks.scalars import check_flag
from .checks.tensors import DTYPES, described
from .keywords import Window
from .schema import as_float, as_int


class FusedSoftmax(torch.nn.Module):
    """`softmax_ops.softmax` with everything but scores and the tensors that go with them fixed.

        softmax = FusedSoftmax(scale=head_size**-0.5, causal=True)
        probabilities = softmax(scores, mask)

    The arguments are those of the function that are numbers, and refused here if they fit no scores; a scale or an
    offset in a tensor, sinks, slopes and lse are for the function itself. With log=True it is
    `softmax_ops.log_softmax`. The layer has no parameters and no state, so that checkpoints of a model are what they
    were without it.

    Raises TypeError for a tensor and for what is of another type than the function takes, ValueError for numbers that
    it refuses.
    """

    def __init__(
        self,
        *,
        scale: float = 1.0,
        causal: bool = False,
        causal_offset: int | None = None,
        batch_invariant: bool = False,
        window: Window | None = None,
        softcap: float | None = None,
        dtype: torch.dtype | None = None,
        log: bool = False,
    ) -> None:
        super().__init__()
        if not (dtype is None or isinstance(dtype, torch.dtype)):
            raise TypeError(f"FusedSoftmax: dtype is {dtype!r}; want a torch.dtype, or None for that of the scores")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"FusedSoftmax: dtype is {dtype}; want one that scores can have, or None for theirs")
        for name, flag in (("batch_invariant", batch_invariant), ("log", log)):
            check_flag("FusedSoftmax", flag, name)
        for name, number in (("scale", scale), ("causal_offset", causal_offset)):
            if isinstance(number, Tensor):
                raise TypeError(
                    f"FusedSoftmax: {name} is {described(number)}; want a number, since the layer has no state: pass "
                    f"tensors to softmax_ops.softmax"
                )
        check_softmax(
            torch.empty(1, 1, dtype=torch.float64, device="cpu"),
            op="FusedSoftmax",
            scale=scale,
            mask=None,
            causal=causal,
            causal_offset=causal_offset,
            out=None,
            window=window,
            softcap=softcap,
        )
        # Numbers of Python's own types: torch.compile would make tensors of numpy's.
        self.scale = as_float(scale)
        self.causal = causal
        self.causal_offset = as_int(causal_offset)
        self.batch_invariant = batch_invariant
        self.window = None if window is None else (as_int(window[0]), as_int(window[1]))
        self.softcap = as_float(softcap)
        self.dtype = dtype
        self.log = log

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        key_lengths: Tensor | None = None,
    ) -> Tensor:
        """The softmax of scores.

        x            [..., Q, K] or [K], float16, bfloat16, float32 or float64.
        mask         bool or uint8, broadcast to x; 1 hides.
        bias         x's dtype or float32, broadcast to x.
        key_lengths  int32 [B]: the visible columns of each batch entry.

        Raises what `softmax_ops.softmax` raises.
        """
        function = api.log_softmax if self.log else api.softmax
        return function(
            x,
            scale=self.scale,
            mask=mask,
            bias=bias,
            key_lengths=key_lengths,
            causal=self.causal,
            causal_offset=self.causal_offset,
            window=self.window,
            softcap=self.softcap,
            dtype=self.dtype,
            batch_invariant=self.batch_invariant,
        )

    def extra_repr(self) -> str:
        """Arguments that differ from the defaults, and scale."""
        said = [f"scale={self.scale:g}"]
        if self.causal:
            said.append("causal=True")
        for name in ("causal_offset", "window", "softcap", "dtype"):
            value = getattr(self, name)
            if value is not None:
                said.append(f"{name}={value}")
        said += [f"{name}=True" for name in ("log", "batch_invariant") if getattr(self, name)]
        return ", ".join(said)
