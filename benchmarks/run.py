"""The run: measures cells in rank order until the budget is spent, and writes each as soon as it is done."""

from __future__ import annotations

import ast
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import softmax_ops
from softmax_ops.artifacts import catalog
from tests.support.watchdog import limited

from .cells import Cell
from .device import Device
from .measure import DeviceLost, describe, measure
from .providers import PEERS, Provider, without
from .results import PATIENCE, TURN_LIMIT_S, Results, Row
from .timing import Turn

METHOD = (
    *("ceilings", "cells", "correctness", "device", "measure"),
    *("quack_objects", "tensors", "timing", "triton_softmax"),
)
"""The modules that measure, besides the providers; others, such as reports, may change without making figures old."""

SOURCES = (".py", ".c", ".h")

NOT_FINISHED = {"cell": "not finished"}


def environment(device: Device) -> dict[str, Any]:
    """The device's facts, and digests of the kernels, of what measures them and of what launches them."""
    root = Path(__file__).parent
    return {
        **device.facts(),
        "kernels": _digest([catalog.location()]),
        "method": _digest([*(root / f"{name}.py" for name in METHOD), *root.glob("providers/*.py")]),
        "package": _digest(path for path in Path(softmax_ops.__file__).parent.rglob("*") if path.suffix in SOURCES),
    }


def _digest(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(map(_executed, sorted(paths)))).hexdigest()[:16]


def _executed(path: Path) -> bytes:
    """The part of a file that can change figures; for Python, without format, comments and docstrings."""
    content = path.read_bytes()
    if path.suffix != ".py":
        return content
    return ast.dump(_WithoutDocs().visit(ast.parse(content, path))).encode()


class _WithoutDocs(ast.NodeTransformer):
    """Removes strings that are statements: docstrings, and the strings that describe a constant or a field.

    Also removes empty lists and empty parts of f-strings: which of them exist depends on the version of Python, which
    does not affect figures.
    """

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name, value in list(ast.iter_fields(node)):
            if value == []:
                delattr(node, name)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        node.values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
        return self.generic_visit(node)


def tell(line: str) -> None:
    """Prints a line at once, even into a pipe, since a run may be cut off."""
    print(line, flush=True)


def run(
    cells: Sequence[Cell],
    device: Device,
    providers: Sequence[Provider],
    path: Path,
    budget_s: float,
    *,
    limit_s: float = TURN_LIMIT_S,
    patience: int = PATIENCE,
    now: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = tell,
) -> Results:
    """Measures what the file at `path` lacks: new cells, then those that some of the providers were absent from, then
    previous failures. Stops when several kernels of ours fail in a row.

    A cell is in the file before it is measured, as not finished unless it has a figure: a run that is killed there
    leaves it for last. Whose turn it was is in a file beside it: a peer in whose turn a process ended is left out of
    the cell. Raises DeviceLost when nothing more can be measured, and ends the process, with status LOST, when a turn
    exceeds its limit.
    """
    results, here = Results.load(path), environment(device)
    note = path.with_suffix(".turn")
    _blame(results, note)
    number = results.number_of(here)
    known = results.current(here)
    absent = {provider.name: reason for provider in providers if (reason := provider.why_absent())}
    present = {provider.name for provider in providers} - absent.keys()
    left = [cell for cell in cells if cell.key not in known or not known[cell.key].is_done(present)]
    left.sort(key=lambda cell: 0 if cell.key not in known else 1 + known[cell.key].is_failure)
    say(f"{device.name}: {len(cells) - len(left)} of {len(cells)} cells measured before; {path}")
    for name, reason in absent.items():
        say(f"absent: {name}: {reason}")

    def hung(begun: Row) -> None:
        why = f"not finished in {limit_s:g} s"
        say(f"HUNG {begun.cell}: {turn.name or 'the cell itself'}: {why}; run again to go on")
        _keep(results, replace(begun, failed={}).ended(turn.name, why), begun, path)

    deadline, turn = now() + budget_s, Turn()
    failing: set[str] = set()
    for done, cell in enumerate(left):
        if now() >= deadline:
            say(f"budget spent: {len(left) - done} of {len(cells)} cells are left; run again to go on")
            break
        before = known.get(cell.key)
        begun = _begun(cell, number, before)
        if before is None or before.is_failure:
            _keep(results, begun, begun, path)
        try:
            with limited(limit_s, partial(hung, begun)) as restart:
                turn.begins = partial(_begin_turn, restart, note, cell)
                row = measure(cell, device, _present(providers, begun), begun.date, turn)
        except DeviceLost as lost:
            _keep(results, lost.row, begun, path)
            raise
        finally:
            note.unlink(missing_ok=True)
        say(describe(_keep(results, row, begun, path)))
        failing = failing | {row.kernel or row.cell} if row.is_failure else set()
        if len(failing) >= patience:
            say(f"stopped: {len(failing)} kernels in a row failed")
            break
    return results


def _begin_turn(restart: Callable[[], None], note: Path, cell: Cell, name: str) -> None:
    restart()
    note.write_text(f"{cell.key}\n{name}")


def _blame(results: Results, note: Path) -> None:
    """Leaves out of its cell the peer in whose turn the last process ended. What is not a peer's fault may have been an
    end from outside: that cell is tried again."""
    if not note.exists():
        return
    key, name = note.read_text().split("\n")
    row = results.rows.get(key)
    if row is not None and (row.failed == NOT_FINISHED or not row.is_failure) and name in PEERS:
        results.rows[key] = replace(row, failed={}).ended(name, "its process ended")


def _begun(cell: Cell, number: int, before: Row | None) -> Row:
    """The row of a cell until it is measured."""
    date, lost = time.strftime("%Y-%m-%d"), before.lost if before else {}
    return Row(cell.key, cell.bytes, date, number, failed=NOT_FINISHED, lost=lost)


def _present(providers: Sequence[Provider], begun: Row) -> list[Provider]:
    """The providers, without those that took the process with them in this cell before."""
    lost = begun.lost
    return [without(each, f"left out after {lost[each.name]}") if each.name in lost else each for each in providers]


def _keep(results: Results, row: Row, begun: Row, path: Path) -> Row:
    """Writes the row of a cell that was begun, and returns it with what is known from there."""
    row = replace(row, environment=begun.environment, lost={**begun.lost, **row.lost})
    results.rows[row.cell] = row
    results.save(path)
    return row
