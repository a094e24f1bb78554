"""CPU tensors that pose as tensors on a GPU whose driver is the stub."""

from collections.abc import Callable

from softmax_ops import current


def pose(patch: Callable[[object, str, object], None], stream: int) -> None:
    """Puts every tensor on device 0, with this as its current stream. `patch` sets an attribute of a module.

    Device and stream are functions implemented in C, as in torch.
    """
    patch(current, "on_gpu", lambda tensor: True)
    patch(current, "ordinal", lambda tensor: 0)
    patch(current, "exchange_device", (0,).__getitem__)
    patch(current, "restore_device", (0,).__getitem__)
    patch(current, "stream", (stream,).__getitem__)
