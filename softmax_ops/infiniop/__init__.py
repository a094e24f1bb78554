"""The InfiniOP causal softmax: its C interface in Python, over device addresses and a stream given as integers.

    from softmax_ops.infiniop import *

    handle, tensor, softmax, size = Ref(), Ref(), Ref(), Ref()
    infiniopCreateHandle(handle, INFINI_DEVICE_NVIDIA, 0)
    infiniopCreateTensorDescriptor(tensor, 3, (8, 512, 2048), None, INFINI_DTYPE_F16)
    infiniopCreateCausalSoftmaxDescriptor(handle.value, softmax, tensor.value)
    infiniopGetCausalSoftmaxWorkspaceSize(softmax.value, size)
    infiniopCausalSoftmax(softmax.value, workspace, size.value, data, stream)

Functions and arguments are those of the C interface, and so are the codes, of which more are returned than it lists:
docs/infiniop.md. An out-parameter is a `Ref()`, whose `value` is set on
success and otherwise left alone. Every function returns a code and never raises; infiniopGetLastError(), an addition
to the C interface, gives the reason in words. Needs no torch, and needs a GPU only to run.
"""

from .causal_softmax import (
    infiniopCausalSoftmax,
    infiniopCausalSoftmaxDescriptor_t,
    infiniopCreateCausalSoftmaxDescriptor,
    infiniopDestroyCausalSoftmaxDescriptor,
    infiniopGetCausalSoftmaxWorkspaceSize,
)
from .descriptors import (
    INFINI_DEVICE_CPU,
    INFINI_DEVICE_NVIDIA,
    INFINI_DTYPE_BF16,
    INFINI_DTYPE_F16,
    INFINI_DTYPE_F32,
    INFINI_DTYPE_F64,
    infiniDevice_t,
    infiniDtype_t,
    infiniopCreateHandle,
    infiniopCreateTensorDescriptor,
    infiniopDestroyHandle,
    infiniopDestroyTensorDescriptor,
    infiniopHandle_t,
    infiniopTensorDescriptor_t,
)
from .status import (
    INFINI_STATUS_BAD_DEVICE,
    INFINI_STATUS_BAD_PARAM,
    INFINI_STATUS_BAD_TENSOR_DTYPE,
    INFINI_STATUS_BAD_TENSOR_SHAPE,
    INFINI_STATUS_BAD_TENSOR_STRIDES,
    INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED,
    INFINI_STATUS_DEVICE_NOT_FOUND,
    INFINI_STATUS_DEVICE_NOT_INITIALIZED,
    INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
    INFINI_STATUS_EXECUTION_FAILED,
    INFINI_STATUS_INSUFFICIENT_WORKSPACE,
    INFINI_STATUS_INTERNAL_ERROR,
    INFINI_STATUS_NOT_IMPLEMENTED,
    INFINI_STATUS_NULL_POINTER,
    INFINI_STATUS_SUCCESS,
    Ref,
    infiniopGetLastError,
    infiniopStatus_t,
    infiniStatus_t,
)

__all__ = [
    "INFINI_DEVICE_CPU",
    "INFINI_DEVICE_NVIDIA",
    "INFINI_DTYPE_BF16",
    "INFINI_DTYPE_F16",
    "INFINI_DTYPE_F32",
    "INFINI_DTYPE_F64",
    "INFINI_STATUS_BAD_DEVICE",
    "INFINI_STATUS_BAD_PARAM",
    "INFINI_STATUS_BAD_TENSOR_DTYPE",
    "INFINI_STATUS_BAD_TENSOR_SHAPE",
    "INFINI_STATUS_BAD_TENSOR_STRIDES",
    "INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED",
    "INFINI_STATUS_DEVICE_NOT_FOUND",
    "INFINI_STATUS_DEVICE_NOT_INITIALIZED",
    "INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED",
    "INFINI_STATUS_EXECUTION_FAILED",
    "INFINI_STATUS_INSUFFICIENT_WORKSPACE",
    "INFINI_STATUS_INTERNAL_ERROR",
    "INFINI_STATUS_NOT_IMPLEMENTED",
    "INFINI_STATUS_NULL_POINTER",
    "INFINI_STATUS_SUCCESS",
    "Ref",
    "infiniDevice_t",
    "infiniDtype_t",
    "infiniStatus_t",
    "infiniopCausalSoftmax",
    "infiniopCausalSoftmaxDescriptor_t",
    "infiniopCreateCausalSoftmaxDescriptor",
    "infiniopCreateHandle",
    "infiniopCreateTensorDescriptor",
    "infiniopDestroyCausalSoftmaxDescriptor",
    "infiniopDestroyHandle",
    "infiniopDestroyTensorDescriptor",
    "infiniopGetCausalSoftmaxWorkspaceSize",
    "infiniopGetLastError",
    "infiniopHandle_t",
    "infiniopStatus_t",
    "infiniopTensorDescriptor_t",
]
