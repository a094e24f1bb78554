"""The wheel on a host with only torch and cuda-bindings: it installs, finds its kernels and launches them.

The host is a fresh environment without pip, compiler, network, jinja2 or click. Its site-packages are read-only, and
its user has no HOME and is unknown to the system, if this process may become such a user. Kernels are stubs.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from softmax_ops.artifacts import catalog, signature
from softmax_ops.artifacts.bundle import Bundle, write_bundle
from softmax_ops.artifacts.catalog import argument_bytes
from softmax_ops.artifacts.cubin import Cubin
from tests.support import stub_driver
from tests.support.cubins import CHECKOUT, key_pair

pytestmark = pytest.mark.slow

VARIANT = "softmax_fwd_f16_none_warp_k1024_v8_t128r4"
BESIDE_TORCH = (
    *("torch", "torchgen", "functorch", "filelock", "fsspec", "mpmath", "networkx", "sympy", "typing_extensions"),
    *("cuda", "nvidia"),
)
"""Modules of torch and of what it imports, and of cuda-bindings."""

SOURCES = ("softmax_ops", "generated/catalog.json", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")
A_USER = 54321
CONTAINER = ("torch", "cuda")


def stub_cubins() -> list[Cubin]:
    """Stubs of every variant, for every architecture for which it ships, in the stub driver's format."""
    found = catalog.load()
    return [
        Cubin(
            variant.name,
            arch,
            stub_driver.image(argument_bytes(found.layout(variant)), variant.name),
            32,
            0,
            source=variant.source,
            fingerprint=hashlib.sha256(f"{variant.name} {arch}".encode()).hexdigest(),
        )
        for variant in found.variants.values()
        for arch in variant.architectures
    ]


def checkout_with(folder: Path, cubins: list[Cubin], *, of: bytes | None = None) -> Path:
    """The sources of a wheel, with a bundle as `make bundle` writes it."""
    for name in (*SOURCES, "transformer_softmax_lib.py"):
        source, target = CHECKOUT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.bundle*", "*.so"))
        elif source.exists():
            shutil.copy(source, target)
    if cubins:
        (folder / "build").mkdir()
        content = (CHECKOUT / "generated" / "catalog.json").read_bytes() if of is None else of
        write_bundle(folder / "build" / "softmax_ops.bundle", cubins, catalog=content, toolchain="stub")
    return folder


def build_wheel(checkout: Path, **environment: str) -> Path:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    result = subprocess.run(command, cwd=checkout, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Host:
    """A machine to deploy to."""

    folder: Path
    site_packages: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs Python with these arguments, as a container would start it."""
        python = str(self.folder / "venv" / "bin" / "python")
        return subprocess.run(
            [*_as_a_user(python), python, *arguments],
            cwd=self.folder / "empty",
            env={"PATH": str(self.folder / "empty"), "LD_LIBRARY_PATH": str(self.folder / "driver"), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def python(self, program: str, **environment: str) -> dict[str, Any]:
        """What a program prints as JSON on its last line, with nothing else. It must print nothing to stderr."""
        result = self.run("-c", WATCH + textwrap.dedent(program), **environment)
        assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return found


@cache
def _as_a_user(python: str) -> tuple[str, ...]:
    """A command prefix for root, which becomes a user without name, home or rights.

    Empty if that user could not reach the interpreter, which may be in root's home.
    """
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        return ()
    command = (setpriv, f"--reuid={A_USER}", f"--regid={A_USER}", "--clear-groups")
    works = not subprocess.run([*command, python, "-c", "import json, hashlib"], capture_output=True).returncode
    return command if works else ()


WATCH = """if True:
    import json, os, sys, time
    started, opened, written, connected = set(sys.modules), [], [], []

    def watch(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            opened.append(str(path))
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
                written.append(str(path))
        elif event in ("os.mkdir", "os.rename", "os.remove"):
            written.append(str(arguments[0]))
        elif event == "socket.connect":
            connected.append(str(arguments[1]))

    sys.addaudithook(watch)
    sys.dont_write_bytecode = True
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout_with(tmp_path_factory.mktemp("checkout"), stub_cubins()))


@pytest.fixture(scope="module")
def host(wheel: Path) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="deployed_"))  # readable by other users, unlike pytest's own folder
    folder.chmod(0o755)
    try:
        yield installed(wheel, folder)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
        shutil.rmtree(folder)


