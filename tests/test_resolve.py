"""Where a cubin comes from: the order of places, why each has none, and which architectures share cubins."""

import errno
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import nvjitlink
from cuda.pathfinder import DynamicLibNotFoundError

from softmax_ops import resolve
from softmax_ops.artifacts import catalog, once
from softmax_ops.artifacts.bundle import write_bundle
from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.resolve import KernelNotFound
from tests.support.cubins import CHECKOUT, key_pair, sign

VARIANT = catalog.load().variants["softmax_fwd_f16_none_warp_k1024_v8_t128r4"]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate folder for every place, all of them empty."""
    monkeypatch.setenv("SOFTMAX_OPS_BUNDLE", str(tmp_path / "named"))
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "never")
    monkeypatch.delenv("SOFTMAX_OPS_PUBLIC_KEY", raising=False)
    monkeypatch.setattr(resolve, "PACKAGED_BUNDLE", tmp_path / "packaged")
    monkeypatch.setattr(once, "_already_said", {})
    return tmp_path


def cubin(place: str, arch: str = "sm_90", source: str = VARIANT.source) -> Cubin:
    """A cubin whose code names its place."""
    return Cubin(VARIANT.name, arch, place.encode(), 32, 0, source=source, fingerprint="f" * 64)


def bundle(path: Path, *cubins: Cubin) -> None:
    write_bundle(path, cubins, catalog=b"{}", toolchain="none")


def keep(folder: Path, *cubins: Cubin) -> None:
    cache = Cache(folder, max_bytes=1 << 20)
    assert all([cache.store(cubin) for cubin in cubins])


def compiler(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    """Installs a codegen that ships the variant and builds it like this."""

    modules = {
        "build": SimpleNamespace(build=build),
        "toolchain": SimpleNamespace(),
        "variants": SimpleNamespace(
            by_name=lambda: {VARIANT.name: VARIANT}, architectures=lambda spec: spec.architectures
        ),
    }
    package = ModuleType("codegen")
    vars(package).update(modules)
    package.__spec__ = ModuleSpec("codegen", None, origin=str(CHECKOUT / "codegen" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "codegen", package)
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "auto")


def found(arch: str = "sm_90") -> str:
    return resolve.resolve(VARIANT, arch).cubin.code.decode()


def test_places_are_asked_in_order(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, lambda *_, **__: SimpleNamespace(cubins=(cubin("compiled"),)))
    assert found() == "compiled"
    keep(places / "cache", cubin("cached"))
    assert found() == "cached"
    bundle(places / "packaged", cubin("packaged"))
    assert found() == "packaged"
    bundle(places / "named", cubin("named"))
    assert found() == "named"
    monkeypatch.delenv("SOFTMAX_OPS_BUNDLE")
    assert found() == "packaged"


def test_what_was_passed_over_is_told(places: Path) -> None:
    keep(places / "cache", cubin("cached"))
    resolution = resolve.resolve(VARIANT, "sm_90")
    assert resolution.place == "cache"
    assert [place.split(":")[0] for place in resolution.passed_over] == [
        f"bundle {places}/named (SOFTMAX_OPS_BUNDLE)",
        "bundle of the package",
    ]


def test_a_kernel_in_no_place_lists_each_with_its_reason(places: Path) -> None:
    bundle(places / "named", cubin("named", "sm_80"), cubin("named", "sm_100"))
    bundle(places / "packaged", cubin("packaged", source="0" * 64))
    with pytest.raises(KernelNotFound) as error:
        found()
    headline, named, packaged, cached, compiled, advice = str(error.value).splitlines()
    assert headline == f"no kernel {VARIANT.name} for sm_90:"
    assert named == f"  bundle {places}/named (SOFTMAX_OPS_BUNDLE): it holds sm_80, sm_100, none of which runs on sm_90"
    assert packaged.startswith("  bundle of the package: ") and "source" in packaged
    assert cached == f"  cache: the cache directory {places}/cache does not exist"
    assert compiled == "  compiler: SOFTMAX_OPS_COMPILE=never"
    assert f"python -m codegen compile --arch sm_90 {VARIANT.name}" in advice and "make bundle ARCH=sm_90" in advice
    assert error.value.passed_over == tuple(line.strip() for line in (named, packaged, cached, compiled))


def test_a_kernel_in_no_place_is_told_by_another_process_too(places: Path) -> None:
    with pytest.raises(KernelNotFound) as error:
        found()
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.passed_over) == (str(error.value), error.value.passed_over)


def test_reasons_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        with pytest.raises(KernelNotFound) as error:
            found()
        return error.value.passed_over[-1]

    def refuse(*_: Any, **__: Any) -> None:
        raise DynamicLibNotFoundError("no libnvrtc.so")

    compiler(monkeypatch, refuse)
    assert reason() == "compiler: no libnvrtc.so"
    sys.modules["codegen"].variants.by_name = dict
    assert "does not ship the variant: their versions differ" in reason()
    sys.modules["codegen"].__spec__ = ModuleSpec("codegen", None, origin="/elsewhere/codegen.py")
    assert reason() == (
        "compiler: another package is imported as codegen, /elsewhere/codegen.py, and not the one beside this "
        f"package, {CHECKOUT}/codegen/__init__.py"
    )
    sys.modules["codegen"].__spec__ = None
    assert reason() == "compiler: codegen is not installed here"
    monkeypatch.setitem(sys.modules, "codegen", None)
    assert reason() == "compiler: codegen is not installed here"


def test_a_codegen_of_other_sources_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of the checkout beside a running process: the parameters would be read as others."""
    compiler(monkeypatch, lambda *_, **__: SimpleNamespace(cubins=(cubin("compiled", source="0" * 64),)))
    with pytest.raises(KernelNotFound, match="renders another source than the catalog's: run `make generate`"):
        found()


