"""The operator: y_ij = exp(x_ij - m_i) / sum_j exp(x_ij - m_i) over j <= i + K - Q, 0 elsewhere, in place of x.

Create a descriptor once, run it often. Decisions that depend on the device are made when the descriptor is created if
the CUDA driver can be used, otherwise in the first run.
"""

from __future__ import annotations

from math import prod

from ..artifacts import catalog
from ..artifacts.constants import ACCESS_BYTES, DTYPE_BYTES
from ..planning.geometry import MAX_BYTES, Geometry, Operand, reach, strides_nest
from ..planning.launch_plan import LaunchPlan
from .descriptors import infiniDtype_t, infiniopHandle_t, infiniopTensorDescriptor_t
from .execution import Kernels, architecture, plans
from .status import (
    INFINI_STATUS_BAD_PARAM,
    INFINI_STATUS_BAD_TENSOR_DTYPE,
    INFINI_STATUS_BAD_TENSOR_SHAPE,
    INFINI_STATUS_BAD_TENSOR_STRIDES,
    INFINI_STATUS_DEVICE_NOT_INITIALIZED,
    INFINI_STATUS_INSUFFICIENT_WORKSPACE,
    INFINI_STATUS_NULL_POINTER,
    Failure,
    Opaque,
    Ref,
    address,
    answers,
    integer,
    opened,
    out,
)

_DTYPES: dict[int, str] = {
    infiniDtype_t.INFINI_DTYPE_F16: "f16",
    infiniDtype_t.INFINI_DTYPE_F32: "f32",
    infiniDtype_t.INFINI_DTYPE_F64: "f64",
    infiniDtype_t.INFINI_DTYPE_BF16: "bf16",
}


class infiniopCausalSoftmaxDescriptor_t(Opaque):
    """A tensor's geometry, its launch plans, and their kernels on a device. Threads may share it."""

    def __init__(self, geometry: Geometry, device: int):
        self.geometry = geometry  # for data aligned to ACCESS_BYTES
        self.device = device
        self.empty = prod(geometry.shape) == 0
        self.end_bytes = reach(geometry.shape, geometry.output.strides) * geometry.element_bytes  # end of the last
        self._kernels: Kernels | None = None
        self.workspace_bytes = 0 if self.empty else self._settle()

    def plans(self, arch: str) -> tuple[LaunchPlan, LaunchPlan]:
        """The plans on an architecture for data aligned to ACCESS_BYTES, and for data aligned only to its elements."""
        return plans(self.geometry, arch)

    def kernels(self, stream: int) -> Kernels:
        """The kernels of both plans on the device, which the first call loads."""
        if self._kernels is None:
            self._kernels = Kernels(self.plans(architecture(self.device)), self.device, stream)
        return self._kernels

    def _settle(self) -> int:
        """Loads what can be loaded. Returns the bytes of workspace that any run may need."""
        try:
            return self.kernels(stream=0).workspace_bytes
        except Failure as failure:
            if failure.status is not INFINI_STATUS_DEVICE_NOT_INITIALIZED:
                raise
        return max(each.workspace_bytes for arch in catalog.load().architectures for each in self.plans(arch))


@answers
def infiniopCreateCausalSoftmaxDescriptor(
    handle: infiniopHandle_t, desc_ptr: Ref, t_desc: infiniopTensorDescriptor_t
) -> None:
    """Prepares the causal softmax of tensors like t_desc on the handle's device.

    handle    of the device; no longer needed afterwards.
    desc_ptr  Ref() that receives the descriptor.
    t_desc    [Q, K] or [batch, Q, K] with Q <= K; F16, F32, F64 or BF16; last stride 1, the others positive and each
              beyond the reach of all smaller ones, so that no two elements share an address. Sizes of 0 are allowed.
              No longer needed afterwards.

    Loads the kernels, so that the first run may be captured into a CUDA graph. If the CUDA driver cannot be used, the
    descriptor is created anyway, and the first run loads them.

    Returns SUCCESS; BAD_TENSOR_DTYPE; BAD_TENSOR_SHAPE for another rank, Q > K, or more than 2^44 bytes;
    BAD_TENSOR_STRIDES; NOT_IMPLEMENTED for rows longer than any kernel supports; DEVICE_NOT_FOUND if the machine has no
    such GPU; DEVICE_ARCHITECTURE_NOT_SUPPORTED if no kernel for it is available; EXECUTION_FAILED if CUDA refuses to
    load one, or if loading is not possible: during a graph capture, or after softmax_ops.freeze(); NULL_POINTER, or
    BAD_PARAM for an object that was destroyed or is of another type.
    """
    device = opened(handle, infiniopHandle_t, "handle").device
    out(desc_ptr, "desc_ptr")
    tensor = opened(t_desc, infiniopTensorDescriptor_t, "t_desc")
    desc_ptr.value = infiniopCausalSoftmaxDescriptor_t(_geometry(tensor), device)


@answers
def infiniopGetCausalSoftmaxWorkspaceSize(desc: infiniopCausalSoftmaxDescriptor_t, size: Ref) -> None:
    """Bytes of workspace for each run of a descriptor, fixed at its creation: 0 for most shapes.

    A few long rows need some on GPUs without clusters. A descriptor that was created while the CUDA driver could not be
    used asks for what the most demanding architecture needs.

    Returns SUCCESS; NULL_POINTER; BAD_PARAM if desc was destroyed, or if either is of another type.
    """
    descriptor = opened(desc, infiniopCausalSoftmaxDescriptor_t, "desc")
    out(size, "size").value = descriptor.workspace_bytes


