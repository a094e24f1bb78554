"""A device for the benchmark without a GPU: tensors on the CPU, and a clock that a call's attribute `us` advances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.device import Graph
from benchmarks.providers import Provider
from benchmarks.tensors import Tensors

COPY_US = 8.0
"""Time of a call without the attribute: the ceilings."""


class FakeDevice:
    """Replaying a graph takes the sum of its calls' times."""

    torch_device = "cpu"
    name = "Fake GPU"
    l2_bytes = 0
    multiprocessors = 4

    def __init__(self, facts: dict[str, Any] | None = None):
        self._facts = facts or {}
        self.captured = 0
        self.order: list[float] = []  # costs of graphs, in the order of timing
        self.windows: list[float] = []
        self.lost = False

    def facts(self) -> dict[str, Any]:
        return {"device": self.name, "multiprocessors": self.multiprocessors, **self._facts}

    def clocks(self) -> dict[str, int]:
        return {"sm": 1980}

    def capture(self, calls: Sequence[Callable[[], Tensor]]) -> Graph:
        self.captured += 1
        results = [call() for call in calls]

        def replay() -> float:
            for result, call in zip(results, calls, strict=True):
                result.copy_(call())
            return len(calls) * getattr(calls[0].func, "us", COPY_US)  # type: ignore[attr-defined]

        return Graph(replay, results, calls)

    def time(self, graph: Graph, replays: int) -> float:
        cost = graph.replay()
        assert isinstance(cost, float)
        self.order.append(cost)
        self.windows.append(replays * cost)
        return self.windows[-1]

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")

    def release(self) -> None:
        pass


def provider(name: str, us: float, compute: Callable[[Tensors], Tensor], **facts: Any) -> Provider:
    """A provider whose calls take this long on the fake device."""

    def prepare(cell: Cell) -> Callable[[Tensors], Tensor]:
        def call(tensors: Tensors) -> Tensor:
            return compute(tensors)

        call.us = us  # type: ignore[attr-defined]
        return call

    return Provider(name, prepare, **facts)
