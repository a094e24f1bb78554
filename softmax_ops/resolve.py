"""Where a variant's cubin comes from. Places are asked in order, and a failure tells what each of them answered.

bundle named by the environment -> bundle inside the package -> cache of compiled kernels -> compile, where allowed
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .artifacts import settings
from .artifacts.bundle import Bundle
from .artifacts.cache import Cache
from .artifacts.catalog import Variant
from .artifacts.cubin import Absent, Cubin, architecture_order

PACKAGED_BUNDLE = Path(__file__).with_name("softmax_ops.bundle")


class KernelNotFound(RuntimeError):
    """No place holds a cubin of the variant for this architecture; the message says why each did not serve."""

    def __init__(self, variant: Variant, arch: str, passed_over: tuple[str, ...]):
        self.passed_over = passed_over
        super().__init__(
            "\n  ".join([f"no kernel {variant.name} for {arch}:", *passed_over])
            + f"\nBuild it with `python -m codegen compile --arch {arch} {variant.name}` in a checkout, "
            "or install a wheel that carries its bundle."
        )


@dataclass(frozen=True)
class Resolution:
    """A cubin, the place that served it, and why the places before did not."""

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
    raise KernelNotFound(variant, arch, tuple(passed_over))


def _places(variant: Variant, arch: str, may_compile: bool) -> Iterator[tuple[str, Callable[[], Cubin]]]:
    named = settings.read("SOFTMAX_OPS_BUNDLE")
    if named is not None:
        yield f"bundle {named} (SOFTMAX_OPS_BUNDLE)", lambda: _from_bundle(named, variant, arch)
    yield "bundle of the package", lambda: _from_bundle(PACKAGED_BUNDLE, variant, arch)
    yield "cache", lambda: _from_cache(variant, arch)
    yield "compiler", lambda: _compile(variant, arch, may_compile)


def _from_bundle(path: Path, variant: Variant, arch: str) -> Cubin:
    """For the architecture itself, else for the nearest lower one of its major version, whose cubins run on it."""
    bundle = _bundle(path)
    held = bundle.architectures()
    usable = sorted((known for known in held if _runs_on(known, arch)), key=architecture_order)
    if not usable:
        raise Absent(f"it holds {', '.join(held)}, none of which runs on {arch}")
    while True:
        try:
            return bundle.find(variant.name, usable.pop(), source=variant.source)
        except Absent:
            if not usable:
                raise


def _from_cache(variant: Variant, arch: str) -> Cubin:
    cache = Cache(settings.read("SOFTMAX_OPS_CACHE_DIR"), max_bytes=settings.read("SOFTMAX_OPS_CACHE_MAX_BYTES"))
    return cache.find(variant.name, arch, source=variant.source)


def _compile(variant: Variant, arch: str, may_compile: bool) -> Cubin:
    """The one place that looks for codegen: present in a checkout with the toolchain installed, nowhere else."""
    if not may_compile:
        raise Absent("not asked to compile")
    if settings.read("SOFTMAX_OPS_COMPILE") == "never":
        raise Absent("SOFTMAX_OPS_COMPILE=never")
    try:
        from codegen import build, toolchain, variants
    except ImportError as error:
        raise Absent(f"{error.name or error} is not installed here") from None
    spec = variants.by_name().get(variant.name)
    if spec is None:
        raise Absent("codegen beside this package does not ship the variant: their versions differ")
    if arch not in variants.architectures(spec):
        raise Absent(f"the variant does not ship for {arch}")
    try:
        return build.build([spec], [arch], build.user_cache(), jobs=1, progress=False).cubins[0]
    except toolchain.ToolchainError as error:
        raise Absent(str(error)) from None


@cache
def _bundle(path: Path) -> Bundle:
    return Bundle(path)


def _runs_on(built: str, arch: str) -> bool:
    """A cubin runs on its own architecture and on later minors of its major version; sm_90a's on nothing but sm_90a."""
    (number, suffix), (wanted, _) = architecture_order(built), architecture_order(arch)
    return built == arch or (not suffix and number // 10 == wanted // 10 and number <= wanted)
