"""Graphs take turns, in a different order each round, so that drift (clocks, heat, neighbours) affects all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from .device import Device, Graph

ROUNDS = 9
WINDOW_US = 500.0
"""Least time between two events, whose clock has a resolution of half a microsecond."""

WARM_UP_US = 80_000.0
"""Time of replays before the first round, of all graphs together: an idle device raises its clocks meanwhile."""


@dataclass
class Turn:
    """Whose turn it is: a provider or a ceiling, or "" for the benchmark itself. After an error, who raised it.

    `begins` is called with each name when its turn begins.
    """

    name: str = ""
    begins: Callable[[str], object] = lambda name: None

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        self._set(name)
        yield
        self._set("")

    def _set(self, name: str) -> None:
        self.name = name
        self.begins(name)


class TurnFailed(RuntimeError):
    """Replaying the graph of this name raised an error, which is the cause of this one."""


class Spread(NamedTuple):
    """Quantiles over the rounds of a cell."""

    p20: float
    median: float
    p80: float


def spread(values: list[float]) -> Spread:
    """Quantiles by linear interpolation.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    Spread(p20=2.0, median=3.5, p80=5.0)
    """
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(cuts[1], statistics.median(values), cuts[7])


def interleaved(device: Device, graphs: Mapping[str, Graph], seed: int, turn: Turn) -> dict[str, list[float]]:
    """Microseconds of one replay of each graph, round by round; a short graph is replayed several times per window.

    Raises TurnFailed.
    """
    replays = {}
    for name in graphs:
        estimate = _turn(device, graphs, name, 1, turn)
        warm_up = ceil(WARM_UP_US / len(graphs) / max(estimate, 1.0))
        estimate = _turn(device, graphs, name, warm_up, turn) / warm_up
        replays[name] = max(ceil(WINDOW_US / max(estimate, 1.0)), 1)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    order, shuffler = list(graphs), random.Random(seed)
    for _ in range(ROUNDS):
        shuffler.shuffle(order)
        for name in order:
            times[name].append(_turn(device, graphs, name, replays[name], turn) / replays[name])
    return times


def _turn(device: Device, graphs: Mapping[str, Graph], name: str, replays: int, turn: Turn) -> float:
    """Microseconds of this many replays."""
    try:
        with turn.of(name):
            return device.time(graphs[name], replays)
    except Exception as error:
        raise TurnFailed(name) from error
