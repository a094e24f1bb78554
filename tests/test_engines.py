"""The driver engine where there is no GPU: it launches what the interpreter executes."""

from codegen import variants
from softmax_ops.artifacts.cubin import Cubin
from tests import stub_driver
from tests.cases import cases
from tests.engines import DriverEngine, gpu_architecture

SPEC = variants.by_name()["softmax_fwd_f16_bool_tile_k32_v1_t256r128"]


@stub_driver.isolated
def test_driver_engine_launches_the_plan() -> None:
    """On the stub: the plan's grid and parameter struct, at the addresses of the operands' first elements."""
    assert gpu_architecture() == "sm_90"
    image = f"{SPEC.argument_bytes} {SPEC.name}\0".encode()
    engine = DriverEngine({SPEC.name: Cubin(SPEC.name, "sm_90", image, 40, 0, source="a" * 64, fingerprint="b" * 64)})
    for case in cases(SPEC):
        call = case.call()
        stub_driver.forget()
        outcome = engine.run(call.plan, call.operands)
        (launch,), (made,) = call.plan.launches, stub_driver.launches()
        assert (made.grid[0], made.block[0], made.shared_bytes) == (launch.grid, SPEC.threads, SPEC.shared_bytes)
        operands = (call.operands.x, call.operands.y, call.operands.mask)
        x, y, mask = (0 if each is None else each.first for each in operands)  # the stub allocates at 0
        arguments = call.plan.arguments(launch, x=x, y=y or x, mask=mask, scale=case.scale, fill=case.fill)
        assert made.parameters == arguments
        assert outcome.output.size == (call.operands.y or call.operands.x).storage.size and outcome.unwritten is None
