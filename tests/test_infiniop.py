"""The InfiniOP causal softmax: what each function answers, without a GPU; what it launches, on a stub of the driver.

`api` is untyped here, since many calls are wrong on purpose.
"""

import ctypes
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from softmax_ops import driver, infiniop, launcher
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.bundle import write_bundle
from softmax_ops.launch_plan import LaunchPlan
from tests.support import stub_driver
from tests.support.launches import STREAM, cubin, in_child, in_thread, names
from tests.support.stub_driver import isolated

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
    """A code, and words of its reason."""
    assert type(status) is infiniop.infiniStatus_t
    assert (status.name, int(status)) == (infiniop.infiniStatus_t(CODES[name]).name, CODES[name]), last()
    if name != "SUCCESS":
        assert re.search(reason, last()), last()


def last() -> str:
    return infiniop.infiniopGetLastError()


def made(create: Callable[..., Any], *arguments: Any) -> Any:
    """What a create function puts into its Ref, the first argument."""
    ref = Ref()
    is_(create(ref, *arguments), "SUCCESS")
    return ref.value


def handle(device: int = 0) -> Any:
    return made(api.infiniopCreateHandle, 1, device)


def tensor(shape: Shape, dtype: int = F16, strides: Strides = None) -> Any:
    return made(api.infiniopCreateTensorDescriptor, len(shape), shape, strides, dtype)


def create(shape: Shape, dtype: int = F16, strides: Strides = None, device: int = 0) -> tuple[Any, Any]:
    """Status and descriptor; None on failure."""
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
    """Also on a machine that has one."""

    def refuse(device: int) -> str:
        raise driver.DriverError("no CUDA driver: there is none in this test")

    monkeypatch.setattr(driver, "architecture", refuse)


