"""Accuracy of the kernels beside torch: `python -m tests.support.numerics` measures it for docs/numerics.md.

Every shipped variant runs its cases on the interpreter, except those that add to scores, which are in
`numerics_general`. Errors are in units in the last place of the exact result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from os import cpu_count

import numpy as np
import torch
from numpy.typing import NDArray

from codegen import build, pages
from codegen.axes import Direction, DType, Plan
from codegen.spec import Spec
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.cubin import Cubin
from tests.support import reference, targets
from tests.support.calls import Call
from tests.support.cases import cases
from tests.support.engines import InterpreterEngine
from tests.support.reference import Array

PAGE = pages.DOCS / "numerics.md"
COMMAND = "python -m tests.support.numerics"

MODERATE = 16.0
"""About the largest magnitude of the scores that attention and samplers work with."""

Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class Errors:
    """Errors of some outputs, in ULP or as parts of what is allowed."""

    outputs: int = 0
    largest: float = 0.0
    total: float = 0.0

    @classmethod
    def of(cls, error: Array) -> Errors:
        return cls(error.size, float(error.max(initial=0.0)), float(error.sum()))

    def __add__(self, other: Errors) -> Errors:
        return Errors(self.outputs + other.outputs, max(self.largest, other.largest), self.total + other.total)

    def __str__(self) -> str:
        return f"{rounded(self.largest)} / {rounded(self.total / max(self.outputs, 1))}"


Account = dict[str, Errors]
"""Errors by what they belong to: kernel or torch, on moderate rows or all; and the part of the tolerance used."""

Key = tuple[Direction, DType, Plan]


def measure(spec: Spec, image: Cubin) -> Account:
    """Errors over all cases of a variant."""
    torch.set_num_threads(1)
    engine = InterpreterEngine({spec.name: image})
    calls = (case.call() for case in cases(spec))
    return add(compare(call, call.output(engine.run(call.plan, call.operands).output)) for call in calls)


def add(accounts: Iterable[Account]) -> Account:
    found: Account = defaultdict(Errors)
    for account in accounts:
        for about, errors in account.items():
            found[about] += errors
    return dict(found)


def compare(call: Call, output: torch.Tensor) -> Account:
    """Errors of one case: its output and torch's [..., K] against the reference."""
    dtype, tolerance = call.case.spec.dtype.value, call.tolerance
    kernel, theirs = (
        reference.ulp_error(reference.to_numpy(each), call.expected, dtype, tolerance.get("magnitude"))
        for each in (output, by_torch(call))
    )
    allowed = np.broadcast_to(reference.tolerance_ulp(dtype, tolerance.get("rounding", 0.0)), kernel.shape)
    counted, finite = representable(call), np.isfinite(theirs)
    account = {
        "kernel, all": Errors.of(kernel[counted]),
        "tolerance": Errors.of((kernel / allowed)[counted]),
        "torch, all": Errors.of(theirs[counted & finite]),
        "overflow": Errors.of(theirs[counted & ~finite]),
    }
    if call.case.spec.direction is Direction.FORWARD:
        moderate = counted & moderate_rows(call)
        account["kernel, moderate"] = Errors.of(kernel[moderate])
        account["torch, moderate"] = Errors.of(theirs[moderate & finite])
    return account


def representable(call: Call) -> Chosen:
    """[..., K] True for finite results that the format can tell from 0, and that may not be flushed to 0."""
    dtype, floor = call.case.spec.dtype.output.value, call.tolerance["floor"]
    least = max(reference.FORMATS[dtype].smallest, reference.ABSOLUTE_FLOOR[dtype] if floor is None else floor)
    size = call.tolerance.get("magnitude", call.expected)
    result: Chosen = np.isfinite(call.expected) & (np.abs(size) >= least)
    return result


def moderate_rows(call: Call) -> Chosen:
    """[..., 1] True for rows with visible scores, none of which exceeds MODERATE in magnitude."""
    seen = visible(call)
    with np.errstate(invalid="ignore"):
        scores = np.abs(call.case.scale * reference.to_numpy(call.inputs["x"]))
    moderate = (np.where(seen, scores, 0.0) <= MODERATE) & seen.any(axis=-1, keepdims=True)
    return np.asarray(moderate.all(axis=-1, keepdims=True))


def visible(call: Call) -> Chosen:
    """[..., K] True for columns hidden neither by the mask nor by causality."""
    mask = None if call.mask is None else reference.to_numpy(call.mask)
    return reference.visible(call.case.shape, mask, call.case.causal_offset)


def by_torch(call: Call) -> torch.Tensor:
    """[..., K] by the chain that the kernels replace, in the scores' dtype; a backward by what its autograd calls."""
    hidden, scale = torch.from_numpy(~visible(call)), call.case.scale
    if call.case.spec.direction is Direction.FORWARD:
        return (call.inputs["x"] * scale).masked_fill(hidden, call.case.fill).softmax(dim=-1)
    dy, y = (call.inputs[name].masked_fill(hidden, 0.0) for name in ("dy", "y"))
    return torch.ops.aten._softmax_backward_data(dy, y, -1, y.dtype).masked_fill(hidden, 0.0) * scale


# ---- the page


def measured() -> dict[Key, Account]:
    """Errors of what ships for calls that torch's chain can express, by direction, element type and plan."""
    specs = [spec for spec in targets.shipped(targets.WHOLE) if not spec.mask.sums]
    report = build.build(specs, [targets.WHOLE], user_cache(), kind="ptx", progress=False)
    images = {cubin.variant: cubin for cubin in report.cubins}
    accounts: dict[Key, list[Account]] = defaultdict(list)
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        found = pool.map(measure, specs, [images[spec.name] for spec in specs])
        for spec, account in zip(specs, found, strict=True):
            accounts[spec.direction, spec.dtype, spec.plan].append(account)
    return {key: add(some) for key, some in accounts.items()}


def tables(accounts: dict[Key, Account]) -> str:
    """One table per direction, in Markdown."""
    return "\n\n".join(f"### {direction.struct}\n\n{table(direction, accounts)}" for direction in Direction)


def table(direction: Direction, accounts: dict[Key, Account]) -> str:
    """One line per element type and plan: largest and mean errors in ULP."""
    moderate = ("kernel, moderate", "torch, moderate") if direction is Direction.FORWARD else ()
    heads = (*moderate, "kernel, all", "torch, all")
    lines = [
        [
            *(dtype.value, plan.label, f"{account['kernel, all'].outputs:,}"),
            *(str(account[about]) for about in heads),
            *(rounded(account["tolerance"].largest), f"{account['overflow'].outputs:,}"),
        ]
        for dtype, plan in product(DType, Plan)
        for account in ([accounts[direction, dtype, plan]] if (direction, dtype, plan) in accounts else ())
    ]
    return pages.markdown([["dtype", "plan", "outputs", *heads, "of the tolerance", "torch overflows"], *lines])


def rounded(number: float) -> str:
    """To three digits.

    >>> [rounded(number) for number in (0.50049, 12345.0)]
    ['0.5', '12300']
    """
    return f"{float(f'{number:.3g}'):g}"


def main() -> None:
    block = tables(measured())
    PAGE.write_text(pages.with_block(PAGE.read_text(), block, COMMAND))


if __name__ == "__main__":
    main()
