"""Example for `transformer_softmax_lib`: its two functions as an autograd.Function, compared with torch.softmax.

    python examples/transformer_softmax.py

Prints by how many units in the last place the outputs differ, whether output and gradient agree with torch's at
atol = rtol = 1e-5, and how far both gradients are from the float64 gradient for a random upstream gradient.
"""

import torch
from torch.autograd import Function

import transformer_softmax_lib

device = "cuda" if torch.cuda.is_available() else "cpu"


class FusedSoftmax(Function):
    @staticmethod
    def forward(ctx, src, mask, scale_factor):
        output = transformer_softmax_lib.scaled_masked_softmax_forward(src, mask, scale_factor[0])
        ctx.save_for_backward(output, scale_factor)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        src, scale_factor = ctx.saved_tensors
        grad_in = transformer_softmax_lib.scaled_masked_softmax_backward(grad_output, src, scale_factor[0])
        return grad_in, None, None  # one for each input


def gradient(leaf):
    return leaf.grad


def ulp_difference(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest distance between non-negative float16 tensors, counted in neighbouring numbers."""
    return int((a.detach().view(torch.int16).int() - b.detach().view(torch.int16).int()).abs().max())


torch.manual_seed(0)
data_input = torch.randn([1, 8, 1024, 1024], dtype=torch.float16, device=device, requires_grad=True)
data_input_check = data_input.clone().detach()
data_input_check.requires_grad_(True)
factor = torch.tensor([1.0], requires_grad=False)
mask = torch.zeros([1, 1, 1024, 1024], dtype=torch.float16, device=device, requires_grad=False)
check = torch.softmax(data_input_check, dim=-1)
out_put = FusedSoftmax.apply(data_input, mask, factor)

# Forward.
print("output: largest difference from torch.softmax in ULP:", ulp_difference(check, out_put))
close = torch.allclose(check, out_put, atol=1e-05, rtol=1e-05)
print(f"output: within 1e-05: {close} (False if a number is rounded the other way: near 0.1, 1 ULP is 6e-05)")

# Backward. The gradient of a sum is 0 except for rounding, so it says little.
with torch.autocast(device_type=device, dtype=torch.float16, enabled=False):
    out_put.sum().backward(retain_graph=True)
    check.sum().backward(retain_graph=True)
close = torch.allclose(gradient(data_input), gradient(data_input_check), atol=1e-05, rtol=1e-05)
print(f"gradient: within 1e-05: {close}")

# Backward with a more telling gradient.
data_input.grad = data_input_check.grad = None
upstream = torch.randn_like(out_put)
out_put.backward(upstream)
check.backward(upstream)
exact = data_input.detach().double().requires_grad_(True)
torch.softmax(exact, dim=-1).backward(upstream.double())
errors = [(gradient(tensor).double() - gradient(exact)).abs().max().item() for tensor in (data_input, data_input_check)]
print("gradient, random upstream: largest error {:.2e}, that of torch.softmax {:.2e}".format(*errors))
