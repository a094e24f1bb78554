"""The check of every kernel on a GPU, without one: on the interpreter, on the stub driver, with made-up processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest
from cuda.bindings import driver as cuda

from softmax_ops import driver
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.bundle import Bundle, write_bundle
from softmax_ops.planning.launch_plan import LaunchPlan
from tests import on_gpu
from tests.on_gpu import Verdict
from tests.support import stub_driver, targets, watchdog
from tests.support.engines import InterpreterEngine, Operands, Outcome
from tests.support.launches import cubin
from tests.support.targets import Target

TILE = "softmax_fwd_f32_none_tile"


def names(only: str = TILE) -> list[str]:
    return on_gpu.chosen("sm_90", only)


def engine_of(name: str, folder: Path) -> InterpreterEngine:
    (spec,) = (spec for spec in targets.shipped("sm_90") if spec.name == name)
    return InterpreterEngine(targets.images([Target("sm_90", spec)], "ptx", folder)["sm_90"])


@pytest.mark.kernels
def test_a_kernel_is_judged_by_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter in place of the GPU: right as it is, and wrong with one byte changed."""
    name = names()[0]
    engine = engine_of(name, tmp_path)
    right = on_gpu.verdict(name, lambda _: engine)
    assert right.failure == "" and not right.lost and right.cases > 3

    class Wrong:
        def run(self, plan: LaunchPlan, operands: Operands) -> Outcome:
            outcome = engine.run(plan, operands)
            outcome.output[operands.result.first + 3] ^= 0x40
            return outcome

    wrong = on_gpu.verdict(name, lambda _: Wrong())
    assert wrong.cases == right.cases and not wrong.lost
    assert wrong.failure.startswith(f"{right.cases} of {right.cases} cases; Wrong: numbers: ")


def served(path: Path, only: str = TILE) -> list[str]:
    """A bundle that the stub driver can load."""
    known = catalog.load().variants
    write_bundle(path, [cubin(known[name], "sm_90", name) for name in names(only)], catalog=b"{}", toolchain="none")
    return names(only)


def test_what_the_bundle_lacks_is_a_failure(tmp_path: Path) -> None:
    first, *others = served(tmp_path / "bundle")
    (tmp_path / "bundle").unlink()
    stale = replace(cubin(catalog.load().variants[first], "sm_90", first), source="0" * 64)
    write_bundle(tmp_path / "bundle", [stale], catalog=b"{}", toolchain="none")
    bundle = Bundle(tmp_path / "bundle")
    for name, why in ((first, "another source"), (others[0], "holds no")):
        found = on_gpu.verdict(name, lambda name: on_gpu.from_bundle(bundle, "sm_90", name))
        assert why in found.failure and found.cases == 0


@stub_driver.isolated
def test_clusters_that_a_gpu_has_no_room_for_are_not_run(tmp_path: Path) -> None:
    """Other cases of the variant are, and a launch that the driver refuses costs its case alone."""
    name = "softmax_fwd_f16_none_cluster_k278528_v8_t544r1c16"
    served(tmp_path / "bundle", name)
    bundle = Bundle(tmp_path / "bundle")
    stub_driver.largest_cluster(4)
    found = on_gpu.verdict(name, lambda name: on_gpu.from_bundle(bundle, "sm_90", name))
    assert {call.cluster[0] for call in stub_driver.launches()} == {4}
    assert found.without_room > 0 and found.cases > 0 and not found.lost
    assert found.failure.startswith(f"{found.cases} of {found.cases} cases; Wrong: ")  # the stub computes nothing