def installed(wheel: Path, folder: Path) -> Host:
    for name in ("empty", "driver", "beside"):
        (folder / name).mkdir()
    shutil.copy(stub_driver.library() / "libcuda.so.1", folder / "driver")
    shutil.copy(stub_driver.__file__, folder / "driver" / "stub_driver.py")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    place = [sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python"), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--root-user-action=ignore"]
    subprocess.run([*place, *options, str(wheel)], check=True)
    top = sorted(path.name for path in site_packages.iterdir())
    assert [name for name in top if not name.endswith(".dist-info")] == whats_at_the_top(), top
    for module in BESIDE_TORCH:
        found = importlib.util.find_spec(module)
        if found is not None:
            source = Path(found.origin or next(iter(found.submodule_search_locations or ())))
            source = source.parent if source.name == "__init__.py" else source
            (folder / "beside" / source.name).symlink_to(source)
    for name in CONTAINER:
        named = distribution({"cuda": "cuda-bindings"}.get(name, name))._path  # type: ignore[attr-defined]
        (folder / "beside" / named.name).symlink_to(named)
    (site_packages / "beside.pth").write_text(f"{folder / 'beside'}\n")
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(site_packages), str(folder / "empty")], check=True)
    return Host(folder, site_packages)


def whats_at_the_top() -> list[str]:
    optional = ["transformer_softmax_lib.py"]
    return ["softmax_ops", *(name for name in optional if (CHECKOUT / name).exists())]


# ---- the wheel


def test_the_wheel_holds_the_run_time_package_and_the_bundle_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("softmax_ops/artifacts/catalog.json") == (CHECKOUT / "generated/catalog.json").read_bytes()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(whats_at_the_top())
    assert {"softmax_ops/softmax_ops.bundle", "softmax_ops/py.typed"} <= {*names}
    allowed = (".py", ".pyi", "/catalog.json", ".bundle", "/METADATA", "/WHEEL", "/RECORD", "/LICENSE", "/py.typed")
    assert [name for name in names if not name.endswith(allowed)] == ["softmax_ops/native/calls.abi3.so"]
    assert wheel.name.startswith("softmax_ops-") and "-cp311-abi3-" in wheel.name


def test_a_wheel_built_without_a_compiler_is_plain_python(tmp_path: Path) -> None:
    wheel = build_wheel(checkout_with(tmp_path, []), CC="/bin/false")
    with zipfile.ZipFile(wheel) as archive:
        assert not any(name.endswith(".so") for name in archive.namelist())
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_needs_torch_and_cuda_bindings_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    needed = [line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert sorted(line.split("<")[0].split(">")[0] for line in needed if "extra ==" not in line) == [
        "cuda-bindings",
        "torch",
    ]
    assert any(line.startswith("cryptography") and "extra == 'signing'" in line for line in needed)


def test_the_same_sources_give_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    again = build_wheel(checkout_with(tmp_path / "again", stub_cubins()[::-1]))
    assert again.read_bytes() == wheel.read_bytes()


def test_a_wheel_without_a_bundle_is_a_wheel_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(checkout_with(tmp_path, []))) as archive:
        assert not any(".bundle" in name for name in archive.namelist())


def test_the_signature_travels_with_the_bundle(tmp_path: Path) -> None:
    checkout = checkout_with(tmp_path / "signed", stub_cubins()[:3])
    bundle = checkout / "build" / "softmax_ops.bundle"
    private, public = key_pair(tmp_path)
    signed = signature.sign(Bundle(bundle).digest(), signature.load_private(private))
    signature.beside(bundle).write_bytes(signed)
    with zipfile.ZipFile(build_wheel(checkout)) as archive:
        archive.extractall(tmp_path / "out")
    assert Bundle(tmp_path / "out/softmax_ops/softmax_ops.bundle", key=public).verify() == []


@pytest.mark.parametrize("flaw", ["of other kernels", "damaged"])
def test_a_bundle_that_could_not_serve_is_not_shipped(flaw: str, tmp_path: Path) -> None:
    checkout = checkout_with(tmp_path, stub_cubins()[:3], of=b"{}" if flaw == "of other kernels" else None)
    if flaw == "damaged":
        bundle = checkout / "build" / "softmax_ops.bundle"
        bundle.write_bytes(bundle.read_bytes()[:-1])
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    pytest.importorskip("hatchling")
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    said = {"of other kernels": "holds other kernels than generated/", "damaged": "cannot be shipped"}[flaw]
    assert result.returncode != 0 and said in result.stdout + result.stderr
    assert not list(checkout.glob("dist/*.whl"))


