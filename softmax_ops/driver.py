"""The CUDA driver API as far as serving needs it: devices, loading a cubin once per process, launching. Needs no torch.

Nothing is initialised at import. Importing this module needs cuda-bindings, using it a driver.
"""

import ctypes
import os
from functools import cache

from cuda.bindings import driver as cuda

_DEFAULT_SHARED_LIMIT = 48 * 1024
"""Dynamic shared memory that a kernel may use without an attribute, in bytes."""

_forked = False


class DriverError(RuntimeError):
    """A call of the CUDA driver failed, or there is no driver; the message has the call and CUDA's own words."""


def _mark_forked() -> None:
    global _forked
    _forked = True


@cache
def _initialise() -> None:
    try:
        check("cuInit", cuda.cuInit(0))
    except RuntimeError as error:
        if isinstance(error, DriverError):
            raise
        raise DriverError(f"no CUDA driver: {error}") from None
    os.register_at_fork(after_in_child=_mark_forked)


def check(call: str, result: tuple):
    """The value of a driver call. Raises DriverError with the name and meaning of its status."""
    status, *values = result
    if status != cuda.CUresult.CUDA_SUCCESS:
        meaning = cuda.cuGetErrorString(status)[1]
        words = meaning.decode() if meaning else "unknown error"
        raise DriverError(f"{call}: {status.name}: {words}")
    return values[0] if len(values) == 1 else values


def refuse_after_fork() -> None:
    """CUDA does not survive a fork: the child's handles are the parent's."""
    if _forked:
        raise DriverError(
            "softmax_ops was used on a GPU before this process was forked, and CUDA does not survive a fork: "
            "start workers with the spawn method, or fork before the first GPU call."
        )


@cache
def architecture(device: int) -> str:
    """Of a device by its ordinal, such as "sm_90"."""
    _initialise()
    attribute = cuda.CUdevice_attribute
    handle = check("cuDeviceGet", cuda.cuDeviceGet(device))
    major, minor = (
        check("cuDeviceGetAttribute", cuda.cuDeviceGetAttribute(which, handle))
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return f"sm_{major}{minor}"


def ensure_context(device: int) -> None:
    """Makes the device's primary context current in a thread that has none: the default stream is the current one's."""
    _initialise()
    if int(check("cuCtxGetCurrent", cuda.cuCtxGetCurrent())) == 0:
        context = check(
            "cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(check("cuDeviceGet", cuda.cuDeviceGet(device)))
        )
        check("cuCtxSetCurrent", cuda.cuCtxSetCurrent(context))


def is_capturing(stream: int) -> bool:
    """Whether a CUDA graph is being captured on the stream."""
    status = check("cuStreamIsCapturing", cuda.cuStreamIsCapturing(cuda.CUstream(stream)))
    return status != cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE


class Kernel:
    """A loaded kernel: context-independent, so one handle serves every device of its architecture."""

    def __init__(self, name: str, code: bytes, shared_bytes: int):
        _initialise()
        library = check("cuLibraryLoadData", cuda.cuLibraryLoadData(code, [], [], 0, [], [], 0))
        self.name = name
        self.handle = check("cuLibraryGetKernel", cuda.cuLibraryGetKernel(library, name.encode()))
        self._library = library
        self._shared_bytes = shared_bytes
        self._ready: set[int] = set()

    def prepare(self, device: int) -> None:
        """Once per device, in its context: loads the code onto it and permits the shared memory that it needs."""
        if device in self._ready:
            return
        ensure_context(device)
        check("cuKernelGetFunction", cuda.cuKernelGetFunction(self.handle))
        if self._shared_bytes > _DEFAULT_SHARED_LIMIT:
            attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            handle = check("cuDeviceGet", cuda.cuDeviceGet(device))
            check("cuKernelSetAttribute", cuda.cuKernelSetAttribute(attribute, self._shared_bytes, self.handle, handle))
        self._ready.add(device)


class ArgumentBlock:
    """Memory for one kernel's parameter struct, and what the driver wants to be told of it. Never shared between
    threads: the driver reads it while the interpreter lock is released."""

    def __init__(self, template: bytes):
        self._memory = ctypes.create_string_buffer(template, len(template))
        self._pointers = (ctypes.c_void_p * 1)(ctypes.addressof(self._memory))
        self.buffer = memoryview(self._memory).cast("B")
        self.address = ctypes.addressof(self._pointers)


def launch_config(grid: int, block: int, cluster: int, shared_bytes: int) -> cuda.CUlaunchConfig:
    """Of a one-dimensional launch; its stream is set at each launch."""
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes = shared_bytes
    if cluster > 1:
        attribute = cuda.CUlaunchAttribute()
        attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = cluster, 1, 1
        config.attrs, config.numAttrs = [attribute], 1
    return config
