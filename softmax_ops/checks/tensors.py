"""Checks of tensors of rows, and the description of a tensor in messages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_DEVICE_TYPES = frozenset(("cpu", "cuda", "meta"))


def describe(tensor: Tensor) -> str:
    """A tensor's metadata in words: `float16 tensor of shape (2, 3), strides (3, 1), on cuda:0`."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:  # without one shape, whatever its layout
        return f"nested {dtype} tensor on {tensor.device}"
    if tensor.layout is not torch.strided:  # has no strides; str(layout) is such as torch.sparse_coo
        layout = str(tensor.layout).removeprefix("torch.")
        return f"{dtype} tensor of layout {layout} and shape {tuple(tensor.shape)}, on {tensor.device}"
    return f"{dtype} tensor of shape {tuple(tensor.shape)}, strides {tensor.stride()}, on {tensor.device}"


def described(tensor: Tensor) -> str:
    """`describe` with its article: `a float16 tensor ...`."""
    words = describe(tensor)
    return f"{'an' if words.startswith('int') else 'a'} {words}"


def type_name(value: object) -> str:
    """The name of a value's type, of a numpy scalar with its module: `numpy.bool` is not `bool`."""
    kind = type(value)
    return f"numpy.{kind.__name__}" if kind.__module__ == "numpy" else kind.__name__


def check_rows(op: str, tensor: Tensor, name: str) -> None:
    """Refuse all but a plain tensor [..., K] of a supported dtype, on cpu, cuda or meta."""
    if not isinstance(tensor, Tensor):
        advice = "" if tensor is None else f": convert it with torch.as_tensor({name})"
        raise TypeError(f"{op}: {name} is of type {type_name(tensor)}; want a torch.Tensor{advice}")
    check_plain(op, tensor, name)
    if tensor.dtype not in DTYPES:
        raise _dtype_error(op, tensor, name)
    if tensor.dim() == 0:
        raise ValueError(
            f"{op}: {name} is a 0-d {describe(tensor)}; want at least a row, [..., K]: pass {name}.reshape(1)"
        )
    if tensor.device.type not in _DEVICE_TYPES:
        raise _device_error(op, tensor, name)


def check_plain(op: str, tensor: Tensor, name: str) -> None:
    """Refuse tensors whose values are not simply the memory at base + sum of index * stride."""
    check_one_shape(op, tensor, name)
    if tensor.layout is not torch.strided:
        raise ValueError(f"{op}: {name} is {described(tensor)}; want a dense strided tensor: pass {name}.to_dense()")
    if not is_dynamo_compiling() and tensor.is_neg():  # which torch.compile does not follow
        raise ValueError(
            f"{op}: {name} is a lazily negated view ({describe(tensor)}), whose memory holds the opposite sign; "
            f"want a plain tensor: pass {name}.resolve_neg()"
        )


def check_one_shape(op: str, tensor: Tensor, name: str) -> None:
    """Refuse nested tensors. A jagged one is a tensor subclass that operators do not support."""
    if tensor.is_nested:
        raise ValueError(
            f"{op}: {name} is {described(tensor)}; want one shape for all rows: "
            f"pass {name}.to_padded_tensor(0), whose padding key_lengths or a mask hides in the forward"
        )


def _dtype_error(op: str, tensor: Tensor, name: str) -> ValueError:
    if tensor.is_quantized:
        advice = f"pass {name}.dequantize()"
    elif tensor.is_complex():
        advice = f"softmax is defined for real scores only, so pass {name}.real"
    else:
        advice = f"convert it with {name}.to(torch.float32)"
    return ValueError(
        f"{op}: {name} is {described(tensor)}; want dtype float16, bfloat16, float32 or float64: {advice}"
    )


def _device_error(op: str, tensor: Tensor, name: str) -> ValueError:
    advice = f"move it with {name}.cuda() or {name}.cpu()"
    return ValueError(f"{op}: {name} is {described(tensor)}; want a tensor on cpu or cuda: {advice}")
