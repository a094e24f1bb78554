"""The current device and stream of torch: devices by their ordinal, streams by their address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def ordinal(tensor: Tensor) -> int:
    """Ordinal of the GPU that a tensor is on."""
    return tensor.device.index


# The first two do what torch.cuda.device does on entry and exit: one makes a device current and returns the previous
# device; the other makes that one current again, but only if it has a context, so as not to create one. The third is
# torch.cuda.current_stream as an integer, without the check that CUDA is initialised (it is once there is a tensor on a
# GPU) and without a Stream object: 2 us less. A torch without CUDA lacks all three, and has no tensors on a GPU.
exchange_device = getattr(torch._C, "_cuda_exchangeDevice", torch.cuda._exchange_device)
restore_device = getattr(torch._C, "_cuda_maybeExchangeDevice", torch.cuda._maybe_exchange_device)
stream = getattr(torch._C, "_cuda_getCurrentRawStream", lambda device: torch.cuda.current_stream(device).cuda_stream)


@contextmanager
def working_on(device: int) -> Iterator[None]:
    """Makes `device` current inside, because the default stream is that of the current device."""
    previous = exchange_device(device)
    try:
        yield
    finally:
        restore_device(previous)


increment_version: Callable[[tuple[Tensor, ...]], None] = (
    torch._C._increment_version
    if torch.__version__ >= "2.6.0a0"
    else lambda tensors: torch._C._increment_version(tensors[0])  # it takes a single tensor
)
"""torch.autograd.graph.increment_version of a tuple of tensors, at half its cost."""
