"""The only reference and the only tolerance table: the contract in numpy, more precise than any kernel.

Arrays are float64; for float64 tensors they are numpy.longdouble (64 mantissa bits on x86, 113 on aarch64 Linux).
`to_numpy` converts tensors without rounding. Dtypes have the names that kernels use: f16, bf16, f32, f64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Format(NamedTuple):
    """A binary floating-point format."""

    precision: int  # bits of the significand, including the hidden one
    min_exponent: int  # the smallest normal number is 2^min_exponent
    unit_roundoff: float  # of the accumulation type

    @property
    def smallest(self) -> float:
        """The smallest subnormal number."""
        return float(np.ldexp(1.0, self.min_exponent - self.precision + 1))

    @property
    def overflow(self) -> np.longdouble:
        """The smallest magnitude that rounds to infinity."""
        return np.ldexp(np.longdouble(2.0) - np.longdouble(2.0) ** -self.precision, 1 - self.min_exponent)


FORMATS = {
    "f16": Format(11, -14, 2.0**-24),
    "bf16": Format(8, -126, 2.0**-24),
    "f32": Format(24, -126, 2.0**-24),
    "f64": Format(53, -1022, 2.0**-53),
}

# Tolerance in units of the output's spacing at the expected value, for scores near 0. `tolerance_ulp` adds the
# contribution of rounding the scores themselves.
#   f16, bf16  Half a unit is the final rounding. All else happens in f32 (the 8 units below), where a unit is a 2^13th
#              or 2^16th of an output unit; 0.51 covers the worst case of a sum of some tens of serial terms, one f32
#              unit per term.
#   f32        Final rounding 0.5; exp 2 (CUDA documents 1 for expf, 2 for ex2.approx); sum 2 (random walk of some tens
#              of serial terms per lane, then a tree); reciprocal 1; and these relative errors are up to twice as many
#              units just below a power of two.
#   f64        The same operations in f64, exp documented at 1.
TOLERANCE_ULP = {"f16": 0.51, "bf16": 0.51, "f32": 8.0, "f64": 8.0}

# What may be flushed to 0 in addition. ex2.approx.ftz returns 0 below the smallest normal f32, 2^-126, which f16
# cannot represent (its smallest subnormal is 2^-24) and f64 does not use. Pass floor=0.0 if subnormals are kept.
ABSOLUTE_FLOOR = {"f16": 0.0, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 0.0}


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's exact values: float64 for f16, bf16, f32; longdouble for f64; bool and uint8 masks unchanged."""
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return np.asarray(tensor.numpy())
    values = tensor.to(torch.float64).numpy()
    return values.astype(np.longdouble) if tensor.dtype is torch.float64 else np.asarray(values)


def visible(
    shape: tuple[int, ...], mask: ArrayLike | None = None, causal_offset: int | None = None
) -> NDArray[np.bool_]:
    """[..., Q, K] True where a column takes part: mask is not exactly 1, and j <= i + causal_offset."""
    seen = np.ones(shape, dtype=np.bool_)
    if mask is not None:
        seen &= np.asarray(mask) != 1
    if causal_offset is not None:
        queries = shape[-2] if len(shape) > 1 else 1
        i, j = np.arange(queries)[:, None], np.arange(shape[-1])[None, :]
        seen &= (j - i <= causal_offset).reshape(shape[-2:] if len(shape) > 1 else shape)
    return seen


def softmax(
    x: ArrayLike,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    causal_offset: int | None = None,
    fill: float = -np.inf,
) -> Array:
    """exp(z - m) / sum exp(z - m) over the visible columns of x [..., Q, K] or [K], 0 elsewhere; z = scale * x.

    A row that sees nothing, or only -inf, is 0. A visible +inf or NaN makes its whole row NaN. With a finite fill,
    columns hidden by the mask count as visible and have the fill as their score.
    """
    x = _floating(x)
    z, seen = _scores(x, scale, mask, causal_offset, fill)
    if x.size == 0:
        return np.zeros_like(x)
    with np.errstate(invalid="ignore"):
        largest = np.max(np.where(seen, z, -np.inf), axis=-1, keepdims=True)
        weight = np.exp(np.where(seen & (z > -np.inf), z - largest, -np.inf))
        y = weight / np.where(np.isneginf(largest), 1.0, weight.sum(axis=-1, keepdims=True))
    poisoned = (seen & (np.isnan(z) | np.isposinf(z))).any(axis=-1, keepdims=True)
    result: Array = np.where(poisoned, np.nan, y)
    return result


