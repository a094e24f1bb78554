"""Which bytes tensors share, from addresses, shapes and strides."""

from __future__ import annotations

from torch import Tensor

from ..planning.geometry import reach


def ranges_meet(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors meet, counting gaps between elements as part of the range. Meta tensors
    have no memory."""
    if a.is_meta or b.is_meta:
        return False
    first_a, end_a = _byte_range(a)
    first_b, end_b = _byte_range(b)
    return first_a < end_b and first_b < end_a


def same_elements(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape and dtype have each element at the same address."""
    return a.data_ptr() == b.data_ptr() and all(
        n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def may_share(a: Tensor, b: Tensor) -> bool:
    """Whether `a`, whose strides nest, may share a byte with `b` of the same shape and dtype.

    Exact if both step through memory alike, such as buf[:, :K] and buf[:, K:]; otherwise True. An address in both means
    that the distance of the bases is a sum of e * stride over the dimensions, |e| < size. Strides nest, so what the
    inner dimensions add is below the stride, and for each dimension at most two values of e are possible.
    """
    steps = _steps(a)
    if steps != _steps(b):
        return True
    item = a.element_size()
    distances = {b.data_ptr() - a.data_ptr()}
    for stride, size in [*((t * item, n) for t, n in steps), (1, item)]:
        distances = {d - e * stride for d in distances for e in (d // stride, d // stride + 1) if abs(e) < size}
    return 0 in distances


def bytes_reached(tensor: Tensor) -> int:
    """Number of bytes from the first to the last, gaps between elements included."""
    if tensor.is_contiguous():
        return tensor.nbytes
    return reach(tensor.shape, tensor.stride()) * tensor.element_size()


def _byte_range(tensor: Tensor) -> tuple[int, int]:
    """First address and one past the last; an empty range for an empty tensor, which is contiguous."""
    first = tensor.data_ptr()
    return first, first + bytes_reached(tensor)


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that move the address, the largest stride first."""
    return sorted(((t, n) for t, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1), reverse=True)
