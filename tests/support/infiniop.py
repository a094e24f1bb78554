"""Short forms of InfiniOP calls.

`api` is untyped here, since many calls are wrong on purpose.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from softmax_ops import driver, infiniop
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.bundle import write_bundle
from tests.support.launches import STREAM, cubin

api: Any = infiniop
Ref = infiniop.Ref

CODES = {
    "SUCCESS": 0,
    "INTERNAL_ERROR": 1,
    "EXECUTION_FAILED": 1,
    "NOT_IMPLEMENTED": 2,
    "BAD_PARAM": 3,
    "NULL_POINTER": 4,
    "DEVICE_TYPE_NOT_SUPPORTED": 5,
    "BAD_DEVICE": 5,
    "DEVICE_NOT_FOUND": 6,
    "DEVICE_NOT_INITIALIZED": 7,
    "DEVICE_ARCHITECTURE_NOT_SUPPORTED": 8,
    "BAD_TENSOR_DTYPE": 10,
    "BAD_TENSOR_SHAPE": 11,
    "BAD_TENSOR_STRIDES": 12,
    "INSUFFICIENT_WORKSPACE": 13,
}
F16, F32, F64, BF16, I32 = 12, 13, 14, 19, 5
DATA = 0x7F00_0000_0000
WORKSPACE = 0x7F50_0000_0000
EMPTY = [(0, 0), (0, 5), (2, 0, 5), (0, 3, 3)]
CAUSAL = [each for each in catalog.load().variants.values() if (each.direction, each.mask) == ("fwd", "causal")]

Shape = tuple[int, ...]
Strides = tuple[int, ...] | None


def is_(status: Any, name: str, reason: str = "") -> None:
    """Asserts that a status has this code, and a reason that contains these words."""
    assert type(status) is infiniop.infiniStatus_t
    assert (status.name, int(status)) == (infiniop.infiniStatus_t(CODES[name]).name, CODES[name]), last()
    if name != "SUCCESS":
        assert re.search(reason, last()), last()


def last() -> str:
    return infiniop.infiniopGetLastError()


def made(create: Callable[..., Any], *arguments: Any) -> Any:
    """What a create function stores in its Ref, the first argument."""
    ref = Ref()
    is_(create(ref, *arguments), "SUCCESS")
    return ref.value


def handle(device: int = 0) -> Any:
    return made(api.infiniopCreateHandle, 1, device)


def tensor(shape: Shape, dtype: int = F16, strides: Strides = None) -> Any:
    return made(api.infiniopCreateTensorDescriptor, len(shape), shape, strides, dtype)


def create(shape: Shape, dtype: int = F16, strides: Strides = None, device: int = 0) -> tuple[Any, Any]:
    """Status and descriptor; the descriptor is None on failure."""
    ref = Ref()
    status = api.infiniopCreateCausalSoftmaxDescriptor(handle(device), ref, tensor(shape, dtype, strides))
    assert (ref.value is None) == (status != 0)
    return status, ref.value


def softmax(shape: Shape, dtype: int = F16, strides: Strides = None, device: int = 0) -> Any:
    status, descriptor = create(shape, dtype, strides, device)
    is_(status, "SUCCESS")
    return descriptor


def run(descriptor: Any, data: Any = DATA, stream: Any = STREAM, workspace: Any = None, size: Any = 0) -> Any:
    return api.infiniopCausalSoftmax(descriptor, workspace, size, data, stream)


def workspace_size(descriptor: Any) -> Any:
    size = Ref()
    is_(api.infiniopGetCausalSoftmaxWorkspaceSize(descriptor, size), "SUCCESS")
    return size.value


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the driver, even on a machine that has one."""

    def refuse(device: int) -> str:
        raise driver.DriverError("no CUDA driver: there is none in this test")

    monkeypatch.setattr(driver, "architecture", refuse)


without_driver = pytest.mark.usefixtures("no_driver")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Provides images of all causal kernels for the architectures named, in a bundle and nowhere else."""

    def serve(*architectures: str) -> None:
        cubins = [cubin(variant, arch, variant.name) for variant in CAUSAL for arch in architectures]
        write_bundle(tmp_path / "bundle", cubins, catalog=b"{}", toolchain="none")

    monkeypatch.setenv("SOFTMAX_OPS_BUNDLE", str(tmp_path / "bundle"))
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "never")
    serve("sm_80", "sm_90")
    yield serve


on_the_stub = pytest.mark.usefixtures("served")
