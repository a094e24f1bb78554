"""A call whose checks passed and whose plan is made. Of a call like it, all that is left is addresses and the launch.

    known = Known(flags, (x,), mask, out)      # keeps none of the tensors
    known.add(executable, (x,), y)             # what computes tensors on the 16-byte boundaries of these
    y = known.run(x, mask, scale, out, *flags) # None: another call, or not so simple; nothing was done

Flags are compared by identity, and of tensors everything but address and values by a `matcher`. The rest is a matter of
addresses: `Addressed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import current
from ..checks.scalars import SCALE_LIMIT_F32
from ..launcher import Executable
from .addressed import Addressed
from .likeness import matcher

EXCLUDED = -float("inf")
LOWEST, HIGHEST = -SCALE_LIMIT_F32, SCALE_LIMIT_F32

_NEW, _FIRST, _SECOND, _APART = range(4)
"""What a call writes to: a new tensor, its first or second input, another tensor."""

Run = Callable[[Tensor, "Tensor | None", object, "Tensor | None", object, object, object], "Tensor | None"]
"""(x, mask, scale, out, *flags) -> y, or (dy, y, scale, out, *flags) -> dx; None: another call, nothing was done."""


class Flags(NamedTuple):
    """What a plan depends on beside the tensors, as given."""

    causal: bool
    causal_offset: int | Tensor | None  # no tensor in calls that come here
    batch_invariant: bool


class Known:
    """A call of the forward on (x,) and maybe a mask, or of the backward on (dy, y), that wrote to `out` or did not."""

    def __init__(self, flags: Flags, inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None):
        self.flags = flags
        self._masked = mask is not None
        self._target = _target(inputs, out)
        self._is_like = matcher(*_compared(inputs, mask, out))
        self._device = current.ordinal(inputs[0])
        self._inputs = len(inputs)
        operands = [operand for operand in (*inputs, out, mask) if operand is not None]
        self.addressed = Addressed(operands, -1 if out is None else self._inputs, self._inputs)
        self._bumps = out is not None and not out.is_inference()
        self._like_input = inputs[-1].is_contiguous()
        self.run: Run = self._runner()

    def knows(self, inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None) -> bool:
        """Whether these tensors are like those of this call."""
        if (mask is not None) is not self._masked or _target(inputs, out) is not self._target:
            return False
        return self._is_like(*_compared(inputs, mask, out))

    def add(self, executable: Executable, inputs: tuple[Tensor, ...], result: Tensor | None, *mask: Tensor) -> None:
        """What computes operands that lie relative to 16-byte boundaries as these do; a new result lies on one."""
        operands = (*inputs, result, *mask)
        self.addressed.add(executable, tuple(0 if operand is None else operand.data_ptr() for operand in operands))

    def _runner(self) -> Run:
        """`run`: a closure, and all in one frame, because most of what such a call costs is the interpreter.

        To a matcher None is unlike any tensor, and so are tensors of which one is given twice. A nested tensor must not
        come to it: torch's own ends the process.
        """
        known, is_like, device, bumps = self, self._is_like, self._device, self._bumps
        known_causal, known_offset, known_invariant = self.flags
        target, masked = self._target, self._masked
        backward = self._inputs == 2
        apart, new, paired = target is _APART, target is _NEW, masked or backward
        observers, device_of_thread, stream_of = _dispatch_modes, current.device, current.stream
        increment_version = current.increment_version
        executables, find = self.addressed.by_addresses, self.addressed.find

        def run(
            first: Any, second: Any, scale: object, out: Any, causal: object, offset: object, invariant: object
        ) -> Tensor | None:
            if (
                type(scale) is not float
                or causal is not known_causal
                or offset is not known_offset
                or invariant is not known_invariant
                or observers()
                or forward_ad._current_level >= 0
            ):
                return None
            try:
                if first.is_nested or (paired and second.is_nested) or (apart and out.is_nested):
                    return None
            except AttributeError:  # no tensor
                return None
            if apart:
                if not (is_like(first, second, out) if paired else second is None and is_like(first, out)):
                    return None
                result = out
            else:
                if out is not (None if new else first if target is _FIRST else second):
                    return None
                if not (is_like(first, second) if paired else second is None and is_like(first)):
                    return None
                result = known._new(second if backward else first) if new else out
            if not paired:
                addresses: tuple[int, ...] = first.data_ptr(), result.data_ptr()
            elif masked:
                addresses = first.data_ptr(), result.data_ptr(), second.data_ptr()
            else:
                addresses = first.data_ptr(), second.data_ptr(), result.data_ptr()
            executable = executables.get(addresses) or find(addresses)
            if executable is None or device_of_thread() != device or not LOWEST <= scale <= HIGHEST:
                return None
            if executable.workspace_bytes:
                workspace = result.new_empty(executable.workspace_bytes, dtype=torch.uint8)
                executable.launch(addresses, scale, stream_of(device), EXCLUDED, workspace.data_ptr())
            else:
                executable.launch(addresses, scale, stream_of(device), EXCLUDED)
            if bumps:
                increment_version((result,))
            return result

        return run

    def _new(self, like: Tensor) -> Tensor:
        """A contiguous result; torch.empty_like is the fastest way to one where the input is."""
        if self._like_input:
            return torch.empty_like(like)
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)


# Bound here, because looking it up through its module in every call costs as much as calling it.
_dispatch_modes = torch._C._len_torch_dispatch_stack  # among those, fake tensors alone escape a matcher


def _target(inputs: tuple[Tensor, ...], out: Tensor | None) -> int:
    """What is written to."""
    if out is None:
        return _NEW
    return next((place for place, tensor in zip((_FIRST, _SECOND), inputs, strict=False) if tensor is out), _APART)


def _compared(inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None) -> list[Tensor]:
    """The tensors of a call, each once, as a matcher wants them."""
    apart = out if _target(inputs, out) is _APART else None
    return [tensor for tensor in (*inputs, mask, apart) if tensor is not None]
