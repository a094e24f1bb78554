"""What would run for a geometry, and why: the launch plan in words and numbers. Needs neither torch nor a GPU."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import prod

from . import resolve
from .artifacts import catalog
from .artifacts.cubin import TEGRA, runs_on
from .planning.geometry import MAX_BYTES, Geometry, Operand
from .planning.launch_plan import LaunchPlan, plan
from .planning.selection import NoVariant


@dataclass(frozen=True)
class Explanation:
    """How one call is computed. `str()` gives a few lines to read, `as_dict()` a JSON value."""

    variant: str | None  # None: there is nothing to compute
    arch: str
    reason: str
    plan: str = ""
    threads_per_row: int = 0  # of a CTA
    rows_per_cta: int = 0
    ctas_per_row: int = 0
    grid: tuple[int, ...] = ()  # CTAs of each launch
    block: int = 0  # threads
    cluster: int = 0  # CTAs
    shared_bytes: int = 0  # dynamic shared memory of a CTA
    bytes_read: int = 0  # inputs counted as often as they are read, each element of mask and bias once
    bytes_written: int = 0
    workspace_bytes: int = 0
    copied: tuple[str, ...] = ()  # operands that each call copies to another layout; not in the bytes above
    measured: str = ""  # the measurement that chose the tile on this architecture, or that there is none
    cubin: str = ""
    passed_over: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        if self.variant is None:
            return "empty: nothing is launched"
        lines = [
            f"{self.variant} on {self.arch}",
            f"  why      {self.reason}",
            f"  tile     {self.plan}: {self._sharing()}",
            f"           chosen {self.measured}",
            f"  launch   grid {', '.join(map(str, self.grid))}; block {self.block}; cluster {self.cluster}; "
            f"{self.shared_bytes} bytes of dynamic shared memory",
            f"  traffic  {self.bytes_read} bytes read, {self.bytes_written} written"
            + (f"; {self.workspace_bytes} of workspace" if self.workspace_bytes else ""),
            *(
                f"  copies   {name}: by each call, because kernels, or batch_invariant, want another layout"
                for name in self.copied
            ),
            f"  cubin    {self.cubin}",
            *(f"           passed over: {place}" for place in self.passed_over),
        ]
        return "\n".join(lines)

    def _sharing(self) -> str:
        if self.ctas_per_row > 1:
            return f"{self.ctas_per_row} CTAs per row, {self.threads_per_row} threads each"
        rows = f"{self.rows_per_cta} rows" if self.rows_per_cta > 1 else "1 row"
        return f"{self.threads_per_row} threads per row, {rows} per CTA"


def explain_geometry(
    geometry: Geometry, arch: str, settled: Callable[[LaunchPlan], LaunchPlan] = lambda plan: plan
) -> Explanation:
    """The explanation of a geometry on an architecture; `settled` gives the plan that a device really runs.

    Raises NoVariant when no shipped kernel serves it, TooManyDimensions when its operands must be copied first, and
    ValueError for a result of more than MAX_BYTES.
    """
    built = catalog.load().architectures
    if not any(runs_on(each, arch) for each in built):
        raise NoVariant(
            f"explain: no kernel ships for {arch}; want one of {', '.join(built)}, or a later minor version, except "
            f"{', '.join(TEGRA)}: integrated GPUs (Tegra, Jetson) are excluded"
        )
    if geometry.rows * geometry.k == 0:
        return Explanation(variant=None, arch=arch, reason="there are no elements")
    written = geometry.rows * geometry.k * geometry.output.element_bytes
    if written > MAX_BYTES:
        raise ValueError(
            f"explain: a result of shape {geometry.shape} has {written} bytes, more than any GPU holds; "
            f"want at most {MAX_BYTES}"
        )
    launch_plan = settled(plan(geometry, catalog.load(), arch))
    variant, first = launch_plan.variant, launch_plan.launches[0]
    cubin, passed_over = _cubin(variant, arch)
    return Explanation(
        variant=variant.name,
        arch=arch,
        plan=variant.plan,
        threads_per_row=min(variant.threads_per_row, first.threads),
        rows_per_cta=-(-first.rows // first.grid),
        ctas_per_row=-(-first.grid // first.rows),
        grid=tuple(launch.grid for launch in launch_plan.launches),
        block=first.threads,
        cluster=first.cluster,
        shared_bytes=variant.shared_bytes,
        bytes_read=_bytes_read(launch_plan),
        bytes_written=written,
        workspace_bytes=launch_plan.workspace_bytes,
        reason=launch_plan.reason,
        measured=launch_plan.measured,
        cubin=cubin,
        passed_over=passed_over,
    )


def _cubin(variant: catalog.Variant, arch: str) -> tuple[str, tuple[str, ...]]:
    """Where the cubin would come from; nothing is compiled for an explanation."""
    try:
        resolution = resolve.resolve(variant, arch, may_compile=False)
    except resolve.KernelNotFound as error:
        return "in no place yet", error.passed_over
    return (
        f"{resolution.place}, {len(resolution.cubin.code)} bytes, {resolution.cubin.registers} registers",
        resolution.passed_over,
    )


def _bytes_read(launch_plan: LaunchPlan) -> int:
    """Bytes read of inputs (second reads, which L2 may serve, included), mask and bias."""
    geometry, variant = launch_plan.geometry, launch_plan.variant
    times = 2 if variant.piece else 1
    inputs = _visible(geometry) * sum(operand.element_bytes for operand in geometry.inputs) * times
    return inputs + sum(map(partial(_broadcast_bytes, geometry), (geometry.mask, geometry.operand("bias"))))


def _visible(geometry: Geometry) -> int:
    """Visible elements of an input, ignoring that vectors are read whole. Columns hidden by lengths or an offset in GPU
    memory are not known here and count as visible."""
    if geometry.causal_offset is None or geometry.operand("offsets") is not None:
        return geometry.rows * geometry.k
    queries, k = geometry.shape[-2:]
    left, right = (geometry.general.left, geometry.general.right) if geometry.general else (None, 0)
    first = geometry.causal_offset
    before = 0 if left is None else _sum_within(first - left, queries, k)
    until = queries * k if right is None else _sum_within(first + right + 1, queries, k)
    return geometry.rows // queries * (until - before)


def _sum_within(first: int, count: int, k: int) -> int:
    """The sum of `count` integers from `first` on, each of them clamped to 0 .. k.

    >>> _sum_within(-2, 7, 3) == sum([0, 0, 0, 1, 2, 3, 3])
    True
    """

    def below(end: int) -> int:
        rising = min(max(end, 0), k)
        return rising * (rising - 1) // 2 + max(end - k, 0) * k

    return below(first + count) - below(first)


def _broadcast_bytes(geometry: Geometry, operand: Operand | None) -> int:
    """Bytes of a mask or bias in memory: broadcast dimensions count once."""
    if operand is None:
        return 0
    present = (size for size, stride in zip(geometry.shape, operand.strides, strict=True) if stride)
    return prod(present) * operand.element_bytes
