"""Correctly rounded arithmetic on numpy arrays: fused multiply-add, and rounding through a wider type.

A float64 result that is *rounded to odd* (its last bit is set if anything was cut off) can be rounded again to
float32 or less, in any mode, as if the exact value had been rounded once: float64 has more than two extra bits.
"""

from __future__ import annotations

import numpy as np

from .formats import Values, bf16_to_f32, f32_to_bf16

_SPLIT = np.float64(134217729.0)  # 2**27 + 1: halves a float64 significand exactly


def two_sum(a: Values, b: Values) -> tuple[Values, Values]:
    """a + b = sum + error, exactly (unless the sum overflows)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Values, b: Values) -> tuple[Values, Values]:
    """a * b = product + error, exactly (for |a|, |b| < 2**995 and products above 2**-960)."""
    product = a * b
    scaled_a, scaled_b = a * _SPLIT, b * _SPLIT
    a_high, b_high = scaled_a - (scaled_a - a), scaled_b - (scaled_b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def sum_to_odd(a: Values, b: Values) -> Values:
    """a + b in float64, rounded to odd."""
    total, error = two_sum(a, b)
    inexact = np.abs(error) > 0  # False if the sum is not finite: then the error is NaN
    if not np.any(inexact):
        return total
    bits = np.asarray(total).view(np.int64)
    away = np.where((error > 0) == (total > 0), np.int64(1), np.int64(-1))
    return np.where(inexact & (bits & 1 == 0), bits + away, bits).view(np.float64)


def product_sum_to_odd(a: Values, b: Values, c: Values) -> Values:
    """a * b + c of values of 24 bits or less, rounded to odd in float64: their product is exact there."""
    return sum_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))


def fma_f64(a: Values, b: Values, c: Values) -> Values:
    """a * b + c with one rounding (Boldo and Melquiond, 2008); plain arithmetic if an intermediate is out of range."""
    plain = a * b + c
    product, low = two_product(a, b)
    high, error = two_sum(c, low)
    total, rest = two_sum(product, high)
    fused = total + sum_to_odd(error, rest)
    return np.where(np.isfinite(fused), fused, plain)


def fma_f32(a: Values, b: Values, c: Values) -> Values:
    return product_sum_to_odd(a, b, c).astype(np.float32)


def fma_f32_down(a: Values, b: Values, c: Values) -> Values:
    """.rm: rounded towards minus infinity."""
    exact = product_sum_to_odd(a, b, c)
    nearest = exact.astype(np.float32)
    return np.where(nearest.astype(np.float64) > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def fma_f16(a: Values, b: Values, c: Values) -> Values:
    return product_sum_to_odd(a, b, c).astype(np.float16)


def fma_bf16(a: Values, b: Values, c: Values) -> Values:
    """Fused multiply-add on the bits of bfloat16."""
    return f64_to_bf16(product_sum_to_odd(bf16_to_f32(a), bf16_to_f32(b), bf16_to_f32(c)))


def f64_to_bf16(value: Values) -> Values:
    """float64 (exact or rounded to odd) to the bits of bfloat16, by way of a float32 that is rounded to odd."""
    nearest = value.astype(np.float32)
    back = nearest.astype(np.float64)
    cut = np.where(np.abs(back) > np.abs(value), np.nextafter(nearest, np.float32(0)), nearest)
    inexact = (back != value) & np.isfinite(cut)
    return f32_to_bf16((cut.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32))
