"""The InfiniOP causal softmax: what each function returns, without a GPU."""

import ctypes
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softmax_ops import infiniop
from softmax_ops.artifacts import catalog
from softmax_ops.planning.launch_plan import plan
from tests.support import stub_driver
from tests.support.infiniop import (
    BF16,
    CODES,
    DATA,
    EMPTY,
    F16,
    F32,
    F64,
    I32,
    WORKSPACE,
    Ref,
    Shape,
    api,
    create,
    handle,
    is_,
    last,
    made,
    no_driver,
    run,
    softmax,
    tensor,
    without_driver,
    workspace_size,
)
from tests.support.launches import STREAM, in_thread

__all__ = ["no_driver"]  # a fixture


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


# Arguments of any kind


class Hostile:
    """Raises on every access, and its exception raises when converted to text."""

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
    """Valid arguments for every function."""
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
    """Alone among valid arguments, and with all arguments invalid at once."""
    for name, arguments in calls().items():
        function = getattr(api, name)
        for wrong in strange():
            for position in range(len(arguments)):
                is_(function(*arguments[:position], wrong, *arguments[position + 1 :]), "BAD_PARAM", f"^{name}: ")
            is_(function(*[wrong] * len(arguments)), "BAD_PARAM", f"^{name}: ")


@without_driver
def test_the_place_of_a_value_is_not_the_value() -> None:
    descriptor = Ref(softmax((4, 7)))
    is_(api.infiniopDestroyCausalSoftmaxDescriptor(descriptor), "BAD_PARAM", r"desc is of type Ref \(pass its .value\)")
    data = ctypes.c_void_p(DATA)
    is_(run(descriptor.value, data), "BAD_PARAM", r"data is of type c_void_p \(pass its .value\); want an integer")


def test_right_arguments_are_right() -> None:
    """The arguments that the previous test replaces are valid."""
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
    assert last().startswith("infiniopDestroyHandle")  # a success leaves it unchanged


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


# Which tensors are supported


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
        ((1, 4, 7), (0, 7, 1)),  # a stride of 0
        ((3, 1, 7), (7, 0, 1)),
        ((4, 4, 7), (28, 7, 1)),
        ((0, 4, 7), (0, 0, 1)),  # no elements that could share an address
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
    """Planning does not take so long that a caller would notice."""
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
    of_partitions = [
        plan(descriptor.geometry, catalog.load(), arch, largest_cluster).workspace_bytes
        for arch in catalog.load().architectures
        for largest_cluster in (1, 2, 4, 8)
    ]
    assert size >= max(of_partitions), "of a GPU whose partition has no place for larger clusters"
    assert (size > 0) == (shape[-1] > 16384 and shape[-2] <= 128), shape


@without_driver
def test_a_run_without_a_driver() -> None:
    """It checks its arguments first, then reports the missing driver."""
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
    """A libcuda.so.1 that is an empty file counts as missing."""
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
