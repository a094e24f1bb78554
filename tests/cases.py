"""What each variant is run on: a few launches, folded so that together they hold everything the variant can meet.

A case is chosen from the spec so that dispatch arrives at this very variant; `call` adds the tensors and the launch plan.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod

import numpy as np
import torch
from numpy.typing import NDArray

from codegen.spec import DType, Mask, Plan, Spec
from softmax_ops import problem
from softmax_ops.artifacts import catalog
from softmax_ops.plan import LaunchPlan, plan
from tests import layouts, reference, values
from tests.engines import Bytes, Operands
from tests.layouts import Layout

CAUSAL = (Mask.CAUSAL, Mask.BOOLCAUSAL)
MASKED = (Mask.BOOL, Mask.BOOLCAUSAL, Mask.LIKE)


@dataclass(frozen=True)
class Case:
    """One launch of a variant on x [B, ..., Q, K]. Without y it runs in place."""

    why: str
    spec: Spec
    shape: tuple[int, ...]
    scale: float
    x: Layout = Layout()
    y: Layout | None = Layout()
    mask_shape: tuple[int, ...] | None = None
    mask_layout: Layout = Layout()
    causal_offset: int | None = None
    fill: float = -np.inf
    first_pattern: int = 0

    @property
    def mask_kind(self) -> Mask:
        """As the caller states it: boolcausal without an offset is bool, which f64 has no kernel of its own for."""
        if self.spec.mask is Mask.BOOLCAUSAL and self.causal_offset is None:
            return Mask.BOOL
        return self.spec.mask

    def call(self) -> Call:
        rng = np.random.default_rng([*self.spec.name.encode(), *self.why.encode()])
        dtype = self.spec.dtype
        mask = None if self.mask_shape is None else values.mask(rng, self.spec.mask, self.mask_shape, dtype)
        seen = reference.visible(self.shape, None if mask is None else reference.to_numpy(mask), self.causal_offset)
        for (
            dimension
        ) in self.x.expanded:  # what one of the rows that are the same memory hides may be visible to others
            seen = np.broadcast_to(seen.all(axis=dimension, keepdims=True), self.shape)
        which = values.patterns(prod(self.shape[:-1]), self.first_pattern)
        x = values.scores(rng, which, seen.reshape(-1, self.shape[-1]), self.scale, dtype).reshape(self.shape)
        for dimension in self.x.expanded:
            x = x.narrow(dimension, 0, 1).expand(self.shape)
        return Call(self, x, mask)


@dataclass(frozen=True, eq=False)
class Call:
    """A case with its tensors: x [..., K], and a mask that broadcasts to it."""

    case: Case
    x: torch.Tensor
    mask: torch.Tensor | None

    @cached_property
    def operands(self) -> Operands:
        """In memory, guard bytes around them."""
        case, size = self.case, self.x.element_size()
        return Operands(
            x=layouts.place(self.x, case.x),
            y=None if case.y is None else layouts.empty(case.shape, size, case.y),
            mask=None if self.mask is None else layouts.place(self.mask, case.mask_layout),
            scale=case.scale,
            fill=case.fill,
        )

    @cached_property
    def plan(self) -> LaunchPlan:
        """Of dispatch, which must have chosen the case's variant."""
        case, operands = self.case, self.operands
        geometry = problem.Geometry(
            dtype=case.spec.dtype.value,
            mask_kind=case.mask_kind.label,
            shape=case.shape,
            x_strides=case.x.strides(case.shape),
            y_strides=(case.y or case.x).strides(case.shape),
            mask_strides=self.mask_strides,
            alignment=problem.Operands(
                layouts.alignment(operands.x),
                layouts.alignment(operands.y or operands.x),
                layouts.alignment(operands.mask) if operands.mask else 16,
            ),
            causal_offset=case.causal_offset,
        )
        chosen = plan(geometry, catalog.load())
        assert chosen.variant.name == case.spec.name, (
            f"{case.why}: dispatch chose {chosen.variant.name}, {chosen.reason}"
        )
        return chosen

    @cached_property
    def mask_strides(self) -> tuple[int, ...]:
        """In elements, 0 where the mask broadcasts."""
        if self.mask is None:
            return (0,) * len(self.case.shape)
        shape = tuple(self.mask.shape)
        sizes = zip(shape, self.case.shape, self.case.mask_layout.strides(shape), strict=True)
        return tuple(0 if size == 1 and whole > 1 else stride for size, whole, stride in sizes)

    @cached_property
    def rows_per_cta(self) -> int:
        """As the launch has it."""
        if self.case.spec.plan is not Plan.TILE:
            return self.case.spec.rows
        fields = [name for name, _ in self.case.spec.arguments]
        before = self.case.spec.arguments[: fields.index("tile.rows_per_cta")]
        (rows,) = struct.unpack_from("i", self.plan.launches[0].template, catalog.argument_bytes(before))
        return int(rows)

    @cached_property
    def expected(self) -> reference.Array:
        return reference.softmax(*self._formula)

    @cached_property
    def rounding(self) -> reference.Array:
        """What rounding the scores may cost; nothing in rows whose exponents are exact."""
        exact = np.array([pattern.exact for pattern in values.PATTERNS])
        rows = values.patterns(prod(self.case.shape[:-1]), self.case.first_pattern).reshape(*self.case.shape[:-1], 1)
        if self.case.x.expanded:
            rows = np.zeros_like(rows)
        return np.where(exact[rows], 0.0, reference.score_rounding(*self._formula))

    @cached_property
    def _formula(self) -> tuple:
        case = self.case
        mask = None if self.mask is None else reference.to_numpy(self.mask)
        return reference.to_numpy(self.x), case.scale, mask, case.causal_offset, case.fill

    def output(self, storage: Bytes) -> torch.Tensor:
        """y [..., K], from the bytes that an engine gives back."""
        operands, case = self.operands, self.case
        return layouts.read(storage, operands.y or operands.x, self.x, case.y or case.x)

    def only(self, batch: int) -> Call:
        """The rows of one index of the outermost dimension, alone."""
        case = replace(self.case, why=f"{self.case.why}; alone", shape=(1, *self.case.shape[1:]))
        mask = self.mask if self.mask is None or self.mask.shape[0] == 1 else self.mask[batch : batch + 1]
        return Call(case, self.x[batch : batch + 1], mask)