without_driver = pytest.mark.usefixtures("no_driver")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Images of all causal kernels in a bundle, for the architectures named, and in no other place."""

    def serve(*architectures: str) -> None:
        cubins = [cubin(variant, arch, variant.name) for variant in CAUSAL for arch in architectures]
        write_bundle(tmp_path / "bundle", cubins, catalog=b"{}", toolchain="none")

    monkeypatch.setenv("SOFTMAX_OPS_BUNDLE", str(tmp_path / "bundle"))
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "never")
    serve("sm_80", "sm_90")
    yield serve


on_the_stub = pytest.mark.usefixtures("served")


# Codes and types


def test_codes_have_the_numbers_of_the_interface() -> None:
    assert {f"INFINI_STATUS_{name}": code for name, code in CODES.items()} == {
        name: int(member) for name, member in infiniop.infiniStatus_t.__members__.items()
    }
    for name, code in CODES.items():
        assert getattr(api, f"INFINI_STATUS_{name}") is infiniop.infiniStatus_t(code)
    dtypes = {"INFINI_DTYPE_F16": 12, "INFINI_DTYPE_F32": 13, "INFINI_DTYPE_F64": 14, "INFINI_DTYPE_BF16": 19}
    devices = {"INFINI_DEVICE_CPU": 0, "INFINI_DEVICE_NVIDIA": 1}
    for name, number in (dtypes | devices).items():
        assert getattr(api, name) == number
    assert set(infiniop.__all__) == {
        *(f"INFINI_STATUS_{name}" for name in CODES),
        *(dtypes | devices),
        *(name for name in vars(infiniop) if name.startswith("infini")),
        "Ref",
    }


def test_functions_take_what_the_c_functions_take_in_their_order() -> None:
    functions = {name: function for name, function in vars(infiniop).items() if inspect.isfunction(function)}
    taken = {name: tuple(inspect.signature(function).parameters) for name, function in functions.items()}
    assert taken.pop("infiniopGetLastError") == ()
    assert taken == {
        "infiniopCreateHandle": ("handle_ptr", "device", "device_id"),
        "infiniopDestroyHandle": ("handle",),
        "infiniopCreateTensorDescriptor": ("desc_ptr", "ndim", "shape", "strides", "dtype"),
        "infiniopDestroyTensorDescriptor": ("desc",),
        "infiniopCreateCausalSoftmaxDescriptor": ("handle", "desc_ptr", "t_desc"),
        "infiniopGetCausalSoftmaxWorkspaceSize": ("desc", "size"),
        "infiniopCausalSoftmax": ("desc", "workspace", "workspace_size", "data", "stream"),
        "infiniopDestroyCausalSoftmaxDescriptor": ("desc",),
    }


# Whatever it is given


class Hostile:
    """Fails at everything, and its failure fails to be told."""

    class Error(Exception):
        def __str__(self) -> str:
            raise ValueError

    def _fail(self, *_: Any) -> Any:
        raise Hostile.Error

    __index__ = __len__ = __getitem__ = __iter__ = __int__ = __bool__ = __repr__ = __str__ = __eq__ = _fail
    __getattr__ = __setattr__ = _fail
    __hash__ = None  # type: ignore[assignment]


def strange() -> list[Any]:
    gone = tensor((4, 7))
    is_(api.infiniopDestroyTensorDescriptor(gone), "SUCCESS")
    infinite = iter(int, 1)
    return [2**70, -(2**70), 10**5000, 1.5, "7", b"475", [], (4, "7"), {}, object(), Ref, Hostile(), gone, infinite]


def calls() -> dict[str, tuple[Any, ...]]:
    """Valid arguments of every function."""
    ready = softmax((4, 7))
    return {
        "infiniopCreateHandle": (Ref(), 1, 0),
        "infiniopDestroyHandle": (handle(),),
        "infiniopCreateTensorDescriptor": (Ref(), 2, (4, 7), (7, 1), F16),
        "infiniopDestroyTensorDescriptor": (tensor((4, 7)),),
        "infiniopCreateCausalSoftmaxDescriptor": (handle(), Ref(), tensor((4, 7))),
        "infiniopGetCausalSoftmaxWorkspaceSize": (ready, Ref()),
        "infiniopCausalSoftmax": (ready, None, 0, DATA, STREAM),
        "infiniopDestroyCausalSoftmaxDescriptor": (softmax((4, 7)),),
    }


@without_driver
def test_what_is_of_no_use_is_a_bad_parameter_wherever_it_stands() -> None:
    """Alone among right arguments, and all of them wrong at once."""
    for name, arguments in calls().items():
        function = getattr(api, name)
        for wrong in strange():
            for position in range(len(arguments)):
                is_(function(*arguments[:position], wrong, *arguments[position + 1 :]), "BAD_PARAM", f"^{name}: ")
            is_(function(*[wrong] * len(arguments)), "BAD_PARAM", f"^{name}: ")


@without_driver
def test_right_arguments_are_right() -> None:
    """Those of the test before."""
    for name, arguments in calls().items():
        wanted = "DEVICE_NOT_INITIALIZED" if name == "infiniopCausalSoftmax" else "SUCCESS"
        is_(getattr(api, name)(*arguments), wanted)


def test_too_few_arguments_are_a_code_too() -> None:
    is_(api.infiniopCreateHandle(), "INTERNAL_ERROR", r"^infiniopCreateHandle: TypeError: .*missing 3 required")
    is_(api.infiniopCausalSoftmax(*range(9)), "INTERNAL_ERROR", "TypeError")


@without_driver
def test_null() -> None:
    null = [
        api.infiniopCreateHandle(None, 1, 0),
        api.infiniopDestroyHandle(None),
        api.infiniopCreateTensorDescriptor(None, 2, (4, 7), None, F16),
        api.infiniopCreateTensorDescriptor(Ref(), 2, None, None, F16),
        api.infiniopDestroyTensorDescriptor(None),
        api.infiniopCreateCausalSoftmaxDescriptor(None, Ref(), tensor((4, 7))),
        api.infiniopCreateCausalSoftmaxDescriptor(handle(), None, tensor((4, 7))),
        api.infiniopCreateCausalSoftmaxDescriptor(handle(), Ref(), None),
        api.infiniopGetCausalSoftmaxWorkspaceSize(None, Ref()),
        api.infiniopGetCausalSoftmaxWorkspaceSize(softmax((4, 7)), None),
        run(None),
        run(softmax((4, 7)), data=None),
        run(softmax((4, 7)), data=0),
        api.infiniopDestroyCausalSoftmaxDescriptor(None),
    ]
    assert {int(status) for status in null} == {4}


@without_driver
def test_what_is_destroyed_is_of_no_use_and_is_not_destroyed_again() -> None:
    gone = {"handle": handle(), "desc": tensor((4, 7)), "softmax": softmax((4, 7))}
    destroy = (
        api.infiniopDestroyHandle,
        api.infiniopDestroyTensorDescriptor,
        api.infiniopDestroyCausalSoftmaxDescriptor,
    )
    for function, each in zip(destroy, gone.values(), strict=True):
        is_(function(each), "SUCCESS")
        is_(function(each), "BAD_PARAM", "was destroyed")
    create_ = api.infiniopCreateCausalSoftmaxDescriptor
    is_(create_(gone["handle"], Ref(), tensor((4, 7))), "BAD_PARAM", "handle was destroyed")
    is_(create_(handle(), Ref(), gone["desc"]), "BAD_PARAM", "t_desc was destroyed")
    is_(run(gone["softmax"]), "BAD_PARAM", "desc was destroyed")
    is_(api.infiniopGetCausalSoftmaxWorkspaceSize(gone["softmax"], Ref()), "BAD_PARAM", "desc was destroyed")


@without_driver
def test_a_failure_leaves_the_out_parameter_alone() -> None:
    kept = Ref("kept")
    is_(api.infiniopCreateHandle(kept, 0, 0), "BAD_DEVICE")
    is_(api.infiniopCreateTensorDescriptor(kept, 2, (4,), None, F16), "BAD_PARAM", "shape has 1 elements; want 2")
    is_(api.infiniopCreateCausalSoftmaxDescriptor(handle(), kept, tensor((7, 4))), "BAD_TENSOR_SHAPE")
    assert kept.value == "kept" and repr(kept) == "Ref('kept')"


def test_the_last_error_is_that_of_the_thread() -> None:
    is_(api.infiniopDestroyHandle(None), "NULL_POINTER")
    said: list[str] = []
    in_thread(lambda: said.append(last()))
    assert said == [""]
    assert last() == "infiniopDestroyHandle: handle is None; want an infiniopHandle_t"
    handle()
    assert last().startswith("infiniopDestroyHandle")  # a success leaves it


# Handles and tensors


@pytest.mark.parametrize("device", [0, 2, 3, -1, 99])
def test_another_kind_of_device(device: int) -> None:
    is_(
        api.infiniopCreateHandle(Ref(), device, 0),
        "DEVICE_TYPE_NOT_SUPPORTED",
        f"device is {device}; want INFINI_DEVICE_",
    )


@pytest.mark.parametrize("ordinal", [-1, 2**31, -(2**63)])
def test_an_ordinal_that_no_gpu_has(ordinal: int) -> None:
    is_(api.infiniopCreateHandle(Ref(), 1, ordinal), "DEVICE_NOT_FOUND", f"device_id is {ordinal};")


@pytest.mark.parametrize("array", [(2, 4, 7), [2, 4, 7], (ctypes.c_int64 * 3)(2, 4, 7)], ids=["tuple", "list", "C"])
def test_arrays_are_of_any_kind(array: Any) -> None:
    described = made(api.infiniopCreateTensorDescriptor, 3, array, array, F16)
    assert (described.shape, described.strides) == ((2, 4, 7), (2, 4, 7))


@pytest.mark.parametrize(
    ("ndim", "shape", "strides", "dtype"),
    [
        (2, (4, -1), None, F16),
        (2, (4, 2**63), None, F16),
        (2, (4, 7), (7, 2**63), F16),
        (2, (4, 7), (7,), F16),
        (3, (4, 7), None, F16),
        (-1, (), None, F16),
        (65, (1,) * 65, None, F16),
        (2, (4, 7.0), None, F16),
        (2, (4, 7), None, -1),
    ],
)
def test_what_c_could_not_take(ndim: int, shape: Any, strides: Any, dtype: int) -> None:
    is_(api.infiniopCreateTensorDescriptor(Ref(), ndim, shape, strides, dtype), "BAD_PARAM")


# What can be computed


@without_driver
@pytest.mark.parametrize(
    "shape", [(4, 7), (1, 1), (7, 7), (2, 3, 3), (1, 1, 300000), (0, 0), (0, 5), (2, 0, 5), (0, 3, 3)]
)
def test_shapes(shape: Shape) -> None:
    for dtype in (F16, F32, F64, BF16):
        descriptor = softmax(shape, dtype)
        assert descriptor.geometry.causal_offset == shape[-1] - shape[-2]


@without_driver
@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((), "want \\(Q, K\\)"),
        ((7,), "want \\(Q, K\\)"),
        ((1, 2, 4, 7), "want \\(Q, K\\)"),
        ((8, 7), "Q <= K"),
        ((2, 2, 1), "Q <= K"),
        ((1, 0), "Q <= K"),
        ((0, 3, 2), "Q <= K"),
        ((2**22, 1, 2**21 + 1), "at most 17592186044416 bytes"),
        ((2**62, 1, 2**62), "at most"),
    ],
)
def test_bad_shapes(shape: Shape, reason: str) -> None:
    is_(create(shape)[0], "BAD_TENSOR_SHAPE", reason)


@without_driver
@pytest.mark.parametrize("dtype", [0, 1, I32, 11, 15, 18, 20, 1000])
def test_bad_dtypes(dtype: int) -> None:
    is_(create((4, 7), dtype)[0], "BAD_TENSOR_DTYPE", rf"dtype is {dtype}; want one of INFINI_DTYPE_F16 \(12\)")


@without_driver
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((4, 7), (7, 1)),
        ((4, 7), (100, 1)),
        ((3, 4, 7), (7, 21, 1)),  # queries outermost in memory
        ((3, 4, 7), (10, 30, 1)),
        ((1, 4, 7), (0, 7, 1)),  # a stride that moves nothing
        ((3, 1, 7), (7, 0, 1)),
        ((4, 4, 7), (28, 7, 1)),
        ((0, 4, 7), (0, 0, 1)),  # no elements to share an address
        ((2, 4, 2**20), (2**42, 2**20, 1)),
    ],
)
def test_strides(shape: Shape, strides: Shape) -> None:
    assert {operand.strides for operand in softmax(shape, F16, strides).geometry.operands} == {strides}


@without_driver
@pytest.mark.parametrize(
    ("shape", "strides", "reason"),
    [
        ((4, 7), (1, 4), "want 1 as the last"),
        ((4, 7), (14, 2), "want 1 as the last"),
        ((4, 7), (7, 0), "want 1 as the last"),
        ((4, 7), (7, -1), "want 1 as the last"),
        ((1, 1), (1, 5), "want 1 as the last"),
        ((4, 7), (-7, 1), "want none below 0"),
        ((1, 4, 7), (-28, 7, 1), "want none below 0"),
        ((0, 4, 7), (-28, 7, 1), "want none below 0"),
        ((4, 7), (0, 1), "may not overlap"),
        ((4, 7), (6, 1), "may not overlap"),
        ((3, 4, 7), (0, 7, 1), "may not overlap"),
        ((3, 4, 7), (27, 7, 1), "may not overlap"),
        ((3, 4, 7), (7, 7, 1), "may not overlap"),
        ((3, 4, 7), (7, 20, 1), "may not overlap"),
        ((2, 4, 7), (2**44, 7, 1), "at most 17592186044416 bytes from"),
    ],
)
def test_bad_strides(shape: Shape, strides: Shape, reason: str) -> None:
    is_(create(shape, F16, strides)[0], "BAD_TENSOR_STRIDES", reason)


@without_driver
def test_rows_longer_than_any_kernel_takes() -> None:
    longest = max(entry.k[1] for entry in catalog.load().tables["fwd", "f16", "causal"])
    softmax((1, longest))
    is_(create((1, longest + 1))[0], "NOT_IMPLEMENTED", f"rows of {longest + 1} columns; the longest is {longest}")


@without_driver
def test_one_launch_holds_any_number_of_rows_that_memory_does() -> None:
    """Planning takes no time that a caller would notice as a hang."""
    assert len(softmax((2**40, 1, 8)).plans("sm_90")[0].launches) > 1


# Without a driver


@without_driver
@pytest.mark.parametrize("shape", [(4, 7), (3, 20000), (128, 300000), (2, 64, 300001), (129, 300000), (200000, 200000)])
@pytest.mark.parametrize("dtype", [F16, F64])
def test_workspace_is_the_largest_of_all_architectures_where_none_is_known(shape: Shape, dtype: int) -> None:
    descriptor = softmax(shape, dtype)
    wanted = [each.workspace_bytes for arch in catalog.load().architectures for each in descriptor.plans(arch)]
    assert len(wanted) == 2 * len(catalog.load().architectures)
    size = workspace_size(descriptor)
    assert size == max(wanted)
    assert (size > 0) == (shape[-1] > 16384 and shape[-2] <= 128), shape


@without_driver
def test_a_run_without_a_driver() -> None:
    """Says so, after it has looked at its arguments."""
    descriptor = softmax((3, 20000))
    size = workspace_size(descriptor)
    is_(run(descriptor, workspace=WORKSPACE, size=size), "DEVICE_NOT_INITIALIZED", "no CUDA driver: there is none")
    is_(run(descriptor, workspace=WORKSPACE, size=size - 1), "INSUFFICIENT_WORKSPACE", f"is {size - 1} bytes at 0x7f5")
    is_(run(descriptor, workspace=None, size=size), "INSUFFICIENT_WORKSPACE", f"at 0x0; want {size} bytes")
    is_(run(descriptor, workspace=WORKSPACE + 8, size=size), "BAD_PARAM", "want a multiple of 16")
    is_(run(softmax((4, 7))), "DEVICE_NOT_INITIALIZED")


@without_driver
@pytest.mark.parametrize(("dtype", "size"), [(F16, 2), (BF16, 2), (F32, 4), (F64, 8)])
def test_data_is_aligned_to_its_elements(dtype: int, size: int) -> None:
    descriptor = softmax((4, 7), dtype)
    for beyond in range(1, 16):
        wanted = "BAD_PARAM" if beyond % size else "DEVICE_NOT_INITIALIZED"
        is_(run(descriptor, data=DATA + beyond), wanted, f"multiple of the element's {size} bytes|no CUDA driver")


@without_driver
def test_data_ends_where_addresses_do() -> None:
    descriptor = softmax((4, 7), F16, (16, 1))
    end = 2**64 - (3 * 16 + 7) * 2
    is_(run(descriptor, data=end), "DEVICE_NOT_INITIALIZED")
    is_(run(descriptor, data=end + 2), "BAD_PARAM", "beyond 2\\^64")


@without_driver
@pytest.mark.parametrize("shape", EMPTY)
def test_an_empty_tensor_needs_neither_memory_nor_driver(shape: Shape) -> None:
    descriptor = softmax(shape)
    assert workspace_size(descriptor) == 0
    for data in (None, 0, DATA, DATA + 1):
        is_(run(descriptor, data=data, stream=None), "SUCCESS")
    is_(run(descriptor, data="nowhere"), "BAD_PARAM")


NOWHERE = """if True:
    from softmax_ops.infiniop import *
    handle, tensor, softmax = Ref(), Ref(), Ref()
    for device in (0, 5):
        print(int(infiniopCreateHandle(handle, INFINI_DEVICE_NVIDIA, device)))
        print(int(infiniopCreateTensorDescriptor(tensor, 2, (4, 7), None, INFINI_DTYPE_F16)))
        print(int(infiniopCreateCausalSoftmaxDescriptor(handle.value, softmax, tensor.value)))
        print(int(infiniopCausalSoftmax(softmax.value, None, 0, 1024, None)))
    print(infiniopGetLastError())
