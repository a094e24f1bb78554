"""Goals, tables, plots and predictions, drawn from results that these tests make up, in a separate folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import softmax_ops
from benchmarks import __main__ as command
from benchmarks import costs, eager, goals, plots, predict, predict_page, profile, report
from benchmarks.cells import QUICK, Cell, cells
from benchmarks.costs import Costs
from benchmarks.providers import OURS, UNMASKED
from benchmarks.providers.ours import UNMASKED_PROVIDER as ours_unmasked
from benchmarks.results import FILE, FOLDER, Results, Row, folder_of
from benchmarks.timing import spread
from codegen.pages import with_block
from softmax_ops import driver, native
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.known import calls
from tests.support import stub_driver
from tests.support.launches import STREAM, Serve, serve, serve_all
from tests.support.posing import pose
from tests.support.stub_driver import isolated

__all__ = ["serve"]  # a fixture

NAME = "made up"
PEERS = {"torch chain": 4.0, "torch.softmax": 2.0, "torch.compile": 1.375, "triton": 1.5, "quack": 1.625}


def made_up(chosen: Iterable[Cell], us: dict[str, float] | None = None) -> Results:
    """Copies take 100 us, our kernels 102 (or what `us` gives for a cell), peers a multiple of our time."""
    results = Results([{"device": NAME, "multiprocessors": 132, "driver": "1.2"}])
    for cell in chosen:
        ours = (us or {}).get(cell.key, 102.0) * cell.bytes / cell.full_bytes
        times = {OURS: [ours] * 9, **{name: [ours * factor] * 9 for name, factor in PEERS.items()}}
        if ours_unmasked.refuses(cell) is None:
            times[UNMASKED] = [102.0] * 9
        results.rows[cell.key] = Row(
            cell.key,
            cell.bytes,
            "2026-01-02",
            sets=1,
            kernel="a kernel",
            times=times,
            ceilings={"memcpy": [100.0] * 9, "foreach": [120.0] * 9},
            ceiling_bytes={"memcpy": cell.full_bytes, "foreach": cell.full_bytes},
            errors=dict.fromkeys(times, 0.5),
            absent={"liger": "liger-kernel is not installed"},
        )
    return results


def verdict(number: int, results: Results, known: Costs | None = None) -> goals.Verdict:
    found = goals.verdicts(results, known or Costs())
    assert [each.number for each in found] == list(range(1, 15))
    return found[number - 1]


# ---- figures


def test_spread_is_of_the_rounds() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)


def test_shares_are_taken_within_a_round() -> None:
    """If the clock drops by half in half of the rounds, no ratio changes."""
    drift = [1.0, 2.0] * 4 + [1.0]
    row = Row(
        *("cell", 1000, ""),
        times={OURS: [5 * d for d in drift], "other": [10 * d for d in drift]},
        ceilings={"memcpy": [4 * d for d in drift]},
        ceiling_bytes={"memcpy": 2000},
    )
    assert row.share(OURS) == (0.4, 0.4, 0.4)
    assert row.ratio("other") == 2.0
    assert row.ceiling_us == 2.0 and row.gigabytes_per_second(OURS) == 1000 / 5e3


# ---- goals


def test_without_results_nothing_is_measured() -> None:
    for each in goals.verdicts(Results(), Costs()):
        assert each.state == "not measured" and each.figure.startswith("not measured: ")


def test_every_goal_has_cells() -> None:
    assert all(each.wanted > 0 for each in goals.verdicts(Results(), Costs()))


def test_a_whole_run_meets_goals_or_misses_them() -> None:
    results = made_up(cells())
    states = {each.number: each.state for each in goals.verdicts(results, Costs())}
    assert [states[number] for number in range(1, 10)] == ["met"] * 9
    assert states[10] == "missed"  # 2 us more than the copy; 1 us is allowed if there are many rows
    assert verdict(10, made_up(cells(), dict.fromkeys(results.rows, 100.5))).state == "met"


@pytest.mark.parametrize(
    ("number", "key", "us"),
    [
        (1, "sweep|1x1x4194304x128|f16|none|fwd", 104.0),
        (2, "ViT 197|256x12x197x197|f16|none|fwd", 110.0),
        (3, "sweep|1x1x16777216x32|f16|none|fwd", 106.0),
        (4, "GPT-2|8x12x1024x1024|bf16|none|bwd", 104.0),
        (5, "GPT-2|8x12x1024x1024|f16|causal|fwd", 106.0),
        (6, "GPT-2|8x12x1024x1024|f16|causal|bwd", 109.0),
        (7, "BERT-large|32x16x512x512|f16|padding|fwd", 105.0),
        (9, "vocabulary 4|1x1x4x256000|f32|none|fwd", 103.0),
    ],
)
def test_one_slow_cell_misses_a_goal(number: int, key: str, us: float) -> None:
    found = verdict(number, made_up(cells(), {key: us}))
    assert found.state == "missed" and key in found.figure and "; 1 missed" in found.figure


def test_what_a_whole_run_gives_is_what_is_wanted() -> None:
    for each in goals.verdicts(made_up(cells()), Costs())[:10]:
        assert len(each.checks) == each.wanted


@pytest.mark.parametrize(
    ("number", "key", "peer"),
    [
        (4, "GPT-2|8x12x1024x1024|f16|none|bwd", "torch.softmax"),
        (5, "GPT-2|8x12x1024x1024|f16|causal|fwd", "quack"),
        (8, "GPT-2|8x12x1024x1024|f16|none|fwd", "torch.compile"),
    ],
)
def test_a_peer_that_is_wrong_is_not_waited_for(number: int, key: str, peer: str) -> None:
    results = made_up(cells())
    before, row = verdict(number, results), results.rows[key]
    results.rows[key] = replace(row, wrong=(peer,))
    after = verdict(number, results)
    assert after.state == before.state == "met" and after.wanted == before.wanted - 1


def test_a_peer_that_refuses_or_is_absent_is_not_waited_for() -> None:
    """Also in cells that are not measured yet."""
    fair = [cell for cell in cells() if not cell.asks]
    forward = [cell for cell in fair if cell.direction == "fwd"]
    aligned = [cell for cell in fair if cell.mask == "none" and cell.aligned]  # QuACK refuses the others
    assert verdict(8, Results()).wanted == len(forward) + len(fair) + 1 + len(aligned) + 1
    causal = 15 * (1 + 5) - 2  # a copy and five peers; QuACK refuses 1500 columns of 16 bits
    assert verdict(5, Results()).wanted == causal
    assert verdict(5, made_up(cells()[:1])).wanted == causal - 15  # in the made-up results, Liger is not installed


def test_a_peer_that_was_left_out_of_some_cells_is_still_wanted_there() -> None:
    """Unless it ended the process there."""
    results = made_up(cells())
    whole = verdict(8, results)
    first = results.rows[cells()[0].key]
    without = {name: took for name, took in first.times.items() if name != "torch.compile"}
    results.rows[first.cell] = replace(first, times=without, absent={**first.absent, "torch.compile": "left out"})
    found = verdict(8, results)
    assert (found.state, found.wanted, len(found.checks)) == ("met so far", whole.wanted, len(whole.checks) - 1)
    results.rows[first.cell] = replace(results.rows[first.cell], lost={"torch.compile": "its process ended"})
    assert verdict(8, results).state == "met"


def test_a_cell_that_failed_is_still_wanted() -> None:
    results = made_up(cells())
    whole = verdict(8, results).wanted
    row = results.rows[cells()[0].key]
    results.rows[row.cell] = replace(row, wrong=(OURS,))
    found = verdict(8, results)
    assert (found.state, found.wanted, len(found.checks)) == ("met so far", whole, whole - 3)


def test_without_a_full_copy_a_causal_cell_has_no_figure_of_it() -> None:
    results = made_up(cells())
    row = results.rows["GPT-2|8x12x1024x1024|f16|causal|fwd"]
    moved = {**row.ceiling_bytes, "tril": row.bytes}  # as if copies had failed
    results.rows[row.cell] = replace(row, ceilings={"tril": [60.0] * 9}, ceiling_bytes=moved)
    found = verdict(5, results)
    assert found.state == "met so far" and len(found.checks) == found.wanted - 1


@pytest.mark.parametrize(
    ("number", "key", "beside", "factor", "more"),
    [
        (5, "GPT-2|8x12x1024x1024|f16|causal|fwd", "memcpy", 0.75, 0.0),
        (6, "GPT-2|8x12x1024x1024|f16|causal|bwd", UNMASKED, 0.65, 0.0),
        (7, "BERT-large|32x16x512x512|f16|padding|fwd", UNMASKED, 1.01, 0.0),
        (9, "vocabulary 4|1x1x4x256000|f32|none|fwd", "memcpy", 1.0, 1.5),
        (10, "small|1x12x128x128|f16|none|fwd", "memcpy", 1.0, 0.5),
    ],
)
def test_goals_compare_within_a_round(number: int, key: str, beside: str, factor: float, more: float) -> None:
    """Ours was disturbed in one round, which by its place in the drift of the clock is its median round."""
    results = made_up([cell for cell in cells() if cell.key == key])
    row = results.rows[key]
    drift = [90.0] * 4 + [100.0] + [110.0] * 4
    own = [value * factor + more for value in drift]
    own[4] += 5.0
    peers = {name: [2 * value for value in own] for name in row.times if name != OURS}
    times = {OURS: own, **peers, **({beside: drift} if beside in row.times else {})}
    copies = {name: drift if name == "memcpy" else [200.0] * 9 for name in row.ceilings}
    results.rows[key] = replace(row, times=times, ceilings=copies)
    found = verdict(number, results)
    assert found.state == "met so far" and key in found.figure
    assert found.checks[0].value == pytest.approx(more or factor)


def test_part_of_a_run_meets_a_goal_so_far() -> None:
    found = verdict(1, made_up(cells()[:3]))
    assert found.state == "met so far" and f"3 of {found.wanted} measured" in found.figure


def test_a_sixth_of_the_cells_judges_every_goal() -> None:
    """The goals for few rows and small problems are measured completely."""
    found = goals.verdicts(made_up(cells()[: len(cells()) // 6]), Costs())[:10]
    assert not any(each.state == "not measured" for each in found)
    assert all(len(each.checks) == each.wanted for each in found if each.number in (9, 10))


def test_goal_of_peers_looks_at_each_and_at_the_mean() -> None:
    results = made_up(cells()[:QUICK])
    assert verdict(8, results).state == "met so far"
    row = results.rows[cells()[0].key]
    slow = replace(row, times={**row.times, "quack": [0.98 * value for value in row.times[OURS]]})
    results.rows[row.cell] = slow
    assert "against quack" in verdict(8, results).figure
    results.rows[row.cell] = replace(slow, wrong=("quack",))  # a peer with wrong numbers does not count
    assert verdict(8, results).state == "met so far"


def test_goals_of_costs() -> None:
    known = Costs()
    known.put("unchanged_generate_s", 4.0)
    assert verdict(13, Results(), known).state == "met so far"
    known.put("cold_generate_s", 200.0)
    assert verdict(13, Results(), known).state == "missed"
    known.put("first_call_stub_ms", 1.0)
    assert verdict(12, Results(), known).state == "not measured"  # a stub does not count as a GPU


# ---- pages


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, Path]:
    """Copies of README and page, and results of a device that does not exist."""
    made_up(cells()).save(tmp_path / folder_of(NAME) / FILE)
    for page in (report.README, report.PAGE):
        (tmp_path / page.name).write_text(page.read_text())
    return {"root": tmp_path, "readme": tmp_path / report.README.name, "page": tmp_path / report.PAGE.name}


def test_report_draws_everything(pages: dict[str, Path]) -> None:
    pytest.importorskip("matplotlib")
    written = report.write(**pages)
    assert [path.name for path in written[2:]] == [f"made-up-{name}.svg" for name in plots.PICTURES]
    readme, page = pages["readme"].read_text(), pages["page"].read_text()
    assert report.NOTHING not in readme and "made up, 2026-01-02; driver 1.2." in readme
    line = next(line for line in readme.splitlines() if line.startswith("| GPT-2, none |"))
    assert line.split(" | ")[2:] == ["102.0", "3948", "0.980", "4.00", "(2.00)", "1.38", "1.50", "absent", "(1.62) |"]
    assert "Absent: liger: liger-kernel is not installed." in page and "**missed**" not in page
    assert f"{len(cells())} of {len(cells())} cells" in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):  # a name with a bar in it would add a column
        assert len({line.count("|") for line in table.splitlines()}) == 1, table[:200]
    first = [path.read_text() for path in written]
    assert [path.read_text() for path in report.write(**pages)] == first
    for name in plots.PICTURES:
        drawn = (pages["root"] / f"made-up-{name}.svg").read_text()
        assert OURS in drawn and "quack" in drawn


def test_pictures_show_what_their_names_say() -> None:
    results = made_up(cells())
    shown = {name: [k for k, _ in plots.lines(results, name)[OURS]] for name in plots.PICTURES}
    assert shown["aligned"] == shown["backward"] == [2**power for power in range(3, 19)]
    assert shown["odd"][:4] == [7, 9, 15, 17] and shown["odd"][-1] == 262145
    assert {1024, 2048, 4096, 8192} <= set(shown["causal"])
    assert plots.lines(results, "aligned")[OURS][0] == (8, pytest.approx(100 / 102))


def test_no_goal_is_about_what_a_cell_asks_for() -> None:
    asking = [cell for cell in cells() if cell.asks]
    assert asking and not any(each.checks for each in goals.verdicts(made_up(asking), Costs()))


def test_failures_stay_in_sight(pages: dict[str, Path]) -> None:
    results = made_up(cells()[:3])
    wrong, lost, refused = results.rows.values()
    results.rows[wrong.cell] = replace(wrong, wrong=(OURS,), errors={OURS: 7.5}, failed={"triton": "no compiler"})
    results.rows[lost.cell] = replace(lost, ceilings={}, failed={"cell": "out of memory"})
    results.rows[refused.cell] = replace(refused, times={}, refused={OURS: "no bias yet"})
    page = report.every_cell({"x": results})
    assert "wrong by 7.5 times its bound" in page and "cell: out of memory" in page and "no bias yet" in page
    assert "no compiler" not in page  # since that is not the reason
    assert report.table({"x": results}) == report.NOTHING


def test_the_committed_pages_are_what_the_commands_write(tmp_path: Path) -> None:
    """They are written from the committed results, of which there are none until a GPU has run."""
    for page in (report.README, report.PAGE):
        (tmp_path / page.name).write_text(page.read_text())
    written = report.write(FOLDER, tmp_path / "README.md", tmp_path / "benchmarks.md")
    stale = "python -m benchmarks report brings it up to date"
    assert (tmp_path / "README.md").read_text() == report.README.read_text(), stale
    assert (tmp_path / "benchmarks.md").read_text() == report.PAGE.read_text(), stale
    assert all((report.PAGE.parent / path.name).read_text() == path.read_text() for path in written[2:]), stale


# ---- predictions


def test_predictions_are_of_these_cells_and_on_their_page() -> None:
    date, predictions = predict.load()
    known = {each.cell for each in predictions}
    assert known == {cell.key for cell in cells()}, "make predictions"
    page = predict_page.PAGE.read_text()
    expected = with_block(page, predict_page.text(date, predictions), predict_page.COMMAND)
    assert page == expected, "make predictions"
    assert all(0 < share <= 1 for each in predictions for share in each.shares.values())


DIGEST = "0" * 64


class Counted:
    """Given counts, instead of those for which `predict` would execute kernels."""

    def __init__(self, work: predict.Work, cubin: Cubin):
        self._work = work
        self.cubins = {cubin.variant: cubin}

    def work(self, *_: Any) -> predict.Work:
        return self._work


def prediction(
    cell: Cell, instructions: float = 20.0, accesses: float = 6.0, registers: int = 64
) -> predict.Prediction:
    planned = predict.launch_plan(cell)
    cubin = Cubin(planned.variant.name, "sm_90", b"code", registers, 0, DIGEST, DIGEST, "cubin")
    counted = Counted(predict.Work(instructions, accesses), cubin)
    return predict._predict(cell, planned, counted)  # type: ignore[arg-type]


def test_a_prediction_by_hand() -> None:
    """GPT-2: eight CTAs of 128 threads with 64 registers on an SM; each CTA requests 4 rows of 2 KiB."""
    cell = cells()[0]
    found = prediction(cell)
    assert (found.ctas_per_sm, found.flight_bytes, found.budget) == (8, 8 * 4 * 2048, 29.0)
    assert found.share == 1.0 and found.goal == 0.97 and not found.falls_short and found.limit == ""
    slow = prediction(cell, instructions=58.0)
    assert slow.shares["instructions"] == 0.5 and slow.falls_short and slow.limit == "instructions"
    scattered = prediction(cell, accesses=58.0)
    assert scattered.shares["accesses"] == 0.5 and scattered.limit == "accesses"
    alone = prediction(cell, registers=255)  # two CTAs
    assert alone.flight_bytes == 2 * 4 * 2048 and alone.share == pytest.approx(1 / 3, abs=1e-3)
    assert alone.limit == "flight"


def test_a_prediction_of_a_launch_with_fewer_threads_than_the_kernel_may_have() -> None:
    """2048 columns take two warps: 20 CTAs of 48 registers on an SM, ten warps on each quarter; of 16 warps, two."""
    found = prediction(Cell("", (1, 12, 2048, 2048), "f16"), registers=48)
    assert (found.ctas_per_sm, found.flight_bytes) == (20, 20 * 2 * 2048)


def test_predictions_of_causal_few_and_streamed_rows() -> None:
    causal = prediction(replace(cells()[0], mask="causal"))
    assert causal.flight_bytes == pytest.approx(8 * 4 * 2048 / 2, rel=0.01)
    assert causal.shares["flight"] == pytest.approx(1.0) and causal.budget == pytest.approx(21.75, rel=0.01)
    few = prediction(Cell("", (1, 1, 1, 256000), "f32"))
    assert few.goal is None and few.ctas_per_sm == round(16 / 132, 2)
    streamed = prediction(Cell("", (1, 1, 4096, 278536), "f16"))
    assert streamed.shares["traffic"] == pytest.approx(2 / 3, abs=1e-3)
    assert streamed.planned_bytes == pytest.approx(1.5 * streamed.bytes)
    in_cache = prediction(Cell("", (1, 1, 8, 524288), "f16"))  # split: 8 MB between the two reads of a row
    assert in_cache.shares["traffic"] == 1.0


def test_stale_predictions_are_named() -> None:
    cell = cells()[0]
    found = prediction(cell)
    assert predict.stale([found], [cell]) == []
    assert predict.stale([replace(found, source="another")], [cell]) == [cell.key]
    assert predict.stale([], [cell]) == [cell.key]


def test_comparison_begins_with_the_worst() -> None:
    first, second = cells()[:2]
    results = made_up([first, second], {second.key: 200.0})
    said = predict_page.compare([prediction(first), prediction(second)], results).splitlines()
    assert said[0].startswith("-0.500") and second.key in said[0] and said[1].startswith("-0.020")
    assert "no cell" in predict_page.compare([prediction(first)], Results())


def test_predictions_round_trip(tmp_path: Path) -> None:
    made = [prediction(cell) for cell in cells()[:2]]
    predict.save(made, tmp_path / "p.json")
    assert predict.load(tmp_path / "p.json")[1] == made
    assert "never measured" in json.loads((tmp_path / "p.json").read_text())["device"]


# ---- profiles

CSV = """==PROF== Connected
"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum",\
"launch__registers_per_thread","sm__warps_active.avg.pct_of_peak_sustained_active",\
"smsp__issue_active.avg.pct_of_peak_sustained_active","smsp__thread_inst_executed.sum"
"","","Mbyte","Gbyte","us","register/thread","%","%","inst"
"0","softmax_fwd_a","201.5","0.2","90.5","48","61.5","40.25","1,006,632,960"
"1","softmax_fwd_b","0.5","0","1,009.5","32","20","10","1,006,632,960"
"""


def test_a_profile_sums_the_launches_of_a_call() -> None:
    found = profile.read(cells()[0], CSV)
    assert found.kernels == ("softmax_fwd_a", "softmax_fwd_b")
    assert (found.read, found.written, found.time) == (202e6, 0.2e9, 1100.0)
    assert (found.registers, found.issue, found.occupancy) == (32, 10, 20)  # of the longer launch
    assert "20.0 lane-instructions per element" in str(found) and "0.998 of the 402.7 that must move" in str(found)
    with pytest.raises(profile.NoProfile, match="saw no kernel"):
        profile.read(cells()[0], "==WARNING== nothing")


def test_a_profile_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(profile.shutil, "which", lambda name: "sleep")
    monkeypatch.setattr(profile, "TIMEOUT_S", 0.01)
    run = profile.subprocess.run
    monkeypatch.setattr(profile.subprocess, "run", lambda command, **how: run(["sleep", "9"], **how))
    assert command.main(["profile", cells()[0].key]) == 1
    assert f"ncu was not done with {cells()[0].key}" in capsys.readouterr().err


def test_without_ncu_a_profile_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(profile.shutil, "which", lambda name: None)
    assert command.main(["profile", cells()[0].key]) == 1
    assert capsys.readouterr().err == "error: ncu is not here: install Nsight Compute\n"


# ---- costs


def test_rounds_of_eager_calls_take_turns() -> None:
    said: list[str] = []
    timed = {name: lambda name=name: said.append(name) for name in ("one", "two")}
    assert [*eager.measure(timed, lambda: said.append("wait"))] == [*timed]
    turn = ["wait", *["one"] * eager.CALLS, "wait", *["two"] * eager.CALLS]
    assert said == turn * eager.ROUNDS


@pytest.mark.slow
@isolated
def test_what_stands_beside_an_eager_call(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of ours are launches; those of torch are not."""
    pose(monkeypatch.setattr, STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(eager, "ROUNDS", 3)
    monkeypatch.setattr(eager, "CALLS", 10)
    serve_all(serve, "fwd_f16_none_warp")
    x, y = torch.zeros(eager.SHAPE).half(), torch.zeros(eager.SHAPE).half()
    found = eager.costs(x, y, lambda: None)
    assert {eager.OURS, *eager.BARE, "torch.softmax(x, -1)", "torch.empty_like(x)"} < {*found} and len(found) == 8
    assert len(stub_driver.launches()) == 5 * (3 * 10 + 1) + 1


@pytest.mark.slow
@isolated
@pytest.mark.parametrize("never", [False, True])
def test_a_figure_says_which_path_it_timed(never: bool, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.compiled() is None:
        pytest.skip("the compiled part was not built")
    if never:
        monkeypatch.setenv("SOFTMAX_OPS_NATIVE", "never")
    pose(monkeypatch.setattr, STREAM)
    serve_all(serve, "fwd_f16_none_warp")
    x, y = torch.zeros(eager.SHAPE).half(), torch.zeros(eager.SHAPE).half()
    softmax_ops.softmax(x, out=y)
    if never:
        assert eager.served().startswith("compiled part unused: SOFTMAX_OPS_NATIVE=never")
        return
    assert eager.served() == "compiled part: whole calls"
    calls.forward.forget()
    assert eager.served() == "compiled part: launches only"


@pytest.mark.slow
@isolated
def test_a_bare_launch_that_is_refused_has_no_figure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    pose(monkeypatch.setattr, STREAM)
    serve_all(serve, "fwd_f16_none_warp")
    x, y = torch.zeros(eager.SHAPE).half(), torch.zeros(eager.SHAPE).half()
    stub_driver.fail("cuLaunchKernelEx", 1)
    with pytest.raises(driver.DriverError, match="cuLaunchKernelEx"):
        eager._bare(x, y)


STARTED = """
import sys, time, torch
randn, clock = torch.randn, time.perf_counter
torch.randn = lambda *shape, dtype, device: randn(2, 8).half()
torch.cuda.synchronize = lambda: None
time.perf_counter = lambda: print("softmax_ops.api" in sys.modules) or clock()
"""


@pytest.mark.slow
def test_a_first_call_is_timed_without_its_imports() -> None:
    """On the CPU: the function is imported when the clock starts."""
    said = subprocess.run(
        [sys.executable, "-c", STARTED + costs._ON_GPU], cwd=costs.CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert said[0] == "True" and float(said[2]) > 0


def test_costs_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, said = Costs(), []

    def run(command: list[str], environment: dict[str, str], limit_s: float) -> str:
        said.append((command, environment))
        return ""

    monkeypatch.setattr(costs, "_run", run)
    costs.generate(known)
    known.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == known
    assert set(known.figures) == {"cold_generate_s", "unchanged_generate_s"}
    assert [command[2:4] for command, _ in said] == [["codegen", "write"], ["codegen", "compile"]] * 2
    assert len({environment["SOFTMAX_OPS_CACHE_DIR"] for _, environment in said}) == 1
    assert Costs.load(tmp_path / "none.json") == Costs()


def test_costs_go_where_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(costs.MEASURES, "bundle", lambda known: known.put("bundle_minutes", 1.5))
    assert command.main(["costs", "bundle", "--results", str(tmp_path / "here.json")]) == 0
    assert Costs.load(tmp_path / "here.json").value("bundle_minutes") == 1.5
    assert capsys.readouterr().out == "bundle_minutes 1.5 ()\n"


def test_a_measure_that_fails_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its process wrote to standard error is printed."""
    script = "import sys; sys.exit('the reason')"
    monkeypatch.setitem(costs.MEASURES, "first", lambda known: costs._run([sys.executable, "-c", script], {}, 60.0))
    monkeypatch.setitem(costs.MEASURES, "eager", lambda known: known.put("eager_beyond_launch_us", 1.5))
    assert command.main(["costs", "first", "eager", "--results", str(tmp_path / "here.json")]) == 1
    assert Costs.load(tmp_path / "here.json").value("eager_beyond_launch_us") == 1.5
    err = capsys.readouterr().err
    assert err.startswith("error: first: NoFigure: a process ended with status 1") and "\nthe reason\n" in err


def test_a_process_that_hangs_has_no_figure() -> None:
    with pytest.raises(costs.NoFigure, match=r"not finished in 0\.5 s"):
        costs._run([sys.executable, "-c", "import time; time.sleep(60)"], {}, 0.5)


def test_a_cubin_for_the_stub_says_its_arguments() -> None:
    name = next(iter(catalog.load().variants))
    image = costs._for_stub(Cubin(name, "sm_90", b"x" * 400, 1, 0, DIGEST, DIGEST, "cubin")).code
    size, said = image.split(b"\0")[0].split()
    assert len(image) == 400 and said.decode() == name
    assert int(size) == catalog.argument_bytes(catalog.load().layout(catalog.load().variants[name]))