@stub_driver.isolated
def test_a_refused_launch_costs_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, *_) = served(tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    refused = Mock(side_effect=driver.DriverError("cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: out of memory"))
    monkeypatch.setattr("tests.support.engines._DeviceBuffer", refused)
    found = on_gpu.verdict(name, lambda name: on_gpu.from_bundle(bundle, "sm_90", name))
    assert found.cases == refused.call_count > 3 and not found.lost
    assert f"{found.cases} of {found.cases} cases; " in found.failure and "OUT_OF_MEMORY" in found.failure


@pytest.mark.slow
@stub_driver.isolated
def test_a_lost_context_ends_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub computes nothing, so every result is wrong; then its context is lost."""
    found = served(tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    said: list[Verdict] = []
    for each in on_gpu.here(found, lambda name: on_gpu.from_bundle(bundle, "sm_90", name), 60.0, said.append):
        said.append(each)
        monkeypatch.setattr(cuda, "cuCtxSynchronize", lambda: (cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,))
    assert [each.variant for each in said] == found[:2] and [each.lost for each in said] == [False, True]
    assert " cases; Wrong: " in said[0].failure and said[0].cases > 3
    assert "DriverError: cuCtxSynchronize" in said[1].failure and said[1].cases == 1


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_command_on_the_stub_driver(jobs: int, tmp_path: Path) -> None:
    found = served(tmp_path / "bundle")
    how = ["--bundle", str(tmp_path / "bundle"), "--only", TILE, "--first", "2", "--json", str(tmp_path / "found.json")]
    result = subprocess.run(
        [sys.executable, "-m", "tests.on_gpu", *how, "--jobs", str(jobs)],
        cwd=stub_driver.CHECKOUT,
        env=stub_driver.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 1 and not result.stderr
    assert [line.split(":")[0] for line in lines[:-1]] == [f"FAILED {name}" for name in found[:2]]
    summary = json.loads((tmp_path / "found.json").read_text())
    assert lines[-1].startswith(f"sm_90: 0 of 2 variants right, {summary['cases']} cases")
    assert set(summary["failed"]) == set(found[:2]) and summary["right"] == 0 and summary["left"] == []


ENDS = """
import json, sys, time
for name in sys.stdin.read().split():
    if name == "crash":
        sys.exit("Segmentation fault")
    if name == "hang":
        time.sleep(60)
    lost = name == "lost"
    print(json.dumps({"variant": name, "cases": 2, "failure": "illegal" if lost else "", "lost": lost}), flush=True)
    if lost:
        break
"""


def test_another_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "START_S", 3.0)
    given = ["a", "crash", "b", "lost", "c", "hang", "d"]
    found = on_gpu.apart(given, [sys.executable, "-c", ENDS], 0.0)
    assert [each.variant for each in found] == given
    assert {each.variant: each.failure for each in found if each.failure} == {
        "crash": "its process ended with status 1: Segmentation fault",
        "lost": "illegal",
        "hang": "its process was not finished in 3 s",
    }


def test_shards_come_as_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "SHARD", 2)
    found = on_gpu.in_processes([*"abcde"], [sys.executable, "-c", ENDS], 60.0, jobs=2)
    assert sorted(each.variant for each in found) == [*"abcde"]


def test_a_variant_that_hangs_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()
    said: list[Any] = []

    def end(status: int) -> None:
        said.append(status)
        ended.set()

    def engine(name: str) -> Any:
        assert ended.wait(20)
        raise KeyboardInterrupt  # what the end of the process is here

    monkeypatch.setattr(watchdog.os, "_exit", end)
    with pytest.raises(KeyboardInterrupt):
        list(on_gpu.here(names(), engine, 0.2, said.append))
    assert said == [Verdict(names()[0], 0, "not finished in 0.2 s", lost=True), watchdog.LOST]


def test_a_lost_process_leaves_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = [Verdict("a", 3), Verdict("b", 1, "illegal", lost=True)]
    assert on_gpu._summary([*"abcd"], verdicts, "sm_90", tmp_path / "found.json") == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "FAILED b: illegal" and said[1].startswith("sm_90: 1 of 4 variants right, 4 cases")
    assert said[2].startswith("2 were not run")
    assert json.loads((tmp_path / "found.json").read_text())["left"] == ["c", "d"]
    assert on_gpu._summary(["a"], verdicts[:1], "sm_90", None) == 0
    assert on_gpu._summary([], [], "sm_90", None) == 1


def test_variants_are_chosen() -> None:
    every = names("")
    assert every == [spec.name for spec in targets.shipped("sm_90")] and len(names("sm_")) == 0
    assert on_gpu.chosen("sm_90", first=3) == every[:3]
    sample = on_gpu.chosen("sm_90", sample=12)
    assert len(sample) == len(set(sample)) == 12 and {*sample} <= {*every}
    assert all(any(part in name for name in sample) for part in ("_fwd_", "_bwd_", "_f16_", "_f32_"))
    assert on_gpu.chosen("sm_90", "_bwd_f64_", sample=2) == on_gpu.chosen("sm_90", "_bwd_f64_", sample=2)
    assert on_gpu.chosen("sm_90", "nothing", sample=2) == []


def test_it_needs_no_compiler() -> None:
    """What a machine without the toolchain lacks is not imported."""
    script = (
        "import sys, cuda.bindings.driver;"  # which in some versions imports cuda.pathfinder for itself
        "sys.modules.update(dict.fromkeys(['click', 'jinja2', 'rich', 'pytest', 'cuda.pathfinder']));"
        "import tests.on_gpu"
    )
    subprocess.run([sys.executable, "-c", script], cwd=stub_driver.CHECKOUT, check=True, timeout=120)


def test_without_a_gpu_or_a_bundle_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SOFTMAX_OPS_BUNDLE", raising=False)
    for gpu, how, said in (
        (None, [], "no GPU here"),
        ("sm_90", [], "no bundle: name one with --bundle"),
        ("sm_90", ["--bundle", str(tmp_path / "none")], f"the bundle {tmp_path / 'none'} cannot be read"),
    ):
        monkeypatch.setattr(on_gpu, "gpu_architecture", lambda gpu=gpu: gpu)
        assert on_gpu.main(how) == 1
        assert said in capsys.readouterr().err