"""
BLOCK = """if True:
    import sys
    sys.modules.update(dict.fromkeys({!r}))
"""


@pytest.mark.parametrize(
    ("blocked", "reason"),
    [(["torch", "numpy"], "no CUDA driver: "), (["torch", "numpy", "cuda"], "cuda-bindings is not installed: ")],
)
def test_on_a_host_without_torch_and_without_a_driver(tmp_path: Path, blocked: list[str], reason: str) -> None:
    """A libcuda.so.1 that is an empty file is as good as none."""
    (tmp_path / "libcuda.so.1").touch()
    result = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked) + NOWHERE],
        env=stub_driver.environment(tmp_path),
        cwd=stub_driver.CHECKOUT,
        capture_output=True,
        text=True,
    )
    *codes, said = result.stdout.splitlines()
    assert codes == ["0", "0", "0", "7"] * 2, result
    assert said.startswith(f"infiniopCausalSoftmax: {reason}")


# What is launched


def expected(launch_plan: LaunchPlan, data: int = DATA, workspace: int = 0) -> list[bytes]:
    """The parameters of every launch: in place, nothing scaled."""
    values: dict[str, float] = {"x.address": data, "y.address": data, "workspace.address": workspace, "scale": 1.0}
    return [launch_plan.arguments(part, values) for part in launch_plan.launches]


def launched() -> list[bytes]:
    return [call.parameters for call in stub_driver.launches()]


@isolated
@on_the_stub
@pytest.mark.parametrize("dtype", [F16, F32, F64, BF16])
def test_a_run_launches_the_plan_of_the_datas_alignment(dtype: int) -> None:
    for shape, strides in [
        ((4, 7), None),
        ((5, 1000), None),
        ((3, 5, 1000), (1024, 4096, 1)),
        ((3, 5, 1000), (8000, 1001, 1)),
        ((2, 300000), None),
    ]:
        descriptor = softmax(shape, dtype, strides)
        size = workspace_size(descriptor)
        aligned, anywhere = descriptor.plans("sm_90")
        assert anywhere.variant.vec == 1 and (strides is not None or shape[-1] == 7 or aligned.variant.vec != 1 or size)
        for beyond, chosen in [(0, aligned), (16, aligned), (8, anywhere)]:
            stub_driver.forget()
            is_(run(descriptor, DATA + beyond, workspace=WORKSPACE, size=size), "SUCCESS")
            assert launched() == expected(chosen, DATA + beyond, WORKSPACE)
            for call in stub_driver.launches():
                assert (call.kernel.decode(), call.stream) == (chosen.variant.name, STREAM)


@isolated
@on_the_stub
def test_a_workspace_is_used_where_there_are_no_clusters() -> None:
    stub_driver.devices("sm_80", "sm_90")
    descriptor, other = softmax((3, 20000)), softmax((3, 20000), device=1)
    assert workspace_size(other) == 0
    size = workspace_size(descriptor)
    assert size == 3 * 5 * 8  # 5 pieces of 4096 columns, a maximum and a sum in f32
    for workspace, wrong in [(None, size), (0, size), (WORKSPACE, size - 1), (WORKSPACE, 0)]:
        is_(run(descriptor, workspace=workspace, size=wrong), "INSUFFICIENT_WORKSPACE")
    assert launched() == []
    is_(run(descriptor, workspace=WORKSPACE, size=size + 1), "SUCCESS")
    assert launched() == expected(descriptor.plans("sm_80")[0], DATA, WORKSPACE) and len(launched()) == 2
    is_(run(other), "SUCCESS")


@isolated
@on_the_stub
def test_streams_are_passed_through() -> None:
    """By a thread without a context, and by one that works in the device's."""
    descriptor = softmax((4, 7))
    for turn in range(2):
        for stream in (STREAM, 0, None, 2**63 + 1):
            is_(run(descriptor, stream=stream), "SUCCESS")
        driver.ensure_context(0)
        assert len(launched()) == 4 * (turn + 1)
    assert [call.stream for call in stub_driver.launches()] == [STREAM, 0, 0, 2**63 + 1] * 2
    assert all(call.device == 0 for call in stub_driver.launches())


