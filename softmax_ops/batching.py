"""vmap's rule for the operators: one call for the whole batch, which becomes a dimension in front of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .schema import by_name

_SCORES = ("x", "dy", "y")  # [..., Q, K] or [K]
_LIKE_SCORES = ("mask", "bias")  # broadcast to the scores
_OF_ROWS = ("lse", "grad_lse")  # [..., Q]
_LIKE_ROWS = ("scale_tensor",)  # one, or broadcast to the rows
_OF_ENTRIES = ("key_lengths", "offset_tensor")  # [B], the first dimension of the scores; or one offset
_OF_HEADS = ("alibi_slopes", "sinks")  # [H], the third dimension of the scores from the right


def vmapped(op: str, call: Callable[..., Any], info: Any, in_dims: tuple, *inputs: Any) -> tuple:
    """The result of `call`, which takes what this operator takes, for a batch of inputs, and the batch's dimension in
    it.

    A row [K] becomes [1, K], so that the batch is not taken for queries. Where there is a number for each of B entries,
    the batch is merged with B. If that is impossible, or numbers for each head differ within the batch, each sample
    takes a call of its own.
    """
    size, given, dims = info.batch_size, by_name(op, inputs), by_name(op, in_dims, default=None)
    front = {name: _in_front(value, dims[name]) for name, value in given.items() if isinstance(value, Tensor)}
    scores = front["y" if "y" in front else "x"]
    rank = scores.dim() - 1
    merged = "key_lengths" in front or ("offset_tensor" in front and _of_sample(front["offset_tensor"]) > 1)
    heads = [name for name in _OF_HEADS if name in front]
    if (merged and (rank < 3 or (rank == 3 and heads))) or any(dims[name] is not None for name in heads):
        return _one_by_one(call, size, in_dims, inputs)

    entries = scores.shape[1] if merged else None
    moved = {name: _arranged(name, tensor, size, max(rank, 2), entries) for name, tensor in front.items()}
    if not merged:  # what broadcasts along the batch does so as it is
        moved |= {name: given[name] for name in (*_LIKE_SCORES, *_LIKE_ROWS) if name in moved and dims[name] is None}
    given |= moved
    results = call(*given.values())
    if isinstance(results, Tensor):
        return _as_given(results, size, rank, entries), 0
    y, second = results
    if second.dim() < y.dim() - 1:  # without elements: nobody asked for it
        return (_as_given(y, size, rank, entries), second), (0, None)
    return (_as_given(y, size, rank, entries), _as_given(second, size, rank, entries)), (0, 0)


def _in_front(tensor: Tensor, dim: int | None) -> Tensor:
    """[batch, ...], with a batch of 1 for what is the same in every sample."""
    return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)


def _of_sample(tensor: Tensor) -> int:
    return tensor.shape[1:].numel()


def _arranged(name: str, tensor: Tensor, size: int, rank: int, entries: int | None) -> Tensor:
    """The argument of one call for `size` samples, [batch, ...] or [batch * entries, ...], for scores of at least
    `rank` dimensions after the batch."""
    if name in _OF_HEADS:
        return tensor[0]
    if name in _OF_ENTRIES:
        of_sample = tensor.reshape(tensor.shape[0], -1)
        return (of_sample if entries is None else of_sample.expand(size, entries)).flatten()
    if name in _LIKE_ROWS and _of_sample(tensor) == 1:
        tensor = tensor.reshape(-1, 1)
    if name in _OF_ROWS or name in _LIKE_ROWS:
        rank -= 1
    padded = tensor.reshape(tensor.shape[0], *(1,) * (rank + 1 - tensor.dim()), *tensor.shape[1:])
    if name in _SCORES or name in _OF_ROWS:
        padded = padded.expand(size, *padded.shape[1:])
    if entries is None:
        return padded
    if padded.shape[:2] == (1, 1):
        return padded[0]
    return padded.expand(size, entries, *padded.shape[2:]).flatten(0, 1)


def _as_given(result: Tensor, size: int, rank: int, entries: int | None) -> Tensor:
    """The result with the batch as its first dimension, and rows of the dimensions that a sample had."""
    if entries is not None:
        return result.unflatten(0, (size, entries))
    return result if rank > 1 else result.squeeze(1)


def _one_by_one(call: Callable[..., Any], size: int, in_dims: tuple, inputs: tuple) -> tuple:
    def sample(i: int) -> Any:
        return call(*(each if dim is None else each.select(dim, i) for each, dim in zip(inputs, in_dims, strict=True)))

    if size == 0:  # a sample of zeros has results of the right sizes and dtypes
        inputs = tuple(
            each if dim is None else each.new_zeros((*each.shape[:dim], 1, *each.shape[dim + 1 :]))
            for each, dim in zip(inputs, in_dims, strict=True)
        )
    results = [sample(i) for i in range(max(size, 1))]
    if isinstance(results[0], Tensor):
        return torch.stack(results)[:size], 0
    return tuple(torch.stack(each)[:size] for each in zip(*results, strict=True)), (0, 0)
