"""Rows so far apart that 32 bits cannot count the elements between them."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import torch

from codegen.axes import Direction, Plan
from codegen.features import Mask
from codegen.spec import Spec
from softmax_ops.artifacts import catalog
from softmax_ops.planning.geometry import General, Geometry, Operand
from softmax_ops.planning.launch_plan import LaunchPlan, plan
from tests import ptx
from tests.support import reference, values
from tests.support.calls import CAUSAL, MASKED, Case
from tests.support.cases import LONG, interval
from tests.support.engines import InterpreterEngine, run_plan
from tests.support.outcomes import Wrong

STEP = 2**31 - 2**10
"""Elements from one row to the next: nearly the maximum of one launch."""

ROWS = 4


def judge_far_rows(spec: Spec, interpreter: InterpreterEngine) -> None:
    """Runs two rows of every tensor, each in a buffer of its own. Raises Wrong or Fault unless they come out right."""
    k = interval(spec)[0 if spec.plan in LONG else 1]
    rng = np.random.default_rng(k)
    seen = np.ones((ROWS, k), np.bool_)
    tensors = values.inputs(rng, spec.direction, np.zeros(ROWS, np.intp), seen, 1.0, spec.dtype)
    masked = spec.mask in MASKED and spec.direction is Direction.FORWARD
    mask = values.mask(rng, spec.mask, (ROWS, k), spec.dtype) if masked else None
    result = torch.empty(ROWS, k, dtype=reference.DTYPES[spec.dtype.output.value])
    named = dict(zip(spec.direction.tensors, [*tensors, result], strict=True))
    if mask is not None:
        named["mask"] = mask
    bias = torch.from_numpy(rng.integers(0, 2, (ROWS, k))).to(tensors[0].dtype) if spec.mask is Mask.BIAS else None
    if bias is not None:
        named["bias"] = bias
    output = spec.direction.tensors[-1]
    memory, phase = ptx.GlobalMemory(), 0 if spec.vec > 1 else 1
    addresses = {
        name: _add_rows(memory, name, tensor, (number + 1) << 40, phase, "write" if name == output else "read")
        for number, (name, tensor) in enumerate(named.items())
    }
    offset = k - ROWS if spec.mask in CAUSAL else None
    chosen = _plan(spec, k, addresses, {name: tensor.element_size() for name, tensor in named.items()}, offset)
    run_plan(interpreter.program(spec.name), chosen, memory, addresses, scale=1.0, fill=-np.inf)
    rows = [torch.from_numpy(memory.read(f"{output} {row}")).view(result.dtype) for row in range(ROWS)]
    _judge(spec, torch.stack(rows), tensors, mask, bias, offset)


def _judge(
    spec: Spec,
    found: torch.Tensor,
    tensors: list[torch.Tensor],
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    offset: int | None,
) -> None:
    inputs = [reference.to_numpy(tensor) for tensor in tensors]
    if bias is not None:
        inputs = [inputs[0] + reference.to_numpy(bias)]
    tolerance: dict[str, Any]
    if spec.direction is Direction.FORWARD:
        formula: tuple = *inputs, 1.0, None if mask is None else reference.to_numpy(mask), offset
        roundings = 1 if bias is None else 2  # of the product, and of the sum
        expected, tolerance = reference.softmax(*formula), {"rounding": roundings * reference.score_rounding(*formula)}
    else:
        formula = *inputs, 1.0, offset
        expected = reference.softmax_backward(*formula)
        tolerance = {"magnitude": reference.backward_magnitude(*formula)}
    try:
        reference.assert_close(found, expected, spec.dtype.output.value, **tolerance)
    except AssertionError as error:
        raise Wrong("numbers", f"rows 2^31 elements apart: {error}") from None


def _add_rows(memory: ptx.GlobalMemory, name: str, tensor: torch.Tensor, address: int, phase: int, access: Any) -> int:
    first = address + phase * tensor.element_size()
    for row in range(ROWS):
        at = first + row * STEP * tensor.element_size()
        memory.add(f"{name} {row}", tensor[row].contiguous().view(torch.uint8).numpy(), access, at=at)
    return first


def _plan(spec: Spec, k: int, addresses: dict[str, int], sizes: dict[str, int], offset: int | None) -> LaunchPlan:
    operands = (Operand(name, (STEP, 1), gcd(address, 16), sizes[name]) for name, address in addresses.items())
    shape = (ROWS, k)
    geometry = Geometry(
        spec.direction.label,
        spec.dtype.value,
        spec.mask.label,
        shape,
        tuple(operands),
        causal_offset=offset,
        batch_invariant=spec.plan is Plan.STREAM,
        general=General() if spec.mask.has_epilogue else None,
    )
    chosen = plan(geometry, catalog.load(), Case("", spec, shape, 1.0).arch)
    assert chosen.variant.name == spec.name, chosen.reason
    return chosen