def test_any_error_of_the_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise nvjitlink.nvJitLinkError(nvjitlink.Result.ERROR_INTERNAL)

    compiler(monkeypatch, fail)
    with pytest.raises(KernelNotFound, match="compiler: nvJitLinkError: ERROR_INTERNAL"):
        found()


def test_a_compile_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiler(monkeypatch, lambda *_, **__: SimpleNamespace(cubins=(cubin("compiled"),)))
    with caplog.at_level(logging.INFO, "softmax_ops.resolve"):
        assert found() == "compiled"
    assert f"compiling {VARIANT.name} for sm_90" in caplog.text


@pytest.mark.parametrize("checkout", [True, False])
def test_a_foreign_package_called_codegen_is_not_imported(checkout: bool, tmp_path: Path) -> None:
    """Whether it comes before the generator on the path, or the package is installed without a generator."""
    foreign, installed = tmp_path / "foreign" / "codegen", tmp_path / "installed"
    foreign.mkdir(parents=True)
    for module in ("__init__", "build", "toolchain", "variants"):
        (foreign / f"{module}.py").write_text("print('imported')\n")
    installed.mkdir()
    (installed / "softmax_ops").symlink_to(CHECKOUT / "softmax_ops")
    path = f"{foreign.parent}:{CHECKOUT if checkout else installed}"
    script = (
        "from softmax_ops import resolve\ntry: resolve.compiler()\nexcept resolve.Absent as absence: print(absence)"
    )
    environment = {**os.environ, "PYTHONPATH": path, "SOFTMAX_OPS_COMPILE": "auto"}
    command = [sys.executable, "-B", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = "another package is imported as codegen" if checkout else "codegen is not installed here\n"
    assert result.stdout.startswith(said) and result.stderr == "", result


def test_an_explanation_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(KernelNotFound, match="compiler: not asked to compile; the first call does"):
        resolve.resolve(VARIANT, "sm_90", may_compile=False)
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "never")  # the message names what prevents it
    with pytest.raises(KernelNotFound, match="compiler: SOFTMAX_OPS_COMPILE=never"):
        resolve.resolve(VARIANT, "sm_90", may_compile=False)


@pytest.mark.parametrize(
    ("held", "arch", "served"),
    [
        (("sm_80", "sm_86"), "sm_89", "sm_86"),  # the nearest lower minor
        (("sm_80", "sm_86", "sm_89"), "sm_86", "sm_86"),  # itself
        (("sm_80", "sm_90"), "sm_89", "sm_80"),
        (("sm_100", "sm_120"), "sm_121", "sm_120"),  # the major of sm_121 is 12
        (("sm_100",), "sm_103", "sm_100"),
        (("sm_70",), "sm_75", "sm_70"),
        (("sm_86",), "sm_80", None),  # a higher minor
        (("sm_80", "sm_89"), "sm_90", None),  # another major
        (("sm_100",), "sm_120", None),
        (("sm_90",), "sm_100", None),
        (("sm_86",), "sm_87", None),  # Orin: CUDA promises nothing between desktop and Tegra
        (("sm_70",), "sm_72", None),
        (("sm_90a",), "sm_90", None),  # only for that one architecture
    ],
)
def test_architectures_of_a_bundle(places: Path, held: tuple[str, ...], arch: str, served: str | None) -> None:
    bundle(places / "named", *(cubin(built, built) for built in held))
    if served is not None:
        assert found(arch) == served
        return
    with pytest.raises(KernelNotFound, match=f"none of which runs on {arch}"):
        found(arch)


def test_the_cache_serves_its_own_architecture_only(places: Path) -> None:
    keep(places / "cache", cubin("cached", "sm_80"))
    with pytest.raises(KernelNotFound, match=r"the cache .* holds no matching"):
        found("sm_86")


