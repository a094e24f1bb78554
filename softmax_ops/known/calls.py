"""The calls of each direction that have been made.

    result = forward.run(*arguments)             # if it is like one of the latest calls; otherwise None
    result = forward.found(arguments)            # if it is like any known call; arguments by name
    forward.remember(arguments, request, y, lse) # after a call on the slow path

A call is remembered if its operands are its arguments themselves: if nothing had to be copied, converted or filled in.
Calls on CPU tensors, and calls that raised, are not remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import current, dispatch, launcher, native
from ..autograd import is_recordable, record
from ..checks import BackwardRequest, Request
from ..modes import TENSOR_TYPES
from .call import Known, is_number, possible, unknown

_ARGUMENT = {
    **{"slopes": "alibi_slopes", "row_scale": "scale", "offsets": "causal_offset"},
    **{"lengths": "key_lengths", "dlse": "grad_lse"},
}
"""Argument names of operands that are a view of an argument with another name."""


class Calls:
    """The known calls of one direction.

    names   the arguments: inputs first, then `scale` and others, with `out`.
    record  makes a known call, its arguments by name, as autograd records it; None if autograd records none. A call is
            recorded so if `is_recordable` says that it may be.
    """

    def __init__(self, direction: str, *names: str, record: Callable[..., Any] | None = None):
        self._direction = direction
        self._record = record
        self.names = names
        self._known: dict[tuple, Known] = {}
        self.run: Callable[..., Any] = unknown
        """Runs one of the few latest known calls: most calls are like one of them, and need no key."""
        self._recent: Any = None

    def found(self, arguments: Mapping[str, Any]) -> Any:
        """The result, if the call is like a known one; otherwise None, and nothing was done."""
        known = self._known.get(self._key(arguments)) if self._known else None
        if known is None:
            return None
        self._use(known)
        return known.run(*(arguments[name] for name in self.names))

    def remember(
        self,
        arguments: Mapping[str, Any],
        request: Request | BackwardRequest,
        result: Tensor,
        rows: Tensor | None = None,
    ) -> None:
        """Remember that a call with these arguments became this request and returned `result`, with lse in `rows`."""
        if not current.on_gpu(result) or result.numel() == 0 or not possible():
            return
        key = self._key(arguments)
        arguments = {name: arguments[name] for name in self.names}
        inputs, others, scalars = _launched(request, arguments.get("batch_invariant", False))
        operands = {**dict(zip(self.names, inputs, strict=False)), "out": result}
        operands |= {_ARGUMENT.get(name, name): operand for name, operand in others.items()}
        given = {name for name, value in arguments.items() if isinstance(value, Tensor)}
        if not key or given | {"out"} != {*operands}:
            return
        if any(arguments[name].data_ptr() != operands[name].data_ptr() for name in given):
            return
        if len({id(arguments[name]) for name in given - {"out"}}) < len(given - {"out"}):
            return  # one that is given twice is like nothing to a matcher
        if rows is not None:
            others["lse"] = rows
        executable = dispatch.executable(self._direction, (*inputs, result), others, scalars)
        if executable is None:
            return
        known = self._known.get(key)
        if known is None or not known.knows(*arguments.values()):
            if len(self._known) >= launcher.PLANS:
                self._known.clear()
            recorded = self._recorded if self._record is not None and is_recordable(arguments) else None
            known = Known(arguments, [*operands], result, rows, fill=scalars.fill, recorded=recorded)
            self._known[key] = known
        known.add(executable, tuple(each.data_ptr() for each in (*inputs, result, *others.values())))
        self._use(known)

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return dict(zip(self.names, values, strict=True))

    def forget(self) -> None:
        """Forget all calls."""
        self._known.clear()
        self.run, self._recent = unknown, None

    def _recorded(self, *values: Any) -> Any:
        assert self._record is not None
        return self._record(**self.named(values))

    def _use(self, known: Known) -> None:
        if self._recent is None:
            compiled: Any = native.compiled()
            self._recent = compiled.Recent()
        self._recent.put(known.repeated)
        self.run = self._recent.run

    def _key(self, arguments: Mapping[str, Any]) -> tuple:
        """A key that distinguishes known calls. Empty for a call that cannot be known."""
        out = arguments["out"]
        facts: list[Any] = []
        for name in self.names:
            value = arguments[name]
            if isinstance(value, Tensor):
                if type(value) not in TENSOR_TYPES or value.is_nested or value.layout is not torch.strided:
                    return ()
                facts += [name, value is out, value.dtype, value.device, value.shape, value.stride()]
            elif name != "scale":
                facts += [type(value), value]
            elif not is_number(value):
                return ()
        try:
            hash(key := tuple(facts))
        except TypeError:
            return ()
        return key


def _launched(request: Request | BackwardRequest, batch_invariant: bool) -> tuple[tuple[Tensor, ...], dict, Any]:
    """Inputs, other operands by name, and scalars of a request."""
    if isinstance(request, Request):
        return (request.x,), *dispatch.of_forward(request, batch_invariant)
    return (request.dy, request.y), *dispatch.of_backward(request, batch_invariant)


forward = Calls(
    "fwd",
    *("x", "scale", "mask", "bias", "key_lengths", "causal", "causal_offset", "window", "alibi_slopes", "sinks"),
    *("softcap", "dtype", "return_lse", "batch_invariant", "out", "log"),
    record=record,
)
"""Known calls of the forward; names in the order of `softmax`'s arguments. `log` tells `log_softmax` from it."""

backward = Calls(
    "bwd",
    *("dy", "y", "scale", "causal", "causal_offset", "window", "key_lengths", "softcap", "lse", "grad_lse", "dtype"),
    *("batch_invariant", "out", "log"),
)
"""Known calls of the backward; names in the order of `softmax_backward`'s arguments."""

masked_fill = Calls("fwd", "x", "scale", "mask", "fill", "out")
"""Known calls of `routes.masked_fill`; names in the order of its arguments. `out` is always None."""
