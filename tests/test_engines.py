"""The driver engine without a GPU: it launches what the interpreter executes."""

import pytest

from codegen import variants
from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from softmax_ops.artifacts.cubin import Cubin
from tests.support import stub_driver
from tests.support.cases import cases
from tests.support.engines import DriverEngine, gpu_architecture

pytestmark = pytest.mark.slow  # a process per test

WHICH = (
    (Direction.FORWARD, Mask.BOOLCAUSAL, Plan.TILE),
    (Direction.FORWARD, Mask.BOOLCAUSAL, Plan.CLUSTER),
    (Direction.BACKWARD, Mask.CAUSAL, Plan.WARP),
    (Direction.BACKWARD, Mask.CAUSAL, Plan.SPLIT),
    (Direction.FORWARD, Mask.GENERAL, Plan.BLOCK),
    (Direction.BACKWARD, Mask.GENERAL, Plan.SPLIT),
)
"""Masked or not, with two or three tensors, in clusters, in two launches with a workspace; with everything else."""


@stub_driver.isolated
@pytest.mark.parametrize(("direction", "mask", "plan"), WHICH, ids=lambda part: part.name.lower())
def test_driver_engine_launches_the_plan(direction: Direction, mask: Mask, plan: Plan) -> None:
    """On the stub: the plan's grids and parameter structs, with the addresses of the operands' first elements."""
    assert gpu_architecture() == "sm_90"
    spec = next(
        spec
        for spec in variants.shipped()
        if (spec.direction, spec.dtype, spec.mask, spec.plan, spec.vec) == (direction, DType.F16, mask, plan, 1)
    )
    image = stub_driver.image(spec.argument_bytes, spec.name)
    engine = DriverEngine({spec.name: Cubin(spec.name, "sm_90", image, 40, 0, source="a" * 64, fingerprint="b" * 64)})
    for case in cases(spec):
        call = case.call()
        stub_driver.forget()
        outcome = engine.run(call.plan, call.operands)
        # The stub allocates at address 0.
        tensors = {name: call.operand(name) for name in direction.tensors}
        if call.operands.mask is not None:
            tensors["mask"] = call.operands.mask
        tensors |= {**call.operands.others, **call.operands.results}
        values: dict[str, float] = {"workspace.address": 0, "scale": case.scale}
        if call.operands.mask is not None:
            values["mask.fill"] = case.fill
        values |= {f"{name}.address": operand.phase + operand.first for name, operand in tensors.items()}
        made = stub_driver.launches()
        assert [launch.parameters for launch in made] == [
            call.plan.arguments(launch, values) for launch in call.plan.launches
        ]
        for launch, wanted in zip(made, call.plan.launches, strict=True):
            assert (launch.grid[0], launch.block[0], launch.shared_bytes) == (
                wanted.grid,
                wanted.threads,
                spec.shared_bytes,
            )
            assert launch.cluster[0] == (wanted.cluster if wanted.cluster > 1 else 0)
        assert outcome.output.size == call.operands.result.storage.size and outcome.unwritten is None