def test_another_source_is_passed_over(places: Path) -> None:
    """A cubin of this name from other sources: an older bundle or cache beside a newer package."""
    bundle(places / "named", cubin("old", source="0" * 64))
    keep(places / "cache", cubin("older", source="1" * 64))
    bundle(places / "packaged", cubin("packaged"))
    assert found() == "packaged"
    with pytest.raises(KernelNotFound, match="built from another source"):
        resolve.resolve(replace(VARIANT, source="2" * 64), "sm_90")


# Reasons for passing over a place


def passed_over(arch: str = "sm_90") -> list[str]:
    """The reasons in the message of a failure, one per line."""
    with pytest.raises(KernelNotFound) as error:
        found(arch)
    assert str(error.value).splitlines()[1:-1] == [f"  {reason}" for reason in error.value.passed_over]
    return list(error.value.passed_over)


def test_a_damaged_bundle_and_a_damaged_entry_are_passed_over(places: Path) -> None:
    keep(places / "cache", cubin("cached"))
    (entry,) = (places / "cache").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    bundle(places / "named", cubin("named"))
    (places / "named").write_bytes((places / "named").read_bytes()[:-1])
    (places / "packaged").write_text("text")
    named, packaged, cached, _ = passed_over()
    assert "truncated or damaged" in named and "not a bundle" in packaged
    assert "sha256 does not match" in cached and "set aside" in cached


def test_files_that_others_can_write_are_passed_over(places: Path) -> None:
    keep(places / "cache", cubin("cached"))
    (places / "cache").chmod(0o777)
    bundle(places / "named", cubin("named"))
    (places / "named").chmod(0o666)
    named, _, cached, _ = passed_over()
    assert "0666: others can write it" in named and "0777: others can write it" in cached


