"""Brings the cache up to date: compiles what is missing, in parallel processes, and nothing twice.

NVRTC serialises inside a process; processes scale. Units are large because the headers cost the front end a second
and a kernel only 0.02 s; `docs/measured_facts.md` has the measurements.
"""

import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import Absent, Cubin

from . import toolchain, variants
from .render import render
from .spec import Spec

UNIT_KERNELS = 32
"""Kernels per translation unit."""


@dataclass(frozen=True)
class Unit:
    """One front-end run: kernels, and architectures of one family."""

    sources: tuple[tuple[str, str], ...]  # (variant name, text)
    architectures: tuple[str, ...]
    kind: str

    def compile(self) -> list[Cubin]:
        return toolchain.compile_unit(dict(self.sources), self.architectures, self.kind)


@dataclass(frozen=True)
class Report:
    """What a build found and did; `unstored` cubins could not be kept in the cache."""

    cubins: tuple[Cubin, ...]
    compiled: int
    unstored: int


def build(
    specs: Iterable[Spec],
    architectures: Iterable[str],
    cache: Cache,
    *,
    kind: str = "cubin",
    jobs: int | None = None,
    progress: bool = True,
) -> Report:
    """Every (variant, architecture) that ships, as a cubin or linked PTX: from the cache, or compiled and stored there.

    Raises toolchain.ToolchainError for an architecture out of reach or a source that does not compile cleanly; what was
    compiled before that stays in the cache.
    """
    architectures = toolchain.check_architectures(architectures)
    specs = list(specs)
    sources = {spec.name: render(spec) for spec in specs}
    wanted = {arch: [spec.name for spec in specs if arch in variants.architectures(spec)] for arch in architectures}
    return build_sources(sources, wanted, cache, kind=kind, jobs=jobs, progress=progress)


def build_sources(
    sources: Mapping[str, str],
    wanted: Mapping[str, list[str]],
    cache: Cache,
    *,
    kind: str = "cubin",
    jobs: int | None = None,
    progress: bool = True,
    unit_kernels: int = UNIT_KERNELS,
) -> Report:
    """The same for texts by the name of their kernel, and the names that are wanted for each architecture; at most
    `unit_kernels` of them share a translation unit."""
    found, missing = _look_up(sources, wanted, cache, kind)
    stored = []
    with _shown(sum(len(names) for names in missing.values()), kind, progress) as advance:
        for cubin in _compile(_units(sources, missing, kind, unit_kernels), jobs or os.cpu_count() or 1):
            stored.append(cache.store(cubin))
            found.append(cubin)
            advance(cubin)
    return Report(tuple(found), len(stored), stored.count(False))


def _look_up(
    sources: Mapping[str, str], wanted: Mapping[str, list[str]], cache: Cache, kind: str
) -> tuple[list[Cubin], dict[str, list[str]]]:
    """Cubins that the cache holds, and by architecture the names of those that it lacks."""
    found: list[Cubin] = []
    missing: dict[str, list[str]] = defaultdict(list)
    for arch, names in wanted.items():
        for name in names:
            fingerprint = toolchain.fingerprint(sources[name], arch, kind)
            try:
                found.append(cache.find(name, arch, fingerprint=fingerprint, kind=kind))
            except Absent:
                missing[arch].append(name)
    return found, missing


def _units(
    sources: Mapping[str, str], missing: Mapping[str, list[str]], kind: str, unit_kernels: int
) -> Iterator[Unit]:
    """Translation units for the missing kernels. Architectures of one family that lack the same kernels share a
    front-end run."""
    sharing: dict[tuple[int, tuple[str, ...]], list[str]] = defaultdict(list)
    for arch, names in missing.items():
        for start in range(0, len(names), unit_kernels):
            sharing[toolchain.family(arch), tuple(names[start : start + unit_kernels])].append(arch)
    for (_, unit), architectures in sharing.items():
        yield Unit(tuple((name, sources[name]) for name in unit), tuple(architectures), kind)


def _compile(units: Iterable[Unit], jobs: int) -> Iterator[Cubin]:
    units = list(units)
    if len(units) <= 1 or jobs == 1:
        for unit in units:
            yield from unit.compile()
        return
    # spawn: a forked child would share the parent's compiler state.
    with ProcessPoolExecutor(min(jobs, len(units)), multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(unit.compile) for unit in units]
        try:
            for future in as_completed(futures):
                yield from future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _shown(total: int, kind: str, progress: bool) -> Iterator[Callable[[Cubin], None]]:
    """A progress bar on a terminal, elsewhere a line per tenth of the work; nothing if there is nothing to do."""
    if not total or not progress:
        yield lambda _: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(total, kind)
        return
    columns = (TextColumn("compiling {task.fields[variant]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, variant="")
        yield lambda cubin: bar.update(task, advance=1, variant=f"{cubin.variant} {cubin.arch}")


def _plain_lines(total: int, kind: str) -> Callable[[Cubin], None]:
    done = 0

    def advance(_: Cubin) -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"compiled {done} of {total} ({kind})", file=sys.stderr, flush=True)

    return advance
