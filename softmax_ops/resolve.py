"""Where a variant's cubin comes from. Places are searched in order; on failure each says why it could not provide it.

bundle named by the environment -> bundle inside the package -> cache of compiled kernels -> compile, if allowed

If SOFTMAX_OPS_PUBLIC_KEY names a key, only bundles with a valid signature are used, and neither cache nor compiler.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .artifacts import catalog, settings
from .artifacts.bundle import Bundle
from .artifacts.cache import user_cache
from .artifacts.catalog import Variant
from .artifacts.cubin import TEGRA, Absent, Cubin, architecture_order, built_for, runs_on
from .artifacts.once import warn_once

PACKAGED_BUNDLE = Path(__file__).with_name("softmax_ops.bundle")

_log = logging.getLogger(__name__)


class KernelNotFound(RuntimeError):
    """No place has a cubin of the variant for this architecture; the message gives the reason for each."""

    def __init__(self, message: str, passed_over: tuple[str, ...] = ()):
        super().__init__(message)
        self.passed_over = passed_over


@dataclass(frozen=True)
class Resolution:
    """A cubin, the place it came from, and the reasons why earlier places did not have it."""

    cubin: Cubin
    place: str
    passed_over: tuple[str, ...]


def resolve(variant: Variant, arch: str, *, may_compile: bool = True) -> Resolution:
    """The cubin of a variant for an architecture such as "sm_90". Raises KernelNotFound."""
    passed_over: list[str] = []
    for place, find in _places(variant, arch, may_compile):
        try:
            return Resolution(find(), place, tuple(passed_over))
        except Absent as absence:
            passed_over.append(f"{place}: {absence.reason}")
    reasons = "\n  ".join([f"no kernel {variant.name} for {arch}:", *passed_over])
    raise KernelNotFound(f"{reasons}\n{_advice(variant, arch)}", tuple(passed_over))


def target(variant: Variant, arch: str) -> str | None:
    """The architecture to build the variant for, to run on `arch`: itself, or the nearest lower one it ships for."""
    return built_for(arch, variant.architectures)


def compiler() -> str:
    """The compiler that would compile a missing kernel, in words. Raises Absent with the reason if nothing would."""
    _refuse_to_compile()
    _, toolchain, _ = _codegen()
    try:
        toolchain.headers()
        return f"{toolchain.compiler_build()}, for {', '.join(toolchain.supported_architectures())}"
    except RuntimeError as error:
        raise Absent(str(error)) from None


def bundles() -> list[tuple[str, Bundle]]:
    """The bundles that are searched, in order, each with its name for messages."""
    named = settings.read("SOFTMAX_OPS_BUNDLE")
    key = settings.read("SOFTMAX_OPS_PUBLIC_KEY")
    found = [] if named is None else [(f"bundle {named} (SOFTMAX_OPS_BUNDLE)", _bundle(named, key))]
    return [*found, ("bundle of the package", _bundle(PACKAGED_BUNDLE, key))]


def _places(variant: Variant, arch: str, may_compile: bool) -> Iterator[tuple[str, Callable[[], Cubin]]]:
    for place, bundle in bundles():
        yield place, partial(_from_bundle, bundle, variant, arch)
    yield "cache", lambda: _from_cache(variant, arch)
    yield "compiler", lambda: _compile(variant, arch, may_compile)


def _from_bundle(bundle: Bundle, variant: Variant, arch: str) -> Cubin:
    """The cubin for the architecture itself, else for the nearest lower one of its major version, which runs on it."""
    with _faults_warned_of(bundle):
        held = bundle.architectures()
    usable = sorted((known for known in held if runs_on(known, arch)), key=architecture_order, reverse=True)
    if not usable:
        raise Absent(f"it holds {', '.join(held)}, none of which runs on {arch}")
    reasons = []
    for built in usable:
        try:
            with _faults_warned_of(bundle):
                return bundle.find(variant.name, built, source=variant.source)
        except Absent as absence:
            reasons.append(absence.reason)
    raise Absent("; ".join(reasons))


@contextmanager
def _faults_warned_of(bundle: Bundle) -> Iterator[None]:
    """Warns, once per process and kind of fault, of a bundle that is damaged, refused, unreadable, or missing although
    the environment names it."""
    try:
        yield
    except Absent as absence:
        if absence.fault and (bundle.path, absence.fault) != (PACKAGED_BUNDLE, "missing"):
            warn_once(_log, bundle.path, absence.fault, f"{absence.reason}; the places after it are searched instead")
        raise


def _from_cache(variant: Variant, arch: str) -> Cubin:
    _refuse_unsigned()
    return user_cache().find(variant.name, _target(variant, arch), source=variant.source)


def _compile(variant: Variant, arch: str, may_compile: bool) -> Cubin:
    built = _target(variant, arch)
    _refuse_to_compile()
    build, _, variants = _codegen()
    spec = variants.by_name().get(variant.name)
    if spec is None:
        raise Absent("codegen beside this package does not ship the variant: their versions differ")
    if built not in variants.architectures(spec):
        raise Absent(f"codegen beside this package does not ship the variant for {built}")
    if not may_compile:
        raise Absent("not asked to compile; the first call does")
    _log.info("compiling %s for %s", variant.name, built)
    try:
        (cubin,) = build.build([spec], [built], user_cache(), jobs=1, progress=False).cubins
    except RuntimeError as error:  # a ToolchainError, or raised by cuda-bindings if it finds no compiler library
        raise Absent(str(error)) from None
    except Exception as error:  # of Jinja and nvJitLink, and whatever else: the places tried are to be told
        raise Absent(f"{type(error).__name__}: {error}") from None
    if cubin.source != variant.source:
        raise Absent("codegen beside this package renders another source than the catalog's: run `make generate`")
    return cubin


def _codegen() -> tuple[Any, Any, Any]:
    """The only code that imports codegen, which exists only in a checkout with the toolchain installed."""
    _refuse_foreign_codegen()
    try:
        from codegen import build, toolchain, variants
    except ImportError as error:
        raise Absent(f"{error.name or error} is not installed here") from None
    return build, toolchain, variants


def _refuse_foreign_codegen() -> None:
    """Raises Absent unless `codegen` means the one beside this package. Imports nothing."""
    ours = Path(__file__).parents[1] / "codegen" / "__init__.py"
    if not ours.with_name("variants.py").is_file():
        raise Absent("codegen is not installed here")
    try:
        spec = find_spec("codegen")
    except (ImportError, ValueError):  # a finder that refuses it, or a module without a spec
        spec = None
    if spec is None:
        raise Absent("codegen is not installed here")
    if os.path.realpath(spec.origin or "") != os.path.realpath(ours):
        found = spec.origin or ", ".join(spec.submodule_search_locations or ())
        raise Absent(f"another package is imported as codegen, {found}, and not the one beside this package, {ours}")


def _refuse_to_compile() -> None:
    _refuse_unsigned()
    if settings.read("SOFTMAX_OPS_COMPILE") == "never":
        raise Absent("SOFTMAX_OPS_COMPILE=never")


def _refuse_unsigned() -> None:
    if settings.read("SOFTMAX_OPS_PUBLIC_KEY") is not None:
        raise Absent("SOFTMAX_OPS_PUBLIC_KEY asks for signed kernels, and what this machine compiled is not signed")


def _target(variant: Variant, arch: str) -> str:
    found = target(variant, arch)
    if found is None:
        raise Absent(f"{variant.name} ships for {', '.join(variant.architectures)}, none of which runs on {arch}")
    return found


def _advice(variant: Variant, arch: str) -> str:
    built = target(variant, arch)
    if arch in TEGRA:
        return f"softmax_ops does not support integrated GPUs (Tegra, Jetson), of which {arch} is one."
    if built is None:
        oldest = catalog.load().architectures[0]
        if architecture_order(arch) < architecture_order(oldest):
            return f"softmax_ops supports GPUs from {oldest} on."
        return (
            f"This version of softmax_ops ships no such kernel for {arch}: install a newer version, or, in a checkout, "
            f"add {arch} to ARCHITECTURES in codegen/variants.py and run `make bundle ARCH={arch}`."
        )
    if settings.read("SOFTMAX_OPS_PUBLIC_KEY") is not None:
        return (
            f"Build and sign all of them with `make bundle ARCH={built} KEY=FILE` in a checkout, FILE the private "
            "half of SOFTMAX_OPS_PUBLIC_KEY, and name the bundle, its signature beside it, in SOFTMAX_OPS_BUNDLE."
        )
    return (
        f"Build it with `python -m codegen compile --arch {built} {variant.name}` in a checkout, "
        f"or all of them with `make bundle ARCH={built}`, and name the file in SOFTMAX_OPS_BUNDLE."
    )


@cache
def _bundle(path: Path, key: Path | None) -> Bundle:
    return Bundle(path, key=key)
