"""Where torch is working: devices by their ordinal, streams by their address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def ordinal(tensor: Tensor) -> int:
    """Of the GPU that a tensor is on."""
    return tensor.device.index


# As torch.cuda.current_device and current_stream, but an integer each, without a look at whether CUDA is initialised
# (which it is once there is a tensor on a GPU) and without an object around it: 2 us less. A torch without CUDA has
# neither, and no tensors to ask about.
device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
stream = getattr(torch._C, "_cuda_getCurrentRawStream", lambda device: torch.cuda.current_stream(device).cuda_stream)


def _increment_version() -> Any:
    """torch.autograd.graph.increment_version of a tuple of tensors, at half its cost where this torch takes one."""
    fast = torch._C._increment_version
    try:
        fast((torch.empty(0),))
    except (TypeError, RuntimeError):  # before torch 2.6: a single tensor
        return lambda tensors: fast(tensors[0])
    return fast


increment_version: Callable[[tuple[Tensor, ...]], None] = _increment_version()
