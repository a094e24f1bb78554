"""`python -m codegen tune` without a GPU: its candidates, their launches, and what a measurement proposes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from click.testing import CliRunner

from benchmarks import tuning as timing
from benchmarks.cells import Cell
from benchmarks.measure import DeviceLost
from benchmarks.providers import OURS, Provider
from benchmarks.results import Row
from benchmarks.tensors import Tensors
from codegen import build, plan_tables, plans, toolchain, tuning, variants
from codegen import catalog as codegen_catalog
from codegen.__main__ import main as command_line
from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from codegen.render import render
from codegen.sources import source_digest
from codegen.spec import Spec
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.bundle import Bundle
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.planning.launch_plan import LaunchPlan, plan
from tests.support import watchdog
from tests.support.fake_device import COPY_US, FakeDevice, provider
from tests.support.geometries import geometry

LENGTHS = (8, 33, 128, 197, 1024, 1500, 4096, 8192, 50257, 131072)
KINDS = [(direction, dtype) for direction in Direction for dtype in (DType.F16, DType.F32)]


@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0].label}-{kind[1].value}")
def test_candidates_serve_the_length_on_their_architecture(kind: tuple[Direction, DType], k: int) -> None:
    """Each one launches, holds the whole row, and has lanes for all its rows."""
    direction, dtype = kind
    for arch, most in (("sm_80", 1), ("sm_90", 16), ("sm_120", 8)):
        found = tuning.candidates(*kind, k, arch)
        assert len(found) >= 2 and len(found) == len(set(found))
        assert max(spec.cluster for spec in found) <= most
        for spec in found:
            assert Spec.from_name(spec.name) == spec
            assert spec.vec == 1 or k % spec.vec == 0
            assert (
                spec.threads % 32 == 0 and spec.threads == spec.threads_per_row * spec.rows
            ) or spec.plan is Plan.TILE
            of = geometry((300, k), dtype.value, direction=direction.label)
            assert plan(of, codegen_catalog.alone(spec), arch).variant.name == spec.name


def test_the_shipped_tile_is_what_dispatch_chooses() -> None:
    for direction, dtype in KINDS:
        for k in LENGTHS:
            of = geometry((300, k), dtype.value, direction=direction.label)
            name = plan(of, catalog.load(), "sm_90").variant.name
            assert tuning.shipped(direction, dtype, k, "sm_90").name == name
    assert tuning.shipped(Direction.FORWARD, DType.F16, 50257, "sm_80").plan is Plan.STREAM


def test_what_spills_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other candidates are built together, and other errors are not mistaken for a spill."""
    specs = tuning.candidates(Direction.FORWARD, DType.F16, 1024, "sm_90")
    spilling = {specs[0].name, specs[2].name}

    def built(sources: Mapping[str, str], *_: Any, **__: Any) -> build.Report:
        for name in sources:
            if name in spilling:
                raise pickle.loads(pickle.dumps(toolchain.Spills(name, "sm_90", "8 bytes spill stores")))
        return build.Report(tuple(cubin_of(Spec.from_name(name)) for name in sources), 1, 0)

    monkeypatch.setattr(build, "build_sources", built)
    cubins, refused = tuning.compiled(specs, "sm_90")
    assert [cubin.variant for cubin in cubins] == [spec.name for spec in specs if spec.name not in spilling]
    assert refused == {name: f"{name} for sm_90 spills registers:" for name in spilling}
    monkeypatch.setattr(build, "build_sources", Mock(side_effect=toolchain.ToolchainError("no headers")))
    with pytest.raises(toolchain.ToolchainError, match="no headers"):
        tuning.compiled(specs, "sm_90")


