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

from .. import current, native
from ..checks.scalars import SCALE_LIMIT_F32
from ..launcher import Executable
from .addressed import Addressed
from .likeness import matcher

EXCLUDED = -float("inf")

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
    """A call of the forward on (x,) and maybe a mask, or of the backward on (dy, y), that wrote to `out` or did not.

    `run` is compiled (native/repeated.c) where that part was built, and `_run` elsewhere.
    """

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
        self._new_like = torch.empty_like if inputs[-1].is_contiguous() else _contiguous_like
        self.run: Run = self._compiled(_compared(inputs, mask, out)) or self._run

    def knows(self, inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None) -> bool:
        """Whether these tensors are like those of this call."""
        if (mask is not None) is not self._masked or _target(inputs, out) is not self._target:
            return False
        return self._is_like(*_compared(inputs, mask, out))

    def add(self, executable: Executable, inputs: tuple[Tensor, ...], result: Tensor | None, *mask: Tensor) -> None:
        """What computes operands that lie relative to 16-byte boundaries as these do; a new result lies on one."""
        operands = (*inputs, result, *mask)
        self.addressed.add(executable, tuple(0 if operand is None else operand.data_ptr() for operand in operands))

    def _compiled(self, tensors: list[Tensor]) -> Run | None:
        calls = native.calls()
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # since torch 2.10
        if calls is None or exchange is None:
            return None
        repeated = calls.Repeated(
            exchange=exchange,
            tensors=tuple(tensors),
            flags=self.flags,
            target=self._target,
            masked=self._masked,
            backward=self._inputs == 2,
            bumps=self._bumps,
            device=self._device,
            limit=SCALE_LIMIT_F32,
            is_like=matcher(*tensors, layout=False),
            new_like=self._new_like,
            find=self.addressed.find,
            new_scratch=new_scratch,
            dispatch_modes=_dispatch_modes,
            forward_ad=forward_ad,
            device_of_thread=current.device,
            stream_of=current.stream,
            increment_version=current.increment_version,
        )
        return repeated.run

    def _run(
        self,
        first: Any,
        second: Any,
        scale: object,
        out: Tensor | None,
        causal: object,
        causal_offset: object,
        batch_invariant: object,
    ) -> Tensor | None:
        flags = zip((causal, causal_offset, batch_invariant), self.flags, strict=True)
        if type(scale) is not float or not abs(scale) <= SCALE_LIMIT_F32 or any(a is not b for a, b in flags):
            return None
        if _dispatch_modes() or forward_ad._current_level >= 0:
            return None
        inputs, mask = ((first,), second) if self._inputs == 1 else ((first, second), None)
        # A nested tensor must not come to a matcher: torch's own ends the process.
        if any(getattr(tensor, "is_nested", True) for tensor in (*inputs, mask, out) if tensor is not None):
            return None
        if not self.knows(inputs, mask, out):
            return None
        result = self._new_like(inputs[-1]) if out is None else out
        operands = (*inputs, result) if mask is None else (*inputs, result, mask)
        addresses = tuple(operand.data_ptr() for operand in operands)
        executable = self.addressed.find(addresses)
        if executable is None or current.device() != self._device:
            return None
        bytes = executable.workspace_bytes
        scratch = new_scratch(result, bytes).data_ptr() if bytes else 0
        executable.launch(addresses, scale, current.stream(self._device), EXCLUDED, scratch)
        if self._bumps:
            current.increment_version((result,))
        return result


# Bound here, because looking it up through its module in every call costs as much as calling it.
_dispatch_modes = torch._C._len_torch_dispatch_stack  # among those, fake tensors alone escape a matcher


def new_scratch(result: Tensor, bytes: int) -> Tensor:
    """Memory for the launch of a call, on the device of its result."""
    return result.new_empty(bytes, dtype=torch.uint8)


def _contiguous_like(like: Tensor) -> Tensor:
    """For inputs that torch.empty_like, which is faster, would follow into another order."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _target(inputs: tuple[Tensor, ...], out: Tensor | None) -> int:
    """What is written to."""
    if out is None:
        return _NEW
    return next((place for place, tensor in zip((_FIRST, _SECOND), inputs, strict=False) if tensor is out), _APART)


def _compared(inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None) -> list[Tensor]:
    """The tensors of a call, each once, as a matcher wants them."""
    apart = out if _target(inputs, out) is _APART else None
    return [tensor for tensor in (*inputs, mask, apart) if tensor is not None]
