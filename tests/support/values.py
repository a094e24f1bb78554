"""Rows and masks chosen to expose a wrong softmax or gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from codegen.axes import Direction, DType
from codegen.features import Mask
from tests.support import reference

Rows = NDArray[np.float64]
Seen = NDArray[np.bool_]


class Pattern(NamedTuple):
    """Rows of one kind: `make(rng, (rows, K), limit)` returns their scores, where limit is the largest of the format.

    `exact`: exponents are 0 or so low that exp is 0, however the scores are rounded.
    """

    why: str
    make: Callable[[np.random.Generator, tuple[int, int], float], Rows]
    exact: bool = False


def _some(rng: np.random.Generator, shape: tuple[int, int], limit: float) -> Rows:
    return 3 * rng.standard_normal(shape)


def _extremes(rng: np.random.Generator, shape: tuple[int, int], limit: float) -> Rows:
    rows = np.full(shape, -limit)
    rows[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = limit
    return rows


def _one_and_small(rng: np.random.Generator, shape: tuple[int, int], limit: float) -> Rows:
    """exp(0) and many exponentials of 0.998 * 2^-24: added to it one by one in f32, each is lost."""
    rows = np.full(shape, -24 * np.log(2) - 0.002)
    rows[:, 0] = 0.0
    return rows


def _partly_nothing(rng: np.random.Generator, shape: tuple[int, int], limit: float) -> Rows:
    return np.where(rng.random(shape) < 0.5, -np.inf, _some(rng, shape, limit))


PATTERNS = (
    Pattern("ordinary scores", _some),
    Pattern("steep: most outputs are tiny", lambda rng, shape, _: 30 * rng.standard_normal(shape)),
    Pattern("exp overflows unless the maximum is subtracted", lambda rng, shape, _: 900 + _some(rng, shape, 0)),
    Pattern("all equal", lambda rng, shape, _: np.full(shape, 1.25), exact=True),
    Pattern("all -2000: below an assumed maximum of 0", lambda rng, shape, _: np.full(shape, -2000.0), exact=True),
    Pattern("all the lowest finite number", lambda rng, shape, limit: np.full(shape, -limit), exact=True),
    Pattern("one largest among lowest finite numbers", _extremes, exact=True),
    Pattern(
        "a ramp whose end is subnormal", lambda rng, shape, _: np.broadcast_to(np.linspace(0, -95, shape[1]), shape)
    ),
    Pattern("partly -inf", _partly_nothing),
    Pattern("all -inf: nothing to see", lambda rng, shape, _: np.full(shape, -np.inf)),
    Pattern("one visible +inf", _some),
    Pattern("one visible NaN", _some),
    Pattern("NaN wherever hidden", _some),
    Pattern("the largest first, the others just below half its rounding", _one_and_small),
)
_SPOILT = {"one visible +inf": np.inf, "one visible NaN": np.nan}


def exact(rows: NDArray[np.intp]) -> Seen:
    """Whether the exponents of each row, given by its number, are exact."""
    return np.array([pattern.exact for pattern in PATTERNS])[rows % len(PATTERNS)]


def inputs(
    rng: np.random.Generator, direction: Direction, rows: NDArray[np.intp], seen: Seen, scale: float, dtype: DType
) -> list[torch.Tensor]:
    """The inputs of a direction [rows, K] for rows of these numbers, which cycle through the patterns."""
    if direction is Direction.FORWARD:
        return [scores(rng, rows % len(PATTERNS), seen, scale, dtype)]
    return list(gradients(rng, rows % len(GRADIENTS), seen, dtype))


def scores(rng: np.random.Generator, which: NDArray[np.intp], seen: Seen, scale: float, dtype: DType) -> torch.Tensor:
    """x for rows of the patterns `which` [rows] with visible columns `seen` [rows, K]; scale * x are the scores."""
    step = scale or 1.0
    limit = _largest(dtype, scale)
    x = np.empty(seen.shape)
    for number, pattern in enumerate(PATTERNS):
        rows = np.flatnonzero(which == number)
        made = pattern.make(rng, (rows.size, seen.shape[1]), limit)
        x[rows] = made if np.abs(made).max(initial=0) == limit else made / step
        if pattern.why in _SPOILT:
            _spoil(rng, x, rows, seen, _SPOILT[pattern.why])
        if pattern.why == "NaN wherever hidden":
            x[rows] = np.where(seen[rows], x[rows], np.nan)
    return torch.from_numpy(x).to(reference.DTYPES[dtype.input.value])


def _largest(dtype: DType, scale: float) -> float:
    """The largest x (or no less than half of it) whose score is finite in the kernel's accumulation type."""
    largest = float(torch.finfo(reference.DTYPES[dtype.input.value]).max)
    if dtype is DType.F16 or abs(scale) <= 1:
        return largest
    return largest / 2.0 ** np.ceil(np.log2(abs(scale)))


