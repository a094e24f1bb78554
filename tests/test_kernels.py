"""Every shipped kernel, executed on the PTX interpreter, and on the GPU if there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegen import toolchain, variants
from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from softmax_ops.artifacts.cubin import built_for
from softmax_ops.planning import split
from tests.support import targets
from tests.support.calls import Call, Case
from tests.support.cases import LONG, cases, full_cta, interval
from tests.support.engines import DriverEngine, InterpreterEngine, NoRoom, gpu_architecture
from tests.support.far import judge_far_rows
from tests.support.layouts import Layout
from tests.support.outcomes import judge, judge_memory, judge_numbers
from tests.support.targets import Target

pytestmark = pytest.mark.kernels

GPU = gpu_architecture()
SHIPPED = [Target(targets.WHOLE, spec) for spec in variants.shipped()]
MOST_OPERANDS = [
    each
    for each in SHIPPED
    if each.spec.mask in (Mask.BOOLCAUSAL, Mask.BIAS, Mask.GENERAL) or each.spec.direction is Direction.BACKWARD
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --all-architectures every kernel runs every test, and `test_kernel` on each of them. Without, `test_kernel`
    runs on some more than the other tests; and of what depends only on where a row lies, bf16 is left out: its kernels
    come from the same lines of the templates as those of f16."""
    everything = metafunc.config.getoption("--all-architectures")
    if metafunc.function is test_kernel:
        metafunc.parametrize("target", targets.targets(everything), ids=str)
    if metafunc.function in POSITIONS:
        chosen = POSITIONS[metafunc.function]
        few = [each for each in chosen if "bf16" not in each.spec.dtype.value]
        metafunc.parametrize("target", chosen if everything else few, ids=str)


@pytest.fixture(scope="session")
def interpreters(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, InterpreterEngine]:
    """Interpreters by architecture."""
    chosen = targets.wanted(request.session, __name__)
    images = targets.images(chosen, "ptx", tmp_path_factory.getbasetemp().parent)
    return {arch: InterpreterEngine(found) for arch, found in images.items()}


@pytest.fixture
def interpreter(target: Target, interpreters: dict[str, InterpreterEngine]) -> InterpreterEngine:
    return interpreters[target.arch]


def test_kernel(target: Target, interpreter: InterpreterEngine) -> None:
    """Right numbers, and every access in bounds, aligned, ordered, and as wide as promised, in all cases of the
    variant.

    Dispatch gives every case to this variant, and each runs several CTAs; in the first case the last CTA is not full.
    """
    calls = [case.call() for case in cases(target.spec)]
    launches = [launch for call in calls for launch in call.plan.launches]
    assert all(launch.grid > 1 for launch in launches)
    assert calls[0].rows_per_cta == 1 or launches[0].rows % calls[0].rows_per_cta
    for call in calls:
        judge(call, interpreter.run(call.plan, call.operands))


def test_same_row_same_bits_wherever_it_stands(target: Target, interpreter: InterpreterEngine) -> None:
    """In a batch of any size: the last rows of a batch, and alone. Unaligned rows are compared at the same
    phase, since the order of the sum depends on where they are cut into vectors."""
    longest, in_place, *_ = cases(target.spec)
    case = in_place if target.spec.plan in LONG else longest
    call = (in_one_phase(case) if target.spec.unaligned else case).call()
    alone = output(interpreter, call.only(case.shape[0] - 1))
    assert torch.equal(alone, output(interpreter, call)[-1:]), case.why


IN_WORDS = [each for each in SHIPPED if each.spec.plan is Plan.TILE and each.spec.unaligned and not each.spec.flat]
IN_WORDS = [each for each in IN_WORDS if each.spec.dtype is DType.F16]


@pytest.mark.parametrize("target", IN_WORDS, ids=str)
def test_same_row_same_bits_in_a_range_and_apart(target: Target, interpreter: InterpreterEngine) -> None:
    """Rows of a tile at odd and at even addresses, one after the other and with gaps between them; so many that another
    order of summation would round some result differently."""
    case = full_cta(target.spec, (interval(target.spec)[1] - 1) | 1)
    shape = (*case.shape[:-2], 16 * case.shape[-2], case.shape[-1])
    case = replace(case, shape=shape, mask_shape=case.mask_shape and shape)
    call = case.call()
    gaps = replace(case, inputs=(Layout(phase=1, gap=2),) * len(case.inputs), output=Layout(phase=1, gap=2))
    apart = replace(call, case=gaps)
    assert torch.equal(output(interpreter, call), output(interpreter, apart))


SPLIT = [each for each in SHIPPED if each.spec.plan is Plan.SPLIT]


@pytest.mark.parametrize("target", SPLIT, ids=str)
def test_partials_that_a_launch_combines(
    target: Target, interpreter: InterpreterEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of very many pieces take three launches. Here few do: right, and the same bits as in two launches."""
    call = cases(target.spec)[0].call()
    before = output(interpreter, call)
    monkeypatch.setattr(split, "MOST_PARTIAL_BYTES", 0)
    combined = cases(target.spec)[0].call()
    assert len(combined.plan.launches) == len(call.plan.launches) + 1 == 3
    outcome = interpreter.run(combined.plan, combined.operands)
    judge_memory(combined, outcome)
    judge_numbers(combined, outcome)
    assert torch.equal(combined.output(outcome.output).view(torch.uint8), before)


def in_one_phase(case: Case) -> Case:
    """With gaps between rows, so that all of them start at the same phase."""
    gap = -case.shape[-1] % case.spec.access
    *inputs, output = (replace(layout, gap=gap) for layout in case.layouts.values())
    return replace(case, inputs=tuple(inputs), output=case.output if isinstance(case.output, str) else output)


def output(engine: InterpreterEngine, call: Call) -> torch.Tensor:
    """The output as integers, so that NaN equals itself."""
    return call.output(engine.run(call.plan, call.operands).output).view(torch.uint8)


def test_offsets_are_64_bit(target: Target, interpreter: InterpreterEngine) -> None:
    judge_far_rows(target.spec, interpreter)


POSITIONS = {
    test_same_row_same_bits_wherever_it_stands: SHIPPED,
    test_offsets_are_64_bit: [each for each in MOST_OPERANDS if not each.spec.flat],
}
"""Tests of where a row lies, and the targets that they are for."""


if GPU is not None:

    @pytest.fixture(scope="session")
    def driver(tmp_path_factory: pytest.TempPathFactory) -> DriverEngine:
        arch = str(built_for(str(GPU), toolchain.supported_architectures()))
        chosen = [Target(arch, spec) for spec in targets.shipped(arch)]
        return DriverEngine(targets.images(chosen, "cubin", tmp_path_factory.getbasetemp().parent)[arch])

    @pytest.mark.parametrize("target", SHIPPED, ids=str)
    def test_gpu_agrees(target: Target, interpreter: InterpreterEngine, driver: DriverEngine) -> None:
        """The same cases through the driver: right by the reference, and NaN, 0 and subnormal where the interpreter's
        are.

        Elsewhere both are within the tolerance of the same numbers; the hardware's ex2 and rcp are approximations.
        """
        for case in cases(target.spec):
            call = case.call()
            try:
                outcome = driver.run(call.plan, call.operands)
            except NoRoom:
                continue
            judge(call, outcome)
            there = call.output(outcome.output)
            here = output(interpreter, call).view(there.dtype)
            assert torch.equal(there.isnan(), here.isnan()) and torch.equal(there == 0, here == 0), case.why