@isolated
@on_the_stub
def test_a_descriptor_outlives_tensor_and_handle() -> None:
    ref, of, tensor_desc = Ref(), handle(), tensor((4, 7))
    is_(api.infiniopCreateCausalSoftmaxDescriptor(of, ref, tensor_desc), "SUCCESS")
    is_(api.infiniopDestroyTensorDescriptor(tensor_desc), "SUCCESS")
    is_(api.infiniopDestroyHandle(of), "SUCCESS")
    is_(run(ref.value), "SUCCESS")
    assert launched() == expected(ref.value.plans("sm_90")[0])


@isolated
@on_the_stub
def test_an_empty_tensor_launches_nothing() -> None:
    is_(run(softmax((0, 7)), data=None), "SUCCESS")
    assert names() == []


@isolated
@on_the_stub
def test_many_threads_share_a_descriptor_on_streams_of_their_own() -> None:
    descriptor = softmax((4, 7))
    start = threading.Barrier(8)
    stub_driver.forget()
    stub_driver.hesitate(1e-3)

    def work(number: int) -> None:
        start.wait()
        for turn in range(5):
            is_(run(descriptor, DATA + 1024 * number + 16 * turn, stream=number), "SUCCESS")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    aligned = descriptor.plans("sm_90")[0]
    assert {(call.stream, call.parameters) for call in stub_driver.launches()} == {
        (number, *expected(aligned, DATA + 1024 * number + 16 * turn)) for number in range(1, 9) for turn in range(5)
    }
    assert len(launched()) == 40