def softmax_backward(dy: ArrayLike, y: ArrayLike, scale: float = 1.0, causal_offset: int | None = None) -> Array:
    """dx = scale * y * (dy - sum_j y_j dy_j) for dy, y [..., Q, K] or [K].

    With causal_offset, columns that are not visible are not read, and dx is 0 there. Columns hidden by a tensor mask
    have y = 0 and follow the formula: dx is 0 if dy is finite.
    """
    dy, y = _floating(dy), _floating(y)
    seen = visible(y.shape, None, causal_offset)
    dy, y = np.where(seen, dy, 0.0), np.where(seen, y, 0.0)
    with np.errstate(invalid="ignore"):
        dx: Array = scale * y * (dy - (y * dy).sum(axis=-1, keepdims=True))
    return dx


class General(NamedTuple):
    """The forward with everything that a call may ask for, including intermediate values."""

    y: Array  # [..., Q, K]
    log_y: Array  # [..., Q, K], -inf where y is 0 because nothing is visible
    lse: Array  # [..., Q] log of the row's sum, or [] for [K]
    s: Array  # [..., Q, K] scaled scores, capped
    away: Array  # [..., Q, K] slope * distance
    z: Array  # [..., Q, K] scores as they are compared
    largest: Array  # [..., Q] maximum over visible z and the sink, -inf without either
    visible: NDArray[np.bool_]  # [..., Q, K]


def general(
    x: ArrayLike,
    *,
    scale: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    offset: ArrayLike = 0,
    left: int | None = None,
    right: int | None = None,
    slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
) -> General:
    """Softmax of z over what is visible and a sink, for x [..., Q, K] or [K].

        s = scale * x, then softcap * tanh(s / softcap);    z = s - slope * |i + offset - j| + bias
        visible:    mask is not 1, j < length, i + offset - left <= j <= i + offset + right
        lse = log(sum over visible of exp(z) + exp(sink));    log y = z - lse;    y = exp(z - lse)

    scale broadcasts to x.shape[:-1], mask and bias to x; lengths and offset [B] = x.shape[0], slopes and sinks
    [H] = x.shape[-3].
    A row that sees nothing, or only -inf, is 0, its log -inf. A visible z, or a sink, of +inf or NaN makes a row NaN.
    """
    x = _floating(x)
    seen = visible(x.shape, mask) & within(x.shape, lengths, offset, left, right)
    with np.errstate(invalid="ignore", over="ignore"):
        s = _floating(scale)[..., None] * x
        s = s if softcap is None else softcap * np.tanh(s / softcap)
        away = np.zeros_like(x)
        if slopes is not None:
            distance = _positions(x.shape, offset) - np.arange(x.shape[-1])
            away = away + _floating(slopes)[:, None, None] * np.abs(distance)
        z = s - away
        z = z if bias is None else np.where(np.isneginf(_floating(bias)), -np.inf, z + _floating(bias))
        sink = np.full((1, 1), -np.inf) if sinks is None else _floating(sinks)[:, None, None]
        sink = np.broadcast_to(sink if x.ndim > 1 else sink[0], (*x.shape[:-1], 1))
        shown = np.where(seen, z, -np.inf)
        largest = np.maximum(np.max(shown, axis=-1, keepdims=True, initial=-np.inf), sink)
        finite = np.where(np.isneginf(largest), 0.0, largest)  # nothing is visible: exp(-inf - 0) = 0
        total = np.exp(shown - finite).sum(axis=-1, keepdims=True) + np.exp(sink - finite)
        with np.errstate(divide="ignore"):
            lse = largest + np.log(np.where(total == 0.0, 1.0, total))
        lse = np.where(np.isposinf(largest), np.nan, lse)  # NaN stays NaN
        log_y = np.where(np.isneginf(shown) & ~np.isnan(lse), -np.inf, shown - lse)
        y = np.exp(shown - finite) / np.where(total == 0.0, 1.0, total)
        y = np.where(np.isnan(lse), np.nan, y)
    return General(y, log_y, lse[..., 0], s, away, z, largest[..., 0], seen)


