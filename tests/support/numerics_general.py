"""Accuracy of the general kind's kernels: `python -m tests.support.numerics_general` measures it for docs/numerics.md.

Ordinary scores in rows of two lengths run on the interpreter, once per feature that a call may ask for and once with
all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from codegen import build, pages
from codegen.axes import Direction, DType, Plan
from codegen.spec import Spec
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.cubin import Cubin
from tests.support import bounds, numerics, reference, targets
from tests.support.calls import Call, Case
from tests.support.engines import InterpreterEngine, Outcome
from tests.support.features import Features
from tests.support.reference import Array

COMMAND = "python -m tests.support.numerics_general"

LEADING = (3, 2, 4)
"""(B, H, Q) of all calls: one of the lengths per batch exceeds K, and one is 0."""

SCALE, CAP, LEFT = 0.3, 20.0, 100
"""A scale that every format has to round; a softcap; a window of 102 columns around the queries."""

ASKED = {
    Direction.FORWARD: {
        "scale": Features(),
        "bias": Features(bias="bhq"),
        "softcap": Features(softcap=CAP),
        "window, lengths": Features(LEFT, 1, lengths=True),
        "slopes": Features(slopes=True),
        "sinks": Features(sinks=True),
        "together": Features(LEFT, 1, CAP, bias="bhq", row_scale="bhq", lengths=True, slopes=True, sinks=True),
    },
    Direction.BACKWARD: {
        "scale": Features(),
        "window, lengths": Features(LEFT, 1, lengths=True),
        "softcap": Features(softcap=CAP),
        "gradient of lse": Features(dlse=True),
        "together": Features(LEFT, 1, CAP, row_scale="bhq", lengths=True, dlse=True),
    },
}
"""Features by their name on the page. Each is measured for probabilities and for logarithms, with numbers per row."""

RESULTS = {Direction.FORWARD: ("y", "log y", "lse"), Direction.BACKWARD: ("dx of y", "dx of log y", "d")}
"""Results for probabilities, for logarithms, and the number per row of either."""


@dataclass(frozen=True)
class Seen:
    """The largest error of some outputs and what was allowed there, in ULP; the largest part of what is allowed."""

    error: float = 0.0
    allowed: float = 0.0
    part: float = 0.0

    @classmethod
    def of(cls, error: Array, allowed: Array, unit: Array) -> Seen:
        """From absolute errors, in units of `unit`; all of one shape."""
        at = (error / unit).argmax()
        parts = np.where(allowed > 0, error / np.where(allowed > 0, allowed, 1), 0)
        return cls(float((error / unit).flat[at]), float((allowed / unit).flat[at]), float(parts.max()))

    def __or__(self, other: Seen) -> Seen:
        worse = max(self, other, key=lambda seen: seen.error)
        return replace(worse, part=max(self.part, other.part))

    def __str__(self) -> str:
        return f"{numerics.rounded(self.error)} of {numerics.rounded(self.allowed)}"


def kernels(direction: Direction, dtype: DType) -> list[Spec]:
    """Kernels of the general kind for aligned rows, or for any of f64: in a warp those of 128 columns, and the shortest
    in a block."""
    vec = 1 if dtype is DType.F64 else dtype.vector
    shipped = [spec for spec in targets.shipped(targets.WHOLE) if spec.mask.general and spec.vec == vec]
    shipped = [spec for spec in shipped if (spec.direction, spec.dtype) == (direction, dtype)]
    blocks = [spec for spec in shipped if spec.plan is Plan.BLOCK]
    warps = [spec for spec in shipped if spec.plan is Plan.WARP and spec.max_k == 128]
    return [*warps, min(blocks, key=lambda spec: spec.max_k)]


def measure(direction: Direction, dtype: DType, images: Mapping[str, Cubin]) -> dict[str, dict[str, Seen]]:
    """Errors by result and by what is asked for."""
    found: dict[str, dict[str, Seen]] = {result: {} for result in RESULTS[direction]}
    engine = InterpreterEngine(images)
    for spec, (name, features), logarithms in product(
        kernels(direction, dtype), ASKED[direction].items(), (False, True)
    ):
        call = posed(spec, name, replace(features, logarithms=logarithms))
        for result, seen in judged(call, engine.run(call.plan, call.operands)).items():
            found[result][name] = found[result].get(name, Seen()) | seen
    return found


def posed(spec: Spec, name: str, features: Features) -> Call:
    """A call on scores of standard deviation 3; a backward is on the results of such scores."""
    forward = spec.direction is Direction.FORWARD
    features = replace(features, lse=forward or features.softcap > 0, d=not forward)
    offset = spec.max_k - LEADING[-1] if features.slopes or features.left is not None else None
    case = Case(name, spec, (*LEADING, spec.max_k), SCALE, causal_offset=offset, features=features)
    rng = np.random.default_rng([spec.max_k, *name.encode()])
    others = features.tensors(rng, case.shape, spec.dtype)
    x = torch.from_numpy(3 / SCALE * rng.standard_normal(case.shape)).to(reference.DTYPES[spec.dtype.input.value])
    if forward:
        return Call(case, {"x": x}, None, others)
    found = reference.general(
        reference.to_numpy(x),
        scale=SCALE * _row_scale(others),
        softcap=features.softcap or None,
        **features.band(others, offset),
    )
    numbers = features.gradients(rng, case.shape, spec.dtype)
    if features.softcap:
        numbers["lse"] = torch.from_numpy(found.lse.astype(np.float64)).to(numbers["lse"].dtype)
    y = torch.from_numpy((found.log_y if features.logarithms else found.y).astype(np.float64)).to(x.dtype)
    dy = torch.from_numpy(rng.standard_normal(case.shape)).to(x.dtype)
    return Call(case, {"dy": dy, "y": y}, None, others | numbers)


def _row_scale(others: Mapping[str, torch.Tensor]) -> Array:
    return reference.to_numpy(others["row_scale"]) if "row_scale" in others else np.ones((1, 1, 1))


def judged(call: Call, outcome: Outcome) -> dict[str, Seen]:
    """Errors by result. The unit is the ULP: for logarithms of max(|value|, 1), for dx of its magnitude."""
    dtype, tolerance = call.case.spec.dtype.output.value, call.tolerance
    assert call.case.features is not None
    logarithms = call.case.features.logarithms
    size = tolerance.get("magnitude", call.expected)
    allowed = reference.tolerance_ulp(dtype, tolerance.get("rounding", 0.0)) * reference.spacing(size, dtype)
    forward = call.case.spec.direction is Direction.FORWARD
    unit = reference.spacing(np.maximum(np.abs(size), 1) if forward and logarithms else size, dtype)
    name = RESULTS[call.case.spec.direction][logarithms]
    with np.errstate(invalid="ignore"):
        error = np.abs(reference.to_numpy(call.output(outcome.output)) - call.expected)
    counted = numerics.representable(call)
    found = {name: Seen.of(*(each[counted] for each in np.broadcast_arrays(error, allowed, unit)))}
    return found | {name: _row_result(call, name, outcome) for name in outcome.results}


def _row_result(call: Call, name: str, outcome: Outcome) -> Seen:
    """lse in ULP of max(|lse|, 1); d in ULP of the terms that it sums."""
    form = "f64" if call.case.spec.dtype is DType.F64 else "f32"
    expected, allowed = call.general.rows[name]
    counted = np.isfinite(expected) & (allowed > 0)
    error = np.abs(reference.to_numpy(call.row_result(name, outcome.results[name]))[counted] - expected[counted])
    terms = allowed[counted] / (bounds.SUM * reference.FORMATS[form].unit_roundoff)
    size = terms if name == "d" else np.maximum(np.abs(expected[counted]), 1)
    return Seen.of(error, allowed[counted], reference.spacing(size, form))


# ---- the page


def lines(direction: Direction, dtype: DType, images: Mapping[str, Cubin]) -> list[list[str]]:
    """One line per result: by what is asked for, its largest error and what is allowed there."""
    return [
        [
            dtype.value,
            result,
            *(str(seen[name]) for name in ASKED[direction]),
            numerics.rounded(max(each.part for each in seen.values())),
        ]
        for result, seen in measure(direction, dtype, images).items()
    ]


def tables(images: Mapping[str, Cubin]) -> str:
    """One table per direction, in Markdown."""
    return "\n\n".join(
        f"### {direction.struct}, general\n\n"
        + pages.markdown(
            [
                ["dtype", "result", *ASKED[direction], "of the tolerance"],
                *(line for dtype in dtypes(direction) for line in lines(direction, dtype, images)),
            ]
        )
        for direction in Direction
    )


def dtypes(direction: Direction) -> list[DType]:
    """The dtypes that the general kind ships for."""
    shipped = {
        spec.dtype for spec in targets.shipped(targets.WHOLE) if spec.mask.general and spec.direction is direction
    }
    return [dtype for dtype in DType if dtype in shipped]


def compiled(specs: Iterable[Spec]) -> dict[str, Cubin]:
    """Linked PTX by variant."""
    report = build.build(list(specs), [targets.WHOLE], user_cache(), kind="ptx", progress=False)
    return {cubin.variant: cubin for cubin in report.cubins}


def main() -> None:
    torch.set_num_threads(1)
    images = compiled(spec for way in Direction for dtype in dtypes(way) for spec in kernels(way, dtype))
    numerics.PAGE.write_text(pages.with_block(numerics.PAGE.read_text(), tables(images), COMMAND))


if __name__ == "__main__":
    main()
