"""Checks of the torch interface: a call becomes a request, or an error that says what to change.

Only metadata (type, dtype, shape, strides, device, address) and 0-d CPU tensors are read: nothing is synchronised.
Nothing is launched either, unless float32 values per row or head have to be widened for float64 rows.
A valid call pays only for the comparisons, since each message is built in the branch that raises it. A wrong Python
type raises TypeError, everything else ValueError. The parameter `op` of a check is the operation named in its message.
"""

from .backward import check_softmax_backward
from .forward import check_has_backward, check_masked_fill, check_softmax, without_backward
from .request import BackwardRequest, Request

__all__ = [
    "BackwardRequest",
    "Request",
    "check_has_backward",
    "check_masked_fill",
    "check_softmax",
    "check_softmax_backward",
    "without_backward",
]
