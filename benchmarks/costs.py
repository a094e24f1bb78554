"""The cost of compiling and loading, measured with commands in separate processes, kept with date and machine.

    generate   `python -m codegen write` and `compile` of one architecture: cache empty, then nothing changed
    bundle     every kernel for every architecture the toolchain supports, cache empty
    first      the first call of a prebuilt variant in a fresh process: on the GPU, or else on the stub driver
    eager      a call from Python beyond a bare launch; needs a GPU

Cold figures start with an empty cache folder. Building the environment, the first step of `make generate`, is excluded.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from softmax_ops.artifacts import catalog, files, settings
from softmax_ops.artifacts.bundle import write_bundle
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.cubin import Cubin
from tests.support.watchdog import limited

CHECKOUT = Path(__file__).resolve().parents[1]
FILE = "costs.json"
ARCH = "sm_90"

PROCESSES = 5
"""Number of processes that a first call is measured in."""

COMPILING_LIMIT_S, CALLING_LIMIT_S = 7200.0, 120.0
"""Time after which a process that compiles, or calls kernels, counts as hanging."""

_ON_GPU = """
import time, torch
x = torch.randn(8, 16, 1024, 1024, dtype=torch.float16, device="cuda")
y = torch.empty_like(x)
torch.cuda.synchronize()
from softmax_ops import softmax
start = time.perf_counter()
softmax(x, out=y)
torch.cuda.synchronize()
print(1e3 * (time.perf_counter() - start))
"""
_ON_STUB = """
import time
from softmax_ops import driver, launcher
from softmax_ops.planning.geometry import contiguous_geometry
arch = driver.architecture(0)
driver.ensure_context(0)
shape = contiguous_geometry((8, 16, 1024, 1024), "f16", "none")
start = time.perf_counter()
launcher.executable(launcher.plan_for(shape, arch), 0).launch((1 << 40, 2 << 40), scale=1.0, stream=0)
print(1e3 * (time.perf_counter() - start))
"""
"""Prints the milliseconds of a first call once CUDA is up: catalog, plan, bundle, loading, launch."""


class NoFigure(RuntimeError):
    """A process that was measured failed or hung; the message has what it wrote to standard error."""


@dataclass(frozen=True)
class Figure:
    """One cost; the name ends with its unit."""

    name: str
    value: float
    date: str
    machine: str
    note: str = ""


@dataclass
class Costs:
    """The newest figure for each name."""

    figures: dict[str, Figure] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        figure = self.figures.get(name)
        return None if figure is None else figure.value

    def put(self, name: str, value: float, note: str = "") -> Figure:
        figure = Figure(name, round(value, 3), time.strftime("%Y-%m-%d"), machine(), note)
        self.figures[name] = figure
        return figure

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, json.dumps([asdict(figure) for figure in self.figures.values()], indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Costs:
        if not path.exists():
            return cls()
        figures = [Figure(**figure) for figure in json.loads(path.read_text())]
        return cls({figure.name: figure for figure in figures})


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def generate(costs: Costs) -> None:
    """Cold and unchanged times for one architecture."""
    with tempfile.TemporaryDirectory(prefix="softmax_ops_cold_") as folder:
        environment = _cache(folder)
        costs.put("cold_generate_s", _generate(environment), f"{ARCH}, empty cache")
        costs.put("unchanged_generate_s", _generate(environment), ARCH)


def bundle(costs: Costs) -> None:
    """Minutes and bytes of the bundle, and the sizes of its cubins."""
    with tempfile.TemporaryDirectory(prefix="softmax_ops_cold_") as folder:
        output = Path(folder, "whole.bundle")
        seconds, said = _timed(["codegen", "bundle", "--output", str(output)], _cache(folder))
        note = said.strip().splitlines()[-1].split(": ", 1)[1]
        facts = re.search(r"median cubin (\d+), largest (\d+) bytes", note)
        costs.put("bundle_minutes", seconds / 60, note)
        costs.put("bundle_bytes", output.stat().st_size)
        if facts:
            costs.put("bundle_median", int(facts[1]))
            costs.put("bundle_largest", int(facts[2]))


def first(costs: Costs) -> None:
    """The median over several processes, each with a bundle of one architecture and an empty cache."""
    from tests.support import engines, stub_driver

    gpu = engines.gpu_architecture()
    with tempfile.TemporaryDirectory(prefix="softmax_ops_first_") as folder:
        output = (gpu and settings.read("SOFTMAX_OPS_BUNDLE")) or Path(folder, "one.bundle")
        if not output.exists():
            _bundle_of_one(gpu, output)
        driver = os.environ if gpu else stub_driver.environment()
        fresh = {**driver, **_cache(folder), "SOFTMAX_OPS_BUNDLE": str(output)}
        script = _ON_GPU if gpu else _ON_STUB
        values = sorted(float(_run([sys.executable, "-c", script], fresh, CALLING_LIMIT_S)) for _ in range(PROCESSES))
    of = gpu or "stub driver, which adds nothing of its own"
    name = "first_call_ms" if gpu else "first_call_stub_ms"
    costs.put(
        name, values[len(values) // 2], f"{of}; median of {PROCESSES} processes, {values[0]:.1f} .. {values[-1]:.1f}"
    )


def eager(costs: Costs) -> None:
    """Host time of an eager call. Raises NoDevice without a GPU; ends this process if a kernel hangs."""
    from .eager import beyond_launch_us

    with limited(CALLING_LIMIT_S, lambda: print(f"HUNG eager: not finished in {CALLING_LIMIT_S:g} s", flush=True)):
        costs.put("eager_beyond_launch_us", *beyond_launch_us())


def _bundle_of_one(gpu: str | None, output: Path) -> None:
    """Writes a bundle of every kernel for the GPU, or for ARCH with headers that the stub driver can read."""
    from codegen import build, variants

    cubins = list(build.build(variants.shipped(), [gpu or ARCH], user_cache(), progress=False).cubins)
    if gpu is None:
        cubins = [_for_stub(cubin) for cubin in cubins]
    write_bundle(output, cubins, catalog=catalog.location().read_bytes(), toolchain="benchmark")


def _for_stub(cubin: Cubin) -> Cubin:
    """The cubin with the header that the stub driver reads in front of its image."""
    from tests.support import stub_driver

    known = catalog.load()
    size = catalog.argument_bytes(known.layout(known.variants[cubin.variant]))
    head = stub_driver.image(size, cubin.variant)
    return replace(cubin, code=head + cubin.code[len(head) :])


MEASURES: dict[str, Callable[[Costs], None]] = {
    "generate": generate,
    "bundle": bundle,
    "first": first,
    "eager": eager,
}


def _generate(environment: Mapping[str, str]) -> float:
    """Seconds that `make generate` takes once its virtual environment exists."""
    write, _ = _timed(["codegen", "write"], environment)
    compile, _ = _timed(["codegen", "compile", "--arch", ARCH], environment)
    return write + compile


def _cache(folder: str) -> dict[str, str]:
    return {**os.environ, "SOFTMAX_OPS_CACHE_DIR": str(Path(folder, "cache"))}


def _timed(module: list[str], environment: Mapping[str, str]) -> tuple[float, str]:
    start = time.perf_counter()
    said = _run([sys.executable, "-m", *module], environment, COMPILING_LIMIT_S)
    return time.perf_counter() - start, said


def _run(command: list[str], environment: Mapping[str, str], limit_s: float) -> str:
    """What a command prints. Raises NoFigure."""
    how: dict[str, Any] = {"cwd": CHECKOUT, "env": dict(environment), "capture_output": True, "text": True}
    try:
        ended = subprocess.run(command, timeout=limit_s, **how)
    except subprocess.TimeoutExpired:
        raise NoFigure(f"a process was not finished in {limit_s:g} s: {command}") from None
    if ended.returncode:
        raise NoFigure(f"a process ended with status {ended.returncode}: {command}\n{ended.stderr}")
    return ended.stdout
