"""What an outcome must be: right numbers, untouched guard bytes, and no access more than the plan promises."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen.spec import Plan
from tests import layouts, reference
from tests.calls import CAUSAL, Call
from tests.engines import POISON, Operand, Outcome
from tests.ptx import Traffic

Integers = NDArray[np.int64]


class Wrong(AssertionError):
    """A failed check; `kind` is numbers, unwritten, guard bytes or traffic."""

    def __init__(self, kind: str, what: str):
        super().__init__(f"{kind}: {what}")
        self.kind = kind


def judge(call: Call, outcome: Outcome) -> None:
    """Raises Wrong unless the outcome is what the call asks for."""
    judge_memory(call, outcome)
    judge_numbers(call, outcome)
    for report in outcome.reports:
        judge_traffic(call, report.traffic)


def judge_memory(call: Call, outcome: Outcome) -> None:
    """Every byte of the output was written, and none around it."""
    operand = call.operands.y or call.operands.x
    if outcome.unwritten is not None and outcome.unwritten.any():
        raise Wrong("unwritten", f"{call.case.why}: {int(outcome.unwritten.sum())} bytes of the output")
    if (outcome.output[~operand.valid] != POISON).any():
        raise Wrong("guard bytes", f"{call.case.why}: written outside the output's rows")


def judge_numbers(call: Call, outcome: Outcome) -> None:
    """Against the reference, with the one tolerance table; subnormal outputs of 16 bits count."""
    floor = 0.0 if call.case.spec.dtype.bytes == 2 else None
    y = call.output(outcome.output)
    try:
        reference.assert_close(y, call.expected, call.case.spec.dtype.value, rounding=call.rounding, floor=floor)
    except AssertionError as error:
        raise Wrong("numbers", f"{call.case.why}: {error}") from None


def judge_traffic(call: Call, traffic: dict[str, Traffic]) -> None:
    """x is read once and as far as it is visible, y written once, each in accesses of the promised widths."""
    promised = promise(call)
    x = traffic["x"]
    y = traffic.get("y", x)
    _same(call, "reads of x", x.reads, promised.x)
    _same(call, "writes of y", y.writes, promised.y)
    if call.mask is not None and call.mask_strides[-1]:
        _judge_mask(call, traffic["mask"], promised.mask_elements)


def _judge_mask(call: Call, found: Traffic, elements: int) -> None:
    """Every element once; as one access per vector of x where all rows are aligned."""
    assert call.mask is not None
    size, vec = call.mask.element_size(), call.case.spec.vec
    if vec > 1:
        _same(call, "reads of the mask", found.reads, Counter({vec * size: elements // vec}))
    elif found.bytes_read != elements * size:
        raise Wrong("traffic", f"{call.case.why}: {found.bytes_read} bytes of the mask, not {elements * size}")


def _same(call: Call, what: str, found: Counter[int], wanted: Counter[int]) -> None:
    if +found != +wanted:
        raise Wrong("traffic", f"{call.case.why}: {what} by width in bytes are {dict(found)}, not {dict(wanted)}")


@dataclass(frozen=True)
class Promise:
    """Accesses by width in bytes, and mask elements read."""

    x: Counter[int]
    y: Counter[int]
    mask_elements: int


def promise(call: Call) -> Promise:
    """What the variant may read and must write for this call, counted from its addresses."""
    if call.case.spec.plan is Plan.TILE:
        return _tile(call)
    return _rows(call)


def visible_columns(call: Call) -> Integers:
    """[rows] columns before the first that the causal mask hides."""
    *leading, q, k = call.case.shape
    if call.case.spec.mask not in CAUSAL or call.case.causal_offset is None:
        return np.full(int(np.prod(leading)) * q, k)
    return np.tile(np.clip(np.arange(q) + call.case.causal_offset + 1, 0, k), int(np.prod(leading)))


def starts(call: Call, operand: Operand, layout: layouts.Layout) -> Integers:
    """[rows] addresses of the rows in elements: what matters is their phase."""
    shape = call.case.shape
    numbers = np.indices(shape[:-1]).reshape(len(shape) - 1, -1)
    first = (operand.phase + operand.first) // call.x.element_size()
    return np.asarray(first + (numbers * np.array(layout.strides(shape)[:-1])[:, None]).sum(axis=0))


def _rows(call: Call) -> Promise:
    """A row in registers: vectors between the output's boundaries, single elements before and behind."""
    spec, case, operands = call.case.spec, call.case, call.operands
    k, size, visible = case.shape[-1], call.x.element_size(), visible_columns(call)
    x = starts(call, operands.x, case.x)
    y = x if operands.y is None or case.y is None else starts(call, operands.y, case.y)
    vec = spec.access
    cut = Cut.of(y, np.full_like(y, k), vec)
    vectors = -(-np.clip(np.minimum(visible, cut.body) - cut.head, 0, None) // vec)
    edges = np.minimum(visible, cut.head) + np.clip(visible - cut.body, 0, None)
    in_phase = (x + cut.head) % vec == 0
    wide, apart = int(vectors[in_phase].sum()), int(vectors[~in_phase].sum())
    reads = Counter({vec * size: wide}) + Counter({size: apart * vec + int(edges.sum())})
    return Promise(reads, cut.writes(vec, size), int((vectors * vec + edges).sum()))


def _tile(call: Call) -> Promise:
    """Many rows as one range, or element by element where they do not follow each other. x is read whole: a tile's
    hidden columns lie in the sectors of visible ones. The mask is read as far as the row is visible."""
    spec, case, operands = call.case.spec, call.case, call.operands
    visible, size = visible_columns(call), call.x.element_size()
    mask = int((-(-visible // spec.vec) * spec.vec).sum())
    x = starts(call, operands.x, case.x)
    y = x if operands.y is None or case.y is None else starts(call, operands.y, case.y)
    k, per_cta, vec = case.shape[-1], call.rows_per_cta, spec.dtype.vector
    if (np.diff(x) != k).any() or (np.diff(y) != k).any():
        return Promise(Counter({size: x.size * k}), Counter({size: x.size * k}), mask)
    counts = np.diff(np.append(np.arange(0, x.size, per_cta), x.size))
    x, y = x[::per_cta], y[::per_cta]
    cut = Cut.of(y, counts * k, vec)
    in_phase = (x + cut.head) % vec == 0
    whole = Counter({size: int((counts * k)[~in_phase].sum())})
    return Promise(cut.writes(vec, size, in_phase) + whole, cut.writes(vec, size), mask)


@dataclass(frozen=True)
class Cut:
    """Ranges of `length` elements, cut at vector boundaries: single elements before `head` and from `body` on."""

    head: Integers
    body: Integers
    length: Integers

    @classmethod
    def of(cls, start: Integers, length: Integers, vec: int) -> Cut:
        head = np.minimum(-start % vec, length)
        return cls(head, head + (length - head) // vec * vec, length)

    def writes(self, vec: int, size: int, which: NDArray[np.bool_] | None = None) -> Counter[int]:
        """Accesses by width in bytes, of all ranges or `which` of them."""
        chosen = np.ones(self.head.shape, np.bool_) if which is None else which
        inside = int((self.body - self.head)[chosen].sum())
        outside = int(self.length[chosen].sum()) - inside
        return Counter({vec * size: inside // vec}) + Counter({size: outside})
