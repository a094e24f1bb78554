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
    """Architectures of the GPUs here; none without a driver."""
    try:
        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return []
    except RuntimeError:  # cuda-bindings found no driver library
        return []
    return sorted({_architecture(ordinal) for ordinal in range(driver.cuDeviceGetCount()[1])})


def _architecture(ordinal: int) -> str:
    attribute = driver.CUdevice_attribute
    major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ordinal)[1]
    minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, ordinal)[1]
    return f"sm_{major}{minor}"
