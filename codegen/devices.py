"""Which architectures to build for: those named, those of the GPUs in this machine, or a stated default."""

from collections.abc import Iterable

from cuda.bindings import driver

from softmax_ops.artifacts.cubin import built_for

from .toolchain import DEFAULT_ARCHITECTURE, check_architectures, supported_architectures
from .variants import ARCHITECTURES


def default_architectures(named: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """(architectures, why these). Raises ToolchainError for one that the toolchain cannot build, if it is named or no
    kernel can be built for any GPU here."""
    named = tuple(named)
    if named:
        return check_architectures(named), "as named"
    gpus = _devices()
    built = {gpu: built_for(gpu, supported_architectures()) for gpu in gpus}
    without = [gpu for gpu in gpus if built[gpu] is None]
    if found := {arch for arch in built.values() if arch is not None}:
        return check_architectures(found), "the GPUs of this machine" + "".join(f", without {gpu}" for gpu in without)
    of_another_toolchain = [gpu for gpu in without if gpu in ARCHITECTURES]
    if of_another_toolchain:
        return check_architectures(of_another_toolchain), "the GPUs of this machine"
    why = f"no kernels for {', '.join(without)}, found here" if without else "no GPU found"
    return check_architectures([DEFAULT_ARCHITECTURE]), f"{why}: the default"


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
