"""Launch plans as seen by a kernel: what it computes from its parameters, emulating rows.cuh."""

import itertools
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.catalog import Layout
from softmax_ops.planning.geometry import MAX_RANK, OPERANDS, Geometry
from softmax_ops.planning.launch_plan import LaunchPlan, plan
from softmax_ops.planning.split import turns_of
from tests.support.geometries import CAUSAL, MASKED, geometry

_WHOLE = catalog.load()
CATALOG = replace(
    _WHOLE, tables={kind: tuple(each for each in table if not each.measured) for kind, table in _WHOLE.tables.items()}
)
"""The catalog without what a measurement chose: what follows from arithmetic can be said without it."""

KINDS = sorted(CATALOG.tables)  # (direction, dtype, mask kind)
ANY_K = 2**31 - 2**20

examples = settings(deadline=None, database=None, derandomize=True, max_examples=200)
every_direction = pytest.mark.parametrize("direction", OPERANDS)
every_kind = pytest.mark.parametrize(("direction", "dtype", "mask_kind"), KINDS, ids=["-".join(kind) for kind in KINDS])


def planned(of: Geometry, arch: str = "sm_90") -> LaunchPlan:
    return plan(of, CATALOG, arch)


# What a kernel sees


def fields(layout: Layout, arguments: bytes) -> dict[str, tuple[Any, ...]]:
    """The parameter struct by name, each field read at its offset in the C struct."""
    found, before = {}, ""
    for name, format in layout:
        offset = struct.calcsize(before + "0" + format[-1])
        if name:
            found[name] = struct.unpack_from(format, arguments, offset)
        before += format
    assert struct.calcsize(before) == len(arguments)
    return found


def row_index(p: dict[str, tuple[Any, ...]], rows: np.ndarray) -> list[np.ndarray]:
    """RowIndex of rows.cuh: numbers along d0, d1, d2, d3, in 32-bit arithmetic."""
    index = [rows.astype(np.uint64)] + [np.zeros(len(rows), np.uint64)] * (MAX_RANK - 1)
    for d in range(MAX_RANK - 1 if p["rows.rank"][0] > 1 else 0):
        size, multiplier, shift = (np.uint64(number) for number in p["rows.divisors"][3 * d : 3 * d + 3])
        product = (2 * index[d] & np.uint64(0xFFFFFFFF)) * multiplier
        index[d + 1] = product >> np.uint64(32) >> shift
        index[d] = index[d] - index[d + 1] * size
    return [numbers.astype(np.int64) for numbers in index]


def offset(p: dict[str, tuple[Any, ...]], index: list[np.ndarray], strides: str) -> np.ndarray:
    """RowIndex::offset of rows.cuh."""
    total = index[0] * p[strides][0]
    if p["rows.rank"][0] > 1:
        for d in range(1, MAX_RANK):
            total = total + index[d] * p[strides][d]
    return total


def parameters(launch_plan: LaunchPlan, launch: int = 0) -> dict[str, tuple[Any, ...]]:
    """The parameters that a launch passes for operands at address 0."""
    layout, addresses = CATALOG.layout(launch_plan.variant), dict.fromkeys(DYNAMIC, 0)
    return fields(layout, launch_plan.arguments(launch_plan.launches[launch], addresses))


DYNAMIC = [f"{name}.address" for name in ("x", "y", "dy", "dx", "mask", "workspace")] + ["scale", "mask.fill"]


def rows_of(of: Geometry, launch_plan: LaunchPlan) -> list[tuple[int, ...]]:
    """For every row: addresses of its operands, each at address 0, and the number of columns before the causal edge.

    Launches over the same rows must agree on them.
    """
    turns: list[list[tuple[int, ...]]] = [[] for _ in turns_of(of.k, launch_plan.variant, launch_plan.launches[0].rows)]
    for number, launch in enumerate(launch_plan.launches):
        p = parameters(launch_plan, number)
        assert p["rows.count"] == (launch.rows,) and p["rows.k"] == (of.k,)
        index = row_index(p, np.arange(launch.rows))
        places = [
            p[f"{operand.name}.address"][0] + offset(p, index, f"{operand.name}.strides") * operand.element_bytes
            for operand in of.operands
        ]
        kind = next((kind for kind in ("causal", "band") if f"{kind}.query" in p), None)
        edge = offset(p, index, f"{kind}.query") + p[f"{kind}.offset"][0] if kind else 0 * index[0]
        turns[number % len(turns)] += zip(*(column.tolist() for column in (*places, edge)), strict=True)
    assert all(turn == turns[0] for turn in turns)
    return turns[0]


def expected_rows(of: Geometry, launch_plan: LaunchPlan) -> list[tuple[int, ...]]:
    """The same, by indexing every leading dimension; without an offset the edge is the end of the row, and that of a
    band the query."""
    rows: list[tuple[int, ...]] = []
    known = {*dict(CATALOG.layout(launch_plan.variant))}
    for index in itertools.product(*map(range, of.shape[:-1])):
        places = [
            operand.element_bytes * sum(i * stride for i, stride in zip(index, operand.strides, strict=False))
            for operand in of.operands
        ]
        edge = of.k if of.causal_offset is None else index[-1] + of.causal_offset
        if "band.query" in known and of.causal_offset is None:
            edge = 0
        rows.append((*places, edge if known & {"causal.query", "band.query"} else 0))
    return rows


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Up to five leading dimensions; each operand in its own order in memory, padded, all but the output broadcast."""
    direction, dtype, mask_kind = draw(st.sampled_from(KINDS))
    general = mask_kind in ("band", "general")
    k = draw(st.sampled_from([1, 7, 8, 48, 1000, 5000, 20000, 50257, 300000]))
    shape = (*draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)), k)

    def strides(may_broadcast: bool) -> tuple[int, ...]:
        order = draw(st.permutations(range(len(shape) - 1)))
        found = [0] * (len(shape) - 1) + [1]
        step = shape[-1] + draw(st.sampled_from([0, 0, 0, 1, 8]))
        for d in order[::-1] if draw(st.booleans()) else range(len(shape) - 2, -1, -1):
            if not (may_broadcast and draw(st.integers(0, 3)) == 0):
                found[d] = step
                step = step * shape[d] + draw(st.sampled_from([0, 0, 0, 8]))
        return tuple(found)

    *inputs, output = OPERANDS[direction]
    moves = {name: strides(may_broadcast=True) for name in inputs} | {output: strides(may_broadcast=False)}
    if mask_kind in MASKED:
        moves["mask"] = (*strides(may_broadcast=True)[:-1], draw(st.integers(0, 1)))
    if mask_kind == "bias":
        moves["bias"] = strides(may_broadcast=True)
    changes: dict[str, Any] = {"causal_offset": draw(st.integers(-5, 60))} if mask_kind in CAUSAL or general else {}
    return geometry(
        shape,
        dtype,
        mask_kind,
        direction=direction,
        strides=moves,
        alignment=draw(st.sampled_from([1, 8, 16])),
        batch_invariant=draw(st.booleans()),
        **changes,
    )
