"""What each variant is run on: a few launches, folded so that together they hold everything the variant can meet.

A case is chosen from the spec so that dispatch arrives at this very variant, which `Call.plan` insists on.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod

from codegen.spec import DType, Mask, Plan, Spec
from softmax_ops.artifacts import catalog
from tests.calls import CAUSAL, MASKED, Case
from tests.layouts import Layout


def cases(spec: Spec) -> list[Case]:
    """Launches that together hold everything this variant can meet."""
    return [
        _longest(spec),
        _in_place(spec),
        _strided(spec),
        _out_of_phase(spec),
        _expanded(spec),
        *_filled(spec),
        *_bool(spec),
    ]


def full_cta(spec: Spec, k: int) -> Case:
    """One CTA with all the rows it takes, every column visible to a causal mask: what rows cost when there are many."""
    rows = spec.tile_elements // k if spec.plan is Plan.TILE else spec.rows
    start = Layout(phase=0 if spec.vec > 1 else 1)
    features = _features(spec, (rows, k), "qk", k)
    return Case("a full CTA", spec, (rows, k), scale=0.125, x=start, y=start, mask_layout=start, **features)


def interval(spec: Spec) -> tuple[int, int]:
    """Shortest and longest row that dispatch gives to the variant."""
    key = (spec.direction.value, spec.dtype.value, spec.mask.label)
    (entry,) = (entry for entry in catalog.load().tables[key] if entry.name == spec.name)
    return -(-entry.k[0] // spec.vec) * spec.vec, entry.k[1]


def middle(spec: Spec) -> int:
    """Between shortest and longest: for rows that start anywhere no multiple of a vector, where there is one."""
    shortest, longest = interval(spec)
    k = (shortest + longest) // 2
    return k // spec.vec * spec.vec if spec.vec > 1 else k | 1


def _leading(spec: Spec, k: int, q: int = 3, dims: int = 3) -> tuple[int, ...]:
    """(B, ..., q): more rows than a CTA takes and no multiple of that. An odd q divides no power of two."""
    per_cta = spec.tile_elements // k if spec.plan is Plan.TILE else spec.rows
    heads = (2 if spec.plan is Plan.BLOCK else 3,) * (dims - 2)
    inner = prod(heads) * q
    batches = max(ceil(1.4 * per_cta / inner), 2)
    if per_cta > 1 and batches * inner % per_cta == 0:
        batches += 1
    return (batches, *heads, q)


def _features(spec: Spec, shape: tuple[int, ...], mask: str, offset: int) -> dict:
    """Arguments of Case for the features that the variant has; the mask broadcasts but in the dimensions named."""
    features: dict = {}
    if spec.mask in CAUSAL:
        features["causal_offset"] = offset
    if spec.mask in MASKED:
        names = "abhqk"[-len(shape) :]
        features["mask_shape"] = tuple(n if name in mask else 1 for n, name in zip(shape, names, strict=True))
    return features


def _longest(spec: Spec) -> Case:
    k = interval(spec)[1]
    shape = (*_leading(spec, k), k)
    start = Layout(phase=0 if spec.vec > 1 else 1)
    return Case(
        "the longest row, off the alignment where allowed; rows no multiple of a CTA; bottom-right; mask of x's shape",
        spec,
        shape,
        scale=0.125,
        x=start,
        y=start,
        mask_layout=start,
        **_features(spec, shape, "bhqk", k - shape[-2]),
    )


def _in_place(spec: Spec) -> Case:
    shortest, longest = interval(spec)
    k = max(longest - spec.vec, shortest)
    shape = (*_leading(spec, k), k)
    return Case(
        "in place; one vector or column less than the longest row; key padding mask; top-left",
        spec,
        shape,
        scale=1.0,
        y=None,
        mask_layout=Layout(phase=spec.vec),
        first_pattern=5,
        **_features(spec, shape, "bk", 0),
    )


def _strided(spec: Spec) -> Case:
    k = interval(spec)[0]
    shape = (*_leading(spec, k, q=2 if spec.plan is Plan.BLOCK else 5, dims=4), k)
    wide, anywhere = spec.dtype.vector, spec.vec == 1
    return Case(
        "the shortest row; rows apart, dimensions permuted; negative scale; one mask for all heads; first query blind",
        spec,
        shape,
        scale=-1.5,
        x=Layout(phase=1 if anywhere else 0, gap=3 if anywhere else wide, order=(2, 0, 3, 1)),
        y=Layout(phase=2 if anywhere else wide, gap=1 if anywhere else 3 * wide),
        mask_layout=Layout(phase=spec.vec, gap=spec.vec),
        first_pattern=10,
        **_features(spec, shape, "abqk", -1),
    )


def _out_of_phase(spec: Spec) -> Case:
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    return Case(
        "x and y at different phases where allowed; a mask that hides whole rows or none; offset beyond K; large scale",
        spec,
        shape,
        scale=3e6,
        x=Layout(phase=spec.vec),
        first_pattern=2,
        **_features(spec, shape, "bhq", k + 7),
    )


def _expanded(spec: Spec) -> Case:
    shortest, longest = interval(spec)
    k = min(shortest + spec.dtype.vector, max(longest - spec.vec, shortest))
    shape = (*_leading(spec, k, q=k + 2 if k < 60 else 3), k)
    return Case(
        "x of stride 0 along the batch; scale 0; mask the same for all queries; short rows: fewer columns than queries",
        spec,
        shape,
        scale=0.0,
        x=Layout(expanded=(0,)),
        **_features(spec, shape, "hk", k - shape[-2] if k < 60 else k // 2),
    )


def _filled(spec: Spec) -> Iterator[Case]:
    """A masked fill that is finite: what is hidden scores it and takes part."""
    if spec.mask not in (Mask.BOOL, Mask.LIKE):
        return
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    yield Case(
        "hidden columns score -10000: a row hidden as a whole is uniform",
        spec,
        shape,
        scale=0.5,
        fill=-10000.0,
        y=Layout(gap=spec.vec),
        first_pattern=4,
        **_features(spec, shape, "bqk", 0),
    )


def _bool(spec: Spec) -> Iterator[Case]:
    """What f64 has no kernel of its own for."""
    if spec.mask is not Mask.BOOLCAUSAL or spec.dtype is not DType.F64:
        return
    k = middle(spec)
    shape = (*_leading(spec, k), k)
    features = _features(spec, shape, "qk", 0) | {"causal_offset": None}
    yield Case(
        "without an offset: a tensor mask and nothing else", spec, shape, scale=0.75, first_pattern=7, **features
    )
