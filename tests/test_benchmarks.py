"""The benchmark without a GPU: complete runs on the tests' fake device."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import Event
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import correctness, device, measure, run, tensors, timing
from benchmarks.cells import Cell
from benchmarks.providers import OURS, Provider, ours, without
from benchmarks.results import DECIDING, Results, Row
from benchmarks.tensors import Tensors
from tests.support import watchdog
from tests.support.cubins import CHECKOUT
from tests.support.fake_device import COPY_US, FakeDevice, provider
from tests.test_benchmark_cells import ASKING

SMALL = [
    Cell("first", (2, 2, 5, 16), "f16"),
    Cell("second", (2, 2, 5, 16), "f16", "padding"),
    Cell("third", (1, 2, 6, 9), "bf16", "causal"),
    Cell("fourth", (2, 2, 5, 16), "f32", "none", "bwd"),
]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two sets of tensors for any cell; and no Triton, which if installed would find no GPU."""
    monkeypatch.setattr(tensors, "sets_of", lambda cell, l2_bytes: 2)
    monkeypatch.setattr("benchmarks.providers.find_spec", lambda name: None)


# ---- the run

RIGHT = provider(OURS, 10.0, lambda made: ours.prepare(CELL_OF[made.out.shape, made.out.dtype])(made), allowed=1.0)
CELL_OF: dict[Any, Cell] = {(torch.Size(cell.shape), tensors.DTYPES[cell.dtype]): cell for cell in SMALL}
OTHER = [Cell(f"other {rows}", (1, 1, rows, 16), "f16") for rows in range(2, 7)]
CELL_OF |= {(torch.Size(cell.shape), torch.float16): cell for cell in OTHER}
SLOW = provider("slow", 20.0, lambda made: torch.softmax(made.inputs[0], -1), plain=True)
ABSENT = provider("gone", 1.0, lambda made: made.out, absent=lambda: "gone is not installed")
REFUSING = provider("picky", 1.0, lambda made: made.out, refuses=lambda cell: "K too odd")
CRASHING = provider("crash", 1.0, lambda made: made.out / (1 / 0))


def measured(tmp_path: Path, *providers: Provider, **changes: Any) -> tuple[Results, list[str]]:
    said: list[str] = []
    how: dict[str, Any] = {"cells": SMALL, "device": FakeDevice(), "budget_s": 1e9, "say": said.append} | changes
    return run.run(providers=providers, path=tmp_path / "cells.json", **how), said


def test_a_run_measures_every_cell_in_order(tmp_path: Path) -> None:
    written: list[list[str]] = []

    def say(line: str) -> None:
        written.append(list(Results.load(tmp_path / "cells.json").rows))

    results, _ = measured(tmp_path, RIGHT, SLOW, say=say)
    keys = [cell.key for cell in SMALL]
    assert written[-4:] == [keys[: n + 1] for n in range(4)]  # a cell is on disk when it is reported
    row = results.rows[keys[0]]
    assert set(row.ceilings) >= {"memcpy", "elementwise", "foreach"} and len(row.times[OURS]) >= 7
    assert row.us(OURS) == (10.0, 10.0, 10.0)
    assert row.share(OURS).median == COPY_US / 10.0
    assert row.ratio("slow") == 2.0
    assert row.gigabytes_per_second(OURS) == SMALL[0].bytes / 10e3
    assert row.errors[OURS] <= 1 and row.clocks == {"sm": 1980} and row.sets == 2
    assert results.rows[keys[3]].ceiling == "add"
    assert Results.load(tmp_path / "cells.json") == results


def test_graphs_take_turns_in_another_order_each_round() -> None:
    """Short graphs are replayed until a window is long enough for the clock."""
    fake, took = FakeDevice(), {"short": 1.0, "middle": 30.0, "long": 2000.0}
    graphs = {name: device.Graph(lambda us=us: us, [], []) for name, us in took.items()}  # type: ignore[misc]
    times = timing.interleaved(fake, graphs, seed=1, turn=timing.Turn())
    assert times == {name: [us] * timing.ROUNDS for name, us in took.items()} and timing.ROUNDS >= 7
    rounds = list(zip(*[iter(fake.order[-3 * timing.ROUNDS :])] * 3, strict=True))
    assert all(sorted(each) == [1.0, 30.0, 2000.0] for each in rounds) and len(set(rounds)) > 2
    assert sum(fake.windows[: -3 * timing.ROUNDS]) >= 50_000  # us, during which an idle GPU raises its clocks
    assert fake.windows[-1] >= timing.WINDOW_US and min(fake.windows[-3 * timing.ROUNDS :]) >= timing.WINDOW_US


