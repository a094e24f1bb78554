"""cvt: between integers, floats and packed pairs, with every rounding and saturation rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import (
    DTYPE,
    PACKED,
    Values,
    bf16_to_f32,
    bits_of,
    canonical_f16,
    f32_to_bf16,
    flush,
    is_float,
    is_signed,
)
from ..operands import Step, unsupported
from ..program import Instruction
from ..rounding import round_bf16, round_f16, round_f32
from .registry import elementwise, operation

Function = Callable[[Any], Any]
_INTEGRAL: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_MODES = ("rn", "rz", "rm", "rp")


@operation("cvt")
def build_cvt(instruction: Instruction) -> Step:
    """cvt{.rounding}{.ftz}{.sat}{.relu}.to.from d, a{, b}; two sources make a packed pair, a in the upper half."""
    to, kind = instruction.parts[-2:]
    found = set(instruction.parts[1:-2])
    if strange := found - {*_INTEGRAL, *_MODES, "ftz", "sat", "relu", "satfinite"}:
        raise unsupported(f"modifier .{' .'.join(sorted(strange))}")
    if to not in DTYPE or kind not in DTYPE or "satfinite" in found:
        raise unsupported(f"conversion from .{kind} to .{to}")
    if to in PACKED:
        return elementwise(instruction, _pair(conversion(PACKED[to], kind, found)), kind)
    return elementwise(instruction, conversion(to, kind, found), kind)


def _pair(convert: Function) -> Callable[[Any, Any], Values]:
    def apply(a: Any, b: Any) -> Values:
        high, low = (np.asarray(convert(value)).view(np.uint16).astype(np.uint32) for value in (a, b))
        return np.asarray(high << np.uint32(16) | low)

    return apply


def conversion(to: str, kind: str, found: set[str]) -> Function:
    """The conversion of values of type `kind` to type `to`."""
    if is_float(kind):
        convert = _float_to_float(to, kind, found) if is_float(to) else _float_to_integer(to, kind, found)
    else:
        convert = _integer_to_float(to, found) if is_float(to) else _integer_to_integer(to, kind, found)
    return convert


# ---- from integers


def _integer_to_integer(to: str, kind: str, found: set[str]) -> Function:
    dtype = DTYPE[to]
    if "sat" not in found:
        return lambda a: np.asarray(a).astype(dtype)
    low, high = max(np.iinfo(dtype).min, np.iinfo(DTYPE[kind]).min), min(np.iinfo(dtype).max, np.iinfo(DTYPE[kind]).max)
    return lambda a: np.clip(np.asarray(a), low, high).astype(dtype)


def _integer_to_float(to: str, found: set[str]) -> Function:
    mode = _mode(found)
    if to == "f32" and mode == "rn":
        return lambda a: np.asarray(a).astype(np.float32)
    return lambda a: _round(np.asarray(a).astype(np.float64), to, mode)


# ---- from floats


def _decoded(a: Any, kind: str, found: set[str]) -> Values:
    """The source as numpy floats."""
    value = bf16_to_f32(np.asarray(a)) if kind == "bf16" else np.asarray(a)
    return flush(value) if "ftz" in found and kind == "f32" else value


def _float_to_integer(to: str, kind: str, found: set[str]) -> Function:
    """Rounds to an integral value and clamps to the range of the result.

    NaN gives 0, but the lone top bit where either side has 64 bits.
    """
    name = next((name for name in _INTEGRAL if name in found), None)
    if name is None:
        raise unsupported("a conversion to an integer without .rni, .rzi, .rmi or .rpi")
    integral, dtype, width, signed = _INTEGRAL[name], DTYPE[to], bits_of(to), is_signed(to)
    low = -(2.0 ** (width - 1)) if signed else 0.0
    above = 2.0 ** (width - 1 if signed else width)
    top_bit = np.uint64(1 << width - 1).astype(dtype)
    of_nan = top_bit if kind == "f64" or width == 64 else dtype(0)

    def convert(a: Any) -> Values:
        value = integral(_decoded(a, kind, found).astype(np.float64))
        inside = (value >= low) & (value < above)
        result = np.where(inside, value, 0.0).astype(np.int64 if signed else np.uint64).astype(dtype)
        result = np.where(value >= above, np.iinfo(dtype).max, result)
        result = np.where(value < low, np.iinfo(dtype).min, result)
        return np.where(np.isnan(value), of_nan, result).astype(dtype)

    return convert


def _float_to_float(to: str, kind: str, found: set[str]) -> Function:
    mode = _mode(found)
    integral = next((function for name, function in _INTEGRAL.items() if name in found), None)

    def convert(a: Any) -> Values:
        value = _decoded(a, kind, found)
        if integral is not None:
            value = integral(value)
        if "sat" in found:
            value = np.where(value > 0, np.minimum(value, value.dtype.type(1)), value.dtype.type(0))
        if "relu" in found:
            value = np.where(value <= 0, value.dtype.type(0), value)
        result = _round(value, to, mode)
        return flush(result) if "ftz" in found and to == "f32" else result

    return convert


def _mode(found: set[str]) -> str:
    return next((mode for mode in _MODES if mode in found), "rn")


def _round(value: Values, to: str, mode: str) -> Values:
    """Floats to the type `to`; bf16 as bits."""
    if to == "f64":
        return value.astype(np.float64)
    if to == "f32":
        return value.astype(np.float32) if mode == "rn" or value.dtype != np.float64 else round_f32(value, mode)
    if mode in ("rm", "rp"):
        raise unsupported(f"rounding mode .{mode} to .{to}")
    if to == "f16":
        return canonical_f16(round_f16(value, mode))
    if value.dtype == np.float32 and mode == "rn":
        return f32_to_bf16(value)
    return round_bf16(value.astype(np.float32) if value.dtype == np.float16 else value, mode)
