"""The short way of calls that were made before: no checks, no plan, no look-up of a kernel.

The first call with given metadata takes the long way, and what it came to is remembered as a `Known` call. `_key` tells
such calls apart, and a Known call looks at whatever else they depend on. Arguments that have no place here (those of
another interface, or a scale that is no float) must not come here: their calls take the long way.

Nothing is remembered of tensors on the CPU, of tensors that require grad, of a call that had to copy, or of one that
raised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import current, dispatch, launcher
from .plain import Flags, Known

_known: dict[tuple, Known] = {}


class Latest:
    """`Known.run` of the call made last, in each direction: most calls are like the one before, and need no key."""

    __slots__ = ("bwd", "fwd")

    def __init__(self) -> None:
        self.bwd = self.fwd = _unknown


def _unknown(*_: object) -> None:
    """There was none."""


latest = Latest()


def found(
    direction: str,
    first: Tensor,
    second: Tensor | None,
    scale: object,
    out: Tensor | None,
    causal: object,
    causal_offset: object,
    batch_invariant: object,
) -> Tensor | None:
    """The result of a call of "fwd" or "bwd", if one like it was made; otherwise None, and nothing has happened."""
    if getattr(latest, direction) is _unknown:
        return None
    inputs, mask = ((first,), second) if direction == "fwd" else ((first, second), None)
    key = _key(direction, inputs, mask, out, causal, causal_offset, batch_invariant)
    known = None if key is None else _known.get(key)
    if known is None:
        return None
    setattr(latest, direction, known.run)
    return known.run(first, second, scale, out, *known.flags)


def remember(
    direction: str,
    inputs: tuple[Tensor, ...],
    mask: Tensor | None,
    out: Tensor | None,
    result: Tensor,
    flags: Flags,
    offset: int | None,
) -> None:
    """That a call gave `result`, which is `out` where there is one. `offset` is the causal offset that it came to."""
    key = _key(direction, inputs, mask, out, *flags)
    if key is None or not current.on_gpu(result) or result.numel() == 0:
        return
    if any(tensor.requires_grad for tensor in (*inputs, out, mask) if tensor is not None):
        return
    scalars = dispatch.Scalars(1.0, -float("inf"), offset, flags.batch_invariant)
    executable = dispatch.executable(direction, (*inputs, result), {} if mask is None else {"mask": mask}, scalars)
    if executable is None:
        return
    known = _known.get(key)
    if known is None or not known.knows(inputs, mask, out):
        if len(_known) >= launcher.PLANS:
            _known.clear()
        known = _known[key] = Known(flags, inputs, mask, out)
    known.add(executable, inputs, result, *(() if mask is None else (mask,)))
    setattr(latest, direction, known.run)


def _key(
    direction: str, inputs: tuple, mask: Any, out: Any, causal: Any, causal_offset: Any, batch_invariant: Any
) -> tuple | None:
    """Tells calls apart that may be known together; None for one that is never known."""
    if type(causal) is not bool or type(batch_invariant) is not bool:
        return None
    if causal_offset is not None and type(causal_offset) is not int:  # True equals 1, and is refused
        return None
    tensors: list[tuple | None] = []
    for tensor in (*inputs, mask, out):
        if tensor is None:
            tensors.append(None)
        elif type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_nested:
            return None
        else:
            tensors.append((tensor.dtype, tensor.device, tensor.shape, tensor.stride()))
    return direction, causal, causal_offset, batch_invariant, *(tensor is out for tensor in inputs), *tensors
