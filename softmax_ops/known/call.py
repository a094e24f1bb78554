"""A call that was checked and planned. A call like it only needs its addresses and the launch.

    known = Known(arguments, sources, result)    # arguments by name; keeps no tensor alive
    known.add(executable, addresses)             # the executable for operands aligned like these
    result = known.run(*values)                  # in the order of the arguments; None: not such a call

The steps are in C (native/repeated.c). Types, shapes and strides, and everything else that guards compare (`likeness`),
must be those of the known tensors; other arguments must have the known type and value. `Addressed` decides the rest by
address.
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
from . import likeness
from .addressed import Addressed

_TENSOR, _SCALE, _VALUE = -1, -2, -3
"""What an argument must be: a tensor like the known one, any scale, or exactly this value. A number from 0 on: the same
object as the argument in that position, for an `out` that is an input."""

_NEW, _ROWS = -1, -2
"""Operands that are not arguments: a new result, and a new tensor with a value per row (lse)."""


def possible() -> bool:
    """Whether there can be known calls: with the compiled part, and a torch that has its guards."""
    return native.compiled() is not None and likeness.guards() is not None


class Known:
    """A call with these arguments, including `out`, and including `scale` unless it is the same in every such call."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        sources: Sequence[str],
        result: Tensor,
        rows: Tensor | None = None,
        scale: float = 1.0,
        fill: float = -float("inf"),
        recorded: Callable[..., Any] | None = None,
    ):
        """`sources` names the arguments that are the operands, in the order of the launch; `rows` is the last operand,
        if any.

        fill      what a column hidden by the mask scores.
        recorded  makes such a call where autograd has to record it; without it `run` does not.
        """
        names, values = [*arguments], [*arguments.values()]
        out = arguments["out"]
        inputs = names[: sources.index("out")]
        kinds = [_kind(name, value) for name, value in arguments.items()]
        target = next((place for place, name in enumerate(inputs) if arguments[name] is out), -1)
        if target >= 0:
            kinds[names.index("out")] = target
        places = [names.index(name) for name in sources] + [_ROWS] * (rows is not None)
        if out is None:
            places[len(inputs)] = _NEW
        tensors = tuple(value for kind, value in zip(kinds, values, strict=True) if kind == _TENSOR)
        operands = [result if name == "out" else arguments[name] for name in sources]
        operands += [] if rows is None else [rows]
        self.addressed = Addressed(operands, -1 if out is None else len(inputs), len(inputs))
        like = values[len(inputs) - 1]
        compiled: Any = native.compiled()
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # from torch 2.10 on
        self.repeated = compiled.Repeated(
            exchange=exchange,
            kinds=tuple(kinds),
            values=tuple(value if kind == _VALUE else None for kind, value in zip(kinds, values, strict=True)),
            tensors=tensors,
            operands=tuple(places),
            like=len(inputs) - 1,
            out=names.index("out"),
            scale=scale,
            fill=fill,
            limit=SCALE_LIMIT_F32,
            device=current.ordinal(values[0]),
            bumps=out is not None and not out.is_inference(),
            is_like=likeness.matcher(*tensors, layout=not compiled.is_exchange(exchange)),
            find=self.addressed.find,
            new_result=_maker(like, tuple(like.shape), result.dtype),
            new_rows=None if rows is None else _maker(like, tuple(rows.shape), rows.dtype),
            new_scratch=new_scratch,
            records=torch.is_grad_enabled if any(tensor.requires_grad for tensor in tensors) else None,
            recorded=recorded,
            dispatch_modes=torch._C._len_torch_dispatch_stack,
            forward_ad=forward_ad,
            exchange_device=current.exchange_device,
            restore_device=current.restore_device,
            stream_of=current.stream,
            increment_version=current.increment_version,
        )
        self.run: Callable[..., Any] = self.repeated.run
        self.knows: Callable[..., bool] = self.repeated.knows
        """Whether values are the arguments of such a call, at any addresses."""

    def add(self, executable: Executable, addresses: tuple[int, ...]) -> None:
        """Register the executable for operands with these offsets from 16-byte boundaries; a new result is aligned."""
        self.addressed.add(executable, addresses)


def unknown(*_: object) -> None:
    """Stands in for `Known.run` until there has been a call."""


def is_number(value: Any) -> bool:
    """A float, one of its subclasses such as numpy.float64, or an int. True does not count, and takes the slow path."""
    return isinstance(value, float) or type(value) is int


def _kind(name: str, value: Any) -> int:
    if isinstance(value, Tensor):
        return _TENSOR
    return _SCALE if name == "scale" else _VALUE


def _maker(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function that makes contiguous tensors of a shape and dtype on the device of `like`."""
    if like.is_contiguous() and (like.shape, like.dtype) == (shape, dtype):
        return torch.empty_like
    strides, device = torch.empty(shape, device="meta").stride(), like.device
    # Half the time of torch.empty.
    return lambda like: torch.empty_strided(shape, strides, dtype=dtype, device=device)
