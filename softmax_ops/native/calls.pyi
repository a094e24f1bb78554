from collections.abc import Callable
from typing import Any

from torch import Tensor

class Launches:
    """The grids of a launch plan. Thread-safe: each launch has parameters of its own.

    launch_kernel  capsule of cuLaunchKernelEx, as cuda-bindings exports it to C.
    kernel         its handle.
    grids          address of a CUlaunchConfig, parameters, bytes that each operand's address moves.
    addresses      where in the parameters each operand's address stands.
    scale, fill    where they stand, and whether as float64; fill below 0: nowhere.
    workspace      where its address stands, or below 0, and its bytes.
    kept           objects that own what the addresses above point to.
    prepare        called by each thread's first launch, and by its first after a fork.
    fail           called with the status of a launch that the driver refused; raises.
    """

    def __init__(
        self,
        launch_kernel: object,
        kernel: int,
        grids: list[tuple[int, bytes, tuple[int, ...]]],
        addresses: tuple[int, ...],
        scale: tuple[int, bool],
        fill: tuple[int, bool],
        workspace: tuple[int, int],
        kept: object,
        prepare: Callable[[], object],
        fail: Callable[[int], object],
    ) -> None: ...
    def launch(self, addresses: tuple[int, ...], scale: float, stream: int, fill: float, workspace: int, /) -> None: ...

class Repeated:
    """A known call, by what softmax_ops.known.plain.Known knows. What `find` gives has its Launches as `native`."""

    def __init__(
        self,
        *,
        exchange: object,
        tensors: tuple[Tensor, ...],
        flags: tuple[object, object, object],
        target: int,
        masked: bool,
        backward: bool,
        bumps: bool,
        device: int,
        limit: float,
        is_like: Callable[..., bool],
        new_like: Callable[[Tensor], Tensor],
        find: Callable[[tuple[int, ...]], Any],
        new_scratch: Callable[[Tensor, int], Tensor],
        dispatch_modes: Callable[[], int],
        forward_ad: object,
        device_of_thread: Callable[[], int],
        stream_of: Callable[[int], int],
        increment_version: Callable[[tuple[Tensor, ...]], None],
    ) -> None: ...
    def run(
        self,
        first: Tensor,
        second: Tensor | None,
        scale: object,
        out: Tensor | None,
        causal: object,
        causal_offset: object,
        batch_invariant: object,
        /,
    ) -> Tensor | None: ...

def forget_threads() -> None:
    """After a fork: every thread has to be prepared again."""
