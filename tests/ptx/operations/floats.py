"""Floating-point arithmetic. NaN, infinity, subnormal numbers and signed zero follow the PTX manual.

Approximate functions are computed to full precision: a kernel must not depend on their error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import F16_NAN, F32_NAN, PACKED, Values, bf16_to_f32, f32_to_bf16, flush
from ..operands import Step, unsupported
from ..program import Instruction
from ..rounding import fma_bf16, fma_f16, fma_f32, fma_f32_down, fma_f64
from .registry import elementwise, modifiers, operation, packed

Function = Callable[..., Any]
_KNOWN = {"rn", "rm", "ftz", "approx", "NaN"}


def _in_f64(function: Function) -> Function:
    """Computes in float64 and rounds once to the type of the argument."""
    return lambda a: function(a.astype(np.float64)).astype(a.dtype)


def maximum(a: Values, b: Values) -> Values:
    """The larger of the two; prefers a number to NaN, and +0 to -0."""
    return _pick(np.fmax(a, b), a, b, np.bitwise_and)


def minimum(a: Values, b: Values) -> Values:
    return _pick(np.fmin(a, b), a, b, np.bitwise_or)


def _pick(chosen: Values, a: Values, b: Values, join_signs: Function) -> Values:
    zero = (a == 0) & (b == 0)
    if not np.any(zero):
        return chosen
    bits = f"u{a.dtype.itemsize}"
    return np.where(zero, join_signs(a.view(bits), b.view(bits)).view(a.dtype), chosen)


def _or_nan(function: Function) -> Function:
    """.NaN: NaN if any source is NaN, with the canonical bits."""

    def apply(*values: Values) -> Values:
        found = np.isnan(values[0])
        for value in values[1:]:
            found = found | np.isnan(value)
        nan = (F16_NAN if values[0].dtype == np.float16 else F32_NAN).view(values[0].dtype)
        return np.where(found, nan, function(*values))

    return apply


_EXACT: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "abs": np.abs,
    "min": minimum,
    "max": maximum,
    "rcp": lambda a: a.dtype.type(1) / a,
    "ex2": _in_f64(np.exp2),
    "lg2": _in_f64(np.log2),
}
_BF16_SIGN: dict[str, Function] = {"neg": lambda a: a ^ np.uint16(0x8000), "abs": lambda a: a & np.uint16(0x7FFF)}
_FMA: dict[str, Function] = {"f16": fma_f16, "bf16": fma_bf16, "f32": fma_f32, "f64": fma_f64}


def scalar_function(name: str, kind: str, found: set[str]) -> Function:
    """The operation on values of one float type, with all its modifiers applied."""
    if "rm" in found:
        if (name, kind) != ("fma", "f32"):
            raise unsupported(f"rounding mode .rm of {name}.{kind}")
        function: Function = fma_f32_down
    elif name == "fma":
        function = _FMA[kind]
    elif kind == "bf16" and name in _BF16_SIGN:
        function = _BF16_SIGN[name]
    else:
        function = _or_nan(_EXACT[name]) if "NaN" in found else _EXACT[name]
        if kind == "bf16":
            function = _in_f32(function)
    return _flushed(function) if "ftz" in found and kind != "bf16" else function


def _in_f32(function: Function) -> Function:
    """The function on the bits of bf16: computed in float32, then rounded once."""
    return lambda *bits: f32_to_bf16(np.asarray(function(*[bf16_to_f32(each) for each in bits])))


def _flushed(function: Function) -> Function:
    return lambda *values: flush(np.asarray(function(*[flush(np.asarray(value)) for value in values])))


def _gross_reciprocal(a: Values) -> Values:
    """rcp.approx.ftz.f64: takes the upper halves of numbers, gives the upper half of the result; subnormals are 0."""

    def upper(values: Values) -> Values:
        halves = values.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)
        return flush(halves.view(np.float64))

    return upper(np.asarray(1 / upper(a)))


@operation("fma", "abs", "rcp", "ex2", "lg2")
def build_float(instruction: Instruction) -> Step:
    name, kind = instruction.parts[0], instruction.type
    found = modifiers(instruction, _KNOWN)
    if name == "rcp" and kind == "f64" and "approx" in found:
        return elementwise(instruction, _gross_reciprocal, kind)
    if kind in PACKED:
        function = packed(kind, scalar_function(name, PACKED[kind], found))
    else:
        function = scalar_function(name, kind, found)
    return elementwise(instruction, function, kind)
