"""Graphs take turns, in a different order each round, so that drift (clocks, heat, neighbours) affects all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

from .device import Device, Graph

ROUNDS = 9
WINDOW_US = 500.0
"""Least time between two events, whose clock has a resolution of half a microsecond."""

WARM_UP_US = 80_000.0
"""Time of replays before the first round, of all graphs together: an idle device raises its clocks meanwhile."""


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


def interleaved(device: Device, graphs: Mapping[str, Graph], seed: int) -> dict[str, list[float]]:
    """Microseconds of one replay of each graph, round by round; a short graph is replayed several times per window.

    Raises TurnFailed.
    """
    replays = {}
    for name in graphs:
        estimate = _turn(device, graphs, name, 1)
        warm_up = ceil(WARM_UP_US / len(graphs) / max(estimate, 1.0))
        estimate = _turn(device, graphs, name, warm_up) / warm_up
        replays[name] = max(ceil(WINDOW_US / max(estimate, 1.0)), 1)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    order, turns = list(graphs), random.Random(seed)
    for _ in range(ROUNDS):
        turns.shuffle(order)
        for name in order:
            times[name].append(_turn(device, graphs, name, replays[name]) / replays[name])
    return times


def _turn(device: Device, graphs: Mapping[str, Graph], name: str, replays: int) -> float:
    """Microseconds of this many replays."""
    try:
        return device.time(graphs[name], replays)
    except Exception as error:
        raise TurnFailed(name) from error
