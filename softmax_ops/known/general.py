"""`known` for calls that ask for more than scale, mask and causality: any number of tensors, and numbers per row.

    remember(arguments, request, batch_invariant, y, lse)      # after the long way
    result = found(arguments)                                  # y or (y, lse); None: another call, nothing was done

`arguments` are all of `softmax` or `log_softmax` by name, always in one order. A call is known if its operands lie
where its arguments do: if nothing had to be copied, converted or filled in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import current, dispatch, launcher
from ..checks import Request
from ..checks.scalars import SCALE_LIMIT_F32
from ..operands import accumulator
from .addressed import Addressed
from .likeness import matcher

Arguments = dict[str, Any]

_ARGUMENT = {"slopes": "alibi_slopes", "row_scale": "scale", "offsets": "causal_offset", "lengths": "key_lengths"}
"""Of operands that are not called like the argument that they are a view of."""

_PLAIN = (Tensor, torch.nn.Parameter)
_TENSOR, _SCALE = object(), object()
"""What stands in the place of an argument that is a tensor, or the scale as a number, which may differ each time."""

_known: dict[tuple, KnownGeneral] = {}
_latest: list[KnownGeneral] = []
"""The one used last: most calls are like the one before, and then need no key."""


def found(arguments: Arguments) -> Any:
    """The result of a call like one that was made before, otherwise None."""
    if not _latest:
        return None
    result = _latest[0].run(arguments)
    if result is None:
        known = _known.get(_key(arguments))
        if known is not None:
            _latest[:] = [known]
            result = known.run(arguments)
    return result


def remember(arguments: Arguments, request: Request, batch_invariant: bool, y: Tensor, lse: Tensor | None) -> None:
    """That a call of these arguments came to this request, which gave y and lse."""
    key = _key(arguments)
    if not key or not current.on_gpu(y) or y.numel() == 0:
        return
    others, scalars = dispatch.of_forward(request, batch_invariant)
    sources = {_ARGUMENT.get(name, name): operand for name, operand in others.items()}
    given = {name for name, value in arguments.items() if isinstance(value, Tensor)}
    if {"x", *sources} != given - {"out"}:
        return
    if any(arguments[name].data_ptr() != operand.data_ptr() for name, operand in sources.items()):
        return
    if lse is not None:
        others["lse"] = lse
    executable = dispatch.executable("fwd", (request.x, y), others, scalars)
    if executable is None:
        return
    known = _known.get(key)
    if known is None or not known.knows(arguments):
        if len(_known) >= launcher.PLANS:
            _known.clear()
        known = _known[key] = KnownGeneral(arguments, [*sources], y, lse)
    known.addressed.add(executable, tuple(each.data_ptr() for each in (request.x, y, *others.values())))
    _latest[:] = [known]


class KnownGeneral:
    """Such a call. Keeps none of its tensors."""

    def __init__(self, arguments: Arguments, sources: list[str], y: Tensor, lse: Tensor | None):
        """`sources` are the arguments behind x and y in the order of the launch; lse comes last."""
        x, out = arguments["x"], arguments["out"]
        self._in_place = out is x
        self._wanted = [_wanted(name, value) for name, value in arguments.items()]
        tensors = self._tensors(arguments)
        assert tensors is not None
        self._is_like = matcher(*tensors)
        self._requires_grad = any(tensor.requires_grad for tensor in tensors)
        self._sources = sources
        self._device = current.ordinal(x)
        self._dtype = y.dtype
        self._bumps = out is not None and not out.is_inference()
        self._returns_lse = lse is not None
        operands = [x, y, *(arguments[name] for name in sources), *([] if lse is None else [lse])]
        self.addressed = Addressed(operands, -1 if out is None else 1, inputs=1)

    def _tensors(self, arguments: Arguments) -> list[Tensor] | None:
        """Those of arguments that are otherwise equal, each once as a matcher wants them; None of others."""
        if (arguments["out"] is arguments["x"]) is not self._in_place:
            return None
        tensors = []
        for value, wanted in zip(arguments.values(), self._wanted, strict=True):
            if wanted is _TENSOR:
                if type(value) not in _PLAIN or value.is_nested:  # a nested tensor must not come to a matcher
                    return None
                tensors.append(value)
            elif wanted is _SCALE:
                if type(value) is not float:
                    return None
            elif value is not wanted and not _is_same(value, wanted):
                return None
        return tensors[1:] if self._in_place else tensors

    def knows(self, arguments: Arguments) -> bool:
        """Whether these are equal, or like tensors, one by one."""
        tensors = self._tensors(arguments)
        return tensors is not None and self._is_like(*tensors)

    def run(self, arguments: Arguments) -> Any:
        """The result, or None for another call."""
        scale = arguments["scale"]
        number = scale if type(scale) is float else 1.0
        if (
            torch._C._len_torch_dispatch_stack()
            or forward_ad._current_level >= 0
            or not -SCALE_LIMIT_F32 <= number <= SCALE_LIMIT_F32
            or not self.knows(arguments)
            or (self._requires_grad and torch.is_grad_enabled())
        ):
            return None
        x, out = arguments["x"], arguments["out"]
        y = torch.empty(x.shape, dtype=self._dtype, device=x.device) if out is None else out
        addresses = (x.data_ptr(), y.data_ptr(), *[arguments[name].data_ptr() for name in self._sources])
        lse = None
        if self._returns_lse:
            lse = torch.empty(x.shape[:-1], dtype=accumulator(x.dtype), device=x.device)
            addresses = (*addresses, lse.data_ptr())
        if not self._launched(addresses, number, y):
            return None
        if self._bumps:
            current.increment_version((y,))
        return y if lse is None else (y, lse)

    def _launched(self, addresses: tuple[int, ...], scale: float, y: Tensor) -> bool:
        """False where the kernel is not known, or must not be launched from here; nothing is, then."""
        executable = self.addressed.find(addresses)
        if executable is None or current.device() != self._device:
            return False
        workspace = y.new_empty(executable.workspace_bytes, dtype=torch.uint8) if executable.workspace_bytes else None
        scratch = 0 if workspace is None else workspace.data_ptr()
        executable.launch(addresses, scale, current.stream(self._device), -float("inf"), scratch)
        return True


def _wanted(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return _TENSOR
    return _SCALE if name == "scale" else value


def _is_same(value: Any, wanted: Any) -> bool:
    """Equal and of one type, where True and 1 differ."""
    if type(value) is not type(wanted) or value != wanted:
        return False
    return type(value) is not tuple or all(map(_is_same, value, wanted))


def _key(arguments: Arguments) -> tuple:
    """Tells calls apart that may be known together. Empty for a call that is never known."""
    facts: list[Any] = [arguments["out"] is arguments["x"]]
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if type(value) not in _PLAIN or value.is_nested or value.layout is not torch.strided:
                return ()
            facts += [name, value.dtype, value.device, value.shape, value.stride()]
        elif name != "scale":
            facts += [type(value), value]
        elif type(value) is not float:
            return ()
    try:
        hash(key := tuple(facts))
    except TypeError:
        return ()
    return key
