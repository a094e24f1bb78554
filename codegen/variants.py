"""The shipped set: the only enumeration of kernels in the project. Tests and benchmarks import it."""

from functools import cache

from .axes import Direction, DType, Plan
from .features import Mask
from .plans import CLUSTERS, MEASURED, RowPlan, row_plans
from .spec import Spec

MAX_VARIANTS = 600
"""Cap on the number of names: every axis pays for itself."""

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
"""The architectures that variants ship for: all of them, except that clusters need sm_90 or later."""

_ALL = (Mask.NONE, Mask.CAUSAL, Mask.BOOL, Mask.BOOLCAUSAL, Mask.BAND, Mask.GENERAL)

MASKS: dict[tuple[Direction, DType], tuple[Mask, ...]] = {
    (Direction.FORWARD, DType.F16): (*_ALL, Mask.LIKE, Mask.BIAS),
    (Direction.FORWARD, DType.BF16): (*_ALL, Mask.LIKE, Mask.BIAS),
    (Direction.FORWARD, DType.F32): (*_ALL, Mask.LIKE),
    (Direction.FORWARD, DType.F64): _ALL,
    (Direction.FORWARD, DType.F16TOF32): (Mask.BAND, Mask.GENERAL),
    (Direction.FORWARD, DType.BF16TOF32): (Mask.BAND, Mask.GENERAL),
    (Direction.BACKWARD, DType.F16): (Mask.NONE, Mask.CAUSAL, Mask.BAND, Mask.GENERAL),
    (Direction.BACKWARD, DType.BF16): (Mask.NONE, Mask.CAUSAL, Mask.BAND, Mask.GENERAL),
    (Direction.BACKWARD, DType.F32): (Mask.NONE, Mask.CAUSAL, Mask.BAND, Mask.GENERAL),
    (Direction.BACKWARD, DType.F64): (Mask.NONE, Mask.CAUSAL, Mask.BAND, Mask.GENERAL),
    (Direction.BACKWARD, DType.F32TOF16): (Mask.BAND, Mask.GENERAL),
    (Direction.BACKWARD, DType.F32TOBF16): (Mask.BAND, Mask.GENERAL),
}
"""Mask kinds that ship, at every row length, by direction and element types."""


_BAND = {
    Direction.FORWARD: (DType.F16, DType.BF16, DType.F32, DType.F16TOF32, DType.BF16TOF32),
    Direction.BACKWARD: (DType.F32, DType.F32TOF16, DType.F32TOBF16),
}
"""Element types with kernels of the band kind. The general kernels serve the others: f64, and gradients of 16 bits."""


def computed_by(direction: Direction, dtype: DType, mask: Mask) -> Mask:
    """The mask kind of the kernels that serve a mask kind: itself, or a more capable one if that costs little.

    A causal kernel can serve calls that are not causal: launched with an offset that hides nothing, it only compares
    columns with the end of the row, once per vector. That cost hides behind the traffic of a tensor mask, in the
    backward, which computes no exp, and beside an exp of f64. Masked rows of f64 are rare: the general kernels serve
    them.
    """
    if mask.has_epilogue:
        return mask if dtype in _BAND[direction] else Mask.GENERAL
    masked = mask in (Mask.BOOL, Mask.BOOLCAUSAL)
    if dtype is DType.F64 and masked:
        return Mask.GENERAL
    if direction is Direction.BACKWARD or dtype is DType.F64:
        return Mask.CAUSAL
    return Mask.BOOLCAUSAL if masked else mask


def dispatch(direction: Direction, dtype: DType, mask: Mask) -> list[tuple[RowPlan, Spec]] | None:
    """The variants that serve a mask kind, in the order in which dispatch tries them; None where it is not shipped.

    Aligned plans come first, because a plan for unaligned rows would serve aligned rows, too.
    """
    if mask not in MASKS.get((direction, dtype), ()):
        return None
    kernels = computed_by(direction, dtype, mask)
    plans = [*MEASURED.get((direction, dtype, mask), ()), *row_plans(direction, dtype, kernels)]
    plans.sort(key=lambda plan: -plan.vec)
    return [(plan, variant(direction, dtype, kernels, plan)) for plan in plans]


def variant(direction: Direction, dtype: DType, mask: Mask, plan: RowPlan) -> Spec:
    """The kernel of a row plan. The band kind has some of its own, the general ones serve its other rows. Kernels that
    go over a row in pieces test the alignment of each row, so that one serves every alignment."""
    if mask is Mask.BAND and not _has_band(direction, plan):
        mask = Mask.GENERAL
    vec = 1 if plan.plan.in_pieces else plan.vec
    return Spec(direction, dtype, mask, plan.plan, plan.max_k, vec, plan.threads, plan.rows, plan.cluster)


def _has_band(direction: Direction, plan: RowPlan) -> bool:
    """Whether a row plan has kernels of the band kind."""
    if direction is Direction.BACKWARD:
        return plan.plan is Plan.CLUSTER
    return plan.plan in (Plan.BLOCK, Plan.CLUSTER) or (plan.plan is Plan.WARP and plan.vec > 1)


@cache
def shipped() -> tuple[Spec, ...]:
    """Every shipped variant, sorted by name."""
    return tuple(sorted(_chosen_on(), key=lambda spec: spec.name))


def architectures(spec: Spec) -> tuple[str, ...]:
    """The architectures that a variant ships for: those on which a row plan may choose it. Of a kernel that does not
    ship, those that can run it."""
    clustered = [arch for some, _ in CLUSTERS for arch in some]
    able = ARCHITECTURES if spec.cluster == 1 else tuple(arch for arch in ARCHITECTURES if arch in clustered)
    chosen = _chosen_on().get(spec, set(able))
    return tuple(arch for arch in able if arch in chosen)


@cache
def _chosen_on() -> dict[Spec, set[str]]:
    """For each shipped variant, the architectures of its row plans."""
    found: dict[Spec, set[str]] = {}
    for key, masks in MASKS.items():
        for mask in masks:
            for plan, spec in dispatch(*key, mask) or ():
                found.setdefault(spec, set()).update(plan.architectures or ARCHITECTURES)
    return found


@cache
def by_name() -> dict[str, Spec]:
    return {spec.name: spec for spec in shipped()}
