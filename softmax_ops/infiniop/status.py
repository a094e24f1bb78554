"""Status codes, out-parameters, and how every function treats its arguments: checks each, returns one code."""

import threading
from collections.abc import Callable
from enum import IntEnum
from functools import wraps
from operator import index
from traceback import format_exception_only
from typing import Any, ParamSpec, TypeVar


class infiniStatus_t(IntEnum):
    """The result of a function. Two of the numbers have a second name."""

    INFINI_STATUS_SUCCESS = 0
    INFINI_STATUS_INTERNAL_ERROR = 1
    INFINI_STATUS_EXECUTION_FAILED = 1
    INFINI_STATUS_NOT_IMPLEMENTED = 2
    INFINI_STATUS_BAD_PARAM = 3
    INFINI_STATUS_NULL_POINTER = 4
    INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED = 5
    INFINI_STATUS_BAD_DEVICE = 5
    INFINI_STATUS_DEVICE_NOT_FOUND = 6
    INFINI_STATUS_DEVICE_NOT_INITIALIZED = 7
    INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED = 8
    INFINI_STATUS_BAD_TENSOR_DTYPE = 10
    INFINI_STATUS_BAD_TENSOR_SHAPE = 11
    INFINI_STATUS_BAD_TENSOR_STRIDES = 12
    INFINI_STATUS_INSUFFICIENT_WORKSPACE = 13


INFINI_STATUS_SUCCESS = infiniStatus_t.INFINI_STATUS_SUCCESS
INFINI_STATUS_INTERNAL_ERROR = infiniStatus_t.INFINI_STATUS_INTERNAL_ERROR
INFINI_STATUS_EXECUTION_FAILED = infiniStatus_t.INFINI_STATUS_EXECUTION_FAILED
INFINI_STATUS_NOT_IMPLEMENTED = infiniStatus_t.INFINI_STATUS_NOT_IMPLEMENTED
INFINI_STATUS_BAD_PARAM = infiniStatus_t.INFINI_STATUS_BAD_PARAM
INFINI_STATUS_NULL_POINTER = infiniStatus_t.INFINI_STATUS_NULL_POINTER
INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED = infiniStatus_t.INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED
INFINI_STATUS_BAD_DEVICE = infiniStatus_t.INFINI_STATUS_BAD_DEVICE
INFINI_STATUS_DEVICE_NOT_FOUND = infiniStatus_t.INFINI_STATUS_DEVICE_NOT_FOUND
INFINI_STATUS_DEVICE_NOT_INITIALIZED = infiniStatus_t.INFINI_STATUS_DEVICE_NOT_INITIALIZED
INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED = infiniStatus_t.INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED
INFINI_STATUS_BAD_TENSOR_DTYPE = infiniStatus_t.INFINI_STATUS_BAD_TENSOR_DTYPE
INFINI_STATUS_BAD_TENSOR_SHAPE = infiniStatus_t.INFINI_STATUS_BAD_TENSOR_SHAPE
INFINI_STATUS_BAD_TENSOR_STRIDES = infiniStatus_t.INFINI_STATUS_BAD_TENSOR_STRIDES
INFINI_STATUS_INSUFFICIENT_WORKSPACE = infiniStatus_t.INFINI_STATUS_INSUFFICIENT_WORKSPACE


class Ref:
    """An out-parameter: stands for the address that a C caller passes."""

    def __init__(self, value: Any = None):
        self.value = value

    def __repr__(self) -> str:
        return f"Ref({self.value!r})"


class Opaque:
    """An object returned by a create function; unusable once it is destroyed."""

    alive = True


class Failure(Exception):
    """A status other than success, and its reason; raised by helpers, and turned into a code by `answers`."""

    def __init__(self, status: infiniStatus_t, reason: str):
        super().__init__(reason)
        self.status = status


infiniopStatus_t = infiniStatus_t
"""The name that the operators' functions have for it."""

_last = threading.local()

P = ParamSpec("P")
Kind = TypeVar("Kind", bound=Opaque)


def infiniopGetLastError() -> str:
    """Why the most recent failed call in this thread failed; "" if none did. An addition to the C interface."""
    return getattr(_last, "reason", "")


def answers(function: Callable[P, None]) -> Callable[P, infiniStatus_t]:
    """The function in the form of the interface: it returns a status, whatever happens inside."""

    @wraps(function)
    def answer(*arguments: P.args, **keywords: P.kwargs) -> infiniStatus_t:
        try:
            function(*arguments, **keywords)
        except Failure as failure:
            _last.reason = f"{function.__name__}: {failure}"
            return failure.status
        except Exception as error:
            _last.reason = f"{function.__name__}: {''.join(format_exception_only(error)).strip()}"
            return INFINI_STATUS_INTERNAL_ERROR
        return INFINI_STATUS_SUCCESS

    return answer


def opened(given: Kind, kind: type[Kind], name: str) -> Kind:
    """An object from a create function, checked for its type and for not having been destroyed."""
    if given is None:
        raise Failure(INFINI_STATUS_NULL_POINTER, f"{name} is None; want an {kind.__name__}")
    if not isinstance(given, kind):
        raise Failure(INFINI_STATUS_BAD_PARAM, f"{_told(given, name)}; want an {kind.__name__}")
    if not given.alive:
        raise Failure(INFINI_STATUS_BAD_PARAM, f"{name} was destroyed")
    return given


def out(given: Ref, name: str) -> Ref:
    """A place for a result, checked."""
    if given is None:
        raise Failure(INFINI_STATUS_NULL_POINTER, f"{name} is None; want a Ref() to put the result into")
    if not isinstance(given, Ref):
        raise Failure(INFINI_STATUS_BAD_PARAM, f"{_told(given, name)}; want the Ref() itself")
    return given


def integer(given: int, name: str, low: int, high: int) -> int:
    """A number that C would accept: low <= number < high."""
    try:
        number = index(given)
    except Exception:  # a foreign object may raise anything
        raise Failure(INFINI_STATUS_BAD_PARAM, f"{_told(given, name)}; want an integer") from None
    if not low <= number < high:
        told = number if number.bit_length() <= 64 else f"a number of {number.bit_length()} bits"
        raise Failure(INFINI_STATUS_BAD_PARAM, f"{name} is {told}; want {low} <= {name} < {high}")
    return number


def address(given: int | None, name: str) -> int:
    """A pointer as a number; None is the null pointer."""
    return 0 if given is None else integer(given, name, 0, 2**64)


def _told(given: object, name: str) -> str:
    """What an argument is; of what holds a value, that the value is wanted."""
    holds = isinstance(given, Ref) or type(given).__module__ == "ctypes"
    return f"{name} is of type {type(given).__name__}{' (pass its .value)' if holds else ''}"
