"""setp and selp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import DTYPE, PACKED, bf16_to_f32, is_float
from ..lanes import Active
from ..operands import Step, reader, unsupported, writer
from ..program import Instruction, Pair
from ..spaces import State
from .registry import elementwise, modifiers, operation

Function = Callable[..., Any]
_ORDERED: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def comparison(name: str, kind: str) -> Function:
    """A comparison of two values. With NaN, plain forms are false, forms that end in u are true."""
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name in _ORDERED:
        plain = _ORDERED[name]
        if name == "ne" and is_float(kind):  # numpy's != is the unordered form
            return lambda a, b: plain(a, b) & ~(np.isnan(a) | np.isnan(b))
        return plain
    if name[-1] == "u" and name[:-1] in _ORDERED:
        ordered = _ORDERED[name[:-1]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    raise unsupported(f"comparison .{name}")


def _decoded(kind: str, compare: Function) -> Function:
    """The comparison of values as registers hold them: bf16 comes as bits."""
    if kind != "bf16":
        return compare
    return lambda a, b: compare(bf16_to_f32(np.asarray(a)), bf16_to_f32(np.asarray(b)))


@operation("setp")
def build_setp(instruction: Instruction) -> Step:
    """setp.cmp.type p, a, b; packed types give p|q: p for the low half, q for the high."""
    modifiers(instruction, (), skip=2)
    name, kind = instruction.parts[1], instruction.type
    if kind in ("f16x2", "bf16x2"):
        return _setp_packed(instruction, _decoded(PACKED[kind], comparison(name, PACKED[kind])))
    return elementwise(instruction, _decoded(kind, comparison(name, kind)), kind)


def _setp_packed(instruction: Instruction, compare: Function) -> Step:
    target, *sources = instruction.operands
    if not isinstance(target, Pair):
        raise unsupported("a packed comparison with one destination")
    low, high = writer(target.first), writer(target.second)
    a, b = (reader(source, instruction.type) for source in sources)
    dtype = DTYPE[PACKED[instruction.type]]

    def step(state: State, active: Active) -> None:
        values = [np.ascontiguousarray(np.broadcast_to(read(state, active), active.size)) for read in (a, b)]
        result = compare(*[value.view(dtype) for value in values]).reshape(-1, 2)
        low(state, active, result[:, 0])
        high(state, active, result[:, 1])

    return step


@operation("selp")
def build_selp(instruction: Instruction) -> Step:
    modifiers(instruction, ())
    kind = instruction.type
    return elementwise(instruction, lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"))
