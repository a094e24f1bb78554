"""One cell: its tensors, a graph per provider and ceiling, rounds that interleave them, and a check of the results."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from . import ceilings, correctness, tensors
from .cells import Cell
from .device import Device, Graph, NoDevice
from .providers import OURS, Provider, in_brief, ours
from .results import Row
from .tensors import Tensors
from .timing import Turn, TurnFailed, interleaved


class DeviceLost(NoDevice):
    """This process can measure nothing more: the device no longer answers, which a wrong kernel can cause, or torch
    captures no more graphs, which a call that synchronises can cause. `row` says whose turn it was."""

    def __init__(self, row: Row):
        super().__init__(f"{row.cell}: this process can measure nothing more after {row.why}; run again to go on")
        self.row = row


@dataclass
class _Found:
    """What a row collects while its cell is measured, and whose turn it is."""

    turn: Turn
    graphs: dict[str, Graph] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(cell: Cell, device: Device, providers: Sequence[Provider], date: str, turn: Turn) -> Row:
    """The row of a cell, without the number of its environment. Raises DeviceLost; all else becomes part of the row."""
    turn.name = ""
    row = Row(cell.key, cell.bytes, date, sets=tensors.sets_of(cell, device.l2_bytes))
    try:
        return _measured(cell, device, providers, row, turn)
    except DeviceLost:
        raise
    except Exception as error:  # of the cell as a whole, such as out of memory
        row = replace(row, failed={"cell": in_brief(error)})
    finally:
        with suppress(RuntimeError):  # a lost device cannot release anything
            device.release()
    _must_answer(device, row, turn, row.failed["cell"])
    return row


def _measured(cell: Cell, device: Device, providers: Sequence[Provider], row: Row, turn: Turn) -> Row:
    """The measured row. The cell's tensors and graphs are dropped on return."""
    seed, found = zlib.crc32(cell.key.encode()), _Found(turn)
    made = tensors.make(cell, device.torch_device, row.sets, seed)
    row = replace(row, kernel=_kernel(cell, made[0], found))
    copies = [each for each in ceilings.of_cell(cell) if _captured(each.provider, cell, device, made, found, row)]
    competing = [each for each in providers if _captured(each, cell, device, made, found, row)]
    times = _times(device, found, row, seed)
    clocks = device.clocks()
    copies = [each for each in copies if each.name in times]
    competing = [each for each in competing if each.name in times]
    errors = _errors(cell, device, made[0], competing, found)
    return replace(
        row,
        clocks=clocks,
        times={provider.name: _per_call(times[provider.name], row.sets) for provider in competing},
        ceilings={ceiling.name: _per_call(times[ceiling.name], row.sets) for ceiling in copies},
        ceiling_bytes={ceiling.name: ceiling.bytes(cell) for ceiling in copies},
        errors=errors,
        wrong=tuple(provider.name for provider in competing if not errors[provider.name] <= provider.allowed),
        absent=found.absent,
        refused=found.refused,
        failed=found.failed,
    )


def _kernel(cell: Cell, made: Tensors, found: _Found) -> str | None:
    """The name of our kernel, if there is one."""
    try:
        explanation = ours.explanation(cell, made)
        return None if explanation is None else explanation.variant
    except Exception as error:  # the call itself reports the failure
        found.failed["explain"] = in_brief(error)
        return None


def _captured(provider: Provider, cell: Cell, device: Device, made: list[Tensors], found: _Found, row: Row) -> bool:
    """Whether the calls over all sets were captured as a graph and replayed once; if not, the reason is recorded."""
    name = provider.name
    if reason := provider.why_absent():
        found.absent[name] = reason
        return False
    try:
        if reason := provider.refuses(cell):
            found.refused[name] = reason
            return False
        with found.turn.of(name):
            call = provider.prepare(cell)
            graph = device.capture([partial(call, each) for each in made])
            _check_shapes(graph, cell)
            device.time(graph, 1)
    except Exception as error:  # a peer may raise anything; that must not end the run
        _note(name, error, device, found, row)
        return False
    found.graphs[name] = graph
    return True


def _times(device: Device, found: _Found, row: Row, seed: int) -> dict[str, list[float]]:
    """Times of the graphs that keep working: when one fails in its turn, it is dropped and the rounds start over."""
    while True:
        try:
            return interleaved(device, found.graphs, seed, found.turn)
        except TurnFailed as failure:
            (name,) = failure.args
            del found.graphs[name]
            _note(name, failure.__cause__ or failure, device, found, row)


def _note(name: str, error: BaseException, device: Device, found: _Found, row: Row) -> None:
    found.failed[name] = in_brief(error)
    _must_answer(device, row, Turn(name), found.failed[name])
    found.turn.name = ""


def _check_shapes(graph: Graph, cell: Cell) -> None:
    """Raises TypeError for a call that returns anything but a tensor of the scores' shape."""
    for result in graph.results:
        shape = tuple(getattr(result, "shape", ()))
        if shape != cell.shape:
            raise TypeError(f"a call returned a {type(result).__name__} of shape {shape}, not {cell.shape}")


def _must_answer(device: Device, row: Row, turn: Turn, failure: str) -> None:
    """Raises DeviceLost if nothing more can be measured after a failure.

    If a capture was invalidated, torch before 2.12 takes it to be under way for ever: each later one raises, and so
    does `release`.
    """
    try:
        device.synchronize()
        device.release()
    except RuntimeError as error:
        raise DeviceLost(row.ended(turn.name, failure)) from error


def _errors(
    cell: Cell, device: Device, first: Tensors, providers: Sequence[Provider], found: _Found
) -> dict[str, float]:
    """Errors of the timed graphs: each first result is overwritten with NaN, computed again and compared."""
    errors: dict[str, float] = {}
    for plain in (False, True):
        names = [provider.name for provider in providers if provider.plain is plain]
        results = [_computed_again(device, name, found) for name in names]
        errors.update(zip(names, correctness.worst(cell, first, results, plain), strict=True))
    return errors


def _computed_again(device: Device, name: str, found: _Found) -> torch.Tensor:
    """A copy of the first result, since providers share one output."""
    graph = found.graphs[name]
    with found.turn.of(name):
        result = graph.results[0].fill_(torch.nan)
        device.time(graph, 1)
        return result.clone()


def _per_call(times: list[float], sets: int) -> list[float]:
    return [round(value / sets, 4) for value in times]


def describe(row: Row) -> str:
    """The row in one line for the terminal."""
    if row.is_failure:
        return f"FAILED {row.cell}: {row.why}"
    peers = ", ".join(f"{name} {row.share(name).median:.3f}" for name in row.times if name != OURS)
    own = row.share(OURS) if row.compared(OURS) else None
    share = f"{own.median:.3f} ({own.p20:.3f} .. {own.p80:.3f})" if own else row.why
    return f"{row.cell}: {row.ceiling} {row.ceiling_us:.1f} us; share {share}; {peers}"
