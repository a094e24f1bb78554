"""Checks of the torch interface: a call becomes a request, or an error that says what to change.

Only metadata is read (type, dtype, shape, strides, device, address): nothing is launched, copied or synchronised.
A valid call pays for the comparisons alone, since each message is built in the branch that raises it. A wrong Python
type raises TypeError, everything else ValueError. Every check takes the operation that its message names.
"""

from .backward import BackwardRequest, check_general_backward, check_softmax_backward
from .forward import check_masked_fill, check_softmax
from .general import check_general
from .request import Request

__all__ = [
    "BackwardRequest",
    "Request",
    "check_general",
    "check_general_backward",
    "check_masked_fill",
    "check_softmax",
    "check_softmax_backward",
]