# Contexts


def current() -> int:
    """The number of the thread's context: 0 none, n + 1 that of device n."""
    return int(driver.check("cuCtxGetCurrent", driver.cuda.cuCtxGetCurrent()))


@isolated
@on_the_stub
@pytest.mark.parametrize("own", [0, 1, 2])
def test_the_context_is_the_devices_inside_and_the_threads_own_outside(own: int) -> None:
    """None, that of device 0, or that of device 1: when created and run for device 1, and when that fails."""
    stub_driver.devices("sm_90", "sm_90")
    softmax((4, 7))  # the driver is initialised
    driver.check("cuCtxSetCurrent", driver.cuda.cuCtxSetCurrent(own))
    descriptor = softmax((5, 7), device=1)
    assert current() == own
    for failing, status in [("", "SUCCESS"), ("cuLaunchKernelEx", "EXECUTION_FAILED")]:
        stub_driver.forget()
        stub_driver.fail(failing, 701)
        is_(run(descriptor, stream=0), status)
        assert [call.device for call in stub_driver.launches()] == [1]
        assert current() == own
    stub_driver.fail("cuLibraryLoadData", 200)
    is_(create((4, 1000), device=1)[0], "EXECUTION_FAILED")
    assert current() == own


# Graph captures


@isolated
@on_the_stub
def test_the_first_run_may_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """At either alignment: creating has loaded everything, and the descriptor holds it."""
    descriptor = softmax((4, 1000))
    monkeypatch.setattr(launcher, "executable", None)
    stub_driver.capture(STREAM)
    stub_driver.forget()
    for data in (DATA, DATA + 2):
        is_(run(descriptor, data), "SUCCESS")
    assert set(names()) == {"cuLaunchKernelEx", "cuCtxSetCurrent"} and len(launched()) == 2


