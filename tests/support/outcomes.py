"""Requirements on an outcome: right numbers, untouched guard bytes, and no more accesses than the plan promises."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen.axes import Plan
from tests.ptx import Traffic
from tests.support import reference
from tests.support.calls import CAUSAL, Call
from tests.support.engines import POISON, Bytes, Outcome

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
    judge_traffic(call, [report.traffic for report in outcome.reports])


def judge_memory(call: Call, outcome: Outcome) -> None:
    """Checks that every byte of the output was written, and none around it."""
    if outcome.unwritten is not None and outcome.unwritten.any():
        raise Wrong("unwritten", f"{call.case.why}: {int(outcome.unwritten.sum())} bytes of the output")
    if (outcome.output[~call.operands.result.valid] != POISON).any():
        raise Wrong("guard bytes", f"{call.case.why}: written outside the output's rows")


def judge_numbers(call: Call, outcome: Outcome) -> None:
    """Compares with the reference, using the one tolerance table."""
    found = call.output(outcome.output)
    try:
        reference.assert_close(found, call.expected, call.case.spec.dtype.output.value, **call.tolerance)
    except AssertionError as error:
        raise Wrong("numbers", f"{call.case.why}: {error}") from None
    for name, storage in outcome.results.items():
        _judge_row_result(call, name, storage)


def _judge_row_result(call: Call, name: str, storage: Bytes) -> None:
    """Compares numbers per row with the reference."""
    expected, allowed = call.general.rows[name]
    values = reference.to_numpy(call.row_result(name, storage))
    with np.errstate(invalid="ignore"):
        near = (values == expected) | (np.abs(values - expected) <= allowed)
    wrong = ~(near | (np.isnan(values) & np.isnan(expected)))
    if wrong.any():
        row = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Wrong("numbers", f"{call.case.why}: {name} {row} is {values[row]!r}, not {expected[row]!r}")


def judge_traffic(call: Call, launches: list[dict[str, Traffic]]) -> None:
    """Checks that visible inputs are read once (twice if no CTA holds its part of the row) and the output is written
    once, all in accesses of the promised widths. The counts are those of all launches together."""
    if not launches:
        return
    promised, times = promise(call), 2 if call.case.spec.piece else 1

    def reads(buffer: str) -> Counter[int]:
        return sum((traffic[buffer].reads for traffic in launches), Counter())

    output = call.operands.output if isinstance(call.operands.output, str) else "output"
    for name in call.inputs:
        _same(call, f"reads of {name}", reads(name), _times(promised.reads[name], times))
    writes = sum((traffic[output].writes for traffic in launches), Counter[int]())
    _same(call, "writes of the output", writes, promised.writes)
    if call.mask is not None and call.mask_strides[-1]:
        _judge_mask(call, reads("mask"), promised.mask_elements * times)
    if "bias" in call.others:
        read = sum(width * count for width, count in reads("bias").items())
        wanted = promised.mask_elements * times * call.others["bias"].element_size()
        _same(call, "reads of the bias", Counter({1: read}), Counter({1: wanted}))


def _times(counts: Counter[int], times: int) -> Counter[int]:
    return Counter({width: count * times for width, count in counts.items()})


def _judge_mask(call: Call, found: Counter[int], elements: int) -> None:
    """Checks that every element is read once; with one access per vector of x if all rows are aligned."""
    assert call.mask is not None
    size, vec = call.mask.element_size(), call.case.spec.vec
    if vec > 1:
        _same(call, "reads of the mask", found, Counter({vec * size: elements // vec}))
        return
    read = sum(width * count for width, count in found.items())
    if read != elements * size:
        raise Wrong("traffic", f"{call.case.why}: {read} bytes of the mask, not {elements * size}")


def _same(call: Call, what: str, found: Counter[int], wanted: Counter[int]) -> None:
    if +found != +wanted:
        raise Wrong("traffic", f"{call.case.why}: {what} by width in bytes are {dict(found)}, not {dict(wanted)}")


@dataclass(frozen=True)
class Promise:
    """Accesses of each tensor by width in bytes, and mask elements read, in one pass over the rows."""

    reads: dict[str, Counter[int]]
    writes: Counter[int]
    mask_elements: int


def promise(call: Call) -> Promise:
    """What the variant may read and must write for this call, counted from its addresses."""
    if call.case.spec.plan is Plan.TILE:
        return _tile(call)
    return _rows(call)


def visible_columns(call: Call) -> Integers:
    """[rows] number of columns before the hidden ones that end the row."""
    *leading, q, k = call.case.shape
    if call.case.features is not None:
        _, end = band(call)
        return end
    if call.case.mask_kind not in CAUSAL or call.case.causal_offset is None:
        return np.full(int(np.prod(leading)) * q, k)
    return np.tile(np.clip(np.arange(q) + call.case.causal_offset + 1, 0, k), int(np.prod(leading)))


def band(call: Call) -> tuple[Integers, Integers]:
    """[rows] first column that window and length leave visible, and the end of those columns."""
    k = call.case.shape[-1]
    if call.case.features is None:
        return np.zeros_like(visible_columns(call)), visible_columns(call)
    seen = reference.within(call.case.shape, **call.case.features.band(call.others, call.case.causal_offset)).reshape(
        -1, k
    )
    any_seen = seen.any(axis=-1)
    first, last = seen.argmax(axis=-1), k - seen[:, ::-1].argmax(axis=-1)
    return np.where(any_seen, first, 0), np.where(any_seen, last, 0)


def starts(call: Call, name: str) -> Integers:
    """[rows] addresses of a tensor's rows in elements, which matter only for their phase."""
    shape, operand = call.case.shape, call.operand(name)
    numbers = np.indices(shape[:-1]).reshape(len(shape) - 1, -1)
    size = call.output_bytes if name == call.case.spec.direction.tensors[-1] else call.element_bytes
    first = (operand.phase + operand.first) // size
    return np.asarray(first + (numbers * np.array(call.case.layouts[name].strides(shape)[:-1])[:, None]).sum(axis=0))


