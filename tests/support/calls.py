"""A launch to test: its case in words and numbers, its tensors, its launch plan, and the expected results."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import prod
from typing import Any

import numpy as np
import torch

from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from codegen.spec import Spec
from codegen.variants import architectures
from softmax_ops.artifacts import catalog
from softmax_ops.planning.geometry import Geometry, Operand
from softmax_ops.planning.launch_plan import LaunchPlan, plan
from tests.support import engines, features, layouts, reference, values
from tests.support.engines import Bytes, Operands
from tests.support.features import Expected, Features
from tests.support.layouts import Layout

CAUSAL = (Mask.CAUSAL, Mask.BOOLCAUSAL)
MASKED = (Mask.BOOL, Mask.BOOLCAUSAL, Mask.LIKE, Mask.GENERAL)
CONTIGUOUS = Layout()


@cache
def _catalog_for(spec: Spec) -> catalog.Catalog:
    """The catalog without what was chosen by measurement. A variant that only a measurement chose is to compute every
    row that it can: it has the tables for itself."""
    known, tables = catalog.load(), {}
    for key, table in known.tables.items():
        if key[:2] == (spec.direction.label, spec.dtype.value):
            computed = tuple(entry for entry in table if not entry.measured)
            alone = tuple(replace(entry, vec=spec.vec, architectures=()) for entry in table if entry.name == spec.name)
            tables[key] = computed if any(entry.name == spec.name for entry in computed) else alone
    return replace(known, tables=tables)


@dataclass(frozen=True)
class Case:
    """One launch of a variant on tensors [B, ..., Q, K], and how its inputs and output are laid out.

    The output has a layout of its own, or is the name of the input that it overwrites. Inputs without a layout are
    contiguous.
    """

    why: str
    spec: Spec
    shape: tuple[int, ...]
    scale: float
    inputs: tuple[Layout, ...] = ()
    output: Layout | str = CONTIGUOUS
    mask_shape: tuple[int, ...] | None = None
    mask_layout: Layout = CONTIGUOUS
    causal_offset: int | None = None
    fill: float = -np.inf
    first_pattern: int = 0
    features: Features | None = None  # for the general kind, or a bias

    @property
    def mask_kind(self) -> Mask:
        """The kind that the caller states: without an offset a causal kernel also serves kinds that lack their own, and
        a general one masked rows of f64."""
        if self.spec.mask is Mask.GENERAL and self.features is None:
            return Mask.BOOL if self.causal_offset is None else Mask.BOOLCAUSAL
        if self.causal_offset is None:
            return {Mask.BOOLCAUSAL: Mask.BOOL, Mask.CAUSAL: Mask.NONE}.get(self.spec.mask, self.spec.mask)
        return self.spec.mask

    @property
    def arch(self) -> str:
        """An architecture where dispatch picks the variant: rows are streamed or split if it has no clusters."""
        wanted, ships = "sm_80" if self.spec.piece else "sm_90", architectures(self.spec)
        return wanted if wanted in ships else ships[0]

    @property
    def layouts(self) -> dict[str, Layout]:
        """The layout of every tensor except the mask."""
        *names, output = self.spec.direction.tensors
        found = {name: self.inputs[i] if i < len(self.inputs) else CONTIGUOUS for i, name in enumerate(names)}
        return {**found, output: found[self.output] if isinstance(self.output, str) else self.output}

    def call(self) -> Call:
        rng = np.random.default_rng([*self.spec.name.encode(), *self.why.encode()])
        dtype, k = self.spec.dtype, self.shape[-1]
        mask = None if self.mask_shape is None else values.mask(rng, self.spec.mask, self.mask_shape, dtype)
        others: dict[str, torch.Tensor] = {}
        if self.features is None:
            seen = reference.visible(self.shape, None if mask is None else reference.to_numpy(mask), self.causal_offset)
        else:
            others = self.features.tensors(rng, self.shape, dtype)
            seen = reference.visible(self.shape, None if mask is None else reference.to_numpy(mask))
            seen &= reference.within(self.shape, **self.features.band(others, self.causal_offset))
        expanded = self.layouts[self.spec.direction.tensors[0]].expanded
        for dimension in expanded:  # a column hidden in one of several rows that share memory may be visible in another
            seen = np.broadcast_to(seen.all(axis=dimension, keepdims=True), self.shape)
        rows = np.arange(self.first_pattern, self.first_pattern + prod(self.shape[:-1]))
        tensors = [
            tensor.reshape(self.shape)
            for tensor in values.inputs(rng, self.spec.direction, rows, seen.reshape(-1, k), self.scale, dtype)
        ]
        for dimension in expanded:
            tensors = [tensor.narrow(dimension, 0, 1).expand(self.shape) for tensor in tensors]
        if self.features is not None and self.spec.direction is Direction.BACKWARD:
            others |= self.features.gradients(rng, self.shape, dtype)
            if self.features.logarithms:
                tensors[1] = tensors[1].double().log().to(tensors[1].dtype)
        return Call(self, dict(zip(self.spec.direction.tensors, tensors, strict=False)), mask, others)


@dataclass(frozen=True, eq=False)
class Call:
    """A case with its tensors: by name the inputs [..., K]; a mask that broadcasts to them; by name the others: a bias
    that broadcasts too, and numbers per row that broadcast to [...]."""

    case: Case
    inputs: dict[str, torch.Tensor]
    mask: torch.Tensor | None
    others: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def element_bytes(self) -> int:
        """Size of an element of the inputs."""
        return self.case.spec.dtype.bytes

    @property
    def output_bytes(self) -> int:
        """Size of an element of the output."""
        return self.case.spec.dtype.output.bytes

    @cached_property
    def results(self) -> dict[str, torch.Tensor]:
        """Empty tensors like the numbers per row that the kernel writes, by name."""
        case = self.case
        names = () if case.features is None else case.features.results(case.spec.direction)
        dtype = torch.float64 if case.spec.dtype is DType.F64 else torch.float32
        return {name: torch.empty(case.shape[:-1], dtype=dtype) for name in names}

    @property
    def elements(self) -> int:
        return prod(self.case.shape)

    @cached_property
    def operands(self) -> Operands:
        """The tensors in memory, surrounded by guard bytes."""
        case = self.case
        output = (
            case.output if isinstance(case.output, str) else layouts.empty(case.shape, self.output_bytes, case.output)
        )
        return Operands(
            inputs={name: layouts.place(tensor, case.layouts[name]) for name, tensor in self.inputs.items()},
            output=output,
            mask=None if self.mask is None else layouts.place(self.mask, case.mask_layout),
            scale=case.scale,
            fill=case.fill,
            others={name: layouts.place(tensor, self._layout(name)) for name, tensor in self.others.items()},
            results={
                name: layouts.empty(tuple(tensor.shape), tensor.element_size(), CONTIGUOUS)
                for name, tensor in self.results.items()
            },
        )

    def operand(self, name: str) -> engines.Operand:
        """The operand of a tensor by its name, which may be the output's."""
        return self.operands.inputs[name] if name in self.inputs else self.operands.result

    @cached_property
    def plan(self) -> LaunchPlan:
        """The plan by dispatch, which must have chosen the case's variant."""
        case = self.case
        operands = [
            Operand(name, layout.strides(case.shape), layouts.alignment(self.operand(name)), self.element_bytes)
            for name, layout in case.layouts.items()
        ]
        operands[-1] = operands[-1]._replace(element_bytes=self.output_bytes)
        if self.mask is not None and self.operands.mask is not None:
            alignment = layouts.alignment(self.operands.mask)
            operands.append(Operand("mask", self.mask_strides, alignment, self.mask.element_size()))
        operands += [self._other(name, tensor) for name, tensor in (self.others | self.results).items()]
        geometry = Geometry(
            direction=case.spec.direction.label,
            dtype=case.spec.dtype.value,
            mask_kind=case.mask_kind.label,
            shape=case.shape,
            operands=tuple(operands),
            causal_offset=case.causal_offset,
            batch_invariant=case.spec.plan is Plan.STREAM,
            general=case.features.general if case.features is not None and case.spec.mask.has_epilogue else None,
        )
        chosen = plan(geometry, _catalog_for(case.spec), case.arch)
        assert chosen.variant.name == case.spec.name, (
            f"{case.why}: dispatch chose {chosen.variant.name}, {chosen.reason}"
        )
        return chosen

    def _layout(self, other: str) -> Layout:
        return self.case.mask_layout if other == "bias" else CONTIGUOUS

    def _other(self, name: str, tensor: torch.Tensor) -> Operand:
        """A bias [..., K], or numbers per row [...], whose stride along K is 0."""
        shape = tuple(tensor.shape)
        moves = zip(shape, self._layout(name).strides(shape), strict=True)
        strides = tuple(stride if size > 1 else 0 for size, stride in moves)
        if name != "bias":
            return Operand(name, (*strides, 0), 16, tensor.element_size())
        operand = self.operands.others[name]
        return Operand(name, (*strides[:-1], 1), layouts.alignment(operand), tensor.element_size())

    @cached_property
    def mask_strides(self) -> tuple[int, ...]:
        """Strides in elements, 0 where the mask broadcasts."""
        if self.mask is None:
            return (0,) * len(self.case.shape)
        shape = tuple(self.mask.shape)
        sizes = zip(shape, self.case.shape, self.case.mask_layout.strides(shape), strict=True)
        return tuple(0 if size == 1 and whole > 1 else stride for size, whole, stride in sizes)

    @cached_property
    def rows_per_cta(self) -> int:
        """Rows per CTA in the launch."""
        if self.case.spec.plan is not Plan.TILE:
            return self.case.spec.rows
        fields = [name for name, _ in self.case.spec.arguments]
        before = self.case.spec.arguments[: fields.index("tile.rows_per_cta")]
        (rows,) = struct.unpack_from("i", self.plan.launches[0].template, catalog.argument_bytes(before))
        return int(rows)

    @cached_property
    def general(self) -> Expected:
        """Expected results of the general kind, with their tolerances."""
        case, inputs = self.case, [*self.inputs.values()]
        assert case.features is not None
        band = case.features.band(self.others, case.causal_offset)
        if case.spec.direction is Direction.FORWARD:
            return features.forward(case.features, inputs[0], self.mask, self.others, case.scale, band)
        return features.backward(case.features, inputs[0], inputs[1], self.others, case.scale, band)

    @cached_property
    def expected(self) -> reference.Array:
        if self.case.features is not None:
            return self.general.result
        forward = self.case.spec.direction is Direction.FORWARD
        return reference.softmax(*self._formula) if forward else reference.softmax_backward(*self._formula)

    @cached_property
    def tolerance(self) -> dict[str, Any]:
        """Arguments of reference.assert_close: subnormal 16-bit outputs count; rounding of scores is allowed for,
        except in rows with exact exponents; errors of a difference are relative to its terms."""
        case = self.case
        found: dict[str, Any] = {"floor": 0.0 if self.output_bytes == 2 else None}
        if case.features is not None:
            return found | self.general.tolerance
        if case.spec.direction is Direction.BACKWARD:
            return found | {"magnitude": reference.backward_magnitude(*self._formula)}
        rows = case.first_pattern + np.arange(prod(case.shape[:-1]))
        exact = values.exact(rows).reshape(*case.shape[:-1], 1)
        if case.layouts["x"].expanded:
            exact = np.zeros_like(exact)
        return found | {"rounding": np.where(exact, 0.0, reference.score_rounding(*self._formula))}

    @cached_property
    def _formula(self) -> tuple:
        case = self.case
        inputs = [reference.to_numpy(tensor) for tensor in self.inputs.values()]
        if case.spec.direction is Direction.BACKWARD:
            return *inputs, case.scale, case.causal_offset
        mask = None if self.mask is None else reference.to_numpy(self.mask)
        return *inputs, case.scale, mask, case.causal_offset, case.fill

    def output(self, storage: Bytes) -> torch.Tensor:
        """The result [..., K], read from the bytes that an engine returns."""
        like = torch.empty(self.case.shape, dtype=reference.DTYPES[self.case.spec.dtype.output.value])
        return layouts.read(
            storage, self.operands.result, like, self.case.layouts[self.case.spec.direction.tensors[-1]]
        )

    def row_result(self, name: str, storage: Bytes) -> torch.Tensor:
        """Numbers per row [...], read from the bytes that an engine returns."""
        return layouts.read(storage, self.operands.results[name], self.results[name], CONTIGUOUS)

    def only(self, batch: int) -> Call:
        """A call on only the rows of one index of the outermost dimension."""
        case = replace(self.case, why=f"{self.case.why}; alone", shape=(1, *self.case.shape[1:]))

        def of(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if tensor.shape[0] == 1 else tensor[batch : batch + 1]

        mask = None if self.mask is None else of(self.mask)
        others = {name: of(tensor) for name, tensor in self.others.items()}
        return Call(case, {name: tensor[batch : batch + 1] for name, tensor in self.inputs.items()}, mask, others)
