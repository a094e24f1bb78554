"""Which kernels a run executes, for which architectures, and their images, compiled once for all workers."""

from __future__ import annotations

import fcntl
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from codegen import build, render, sources, toolchain, variants
from codegen.spec import Spec
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.cubin import Cubin

WHOLE = toolchain.DEFAULT_ARCHITECTURE
"""The architecture for which every variant is executed."""

OTHERS = tuple(arch for arch in toolchain.supported_architectures() if arch != WHOLE)

SAMPLED = tuple(arch for arch in ("sm_70", "sm_75", "sm_80", "sm_100", "sm_120") if arch in OTHERS)
"""Architectures with other front ends and code generators, if the toolchain has them."""

SAMPLE = 12
"""Number of variants of a sampled architecture."""


class Target(NamedTuple):
    """A kernel for an architecture."""

    arch: str
    spec: Spec

    def __str__(self) -> str:
        return f"{self.arch}-{self.spec.name}"


def targets(everything: bool) -> list[Target]:
    """Every variant for one architecture and, for some others, a sample that changes with the headers. If everything,
    every variant for every architecture that the toolchain supports."""
    others = {arch: shipped(arch) for arch in OTHERS} if everything else {arch: sample(arch) for arch in SAMPLED}
    return [Target(arch, spec) for arch, specs in ({WHOLE: shipped(WHOLE)} | others).items() for spec in specs]


def shipped(arch: str) -> list[Spec]:
    """The variants shipped for an architecture."""
    return [spec for spec in variants.shipped() if arch in variants.architectures(spec)]


@cache
def sample(arch: str) -> list[Spec]:
    """The variants whose names hash lowest together with the architecture and the headers."""

    def order(spec: Spec) -> bytes:
        return hashlib.sha256(f"{sources.project_headers().digest} {arch} {spec.name}".encode()).digest()

    return sorted(sorted(shipped(arch), key=order)[:SAMPLE], key=lambda spec: spec.name)


def summary(config: pytest.Config, gpu: str | None) -> list[str]:
    """Two lines that say what is executed."""
    sampling = config.getoption("--sample")
    sampled = f"{SAMPLE} variants each, chosen by {sources.project_headers().digest[:12]}"
    if sampling:
        executed = f"{', '.join((WHOLE, *SAMPLED))} {sampled}"
    elif config.getoption("--all-architectures"):
        executed = f"{', '.join((WHOLE, *OTHERS))} whole"
    else:
        executed = f"{WHOLE} whole; {', '.join(SAMPLED)} {sampled}"
    on_gpu = f"{gpu} {'sampled' if sampling else 'whole'}" if gpu else "not run (no GPU)"
    return [f"interpreter: {executed}", f"driver engine: {on_gpu}"]


def is_sampled(item: pytest.Item) -> bool:
    """Whether a test is of one kernel, which is in the sample of its architecture."""
    target = target_of(item)
    return target is not None and target.spec in sample(target.arch)


def target_of(item: pytest.Item) -> Target | None:
    """The kernel that a test is of."""
    target = item.callspec.params.get("target") if hasattr(item, "callspec") else None
    return target if isinstance(target, Target) else None


def wanted(session: pytest.Session, module: str, function: str = "") -> set[Target]:
    """The targets that this run's tests of a module, or of one function, need; a single test compiles only its own."""
    found = set()
    for item in session.items:
        if isinstance(item, pytest.Function) and item.module.__name__ == module:
            target = target_of(item)
            if target is not None and item.originalname.startswith(function):
                found.add(target)
    return found


def images(chosen: Iterable[Target], kind: str, locks: Path) -> dict[str, dict[str, Cubin]]:
    """Cubins or linked PTX by architecture and variant."""
    ordered = sorted(set(chosen), key=str)
    names: dict[str, list[str]] = defaultdict(list)
    for arch, spec in ordered:
        names[arch].append(spec.name)
    texts = {spec.name: render.render(spec) for _, spec in ordered}
    with one_worker(locks, kind):
        report = build.build_sources(texts, names, user_cache(), kind=kind, progress=False)
    found: dict[str, dict[str, Cubin]] = defaultdict(dict)
    for cubin in report.cubins:
        found[cubin.arch][cubin.variant] = cubin
    return found


@contextmanager
def one_worker(locks: Path, what: str) -> Iterator[None]:
    """One worker compiles what is missing, in as many processes as there are cores, while the others wait."""
    with open(locks / f"{what}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
