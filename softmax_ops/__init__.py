"""Fused softmax kernels for attention and sampling: scale, mask and softmax in one kernel.

    import softmax_ops
    y = softmax_ops.softmax(scores, scale=0.125, mask=mask, causal=True)

Names that need torch are resolved at first use: importing the package, its artifacts and its planning needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import explain, log_softmax, log_softmax_backward, softmax, softmax_, softmax_backward
    from .driver import DriverError
    from .launcher import NotLoaded, freeze
    from .modules import FusedSoftmax
    from .planned import Planned, PlannedBackward, plan
    from .planning.selection import NoVariant
    from .resolve import KernelNotFound
    from .serving import Call, warm_up

__version__ = "0.1.0"

_HOMES = {
    "log_softmax": "api",
    "log_softmax_backward": "api",
    "softmax": "api",
    "softmax_": "api",
    "softmax_backward": "api",
    "explain": "api",
    "DriverError": "driver",
    "NotLoaded": "launcher",
    "freeze": "launcher",
    "FusedSoftmax": "modules",
    "Planned": "planned",
    "PlannedBackward": "planned",
    "plan": "planned",
    "NoVariant": "planning.selection",
    "Call": "serving",
    "warm_up": "serving",
    "KernelNotFound": "resolve",
}

__all__ = [
    "Call",
    "DriverError",
    "FusedSoftmax",
    "KernelNotFound",
    "NoVariant",
    "NotLoaded",
    "Planned",
    "PlannedBackward",
    "__version__",
    "explain",
    "freeze",
    "log_softmax",
    "log_softmax_backward",
    "plan",
    "softmax",
    "softmax_",
    "softmax_backward",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
