"""Scale, masked fill and softmax of attention scores, and the gradient: the functions of `transformer_softmax_lib`.

    output = scaled_masked_softmax_forward(input, mask, scale)
    grad_input = scaled_masked_softmax_backward(grad_output, output, scale)

The kernels are those of `softmax_ops`; only the mask differs. A hidden score is not excluded: it becomes -VAL, a finite
number, and takes part. Wrap the two in a `torch.autograd.Function` as `examples/transformer_softmax.py` does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function

import softmax_ops
from softmax_ops import routes
from softmax_ops.checks.tensors import described
from softmax_ops.known.calls import masked_fill
from softmax_ops.modes import is_compiled_transform, is_differentiated, may_be_transformed, stand_ins

__all__ = ["VAL", "scaled_masked_softmax_backward", "scaled_masked_softmax_forward"]

VAL = 10000.0
"""The negative of what a hidden score becomes."""


def scaled_masked_softmax_forward(input: Tensor, mask: Tensor | None, scale: float | Tensor) -> Tensor:
    """softmax over the last dimension of  val = -VAL if mask == 1 else input * scale.

    input   [batches, attn_heads, query_seq_len, key_seq_len]; float16, bfloat16, float32 or float64, on a GPU or the
            CPU.
    mask    broadcasts to input; bool, uint8 or a float dtype that input may have. Exactly 1 hides. None hides nothing.
    scale   a number, or a tensor of one element. A tensor on a GPU is read back, which waits for the device; during a
            CUDA graph capture that is an error. Compilers and fake tensors want a number.

    Returns a contiguous tensor of input's shape and dtype. Sums and exponentials are computed in float32 (float64 for
    float64). A completely hidden row becomes uniform.

    Raises TypeError or ValueError, before anything is launched, for arguments that do not fit together, and
    otherwise what `softmax_ops.softmax` raises.
    """
    number = _number("forward", scale)
    if not is_dynamo_compiling():
        output = masked_fill.run(input, number, mask, -VAL, None)
        if output is not None:
            return output
        if found := stand_ins((input, mask, scale)):
            return handle_torch_function(scaled_masked_softmax_forward, found, input, mask, scale)
    return routes.masked_fill(input, number, mask, -VAL)


def scaled_masked_softmax_backward(grad_output: Tensor, output: Tensor, scale: float | Tensor) -> Tensor:
    """scale * output * (grad_output - sum_j output_j grad_output_j), the gradient with respect to `input`.

    grad_output, output   of the same shape and dtype, output as the forward returned it; grad_output may be expanded.
    scale                 that of the forward.

    The formula is applied to every column, hidden ones too, so a completely hidden row has a gradient. Returns a
    contiguous tensor; raises what `softmax_ops.softmax_backward` raises, whose messages call grad_output dy and
    output y.
    """
    number = _number("backward", scale)
    transformed = is_compiled_transform() if is_dynamo_compiling() else may_be_transformed()
    if transformed or not torch.is_grad_enabled():  # as in an autograd.Function: entering no_grad takes microseconds
        return softmax_ops.softmax_backward(grad_output, output, scale=number)
    with torch.no_grad():
        return softmax_ops.softmax_backward(grad_output, output, scale=number)


def _number(direction: str, scale: float | Tensor) -> float:
    if not isinstance(scale, Tensor):
        return scale
    if scale.numel() != 1:
        raise _scale_error(direction, scale, "want a number or a tensor of one element")
    if scale.is_meta:
        raise _scale_error(direction, scale, "want a number, since a tensor on meta has no value")
    if scale.is_cuda and torch.cuda.is_current_stream_capturing():
        raise _scale_error(direction, scale, "want a number, for a graph is captured and nothing can be read back")
    if not is_dynamo_compiling() and is_differentiated(scale):
        raise _scale_error(direction, scale, "want a number, since it has no derivative: detach it")
    return scale.item()


def _scale_error(direction: str, scale: Tensor, wanted: str) -> ValueError:
    function = f"transformer_softmax_lib.scaled_masked_softmax_{direction}"
    return ValueError(f"{function}: scale is {described(scale)}; {wanted}")
