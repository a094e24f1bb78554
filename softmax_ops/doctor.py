"""Facts about the host for a bug report: `python -m softmax_ops doctor`. Each part is examined independently.

Whatever is missing or broken becomes a sentence in its part; nothing is raised. Nothing is compiled into the cache,
loaded onto a GPU or written.
"""

import importlib
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__, native, resolve
from .artifacts import catalog, settings
from .artifacts.bundle import Bundle
from .artifacts.cubin import Absent, runs_on

Facts = dict[str, object]

_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_FINDINGS_SHOWN = 5


def report() -> dict[str, Facts]:
    """Facts by part, all of them JSON values. A part that cannot be examined has only the fact `problem`."""
    return {name: _guarded(part) for name, part in _PARTS.items()}


def lacks_kernels(parts: dict[str, Facts]) -> bool:
    """Whether a report says that a device here lacks kernels, and that nothing would compile them."""
    devices = [facts for facts in parts["kernels of the devices here"].values() if isinstance(facts, dict)]
    return "compiler" not in parts["toolchain"] and any(facts["nowhere"] for facts in devices)


def as_text(parts: dict[str, Facts]) -> str:
    """A few lines per part, to paste into a bug report."""
    lines = []
    for name, facts in parts.items():
        lines.append(name)
        width = max((len(key) for key in facts), default=0)
        lines += [f"  {key:{width}}  {_shown(value)}" for key, value in facts.items()]
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        if value.keys() == {"problem"}:
            return str(value["problem"])
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_shown, value)) or "none"
    return str(value)


def _guarded(part: Callable[[], Facts]) -> Facts:
    try:
        return part()
    except Absent as absence:
        return {"problem": absence.reason}
    except Exception as error:  # whatever it is, reporting it is more useful than failing
        return {"problem": f"{type(error).__name__}: {error}"}


def _package() -> Facts:
    return {
        "softmax_ops": __version__,
        "installed": str(Path(__file__).parent),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        **{name: _version(name) for name in ("torch", "cuda-bindings", "cryptography")},
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _torch() -> Facts:
    return {"built for CUDA": importlib.import_module("torch").version.cuda or "no: CPU only"}


def _driver() -> Facts:
    from . import driver

    architectures = driver.architectures()
    facts: Facts = {"serves CUDA": "{}.{}".format(*driver.cuda_version())}
    if _KERNEL_MODULE.exists():
        facts["kernel module"] = _KERNEL_MODULE.read_text().splitlines()[0].strip()
    for ordinal, arch in enumerate(architectures):
        name = driver.check("cuDeviceGetName", driver.cuda.cuDeviceGetName(128, ordinal))
        facts[f"device {ordinal}"] = f"{arch} {name.rstrip(bytes(1)).decode(errors='replace')}".strip()
    return facts


def _toolchain() -> Facts:
    return {"compiler": resolve.compiler()}


def _compiled_part() -> Facts:
    used = native.compiled() is not None
    return {"used": used} if used else {"problem": native.problem or "SOFTMAX_OPS_NATIVE=never"}


def _settings() -> Facts:
    return {row.name: row.problem or f"{row.value} ({row.source})" for row in settings.table()}


def _bundles() -> Facts:
    return {place: _guarded(partial(_bundle, bundle)) for place, bundle in resolve.bundles()}


def _bundle(bundle: Bundle) -> Facts:
    facts = bundle.facts()
    return {
        "bytes": facts.file_bytes,
        "toolchain": facts.toolchain,
        "kernels": {arch: _coverage(bundle, arch) for arch, _ in facts.per_architecture},
        "not read": f"the kernels themselves: `python -m softmax_ops bundle verify {bundle.path}` reads them",
    }


def _coverage(bundle: Bundle, arch: str) -> str:
    """How many of the kernels that ship for an architecture are in the bundle, built from this package's sources."""
    shipped = [variant for variant in catalog.load().variants.values() if arch in variant.architectures]
    sources = bundle.sources(arch)
    return f"{sum(sources.get(variant.name) == variant.source for variant in shipped)} of {len(shipped)}"


def _devices_covered() -> Facts:
    """For each kind of GPU here: how many of its kernels each place holds, not counting those in earlier places."""
    from . import driver

    return {arch: _covered(arch) for arch in sorted(set(driver.architectures()))}


def _covered(arch: str) -> Facts:
    targets = {name: resolve.target(variant, arch) for name, variant in catalog.load().variants.items()}
    missing = {name for name, target in targets.items() if target}
    counts: Facts = {"ship": len(missing)}
    for place, bundle in resolve.bundles():
        held = _served(bundle, arch) & missing
        counts[place] = len(held)
        missing -= held
    signed = settings.read("SOFTMAX_OPS_PUBLIC_KEY") is not None
    entries = [] if signed else [entry for entry in resolve.user_cache().entries() if entry.kind == "cubin"]
    cached = {entry.variant for entry in entries if entry.arch == targets.get(entry.variant)} & missing
    return {**counts, "cache, by name": len(cached), "nowhere": len(missing - cached)}


def _served(bundle: Bundle, arch: str) -> set[str]:
    """Names of the kernels in a bundle for an architecture, built from this package's sources; none if it is unfit."""
    variants, found = catalog.load().variants, set()
    with suppress(Absent):
        for built in bundle.architectures():
            if runs_on(built, arch):
                sources = bundle.sources(built)
                found |= {name for name, variant in variants.items() if sources.get(name) == variant.source}
    return found


def _cache() -> Facts:
    cache = resolve.user_cache()
    entries, findings = cache.entries(), cache.verify()
    return {
        "directory": str(cache.root),
        "exists": cache.root is not None and os.path.isdir(cache.root),
        "writable": cache.root is not None and os.access(cache.root, os.W_OK),
        "entries": len(entries),
        "bytes": sum(entry.stored_bytes for entry in entries),
        "cap": cache.max_bytes,
        "architectures": dict(Counter(entry.arch for entry in entries)),
        "unfit": [*findings[:_FINDINGS_SHOWN], *(["and more"] if len(findings) > _FINDINGS_SHOWN else [])],
    }


_PARTS: dict[str, Callable[[], Facts]] = {
    "package": _package,
    "torch": _torch,
    "driver": _driver,
    "compiled part": _compiled_part,
    "toolchain": _toolchain,
    "settings": _settings,
    "bundles": _bundles,
    "kernels of the devices here": _devices_covered,
    "cache": _cache,
}
