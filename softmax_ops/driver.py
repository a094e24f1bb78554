"""The part of the CUDA driver API that serving needs: devices, loading a cubin, launching. Needs no torch.

Nothing is initialised at import. Importing this module needs cuda-bindings, using it a driver.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from cuda.bindings import driver as cuda

_OLDEST = (12, 0)
"""Oldest CUDA version that the driver must support: it introduced libraries, as which kernels are loaded."""

_DEFAULT_SHARED_LIMIT = 48 * 1024
"""Dynamic shared memory in bytes that a kernel may use without setting an attribute."""

_PORTABLE_CLUSTER = 8
"""CTAs that a cluster may have without setting an attribute."""

forked = False
"""Whether this process was forked from one that had used the driver: no driver call works in it."""


class DriverError(RuntimeError):
    """A call of the CUDA driver failed, or there is no driver; the message has the call and CUDA's description."""


def _mark_forked() -> None:
    global forked
    forked = True


@cache
def _initialise() -> None:
    try:
        status = cuda.cuInit(0)
    except RuntimeError as error:
        raise DriverError(f"no CUDA driver: {error}; want driver 525 or newer") from None
    check("cuInit", status)
    if cuda_version() < _OLDEST:
        raise DriverError(f"{_described()}, and softmax_ops wants one of 12.0 or newer: install driver 525 or newer")
    os.register_at_fork(after_in_child=_mark_forked)


@cache
def cuda_version() -> tuple[int, int]:
    """The CUDA version that the driver supports, such as (12, 4)."""
    number = check("cuDriverGetVersion", cuda.cuDriverGetVersion())
    return number // 1000, number % 1000 // 10


def _described() -> str:
    return "the driver is one of CUDA {}.{}".format(*cuda_version())


def check(call: str, result: tuple):
    """The result of a driver call. Raises DriverError with the name and meaning of its status."""
    status, *values = result
    if status != cuda.CUresult.CUDA_SUCCESS:
        meaning = cuda.cuGetErrorString(status)[1]
        words = meaning.decode() if meaning else "unknown error"
        raise DriverError(f"{call}: {status.name}: {words}")
    return values[0] if len(values) == 1 else values


def refuse_after_fork() -> None:
    """CUDA does not survive a fork: the child's handles are the parent's."""
    if forked:
        raise DriverError(
            "softmax_ops was used on a GPU before this process was forked, and CUDA does not survive a fork: "
            "start workers with the spawn method, or fork before the first GPU call."
        )


@cache
def architecture(device: int) -> str:
    """The architecture of a device, by its ordinal: such as "sm_90"."""
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


def architectures() -> list[str]:
    """The architectures of all devices, by ordinal."""
    _initialise()
    return [architecture(device) for device in range(check("cuDeviceGetCount", cuda.cuDeviceGetCount()))]


