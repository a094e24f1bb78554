"""Rows so far apart that 32 bits do not count the elements between them."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import torch

from codegen.spec import Spec
from softmax_ops.artifacts import catalog
from softmax_ops.plan import LaunchPlan, plan
from softmax_ops.problem import Geometry, Operands
from tests import ptx, reference, values
from tests.calls import CAUSAL, MASKED
from tests.cases import interval
from tests.engines import InterpreterEngine
from tests.outcomes import Wrong

STEP = 1 << 33
"""Elements from a row to the next."""

ROWS = 2


def judge_far_rows(spec: Spec, interpreter: InterpreterEngine) -> None:
    """Two rows of x, y and mask, each in a buffer of its own. Raises Wrong or Fault unless they come out right."""
    k = interval(spec)[1]
    rng = np.random.default_rng(k)
    x = torch.from_numpy(rng.standard_normal((ROWS, k))).to(reference.DTYPES[spec.dtype.value])
    mask = values.mask(rng, spec.mask, (ROWS, k), spec.dtype) if spec.mask in MASKED else None
    memory = ptx.GlobalMemory()
    phase = 0 if spec.vec > 1 else 1
    addresses = Operands(
        _add_rows(memory, "x", x, 1 << 40, phase),
        _add_rows(memory, "y", x, 2 << 40, phase),
        _add_rows(memory, "mask", mask, 3 << 40, phase) if mask is not None else 0,
    )
    offset = k - ROWS if spec.mask in CAUSAL else None
    chosen = _plan(spec, k, addresses, offset)
    (launch,) = chosen.launches
    params = chosen.arguments(launch, **addresses._asdict(), fill=-np.inf)
    shared, program = spec.shared_bytes, interpreter.program(spec.name)
    ptx.run(program, grid=launch.grid, block=spec.threads, shared_bytes=shared, params=params, memory=memory)
    y = torch.stack([torch.from_numpy(memory.read(f"y {row}")).view(x.dtype) for row in range(ROWS)])
    formula: tuple = reference.to_numpy(x), 1.0, None if mask is None else reference.to_numpy(mask), offset
    rounding = reference.score_rounding(*formula)
    try:
        reference.assert_close(y, reference.softmax(*formula), spec.dtype.value, rounding=rounding)
    except AssertionError as error:
        raise Wrong("numbers", f"rows 2^33 elements apart: {error}") from None


def _add_rows(memory: ptx.GlobalMemory, name: str, tensor: torch.Tensor, address: int, phase: int) -> int:
    access: Any = "write" if name == "y" else "read"
    first = address + phase * tensor.element_size()
    for row in range(ROWS):
        at = first + row * STEP * tensor.element_size()
        memory.add(f"{name} {row}", tensor[row].view(torch.uint8).numpy(), access, at=at)
    return first


def _plan(spec: Spec, k: int, addresses: Operands, offset: int | None) -> LaunchPlan:
    strides = (STEP, 1)
    geometry = Geometry(
        dtype=spec.dtype.value,
        mask_kind=spec.mask.label,
        shape=(ROWS, k),
        x_strides=strides,
        y_strides=strides,
        mask_strides=strides if spec.mask in MASKED else (0, 0),
        alignment=Operands(*(gcd(address, 16) for address in addresses)),
        causal_offset=offset,
    )
    chosen = plan(geometry, catalog.load())
    assert chosen.variant.name == spec.name, chosen.reason
    return chosen
