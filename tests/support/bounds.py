"""Bounds on how far rounding may move the results of the general kind, defined only here, for kernels and CPU alike.

Each operation that rounds counts with the magnitude of its result, in unit roundoffs u of the accumulation type
(`reference.FORMATS`). What is the same for all scores, exp and the final rounding, is in `reference.TOLERANCE_ULP`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.support import reference
from tests.support.reference import Array, General

CANCELLED_CAP = 10.0
"""Bound on the error of the kernels' cap - 2 cap / (1 + e), e = exp(2 s / cap), in roundoffs of the cap.

1 for s, 1 for the last difference; 2 cap / (1 + e) <= 2 cap contributes 3 (the sum 1, `rcp` 2) and the error of e:
four roundings of its exponent and 2^1.5 of `ex2`. The worst case is 2 s / cap = -2, with 9.2."""

TANH = 8.0
"""Bound on the error of a score capped by means of tanh, as on the CPU, in roundoffs of the result: 1 for the quotient,
1 for the product, some for tanh, and 1 for s, whose error is |s| tanh'(s / cap) <= |cap tanh(s / cap)|."""

SUM = 8.0
"""Bound on the error of a sum of K terms, in roundoffs of the sum. A term that outweighs the others is added to in some
tens of steps, each off by up to 1: serial ones of a lane, then a tree. 3.4 have been seen, in rows of 4096."""


class Forward(NamedTuple):
    """Errors in roundoffs: two relative ones, for the `rounding` of `assert_close`, and an absolute one."""

    y: Array  # [..., Q, K] relative
    log_y: Array  # [..., Q, K] relative
    lse: Array  # [..., Q] absolute


def forward(found: General, capped: ArrayLike | None = None) -> Forward:
    """Bounds for y, log y and lse. `capped` is the error of the scores after a softcap, in roundoffs.

        e_j = |s_j| + |slope distance| + |s_j - slope distance| + |z_j| + 2 |z_j - m|

    counts the roundings on the way to exp(z - m): the product (or softcap), the slope, the sums (where something is
    added), then those of `reference.score_rounding`. The absolute error of an exponent is the relative error of its
    exponential, and the relative error of the sum is the mean over its terms:

        common = sum_k y_k e_k,         y_j: e_j + common
        log(sum):                       E = common + 8 + 2 |lse - m|
        lse = m + log(sum):             E + |lse|
        log y_j = z_j - m - log(sum):   (e_j + E + 2 |z_j - m| + |lse - m|) / |log y_j| + 1

    E contains the roundings of the sum and a unit in the last place of its logarithm; the rest is the rounding of
    additions. A sink adds less than one to the mean, 2 |sink - m| exp(sink - m), which the base tolerance covers.
    """
    e = _exponent(found, capped)
    common = (np.where(_representable(found), found.y, 0.0) * e).sum(axis=-1, keepdims=True)
    y = np.where(_representable(found), e + common, 0.0)
    size = np.abs(np.where(np.isfinite(found.log_y), found.log_y, np.inf))
    with np.errstate(invalid="ignore"):
        log_sum = _finite(np.abs(found.lse - found.largest))
        exponent = _finite(np.abs(found.z - found.largest[..., None]))
    lse = common[..., 0] + SUM + 2 * log_sum
    log_y = (e + lse[..., None] + 2 * exponent + log_sum[..., None]) / np.maximum(size, 1e-30) + 1
    return Forward(y, log_y, lse + _finite(np.abs(found.lse)))


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


def _exponent(found: General, capped: ArrayLike | None) -> Array:
    """[..., Q, K] e_j of `forward`; 0 if no finite score is visible."""
    with np.errstate(invalid="ignore", over="ignore"):
        sloped = found.s - found.away
        e = np.abs(found.s) if capped is None else np.asarray(capped)
        e = e + np.where(found.away != 0, np.abs(found.away) + np.abs(sloped), 0.0)
        e = e + np.where(found.z != sloped, np.abs(found.z), 0.0)
        e = e + 2 * np.abs(found.z - found.largest[..., None])
    counted: Array = np.where(found.visible & np.isfinite(e), e, 0.0)
    return counted


def _representable(found: General) -> NDArray[np.bool_]:
    """[..., Q, K] True where the accumulation type can tell y from 0."""
    least = 2.0**-150 if found.y.dtype == np.float64 else np.ldexp(np.longdouble(1), -1075)
    return np.asarray(found.y > least)  # false for NaN


class Backward(NamedTuple):
    """What dx's errors are relative to, and the errors of d."""

    magnitude: Array  # [..., Q, K] for dx, the `magnitude` of `assert_close`
    d: Array  # [..., Q] absolute error in roundoffs


def backward(
    dy: ArrayLike,
    y: ArrayLike,
    *,
    scale: ArrayLike = 1.0,
    softcap: float | None = None,
    lse: ArrayLike | None = None,
    grad_lse: ArrayLike | None = None,
    log: bool = False,
    lengths: ArrayLike | None = None,
    offset: ArrayLike = 0,
    left: int | None = None,
    right: int | None = None,
) -> Backward:
    """Takes the arguments of `reference.general_backward`. Errors are relative to the terms of the differences:

        D = sum |y dy| + |grad_lse|,    dx: |scale| y (|dy| + D),    d: 8 D
        log y:  D = sum |dy| + |grad_lse|,    dx: |scale| (|dy| + exp(log y) D)

    A softcap multiplies by 1 - t^2, t = (log y + lse) / softcap, which the rounding of t moves by 2 |t| (|log y| +
    |lse|) / softcap roundoffs: this is counted as part of the magnitude, at most all of it.
    """
    given = np.asarray(y)
    seen = reference.within(given.shape, lengths, offset, left, right) & ~np.isneginf(given)
    size = np.where(seen, np.abs(dy), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(seen, np.exp(given) if log else given, 0.0)
        total = (size if log else p * size).sum(axis=-1) + np.abs(0.0 if grad_lse is None else grad_lse)
        magnitude = size + p * total[..., None] if log else p * (size + total[..., None])
        magnitude = np.abs(scale)[..., None] * magnitude
        if softcap:
            log_y, known = given if log else np.log(p), np.asarray(0.0 if lse is None else lse)[..., None]
            moved = 2 * np.abs(log_y + known) * (np.abs(log_y) + np.abs(known)) / softcap**2
            magnitude = magnitude * (1 + np.minimum(np.where(np.isfinite(moved), moved, 0.0), 1.0))
    return Backward(magnitude, SUM * np.where(np.isfinite(total), total, 0.0))
