"""Floating-point arithmetic. NaN, infinity, subnormal numbers and signed zero follow the PTX manual.

Approximate functions (.approx, .full) are computed to full precision: a kernel must not depend on their error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import F16_NAN, F32_NAN, PACKED, Values, bf16_to_f32, f32_to_bf16, flush
from ..operands import Step, unsupported
from ..program import Instruction
from ..rounding import (
    bf16_fma,
    fma_f64,
    product_sum_to_odd,
    round_f16,
    round_f32,
    sum_to_odd,
)
from .registry import elementwise, modifiers, operation, packed

Function = Callable[..., Any]
_MODES = ("rn", "rz", "rm", "rp")
_KNOWN = {*_MODES, "ftz", "sat", "relu", "approx", "full", "NaN"}


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


def _folded(function: Function) -> Function:
    """Extends min or max to three operands."""
    return lambda a, b, *rest: function(function(a, b), *rest) if rest else function(a, b)


_EXACT: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "abs": np.abs,
    "min": _folded(minimum),
    "max": _folded(maximum),
    "sqrt": np.sqrt,
    "rcp": lambda a: a.dtype.type(1) / a,
    "rsqrt": _in_f64(lambda a: 1 / np.sqrt(a)),
    "ex2": _in_f64(np.exp2),
    "lg2": _in_f64(np.log2),
    "sin": _in_f64(np.sin),
    "cos": _in_f64(np.cos),
    "tanh": _in_f64(np.tanh),
    "copysign": lambda a, b: np.copysign(b, a),
}
_DIRECTED: dict[str, Function] = {
    "add": lambda a, b: sum_to_odd(a.astype(np.float64), b.astype(np.float64)),
    "sub": lambda a, b: sum_to_odd(a.astype(np.float64), -b.astype(np.float64)),
    "mul": lambda a, b: a.astype(np.float64) * b.astype(np.float64),
    "fma": product_sum_to_odd,
    "mad": product_sum_to_odd,
}


def _fma_f32(a: Values, b: Values, c: Values) -> Values:
    return round_f32(product_sum_to_odd(a, b, c))


_FMA: dict[str, Function] = {
    "f16": lambda a, b, c: round_f16(product_sum_to_odd(a, b, c)),
    "f32": _fma_f32,
    "f64": fma_f64,
}


def scalar_function(name: str, kind: str, found: set[str]) -> Function:
    """The operation on values of one float type, with all its modifiers applied."""
    mode = next((mode for mode in _MODES if mode in found), "rn")
    if kind == "bf16":
        function = _bf16_function(name, found)
    else:
        function = _native_function(name, kind, mode)
        if "NaN" in found:
            function = _or_nan(function)
    if "ftz" in found and kind != "bf16":
        function = _flushed(function)
    if "sat" in found:
        function = _clamped(function)
    if "relu" in found:
        function = _relu(function, kind)
    return function


def _native_function(name: str, kind: str, mode: str) -> Function:
    if mode != "rn":
        if kind != "f32" or name not in _DIRECTED:
            raise unsupported(f"rounding mode .{mode} of {name}.{kind}")
        exact = _DIRECTED[name]
        return lambda *values: round_f32(exact(*values), mode)
    if name in ("fma", "mad"):
        return _FMA[kind]
    return _EXACT[name]


def _bf16_function(name: str, found: set[str]) -> Function:
    """The operation on bits: computed in float32, or fused in float64, then rounded once."""
    if name in ("fma", "mad"):
        return bf16_fma
    if name in ("neg", "abs"):
        return (lambda a: a ^ np.uint16(0x8000)) if name == "neg" else (lambda a: a & np.uint16(0x7FFF))
    function = _or_nan(_EXACT[name]) if "NaN" in found else _EXACT[name]
    return lambda *bits: f32_to_bf16(np.asarray(function(*[bf16_to_f32(each) for each in bits])))


def _flushed(function: Function) -> Function:
    return lambda *values: flush(np.asarray(function(*[flush(np.asarray(value)) for value in values])))


def _clamped(function: Function) -> Function:
    """.sat: to [0, 1], NaN to +0."""

    def apply(*values: Values) -> Values:
        result = function(*values)
        return np.where(result > 0, np.minimum(result, result.dtype.type(1)), result.dtype.type(0))

    return apply


def _relu(function: Function, kind: str) -> Function:
    """.relu: negative results become 0, NaN stays (canonical)."""
    if kind not in ("f16", "bf16"):
        raise unsupported(f".relu on .{kind}")

    def apply(*values: Values) -> Values:
        bits = np.asarray(function(*values)).view(np.uint16)
        dtype = np.float16 if kind == "f16" else np.uint16
        number = bits.view(np.float16) if kind == "f16" else bf16_to_f32(bits)
        kept = np.where(np.isnan(number), F16_NAN, np.where(number > 0, bits, np.uint16(0)))
        return kept.astype(np.uint16).view(dtype)

    return apply


def _gross_reciprocal(a: Values) -> Values:
    """rcp.approx.ftz.f64: takes the upper halves of numbers, gives the upper half of the result; subnormals are 0."""

    def upper(values: Values) -> Values:
        halves = values.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)
        return flush(halves.view(np.float64))

    return upper(np.asarray(1 / upper(a)))


@operation("fma", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
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


@operation("copysign")
def build_copysign(instruction: Instruction) -> Step:
    return elementwise(instruction, _EXACT["copysign"], instruction.type)


@operation("testp")
def build_testp(instruction: Instruction) -> Step:
    tests: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
    }
    return elementwise(instruction, tests[instruction.parts[1]], instruction.type)
