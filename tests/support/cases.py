"""The cases that each variant runs: a few launches that together cover everything the variant can meet.

A case is chosen from the spec such that dispatch picks this very variant, which `Call.plan` asserts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from math import ceil, inf, prod

from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from codegen.occupancy import columns_of_cta
from codegen.spec import Spec
from softmax_ops.artifacts import catalog
from tests.support.calls import CAUSAL, MASKED, Case
from tests.support.features import Features
from tests.support.layouts import Layout

LONG = (Plan.CLUSTER, Plan.STREAM, Plan.SPLIT)
"""Plans for rows so long that a few of them are enough."""


def cases(spec: Spec) -> list[Case]:
    """Launches that together cover everything this variant can meet."""
    return [placed(case) for case in _cases(spec)]


def _cases(spec: Spec) -> list[Case]:
    if spec.mask.has_epilogue:
        own = _forward_features(spec) if spec.direction is Direction.FORWARD else _backward_features(spec)
        return [*(own if spec.mask.general else map(_band, own)), *_whole_warps(spec), *_masked(spec)]
    if spec.mask is Mask.BIAS:
        return [*_biased(spec), *_whole_warps(spec), *_around_vectors(spec)]
    return [
        _longest(spec),
        *_in_place(spec),
        _strided(spec),
        _out_of_phase(spec),
        _expanded(spec),
        *_filled(spec),
        *_without_offset(spec),
        *_whole_warps(spec),
        *_around_vectors(spec),
    ]


def full_cta(spec: Spec, k: int) -> Case:
    """One CTA with all the rows it takes, every column visible under a causal mask: the cost per row when rows are
    many.

    The general kind runs without any of its features, whose cost is counted only for calls that use them.
    """
    start = Layout(phase=0 if spec.vec > 1 else 1)

    def of(rows: int) -> Case:
        shape: tuple[int, ...] = (rows, k)
        features = _features(spec, (rows, k), "qk", k)
        if spec.mask.sums:
            shape = (1, 1, rows, k)
            features = {"features": Features(bias="q" if spec.mask is Mask.BIAS else None)}
        inputs = (start,) * _inputs(spec)
        return placed(Case("a full CTA", spec, shape, 0.125, inputs, start, mask_layout=start, **features))

    return of(of(1).call().rows_per_cta)


def interval(spec: Spec) -> tuple[int, int]:
    """Shortest and longest row that the variant is tested with: those that dispatch gives to it on sm_90, or up to
    three pieces more than the shortest if it takes any length."""
    shortest, longest = max(entry.k for table in _tables(spec) for entry in table if entry.name == spec.name)
    if spec.piece:
        longest = shortest + 3 * spec.piece
    return -(-shortest // spec.vec) * spec.vec, longest


@cache
def _tables(spec: Spec) -> list[tuple[catalog.Entry, ...]]:
    """The dispatch tables that have the variant."""
    tables = catalog.load().tables.values()
    return [table for table in tables if any(entry.name == spec.name for entry in table)]


def placed(case: Case) -> Case:
    """The case with its rows adjacent if dispatch gives only such rows to the variant; with a gap after each row if
    dispatch gives adjacent rows of this length to another."""
    k = case.shape[-1]
    if case.spec.flat:
        return _relaid(case, lambda layout: Layout(phase=layout.phase))
    serving = [entry for table in _tables(case.spec) for entry in table if entry.k[0] <= k <= entry.k[1]]
    if case.spec.vec == 1 and any(Spec.from_name(entry.name).flat for entry in serving):
        return _relaid(case, lambda layout: replace(layout, gap=layout.gap + 1))
    return case


def _relaid(case: Case, changed: Callable[[Layout], Layout]) -> Case:
    inputs = [case.layouts[name] for name in case.spec.direction.tensors[:-1]]
    output = case.output if isinstance(case.output, str) else changed(case.output)
    return replace(case, inputs=tuple(map(changed, inputs)), output=output)


def _inputs(spec: Spec) -> int:
    return len(spec.direction.tensors) - 1


def middle(spec: Spec) -> int:
    """A length between shortest and longest; for unaligned rows no multiple of a vector, if there is one."""
    shortest, longest = interval(spec)
    k = min(3 * shortest, longest) if spec.plan is Plan.CLUSTER else (shortest + longest) // 2
    return k // spec.vec * spec.vec if spec.vec > 1 else k | 1


def _leading(spec: Spec, k: int, q: int = 3, dims: int = 3) -> tuple[int, ...]:
    """(B, ..., q): more rows than a CTA takes, and not a multiple of that. An odd q divides no power of two."""
    if spec.plan in LONG:
        return (2, *(1,) * (dims - 2), 2)
    per_cta = spec.tile_elements // k if spec.plan is Plan.TILE else spec.rows
    heads = (2 if spec.plan is Plan.BLOCK else 3,) * (dims - 2)
    inner = prod(heads) * q
    batches = max(ceil(1.4 * per_cta / inner), 2)
    if per_cta > 1 and batches * inner % per_cta == 0:
        batches += 1
    return (batches, *heads, q)


def _features(spec: Spec, shape: tuple[int, ...], mask: str, offset: int) -> dict:
    """Arguments of Case for the variant's features; the mask broadcasts except in the dimensions named."""
    features: dict = {}
    if spec.mask is Mask.BIAS:
        features["features"] = Features(bias=mask.replace("k", ""))
    if spec.mask in CAUSAL:
        features["causal_offset"] = offset
    if spec.mask in MASKED:
        names = "abhqk"[-len(shape) :]
        features["mask_shape"] = tuple(n if name in mask else 1 for n, name in zip(shape, names, strict=True))
    return features


