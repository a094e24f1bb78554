"""setp, set and selp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import PACKED, Values, bf16_to_f32, flush, is_float
from ..lanes import Active
from ..operands import Step, Writer, reader, unsupported, writer
from ..program import Instruction, Operand, Pair
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
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_TRUE: dict[str, Any] = {
    "u16": np.uint16(0xFFFF),
    "u32": np.uint32(0xFFFFFFFF),
    "s32": np.int32(-1),
    "f16": np.float16(1),
    "bf16": np.uint16(0x3F80),
    "f32": np.float32(1),
}
_JOIN: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, kind: str) -> Function:
    """A comparison of two values. With NaN, plain forms are false, forms that end in u are true."""
    if name in _UNSIGNED_NAMES and not is_float(kind):
        return _ORDERED[_UNSIGNED_NAMES[name]]
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


def _compare(instruction: Instruction, kind: str) -> Function:
    """The comparison on values of `kind`, with .ftz; bf16 comes as bits."""
    found = modifiers(instruction, {*_JOIN, "ftz"} | set(instruction.parts[-2:]), skip=2)
    compare = comparison(instruction.parts[1], kind)
    if kind == "bf16":
        return lambda a, b: compare(bf16_to_f32(np.asarray(a)), bf16_to_f32(np.asarray(b)))
    if "ftz" in found:
        return lambda a, b: compare(flush(np.asarray(a)), flush(np.asarray(b)))
    return compare


def _joined(instruction: Instruction) -> Function | None:
    return next((_JOIN[part] for part in instruction.parts[2:] if part in _JOIN), None)


def _pair(operand: Operand) -> tuple[Writer, Writer | None]:
    if isinstance(operand, Pair):
        return writer(operand.first), writer(operand.second)
    return writer(operand), None


@operation("setp")
def build_setp(instruction: Instruction) -> Step:
    """setp.cmp{.and|.or|.xor}{.ftz}.type p{|q}, a, b{, {!}c}; packed types give p for the low half, q for the high."""
    kind = instruction.type
    halves = kind in PACKED
    compare = _compare(instruction, PACKED.get(kind, kind))
    join = _joined(instruction)
    operands = instruction.operands
    first, second = _pair(operands[0])
    a, b = reader(operands[1], kind), reader(operands[2], kind)
    other = reader(operands[3], "pred") if join else None
    if halves:
        return _setp_packed(kind, compare, first, second, a, b)

    def step(state: State, active: Active) -> None:
        result = compare(a(state, active), b(state, active))
        negated = ~result if second is not None else result
        if join is not None and other is not None:
            extra = other(state, active)
            result, negated = join(result, extra), join(negated, extra)
        first(state, active, result)
        if second is not None:
            second(state, active, negated)

    return step


def _setp_packed(kind: str, compare: Function, first: Writer, second: Writer | None, a: Any, b: Any) -> Step:
    dtype = np.float16 if kind == "f16x2" else np.uint16

    def step(state: State, active: Active) -> None:
        values = [np.ascontiguousarray(np.broadcast_to(read(state, active), active.size)) for read in (a, b)]
        result = compare(*[value.view(dtype) for value in values]).reshape(-1, 2)
        first(state, active, result[:, 0])
        if second is not None:
            second(state, active, result[:, 1])

    return step


@operation("set")
def build_set(instruction: Instruction) -> Step:
    """set.cmp{.ftz}.dtype.stype d, a, b: all ones, or 1.0 for a float, where the comparison holds."""
    result, kind = instruction.parts[-2:]
    if _joined(instruction):
        raise unsupported("set with a boolean operator")
    compare = _compare(instruction, PACKED.get(kind, kind))
    if kind in PACKED:
        return elementwise(instruction, _set_packed(kind, result, compare), kind)
    true = _TRUE[result]
    return elementwise(instruction, lambda a, b: np.where(compare(a, b), true, true.dtype.type(0)), kind)


def _set_packed(kind: str, result: str, compare: Function) -> Function:
    if result not in (kind, "u32", "s32"):
        raise unsupported(f"set.{result}.{kind}")
    true = np.uint16({"f16x2": 0x3C00, "bf16x2": 0x3F80}[kind] if result == kind else 0xFFFF)
    dtype = np.float16 if kind == "f16x2" else np.uint16

    def apply(a: Values, b: Values) -> Values:
        size = max(np.size(a), np.size(b))
        halves = [np.ascontiguousarray(np.broadcast_to(each, size)).view(dtype) for each in (a, b)]
        return np.where(compare(*halves), true, np.uint16(0)).view(np.uint32)

    return apply


@operation("selp")
def build_selp(instruction: Instruction) -> Step:
    modifiers(instruction, ())
    kind = instruction.type
    return elementwise(instruction, lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"))
