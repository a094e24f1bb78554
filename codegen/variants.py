"""The shipped set: the only enumeration of kernels in the project. Tests and benchmarks import it."""

from functools import cache

from .plans import row_plans
from .spec import Direction, DType, Mask, Spec

MAX_VARIANTS = 600
"""Cap on the number of names: every axis pays for itself."""

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
"""What every variant ships for."""

_ALL = (Mask.NONE, Mask.CAUSAL, Mask.BOOL, Mask.BOOLCAUSAL)

MASKS: dict[DType, tuple[Mask, ...]] = {
    DType.F16: (*_ALL, Mask.LIKE),
    DType.BF16: (*_ALL, Mask.LIKE),
    DType.F32: (*_ALL, Mask.LIKE),
    DType.F64: (Mask.NONE, Mask.CAUSAL, Mask.BOOLCAUSAL),
}
"""Mask kinds compiled for each element type."""

SERVED_BY: dict[tuple[DType, Mask], Mask] = {(DType.F64, Mask.BOOL): Mask.BOOLCAUSAL}
"""Mask kinds that another one computes: bool is boolcausal with an offset that hides nothing."""


@cache
def shipped() -> tuple[Spec, ...]:
    """Every shipped variant, sorted by name."""
    specs = (
        Spec(direction, dtype, mask, plan.plan, plan.max_k, plan.vec, plan.threads, plan.rows)
        for direction in Direction
        for dtype in DType
        for mask in MASKS[dtype]
        for plan in row_plans(dtype)
    )
    return tuple(sorted(specs, key=lambda spec: spec.name))


@cache
def by_name() -> dict[str, Spec]:
    return {spec.name: spec for spec in shipped()}


def dispatch(direction: Direction, dtype: DType, mask: Mask) -> list[Spec] | None:
    """The variants that serve a mask kind, in the order in which dispatch tries them; None where it is not shipped."""
    mask = SERVED_BY.get((dtype, mask), mask)
    if mask not in MASKS[dtype]:
        return None
    return [
        Spec(direction, dtype, mask, plan.plan, plan.max_k, plan.vec, plan.threads, plan.rows)
        for plan in row_plans(dtype)
    ]
