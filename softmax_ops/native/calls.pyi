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
    prepare        called by each thread's first launch, by its first after a fork, and where its context is gone.
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
    """A known call, by what softmax_ops.known.call.Known knows. What `find` gives has its Launches as `native`.

    Without a usable `exchange` it asks tensors for their addresses, and `is_like` has to compare layouts too.
    """

    def __init__(
        self,
        *,
        exchange: object,
        kinds: tuple[int, ...],
        values: tuple[object, ...],
        tensors: tuple[Tensor, ...],
        operands: tuple[int, ...],
        like: int,
        out: int,
        scale: float,
        fill: float,
        limit: float,
        bumps: bool,
        is_like: Callable[..., bool],
        find: Callable[[tuple[int, ...]], Any],
        new_result: Callable[[Tensor], Tensor],
        new_rows: Callable[[Tensor], Tensor] | None,
        new_scratch: Callable[[Tensor, int], Tensor],
        records: Callable[[], bool] | None,
        recorded: Callable[..., Any] | None,
        dispatch_modes: Callable[[], int],
        forward_ad: object,
        device: int,
        exchange_device: Callable[[int], int],
        restore_device: Callable[[int], object],
        stream_of: Callable[[int], int],
        increment_version: Callable[[tuple[Tensor, ...]], None],
    ) -> None: ...
    def run(self, *arguments: object) -> Any: ...
    def knows(self, *arguments: object) -> bool: ...

class Recent:
    """A few known calls with as many arguments each: runs the first that the given ones are arguments of."""

    def put(self, repeated: Repeated, /) -> None: ...
    def run(self, *arguments: object) -> Any: ...

def forget_threads() -> None:
    """After a fork: every thread has to be prepared again."""

def is_exchange(exchange: object, /) -> bool:
    """Whether a Repeated can ask this DLPack exchange about tensors."""
