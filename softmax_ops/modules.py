"""The softmax of attention scores as a layer of a model."""

from __future__ import annotations

import torch
from torch import Tensor

from . import api


class FusedSoftmax(torch.nn.Module):
    """`softmax_ops.softmax` with everything but scores and mask fixed.

        softmax = FusedSoftmax(scale=head_size**-0.5, causal=True)
        probabilities = softmax(scores, mask)

    Scale, causal, causal_offset and batch_invariant are those of the function. The layer has no parameters and no
    state, so that checkpoints of a model are what they were without it.
    """

    def __init__(
        self,
        scale: float = 1.0,
        causal: bool = False,
        causal_offset: int | None = None,
        batch_invariant: bool = False,
    ) -> None:
        super().__init__()
        if causal_offset is not None and not causal:
            raise ValueError(f"FusedSoftmax: causal_offset is {causal_offset} and causal is False; set causal=True")
        self.scale = scale
        self.causal = causal
        self.causal_offset = causal_offset
        self.batch_invariant = batch_invariant

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of scores x, [..., Q, K] or [K], and a mask that broadcasts to them and hides where it is 1."""
        return api.softmax(
            x,
            scale=self.scale,
            mask=mask,
            causal=self.causal,
            causal_offset=self.causal_offset,
            batch_invariant=self.batch_invariant,
        )

    def extra_repr(self) -> str:
        """What differs from the defaults, and scale."""
        said = [f"scale={self.scale:g}"]
        if self.causal:
            said.append("causal=True" + ("" if self.causal_offset is None else f", causal_offset={self.causal_offset}"))
        if self.batch_invariant:
            said.append("batch_invariant=True")
        return ", ".join(said)