def test_a_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(tmp_path, RIGHT, cells=SMALL[:1])
    before = Results.load(tmp_path / "cells.json")

    def died(*_: Any) -> None:
        raise OSError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", died)
        with pytest.raises(OSError, match="power"):
            measured(tmp_path, RIGHT)
    assert Results.load(tmp_path / "cells.json") == before


def test_the_ceiling_is_scaled_to_the_bytes_of_the_cell(tmp_path: Path) -> None:
    results, _ = measured(tmp_path, RIGHT)
    causal, masked = results.rows[SMALL[2].key], results.rows[SMALL[1].key]
    full, triangle = SMALL[2].full_bytes, SMALL[2].bytes
    assert causal.ceiling_bytes["memcpy"] == full and causal.ceiling_bytes["tril"] == triangle
    assert causal.ceiling_us == pytest.approx(COPY_US * triangle / full)
    assert masked.ceiling_us == pytest.approx(COPY_US * SMALL[1].bytes / SMALL[1].full_bytes)


@pytest.mark.parametrize("cell", ASKING, ids=lambda cell: cell.key)
def test_a_run_measures_what_is_asked(cell: Cell, tmp_path: Path) -> None:
    """Next to float32 results, copies either convert the scores or move them unconverted."""
    one = provider(OURS, 10.0, ours.prepare(cell), allowed=1.0)
    results, _ = measured(tmp_path, one, cells=[cell])
    row = results.rows[cell.key]
    assert not row.is_failure and not row.failed and row.errors[OURS] <= 1 and row.kernel and "gen" in row.kernel
    moved = {name: size / cell.elements for name, size in row.ceiling_bytes.items() if name != "triton copy"}
    if cell.result != cell.dtype:
        assert moved == {"converting copy": 6, "elementwise": 4, "memcpy": 4}
    else:
        assert set(moved.values()) == {cell.full_bytes / cell.elements}


def test_what_cannot_run_is_named(tmp_path: Path) -> None:
    results, said = measured(tmp_path, RIGHT, ABSENT, REFUSING, CRASHING)
    row = results.rows[SMALL[0].key]
    assert row.absent["gone"] == "gone is not installed" and row.refused == {"picky": "K too odd"}
    assert row.failed == {"crash": "ZeroDivisionError: division by zero"}
    assert not row.is_failure and set(row.times) == {OURS}
    assert "absent: gone: gone is not installed" in said


def test_a_wrong_kernel_is_a_failure_and_a_wrong_peer_no_peer(tmp_path: Path) -> None:
    wrong = provider(OURS, 1.0, lambda made: made.out.fill_(0.0625), allowed=1.0)
    results, said = measured(tmp_path, wrong, provider("slow", 1.0, lambda made: made.out.fill_(1.0)))
    row = results.rows[SMALL[0].key]
    assert row.is_failure and row.wrong == (OURS, "slow") and not row.compared("slow")
    assert results.good(SMALL[0]) is None
    assert said[-2].startswith("FAILED")