@cache
def _primary_context(device: int) -> cuda.CUcontext:
    handle = check("cuDeviceGet", cuda.cuDeviceGet(device))
    return check("cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(handle))


def ensure_context(device: int) -> None:
    """Makes the device's primary context current in a thread without one; the default stream is that of the context."""
    _initialise()
    if int(check("cuCtxGetCurrent", cuda.cuCtxGetCurrent())) == 0:
        check("cuCtxSetCurrent", cuda.cuCtxSetCurrent(_primary_context(device)))


@contextmanager
def context_of(device: int) -> Iterator[None]:
    """Makes a context of the device current inside: the thread's own if it is the device's, else the primary one.

    Afterwards the thread's own context is current again, or none if it had none.
    """
    _initialise()
    own = check("cuCtxGetCurrent", cuda.cuCtxGetCurrent())
    if int(own) and int(check("cuCtxGetDevice", cuda.cuCtxGetDevice())) == device:
        yield
        return
    check("cuCtxSetCurrent", cuda.cuCtxSetCurrent(_primary_context(device)))
    try:
        yield
    finally:
        check("cuCtxSetCurrent", cuda.cuCtxSetCurrent(own))


def stream_handle(stream: int) -> int:
    """What the driver calls a stream: torch's default stream, 0, is the legacy one, also where
    CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM makes 0 mean the thread's own."""
    return stream or int(cuda.CU_STREAM_LEGACY)


def is_capturing(stream: int) -> bool:
    """Whether a CUDA graph is being captured on the stream, or on a stream that the default stream (0) would wait
    for."""
    _initialise()
    result = cuda.cuStreamIsCapturing(cuda.CUstream(stream_handle(stream)))
    if result[0] == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_IMPLICIT:
        return True
    if result[0] == cuda.CUresult.CUDA_ERROR_INVALID_CONTEXT:  # a thread without a context has nothing to capture
        return False
    return check("cuStreamIsCapturing", result) != cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE


@contextmanager
def beside_captures() -> Iterator[None]:
    """Allows loading inside while other threads capture CUDA graphs.

    By default CUDA refuses allocations and loads of other threads during a capture, and invalidates the capture.
    """
    relaxed = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    own = check("cuThreadExchangeStreamCaptureMode", cuda.cuThreadExchangeStreamCaptureMode(relaxed))
    try:
        yield
    finally:
        check("cuThreadExchangeStreamCaptureMode", cuda.cuThreadExchangeStreamCaptureMode(own))


class Kernel:
    """A loaded kernel: context-independent, so one handle serves every device of its architecture."""

    def __init__(self, name: str, code: bytes, shared_bytes: int, threads: int = 0, cluster: int = 1):
        """`threads` (per CTA) and `cluster` (CTAs per cluster) are the most that a launch may have."""
        _initialise()
        call = f"cuLibraryLoadData of {name} ({_described()})"  # cubins of a later toolchain need a later driver
        library = check(call, cuda.cuLibraryLoadData(code, [], [], 0, [], [], 0))
        self._kernel = check("cuLibraryGetKernel", cuda.cuLibraryGetKernel(library, name.encode()))
        self.handle = cuda.CUfunction(int(self._kernel))  # any other type is converted at each launch
        self._library = library
        self._shared_bytes, self._threads, self._cluster = shared_bytes, threads, cluster
        self._schedulable: dict[int, int] = {}  # by device: CTAs of the largest cluster that it can run
        self._ready: set[int] = set()
        self._large_clusters: set[int] = set()

    def prepare(self, device: int) -> None:
        """Once per device: loads the code onto it and permits the shared memory that the kernel needs."""
        if device in self._ready:
            return
        with context_of(device):
            _load(check("cuKernelGetFunction", cuda.cuKernelGetFunction(self._kernel)))
            if self._shared_bytes > _DEFAULT_SHARED_LIMIT:
                self._permit("MAX_DYNAMIC_SHARED_SIZE_BYTES", self._shared_bytes, device)
            if self._cluster > 1:
                portable = (2**log for log in range(_PORTABLE_CLUSTER.bit_length() - 1, 0, -1))
                self._schedulable[device] = next(filter(self._runs_clusters, portable), 1)
        self._ready.add(device)

    def is_ready(self, device: int, cluster: int) -> bool:
        """Whether a launch with clusters of this many CTAs needs neither `prepare` nor `permit_cluster`."""
        return device in self._ready and (cluster <= _PORTABLE_CLUSTER or device in self._large_clusters)

    def permit_cluster(self, ctas: int, device: int) -> None:
        """Once per device, for clusters of more CTAs than every GPU with clusters supports."""
        if ctas > _PORTABLE_CLUSTER and device not in self._large_clusters:
            self._permit("NON_PORTABLE_CLUSTER_SIZE_ALLOWED", 1, device)
            with context_of(device):
                if self._cluster > 1 and self._runs_clusters(ctas):
                    self._schedulable[device] = ctas
            self._large_clusters.add(device)

    def can_run(self, cluster: int, device: int) -> bool:
        """False if the device is known to have no room for a cluster of this many CTAs, because the GPU is partitioned
        (MIG) or has few multiprocessors in each of its clusters."""
        return cluster <= self._schedulable.get(device, cluster) or not self.is_ready(device, cluster)

    def _runs_clusters(self, ctas: int) -> bool:
        """Whether the current context's device can run such clusters. True if the driver cannot tell: the launch
        will."""
        config = launch_config(ctas, self._threads, ctas, self._shared_bytes)
        status, clusters = cuda.cuOccupancyMaxActiveClusters(self.handle, config)
        if status == cuda.CUresult.CUDA_SUCCESS:
            return clusters > 0
        return status != cuda.CUresult.CUDA_ERROR_INVALID_CLUSTER_SIZE

    def _permit(self, attribute: str, value: int, device: int) -> None:
        which = getattr(cuda.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{attribute}")
        handle = check("cuDeviceGet", cuda.cuDeviceGet(device))
        check("cuKernelSetAttribute", cuda.cuKernelSetAttribute(which, value, self._kernel, handle))


def _load(function: cuda.CUfunction) -> None:
    """Finishes what the driver may have put off until the first launch, which would fail in a capture. Drivers before
    CUDA 12.4 have no call for it, but load a function that is asked about."""
    try:
        call, result = "cuFuncLoad", cuda.cuFuncLoad(function)
    except (AttributeError, RuntimeError):  # of bindings, and of a driver, that lack it
        registers = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS
        call, result = "cuFuncGetAttribute", cuda.cuFuncGetAttribute(registers, function)
    check(call, result)


class ArgumentBlock:
    """Memory for one kernel's parameter struct, and the array of pointers that the driver takes.

    Never shared between threads: the driver reads it while the interpreter lock is released.
    """

    def __init__(self, template: bytes):
        self._memory = ctypes.create_string_buffer(template, len(template))
        self._pointers = (ctypes.c_void_p * 1)(ctypes.addressof(self._memory))
        self.buffer = memoryview(self._memory).cast("B")
        self.address = ctypes.addressof(self._pointers)


def launch_config(grid: int, block: int, cluster: int, shared_bytes: int) -> cuda.CUlaunchConfig:
    """Configuration of a one-dimensional launch; the stream is set before each launch."""
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
