"""A call that was checked and planned. A call like it only needs its addresses and the launch.

    known = Known(arguments, sources, result)    # arguments by name; keeps no tensor alive
    known.add(executable, addresses)             # the executable for operands aligned like these
    result = known.run(*values)                  # in the order of the arguments; None: not such a call

A `matcher` compares everything about tensors except addresses and values; of other arguments type and value are
compared. `Addressed` decides the rest by address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import current, native
from ..checks.scalars import SCALE_LIMIT_F32
from ..dispatch import new_scratch
from ..launcher import Executable
from .addressed import Addressed
from .likeness import matcher

PLAIN = (Tensor, torch.nn.Parameter)
"""Types whose operations are torch's own; subclasses may override them."""

_TENSOR, _SCALE, _VALUE = -1, -2, -3
"""What an argument must be: a tensor like the known one, any scale, or exactly this value. A number from 0 on: the same
object as the argument in that position, for an `out` that is an input."""

_NEW, _ROWS = -1, -2
"""Operands that are not arguments: a new result, and a new tensor with a value per row (lse)."""

# Bound here, because looking it up through its module in every call costs as much as calling it.
_dispatch_modes = torch._C._len_torch_dispatch_stack  # among those, fake tensors alone escape a matcher


class Known:
    """A call with these arguments, including `out`, and including `scale` unless it is the same in every such call.

    `run` is compiled (native/repeated.c) where that part was built, and `_run` elsewhere.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        sources: Sequence[str],
        result: Tensor,
        rows: Tensor | None = None,
        scale: float = 1.0,
        fill: float = -float("inf"),
    ):
        """`sources` names the arguments that are the operands, in the order of the launch; `rows` is the last operand,
        if any.

        `fill` is what a column hidden by the mask scores.
        """
        names, values = [*arguments], [*arguments.values()]
        out = arguments["out"]
        inputs = names[: sources.index("out")]
        target = next((place for place, name in enumerate(inputs) if arguments[name] is out), -1)
        self._kinds = [_kind(name, value) for name, value in arguments.items()]
        if target >= 0:
            self._kinds[names.index("out")] = target
        self._values = [value if kind == _VALUE else None for kind, value in zip(self._kinds, values, strict=True)]
        self._operands = [names.index(name) for name in sources] + [_ROWS] * (rows is not None)
        if out is None:
            self._operands[len(inputs)] = _NEW
        tensors = [value for kind, value in zip(self._kinds, values, strict=True) if kind == _TENSOR]
        self._is_like = matcher(*tensors)
        self._records = any(tensor.requires_grad for tensor in tensors)
        self._like = len(inputs) - 1  # which argument a result is like
        self._out = names.index("out")
        self._scale, self._fill = scale, fill
        self._device = current.ordinal(values[0])
        self._bumps = out is not None and not out.is_inference()
        like = values[self._like]
        self._new_result = _maker(like, tuple(like.shape), result.dtype)
        self._new_rows = None if rows is None else _maker(like, tuple(rows.shape), rows.dtype)
        operands = [result if name == "out" else arguments[name] for name in sources]
        operands += [] if rows is None else [rows]
        self.addressed = Addressed(operands, -1 if out is None else len(inputs), len(inputs))
        self.repeated = self._compiled(tensors)
        """The compiled object that runs calls; None if the compiled part was not built or is not used."""
        self.run: Callable[..., Any] = self._run if self.repeated is None else self.repeated.run

    def add(self, executable: Executable, addresses: tuple[int, ...]) -> None:
        """Register the executable for operands with these offsets from 16-byte boundaries; a new result is aligned."""
        self.addressed.add(executable, addresses)

    def knows(self, values: Sequence[Any]) -> bool:
        """Whether these are the arguments of such a call, at any addresses."""
        tensors = self._tensors(values)
        return tensors is not None and self._is_like(*tensors)

    def _tensors(self, values: Sequence[Any]) -> list[Tensor] | None:
        """The tensors among arguments that otherwise match, each once, as a matcher takes them; None if some do not
        match."""
        tensors = []
        for kind, value, wanted in zip(self._kinds, values, self._values, strict=True):
            if kind == _TENSOR:
                if type(value) not in PLAIN or value.is_nested:  # a nested tensor must not come to a matcher
                    return None
                tensors.append(value)
            elif kind == _SCALE:
                if not is_number(value) or not abs(value) <= SCALE_LIMIT_F32:
                    return None
            elif kind == _VALUE:
                if value is not wanted and not _is_same(value, wanted):
                    return None
            elif value is not values[kind]:
                return None
        return tensors

    def _run(self, *values: Any) -> Any:
        if _dispatch_modes() or forward_ad._current_level >= 0 or not self.knows(values):
            return None
        if self._records and torch.is_grad_enabled():
            return None
        previous = current.exchange_device(self._device)
        try:
            return self._compute(values)
        finally:
            current.restore_device(previous)

    def _compute(self, values: Sequence[Any]) -> Any:
        """Result of `_run`; the device is current."""
        like = values[self._like]
        result = self._new_result(like) if self._kinds[self._out] == _VALUE else values[self._out]
        rows = None if self._new_rows is None else self._new_rows(like)
        beside: dict[int, Any] = {_NEW: result, _ROWS: rows}
        addresses = tuple([(beside[at] if at < 0 else values[at]).data_ptr() for at in self._operands])
        executable = self.addressed.find(addresses)
        if executable is None:
            return None
        bytes = executable.workspace_bytes
        scratch = new_scratch(result, bytes).data_ptr() if bytes else 0
        scale = values[self._kinds.index(_SCALE)] if _SCALE in self._kinds else self._scale
        executable.launch(addresses, scale, current.stream(self._device), self._fill, scratch)
        if self._bumps:
            current.increment_version((result,))
        return result if rows is None else (result, rows)

    def _compiled(self, tensors: list[Tensor]) -> Any:
        calls = native.compiled()
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # torch 2.13 has it
        if calls is None or exchange is None:
            return None
        try:
            return calls.Repeated(
                exchange=exchange,
                kinds=tuple(self._kinds),
                values=tuple(self._values),
                tensors=tuple(tensors),
                operands=tuple(self._operands),
                like=self._like,
                out=self._out,
                scale=self._scale,
                fill=self._fill,
                limit=SCALE_LIMIT_F32,
                device=self._device,
                bumps=self._bumps,
                is_like=matcher(*tensors, layout=False),
                find=self.addressed.find,
                new_result=self._new_result,
                new_rows=self._new_rows,
                new_scratch=new_scratch,
                records=torch.is_grad_enabled if self._records else None,
                dispatch_modes=_dispatch_modes,
                forward_ad=forward_ad,
                exchange_device=current.exchange_device,
                restore_device=current.restore_device,
                stream_of=current.stream,
                increment_version=current.increment_version,
            )
        except ValueError:  # an exchange of another version
            return None


def is_number(value: Any) -> bool:
    """A float, one of its subclasses such as numpy.float64, or an int. True does not count, and takes the slow path."""
    return isinstance(value, float) or type(value) is int


def _kind(name: str, value: Any) -> int:
    if isinstance(value, Tensor):
        return _TENSOR
    return _SCALE if name == "scale" else _VALUE


def _is_same(value: Any, wanted: Any) -> bool:
    """Equal and of the same type: True and 1 differ."""
    if type(value) is not type(wanted) or value != wanted:
        return False
    return type(value) is not tuple or all(map(_is_same, value, wanted))


def _maker(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function that makes contiguous tensors of a shape and dtype on the device of `like`."""
    if like.is_contiguous() and (like.shape, like.dtype) == (shape, dtype):
        return torch.empty_like
    strides, device = torch.empty(shape, device="meta").stride(), like.device
    # Half the time of torch.empty.
    return lambda like: torch.empty_strided(shape, strides, dtype=dtype, device=device)
