"""The arguments of the operators, and their conversion: for what is a number or a tensor to a function, operators have
two.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .checks.band import window_bounds
from .checks.values import accumulation
from .modes import is_followed

Arguments = dict[str, Any]
_REQUIRED = object()


def by_name(op: str, values: tuple, default: Any = _REQUIRED) -> Arguments:
    """Values in the order of the arguments of torch.ops.softmax_ops.<op>, by their names.

    Those left out at the end become what the operator has by default, or `default`.
    """
    arguments = _arguments(op)
    given = {each.name: each.default_value if default is _REQUIRED else default for each in arguments}
    return given | dict(zip(given, values, strict=False))


@cache
def _arguments(op: str) -> Any:
    return getattr(torch.ops.softmax_ops, op).default._schema.arguments


def in_order(op: str, given: Arguments) -> tuple:
    """`by_name` undone."""
    return tuple((by_name(op, ()) | given).values())


def to_operator(op: str, rows: Tensor, arguments: Arguments) -> Arguments:
    """The arguments of a function as those of an operator, for rows like x or y.

    Built as one new dictionary, because torch.compile before 2.5 cannot trace one that is modified.
    """
    left, right = window_bounds(op, arguments["window"])
    scale, offset = arguments["scale"], arguments["causal_offset"]
    scale_tensor = scale if on_device(scale) else None
    offset_tensor = offset if on_device(offset) else None
    scale = as_float(scale) if scale_tensor is None else 1.0
    offset = as_int(offset) if offset_tensor is None else None
    check_width(op, causal_offset=offset, window_left=left, window_right=right)
    return {
        **{name: value for name, value in arguments.items() if name != "window"},
        **{"scale": scale, "scale_tensor": scale_tensor, "causal_offset": offset, "offset_tensor": offset_tensor},
        **{"left": left, "right": right, "softcap": as_float(arguments["softcap"])},
    }


def as_float(value: Any) -> Any:
    """A real number as the float or symbol that operators take. torch.compile traces numpy's numbers as arrays."""
    return value if value is None or isinstance(value, (float, torch.SymFloat)) else float(value)


def in_graph(scale: Any, rows: Tensor) -> Any:
    """A scale as a call takes it that is being traced: one in a 0-d CPU tensor, whose value only the graph knows, moves
    to the device of the rows."""
    if isinstance(scale, Tensor) and scale.dim() == 0 and scale.device.type == "cpu":
        return scale.to(rows.device, accumulation(rows)).reshape(1)
    return scale


def as_int(value: Any) -> Any:
    """The same for an integer; what a 0-d tensor holds is a symbol while torch.export traces."""
    number = value.item() if isinstance(value, Tensor) else value
    return number if number is None or isinstance(number, (int, torch.SymInt)) else int(number)


def check_width(op: str, **numbers: Any) -> None:
    """Refuse integers that operators cannot take."""
    for name, value in numbers.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(
                f"{op}: {name} is {value}; want an integer of 64 bits where a call goes through an operator: its "
                "effect ends at the number of rows and columns"
            )


def from_operator(given: Arguments) -> Arguments:
    """`to_operator` undone: the arguments of an operator as those of a function. A tensor of one element stays a
    tensor, even on the CPU."""
    names = ("scale_tensor", "offset_tensor", "left", "right")
    scale, offset, left, right = (given[name] for name in names)
    found = {name: value for name, value in given.items() if name not in names} | {"window": (left, right)}
    found |= {} if scale is None else {"scale": _with_a_dimension(scale)}
    return found | ({} if offset is None else {"causal_offset": _with_a_dimension(offset)})


def for_checks(given: Arguments) -> Arguments:
    """`from_operator` for the checks: without batch_invariant."""
    return {name: value for name, value in checkable(from_operator(given)).items() if name != "batch_invariant"}


def checkable(arguments: Arguments) -> Arguments:
    """The arguments of a function as checks take them, without `out`. A scale or an offset that a transform follows is
    not to be read, as a 0-d tensor on the CPU would be."""
    found = {name: concrete(value) for name, value in arguments.items()} | {"out": None}
    of_tensors = {name: found[name] for name in ("scale", "causal_offset") if on_device(found[name])}
    return found | {name: _with_a_dimension(tensor) for name, tensor in of_tensors.items()}


def concrete(value: Any) -> Any:
    """An offset that varies is a valid one: every integer is."""
    return 0 if isinstance(value, torch.SymInt) else value


def _with_a_dimension(tensor: Tensor) -> Tensor:
    return tensor.reshape(1) if tensor.dim() == 0 else tensor


def on_device(value: Any) -> bool:
    """Whether a value stays a tensor. A 0-d CPU tensor is a number, unless a transform or forward mode sees it."""
    if not isinstance(value, Tensor):
        return False
    return value.dim() > 0 or value.device.type != "cpu" or (not is_dynamo_compiling() and is_followed(value))