@answers
def infiniopCausalSoftmax(
    desc: infiniopCausalSoftmaxDescriptor_t,
    workspace: int | None,
    workspace_size: int,
    data: int | None,
    stream: int | None,
) -> None:
    """Launches the causal softmax of a tensor in device memory, in place.

    desc            for the tensor's shape, strides and element type, and for the device.
    workspace       address of device memory, a multiple of 16, that nothing else uses until the kernels are done; None
                    or 0 if no workspace is needed.
    workspace_size  its size in bytes.
    data            address of the tensor's first element, a multiple of the element size; None or 0 if it is empty.
    stream          CUstream of the device as an integer; None or 0 is the default stream of the device's context.

    The thread's current context is the same afterwards as before. An empty tensor launches nothing.

    Returns SUCCESS once launched; INSUFFICIENT_WORKSPACE; NULL_POINTER for data or desc; BAD_PARAM for a descriptor
    that was destroyed or is of another type, for misaligned addresses, and for arguments that are not numbers;
    DEVICE_NOT_INITIALIZED if the CUDA driver cannot be used (no driver, no GPU, a process forked after its first
    use); DEVICE_NOT_FOUND and DEVICE_ARCHITECTURE_NOT_SUPPORTED as at the descriptor's creation, if the driver could
    not be asked then; EXECUTION_FAILED if CUDA refuses the launch, or in a graph capture if no kernel was loaded
    before it.
    """
    descriptor = opened(desc, infiniopCausalSoftmaxDescriptor_t, "desc")
    scratch = address(workspace, "workspace")
    scratch_bytes = integer(workspace_size, "workspace_size", 0, 2**64)
    first = address(data, "data")
    queue = address(stream, "stream")
    if descriptor.empty:
        return
    _check_workspace(descriptor, scratch, scratch_bytes)
    _check_data(descriptor, first)
    descriptor.kernels(queue).launch(first, scratch, queue)


@answers
def infiniopDestroyCausalSoftmaxDescriptor(desc: infiniopCausalSoftmaxDescriptor_t) -> None:
    """Makes a descriptor unusable; runs that other threads have launched, or are launching, complete.

    Returns SUCCESS; NULL_POINTER for None; BAD_PARAM for another type of object, or one already destroyed.
    """
    opened(desc, infiniopCausalSoftmaxDescriptor_t, "desc").alive = False


def _geometry(tensor: infiniopTensorDescriptor_t) -> Geometry:
    """The geometry of a tensor that the operator supports, in place."""
    shape, strides = tensor.shape, tensor.strides
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        known = ", ".join(f"{each.name} ({each})" for each in infiniDtype_t)
        raise Failure(INFINI_STATUS_BAD_TENSOR_DTYPE, f"the tensor's dtype is {tensor.dtype}; want one of {known}")
    _check_shape(shape, DTYPE_BYTES[dtype])
    _check_strides(shape, strides, DTYPE_BYTES[dtype])
    operands = tuple(Operand(name, strides, ACCESS_BYTES, DTYPE_BYTES[dtype]) for name in ("x", "y"))
    return Geometry("fwd", dtype, "causal", shape, operands, causal_offset=shape[-1] - shape[-2])


def _check_shape(shape: tuple[int, ...], element_bytes: int) -> None:
    def refuse(what: str) -> Failure:
        return Failure(INFINI_STATUS_BAD_TENSOR_SHAPE, f"the tensor's shape is {shape}: {what}")

    if len(shape) not in (2, 3):
        raise refuse("want (Q, K) or (batch, Q, K)")
    if shape[-2] > shape[-1]:
        raise refuse("want no more queries than columns, Q <= K, for the last query sees column K - 1")
    if prod(shape) * element_bytes > MAX_BYTES:
        raise refuse(f"want at most {MAX_BYTES} bytes")


def _check_strides(shape: tuple[int, ...], strides: tuple[int, ...], element_bytes: int) -> None:
    """Last stride 1, and no two elements at the same address: each stride exceeds the reach of all smaller ones."""

    def refuse(what: str) -> Failure:
        return Failure(INFINI_STATUS_BAD_TENSOR_STRIDES, f"the strides of a tensor {shape} are {strides}: {what}")

    if strides[-1] != 1:
        raise refuse("want 1 as the last")
    if min(strides) < 0:
        raise refuse("want none below 0")
    if prod(shape) == 0:
        return
    if not strides_nest(shape, strides):
        raise refuse("want each beyond the reach of the smaller ones: in place, rows may not overlap")
    if reach(shape, strides) * element_bytes > MAX_BYTES:
        raise refuse(f"want at most {MAX_BYTES} bytes from the first element to the last")


def _check_workspace(descriptor: infiniopCausalSoftmaxDescriptor_t, workspace: int, size: int) -> None:
    needed = descriptor.workspace_bytes
    if needed == 0:
        return
    if workspace == 0 or size < needed:
        raise Failure(
            INFINI_STATUS_INSUFFICIENT_WORKSPACE,
            f"workspace is {size} bytes at {workspace:#x}; want {needed} bytes of device memory",
        )
    if workspace % ACCESS_BYTES:
        raise Failure(INFINI_STATUS_BAD_PARAM, f"workspace is at {workspace:#x}; want a multiple of {ACCESS_BYTES}")


def _check_data(descriptor: infiniopCausalSoftmaxDescriptor_t, data: int) -> None:
    size = descriptor.geometry.element_bytes
    if data == 0:
        raise Failure(INFINI_STATUS_NULL_POINTER, "data is null; want the address of the tensor's first element")
    if data % size:
        raise Failure(INFINI_STATUS_BAD_PARAM, f"data is at {data:#x}; want a multiple of the element's {size} bytes")
    if data + descriptor.end_bytes > 2**64:
        raise Failure(INFINI_STATUS_BAD_PARAM, f"data is at {data:#x}; the tensor's last element lies beyond 2^64")