def test_files_that_cannot_be_read_are_passed_over(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(places / "named", cubin("named"))
    real = os.open

    def refuse(path: Any, *arguments: Any, **others: Any) -> int:
        if str(path).startswith(str(places)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **others)

    monkeypatch.setattr(os, "open", refuse)
    assert all("Permission denied" in reason for reason in passed_over()[:3])


def test_every_architecture_of_a_bundle_that_would_run_says_why_it_does_not_serve(places: Path) -> None:
    bundle(places / "named", cubin("old", "sm_80", source="0" * 64), cubin("older", "sm_86", source="1" * 64))
    named = passed_over("sm_89")[0]
    assert named.count("built from another source") == 2
    assert named.index("sm_86") < named.index("sm_80")


# Warnings of bundles that must not be used


def flip(path: Path, at: int) -> None:
    image = bytearray(path.read_bytes())
    image[at] ^= 1
    path.write_bytes(image)


def put(path: Path, other: Callable[[Path], None]) -> None:
    path.unlink()
    other(path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an entry": (lambda path: flip(path, -33), f"is damaged: hash mismatch in {VARIANT.name} for sm_90"),
    "the header": (lambda path: flip(path, 60), "is damaged: hash mismatch in its header"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is truncated or damaged"),
    "text": (lambda path: path.write_text("text"), "is not a bundle of softmax_ops"),
    "another schema": (lambda path: flip(path, 8), "has schema 3, and this version of the package reads 2"),
    "writable by all": (lambda path: path.chmod(0o666), "is not used: its mode is 0666: others can write it"),
    "a directory": (lambda path: put(path, Path.mkdir), "is not used: it is no regular file"),
    "a link to itself": (lambda path: put(path, lambda link: link.symlink_to(link)), "cannot be read: Too many levels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bundle_that_must_not_be_used_is_warned_of_once_although_another_place_serves(
    places: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, said = FAULTS[fault]
    keep(places / "cache", cubin("cached"))
    bundle(places / "named", cubin("other", "sm_80"), cubin("named"))
    spoil(places / "named")
    assert [found() for _ in range(3)] == ["cached"] * 3
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "softmax_ops.resolve")
    assert f"{places}/named {said}" in record.message
    assert record.message.endswith("; the places after it are searched instead")


def test_a_bundle_that_is_named_and_missing_is_warned_of(places: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(places / "cache", cubin("cached"))
    assert [found() for _ in range(2)] == ["cached"] * 2
    (record,) = caplog.records  # none of the package's, which a checkout has not either
    assert f"the bundle {places}/named cannot be read: No such file or directory" in record.message


def test_every_fault_and_every_bundle_is_warned_of(places: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle(places / "named", cubin("named"))
    bundle(places / "packaged", cubin("packaged"))
    (places / "named").chmod(0o666)
    assert found() == "packaged" and len(caplog.records) == 1
    (places / "named").chmod(0o600)
    assert found() == "named" and len(caplog.records) == 1
    flip(places / "named", -33)
    assert found() == "packaged" and len(caplog.records) == 2
    flip(places / "packaged", -33)
    assert len(passed_over()) == 4 and len(caplog.records) == 3
    assert all(f"{places}/{place} is damaged" in caplog.text for place in ("named", "packaged"))


def test_a_damaged_entry_is_warned_of_although_that_of_an_earlier_minor_serves(
    places: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle(places / "named", cubin("older", "sm_80"), cubin("newer", "sm_86"))
    flip(places / "named", -33)
    assert found("sm_89") == "older"
    assert f"hash mismatch in {VARIANT.name} for sm_86" in caplog.text and len(caplog.records) == 1


def test_what_a_bundle_does_not_hold_is_nothing_to_warn_of(places: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(places / "cache", cubin("cached"))
    bundle(places / "named", cubin("old", source="0" * 64))
    assert found() == "cached"  # there is none in the package
    bundle(places / "packaged", cubin("other", "sm_80"))
    assert found() == "cached"
    bundle(places / "packaged", replace(cubin("other"), variant="softmax_other"))
    assert found() == "cached" and caplog.records == []


# GPUs newer than the package


def test_a_later_minor_is_served_by_what_was_compiled_for_an_earlier_one(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sm_121 is newer than this package, and runs what is built for sm_120."""
    asked = []

    def build(specs: Any, architectures: list[str], *_: Any, **__: Any) -> Any:
        asked.append(architectures)
        return SimpleNamespace(cubins=(cubin("compiled", *architectures),))

    compiler(monkeypatch, build)
    assert found("sm_121") == "compiled" and asked == [["sm_120"]]
    keep(places / "cache", cubin("cached", "sm_120"))
    assert found("sm_121") == "cached"


@pytest.mark.parametrize(
    ("arch", "advice"),
    [
        ("sm_130", "install a newer version, or.*make bundle ARCH=sm_130`"),
        ("sm_87", r"softmax_ops does not support integrated GPUs \(Tegra, Jetson\), of which sm_87 is one"),
        ("sm_60", "softmax_ops supports GPUs from sm_70 on"),
    ],
)
def test_a_gpu_that_nothing_runs_on_is_told_what_to_do(
    places: Path, arch: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(monkeypatch, lambda *_, **__: pytest.fail("compiled"))
    bundle(places / "named", cubin("named"))
    named, _, cached, compiled = passed_over(arch)
    assert f"none of which runs on {arch}" in named
    assert f"ships for sm_70, sm_75, {', '.join(VARIANT.architectures[2:])}, none of which runs on {arch}" in cached
    assert cached.removeprefix("cache: ") == compiled.removeprefix("compiler: ")
    with pytest.raises(KernelNotFound, match=advice):
        found(arch)


def test_a_gpu_newer_than_the_bundle_is_told_the_command_that_builds_for_it(places: Path) -> None:
    bundle(places / "packaged", cubin("packaged", "sm_80"))
    with pytest.raises(KernelNotFound, match=r"codegen compile --arch sm_120 .*make bundle ARCH=sm_120`"):
        found("sm_121")


# Signed kernels only


def test_where_a_key_is_named_only_signed_bundles_serve(
    places: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler(monkeypatch, lambda *_, **__: pytest.fail("compiled"))
    keep(places / "cache", cubin("cached"))
    bundle(places / "named", cubin("named"))
    bundle(places / "packaged", cubin("packaged"))
    private, public = key_pair(places)
    monkeypatch.setenv("SOFTMAX_OPS_PUBLIC_KEY", str(public))
    named, packaged, cached, compiled = passed_over()
    assert [record.message.count("is not used: the signature") for record in caplog.records] == [1, 1]
    assert "named.sig cannot be read" in named and "packaged.sig cannot be read" in packaged
    assert cached.removeprefix("cache: ") == compiled.removeprefix("compiler: ")
    assert cached.startswith("cache: SOFTMAX_OPS_PUBLIC_KEY asks for signed kernels")
    with pytest.raises(KernelNotFound, match=r"\nBuild and sign all .*`make bundle ARCH=sm_90 KEY=FILE`"):
        found()
    sign(places / "packaged", private)
    resolution = resolve.resolve(VARIANT, "sm_90")
    assert resolution.cubin == cubin("packaged") and resolution.passed_over == (named,)
    monkeypatch.delenv("SOFTMAX_OPS_PUBLIC_KEY")
    assert found() == "named"


def test_a_key_that_cannot_be_used_opens_nothing(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(places / "packaged", cubin("packaged"))
    sign(places / "packaged", key_pair(places)[0])
    monkeypatch.setenv("SOFTMAX_OPS_PUBLIC_KEY", str(places / "elsewhere"))
    assert f"public key {places}/elsewhere cannot be read" in passed_over()[1]
