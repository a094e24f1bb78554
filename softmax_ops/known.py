"""A call whose checks passed and whose plan is made. Of a call like it, all that is left is addresses and the launch.

    known = Known(flags, (x,), mask, out)             # keeps none of the tensors
    known.add(executable, (x,), y)                    # what computes tensors on the 16-byte boundaries of these
    y = known.forward(x, scale, *flags, mask, out)    # None: another call, or not so simple; nothing was done

Flags are compared by identity, and of tensors everything but address and values by a `matcher`. Whether `out` overlaps
an input, and which boundaries the tensors start on (and so which kernel serves), are matters of addresses: what was
found is remembered by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import current
from .checks.memory import bytes_reached
from .checks.scalars import SCALE_LIMIT_F32
from .launcher import Executable
from .likeness import matcher

ADDRESSES = 1024
"""Combinations of addresses that a known call remembers; then it forgets them all."""

_BOUNDARY = 15
"""The bits of an address that tell where it lies between two 16-byte boundaries."""

_EXCLUDED = -float("inf")

_NEW, _FIRST, _SECOND, _APART = range(4)
"""What a call writes to: a new tensor, its first or second input, another tensor."""

# Bound here, because looking each up through its module in every call costs as much as calling it.
_dispatch_modes = torch._C._len_torch_dispatch_stack  # among those, fake tensors alone escape a matcher


class Flags(NamedTuple):
    """What a plan depends on beside the tensors, as given."""

    causal: bool
    causal_offset: int | Tensor | None  # no tensor in calls that come here
    batch_invariant: bool


class Known:
    """A call of the forward on (x,) and maybe a mask, or of the backward on (dy, y), that wrote to `out` or did not."""

    __slots__ = (
        "_batch_invariant",
        "_bumps",
        "_causal",
        "_causal_offset",
        "_checked",
        "_device",
        "_executables",
        "_in_place",
        "_inputs",
        "_is_like",
        "_like_input",
        "_masked",
        "_reach",
        "_target",
        "flags",
    )

    def __init__(self, flags: Flags, inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None):
        self.flags = flags
        self._causal, self._causal_offset, self._batch_invariant = flags
        self._masked = mask is not None
        self._target = _target(inputs, out)
        self._is_like = matcher(*_compared(inputs, mask, out))
        self._device = current.ordinal(inputs[0])
        self._executables: dict[tuple[int, ...], Executable] = {}  # by the last bits of their operands' addresses
        self._checked: dict[tuple[int, ...], Executable] = {}  # by their operands' addresses
        self._inputs = len(inputs)
        operands = (*inputs, out, mask) if out is not None else inputs
        self._reach = [bytes_reached(operand) for operand in operands if operand is not None]
        self._in_place = [out is not None and tensor.stride() == out.stride() for tensor in inputs]
        self._bumps = out is not None and not out.is_inference()
        self._like_input = inputs[-1].is_contiguous()

    def knows(self, inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None) -> bool:
        """Whether these tensors are like those of this call."""
        if (mask is not None) is not self._masked or _target(inputs, out) is not self._target:
            return False
        return self._is_like(*_compared(inputs, mask, out))

    def add(self, executable: Executable, inputs: tuple[Tensor, ...], result: Tensor | None, *mask: Tensor) -> None:
        """What computes operands that lie relative to 16-byte boundaries as these do; a new result lies on one."""
        operands = (*inputs, result, *mask)
        addresses = (0 if operand is None else operand.data_ptr() for operand in operands)
        self._executables[_boundaries(addresses)] = executable

    def forward(
        self,
        x: Tensor,
        scale: object,
        causal: object,
        causal_offset: object,
        batch_invariant: object,
        mask: Tensor | None,
        out: Tensor | None,
    ) -> Tensor | None:
        """The softmax, or None."""
        if (
            type(scale) is not float
            or not -SCALE_LIMIT_F32 <= scale <= SCALE_LIMIT_F32
            or causal is not self._causal
            or causal_offset is not self._causal_offset
            or batch_invariant is not self._batch_invariant
            or (mask is None) is self._masked
            or (target := _NEW if out is None else _FIRST if out is x else _APART) is not self._target
            or _dispatch_modes()
            or forward_ad._current_level >= 0
        ):
            return None
        if mask is None:
            if not (self._is_like(x, out) if target is _APART else self._is_like(x)):
                return None
            y = self._new(x) if out is None else out
            addresses: tuple[int, ...] = x.data_ptr(), y.data_ptr()
        else:
            if not (self._is_like(x, mask, out) if target is _APART else self._is_like(x, mask)):
                return None
            y = self._new(x) if out is None else out
            addresses = x.data_ptr(), y.data_ptr(), mask.data_ptr()
        return self._launched(addresses, scale, y)

    def backward(
        self,
        dy: Tensor,
        y: Tensor,
        scale: object,
        causal: object,
        causal_offset: object,
        batch_invariant: object,
        out: Tensor | None,
    ) -> Tensor | None:
        """The gradient, or None."""
        if (
            type(scale) is not float
            or not -SCALE_LIMIT_F32 <= scale <= SCALE_LIMIT_F32
            or causal is not self._causal
            or causal_offset is not self._causal_offset
            or batch_invariant is not self._batch_invariant
            or (target := _NEW if out is None else _FIRST if out is dy else _SECOND if out is y else _APART)
            is not self._target
            or _dispatch_modes()
            or forward_ad._current_level >= 0
            or not (self._is_like(dy, y, out) if target is _APART else self._is_like(dy, y))
        ):
            return None
        dx = self._new(y) if out is None else out
        return self._launched((dy.data_ptr(), y.data_ptr(), dx.data_ptr()), scale, dx)

    def _launched(self, addresses: tuple[int, ...], scale: float, result: Tensor) -> Tensor | None:
        executable = self._checked.get(addresses) or self._check(addresses)
        if executable is None or current.device() != self._device:
            return None
        stream = current.stream(self._device)
        if executable.workspace_bytes:
            scratch = result.new_empty(executable.workspace_bytes, dtype=torch.uint8)
            executable.launch(addresses, scale=scale, fill=_EXCLUDED, workspace=scratch.data_ptr(), stream=stream)
        else:
            executable.launch(addresses, scale=scale, fill=_EXCLUDED, stream=stream)
        if self._bumps:
            current.increment_version((result,))
        return result

    def _new(self, like: Tensor) -> Tensor:
        """A contiguous result; torch.empty_like is the fastest way to one where the input is."""
        if self._like_input:
            return torch.empty_like(like)
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)

    def _check(self, addresses: tuple[int, ...]) -> Executable | None:
        """What computes operands at these addresses; None where it is not known, or where `out` overlaps an input."""
        executable = self._executables.get(_boundaries(addresses))
        if executable is None or self._overlaps(addresses):
            return None
        if len(self._checked) >= ADDRESSES:
            self._checked.clear()
        self._checked[addresses] = executable
        return executable

    def _overlaps(self, addresses: tuple[int, ...]) -> bool:
        """Whether out may share bytes with an input in which it is not exactly that, or with the mask."""
        if self._target is _NEW:
            return False
        at, reach = addresses[self._inputs], self._reach[self._inputs]
        for place, (address, bytes) in enumerate(zip(addresses, self._reach, strict=True)):
            same = place < self._inputs and self._in_place[place] and at == address
            if place != self._inputs and not same and -reach < at - address < bytes:
                return True
        return False


def _target(inputs: tuple[Tensor, ...], out: Tensor | None) -> int:
    """What is written to."""
    if out is None:
        return _NEW
    return next((place for place, tensor in zip((_FIRST, _SECOND), inputs, strict=False) if tensor is out), _APART)


def _compared(inputs: tuple[Tensor, ...], mask: Tensor | None, out: Tensor | None) -> list[Tensor]:
    """The tensors of a call, each once, as a matcher wants them."""
    apart = out if _target(inputs, out) is _APART else None
    return [tensor for tensor in (*inputs, mask, apart) if tensor is not None]


def _boundaries(addresses: Iterable[int]) -> tuple[int, ...]:
    return tuple(address & _BOUNDARY for address in addresses)