# ---- on the host


def test_the_host_is_as_bare_as_it_should_be(host: Host) -> None:
    found = host.python("""
        import importlib.util, shutil
        missing = [name for name in ("jinja2", "click", "rich", "codegen", "tests", "pip", "cutlass_library", "numpy")
                   if importlib.util.find_spec(name) is None]
        print(json.dumps({"missing": missing, "compiler": shutil.which("cc") or shutil.which("gcc"),
                          "home": os.environ.get("HOME"), "uid": os.geteuid()}))
    """)
    assert found["missing"] == ["jinja2", "click", "rich", "codegen", "tests", "pip", "cutlass_library", "numpy"]
    assert (found["compiler"], found["home"]) == (None, None)
    modes = {path.stat().st_mode & 0o222 for path in host.site_packages.rglob("*") if not path.is_symlink()}
    assert modes == {0}
    if os.geteuid() == 0 and found["uid"] == 0:
        pytest.skip("as root: the interpreter lies where another user cannot reach it")


LAUNCH = """
    from softmax_ops import driver, launcher
    from softmax_ops.planning.geometry import Geometry, Operand

    reads = []
    real = os.pread
    os.pread = lambda descriptor, length, offset: (reads.append(length), real(descriptor, length, offset))[1]
    operands = tuple(Operand(name, (5000, 1000, 1), 16, 2) for name in ("x", "y"))
    geometry = Geometry("fwd", "f16", "none", (3, 5, 1000), operands, None)
    arch = driver.architecture(0)
    plan = launcher.plan_for(geometry, arch)
    launcher.executable(plan, 0, 0x5700).launch((0x7F0000000000, 0x7F1000000000), scale=0.5, stream=0x5700)
    mine = set(sys.modules) - started
"""


def test_it_dispatches_down_to_the_launch(host: Host) -> None:
    """From the bundle in the package, of which it reads three pieces; nothing else is read or written."""
    found = host.python(
        LAUNCH
        + """
    import softmax_ops
    from softmax_ops import native
    packages = ("torch", "jinja2", "codegen", "numpy", "cryptography")
    sys.path.append(os.environ["LD_LIBRARY_PATH"])
    import stub_driver
    (call,) = stub_driver.launches()
    print(json.dumps({
        "kernel": call.kernel.decode(), "grid": call.grid, "parameters": len(call.parameters), "stream": call.stream,
        "arch": arch, "from": softmax_ops.__file__, "compiled": native.compiled() is not None,
        "reads": reads, "written": written, "connected": connected,
        "opened": [path for path in opened if any(part in path for part in (".bundle", ".cache", ".cubin"))],
        "modules": [name for name in mine if name.split(".")[0] in packages or "nvrtc" in name or "nvjit" in name],
    }))
    """
    )
    layout = catalog.load().layout(catalog.load().variants[VARIANT])
    assert (found["kernel"], found["arch"], found["stream"]) == (VARIANT, "sm_90", 0x5700)
    assert found["grid"] == [4, 1, 1] and found["parameters"] == argument_bytes(layout)
    assert found["from"].startswith(str(host.site_packages)) and found["compiled"]
    assert (found["written"], found["connected"], found["modules"]) == ([], [], [])
    bundle = host.site_packages / "softmax_ops" / "softmax_ops.bundle"
    assert set(found["opened"]) == {str(bundle)}
    assert len(found["reads"]) == 3 and found["reads"][2] < 200  # header, one index, and the entry of this variant
    assert sum(found["reads"]) < bundle.stat().st_size / 4


def test_importing_it_beside_torch_is_nearly_nothing(host: Host) -> None:
    """One module and one file; no bundle, no catalog, no driver, and nothing written."""
    found = host.python("""
        import warnings
        warnings.simplefilter("ignore")  # torch misses numpy
        import torch
        before, first, start = set(sys.modules), len(opened), time.perf_counter()
        import softmax_ops
        seconds = time.perf_counter() - start
        imported, read = sorted(set(sys.modules) - before), opened[first:]
        first = len(opened)
        softmax_ops.softmax
        used, wanted = sorted(set(sys.modules) - before), opened[first:]
        print(json.dumps({"imported": imported, "read": read, "used": used, "wanted": wanted, "written": written,
                          "milliseconds": seconds * 1000}))
    """)
    assert found["imported"] == ["softmax_ops"], f"in {found['milliseconds']} ms"
    assert {os.path.basename(path).split(".")[0] for path in found["read"]} <= {"__init__"}
    assert found["written"] == []
    for name in (*found["read"], *found["wanted"]):
        assert not name.endswith((".bundle", ".json", ".sig")), name
    heavy = ("jinja2", "codegen", "cryptography", "numpy", "softmax_ops.doctor")
    assert [name for name in found["used"] if name.split(".")[0] in heavy or name in heavy or "nvrtc" in name] == []