def test_one_reference_serves_all_that_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers write into one output, but each is judged by its own result."""
    compute, computed = correctness._forward, []

    def counting(cell: Cell, made: Tensors, place: tensors.Place, plain: bool) -> tuple[Tensor, Tensor]:
        computed.append(plain)
        return compute(cell, made, place, plain)

    monkeypatch.setattr(correctness, "_forward", counting)
    wrong = provider("wrong", 20.0, lambda made: made.out.fill_(0.5))
    plain = [provider(name, 20.0, lambda made: torch.softmax(made.inputs[0], -1), plain=True) for name in "ab"]
    results, _ = measured(tmp_path, RIGHT, wrong, *plain, cells=SMALL[:1])
    row = results.rows[SMALL[0].key]
    assert computed == [False, True] and row.wrong == ("wrong",) and set(row.errors) == {OURS, "wrong", "a", "b"}


def test_what_a_replay_does_not_write_is_wrong(tmp_path: Path) -> None:
    """The result that is checked was written by the graph, over NaN."""
    calls = iter(range(10**6))

    def once(made: Tensors) -> Tensor:
        return torch.softmax(made.inputs[0], -1, out=made.out) if next(calls) < 2 else made.out

    results, _ = measured(tmp_path, provider(OURS, 1.0, once, plain=True), cells=SMALL[:1])
    assert results.rows[SMALL[0].key].errors[OURS] == correctness.HOPELESS


def test_a_budget_ends_a_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0])
    results, said = measured(tmp_path, RIGHT, budget_s=2.5, now=lambda: next(clock))
    assert list(results.rows) == [cell.key for cell in SMALL[:2]]
    assert said[-1].startswith("budget spent: 2 of 4 cells are left")
    fake = FakeDevice()
    results, said = measured(tmp_path, RIGHT, device=fake)
    assert len(results.rows) == 4 and "2 of 4 cells measured before" in said[0]
    assert fake.captured == sum(len(row.ceilings) + 1 for row in list(results.rows.values())[2:])


def test_a_killed_run_leaves_the_cell_that_it_was_at_for_last(tmp_path: Path) -> None:
    def killed(made: Tensors) -> Tensor:
        if made.out.shape == SMALL[2].shape:
            raise KeyboardInterrupt
        return RIGHT.prepare(SMALL[0])(made)

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, provider(OURS, 10.0, killed, allowed=1.0))
    rows = Results.load(tmp_path / "cells.json").rows
    assert list(rows) == [cell.key for cell in SMALL[:3]]
    assert rows[SMALL[2].key].is_failure and rows[SMALL[2].key].failed == {"cell": "not finished"}
    results, said = measured(tmp_path, RIGHT)
    assert [line.split(": ")[0] for line in said[1:]] == [SMALL[3].key, SMALL[2].key]
    assert not any(row.is_failure for row in results.rows.values())
    assert json.loads((tmp_path / "cells.json").read_text())["schema"] == 1


def test_another_environment_measures_anew(tmp_path: Path) -> None:
    measured(tmp_path, RIGHT)
    fake = FakeDevice({"torch": "another"})
    results, _ = measured(tmp_path, RIGHT, device=fake, cells=SMALL[:1])
    assert fake.captured and [row.environment for row in results.rows.values()] == [1, 0, 0, 0]
    assert results.environments[1]["torch"] == "another"


def test_what_decides_no_figure_measures_nothing_anew(tmp_path: Path) -> None:
    measured(tmp_path, RIGHT, cells=SMALL[:2])
    fake = FakeDevice({"driver": "another", "liger-kernel": "newer"})
    results, said = measured(tmp_path, RIGHT, device=fake, cells=SMALL[:3])
    assert "2 of 3 cells measured before" in said[0]
    assert [row.environment for row in results.rows.values()] == [0, 0, 1]


@cache
def _environment() -> dict[str, Any]:
    return run.environment(FakeDevice())


@pytest.mark.parametrize(
    ("fact", "source", "more"),
    [
        ("method", "benchmarks/providers/liger.py", b"pass"),
        ("method", "benchmarks/cells.py", b"pass"),
        ("package", "softmax_ops/planning/launch_plan.py", b"pass"),
        ("package", "softmax_ops/native/launches.c", b"/* text */"),
        ("kernels", "generated/catalog.json", b" "),
        (None, "benchmarks/report.py", b"pass"),
        (None, "benchmarks/cells.py", b"# a comment"),
        (None, "softmax_ops/planning/launch_plan.py", b'"""Of the line above."""'),
    ],
)
def test_sources_that_decide_figures(
    fact: str | None, source: str, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another line in one of them changes one digest, unless it is only a comment or docstring in Python."""
    before, read = _environment(), Path.read_bytes
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda path: read(path) + more * path.as_posix().endswith(source))
        after = run.environment(FakeDevice())
    assert {name for name in before if after[name] != before[name]} == ({fact} if fact else set())
    assert fact is None or fact in DECIDING


