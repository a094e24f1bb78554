"""What computes a cell: this project and its peers. A provider that cannot run here, or not this cell, says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

from torch import Tensor

from ..cells import Cell
from ..tensors import Tensors

Call = Callable[[Tensors], Tensor]
"""Computes a set of tensors, into its `out` if possible, otherwise into a new tensor; returns the result."""


def _never(cell: Cell) -> str | None:
    return None


@dataclass(frozen=True)
class Provider:
    """One way to compute cells.

    prepare   makes the call for a cell; compiling in it is not timed.
    absent    why it cannot run on this machine; None if it can.
    refuses   why it does not take a cell; None if it does.
    plain     computes plain softmax whatever the cell's scale and mask: the same traffic without them.
    allowed   error, in units of correctness.py's bound, that the provider's method can explain.
    """

    name: str
    prepare: Callable[[Cell], Call]
    absent: Callable[[], str | None] = lambda: None
    refuses: Callable[[Cell], str | None] = _never
    plain: bool = False
    allowed: float = 16.0

    def why_absent(self) -> str | None:
        """`absent()`, or the error that it raised: a broken package computes nothing either."""
        try:
            return self.absent()
        except Exception as error:
            return in_brief(error)


PEERS = ("torch chain", "torch.softmax", "torch.compile", "triton", "liger", "quack")

OURS = "softmax_ops"
UNMASKED = "softmax_ops unmasked"
"""Our kernels on the same scores with nothing hidden or added, so that the cost of a mask is a ratio within a round."""


def in_brief(error: BaseException) -> str:
    """Type and first line of an error: compilers raise pages of text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def needs(package: str, wheel: str) -> Callable[[], str | None]:
    """An `absent` for a provider that imports a module, naming the package that contains it."""
    return lambda: None if find_spec(package) else f"{wheel} is not installed"


def without(provider: Provider, why: str = "left out by --skip") -> Provider:
    """The provider, marked as left out, which rows then record."""
    return replace(provider, absent=lambda: why)


def every() -> list[Provider]:
    """This project first, then its peers."""
    from . import liger, ours, quack, torch_chain, triton_rows

    peers = [*torch_chain.PROVIDERS, triton_rows.PROVIDER, liger.PROVIDER, quack.PROVIDER]
    return [ours.PROVIDER, ours.UNMASKED_PROVIDER, *peers]