def _rows(call: Call) -> Promise:
    """A row in registers: nothing but vectors in aligned rows; in others, vectors between the output's boundaries and
    single elements before and after them."""
    spec, size, (begin, end) = call.case.spec, call.element_bytes, band(call)
    vec, output = spec.access, starts(call, spec.direction.tensors[-1])
    cut = Cut.of(output if spec.unaligned else np.zeros_like(output), np.full_like(output, call.case.shape[-1]), vec)
    vectors = -(-np.clip(np.minimum(end, cut.body) - cut.head, 0, None) // vec)
    vectors = np.clip(vectors - np.clip(np.minimum(begin, cut.body) - cut.head, 0, None) // vec, 0, None)
    edges = np.minimum(end, cut.head) + np.clip(end - cut.body, 0, None)
    edges = edges - np.minimum(begin, cut.head) - np.clip(begin - cut.body, 0, None)
    reads = {}
    for name in call.inputs:
        in_phase = (starts(call, name) + cut.head) % vec == 0
        wide, apart = int(vectors[in_phase].sum()), int(vectors[~in_phase].sum())
        reads[name] = Counter({vec * size: wide}) + Counter({size: apart * vec + int(edges.sum())})
    return Promise(reads, cut.accesses(vec, call.output_bytes), int((vectors * vec + edges).sum()))


def _tile(call: Call) -> Promise:
    """Many rows as one range; or each row by itself if they are not adjacent or would crowd into few banks: then in its
    vectors if it is aligned, otherwise element by element.

    What is read: the visible columns and those that share a lane's vectors with them; of a range, the vectors and
    single elements that contain any of these; of the mask, each row as far as it is visible.
    """
    spec, size, visible = call.case.spec, call.element_bytes, visible_columns(call)
    k, per_cta, vec = call.case.shape[-1], call.rows_per_cta, spec.dtype.vector
    found = {name: starts(call, name) for name in spec.direction.tensors}
    output, rows = found.pop(spec.direction.tensors[-1]), visible.size
    crowded = spec.vec == 1 and k * size % 32 == 0
    flat = not crowded and all((np.diff(each) == k).all() for each in (output, *found.values()))

    # Lanes cut an unaligned row at its first word of 4 bytes; it stands in shared memory at its output's
    # phase.
    word = 4 // size if spec.unaligned else 1
    head = -output % word
    in_vectors = -(-(visible - head) // spec.access) * spec.access
    taken = np.where(visible <= head, visible, np.minimum(head + in_vectors, k))
    behind = head + (k - (word - 1)) // spec.access * spec.access
    mask = int(np.where(visible > behind, visible, taken).sum())
    if not flat:
        apart = Counter({spec.vec * size: int(taken.sum()) // spec.vec})
        return Promise(dict.fromkeys(found, apart), Counter({spec.vec * size: rows * k // spec.vec}), mask)
    counts = np.diff(np.append(np.arange(0, rows, per_cta), rows))
    cut = Cut.of(output[::per_cta], counts * k, vec)
    seen = (np.arange(k) < taken[:, None]).reshape(-1)  # every element of all ranges, one range after the other
    reads = {}
    for name, first in found.items():
        in_phase = (first[::per_cta] + cut.head) % vec == 0
        reads[name] = Counter[int]()
        for begin, head, body, n, wide in zip(
            np.arange(0, rows, per_cta) * k, cut.head, cut.body, cut.length, in_phase, strict=True
        ):
            inside = seen[begin : begin + n]
            vectors = int(inside[head:body].reshape(-1, vec).any(axis=1).sum())
            edges = int(inside[:head].sum() + inside[body:].sum())
            reads[name][vec * size if wide else size] += vectors * (1 if wide else vec)
            reads[name][size] += edges
    return Promise(reads, cut.accesses(vec, size), mask)


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

    def accesses(self, vec: int, size: int) -> Counter[int]:
        """Accesses that cover all ranges, by width in bytes."""
        inside = int((self.body - self.head).sum())
        outside = int(self.length.sum()) - inside
        width = min(vec * size, 16)
        return Counter({width: inside * size // width}) + Counter({size: outside})