def cases(spec: Spec) -> list[Case]:
    """Launches that together hold everything this variant can meet."""
    return [
        _longest(spec),
        _in_place(spec),
        _strided(spec),
        _out_of_phase(spec),
        _expanded(spec),
        *_filled(spec),
        *_bool(spec),
    ]


def full_cta(spec: Spec, k: int) -> Case:
    """One CTA with all the rows it takes, every column visible to a causal mask: what a row costs when there are many."""
    rows = spec.tile_elements // k if spec.plan is Plan.TILE else spec.rows
    start = Layout(phase=0 if spec.vec > 1 else 1)
    features = _features(spec, (rows, k), "qk", k)
    return Case("a full CTA", spec, (rows, k), scale=0.125, x=start, y=start, mask_layout=start, **features)


def interval(spec: Spec) -> tuple[int, int]:
    """Shortest and longest row that dispatch gives to the variant."""
    key = (spec.direction.value, spec.dtype.value, spec.mask.label)
    (entry,) = (entry for entry in catalog.load().tables[key] if entry.name == spec.name)
    return -(-entry.k[0] // spec.vec) * spec.vec, entry.k[1]


def middle(spec: Spec) -> int:
    """Between shortest and longest: for rows that start anywhere no multiple of a vector, where there is one."""
    shortest, longest = interval(spec)
    k = (shortest + longest) // 2
    return k // spec.vec * spec.vec if spec.vec > 1 else k | 1


def _leading(spec: Spec, k: int, q: int = 3, dims: int = 3) -> tuple[int, ...]:
    """(B, ..., q): more rows than a CTA takes and no multiple of that. An odd q divides no power of two."""
    per_cta = spec.tile_elements // k if spec.plan is Plan.TILE else spec.rows
    heads = (2 if spec.plan is Plan.BLOCK else 3,) * (dims - 2)
    inner = prod(heads) * q
    batches = max(ceil(1.4 * per_cta / inner), 2)
    if per_cta > 1 and batches * inner % per_cta == 0:
        batches += 1
    return (batches, *heads, q)


def _features(spec: Spec, shape: tuple[int, ...], mask: str, offset: int) -> dict:
    """Arguments of Case for the features that the variant has; `mask` names the dimensions that it does not broadcast."""
    features: dict = {}
    if spec.mask in CAUSAL:
        features["causal_offset"] = offset
    if spec.mask in MASKED:
        names = "abhqk"[-len(shape) :]
        features["mask_shape"] = tuple(n if name in mask else 1 for n, name in zip(shape, names, strict=True))
    return features


def _longest(spec: Spec) -> Case:
    k = interval(spec)[1]
    shape = (*_leading(spec, k), k)
    start = Layout(phase=0 if spec.vec > 1 else 1)
    return Case(
        "the longest row, off the alignment if that is allowed; rows no multiple of a CTA's; bottom-right; mask of x's shape",
        spec,
        shape,
        scale=0.125,
        x=start,
        y=start,
        mask_layout=start,
        **_features(spec, shape, "bhqk", k - shape[-2]),
    )


def _in_place(spec: Spec) -> Case:
    shortest, longest = interval(spec)
    k = max(longest - spec.vec, shortest)
    shape = (*_leading(spec, k), k)
    return Case(
        "in place; one vector or column less than the longest row; key padding mask; top-left",
        spec,
        shape,
        scale=1.0,
        y=None,
        first_pattern=5,
        **_features(spec, shape, "bk", 0),
    )


def _strided(spec: Spec) -> Case:
    k = interval(spec)[0]
    shape = (*_leading(spec, k, q=2 if spec.plan is Plan.BLOCK else 5, dims=4), k)
    wide, anywhere = spec.dtype.vector, spec.vec == 1
    return Case(
        "the shortest row; rows apart, dimensions permuted; negative scale; mask the same for all heads; first query blind",
        spec,
        shape,
        scale=-1.5,
        x=Layout(phase=1 if anywhere else 0, gap=3 if anywhere else wide, order=(2, 0, 3, 1)),
        y=Layout(phase=2 if anywhere else wide, gap=1 if anywhere else 3 * wide),
        first_pattern=10,
        **_features(spec, shape, "abqk", -1),
    )


def _out_of_phase(spec: Spec) -> Case:
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    return Case(
        "x and y at different phases if that is allowed; a mask that hides or shows whole rows; offset beyond K; large scale",
        spec,
        shape,
        scale=3e6,
        x=Layout(phase=0 if spec.vec > 1 else 1),
        first_pattern=2,
        **_features(spec, shape, "bhq", k + 7),
    )


def _expanded(spec: Spec) -> Case:
    shortest, longest = interval(spec)
    k = min(shortest + spec.dtype.vector, max(longest - spec.vec, shortest))
    shape = (*_leading(spec, k, q=k + 2 if k < 60 else 3), k)
    return Case(
        "x of stride 0 along the batch; scale 0; mask the same for all queries; short rows: fewer columns than queries",
        spec,
        shape,
        scale=0.0,
        x=Layout(expanded=(0,)),
        **_features(spec, shape, "hk", k - shape[-2] if k < 60 else k // 2),
    )


def _filled(spec: Spec) -> Iterator[Case]:
    """The first seed's module scores what is hidden with a finite value."""
    if spec.mask not in (Mask.BOOL, Mask.LIKE):
        return
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    yield Case(
        "hidden columns score -10000: a row hidden as a whole is uniform",
        spec,
        shape,
        scale=0.5,
        fill=-10000.0,
        y=Layout(gap=spec.vec),
        first_pattern=4,
        **_features(spec, shape, "bqk", 0),
    )


def _bool(spec: Spec) -> Iterator[Case]:
    """What f64 has no kernel of its own for."""
    if spec.mask is not Mask.BOOLCAUSAL or spec.dtype is not DType.F64:
        return
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    features = _features(spec, shape, "qk", 0) | {"causal_offset": None}
    yield Case(
        "without an offset: a tensor mask and nothing else", spec, shape, scale=0.75, first_pattern=7, **features
    )
