"""Handles and tensor descriptors: a tensor's form and its device. Nothing here queries a GPU."""

from collections.abc import Sequence
from enum import IntEnum

from ..planning.geometry import contiguous_strides
from .status import (
    INFINI_STATUS_BAD_PARAM,
    INFINI_STATUS_DEVICE_NOT_FOUND,
    INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
    INFINI_STATUS_NULL_POINTER,
    Failure,
    Opaque,
    Ref,
    answers,
    integer,
    opened,
    out,
)


class infiniDevice_t(IntEnum):
    """Kinds of devices. Only INFINI_DEVICE_NVIDIA is supported, of these and of InfiniOP's other numbers."""

    INFINI_DEVICE_CPU = 0
    INFINI_DEVICE_NVIDIA = 1


class infiniDtype_t(IntEnum):
    """Element types that have kernels. Tensors may be described with other numbers, which no operator here supports."""

    INFINI_DTYPE_F16 = 12
    INFINI_DTYPE_F32 = 13
    INFINI_DTYPE_F64 = 14
    INFINI_DTYPE_BF16 = 19


INFINI_DEVICE_CPU = infiniDevice_t.INFINI_DEVICE_CPU
INFINI_DEVICE_NVIDIA = infiniDevice_t.INFINI_DEVICE_NVIDIA
INFINI_DTYPE_F16 = infiniDtype_t.INFINI_DTYPE_F16
INFINI_DTYPE_F32 = infiniDtype_t.INFINI_DTYPE_F32
INFINI_DTYPE_F64 = infiniDtype_t.INFINI_DTYPE_F64
INFINI_DTYPE_BF16 = infiniDtype_t.INFINI_DTYPE_BF16

MAX_NDIM = 64
"""Largest number of dimensions of a tensor, the same as in torch and numpy."""


class infiniopHandle_t(Opaque):
    """One NVIDIA GPU, identified by its ordinal."""

    def __init__(self, device: int):
        self.device = device


class infiniopTensorDescriptor_t(Opaque):
    """Shape, strides in elements, and the number of the element type."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: int):
        self.shape = shape
        self.strides = strides
        self.dtype = dtype


@answers
def infiniopCreateHandle(handle_ptr: Ref, device: int, device_id: int) -> None:
    """Creates a handle for a device.

    handle_ptr  Ref() that receives the handle.
    device      INFINI_DEVICE_NVIDIA.
    device_id   ordinal of the GPU, as the CUDA driver counts them.

    Does not query the driver: a GPU that does not exist is reported when an operator's descriptor is created for it.

    Returns SUCCESS; DEVICE_TYPE_NOT_SUPPORTED (BAD_DEVICE) for any other kind of device; DEVICE_NOT_FOUND for an
    ordinal that no GPU can have; NULL_POINTER or BAD_PARAM if handle_ptr is not a Ref; BAD_PARAM for non-numbers.
    """
    out(handle_ptr, "handle_ptr")
    kind = integer(device, "device", -(2**31), 2**31)
    ordinal = integer(device_id, "device_id", -(2**63), 2**63)
    if kind != INFINI_DEVICE_NVIDIA:
        raise Failure(INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED, f"device is {kind}; want INFINI_DEVICE_NVIDIA (1)")
    if not 0 <= ordinal < 2**31:
        raise Failure(INFINI_STATUS_DEVICE_NOT_FOUND, f"device_id is {ordinal}; want the ordinal of a GPU, 0 or more")
    handle_ptr.value = infiniopHandle_t(ordinal)


@answers
def infiniopDestroyHandle(handle: infiniopHandle_t) -> None:
    """Makes a handle unusable. Descriptors that were created with it keep working.

    Returns SUCCESS; NULL_POINTER for None; BAD_PARAM for another type of object, or one already destroyed.
    """
    opened(handle, infiniopHandle_t, "handle").alive = False


@answers
def infiniopCreateTensorDescriptor(
    desc_ptr: Ref, ndim: int, shape: Sequence[int], strides: Sequence[int] | None, dtype: int
) -> None:
    """Describes a tensor.

    desc_ptr  Ref() that receives the descriptor.
    ndim      number of dimensions, at most 64.
    shape     ndim sizes in elements, 0 or more: a tuple, a list or an array.
    strides   ndim strides in elements; None for those of a contiguous tensor.
    dtype     INFINI_DTYPE_*. An operator that does not support it says so when its own descriptor is created.

    Returns SUCCESS; NULL_POINTER for a desc_ptr or shape of None; BAD_PARAM for anything else that is not as above.
    """
    out(desc_ptr, "desc_ptr")
    rank = integer(ndim, "ndim", 0, MAX_NDIM + 1)
    sizes = _numbers(shape, "shape", rank, low=0)
    steps = contiguous_strides(sizes) if strides is None else _numbers(strides, "strides", rank, low=-(2**63))
    desc_ptr.value = infiniopTensorDescriptor_t(sizes, steps, integer(dtype, "dtype", 0, 2**31))


@answers
def infiniopDestroyTensorDescriptor(desc: infiniopTensorDescriptor_t) -> None:
    """Makes a tensor descriptor unusable. Operators' descriptors that were created from it keep working.

    Returns SUCCESS; NULL_POINTER for None; BAD_PARAM for another type of object, or one already destroyed.
    """
    opened(desc, infiniopTensorDescriptor_t, "desc").alive = False


def _numbers(given: Sequence[int], name: str, count: int, *, low: int) -> tuple[int, ...]:
    """An array of ptrdiff_t or size_t, with one number per dimension."""
    if given is None:
        raise Failure(INFINI_STATUS_NULL_POINTER, f"{name} is None; want {count} integers")
    try:
        length = len(given)
        numbers = [given[i] for i in range(count)] if length == count else []
    except Exception:  # a foreign object may raise anything
        wrong = f"{name} is of type {type(given).__name__}; want {count} integers"
        raise Failure(INFINI_STATUS_BAD_PARAM, wrong) from None
    if length != count:
        raise Failure(INFINI_STATUS_BAD_PARAM, f"{name} has {length} elements; want {count}, which is ndim")
    return tuple(integer(number, f"{name}[{i}]", low, 2**63) for i, number in enumerate(numbers))
