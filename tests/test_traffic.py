"""Counts of what kernels move and compute: planned bytes, balance of causal rows, short rows, rows beyond 2^20."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codegen import variants
from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from softmax_ops.artifacts import catalog
from softmax_ops.explanation import explain_geometry
from softmax_ops.planning.launch_plan import plan
from tests.support import targets
from tests.support.calls import Call, Case
from tests.support.cases import full_cta, interval, middle, placed
from tests.support.engines import InterpreterEngine
from tests.support.features import Features
from tests.support.geometries import geometry
from tests.support.outcomes import judge, visible_columns
from tests.support.targets import Target

pytestmark = pytest.mark.kernels


@pytest.fixture(scope="module")
def interpreter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InterpreterEngine:
    found = targets.images(targets.wanted(request.session, __name__), "ptx", tmp_path_factory.getbasetemp().parent)
    return InterpreterEngine(found[targets.WHOLE])


def run(interpreter: InterpreterEngine, call: Call) -> None:
    judge(call, interpreter.run(call.plan, call.operands))


# ---- planned bytes


def sampled(direction: str, kind: str, arch: str) -> list[tuple[Target, int]]:
    """Row lengths from 1 to 300000, evenly spaced in their logarithm, each with the kernel that dispatch picks."""
    found = []
    for k in np.unique(np.geomspace(1, 300_000, 30).astype(int)).tolist():
        of = geometry((2, 1, k), "f16", kind, direction=direction, alignment=16)
        chosen = plan(of, catalog.load(), arch).variant
        found.append((Target(targets.WHOLE, variants.by_name()[chosen.name]), k))
    return found


LENGTHS = [
    *sampled("fwd", "none", "sm_90"),
    *sampled("bwd", "none", "sm_90"),
    *sampled("fwd", "causal", "sm_90"),
    *(each for each in sampled("fwd", "none", "sm_80") if each[1] > 16384),
]


@pytest.mark.parametrize(("target", "k"), LENGTHS, ids=str)
def test_planned_bytes_are_the_bytes_counted(target: Target, k: int, interpreter: InterpreterEngine) -> None:
    """For two contiguous rows. Reads of a causal row are rounded up to a vector."""
    spec = target.spec
    causal = spec.mask is Mask.CAUSAL and spec.direction is Direction.FORWARD
    case = Case(f"K = {k}", spec, (2, 1, k), 1.0, causal_offset=k // 2 if causal else None)
    call = case.call()
    outcome = interpreter.run(call.plan, call.operands)
    traffic = [report.traffic for report in outcome.reports]
    planned = explain_geometry(call.plan.geometry, case.arch)
    read = sum(launch[name].bytes_read for launch in traffic for name in call.inputs)
    slack = 2 * 16 * (2 if spec.piece else 1) if causal else 0
    assert planned.bytes_read <= read <= planned.bytes_read + slack
    assert planned.bytes_written == sum(launch["output"].bytes_written for launch in traffic)
    shared = [launch["workspace"] for launch in traffic if "workspace" in launch]
    assert planned.workspace_bytes == sum(launch.bytes_written for launch in shared)


# ---- causal rows


CAUSAL = [
    Target(targets.WHOLE, spec)
    for spec in variants.shipped()
    if spec.mask is Mask.CAUSAL and spec.dtype is DType.BF16 and spec.plan is not Plan.SPLIT
]


@pytest.mark.parametrize("target", CAUSAL, ids=str)
def test_neighbouring_ctas_share_long_and_short_rows(target: Target, interpreter: InterpreterEngine) -> None:
    """The bytes read by two neighbouring CTAs (or clusters) add up to the same everywhere, except for one column per
    row. Split rows are so few that all of their CTAs run at once."""
    spec = target.spec
    k = interval(spec)[0] + (spec.vec == 1) if spec.plan is Plan.CLUSTER else middle(spec)
    case = placed(Case("", spec, (1, 6, k), 1.0, causal_offset=0))
    per_cta = case.call().rows_per_cta
    rows = 6 * per_cta
    case = replace(case, why="six CTAs", shape=(1, rows, k), causal_offset=(k - rows) // 2)
    call = case.call()
    outcome = interpreter.run(call.plan, call.operands)
    judge(call, outcome)
    assert outcome.writers is not None
    of_row = outcome.writers[call.operands.result.valid].reshape(rows, -1)[:, 0]
    ctas = of_row // (call.plan.launches[0].threads * call.plan.launches[0].cluster)
    read = np.bincount(ctas, weights=visible_columns(call), minlength=6)
    pairs = read.reshape(3, 2).sum(axis=1)
    assert sorted(np.bincount(ctas)) == [per_cta] * 6
    assert np.ptp(pairs) <= per_cta < np.ptp(read), read


# ---- sectors


STORING = [
    Target(targets.WHOLE, spec)
    for spec in variants.shipped()
    if spec.vec > 1 and not spec.piece and spec.mask in (Mask.NONE, Mask.CAUSAL, Mask.BAND, Mask.GENERAL)
    if spec.dtype in (DType.F16, DType.F32, DType.F64, DType.F16TOF32, DType.F32TOF16)
]


@pytest.mark.parametrize("target", STORING, ids=str)
def test_a_store_fills_the_sectors_that_it_reaches(target: Target, interpreter: InterpreterEngine) -> None:
    """A warp that left half of each 32-byte sector to its next store would write every sector twice."""
    spec = target.spec
    longest = interval(spec)[1]
    k = longest // 32 * 32 or longest
    (report,) = interpreter.run((call := full_cta(spec, k).call()).plan, call.operands).reports
    written = report.traffic["output"]
    assert written.sectors_written * 32 == written.bytes_written


# ---- short rows


SHORT = [(Target(targets.WHOLE, spec), k) for spec in variants.shipped() for k in (1, 3, 8, 31, 32, 33, 100, 128)]
SHORT = [
    (target, k)
    for target, k in SHORT
    if target.spec.mask is Mask.NONE
    and target.spec.dtype is DType.F16
    and target.spec.plan in (Plan.TILE, Plan.WARP)
    and interval(target.spec)[0] <= k <= interval(target.spec)[1]
    and k % target.spec.vec == 0
    and not (target.spec.vec == 1 and k % 8 == 0)
]


@pytest.mark.parametrize(("target", "k"), SHORT, ids=str)
def test_short_rows_move_like_a_copy(target: Target, k: int, interpreter: InterpreterEngine) -> None:
    """16 bytes per access, except at the ends of a CTA's range or of a lane group's row; and at most twice as many
    columns are computed as there are."""
    spec = target.spec
    case = full_cta(spec, k)
    rows = 3 * case.shape[0]
    call = replace(case, why="three CTAs", shape=(rows, k)).call()
    (report,) = interpreter.run(call.plan, call.operands).reports
    written = report.traffic["output"].writes
    ranges = 3 if spec.plan is Plan.TILE else rows
    assert written[16] * 8 >= rows * k - (0 if spec.vec > 1 else 14 * ranges)
    columns = sum(count for opcode, count in report.executed.items() if opcode.startswith("ex2"))
    assert columns <= 2 * rows * k + 16 * rows, "exponentials of columns that are not there"


# ---- long rows


BEYOND = [
    spec
    for spec in variants.shipped()
    if spec.piece and spec.dtype is DType.F16 and spec.mask in (Mask.BOOLCAUSAL, Mask.CAUSAL)
]
BEYOND = [spec for spec in BEYOND if spec.mask is Mask.BOOLCAUSAL or spec.direction is Direction.BACKWARD]


@pytest.mark.parametrize("target", [Target(targets.WHOLE, spec) for spec in BEYOND], ids=str)
def test_rows_beyond_a_million_columns(target: Target, interpreter: InterpreterEngine) -> None:
    spec, k = target.spec, 2**20 + 3
    mask_shape = None if spec.mask is Mask.CAUSAL else (1, k)
    case = Case("2^20 + 3 columns", spec, (1, k), 0.5, mask_shape=mask_shape, causal_offset=k - 1)
    run(interpreter, case.call())


WINDOWED = [
    spec for spec in variants.shipped() if spec.plan is Plan.STREAM and spec.mask.general and spec.dtype is DType.F16
]


@pytest.mark.parametrize("target", [Target(targets.WHOLE, spec) for spec in WINDOWED], ids=str)
def test_a_window_is_read_from_the_piece_where_it_begins(target: Target, interpreter: InterpreterEngine) -> None:
    """The first pass covers only that piece, the second all 16; an element before a window costs a few instructions."""
    spec = target.spec
    case = Case("all columns", spec, (1, 1, 2, 16 * spec.piece), 0.5, features=Features())
    window = replace(case, why="the last 100", features=Features(left=99), causal_offset=16 * spec.piece - 2)
    executed = []
    for call in (case.call(), window.call()):
        outcome = interpreter.run(call.plan, call.operands)
        judge(call, outcome)
        executed.append(sum(outcome.reports[0].executed.values()))
    assert executed[1] < 0.9 * executed[0], executed


@pytest.mark.parametrize("target", [Target(targets.WHOLE, spec) for spec in WINDOWED], ids=str)
def test_a_window_that_begins_in_the_last_columns_of_a_piece(target: Target, interpreter: InterpreterEngine) -> None:
    """In the second row, whose first piece has 7 columns before its first vector."""
    spec = target.spec
    k = 8 * spec.piece + 1
    features = Features(left=k - 1 - (spec.piece + 3))
    run(interpreter, Case("", spec, (1, 1, 2, k), 0.5, features=features, causal_offset=k - 2).call())