def _spoil(rng: np.random.Generator, x: Rows, rows: NDArray[np.intp], seen: Seen, value: float) -> None:
    """Puts the value into one visible column of each row that has visible columns."""
    for row in rows:
        visible = np.flatnonzero(seen[row])
        if visible.size:
            x[row, rng.choice(visible)] = value


class Gradient(NamedTuple):
    """Rows of dy by `dy(rng, y)`; y [rows, K] is the softmax of scores of this steepness."""

    why: str
    dy: Callable[[np.random.Generator, Rows], Rows]
    steepness: float = 3


def _normal(rng: np.random.Generator, y: Rows) -> Rows:
    return rng.standard_normal(y.shape)


GRADIENTS = (
    Gradient("ordinary", _normal),
    Gradient("the same everywhere: dx is 0", lambda rng, y: np.full(y.shape, 1.25)),
    Gradient("most outputs are tiny", _normal, steepness=30),
    Gradient("one output has all the weight", _normal, steepness=1e6),
    Gradient("large", lambda rng, y: 1000 * _normal(rng, y)),
    Gradient("none", lambda rng, y: np.zeros(y.shape)),
    Gradient("all outputs equal", _normal, steepness=0),
    Gradient("one visible NaN", _normal),
    Gradient("one visible -inf", _normal),
    Gradient("NaN wherever hidden", _normal),
    Gradient("weight wherever hidden", _normal),
    Gradient("outputs are NaN", _normal),
)
_SPOILT_GRADIENTS = {"one visible NaN": np.nan, "one visible -inf": -np.inf}
_HIDDEN = {"NaN wherever hidden": np.nan, "weight wherever hidden": 0.25}


def gradients(
    rng: np.random.Generator, which: NDArray[np.intp], seen: Seen, dtype: DType
) -> tuple[torch.Tensor, torch.Tensor]:
    """dy and y for rows of the patterns `which` [rows] with visible columns `seen` [rows, K]."""
    dy, y = np.empty(seen.shape), np.empty(seen.shape)
    for number, pattern in enumerate(GRADIENTS):
        rows = np.flatnonzero(which == number)
        z = np.where(seen[rows], pattern.steepness * rng.standard_normal((rows.size, seen.shape[1])), -np.inf)
        y[rows] = np.nan if pattern.why == "outputs are NaN" else reference.softmax(z)
        dy[rows] = pattern.dy(rng, y[rows])
        if pattern.why in _SPOILT_GRADIENTS:
            _spoil(rng, dy, rows, seen, _SPOILT_GRADIENTS[pattern.why])
        if pattern.why in _HIDDEN:
            y[rows] = np.where(seen[rows], y[rows], _HIDDEN[pattern.why])
            dy[rows] = np.where(seen[rows], dy[rows], _HIDDEN[pattern.why])
    form = reference.DTYPES[dtype.input.value]
    return torch.from_numpy(dy).to(form), torch.from_numpy(y).to(form)


SHOWING = {
    Mask.BOOL: (0, 2, 255),
    Mask.BOOLCAUSAL: (0, 2, 255),
    Mask.GENERAL: (0, 2, 255),
    Mask.LIKE: (0.0, 0.5, -0.0, 1.0625, -1.0, np.inf),
}
"""Mask values that hide nothing: anything but exactly 1."""


def mask(rng: np.random.Generator, kind: Mask, shape: tuple[int, ...], dtype: DType) -> torch.Tensor:
    """Hides three of ten elements, and the first and last column of every other row; with four rows or more, the last
    row hides everything and the first nothing."""
    hides = rng.random(shape) < 0.3
    rows = hides.reshape(-1, shape[-1])
    rows[1::2, [0, -1]] = True
    if len(rows) >= 4:
        rows[0], rows[-1] = False, True
    values: NDArray[Any] = np.where(hides, 1, rng.choice(SHOWING[kind], shape))
    return torch.from_numpy(values).to(reference.DTYPES[dtype.input.value] if kind is Mask.LIKE else torch.uint8)
