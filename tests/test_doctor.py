"""`python -m softmax_ops doctor`: what it reports on hosts with and without a GPU, and that nothing makes it fail."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softmax_ops import __version__, doctor, native, resolve
from softmax_ops.__main__ import main as command_line
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.bundle import write_bundle
from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import Absent, Cubin
from tests.support import stub_driver
from tests.support.cubins import CHECKOUT, make
from tests.support.stub_driver import isolated
from tests.test_import import BLOCK, WATCH, python

VARIANTS = sorted(catalog.load().variants.values(), key=lambda variant: variant.name)
Facts = dict[str, Any]


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with an empty cache, no bundle, and no permission to compile."""
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "never")
    for name in ("SOFTMAX_OPS_BUNDLE", "SOFTMAX_OPS_CACHE_MAX_BYTES", "SOFTMAX_OPS_PUBLIC_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(resolve, "PACKAGED_BUNDLE", tmp_path / "packaged")
    resolve._bundle.cache_clear()
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], status: int = 0) -> Facts:
    """The facts from --json, all of which also appear in the text."""
    assert command_line(["doctor", "--json"]) == status
    parts: Facts = json.loads(capsys.readouterr().out)
    assert command_line(["doctor"]) == status
    text = capsys.readouterr().out
    for name, facts in parts.items():
        assert f"{name}\n" in text and all(f"  {key} " in text for key in facts), name
    return parts


def cubins(count: int, arch: str, source: str = "") -> list[Cubin]:
    held = [variant for variant in VARIANTS if arch in variant.architectures][:count]
    return [Cubin(v.name, arch, b"code", 32, 0, source=source or v.source, fingerprint="f" * 64) for v in held]


def ship(arch: str) -> int:
    return sum(arch in variant.architectures for variant in VARIANTS)


def test_the_package_and_its_surroundings(capsys: pytest.CaptureFixture[str]) -> None:
    parts = told(capsys)
    assert set(parts) == {
        *("package", "torch", "driver", "compiled part", "toolchain", "settings", "bundles"),
        *("kernels of the devices here", "cache"),
    }
    package = parts["package"]
    assert package["softmax_ops"] == __version__ and package["installed"] == str(Path(doctor.__file__).parent)
    assert {"python", "platform", "cores", "torch", "cuda-bindings", "cryptography"} <= set(package)
    assert parts["compiled part"] in ({"used": True}, {"problem": native.problem})
    assert parts["toolchain"] == {"problem": "SOFTMAX_OPS_COMPILE=never"}
    assert parts["settings"]["SOFTMAX_OPS_COMPILE"] == "never (environment)"
    assert parts["settings"]["SOFTMAX_OPS_BUNDLE"] == "None (default)"


def test_the_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    toolchain = pytest.importorskip("codegen.toolchain")
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "auto")
    said = told(capsys)["toolchain"]["compiler"]
    assert toolchain.compiler_build() in said and "sm_90" in said

    def missing() -> None:
        raise toolchain.ToolchainError("The headers of nvidia-cutlass are missing")

    monkeypatch.setattr(toolchain, "headers", missing)
    assert told(capsys)["toolchain"] == {"problem": "The headers of nvidia-cutlass are missing"}