@isolated
@on_the_stub
def test_what_is_not_loaded_is_not_captured() -> None:
    stub_driver.fail("cuInit", 100)
    descriptor = softmax((4, 7))
    stub_driver.fail("", 0)
    softmax((4, 1000))  # now the driver works
    stub_driver.capture(STREAM)
    is_(run(descriptor), "EXECUTION_FAILED", "NotLoaded: .* nothing can be loaded while a CUDA graph is")
    stub_driver.capture(0)
    is_(run(descriptor), "SUCCESS")


@isolated
@on_the_stub
def test_what_is_not_loaded_cannot_be_created_during_a_capture() -> None:
    """That the default stream would wait for. Nor after freeze(), until it is undone."""
    softmax((4, 7))
    stub_driver.capture(STREAM)
    is_(create((4, 1000))[0], "EXECUTION_FAILED", "NotLoaded: ")
    softmax((4, 7))
    stub_driver.capture(0)
    launcher.freeze()
    is_(create((4, 1000))[0], "EXECUTION_FAILED", "NotLoaded: ")
    softmax((4, 7))
    launcher.freeze(False)
    softmax((4, 1000))


# Failures


@isolated
@on_the_stub
def test_a_refused_launch_says_what_cuda_says() -> None:
    descriptor = softmax((4, 7))
    stub_driver.fail("cuLaunchKernelEx", 701)
    status = run(descriptor)
    is_(status, "EXECUTION_FAILED", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch$")
    assert status == api.INFINI_STATUS_EXECUTION_FAILED
    stub_driver.fail("", 0)
    is_(run(descriptor), "SUCCESS")


@isolated
@on_the_stub
def test_a_gpu_that_is_not_there() -> None:
    stub_driver.devices("sm_90", "sm_90")
    softmax((4, 7), device=1)
    is_(create((4, 7), device=2)[0], "DEVICE_NOT_FOUND", "there is no GPU 2: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE")


@isolated
@on_the_stub
def test_a_driver_that_works_later() -> None:
    """The descriptor was made without it: its first run loads, and finds what creating could not."""
    stub_driver.fail("cuInit", 100)
    descriptor, absent, long = softmax((4, 7)), softmax((4, 7), device=1), softmax((3, 20000))
    is_(run(descriptor), "DEVICE_NOT_INITIALIZED", "cuInit: CUDA_ERROR_NO_DEVICE")
    stub_driver.fail("", 0)
    is_(run(descriptor), "SUCCESS")
    is_(run(absent), "DEVICE_NOT_FOUND")
    size = workspace_size(long)
    assert size == 120  # of sm_80, though this GPU needs none
    is_(run(long), "INSUFFICIENT_WORKSPACE")
    is_(run(long, workspace=WORKSPACE, size=size), "SUCCESS")
    stub_driver.forget()
    is_(run(descriptor), "SUCCESS")
    assert set(names()) == {"cuCtxSetCurrent", "cuLaunchKernelEx"}


@isolated
def test_a_driver_that_is_too_old() -> None:
    stub_driver.version(11, 8)
    is_(run(softmax((4, 7))), "DEVICE_NOT_INITIALIZED", r"the driver is one of CUDA 11\.8")


@isolated
@pytest.mark.parametrize("arch", ["sm_60", "sm_120"])
def test_an_architecture_without_kernels(served: Callable[..., None], arch: str) -> None:
    """One that nothing ships for, and one that this bundle has nothing for; when created, and when first run."""
    stub_driver.devices(arch)
    stub_driver.fail("cuInit", 100)
    descriptor = softmax((4, 7))
    stub_driver.fail("", 0)
    is_(create((4, 7))[0], "DEVICE_ARCHITECTURE_NOT_SUPPORTED", f"no kernel softmax_fwd_f16_causal_tile_.* for {arch}:")
    is_(run(descriptor), "DEVICE_ARCHITECTURE_NOT_SUPPORTED")
    assert launched() == []


@isolated
@on_the_stub
def test_a_forked_process_has_no_driver() -> None:
    """Nor does the failure to use it there crash."""
    descriptor = softmax((4, 7))

    def child() -> None:
        is_(run(descriptor), "DEVICE_NOT_INITIALIZED", "before this process was forked")
        other = softmax((5, 7))
        is_(run(other), "DEVICE_NOT_INITIALIZED", "before this process was forked")

    assert in_child(child) == "done"
    is_(run(descriptor), "SUCCESS")


# The page


def examples() -> list[str]:
    page = (stub_driver.CHECKOUT / "docs" / "infiniop.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_first_example_needs_no_gpu(no_driver: None) -> None:
    names: dict[str, Any] = {}
    exec(examples()[0], names)
    assert names["size"].value == 0


@isolated
@on_the_stub
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(data_ptr=lambda: DATA)

    stream = SimpleNamespace(cuda_stream=STREAM)
    torch = SimpleNamespace(
        randn=allocate,
        empty=allocate,
        float16=None,
        uint8=None,
        cuda=SimpleNamespace(current_stream=lambda device: stream),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    names: dict[str, Any] = {}
    for each in examples():
        exec(each, names)
    assert launched() == expected(names["softmax"].value.plans("sm_90")[0])
    assert len(examples()) == 2 and not names["softmax"].value.alive


def test_the_page_names_every_code() -> None:
    page = (stub_driver.CHECKOUT / "docs" / "infiniop.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (`.*?`) \|", page, re.MULTILINE)
    assert {name.strip("`"): int(code) for code, named in rows for name in named.split(", ")} == CODES
