"""Which architectures to build for: those named, those of the GPUs in this machine, or a stated default."""

from collections.abc import Iterable

from cuda.bindings import driver

from .toolchain import DEFAULT_ARCHITECTURE, check_architectures


def default_architectures(named: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """(architectures, why these). Raises ToolchainError for one that the toolchain cannot build."""
    named = tuple(named)
    if named:
        return check_architectures(named), "as named"
    found = _devices()
    if found:
        return check_architectures(found), "the GPUs of this machine"
    return check_architectures([DEFAULT_ARCHITECTURE]), "no GPU found: the default"


def _devices() -> list[str]:
    """Architectures of the GPUs here; none where there is no driver."""
    try:
        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return []
    except RuntimeError:  # cuda-bindings found no driver library
        return []
    capability = driver.CUdevice_attribute
    count = driver.cuDeviceGetCount()[1]
    return sorted(
        {
            "sm_{}{}".format(
                driver.cuDeviceGetAttribute(capability.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ordinal)[1],
                driver.cuDeviceGetAttribute(capability.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, ordinal)[1],
            )
            for ordinal in range(count)
        }
    )
