"""`python -m codegen tune` without a GPU: its candidates, their launch, and what a measurement proposes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import tuning as timing
from benchmarks.cells import Cell
from benchmarks.providers import OURS, Provider
from benchmarks.tensors import Tensors
from codegen import build, catalogue, chart, plans, toolchain, tuning, variants
from codegen.__main__ import main as command_line
from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from codegen.spec import Spec
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.launch_plan import plan
from tests.fake_device import COPY_US, FakeDevice, provider
from tests.geometries import geometry

LENGTHS = (8, 33, 128, 197, 1024, 1500, 4096, 8192, 50257, 131072)
KINDS = [(direction, dtype) for direction in Direction for dtype in (DType.F16, DType.F32)]


@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0].label}-{kind[1].value}")
def test_candidates_serve_the_length_on_their_architecture(kind: tuple[Direction, DType], k: int) -> None:
    """Each launches, holds the row whole, and has lanes for all its rows."""
    direction, dtype = kind
    for arch, most in (("sm_80", 1), ("sm_90", 16), ("sm_120", 8)):
        found = tuning.candidates(*kind, k, arch)
        assert len(found) >= 2 and len(found) == len(set(found))
        assert max(spec.cluster for spec in found) <= most
        for spec in found:
            assert Spec.from_name(spec.name) == spec
            assert spec.vec == 1 or k % spec.vec == 0
            assert (spec.threads % 32 == 0 and spec.threads == spec.lanes * spec.rows) or spec.plan is Plan.TILE
            of = geometry((300, k), dtype.value, direction=direction.label)
            assert plan(of, catalogue.alone(spec), arch).variant.name == spec.name


def test_the_shipped_tile_is_what_dispatch_chooses() -> None:
    for direction, dtype in KINDS:
        for k in LENGTHS:
            of = geometry((300, k), dtype.value, direction=direction.label)
            name = plan(of, catalog.load(), "sm_90").variant.name
            assert tuning.shipped(direction, dtype, k, "sm_90").name == name
    assert tuning.shipped(Direction.FORWARD, DType.F16, 50257, "sm_80").plan is Plan.STREAM


def test_one_that_does_not_compile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = tuning.candidates(Direction.FORWARD, DType.F16, 1024, "sm_90")

    def built(some: list[Spec], *_: Any, **__: Any) -> build.Report:
        if specs[0] in some:
            raise toolchain.ToolchainError("it spills\nmore")
        return build.Report(tuple(cubin_of(spec) for spec in some), len(some), 0)

    monkeypatch.setattr(build, "build", built)
    report, refused = tuning.compiled(specs, "sm_90")
    assert [cubin.variant for cubin in report.cubins] == [spec.name for spec in specs[1:]]
    assert refused == {specs[0].name: "it spills"}


def cubin_of(spec: Spec) -> Cubin:
    return Cubin(spec.name, "sm_90", b"code", 32, 0, "0" * 64, "0" * 64, "cubin")


def softmax_of(spec: Spec, us: float, scale: float) -> Provider:
    def compute(tensors: Tensors) -> torch.Tensor:
        return torch.softmax(tensors.inputs[0].float() * scale, -1).half()

    return replace(provider(spec.name, us, compute), allowed=1.0)


def test_a_sweep_on_the_device_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast candidate that is wrong has no figure; the fastest right one is proposed."""
    monkeypatch.setattr("benchmarks.tensors.sets_of", lambda cell, l2_bytes: 1)
    one, two, three = tuning.candidates(Direction.FORWARD, DType.F16, 1024, "sm_90")[:3]
    cell = Cell("tune", (1, 1, 6, 1024), "f16")
    made = [softmax_of(one, 5.0, 0.0), softmax_of(two, 10.0, 0.125), softmax_of(three, 12.0, 0.125)]
    row = timing.sweep(cell, FakeDevice(), made)
    assert OURS in row.times
    found, without = timing.figures(row, {spec.name: spec for spec in (one, two, three)})
    assert [each.spec for each in found] == [two, three] and found[0].share == COPY_US / 10
    assert without[one.name].startswith("wrong by ")
    said = tuning.proposal(found[::-1], three, 1024, "GPU", "2026-01-02")
    assert "(now)" in said.splitlines()[1]
    proposed = said.splitlines()[-1]
    assert "GPU, 2026-01-02: 0.800 of the copy at K = 1024, 10.0 us, 12.0 us before" in proposed
    as_python = {"RowPlan": plans.RowPlan, "Plan": Plan, "ANY_K": 0}
    entry = eval(proposed, as_python)
    assert (entry.plan, entry.threads, entry.rows, entry.max_k) == (two.plan, two.threads, two.rows, two.max_k)
    assert tuning.proposal(found, two, 1024, "GPU", "").splitlines()[-1].startswith("the table has the fastest")


def test_without_a_gpu_the_command_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = CliRunner().invoke(command_line, ["tune", "1024"])
    assert result.exit_code == 1 and "no GPU here: nothing is measured" in result.output


def test_the_page_says_which_rows_were_measured() -> None:
    kind = Direction.FORWARD, DType.F16, False
    one, two = plans.row_plans(*kind)[:2]
    assert chart._measured([(kind, one)]).startswith("0 of 1 rows were chosen by a measurement")
    said = chart._measured([(kind, one), (kind, replace(two, measured="H200, today"))]).splitlines()
    assert said[0].startswith("1 of 2 rows") and said[1].endswith("tile up to 16: H200, today")


def test_a_catalogue_of_one_kernel_serves_its_masks_only() -> None:
    spec = next(spec for spec in variants.shipped() if spec.mask is Mask.BOOLCAUSAL)
    alone = catalogue.alone(spec)
    assert [key[2] for key in alone.tables] == ["bool", "boolcausal"] and list(alone.variants) == [spec.name]
    assert alone.variants[spec.name] == catalog.load().variants[spec.name]