DOCUMENTED = '''"""Of the module."""
class Pair:
    """Of the class."""
    first: int  # of the field
    """Of the field."""
    def swap(self):
        """Of the function."""
        return "result"
'''


@pytest.mark.parametrize(
    ("old", "new", "decides"),
    [
        ("Of", "About", False),
        ("  # of the field", "", False),
        ("    ", "  ", False),
        ("result", "another", True),
        ("int", "float", True),
        ("Pair", "Two", True),
    ],
)
def test_docstrings_comments_and_format_decide_no_figure(old: str, new: str, decides: bool, tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text(DOCUMENTED)
    other.write_text(DOCUMENTED.replace(old, new))
    assert (run._digest([one]) != run._digest([other])) == decides


def test_a_lost_device_ends_the_run_and_is_remembered(tmp_path: Path) -> None:
    fake = FakeDevice()

    def fatal(made: Tensors) -> Tensor:
        fake.lost = True
        raise RuntimeError("launch failed")

    with pytest.raises(measure.DeviceLost, match=r"first.*fatal"):
        measured(tmp_path, RIGHT, provider("fatal", 1.0, fatal), device=fake)
    row = Results.load(tmp_path / "cells.json").rows[SMALL[0].key]
    assert row.is_failure and row.lost == {"fatal": "RuntimeError: launch failed"}


@pytest.mark.parametrize("name", [OURS, "memcpy", "slow"])
def test_who_took_the_process_with_it_decides_whether_a_cell_is_tried_again(name: str, tmp_path: Path) -> None:
    """A peer is left out then; without ours or the ceilings there is nothing to measure."""
    fake = FakeDevice()
    capture = fake.capture

    def fatal(calls: Sequence[Callable[[], Tensor]]) -> device.Graph:
        fake.lost = fake.captured == {"memcpy": 0, OURS: 3, "slow": 4}[name]
        return capture(calls) if not fake.lost else raising()

    fake.capture = fatal  # type: ignore[method-assign]
    with pytest.raises(measure.DeviceLost, match=name):
        measured(tmp_path, RIGHT, SLOW, device=fake)
    fake.lost, fake.capture = False, capture  # type: ignore[method-assign]
    results, said = measured(tmp_path, RIGHT, SLOW, device=fake)
    row = results.rows[SMALL[0].key]
    assert row.lost == {name: "ValueError: out of"} and len(results.rows) == 4
    if name == "slow":
        assert row.absent["slow"] == "left out after ValueError: out of" and set(row.times) == {OURS}
        assert said[-1].startswith(SMALL[0].key)
    else:
        assert row.is_failure and "1 of 4 cells measured before" in said[0]


def test_a_broken_capture_costs_one_peer(tmp_path: Path) -> None:
    """torch before 2.12 captures nothing more once a capture was invalidated, and the caching allocator then raises
    too."""

    class Torch(FakeDevice):
        broken = False

        def capture(self, calls: Sequence[Callable[[], Tensor]]) -> device.Graph:
            self.release()
            return super().capture(calls)

        def release(self) -> None:
            if self.broken:
                raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    fake = Torch()

    def synchronising(made: Tensors) -> Tensor:
        fake.broken = True
        raise RuntimeError("operation would make the legacy stream depend on a capturing blocking stream")

    peers = provider("synchronising", 1.0, synchronising), SLOW
    with pytest.raises(measure.DeviceLost, match="synchronising"):
        measured(tmp_path, RIGHT, *peers, device=fake)
    fake.broken = False
    rows = measured(tmp_path, RIGHT, *peers, device=Torch(), cells=SMALL[:1])[0].rows
    assert set(rows[SMALL[0].key].times) == {OURS, "slow"} and "synchronising" in rows[SMALL[0].key].absent


@pytest.mark.parametrize("peers", [["hanging"], []], ids=["peer", "ours"])
def test_a_cell_that_hangs_ends_the_run_and_is_remembered(
    peers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, hangs = Event(), [True]
    said: list[str] = []
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    def hang(made: Tensors) -> Tensor:
        if hangs[0]:
            assert ended.wait(20)
            raise KeyboardInterrupt  # what the end of the process is here
        return RIGHT.prepare(SMALL[0])(made)

    monkeypatch.setattr(watchdog.os, "_exit", end)
    chosen = [provider(name, 1.0, hang) for name in peers]
    chosen.insert(0, RIGHT if peers else provider(OURS, 10.0, hang, allowed=1.0))
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, *chosen, limit_s=0.5, say=said.append)
    culprit = peers[0] if peers else OURS
    assert statuses == [watchdog.LOST]
    assert said[-1] == f"HUNG {SMALL[0].key}: {culprit}: not finished in 0.5 s; run again to go on"
    assert Results.load(tmp_path / "cells.json").rows[SMALL[0].key].lost == {culprit: "not finished in 0.5 s"}
    hangs[0] = False
    row = measured(tmp_path, *chosen)[0].rows[SMALL[0].key]
    assert row.is_failure == (not peers) and not row.compared(culprit)


def test_a_cell_within_its_limit_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", statuses.append)
    with watchdog.limited(0.2, lambda: statuses.append(0)) as restart:
        for _ in range(3):  # in all longer than the limit, which counts anew each time
            sleep(0.1)
            restart()
    sleep(0.3)
    assert not statuses


def test_a_lost_device_that_gives_nothing_back_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fault torch.cuda.empty_cache raises, as everything does."""
    fake = FakeDevice()
    monkeypatch.setattr(fake, "release", fake.synchronize)

    def fatal(made: Tensors) -> Tensor:
        fake.lost = True
        raise RuntimeError("launch failed")

    with pytest.raises(measure.DeviceLost, match=r"first.*fatal"):
        measured(tmp_path, RIGHT, provider("fatal", 1.0, fatal), device=fake)
    assert Results.load(tmp_path / "cells.json").rows[SMALL[0].key].is_failure


def raising(*_: Any) -> Any:
    raise ValueError("out of\nits mind")


def late(calls: int) -> Callable[[Tensors], Tensor]:
    """Raises once it has been called more often than this."""
    left = iter(range(calls))
    return lambda made: made.out if next(left, None) is not None else raising()


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (provider("odd", 1.0, lambda made: None), "TypeError: a call returned a NoneType of shape ()"),  # type: ignore[arg-type, return-value]
        (provider("odd", 1.0, lambda made: made.out[0]), "TypeError: a call returned a Tensor of shape (2, 5, 16)"),
        (provider("odd", 1.0, late(2)), "ValueError: out of"),  # in the first replay
        (provider("odd", 1.0, late(9)), "ValueError: out of"),  # in a round
        (provider("odd", 1.0, raising, refuses=raising), "ValueError: out of"),
        (provider("odd", 1.0, raising, absent=raising), "ValueError: out of"),
    ],
    ids=["none", "shape", "replay", "round", "refuses", "absent"],
)
def test_an_odd_peer_costs_itself_only(peer: Provider, why: str, tmp_path: Path) -> None:
    results, _ = measured(tmp_path, RIGHT, peer, cells=SMALL[:1])
    row = results.rows[SMALL[0].key]
    assert (row.failed | row.absent)["odd"].startswith(why)
    assert not row.is_failure and set(row.times) == {OURS}


def test_without_an_explanation_a_cell_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "explanation", raising)
    row = measured(tmp_path, RIGHT, cells=SMALL[:1])[0].rows[SMALL[0].key]
    assert row.kernel is None and row.failed == {"explain": "ValueError: out of"} and row.compared(OURS)


def test_a_full_device_costs_one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(cell: Cell, *_: Any) -> list[Tensors]:
        if cell is SMALL[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(cell, "cpu", 2, 0)

    make = tensors.make
    monkeypatch.setattr(tensors, "make", full)
    results, _ = measured(tmp_path, RIGHT)
    first, *others = results.rows.values()
    assert first.is_failure and "out of memory" in first.failed["cell"]
    assert not any(row.is_failure for row in others)


def failing(*cells: Cell) -> Provider:
    """Our provider, giving wrong results in some cells."""

    def compute(made: Tensors) -> Tensor:
        cell = CELL_OF[made.out.shape, made.out.dtype]
        return made.out.zero_() if cell in cells else ours.prepare(cell)(made)

    return provider(OURS, 10.0, compute, allowed=1.0)


@pytest.mark.parametrize(
    ("wrong", "measured_cells", "why"),
    [
        (OTHER[:3], 3, "stopped: 3 kernels in a row failed"),
        (OTHER[1:4], 4, "stopped: 3 kernels in a row failed"),
        (OTHER[1:3] + OTHER[4:], 5, None),
    ],
)
def test_a_run_stops_where_it_leads_to_nothing(
    wrong: list[Cell], measured_cells: int, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cell has a kernel of its own."""
    monkeypatch.setattr(measure, "_kernel", lambda cell, *_: cell.key)
    results, said = measured(tmp_path, failing(*wrong), cells=OTHER)
    assert len(results.rows) == measured_cells
    assert (said[-1] == why) if why else "stopped" not in said[-1]


def test_patience_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_kernel", lambda cell, *_: cell.key)
    results, said = measured(tmp_path, failing(*OTHER), cells=OTHER, patience=4)
    assert len(results.rows) == 4 and said[-1] == "stopped: 4 kernels in a row failed"


def test_one_kernel_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many neighbouring cells it serves."""
    monkeypatch.setattr(measure, "_kernel", lambda *_: "softmax_fwd_f16_none_tile_k16_v8_t256r128")
    results, said = measured(tmp_path, failing(*OTHER), cells=OTHER)
    assert len(results.rows) == len(OTHER) and "stopped" not in said[-1]


@pytest.mark.parametrize("name", ["quack", OURS, ""])
def test_a_peer_that_ended_the_process_is_left_out(name: str, tmp_path: Path) -> None:
    """By a signal, say: what is left is a cell that is not finished, and a note of whose turn it was. If it was ours,
    the end may have come from outside."""
    fake, path = FakeDevice(), tmp_path / "cells.json"
    results = Results([run.environment(fake)])
    results.rows[SMALL[0].key] = run._begun(SMALL[0], 0, None)
    results.save(path)
    (tmp_path / "cells.turn").write_text(f"{SMALL[0].key}\n{name}")
    found, _ = measured(tmp_path, RIGHT, replace(SLOW, name="quack"), device=fake)
    row = found.rows[SMALL[0].key]
    assert row.lost == ({"quack": "its process ended"} if name == "quack" else {})
    assert set(row.times) == ({OURS} if name == "quack" else {OURS, "quack"}) and not row.is_failure
    assert set(found.rows[SMALL[1].key].times) == {OURS, "quack"}
    assert not (tmp_path / "cells.turn").exists()


def test_whose_turn_it_is_can_be_read_by_the_next_process(tmp_path: Path) -> None:
    notes = []

    def compute(made: Tensors) -> Tensor:
        notes.append((tmp_path / "cells.turn").read_text())
        return RIGHT.prepare(SMALL[0])(made)

    measured(tmp_path, provider(OURS, 10.0, compute, allowed=1.0), cells=SMALL[:1])
    assert {*notes} == {f"{SMALL[0].key}\n{OURS}"}


def test_a_graph_keeps_what_its_calls_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask or a workspace that only a call knows: the graph replays with its address."""

    class Recorded:
        replay = None

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...
        def wait_stream(self, other: object) -> None: ...

    for name in ("CUDAGraph", "Stream", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, Recorded)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: Recorded())
    workspace = torch.zeros(3)
    kept = weakref.ref(workspace)
    graph = device.Cuda.capture(object.__new__(device.Cuda), [partial(torch.add, workspace, 1)])
    del workspace
    assert kept() is not None
    del graph
    assert kept() is None


