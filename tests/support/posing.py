"""CPU tensors that pose as those of a GPU whose driver is the stub."""

from collections.abc import Callable

from softmax_ops import current


def pose(patch: Callable[[object, str, object], None], stream: int) -> None:
    """Every tensor is on device 0, whose current stream this is. `patch` sets an attribute of a module.

    Device and stream are asked for in C, as torch does.
    """
    patch(current, "on_gpu", lambda tensor: True)
    patch(current, "ordinal", lambda tensor: 0)
    patch(current, "exchange_device", (0,).__getitem__)
    patch(current, "restore_device", (0,).__getitem__)
    patch(current, "stream", (stream,).__getitem__)
