"""One cell: tensors, graphs of every provider and ceiling, rounds in turns, and a check of what the graphs computed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from . import ceilings, correctness, tensors
from .cells import Cell
from .device import Device, Graph
from .providers import OURS, Call, Provider, ours
from .results import Row
from .tensors import Tensors
from .timing import interleaved


class DeviceLost(RuntimeError):
    """The device no longer answers: what a wrong kernel can do. `row` says who ran last."""

    def __init__(self, row: Row):
        super().__init__(f"{row.cell}: the device no longer answers after {row.failed['device']}")
        self.row = row


@dataclass
class _Found:
    """What becomes of a row while a cell is measured."""

    graphs: dict[str, Graph] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(cell: Cell, device: Device, providers: Sequence[Provider], date: str) -> Row:
    """The row of a cell, without the number of its environment. Raises DeviceLost; all else becomes part of the row."""
    sets, seed = tensors.sets_of(cell, device.l2_bytes), zlib.crc32(cell.key.encode())
    row = Row(cell.key, cell.bytes, date, sets=sets)
    found = _Found()
    try:
        made = tensors.make(cell, device.torch_device, sets, seed)
        row = replace(row, kernel=_kernel(cell, made[0]))
        copies = _ceilings(cell, device, made, found, row)
        competing = _providers(cell, device, made, providers, found, row)
        times = interleaved(device, found.graphs, seed)
        clocks = device.clocks()
        errors = _errors(cell, device, made[0], competing, found.graphs)
    except DeviceLost:
        raise
    except (RuntimeError, MemoryError) as error:  # of the device as a whole: out of memory, a fault in a replay
        row = replace(row, failed={"device": _words(error)})
        _must_answer(device, row, "a round of all")
        return row
    finally:
        found.graphs.clear()
        made = []
        device.release()
    return replace(
        row,
        clocks=clocks,
        times={provider.name: _per_call(times[provider.name], sets) for provider in competing},
        ceilings={ceiling.name: _per_call(times[ceiling.name], sets) for ceiling in copies},
        ceiling_bytes={ceiling.name: ceiling.bytes(cell) for ceiling in copies},
        errors=errors,
        wrong=tuple(provider.name for provider in competing if not errors[provider.name] <= provider.allowed),
        absent=found.absent,
        refused=found.refused,
        failed=found.failed,
    )


def _kernel(cell: Cell, made: Tensors) -> str | None:
    """The name of our kernel, where there is one."""
    with suppress(LookupError):
        explanation = ours.explanation(cell, made)
        return None if explanation is None else explanation.variant
    return None


def _ceilings(cell: Cell, device: Device, made: list[Tensors], found: _Found, row: Row) -> list[ceilings.Ceiling]:
    captured = []
    for ceiling in ceilings.of_cell(cell):
        if reason := ceiling.absent():
            found.absent[ceiling.name] = reason
        elif _captured(ceiling.name, partial(_itself, ceiling.call), device, made, found, row):
            captured.append(ceiling)
    return captured


def _providers(
    cell: Cell, device: Device, made: list[Tensors], providers: Sequence[Provider], found: _Found, row: Row
) -> list[Provider]:
    captured = []
    for provider in providers:
        if reason := provider.absent():
            found.absent[provider.name] = reason
        elif reason := provider.refuses(cell):
            found.refused[provider.name] = reason
        elif _captured(provider.name, partial(provider.prepare, cell), device, made, found, row):
            captured.append(provider)
    return captured


def _itself(call: Call) -> Call:
    return call


def _captured(
    name: str, prepare: Callable[[], Call], device: Device, made: list[Tensors], found: _Found, row: Row
) -> bool:
    """Whether a graph of the calls over every set could be made; what it raised is noted."""
    try:
        call = prepare()
        found.graphs[name] = device.capture([partial(call, each) for each in made])
    except Exception as error:  # a peer may raise anything; none of it may end the run
        found.failed[name] = _words(error)
        _must_answer(device, row, name)
        return False
    return True


def _must_answer(device: Device, row: Row, name: str) -> None:
    try:
        device.synchronize()
    except RuntimeError as error:
        raise DeviceLost(replace(row, failed={"device": f"{name}: {_words(error)}"})) from error


def _errors(
    cell: Cell, device: Device, first: Tensors, providers: Sequence[Provider], graphs: dict[str, Graph]
) -> dict[str, float]:
    """Of the graphs that were timed: the first result is overwritten with NaN, computed again and compared."""
    errors = {}
    for provider in providers:
        graph = graphs[provider.name]
        graph.results[0].fill_(torch.nan)
        device.time(graph, 1)
        errors[provider.name] = correctness.worst(cell, first, graph.results[0], provider.plain)
    return errors


def _per_call(times: list[float], sets: int) -> list[float]:
    return [round(value / sets, 4) for value in times]


def _words(error: BaseException) -> str:
    """Type and first line: whole tracebacks of compilers are pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def describe(row: Row) -> str:
    """One line for the terminal."""
    if row.is_failure:
        return f"FAILED {row.cell}: {row.failed or f'wrong by {row.errors.get(OURS)} times its bound'}"
    peers = ", ".join(f"{name} {row.share(name).median:.3f}" for name in row.times if name != OURS)
    own = row.share(OURS) if row.compared(OURS) else None
    share = f"{own.median:.3f} ({own.p20:.3f} .. {own.p80:.3f})" if own else f"{row.refused.get(OURS)}"
    return f"{row.cell}: {row.ceiling} {row.ceiling_us:.1f} us; share {share}; {peers}"
