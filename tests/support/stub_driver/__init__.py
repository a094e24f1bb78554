"""A CUDA driver without a GPU: libcuda.c, compiled with the system's C compiler into a libcuda.so.1 that records calls.

@stub_driver.isolated
def test_something():           # runs in a separate Python process, whose driver is the stub
    ...
    assert stub_driver.launches()[0].grid == (5, 1, 1)
"""

import atexit
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

CHECKOUT = Path(__file__).parents[3]
SOURCE = Path(__file__).with_name("libcuda.c")

_CHILD = "SOFTMAX_OPS_TESTS_STUB"
_MAX_DEVICES = 4

Test = TypeVar("Test", bound=Callable[..., None])


class Call(ctypes.Structure):
    """One recorded call; libcuda.c documents the arguments at each function."""

    _fields_ = (
        ("call", ctypes.c_char * 40),
        ("device", ctypes.c_int),
        ("arguments", ctypes.c_uint64 * 4),
        ("kernel", ctypes.c_char * 168),
        ("_grid", ctypes.c_uint32 * 3),
        ("_block", ctypes.c_uint32 * 3),
        ("_cluster", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("parameter_bytes", ctypes.c_uint32),
        ("_parameters", ctypes.c_ubyte * 1024),
    )

    @property
    def name(self) -> str:
        return self.call.decode()

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self._grid)

    @property
    def block(self) -> tuple[int, ...]:
        return tuple(self._block)

    @property
    def cluster(self) -> tuple[int, ...]:
        """(0, 0, 0) if the launch specified none."""
        return tuple(self._cluster)

    @property
    def stream(self) -> int:
        return self.arguments[0]

    @property
    def parameters(self) -> bytes:
        return bytes(self._parameters[: self.parameter_bytes])


@cache
def library() -> Path:
    """The folder of the stub's libcuda.so.1; compiled once per process and removed at exit."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("the tests of the launcher compile a stub of the CUDA driver: they need cc, gcc or clang")
    folder = tempfile.mkdtemp(prefix="stub_driver_")
    atexit.register(shutil.rmtree, folder)
    options = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libcuda.so.1"]
    command = [compiler, *options, "-o", f"{folder}/libcuda.so.1", str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return Path(folder)


def image(parameter_bytes: int, name: str) -> bytes:
    """What the stub loads in place of a cubin: the size of the kernel's parameters, and its name."""
    return f"{parameter_bytes} {name}\0".encode()


def environment(folder: Path | None = None) -> dict[str, str]:
    """The environment of a process whose driver is the stub, or the libcuda.so.1 in another folder."""
    return {**os.environ, "LD_LIBRARY_PATH": str(folder or library()), "PYTHONDONTWRITEBYTECODE": "1"}


def _of_child() -> dict[str, str]:
    return {**environment(), _CHILD: "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@cache
def _server() -> subprocess.Popen[str]:
    """The process from which those of the tests are forked."""
    command = [sys.executable, "-m", "tests.support.stub_driver"]
    server = subprocess.Popen(command, cwd=CHECKOUT, env=_of_child(), stdin=-1, stdout=-1, text=True)
    atexit.register(server.communicate)
    return server


def isolated(test: Test) -> Test:
    """Makes a test run in a separate process, whose driver is the stub; its fixtures are created there too."""
    if _CHILD in os.environ:
        return test

    @functools.wraps(test)
    def run(*_: Any, **__: Any) -> None:
        node = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps([node, _of_child()]), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, "the process that tests are forked from has ended"
        status, said = json.loads(answer)
        if status:
            raise AssertionError(f"in a process of its own:\n{said}")

    return run  # type: ignore[return-value]


# In the process whose driver is the stub


@cache
def _stub() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _set(name: str, value: int, kind: Any = ctypes.c_int) -> None:
    kind.in_dll(_stub(), name).value = value


def version(major: int, minor: int) -> None:
    """Sets the CUDA version that the driver supports."""
    _set("stub_version", 1000 * major + 10 * minor)


def devices(*architectures: str) -> None:
    """Sets which GPUs exist, by their architectures, such as "sm_86"."""
    _set("stub_devices", len(architectures))
    capabilities = (ctypes.c_int * (2 * _MAX_DEVICES)).in_dll(_stub(), "stub_capabilities")
    for ordinal, arch in enumerate(architectures):
        capabilities[2 * ordinal], capabilities[2 * ordinal + 1] = divmod(int(arch[3:]), 10)


def largest_cluster(ctas: int) -> None:
    """Sets the largest cluster that the devices have room for; the driver's own limits also apply."""
    _set("stub_largest_cluster", ctas)


def capture(stream: int) -> None:
    """Marks a CUDA graph capture as active on the stream; 0 ends it."""
    _set("stub_captured_stream", stream, ctypes.c_uint64)


def fail(call: str, status: int) -> None:
    """Makes a call return this status from now on; "" for none."""
    (ctypes.c_char * 40).in_dll(_stub(), "stub_failing_call").value = call.encode()
    _set("stub_failure", status)


def hesitate(seconds: float) -> None:
    """Makes recorded calls take this long, a launch before it reads its parameters; other threads run meanwhile."""
    _set("stub_pause_us", round(seconds * 1e6))


def record(on: bool) -> None:
    _set("stub_recording", on)


def calls(name: str = "") -> list[Call]:
    """The calls recorded so far, in order; of one function if a name is given."""
    count = ctypes.c_int.in_dll(_stub(), "stub_call_count").value
    recorded = (Call * count).in_dll(_stub(), "stub_calls")
    return [Call.from_buffer_copy(call) for call in recorded if name in ("", call.name)]


def launches() -> list[Call]:
    return calls("cuLaunchKernelEx")


def forget() -> None:
    """Clears the record."""
    _set("stub_call_count", 0)
