"""What the general kind adds to a case: its tensors, the expected results, and the error allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codegen.axes import Direction, DType
from softmax_ops.planning.geometry import General
from tests.support import bounds, reference
from tests.support.reference import Array

Tensors = dict[str, torch.Tensor]
DIMENSIONS = "bhq"


@dataclass(frozen=True)
class Features:
    """What the case asks for besides scale, offset and mask, for scores [B, H, Q, K].

    `bias` and `row_scale` name the dimensions in which they do not broadcast (None: there is none). `offset`, and one
    more for each further batch entry, is read from device memory and added to the case's.
    """

    left: int | None = None
    right: int | None = None
    softcap: float = 0.0
    logarithms: bool = False
    bias: str | None = None
    wide: bool = False
    row_scale: str | None = None
    offset: int | None = None
    lengths: bool = False
    slopes: bool = False
    sinks: bool = False
    lse: bool = False  # written by the forward, read by the backward
    dlse: bool = False
    d: bool = False

    @property
    def general(self) -> General:
        """The features in the form that a geometry has."""
        return General(self.left, self.right, self.softcap, self.logarithms)

    def tensors(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> Tensors:
        """What is read besides inputs and mask, by operand name; numbers per row are [B|1, H|1, Q|1]."""
        batches, heads, _, k = shape
        accumulator = torch.float64 if dtype is DType.F64 else torch.float32
        made: dict[str, NDArray[Any]] = {}
        if self.bias is not None:
            made["bias"] = 2 * rng.standard_normal((*_kept(shape[:-1], self.bias), k))
            made["bias"][rng.random(made["bias"].shape) < 0.1] = -np.inf
        if self.row_scale is not None:
            made["row_scale"] = rng.choice((0.25, 0.5, 1.0), _kept(shape[:-1], self.row_scale))
        if self.slopes:
            made["slopes"] = 2.0 ** -np.arange(1, heads + 1).reshape(1, heads, 1)
        if self.sinks:
            made["sinks"] = 3 * rng.standard_normal((1, heads, 1))
        found = {name: torch.from_numpy(values).to(accumulator) for name, values in made.items()}
        if self.bias is not None and not self.wide:
            found["bias"] = found["bias"].to(reference.DTYPES[dtype.input.value])
        if self.lengths:
            lengths = rng.integers(1, k + 1, (batches, 1, 1))
            lengths[0], lengths[-1] = k + 5, 0
            found["lengths"] = torch.from_numpy(lengths).to(torch.int32)
        if self.offset is not None:
            found["offsets"] = self.offset + torch.arange(batches, dtype=torch.int32).reshape(-1, 1, 1)
        return found

    def gradients(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> Tensors:
        """Numbers per row that the backward reads: lse, within what a softcap of 200 allows, and its gradient."""
        made: dict[str, NDArray[Any]] = {}
        if self.lse:
            made["lse"] = rng.uniform(1, 20, shape[:-1])
        if self.dlse:
            made["dlse"] = rng.standard_normal(shape[:-1])
        accumulator = torch.float64 if dtype is DType.F64 else torch.float32
        return {name: torch.from_numpy(values).to(accumulator) for name, values in made.items()}

    def results(self, direction: Direction) -> tuple[str, ...]:
        """Names of the numbers per row that are written."""
        if direction is Direction.FORWARD:
            return ("lse",) * self.lse
        return ("d",) * self.d

    def band(self, tensors: Tensors, causal_offset: int | None) -> dict[str, Any]:
        """The visible columns, as arguments of the reference."""
        lengths, offsets = tensors.get("lengths"), tensors.get("offsets")
        return {
            "offset": (causal_offset or 0) + (0 if offsets is None else offsets.numpy().reshape(-1)),
            "left": self.left,
            "right": self.right,
            "lengths": None if lengths is None else lengths.numpy().reshape(-1).clip(0),
        }


@dataclass(frozen=True)
class Expected:
    """The result [..., K] with the arguments of `assert_close` that allow its error; numbers per row with theirs."""

    result: Array
    tolerance: dict[str, Any]
    rows: dict[str, tuple[Array, Array]]


def forward(
    features: Features, x: torch.Tensor, mask: torch.Tensor | None, tensors: Tensors, scale: float, band: dict[str, Any]
) -> Expected:
    """Expected values by the general reference."""
    arrays = {name: reference.to_numpy(tensor) for name, tensor in tensors.items()}
    slopes, sinks = (arrays.get(name) for name in ("slopes", "sinks"))
    found = reference.general(
        reference.to_numpy(x),
        scale=scale * arrays.get("row_scale", np.ones((1, 1, 1))),
        mask=None if mask is None else reference.to_numpy(mask),
        bias=arrays.get("bias"),
        slopes=None if slopes is None else slopes.reshape(-1),
        sinks=None if sinks is None else sinks.reshape(-1),
        softcap=features.softcap or None,
        **band,
    )
    allowed = bounds.forward(found, bounds.CANCELLED_CAP * features.softcap if features.softcap else None)
    rows = {"lse": (found.lse, _roundoff(x) * allowed.lse)}
    if features.logarithms:
        return Expected(found.log_y, {"rounding": allowed.log_y}, rows)
    return Expected(found.y, {"rounding": allowed.y}, rows)


def backward(
    features: Features, dy: torch.Tensor, y: torch.Tensor, tensors: Tensors, scale: float, band: dict[str, Any]
) -> Expected:
    """Expected values by the general reference."""
    arrays = {name: reference.to_numpy(tensor) for name, tensor in tensors.items()}
    given: dict[str, Any] = {
        "scale": scale * arrays.get("row_scale", np.ones((1, 1, 1))),
        "softcap": features.softcap or None,
        "lse": arrays.get("lse"),
        "grad_lse": arrays.get("dlse"),
        "log": features.logarithms,
        **band,
    }
    gradients, results = reference.to_numpy(dy), reference.to_numpy(y)
    dx, d = reference.general_backward(gradients, results, **given)
    allowed = bounds.backward(gradients, results, **given)
    return Expected(dx, {"magnitude": allowed.magnitude}, {"d": (d, _roundoff(dy) * allowed.d)})


def _roundoff(x: torch.Tensor) -> float:
    return reference.FORMATS[reference.DTYPE_NAMES[x.dtype]].unit_roundoff


def _kept(shape: tuple[int, ...], names: str) -> tuple[int, ...]:
    return tuple(size if name in names else 1 for size, name in zip(shape, DIMENSIONS, strict=True))
