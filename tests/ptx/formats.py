"""PTX types as numpy types, and the 16-bit and packed formats that numpy lacks."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Values: TypeAlias = (
    Any  # an array, one element per lane, or a numpy scalar for all lanes: numpy's types cannot express this
)

DTYPE: dict[str, Any] = {
    "pred": np.bool_,
    **{f"u{bits}": np.dtype(f"u{bits // 8}").type for bits in (8, 16, 32, 64)},
    **{f"b{bits}": np.dtype(f"u{bits // 8}").type for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}").type for bits in (8, 16, 32, 64)},
    "f16": np.float16,
    "bf16": np.uint16,  # stored as bits: see bf16_to_f32
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
    "f32x2": np.uint64,
    "f32": np.float32,
    "f64": np.float64,
}
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED: dict[int, Any] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOATS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}

TINIEST = {np.dtype(kind): np.finfo(kind).tiny for kind in (np.float16, np.float32, np.float64)}
"""The smallest normal numbers."""

F16_NAN, BF16_NAN, F32_NAN = np.uint16(0x7FFF), np.uint16(0x7FFF), np.uint32(0x7FFFFFFF)


def is_float(name: str) -> bool:
    return name in FLOATS


def is_signed(name: str) -> bool:
    return name[0] == "s"


def bits_of(name: str) -> int:
    """Width of a type in bits; a predicate has 1."""
    return 1 if name == "pred" else np.dtype(DTYPE[name]).itemsize * 8


def bf16_to_f32(bits: Values) -> Values:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(value: Values) -> Values:
    """Round to nearest even; NaN becomes the canonical NaN."""
    bits = value.view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(value), BF16_NAN, rounded.astype(np.uint16))


def canonical_f16(value: Values) -> Values:
    """Replaces every NaN by the one bit pattern that PTX's f16 conversions give."""
    nan = np.isnan(value)
    return np.where(nan, F16_NAN.view(np.float16), value) if nan.any() else value


def flush(value: Values) -> Values:
    """.ftz: subnormal numbers become zero with the same sign."""
    tiny = np.abs(value) < TINIEST[value.dtype]
    return np.where(tiny, np.copysign(value.dtype.type(0), value), value) if tiny.any() else value
