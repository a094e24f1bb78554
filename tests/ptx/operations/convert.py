"""cvt: between integers, floats and packed pairs, rounded to nearest even."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import DTYPE, PACKED, Values, bf16_to_f32, canonical_f16, f32_to_bf16, is_float
from ..operands import Step, unsupported
from ..program import Instruction
from ..rounding import f64_to_bf16
from .registry import elementwise, operation

Function = Callable[[Any], Any]


@operation("cvt")
def build_cvt(instruction: Instruction) -> Step:
    """cvt{.rn}.to.from d, a{, b}; two sources make a packed pair, a in the upper half. cvt.sat.f32.f32 d, a."""
    to, kind = instruction.parts[-2:]
    found = instruction.parts[1:-2]
    if found == ("sat",) and to == kind == "f32":
        return elementwise(instruction, _clamped, kind)
    if strange := set(found) - {"rn"}:
        raise unsupported(f"modifier .{' .'.join(sorted(strange))}")
    known = to in DTYPE and kind in DTYPE and kind not in PACKED
    if not known or (is_float(kind) and not is_float(PACKED.get(to, to))):
        raise unsupported(f"conversion from .{kind} to .{to}")
    if to in PACKED:
        return elementwise(instruction, _pair(_conversion(PACKED[to], kind)), kind)
    return elementwise(instruction, _conversion(to, kind), kind)


def _clamped(value: Values) -> Values:
    """.sat: to [0, 1], NaN to +0."""
    return np.where(value > 0, np.minimum(value, np.float32(1)), np.float32(0))


def _pair(convert: Function) -> Callable[[Any, Any], Values]:
    def apply(a: Any, b: Any) -> Values:
        high, low = (np.asarray(convert(value)).view(np.uint16).astype(np.uint32) for value in (a, b))
        return np.asarray(high << np.uint32(16) | low)

    return apply


def _conversion(to: str, kind: str) -> Function:
    """The conversion of values of type `kind` to type `to`; bf16 as bits."""
    if not is_float(to):
        return lambda a: np.asarray(a).astype(DTYPE[to])
    if kind == "bf16":
        return lambda a: _round(bf16_to_f32(np.asarray(a)), to)
    if is_float(kind) or to == "f32":
        return lambda a: _round(np.asarray(a), to)
    return lambda a: _round(np.asarray(a).astype(np.float64), to)


def _round(value: Values, to: str) -> Values:
    if to == "bf16":
        return f64_to_bf16(value) if value.dtype == np.float64 else f32_to_bf16(value.astype(np.float32))
    rounded = value.astype(DTYPE[to])
    return canonical_f16(rounded) if to == "f16" else rounded