def test_bundles_and_what_they_cover(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(host / "named", [*cubins(5, "sm_80"), *cubins(3, "sm_90", "0" * 64)], catalog=b"{}", toolchain="mine")
    monkeypatch.setenv("SOFTMAX_OPS_BUNDLE", str(host / "named"))
    named, packaged = told(capsys)["bundles"].values()
    assert named["kernels"] == {"sm_80": f"5 of {ship('sm_80')}", "sm_90": f"0 of {ship('sm_90')}"}
    assert named["toolchain"] == "mine" and named["bytes"] == (host / "named").stat().st_size
    assert f"python -m softmax_ops bundle verify {host}/named" in named["not read"]
    assert list(packaged) == ["problem"] and "cannot be read" in packaged["problem"]
    monkeypatch.setenv("SOFTMAX_OPS_PUBLIC_KEY", str(host / "key.pub"))
    assert "is not used" in told(capsys)["bundles"][f"bundle {host}/named (SOFTMAX_OPS_BUNDLE)"]["problem"]


def test_the_health_of_the_cache(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = Cache(host / "cache", max_bytes=1 << 30)
    assert told(capsys)["cache"] == {
        **{"directory": f"{host}/cache", "exists": False, "writable": False, "entries": 0, "bytes": 0},
        **{"cap": 2 << 30, "architectures": {}, "unfit": []},
    }
    for build in "0123456789":
        assert cache.store(make(build=build, arch="sm_90" if build < "3" else "sm_80"))
    facts = told(capsys)["cache"]
    assert (facts["exists"], facts["writable"], facts["entries"], facts["unfit"]) == (True, True, 10, [])
    assert facts["bytes"] == sum(entry.stored_bytes for entry in cache.entries())
    assert facts["architectures"] == {"sm_90": 3, "sm_80": 7}
    for path in (host / "cache").iterdir():
        path.write_bytes(b"damaged")
    unfit = told(capsys)["cache"]["unfit"]
    assert len(unfit) == 6 and "cut short" in unfit[0] and unfit[-1] == "and more"
    assert len(list((host / "cache").iterdir())) == 10  # and nothing was set aside
    (host / "cache").chmod(0o777)
    facts = told(capsys)["cache"]
    assert facts["entries"] == 0 and "0777: others can write it" in facts["unfit"][0]


def test_a_cache_whose_path_is_too_long_is_told_as_the_cache_tells_it(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = host / ("x" * 300)
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(root))
    facts = told(capsys)["cache"]
    assert facts["unfit"] == [f"the cache directory {root} cannot be used: File name too long"]
    assert (facts["exists"], facts["writable"], facts["entries"]) == (False, False, 0)


@isolated
def test_devices_and_where_their_kernels_would_come_from(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the stub driver: two GPUs of one kind, and one newer than its bundle."""
    monkeypatch.setitem(doctor._PARTS, "torch", dict)  # it takes seconds, and is not needed here
    stub_driver.devices("sm_90", "sm_121", "sm_90")
    write_bundle(host / "packaged", [*cubins(5, "sm_90"), *cubins(9, "sm_120")], catalog=b"{}", toolchain="mine")
    cached = Cache(host / "cache", max_bytes=1 << 30)
    for cubin in cubins(7, "sm_90"):
        assert cached.store(cubin)
    parts = told(capsys, status=1)  # of kernels that are nowhere
    driver = parts["driver"]
    assert driver["serves CUDA"] == "13.0" and [driver[f"device {i}"] for i in range(3)] == ["sm_90", "sm_121", "sm_90"]
    assert parts["kernels of the devices here"] == {
        "sm_121": {
            "ship": ship("sm_120"),
            "bundle of the package": 9,
            "cache, by name": 0,
            "nowhere": ship("sm_120") - 9,
        },
        "sm_90": {"ship": ship("sm_90"), "bundle of the package": 5, "cache, by name": 2, "nowhere": ship("sm_90") - 7},
    }
    assert {"cuLibraryLoadData", "cuDevicePrimaryCtxRetain"} & {call.name for call in stub_driver.calls()} == set()


@isolated
def test_of_the_cache_counts_what_would_serve(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts cubins for the architecture itself; none if kernels have to be signed."""
    stub_driver.devices("sm_86")
    cached = Cache(host / "cache", max_bytes=1 << 30)
    first, second, third = cubins(3, "sm_86")
    for cubin in (first, replace(second, arch="sm_80"), replace(third, kind="ptx")):
        assert cached.store(cubin)
    for count in (1, 0):
        facts: Facts = doctor.report()["kernels of the devices here"]["sm_86"]  # type: ignore[assignment]
        assert (facts["cache, by name"], facts["nowhere"]) == (count, ship("sm_86") - count)
        monkeypatch.setenv("SOFTMAX_OPS_PUBLIC_KEY", str(host / "key.pub"))


@isolated
def test_a_driver_that_fails_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(doctor._PARTS, "torch", dict)
    stub_driver.fail("cuInit", 100)
    parts = told(capsys)
    for part in ("driver", "kernels of the devices here"):
        assert "cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected" in parts[part]["problem"]


def test_on_a_host_without_any_of_it(tmp_path: Path) -> None:
    """No torch, no cuda-bindings, no codegen, no cryptography; nothing is written or created."""
    blocked = {"torch", "numpy", "cuda", "codegen", "cryptography", "jinja2", "click"}
    code = "    from softmax_ops.__main__ import main\n    print(main(['doctor', '--json']))"
    *lines, status = python(WATCH + BLOCK.format(blocked=blocked).split("\n", 1)[1] + code).splitlines()
    assert status == "0"
    parts = json.loads("\n".join(line for line in lines if not line.startswith("subprocess.Popen")))
    assert "No module named 'torch'" in parts["torch"]["problem"]
    assert "No module named 'cuda" in parts["driver"]["problem"] == parts["kernels of the devices here"]["problem"]
    assert list(tmp_path.iterdir()) == []


BAD_SETTINGS = {
    "SOFTMAX_OPS_BUNDLE": ("~nobody-of-that-name/b", ("bundles",)),
    "SOFTMAX_OPS_CACHE_DIR": ("~nobody-of-that-name/c", ("cache",)),
    "SOFTMAX_OPS_CACHE_MAX_BYTES": ("much", ("cache",)),
    "SOFTMAX_OPS_COMPILE": ("maybe", ("toolchain",)),
    "SOFTMAX_OPS_NATIVE": ("always", ("compiled part",)),
    "SOFTMAX_OPS_PUBLIC_KEY": ("~nobody-of-that-name/k", ("bundles", "toolchain")),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_that_cannot_be_used_costs_its_own_parts(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    value, parts_lost = BAD_SETTINGS[name]
    monkeypatch.setenv(name, value)
    parts = told(capsys)
    assert f"{name} is {value!r}; wanted" in parts["settings"][name]
    for part in parts_lost:
        assert f"{name} is {value!r}; wanted" in parts[part]["problem"]
    assert "problem" not in parts["package"]


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("odd"), KeyError("k"), RecursionError(), Absent("why")])
@pytest.mark.parametrize("part", doctor._PARTS)
def test_whatever_goes_wrong_in_a_part_stays_there(
    part: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> doctor.Facts:
        raise error

    parts: dict[str, Callable[[], doctor.Facts]] = {name: (lambda: {"fine": 1}) for name in doctor._PARTS}
    monkeypatch.setattr(doctor, "_PARTS", {**parts, part: fail})
    facts = told(capsys)
    assert facts.pop(part)["problem"].startswith("why" if isinstance(error, Absent) else type(error).__name__)
    assert all(other == {"fine": 1} for other in facts.values()) and facts


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_path_may_be_of_any_bytes(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "SOFTMAX_OPS_BUNDLE": os.fsdecode(b"/named \xff")}
    command = [sys.executable, "-m", "softmax_ops", "doctor"]
    said = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "") and r"/named \udcff" in said.stdout


def test_home_may_be_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "SOFTMAX_OPS_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    facts = told(capsys)["cache"]
    assert (facts["directory"], facts["exists"], facts["writable"]) == ("None", False, False)
    assert os.environ.get("HOME") is None