def test_what_failed_is_tried_again_after_the_rest(tmp_path: Path) -> None:
    measured(tmp_path, failing(OTHER[1]), cells=OTHER[:3])
    results, said = measured(tmp_path, failing(OTHER[1]), cells=OTHER)
    assert "2 of 5 cells measured before" in said[0]
    assert [line.split(":")[0] for line in said[1:]] == [*(cell.key for cell in OTHER[3:]), f"FAILED {OTHER[1].key}"]
    results, said = measured(tmp_path, failing(OTHER[1]), cells=OTHER[1:2])
    assert said[-1].startswith("FAILED")
    results, _ = measured(tmp_path, failing(), cells=OTHER)
    assert not any(row.is_failure for row in results.rows.values())


def test_what_is_said_is_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe it would be buffered, and lost if the process is killed."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
    run.tell("a cell")
    assert raw.getvalue() == b"a cell\n"


def test_a_peer_can_be_left_out(tmp_path: Path) -> None:
    results, _ = measured(tmp_path, RIGHT, without(SLOW), cells=SMALL[:1])
    row = results.rows[SMALL[0].key]
    assert row.absent["slow"] == "left out by --skip" and set(row.times) == {OURS}


def test_a_cell_without_a_peer_is_measured_again_where_there_is_one(tmp_path: Path) -> None:
    """After cells that are new, and before failures. Until then its figures stay."""
    broken = Cell("broken", (1, 1, 7, 16), "f16")
    failing = provider(OURS, 10.0, lambda made: raising() if made.out.shape[-2] == 7 else RIGHT.prepare(SMALL[0])(made))
    measured(tmp_path, failing, without(SLOW), ABSENT, cells=[broken, *OTHER[:2]])
    before = Results.load(tmp_path / "cells.json")
    results, said = measured(tmp_path, RIGHT, without(SLOW), ABSENT, cells=OTHER[:2])
    assert "2 of 2 cells measured before" in said[0] and results == before
    _, said = measured(
        tmp_path, failing, SLOW, ABSENT, cells=[broken, *OTHER[:3]], budget_s=2.5, now=iter(range(9)).__next__
    )
    order = [OTHER[2].key, OTHER[0].key]
    assert [line.split(":")[0] for line in said[2:-1]] == order and "budget spent: 2 of 4 cells are left" in said[-1]
    rows = Results.load(tmp_path / "cells.json").rows
    assert [{*rows[cell.key].times} for cell in OTHER[:3]] == [{OURS, "slow"}, {OURS}, {OURS, "slow"}]
    assert rows[OTHER[1].key] == before.rows[OTHER[1].key]


