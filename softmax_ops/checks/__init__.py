"""Checks of the torch interface: a call becomes a request, or an error that says what to change.

Only metadata is read (type, dtype, shape, strides, device, address): nothing is launched, copied or synchronised.
A valid call pays for the comparisons alone, since each message is built in the branch that raises it. A wrong Python
type raises TypeError, everything else ValueError. Every check takes the operation that its message names.
"""

from .backward import BackwardRequest, check_softmax_backward
from .forward import Request, check_masked_fill, check_softmax

__all__ = ["BackwardRequest", "Request", "check_masked_fill", "check_softmax", "check_softmax_backward"]