def _longest(spec: Spec) -> Case:
    k = interval(spec)[1]
    shape = (*_leading(spec, k), k) if spec.plan is not Plan.CLUSTER else (2, k)
    start = Layout(phase=0 if spec.vec > 1 else 1)
    return Case(
        "the longest row, off the alignment where allowed; rows no multiple of a CTA; bottom-right; mask of x's shape",
        spec,
        shape,
        0.125,
        (start,) * _inputs(spec),
        start,
        mask_layout=start,
        **_features(spec, shape, "bhqk", k - shape[-2]),
    )


def _in_place(spec: Spec) -> Iterator[Case]:
    """The output overwrites each input in turn."""
    shortest, longest = interval(spec)
    k, length = max(longest - spec.vec, shortest), "one vector or column less than the longest row"
    start = Layout()
    if spec.plan is Plan.CLUSTER:
        length = "the longest row of two CTAs, or the shortest"
        k = max(2 * spec.max_k // spec.cluster + (spec.access - 1 if spec.unaligned else 0), shortest)
        start = Layout(phase=1 if spec.vec == spec.access == 1 else 0)
    shape = (*_leading(spec, k), k)
    for number, name in enumerate(spec.direction.tensors[:-1]):
        yield Case(
            f"in place of {name}; {length}; key padding mask; top-left",
            spec,
            shape,
            1.0,
            (start,) * _inputs(spec),
            output=name,
            mask_layout=Layout(phase=spec.vec),
            first_pattern=5 + 4 * number,
            **_features(spec, shape, "bk", 0 if spec.plan not in LONG else k // 2),
        )


def _strided(spec: Spec) -> Case:
    k = interval(spec)[0]
    shape = (*_leading(spec, k, q=2 if spec.plan is Plan.BLOCK else 5, dims=4), k)
    wide, anywhere = spec.dtype.vector, spec.vec == 1
    inputs = (
        Layout(phase=1 if anywhere else 0, gap=3 if anywhere else wide, order=(2, 0, 3, 1)),
        Layout(gap=1 if anywhere else 2 * wide, order=(1, 0, 2, 3)),
    )
    return Case(
        "the shortest row; rows apart, dimensions permuted; negative scale; one mask for all heads; first query blind",
        spec,
        shape,
        -1.5,
        inputs[: _inputs(spec)],
        Layout(phase=2 if anywhere else wide, gap=1 if anywhere else 3 * wide),
        mask_layout=Layout(phase=spec.vec, gap=spec.vec),
        first_pattern=10,
        **_features(spec, shape, "abqk", -1),
    )


def _out_of_phase(spec: Spec) -> Case:
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    return Case(
        "inputs and output at different phases where allowed; a mask that hides whole rows or none; offset beyond K; "
        "large scale",
        spec,
        shape,
        3e6 if spec.direction is Direction.FORWARD else 3.0,
        (Layout(phase=spec.vec), Layout(phase=2 * spec.vec))[: _inputs(spec)],
        first_pattern=2,
        **_features(spec, shape, "bhq", k + 7),
    )


def _expanded(spec: Spec) -> Case:
    shortest, longest = interval(spec)
    k = min(shortest + spec.dtype.vector, max(longest - spec.vec, shortest))
    k = k if spec.vec > 1 else k | 1
    shape = (*_leading(spec, k, q=k + 2 if k < 60 else 3), k)
    return Case(
        "inputs of stride 0 along the batch; scale 0; mask the same for all queries; short rows: fewer columns than "
        "queries",
        spec,
        shape,
        0.0,
        (Layout(expanded=(0,)),) * _inputs(spec),
        **_features(spec, shape, "hk", k - shape[-2] if k < 60 else k // 2),
    )


def _filled(spec: Spec) -> Iterator[Case]:
    """A finite masked fill: hidden columns have it as their score and take part."""
    if spec.mask not in (Mask.BOOLCAUSAL, Mask.LIKE):
        return
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    yield Case(
        "hidden columns score -10000, unless out of causal sight: a row hidden as a whole is uniform",
        spec,
        shape,
        0.5,
        output=Layout(gap=spec.vec),
        fill=-10000.0,
        first_pattern=4,
        **_features(spec, shape, "bqk", k // 2),
    )


def _whole_warps(spec: Spec) -> Iterator[Case]:
    """Rows around a length that fills three warps, or in a small cluster one warp more than half of what its CTAs have
    before it grows: a vector or column less than that, all that fits, and a single vector more, which takes another
    warp if the kernel has one."""
    if not spec.by_warp:
        return
    held = 32 * spec.access * spec.chunks
    ctas, warps = 1, min(3, spec.warps)
    if spec.plan is Plan.CLUSTER:
        warps = columns_of_cta(spec) // held // 2 + 1
        ctas = 2 if 2 * warps * held > interval(spec)[0] else 4
    filled = ctas * warps * held
    beside = spec.access - 1 if spec.unaligned else 0
    start = Layout(phase=0 if spec.vec > 1 else 1)
    lengths = (filled - spec.vec, warps), (filled + beside, warps), (filled + spec.access, warps + 1)
    for pattern, (k, expected) in enumerate(lengths):
        if not interval(spec)[0] <= k <= interval(spec)[1]:
            continue
        shape = (1, 1, 2, k)
        features = _features(spec, shape, "hqk", k - 2)
        if spec.mask.has_epilogue:
            features = {"features": Features(lse=True) if spec.direction is Direction.FORWARD else Features(d=True)}
        yield Case(
            f"{expected} warps in a CTA; mask of x's shape; bottom-right",
            spec,
            shape,
            0.5,
            (start,) * _inputs(spec),
            start,
            mask_layout=start,
            first_pattern=3 + pattern,
            **features,
        )


def _biased(spec: Spec) -> list[Case]:
    """A bias for every element, one shared by the batch, and one row for all."""
    shortest, longest = interval(spec)
    between = middle(spec)
    anywhere = Layout(phase=0 if spec.vec > 1 else 1)
    all_but_few = _leading(spec, longest) if spec.plan is not Plan.CLUSTER else (2, 1, 1)
    return [
        Case(
            "the longest row; a bias of every element",
            spec,
            (*all_but_few, longest),
            0.5,
            (anywhere,),
            anywhere,
            mask_layout=anywhere,
            features=Features(bias="bhq"),
        ),
        Case(
            "in place; a bias shared by the batch, at a phase of its own where allowed",
            spec,
            (*_leading(spec, between), between),
            1.0,
            output="x",
            mask_layout=Layout(phase=spec.vec),
            first_pattern=2,
            features=Features(bias="hq"),
        ),
        Case(
            "the shortest row; rows apart, at different phases where allowed; one row of bias; negative scale",
            spec,
            (*_leading(spec, shortest), shortest),
            -1.5,
            (Layout(phase=spec.vec, gap=3 * spec.vec),),
            Layout(phase=2 * spec.vec, gap=2 * spec.dtype.vector),
            first_pattern=5,
            features=Features(bias=""),
        ),
    ]


def _forward_features(spec: Spec) -> list[Case]:
    """Cases of the general kind: many features at once, and almost none."""
    shortest, longest = interval(spec)
    between = middle(spec)
    in_place = spec.dtype.output is spec.dtype
    anywhere = Layout(phase=0 if spec.vec > 1 else 1)
    all_but_few = _leading(spec, longest) if spec.plan is not Plan.CLUSTER else (2, 1, 1)
    queries = all_but_few[-1]
    return [
        Case(
            "the longest row; a bias of every element, window, lengths, slopes, sinks, scales per row, lse",
            spec,
            (*all_but_few, longest),
            0.5,
            (anywhere,),
            anywhere,
            mask_layout=anywhere,
            causal_offset=longest - queries,
            features=Features(
                left=longest // 2, right=1, bias="bhq", row_scale="bhq", lengths=True, slopes=True, sinks=True, lse=True
            ),
        ),
        Case(
            "logarithms in place; bias of f32 shared by heads; mask; window of three columns; softcap; device offset",
            spec,
            (*_leading(spec, between), between),
            1.0,
            output="x" if in_place else Layout(),
            mask_shape=(*_leading(spec, between)[:2], 1, between),
            first_pattern=2,
            causal_offset=between // 2,
            features=Features(2, 0, 50.0, logarithms=True, bias="bq", wide=True, offset=3, row_scale=""),
        ),
        Case(
            "the shortest row; nothing but lse; rows apart; negative scale",
            spec,
            (*_leading(spec, shortest), shortest),
            -1.5,
            (Layout(phase=spec.vec, gap=3 * spec.vec),),
            Layout(phase=3 * spec.vec, gap=2 * spec.dtype.vector),
            first_pattern=5,
            features=Features(lse=True),
        ),
        Case(
            "logarithms; sinks of rows that see nothing; inputs and output at different phases where allowed; lengths",
            spec,
            (*_leading(spec, between), between),
            0.25,
            (Layout(phase=spec.vec),),
            Layout(phase=2 * spec.vec),
            mask_shape=(*_leading(spec, between), between),
            mask_layout=Layout(phase=spec.vec),
            first_pattern=8,
            features=Features(logarithms=True, bias="h", lengths=True, sinks=True, lse=True),
        ),
    ]


def _backward_features(spec: Spec) -> list[Case]:
    """Cases of the general kind, overwriting each input in turn."""
    shortest, longest = interval(spec)
    between = middle(spec)
    anywhere = Layout(phase=0 if spec.vec > 1 else 1)
    all_but_few = _leading(spec, longest) if spec.plan is not Plan.CLUSTER else (2, 1, 1)
    in_place = spec.dtype.output is spec.dtype
    apart = (Layout(phase=spec.vec, gap=spec.vec), Layout(gap=2 * spec.dtype.vector))
    return [
        Case(
            "the longest row; window, lengths, scales per row, gradient of lse, d",
            spec,
            (*all_but_few, longest),
            0.5,
            (anywhere, anywhere),
            anywhere,
            causal_offset=longest - all_but_few[-1],
            features=Features(left=longest // 2, right=1, row_scale="bhq", lengths=True, dlse=True, d=True),
        ),
        Case(
            "logarithms in place of dy; window of three columns; device offset",
            spec,
            (*_leading(spec, between), between),
            2.0,
            output="dy" if in_place else Layout(),
            first_pattern=5,
            causal_offset=between // 2,
            features=Features(2, 0, logarithms=True, offset=3, dlse=True, d=True),
        ),
        Case(
            "the shortest row; softcap; rows apart; negative scale",
            spec,
            (*_leading(spec, shortest), shortest),
            -1.5,
            apart,
            Layout(phase=3 * spec.vec),
            features=Features(softcap=200.0, lse=True, row_scale=""),
        ),
        Case(
            "logarithms in place of y; softcap",
            spec,
            (*_leading(spec, between), between),
            1.0,
            output="y" if in_place else Layout(),
            first_pattern=7,
            features=Features(softcap=200.0, logarithms=True, lse=True),
        ),
    ]


def _band(case: Case) -> Case:
    """The case without what changes a score by itself."""
    assert case.features is not None
    features = replace(case.features, softcap=0.0, bias=None, wide=False, slopes=False)
    return replace(case, why=f"{case.why}; none that changes a score", mask_shape=None, features=features)


def _masked(spec: Spec) -> Iterator[Case]:
    """Masked rows of f64, which have no kernels of their own: hidden, hidden and causal, and with a finite fill."""
    if not (spec.mask.general and spec.dtype is DType.F64 and spec.direction is Direction.FORWARD):
        return
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    mask_shape = (shape[0], *(1,) * (len(shape) - 2), k)
    for pattern, (offset, fill) in enumerate([(None, -inf), (k // 2, -inf), (None, -10000.0)]):
        yield Case(
            f"a bool mask of f64; offset {offset}; fill {fill}",
            spec,
            shape,
            0.5,
            mask_shape=mask_shape,
            causal_offset=offset,
            fill=fill,
            first_pattern=3 * pattern,
        )


def _around_vectors(spec: Spec) -> Iterator[Case]:
    """Unaligned rows of a tile, as one range: whole vectors, and one or all but one column more."""
    if spec.plan is not Plan.TILE or not spec.unaligned:
        return
    whole = interval(spec)[1] - spec.access
    if whole % 16 == 0:  # would crowd into few banks, and not be a range
        whole -= spec.access
    for number, k in enumerate((whole, whole + 1, whole + spec.access - 1)):
        shape = (*_leading(spec, k), k)
        yield Case(
            f"{k - whole} columns behind the vectors of a range; its output unaligned; diagonal in the middle",
            spec,
            shape,
            0.5,
            (Layout(phase=1), Layout())[: _inputs(spec)],
            Layout(phase=1),
            first_pattern=3 * number,
            **_features(spec, shape, "bhqk", k // 2),
        )


def _without_offset(spec: Spec) -> Iterator[Case]:
    """A causal kernel that serves a mask kind without a kernel of its own."""
    tables = catalog.load().tables.items()
    served = {key[2] for key, table in tables if any(entry.name == spec.name for entry in table)}
    if served == {spec.mask.label}:
        return
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    features = _features(spec, shape, "qk", 0) | {"causal_offset": None}
    yield Case("without an offset: nothing is causal", spec, shape, 0.75, first_pattern=7, **features)
