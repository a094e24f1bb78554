"""What a valid call is: a plain request, or a general one."""

from __future__ import annotations

from operator import is_not
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class Request(NamedTuple):
    """A validated call of the forward; see `check_softmax` for what has been established about each field."""

    x: Tensor  # [..., Q, K], or [K], which is Q = 1
    scale: float  # finite
    mask: Tensor | None  # not expanded, right-aligned broadcastable to x; exactly 1 hides. Of a float dtype: x's
    causal_offset: int | None  # of a plain request: None: not causal; otherwise j <= i + causal_offset is visible
    out: Tensor | None  # [..., Q, K] with strides of its own, or x itself
    fill: float = -float("inf")  # score of a column hidden by the mask; -inf excludes it, finite is masked fill

    # What follows is None or False in a plain request.
    scale_tensor: Tensor | None = None  # [] or right-aligned broadcastable to x.shape[:-1]; then scale is 1
    bias: Tensor | None = None  # of x's dtype or float32, not expanded, right-aligned broadcastable to x
    key_lengths: Tensor | None = None  # [B] int32: column j of batch b is visible if j < key_lengths[b]
    offset_tensor: Tensor | None = None  # int32 or int64, one or [B], added to causal_offset
    left: int | None = None  # visible if j >= i + offset - left
    right: int | None = None  # visible if j <= i + offset + right; 0 where causal
    alibi_slopes: Tensor | None = None  # [H] of the accumulation type
    sinks: Tensor | None = None  # [H] of the accumulation type
    softcap: float | None = None  # above 0
    dtype: torch.dtype | None = None  # of the result; None in a plain request, which keeps x's
    log: bool = False  # the result is log y
    return_lse: bool = False

    @property
    def general(self) -> bool:
        """Whether the request needs more than softmax of scale * x, a mask, causality and x's dtype."""
        return _differs(self, _PLAIN)


_PLAIN = tuple(Request._field_defaults.values())[1:]


class BackwardRequest(NamedTuple):
    """A validated call of the backward; see `check_softmax_backward` for what has been established about each field."""

    dy: Tensor  # [..., Q, K], or [K], which is Q = 1; may be expanded
    y: Tensor  # of dy's shape, dtype and device
    scale: float  # finite
    causal_offset: int | None  # None: not causal; otherwise column j is visible to query i iff j <= i + causal_offset
    out: Tensor | None  # [..., Q, K] with strides of its own, or dy itself, or y itself

    # What follows is None or False in a plain request.
    scale_tensor: Tensor | None = None  # [] or right-aligned broadcastable to y.shape[:-1]; then scale is 1
    offset_tensor: Tensor | None = None  # int32 or int64, one or [B], added to causal_offset
    key_lengths: Tensor | None = None  # [B] int32
    left: int | None = None  # visible if j >= i + offset - left
    right: int | None = None  # visible if j <= i + offset + right; 0 where causal
    softcap: float | None = None  # above 0
    lse: Tensor | None = None  # [..., Q] of the accumulation type, any strides; with softcap
    grad_lse: Tensor | None = None  # [..., Q] of the accumulation type, any strides
    log: bool = False  # y is log y, and dy its gradient
    dtype: torch.dtype | None = None  # of dx; None in a plain request, which keeps y's
    return_dot: bool = False  # return (dx, d), d [..., Q]: sum y dy, or sum dy of log y, less grad_lse

    @property
    def general(self) -> bool:
        """Whether the request needs more than scale * y * (dy - sum y dy), causality and y's dtype."""
        return _differs(self, _PLAIN_BACKWARD)


_PLAIN_BACKWARD = tuple(BackwardRequest._field_defaults.values())


def _differs(request: Request | BackwardRequest, plain: tuple) -> bool:
    """Whether the last fields are other objects than those of a plain request."""
    return any(map(is_not, request[-len(plain) :], plain))  # comparing a tensor with None by != takes 40 us


OfDirection = TypeVar("OfDirection", Request, BackwardRequest)


def simplified(request: OfDirection, dtype: torch.dtype) -> OfDirection:
    """The plain request that says the same, if there is one; otherwise the request with the dtype of its result, which
    is `dtype` unless it says so."""
    if request.left is None and request.right == 0 and not request._replace(right=None).general:
        return request._replace(right=None)  # causality alone
    return request._replace(dtype=request.dtype or dtype) if request.general else request
