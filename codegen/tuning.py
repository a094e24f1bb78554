"""Candidate tiles for a row length, and the row of `plans.MEASURED` that a measurement of them suggests.

`python -m codegen tune` compiles the candidates, or takes them from a bundle that was prepared, and has the benchmark
time them on the GPU at hand.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from softmax_ops.artifacts.bundle import Bundle, write_bundle
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.constants import ACCESS_BYTES
from softmax_ops.artifacts.cubin import Absent, Cubin

from . import build, toolchain
from .axes import Direction, DType, Plan
from .features import Mask
from .plans import CLUSTERS, MAX_SPLIT_ROWS, RowPlan, tile
from .render import render
from .sources import source_digest
from .spec import ANY_K, Spec
from .variants import computed_by, dispatch, variant

MANY_ROWS = MAX_SPLIT_ROWS + 1
"""Rows that are timed, at least: too many to be split among CTAs."""

LONGEST_TILE = 128
"""Rows whose candidates include tiles, as columns."""

MOST_HELD_BYTES = 128
"""Bytes of a row's tensors that a thread may hold in registers, in their memory format: more would leave no room to
compute."""


def candidates(direction: Direction, dtype: DType, k: int, arch: str) -> list[Spec]:
    """Every tile worth timing for unmasked rows of k columns: aligned ones if k is a multiple of 16 bytes."""
    vec, kernels = _vec(dtype, k), computed_by(direction, dtype, Mask.NONE)
    plans = [*_tiles(direction, dtype, k, vec), *_held(direction, dtype, k, vec, arch), *_pieces(k)]
    return sorted({variant(direction, dtype, kernels, plan) for plan in plans}, key=lambda spec: spec.name)


def compared(direction: Direction, dtype: DType, k: int, arch: str) -> list[Spec]:
    """The shipped variant, then the candidates."""
    return list(dict.fromkeys([shipped(direction, dtype, k, arch), *candidates(direction, dtype, k, arch)]))


def shipped(direction: Direction, dtype: DType, k: int, arch: str) -> Spec:
    """The variant that dispatch now gives to many rows of k columns."""
    return _shipped(direction, dtype, k, arch)[1]


def _shipped(direction: Direction, dtype: DType, k: int, arch: str) -> tuple[RowPlan, Spec]:
    return next(
        (plan, spec)
        for plan, spec in dispatch(direction, dtype, Mask.NONE) or ()
        if plan.k[0] <= k <= plan.k[1] and plan.serves(arch, _vec(dtype, k), MANY_ROWS)
    )


def _vec(dtype: DType, k: int) -> int:
    """The alignment of contiguous rows, in elements, as far as row plans distinguish it."""
    return dtype.vector if k % dtype.vector == 0 else 1


def _tiles(direction: Direction, dtype: DType, k: int, vec: int) -> Iterator[RowPlan]:
    if k <= LONGEST_TILE:
        longest = 1 << max(k - 1, 15).bit_length()
        for threads in (128, 256, 512):
            yield tile(direction, dtype, longest, vec, threads)


def _held(direction: Direction, dtype: DType, k: int, vec: int, arch: str) -> Iterator[RowPlan]:
    """Rows in the registers of part of a warp, of a CTA, or of a cluster; max_k is what the lanes hold in whole
    vectors. At least half of the lanes have something to hold."""
    inputs = len(direction.tensors) - 1

    def longest(lanes: int) -> int | None:
        columns = lanes * dtype.vector
        chunks = -(-k // columns)
        return chunks * columns if chunks * inputs * ACCESS_BYTES <= MOST_HELD_BYTES and 2 * k > columns else None

    for lanes in (4, 8, 16, 32):
        if held := longest(lanes):
            for threads in (64, 128, 256):
                yield RowPlan(Plan.WARP, held, vec, threads, threads // lanes)
    for threads in (64, 128, 256, 512, 1024):
        if held := longest(threads):
            yield RowPlan(Plan.BLOCK, held, vec, threads, 1)
    for ctas in _clusters(arch):
        for threads in (256, 512, 1024):
            if held := longest(ctas * threads):
                yield RowPlan(Plan.CLUSTER, held, vec, threads, 1, cluster=ctas)


def _clusters(arch: str) -> tuple[int, ...]:
    most = next((ctas for architectures, ctas in CLUSTERS if arch in architectures), 1)
    return tuple(ctas for ctas in (2, 4, 8, 16) if ctas <= most)


def _pieces(k: int) -> Iterator[RowPlan]:
    if k > 8192:
        for threads in (256, 512, 1024):
            yield RowPlan(Plan.STREAM, ANY_K, 1, threads, 1)
            yield RowPlan(Plan.SPLIT, ANY_K, 1, threads, 1)


Compiled = tuple[Sequence[Cubin], Mapping[str, str]]
"""Cubins, and for each spec without one, by name, the reason."""


def compiled(specs: Iterable[Spec], arch: str) -> Compiled:
    """Cubins of the specs that do not spill, whatever they ship for. A spec that spills fails its translation unit,
    which is compiled again without it."""
    left = {spec.name: render(spec) for spec in specs}
    refused: dict[str, str] = {}
    while True:
        try:
            return build.build_sources(left, {arch: [*left]}, user_cache(), progress=False).cubins, refused
        except toolchain.Spills as error:
            name = error.args[0]
            del left[name]
            refused[name] = str(error).splitlines()[0]


def prebuilt(specs: Iterable[Spec], arch: str, bundle: Bundle) -> Compiled:
    """Cubins of the specs that a bundle holds, if built from the current sources."""
    cubins, refused = [], {}
    for spec in specs:
        try:
            cubins.append(bundle.find(spec.name, arch, source=source_digest(render(spec))))
        except Absent as absence:
            refused[spec.name] = absence.reason
    return cubins, refused


def prepare(specs: Iterable[Spec], arch: str, path: Path) -> str:
    """Writes a bundle of the specs that compile, for a machine without a compiler. Returns a report in words."""
    cubins, refused = compiled(specs, arch)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = write_bundle(path, cubins, catalog=b"", toolchain=toolchain.compiler_build())  # no catalog has them
    return "\n".join([*in_words(refused), f"{path}: {facts.cubins} candidates for {arch}, {facts.file_bytes} bytes"])


@dataclass(frozen=True)
class Measured:
    """A candidate's median time, and the copy's time as a share of it."""

    spec: Spec
    us: float
    share: float


def proposal(found: list[Measured], now: Spec, k: int, arch: str, device: str, date: str) -> str:
    """The candidates, fastest first; then the row for plans.MEASURED, unless the shipped variant is the fastest."""
    found = sorted(found, key=lambda each: each.us)
    lines = [
        f"{each.us:10.1f} us  {each.share:.3f}  {each.spec.name}{'  (now)' if each.spec == now else ''}"
        for each in found
    ]
    best, before = found[0], next((each for each in found if each.spec == now), None)
    if best.spec == now:
        return "\n".join([*lines, f"the table has the fastest: {_reason(best, None, k, arch, device, date)}"])
    key = f"Direction.{now.direction.name}, DType.{now.dtype.name}, Mask.NONE"
    proposed = in_python(row(best.spec, k, arch, _reason(best, before, k, arch, device, date)))
    return "\n".join([*lines, f"proposed for MEASURED[{key}] in codegen/plans.py:", proposed])


def row(spec: Spec, k: int, arch: str, measured: str) -> RowPlan:
    """A row plan for the lengths around k, as far as the kernel and the bucket of the shipped one reach: no further
    than to half and to twice the length. A `stream` was measured with more rows than `split` would have served."""
    first, last = _shipped(spec.direction, spec.dtype, k, arch)[0].k
    lengths = max(first, k // 2 + 1), min(last, 2 * k, spec.max_k)
    least = MANY_ROWS if spec.plan is Plan.STREAM else 0
    return RowPlan(
        *(spec.plan, spec.max_k, _vec(spec.dtype, k), spec.threads, spec.rows, spec.cluster),
        k=lengths,
        min_rows=least,
        architectures=(arch,),
        measured=measured,
    )


def in_python(plan: RowPlan) -> str:
    """The constructor call, without what is left at its default."""
    words = {field.name: repr(value) for field in fields(plan) if (value := getattr(plan, field.name)) != field.default}
    words["plan"] = str(plan.plan)
    if plan.max_k == ANY_K:
        words["max_k"] = "ANY_K"
    return f"RowPlan({', '.join(f'{name}={word}' for name, word in words.items())})".replace("'", '"')


def _reason(best: Measured, before: Measured | None, k: int, arch: str, device: str, date: str) -> str:
    instead_of = f", {before.us:.1f} us before" if before else ""
    return f"{arch}: {device}, {date}: {best.share:.3f} of the copy at K = {k}, {best.us:.1f} us{instead_of}"


def in_words(refused: Mapping[str, str]) -> list[str]:
    """One line per candidate without a figure."""
    return [f"no figure of {name}: {why}" for name, why in sorted(refused.items())]
