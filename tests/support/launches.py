"""Serves kernels to the stub driver, and launches them there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softmax_ops import launcher
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.bundle import write_bundle
from softmax_ops.artifacts.catalog import Variant, argument_bytes
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.planning.geometry import Geometry
from softmax_ops.planning.launch_plan import LaunchPlan, plan
from tests.support import stub_driver
from tests.support.geometries import geometry
from tests.support.posing import pose

CALL: dict[str, Any] = {
    "x.address": 0x7F00_0000_0000,
    "y.address": 0x7F10_0000_0000,
    "dy.address": 0x7F20_0000_0000,
    "dx.address": 0x7F30_0000_0000,
    "mask.address": 0x7F40_0000_0000,
    "bias.address": 0x7F60_0000_0000,
    "workspace.address": 0x7F50_0000_0000,
    "scale": 0.5,
    "mask.fill": -3.0,
}
"""Values by name of the field."""

ROWS = geometry((3, 5, 1000))
STREAM = 0x5700

Serve = Callable[..., None]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Makes images of the variants the only source of kernels; `held` are the architectures they are built for."""

    def serve(*variants: Variant, held: tuple[str, ...] = ("sm_90",), symbol: str | None = None) -> None:
        cubins = [cubin(variant, arch, symbol or variant.name) for variant in variants for arch in held]
        write_bundle(tmp_path / "bundle", cubins, catalog=b"{}", toolchain="none")

    monkeypatch.setenv("SOFTMAX_OPS_BUNDLE", str(tmp_path / "bundle"))
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "never")
    return serve


@pytest.fixture(autouse=True)
def posing(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are on GPU 0 and its stream STREAM in every test of a module that imports this."""
    pose(monkeypatch.setattr, STREAM)


def serve_all(served: Serve, *parts: str) -> None:
    """Serves every variant whose name contains one of the parts."""
    variants = catalog.load().variants
    served(*(variant for name, variant in variants.items() if any(part in name for part in parts)))


def cubin(variant: Variant, arch: str, symbol: str) -> Cubin:
    code = stub_driver.image(argument_bytes(catalog.load().layout(variant)), symbol)
    return Cubin(variant.name, arch, code, 32, 0, source=variant.source, fingerprint="f" * 64)


def plan_for(of: Geometry, arch: str = "sm_90") -> LaunchPlan:
    return launcher.plan_for(of, arch)


def planned(served: Serve, of: Geometry = ROWS, **arguments: Any) -> LaunchPlan:
    """The plan of a geometry, with its kernel served."""
    launch_plan = plan_for(of)
    served(launch_plan.variant, **arguments)
    return launch_plan


def changed(served: Serve, **facts: Any) -> LaunchPlan:
    """A plan whose variant differs from the shipped one in these facts, with its kernel served."""
    launch_plan = plan(ROWS, catalog.load(), "sm_90")
    launch_plan = replace(launch_plan, variant=replace(launch_plan.variant, **facts))
    served(launch_plan.variant)
    return launch_plan


def launch(launch_plan: LaunchPlan, device: int = 0, stream: int = STREAM, values: Mapping[str, Any] = CALL) -> None:
    launcher.executable(launch_plan, device, stream).launch(
        tuple(values[f"{operand.name}.address"] for operand in launch_plan.geometry.operands),
        scale=values["scale"],
        fill=values["mask.fill"],
        workspace=values["workspace.address"],
        stream=stream,
    )


def expected(launch_plan: LaunchPlan, values: Mapping[str, Any] = CALL) -> list[bytes]:
    """The parameters of every launch. Fields of operands that the geometry lacks stay null."""
    absent = tuple(f"{name}." for name in ("mask", "bias") if launch_plan.geometry.operand(name) is None)
    values = {name: value for name, value in values.items() if not name.startswith(absent)}
    return [launch_plan.arguments(part, values) for part in launch_plan.launches]


def names() -> list[str]:
    return [call.name for call in stub_driver.calls()]


def in_thread(work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def in_child(work: Callable[[], object]) -> str:
    """Runs work in a forked child; returns the error it raised, or "done"."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            work()
            os.write(writer, b"done")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.wait()
    return said
