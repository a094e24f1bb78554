"""A launch to test: its case in words and numbers, its tensors, its launch plan, and what must come out."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import torch

from codegen.spec import Mask, Plan, Spec
from softmax_ops import problem
from softmax_ops.artifacts import catalog
from softmax_ops.plan import LaunchPlan, plan
from tests import layouts, reference, values
from tests.engines import Bytes, Operands
from tests.layouts import Layout

CAUSAL = (Mask.CAUSAL, Mask.BOOLCAUSAL)
MASKED = (Mask.BOOL, Mask.BOOLCAUSAL, Mask.LIKE)


CONTIGUOUS = Layout()


@dataclass(frozen=True)
class Case:
    """One launch of a variant on x [B, ..., Q, K]. Without y it runs in place."""

    why: str
    spec: Spec
    shape: tuple[int, ...]
    scale: float
    x: Layout = CONTIGUOUS
    y: Layout | None = CONTIGUOUS
    mask_shape: tuple[int, ...] | None = None
    mask_layout: Layout = CONTIGUOUS
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
