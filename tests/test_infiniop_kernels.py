"""The InfiniOP causal softmax, executed: descriptors' plans on the PTX interpreter."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from codegen import variants
from softmax_ops import driver, infiniop
from softmax_ops.infiniop import Ref
from softmax_ops.planning.launch_plan import LaunchPlan
from tests.support import layouts, reference, targets
from tests.support.engines import POISON, InterpreterEngine, Operands
from tests.support.layouts import Layout
from tests.support.targets import Target

pytestmark = pytest.mark.kernels

DTYPES = {
    "f16": infiniop.INFINI_DTYPE_F16,
    "bf16": infiniop.INFINI_DTYPE_BF16,
    "f32": infiniop.INFINI_DTYPE_F32,
    "f64": infiniop.INFINI_DTYPE_F64,
}


class Case(NamedTuple):
    """A tensor in place: at an aligned address, or `layout.phase` elements after one."""

    dtype: str
    shape: tuple[int, ...]
    layout: Layout
    arch: str = targets.WHOLE

    @property
    def plan(self) -> LaunchPlan:
        """The plan that a descriptor holds. The driver is never asked, even if there is one."""
        handle, tensor, softmax = Ref(), Ref(), Ref()
        strides = self.layout.strides(self.shape)
        created = [
            infiniop.infiniopCreateHandle(handle, infiniop.INFINI_DEVICE_NVIDIA, 0),
            infiniop.infiniopCreateTensorDescriptor(tensor, len(self.shape), self.shape, strides, DTYPES[self.dtype]),
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "architecture", _no_driver)
            created.append(infiniop.infiniopCreateCausalSoftmaxDescriptor(handle.value, softmax, tensor.value))
        assert created == [infiniop.INFINI_STATUS_SUCCESS] * 3, infiniop.infiniopGetLastError()
        aligned, anywhere = softmax.value.plans(self.arch)
        chosen: LaunchPlan = anywhere if self.layout.phase else aligned
        size = Ref()
        assert infiniop.infiniopGetCausalSoftmaxWorkspaceSize(softmax.value, size) == infiniop.INFINI_STATUS_SUCCESS
        assert size.value >= chosen.workspace_bytes
        return chosen


def _no_driver(device: int) -> str:
    raise driver.DriverError("there is none in this test")


EXAMPLE = [Case(dtype, (4, 7), Layout(phase=phase)) for dtype in DTYPES for phase in (0, 1)]
STRIDED = [
    Case("f16", (3, 5, 64), Layout(gap=8, order=(1, 0))),
    Case("bf16", (3, 5, 67), Layout(phase=3, gap=2)),
    Case("f32", (2, 9, 300), Layout(gap=4)),
    Case("f64", (2, 3, 40), Layout(phase=1, gap=3, order=(1, 0))),
    Case("f32", (2, 3, 16389), Layout(gap=3), arch="sm_80"),
]
"""The last one is `split`: two launches, with a workspace."""


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InterpreterEngine]:
    """Interpreters by architecture."""
    specs = variants.by_name()
    chosen = {Target(case.arch, specs[case.plan.variant.name]) for case in (*EXAMPLE, *STRIDED)}
    images = targets.images(chosen, "ptx", tmp_path_factory.getbasetemp().parent)
    return {arch: InterpreterEngine(found) for arch, found in images.items()}


def execute(case: Case, x: torch.Tensor, interpreter: InterpreterEngine) -> torch.Tensor:
    """The result in x's place; every byte of it must have been written, and none around it."""
    operand = layouts.place(x, case.layout)
    plan = case.plan
    assert layouts.alignment(operand) % plan.geometry.output.alignment == 0  # the plan assumes no more
    outcome = interpreter.run(plan, Operands({"x": operand}, "x", None, scale=1.0, fill=-np.inf))
    assert outcome.unwritten is not None and not outcome.unwritten.any()
    assert (outcome.output[~operand.valid] == POISON).all()
    return layouts.read(outcome.output, operand, x, case.layout)


@pytest.mark.parametrize("case", EXAMPLE, ids=lambda case: f"{case.dtype} phase {case.layout.phase}")
def test_the_example_of_the_interface(case: Case, interpreters: dict[str, InterpreterEngine]) -> None:
    """Q = 4, K = 7: the first query sees four columns, the last one all seven. Hidden elements are NaN and become 0."""
    x = torch.arange(28, dtype=torch.float64).reshape(4, 7) / 8
    visible = torch.tensor([[column <= query + 3 for column in range(7)] for query in range(4)])
    x = x.where(visible, torch.nan).to(reference.DTYPES[case.dtype])
    y = execute(case, x, interpreters[case.arch])
    weight = torch.exp(torch.arange(7, dtype=torch.float64) / 8)  # the same in every row
    wanted = torch.stack([(weight * seen) / (weight * seen).sum() for seen in visible])
    assert torch.equal(y != 0, visible)
    assert (y.double() - wanted).abs().max() < 4 * torch.finfo(y.dtype).eps
    judge(y, x, 3, case.dtype)


@pytest.mark.parametrize("case", STRIDED, ids=lambda case: f"{case.dtype} {case.arch}")
def test_strided_tensors(case: Case, interpreters: dict[str, InterpreterEngine]) -> None:
    generator = torch.Generator().manual_seed(7)
    x = 4 * torch.randn(case.shape, generator=generator, dtype=torch.float64)
    x[0, 0, :2] = float("-inf")
    x = x.to(reference.DTYPES[case.dtype])
    y = execute(case, x, interpreters[case.arch])
    judge(y, x, case.shape[-1] - case.shape[-2], case.dtype)
    if case.arch == "sm_80":
        assert case.plan.variant.plan == "split" and case.plan.workspace_bytes


def judge(y: torch.Tensor, x: torch.Tensor, offset: int, dtype: str) -> None:
    formula: tuple[Any, ...] = (reference.to_numpy(x), 1.0, None, offset)
    rounding = reference.score_rounding(*formula)
    reference.assert_close(y, reference.softmax(*formula), dtype, rounding=rounding)