def general_backward(
    dy: ArrayLike,
    y: ArrayLike,
    *,
    scale: ArrayLike = 1.0,
    lengths: ArrayLike | None = None,
    offset: ArrayLike = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    lse: ArrayLike | None = None,
    grad_lse: ArrayLike | None = None,
    log: bool = False,
) -> tuple[Array, Array]:
    """(dx [..., Q, K], d [..., Q]) for the gradients dy of y and grad_lse of lse; with `log`, y and dy are log y's.

        d = sum y dy - grad_lse,    dz = y (dy - d);        of log y:  d = sum dy - grad_lse,  dz = dy - exp(log y) d
        dx = scale * dz * max(1 - (s / softcap)^2, 0),    s = log y + lse

    Sums are over visible columns; dy and y are not read in hidden ones. Where log y is -inf, dy is not read either.
    """
    dy, y = _floating(dy), _floating(y)
    seen = within(y.shape, lengths, offset, left, right)
    if log:
        seen = seen & ~np.isneginf(y)
    dy = np.where(seen, dy, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_y = np.where(seen, y if log else np.log(np.where(seen, y, 0.0)), -np.inf)
        y = np.where(seen, np.exp(y) if log else y, 0.0)
        d = (dy if log else y * dy).sum(axis=-1) - _floating(0.0 if grad_lse is None else grad_lse)
        dz = np.where(seen, dy - y * d[..., None], 0.0) if log else y * (dy - d[..., None])
        if softcap is not None:
            s = np.where(np.isneginf(log_y), 0.0, log_y + _floating(0.0 if lse is None else lse)[..., None])
            dz = dz * np.maximum(1.0 - (s / softcap) ** 2, 0.0)
        dx: Array = _floating(scale)[..., None] * dz
    return dx, d


def within(
    shape: tuple[int, ...], lengths: ArrayLike | None, offset: ArrayLike, left: int | None, right: int | None
) -> NDArray[np.bool_]:
    """[..., Q, K] True where j < lengths[b] and i + offset - left <= j <= i + offset + right, offset a number or
    [B]."""
    p, j = _positions(shape, offset), np.arange(shape[-1])
    band = (left is None or j >= p - left) & (right is None or j <= p + right) & (p == p)
    seen = np.broadcast_to(band if len(shape) > 1 else band[0], shape)
    if lengths is None:
        return seen
    return seen & (j < np.asarray(lengths).reshape(-1, *(1 for _ in shape[1:])))


def _positions(shape: tuple[int, ...], offset: ArrayLike) -> NDArray[np.int64]:
    """i + offset, for an offset [B] with the dimensions of the rows."""
    i = np.arange(shape[-2] if len(shape) > 1 else 1, dtype=np.int64)[:, None]
    moved = np.asarray(offset, np.int64)
    return i + (moved.reshape(-1, *(1 for _ in shape[1:])) if moved.ndim else moved)


def backward_magnitude(dy: ArrayLike, y: ArrayLike, scale: float = 1.0, causal_offset: int | None = None) -> Array:
    """|scale| * y * (|dy| + sum_j |y_j dy_j|): what dx's rounding errors are relative to, since the difference cancels.

    This is the `magnitude` of `assert_close` for the backward.
    """
    dy, y = np.abs(_floating(dy)), np.abs(_floating(y))
    seen = visible(y.shape, None, causal_offset)
    dy, y = np.where(seen, dy, 0.0), np.where(seen, y, 0.0)
    with np.errstate(invalid="ignore"):
        magnitude: Array = abs(scale) * y * (dy + (y * dy).sum(axis=-1, keepdims=True))
    return magnitude


def score_rounding(
    x: ArrayLike,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    causal_offset: int | None = None,
    fill: float = -np.inf,
) -> Array:
    """[..., Q, K] relative error of y caused by rounding the scores, in unit roundoffs; for `assert_close`.

    Rounding scale * x moves z by |z| roundoffs; rounding scale and z - m move the exponent by |z - m| each (the error
    of m itself cancels between numerator and sum). The absolute error of an exponent is the relative error of its
    exponential, so

        e_j = |z_j| + 2 |z_j - m|,     error of y_j <= e_j + sum_k y_k e_k.
    """
    x = _floating(x)
    z, seen = _scores(x, scale, mask, causal_offset, fill)
    y = softmax(x, scale, mask, causal_offset, fill)
    representable = y > (2.0**-150 if x.dtype == np.float64 else np.ldexp(np.longdouble(1), -1075))  # false for NaN
    counted = seen & representable
    largest = np.max(z, axis=-1, keepdims=True, where=counted, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        exponent = np.where(counted, np.abs(z) + 2 * np.abs(z - largest), 0.0)
    common = (np.where(counted, y, 0.0) * exponent).sum(axis=-1, keepdims=True)
    rounding: Array = np.where(counted, exponent + common, 0.0)
    return rounding


def tolerance_ulp(dtype: str, rounding: ArrayLike = 0.0) -> Array:
    """Error allowed in an output, in units of its spacing: that of the table, plus `score_rounding` in these units.

    A relative error of one unit roundoff u of the accumulation type is at most u * 2^precision units of the output.
    """
    form = FORMATS[dtype]
    tolerance: Array = TOLERANCE_ULP[dtype] + _floating(rounding) * form.unit_roundoff * 2.0**form.precision
    return tolerance


def spacing(value: ArrayLike, dtype: str) -> Array:
    """Distance between neighbouring numbers of the dtype at |value|; for small values and 0, that of its subnormals."""
    form = FORMATS[dtype]
    value = _floating(value)
    exponent = np.frexp(np.where(np.isfinite(value), value, 0.0))[1] - 1  # |value| in [2^exponent, 2^(exponent + 1))
    exponent = np.where(value == 0.0, form.min_exponent, np.maximum(exponent, form.min_exponent))
    distance: Array = np.ldexp(value.dtype.type(1.0), exponent - (form.precision - 1))
    return distance


def row_sum_tolerance(expected: ArrayLike, dtype: str) -> Array:
    """[..., Q, 1], or [1]: bound on |sum - 1| of a row that sees something: half a spacing for each output, and 16 u.

    K half spacings at 1/K would be too small by a factor of up to 2: for f16 and the row [1/2, 1/32 (16 times)],
    correctly rounded outputs add up to 1 + 1.17 times that.
    """
    rounding: Array = 0.5 * spacing(expected, dtype).sum(axis=-1, keepdims=True)
    return rounding + 16 * FORMATS[dtype].unit_roundoff


def ulp_error(actual: ArrayLike, expected64: ArrayLike, dtype: str, magnitude: ArrayLike | None = None) -> Array:
    """|actual - expected| in units of the dtype's spacing at |expected|, or at |magnitude| if given.

    Two NaN agree, and so do two infinities of the same sign; they differ from anything else by inf units. An expected
    number that the dtype rounds to infinity is one.
    """
    actual, expected = np.broadcast_arrays(_floating(actual), _floating(expected64))
    expected = np.where(np.abs(expected) >= FORMATS[dtype].overflow, np.copysign(np.inf, expected), expected)
    with np.errstate(invalid="ignore"):
        error = np.abs(actual - expected) / spacing(expected if magnitude is None else magnitude, dtype)
    agree = (np.isnan(actual) & np.isnan(expected)) | (actual == expected)
    units: Array = np.where(agree, 0.0, np.where(np.isnan(error), np.inf, error))
    return units


def assert_close(
    actual: torch.Tensor | ArrayLike,
    expected: ArrayLike,
    dtype: str,
    *,
    rounding: ArrayLike = 0.0,
    floor: float | None = None,
    magnitude: ArrayLike | None = None,
) -> None:
    """Raise AssertionError, naming the worst element, unless every element is within `tolerance_ulp(dtype, rounding)`.

    rounding   `score_rounding` of the inputs, [..., Q, K]; not for the backward.
    floor      absolute error that is always allowed; by default `ABSOLUTE_FLOOR` of the dtype.
    magnitude  what errors are relative to if not the expected value, [..., Q, K].
    """
    got = to_numpy(actual) if isinstance(actual, torch.Tensor) else _floating(actual)
    wanted = _floating(expected)
    if got.shape != wanted.shape:
        raise AssertionError(f"got shape {got.shape}, wanted {wanted.shape}")
    error = ulp_error(got, wanted, dtype, magnitude)
    with np.errstate(invalid="ignore"):
        near = np.abs(got - wanted) <= (ABSOLUTE_FLOOR[dtype] if floor is None else floor)
    allowed = np.broadcast_to(tolerance_ulp(dtype, rounding), error.shape)
    excess = np.where(near, 0.0, error / allowed)
    if excess.size and excess.max() > 1.0:
        at = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
        raise AssertionError(
            f"{dtype} element {at}: got {got[at]!r}, wanted {wanted[at]!r}, off by {float(error[at]):.4g} ULP where "
            f"{float(allowed[at]):.4g} are allowed; {int((excess > 1.0).sum())} of {excess.size} elements are off"
        )


def _scores(
    x: Array, scale: float, mask: ArrayLike | None, causal_offset: int | None, fill: float
) -> tuple[Array, NDArray[np.bool_]]:
    """z = scale * x, with fill where the mask hides, and which columns take part in the row; both [..., Q, K]."""
    with np.errstate(invalid="ignore", over="ignore"):
        z = x.dtype.type(scale) * x
    if fill == -np.inf:
        return z, visible(x.shape, mask, causal_offset)
    return np.where(visible(x.shape, mask), z, fill), visible(x.shape, None, causal_offset)


def _floating(values: ArrayLike) -> Array:
    array = np.asarray(values)
    return array if array.dtype == np.longdouble else array.astype(np.float64)