def test_a_peer_that_ends_the_process_in_a_measured_cell_is_left_out_of_it(tmp_path: Path) -> None:
    """The figures before stay."""
    measured(tmp_path, RIGHT, without(SLOW), cells=SMALL[:1])
    before = Results.load(tmp_path / "cells.json").rows[SMALL[0].key]
    (tmp_path / "cells.turn").write_text(f"{SMALL[0].key}\ntorch.compile")
    results, _ = measured(tmp_path, RIGHT, without(SLOW), cells=SMALL[:1])
    row = results.rows[SMALL[0].key]
    assert row.lost == {"torch.compile": "its process ended"} and row.times == before.times


def test_results_of_another_schema_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema 0"):
        measured(tmp_path, RIGHT)


# ---- the real device, as far as possible without a GPU


def test_a_capture_that_fails_leaves_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.graph does not leave its stream if the end of a capture raises."""
    own, side, inside = (SimpleNamespace(wait_stream=lambda other: None) for _ in range(3))
    current = [own]

    @contextmanager
    def stream(other: SimpleNamespace) -> Iterator[None]:
        before, current[0] = current[0], other
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def graph(_: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # compiler threads may allocate meanwhile
        current[0] = inside
        yield
        raise RuntimeError("the capture was invalidated")

    for name, stand_in in {
        "Stream": lambda: side,
        "stream": stream,
        "graph": graph,
        "current_stream": lambda: current[0],
        "CUDAGraph": SimpleNamespace,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with pytest.raises(RuntimeError, match="invalidated"):
        device.Cuda.__new__(device.Cuda).capture([lambda: torch.zeros(1)])
    assert current == [own]


@pytest.mark.parametrize(
    ("said", "clocks"),
    [("1980, 3201", {"sm": 1980, "memory": 3201}), ("[N/A], [N/A]", {}), ("1980, [N/A]", {"sm": 1980}), (None, {})],
)
def test_clocks_that_are_not_told(said: str | None, clocks: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_smi", lambda fields: said)
    assert device.Cuda.clocks(device.Cuda.__new__(device.Cuda)) == clocks


# ---- commands


def test_without_a_gpu_the_run_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert command.main(["run"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "no GPU here: nothing is measured" in err


@pytest.mark.parametrize("correct", [True, False])
def test_the_command_fails_when_a_cell_does(
    correct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = RIGHT if correct else provider(OURS, 1.0, lambda made: made.out.zero_(), allowed=1.0)
    monkeypatch.setattr(device, "Cuda", FakeDevice)
    monkeypatch.setattr("benchmarks.providers.every", lambda: [one])
    monkeypatch.setattr(command, "cells", lambda: SMALL)
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    assert command.main(["run", "--budget", "60s", "--first", "3", "--only", "|f16|"]) == (not correct)
    assert list(Results.load(tmp_path / "fake-gpu" / "cells.json").rows) == [cell.key for cell in SMALL[:2]]
    assert ("2 cells failed" in capsys.readouterr().err) == (not correct)


def test_the_command_fails_in_another_way_when_another_process_could_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def lost(*_: Any, **options: Any) -> Results:
        asked.update(options)
        raise measure.DeviceLost(Row("a cell", 1, "", lost={"a peer": "it hung"}))

    monkeypatch.setattr(device, "Cuda", FakeDevice)
    monkeypatch.setattr(run, "run", lost)
    command_line = ["run", "--limit", "30s", "--patience", "9", "--results", str(tmp_path / "cells.json")]
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        command.main(command_line)
    assert end.value.code == watchdog.LOST
    assert asked == {"limit_s": 30.0, "patience": 9}
    assert capsys.readouterr().err == (
        "error: a cell: this process can measure nothing more after a peer: it hung; run again to go on\n"
    )


def test_a_cell_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["once", "nope"])
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("no cell has the name 'nope'; `python -m benchmarks list` prints the names")


def test_a_device_without_results_is_told_which_have_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        with pytest.raises(SystemExit) as end:
            command.main(["compare", "nope"])
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    monkeypatch.setattr(command, "FOLDER", tmp_path)
    nothing = f"there are no results of 'nope' in {tmp_path}; "
    assert said().endswith(f"{nothing}there are none: `python -m benchmarks run` makes them")
    for device_name in ("nvidia-b", "nvidia-a"):
        Results().save(tmp_path / device_name / "cells.json")
    (tmp_path / "costs.json").write_text("{}")
    assert said().endswith(f"{nothing}there are those of nvidia-a, nvidia-b")
    assert command.main(["compare", "nvidia-a"]) == 0
    assert capsys.readouterr().out.startswith("no cell has been both predicted and measured\n")


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence() -> None:
    """Like `head`, which closes the pipe."""
    reads, writes = os.pipe()
    os.close(reads)
    list_cells = [sys.executable, "-B", "-m", "benchmarks", "list"]
    result = subprocess.run(list_cells, cwd=CHECKOUT, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (result.returncode, result.stderr) == (-signal.SIGPIPE, "")


def test_a_row_without_a_ceiling_is_a_failure() -> None:
    assert Row("", 1, "", times={OURS: [1.0]}).is_failure
    assert not Row("", 1, "", times={OURS: [1.0]}, ceilings={"memcpy": [1.0]}).is_failure


@pytest.mark.parametrize("arguments", [[], ["check"], ["weigh", "somewhere"]])
def test_the_offline_script_says_how_it_is_called(arguments: list[str], tmp_path: Path) -> None:
    command_line = [str(CHECKOUT / "benchmarks" / "offline.sh"), *arguments]
    result = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "offline.sh measure FOLDER [SECONDS]" in result.stderr
    assert not any(tmp_path.iterdir())