def test_softmax_of_tensors_on_the_cpu_runs(host: Host) -> None:
    found = host.python("""
        import warnings
        warnings.simplefilter("ignore")
        import torch, softmax_ops
        y = softmax_ops.softmax(torch.zeros(2, 4), causal=True, causal_offset=0)
        print(json.dumps({"y": y.tolist(), "written": written}))
    """)
    assert found["y"] == [[1, 0, 0, 0], [0.5, 0.5, 0, 0]] and found["written"] == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("explain --shape 3,5,1000 --dtype f16 --arch sm_86", "bundle of the package"),
        ("explain --shape 3,5,1000 --dtype f16 --arch sm_121", "bundle of the package"),
        ("explain --shape 2,3,4,5,6,7 --dtype f16 --mask bool --mask-shape 2,1,4,1,6,7", "copies   mask"),
        ("config", "SOFTMAX_OPS_BUNDLE"),
        ("doctor", "device 0"),
        ("bundle inspect {bundle}", "per architecture     sm_70 "),
        ("bundle verify {bundle}", "intact"),
    ],
)
def test_the_commands_run(host: Host, command: str, said: str) -> None:
    bundle = str(host.site_packages / "softmax_ops" / "softmax_ops.bundle")
    result = host.run("-m", "softmax_ops", *command.format(bundle=bundle).split())
    assert result.returncode == 0 and said in result.stdout, result.stdout + result.stderr


def test_the_doctor_finds_the_host_in_order(host: Host) -> None:
    parts = json.loads(host.run("-m", "softmax_ops", "doctor", "--json").stdout)
    assert parts["toolchain"] == {"problem": "codegen is not installed here"}
    assert parts["package"]["torch"] != "not installed" and parts["package"]["cryptography"] == "not installed"
    (arch,) = parts["kernels of the devices here"].values()
    assert arch["nowhere"] == 0 and arch["ship"] == arch["bundle of the package"] > 100
    for held in parts["bundles"]["bundle of the package"]["kernels"].values():
        count, _, shipped = held.split()
        assert count == shipped
    assert parts["cache"]["directory"] == "None"


def test_a_kernel_that_is_not_there_is_told_with_every_place(host: Host) -> None:
    """A GPU newer than the package, on a host that cannot compile."""
    found = host.python(f"""
        from softmax_ops import KernelNotFound, resolve
        from softmax_ops.artifacts import catalog
        try:
            resolve.resolve(catalog.load().variants[{VARIANT!r}], "sm_130")
        except KernelNotFound as error:
            print(json.dumps(dict(said=str(error), written=written)))
    """)
    headline, packaged, cached, compiler, advice = found["said"].splitlines()
    assert headline == f"no kernel {VARIANT} for sm_130:" and "none of which runs on sm_130" in packaged
    assert cached.startswith("  cache: ") and compiler.startswith("  compiler: ")
    assert "make bundle ARCH=sm_130" in advice and found["written"] == []


def test_a_bundle_named_by_the_environment_comes_first(host: Host, tmp_path: Path) -> None:
    variant = catalog.load().variants[VARIANT]
    cubin = next(cubin for cubin in stub_cubins() if (cubin.variant, cubin.arch) == (VARIANT, "sm_90"))
    named = Path(tempfile.mkdtemp(prefix="deployed_")) / "named.bundle"
    try:
        named.parent.chmod(0o755)
        write_bundle(named, [replace(cubin, registers=77)], catalog=b"{}", toolchain="stub")
        program = f"""
        from softmax_ops import resolve
        from softmax_ops.artifacts import catalog
        found = resolve.resolve(catalog.load().variants[{variant.name!r}], "sm_90")
        print(json.dumps({{"registers": found.cubin.registers, "place": found.place}}))
        """
        found = host.python(program, SOFTMAX_OPS_BUNDLE=str(named))
        assert found == {"registers": 77, "place": f"bundle {named} (SOFTMAX_OPS_BUNDLE)"}
    finally:
        shutil.rmtree(named.parent)