def test_candidates_prepared_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found by name, architecture and source, and nothing is compiled."""
    one, two, three = tuning.compared(Direction.FORWARD, DType.F16, 1024, "sm_90")[:3]
    cubins = [cubin_of(one), replace(cubin_of(two), source="0" * 64)]
    monkeypatch.setattr(tuning, "compiled", lambda specs, arch: (cubins, {three.name: "it spills"}))
    said = tuning.prepare([one, two, three], "sm_90", tmp_path / "new" / "tune.bundle").splitlines()
    assert said[0] == f"no figure of {three.name}: it spills" and "2 candidates for sm_90" in said[1]
    bundle = Bundle(tmp_path / "new" / "tune.bundle")
    assert bundle.verify() == []
    found, without = tuning.prebuilt([one, two, three], "sm_90", bundle)
    assert found == cubins[:1]
    assert "from another source" in without[two.name] and "holds no" in without[three.name]
    assert set(tuning.prebuilt([one], "sm_80", bundle)[1]) == {one.name}


def test_the_command_prepares_without_a_gpu(tmp_path: Path) -> None:
    """With real compilation, for two lengths that share candidates."""
    path, command = tmp_path / "tune.bundle", ["tune", "24", "32", "--prepare", "sm_90"]
    assert "--bundle" in CliRunner().invoke(command_line, command).output
    result = CliRunner().invoke(command_line, [*command, "--bundle", str(path)])
    assert result.exit_code == 0, result.output
    for k in (24, 32):
        specs = tuning.compared(Direction.FORWARD, DType.F16, k, "sm_90")
        found, without = tuning.prebuilt(specs, "sm_90", Bundle(path))
        assert len(found) + len(without) == len(specs) and found
        assert all(f"no figure of {name}" in result.output for name in without)


def cubin_of(spec: Spec) -> Cubin:
    return Cubin(spec.name, "sm_90", b"code", 32, 0, source_digest(render(spec)), "0" * 64, "cubin")


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
    said = tuning.proposal(found[::-1], three, 1024, "sm_90", "GPU", "2026-01-02").splitlines()
    assert "(now)" in said[1]
    assert said[-2] == "proposed for MEASURED[Direction.FORWARD, DType.F16, Mask.NONE] in codegen/plans.py:"
    proposed = eval(said[-1], vars(plans))
    assert variants.variant(two.direction, two.dtype, Mask.NONE, proposed) == two
    assert proposed.measured == "sm_90: GPU, 2026-01-02: 0.800 of the copy at K = 1024, 10.0 us, 12.0 us before"
    said = tuning.proposal(found, two, 1024, "sm_90", "GPU", "").splitlines()
    assert said[-1].startswith("the table has the fastest")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Spec, int], None]]:
    """Puts a row for a kernel, as `tune` proposes it after timing rows of k columns on sm_90, into plans.MEASURED,
    which is empty without."""

    def forget() -> None:
        for each in (variants.shipped, variants._chosen_on, variants.by_name):
            each.cache_clear()

    def put(spec: Spec, k: int) -> None:
        row = tuning.row(spec, k, "sm_90", "sm_90: GPU, today")
        monkeypatch.setitem(plans.MEASURED, (spec.direction, spec.dtype, Mask.NONE), (row,))
        forget()

    for key in list(plans.MEASURED):
        monkeypatch.delitem(plans.MEASURED, key)
    forget()
    yield put
    monkeypatch.undo()
    forget()


def served(k: int, arch: str, rows: int = 300, **how: Any) -> LaunchPlan:
    """What a catalog written now chooses for unmasked f16 rows."""
    written = codegen_catalog.build_catalog(dict.fromkeys((f"{spec.name}.cu" for spec in variants.shipped()), ""))
    return plan(geometry((rows, k), "f16", **how), written, arch)


def test_dispatch_tries_what_was_measured_first(
    measured: Callable[[Spec, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its architecture, for lengths near the measured one; aligned rows keep their own kernels."""
    best = next(
        spec
        for spec in tuning.candidates(Direction.FORWARD, DType.F16, 1801, "sm_90")
        if (spec.plan, spec.threads) == (Plan.BLOCK, 128)
    )
    before = {
        (k, arch): served(k, arch).variant.name for k in (1543, 1545, 1808, 2047, 2049) for arch in ("sm_80", "sm_90")
    }
    measured(best, 1801)
    after = {key: served(*key) for key in before}
    assert {key for key in before if after[key].variant.name != before[key]} == {(1545, "sm_90"), (2047, "sm_90")}
    assert after[2047, "sm_90"].variant.name == best.name
    assert after[2047, "sm_90"].measured == "sm_90: GPU, today"
    assert after[2047, "sm_80"].measured.startswith("by arithmetic")
    assert variants.architectures(best) == ("sm_90",)
    with monkeypatch.context() as patched:
        wanted = Mock(return_value=build.Report((), 0, 0))
        patched.setattr(build, "build_sources", wanted)
        tuning.compiled([best], "sm_100")
    assert wanted.call_args.args[1] == {"sm_100": [best.name]}, "it may be the fastest elsewhere, too"
    said = plan_tables.measured()
    assert "A measurement has chosen 1 more" in said
    assert f"* fwd f16 none, K = 1544 .. 2048 on sm_90: `{best.name}`. sm_90: GPU, today" in said


def test_a_measured_tile_serves_ranges_only(measured: Callable[[Spec, int], None]) -> None:
    """It was timed on one: rows apart keep the kernel that they had."""
    best = next(
        spec for spec in tuning.candidates(Direction.FORWARD, DType.F16, 101, "sm_90") if spec.plan is Plan.TILE
    )
    apart: dict[str, Any] = {"strides": {"x": (104, 1)}}
    before = served(101, "sm_90", **apart).variant.name
    measured(best, 101)
    assert served(101, "sm_90").variant.name == best.name != before
    assert served(101, "sm_90", **apart).variant.name == before


def test_a_measured_stream_leaves_few_rows_alone(measured: Callable[[Spec, int], None]) -> None:
    """It was measured with many rows, which fill the GPU. A batch-invariant call must not depend on their number."""
    stream = next(
        spec
        for spec in tuning.candidates(Direction.FORWARD, DType.F16, 131072, "sm_90")
        if (spec.plan, spec.threads) == (Plan.STREAM, 1024)
    )
    measured(stream, 131072)
    assert served(131072, "sm_90").variant.name == stream.name
    assert served(131072, "sm_90", 128).variant.plan == "cluster"
    assert served(131072, "sm_90", batch_invariant=True).variant.plan == "cluster"
    assert served(131071, "sm_90").variant.plan == "cluster", "only aligned rows were measured"


def test_without_a_gpu_the_command_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = CliRunner().invoke(command_line, ["tune", "1024"])
    assert result.exit_code == 1 and "no GPU here: nothing is measured" in result.output


def test_a_lost_device_ends_the_command_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before is out already."""

    def tune(direction: Direction, dtype: DType, k: int, bundle: Bundle | None) -> str:
        if k == 1024:
            return "its figures"
        raise DeviceLost(Row(f"tune {k}", 1, "", lost={"a candidate": "an illegal memory access"}))

    monkeypatch.setattr(timing, "tune", tune)
    result = CliRunner().invoke(command_line, ["tune", "1024", "1500", "4096"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.output.splitlines() == [
        "K = 1024",
        "its figures",
        "Error: tune 1500: this process can measure nothing more after a candidate: an illegal memory access; "
        "run again to go on",
    ]


def test_a_candidate_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ended, statuses = Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    def hang(tensors: Tensors) -> torch.Tensor:
        assert ended.wait(20)
        raise KeyboardInterrupt  # what the end of the process is here

    monkeypatch.setattr("benchmarks.tensors.sets_of", lambda cell, l2_bytes: 1)
    monkeypatch.setattr(timing, "LIMIT_S", 0.5)
    monkeypatch.setattr(watchdog.os, "_exit", end)
    cell = Cell("tune", (1, 1, 6, 1024), "f16")
    with pytest.raises(KeyboardInterrupt):
        timing.sweep(cell, FakeDevice(), [provider("a candidate", 1.0, hang)])
    assert statuses == [watchdog.LOST]
    assert capsys.readouterr().out == f"HUNG {cell.key}: a candidate: not finished in 0.5 s\n"


def test_a_catalog_of_one_kernel_serves_its_masks_only() -> None:
    spec = next(spec for spec in variants.shipped() if spec.mask is Mask.BOOLCAUSAL)
    alone = codegen_catalog.alone(spec)
    assert [key[2] for key in alone.tables] == ["bool", "boolcausal"] and list(alone.variants) == [spec.name]
    assert alone.variants[spec.name] == catalog.load().variants[spec.name]
