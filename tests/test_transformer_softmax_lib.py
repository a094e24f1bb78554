"""The two functions of transformer_softmax_lib against the reference, and the example program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import softmax_ops
import transformer_softmax_lib
from softmax_ops import dispatch
from tests.support import reference
from tests.support.reference import DTYPE_NAMES, DTYPES, assert_close, to_numpy
from transformer_softmax_lib import scaled_masked_softmax_backward, scaled_masked_softmax_forward

B, H, Q, K = 2, 3, 4, 7
FILL = -10000.0
CHECKOUT = Path(__file__).parents[1]

every_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))


def scores(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def ones(*shape: int, dtype: torch.dtype = torch.bool) -> Tensor:
    """A mask with zeros and ones in it."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    mask.view(-1)[0], mask.view(-1)[-1] = True, False
    return mask.to(dtype)


def verify(x: Tensor, mask: Tensor | None, scale: Any = 1.0) -> Tensor:
    before = x.clone()
    y = scaled_masked_softmax_forward(x, mask, scale)
    inputs = (to_numpy(x), float(scale), None if mask is None else to_numpy(mask), None, FILL)
    rounding = reference.score_rounding(*inputs)
    assert_close(y, reference.softmax(*inputs), DTYPE_NAMES[x.dtype], rounding=rounding, floor=0.0)
    assert (y.dtype, y.shape) == (x.dtype, x.shape) and y.is_contiguous() and not y.requires_grad
    assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))
    return y


def mask_dtypes(dtype: torch.dtype) -> set[torch.dtype]:
    return {torch.bool, torch.uint8, torch.float16, dtype}


# forward


@every_dtype
def test_no_mask(dtype: torch.dtype) -> None:
    x = scores(B, H, Q, K, dtype=dtype)
    assert torch.equal(verify(x, None, 0.7), softmax_ops.softmax(x, scale=0.7))


@every_dtype
@pytest.mark.parametrize("shape", [(B, H, Q, K), (B, 1, Q, K), (1, 1, Q, K), (B, 1, 1, K), (K,), (Q, 1), (1,)], ids=str)
def test_mask_of_every_dtype_and_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = scores(B, H, Q, K, dtype=dtype)
    results = [verify(x, ones(*shape, dtype=kind), -0.7) for kind in sorted(mask_dtypes(dtype), key=str)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_only_1_hides() -> None:
    x = scores(3, K)
    values = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, float("nan"), float("-inf")])
    for mask in (values, values.half()):
        expected = softmax_ops.softmax(x, mask=values == 1)
        torch.testing.assert_close(scaled_masked_softmax_forward(x, mask, 1.0), expected)
    numbers = torch.arange(K, dtype=torch.uint8)
    assert torch.equal(scaled_masked_softmax_forward(x, numbers, 1.0), verify(x, numbers == 1))


@every_dtype
def test_a_row_hidden_whole_is_uniform(dtype: torch.dtype) -> None:
    mask = torch.zeros(Q, K, dtype=torch.float16)
    mask[1] = 1
    y = verify(scores(B, H, Q, K, dtype=dtype), mask)
    assert torch.equal(y[:, :, 1], torch.full((B, H, K), 1 / K, dtype=dtype))


def test_what_is_hidden_takes_part_with_a_score_of_its_own() -> None:
    """Scores below -VAL have less weight than a hidden one; `softmax_ops.softmax` would exclude it."""
    x = torch.tensor([-20000.0, -20001.0, 0.0])
    mask = torch.tensor([0, 0, 1], dtype=torch.uint8)
    assert verify(x, mask).tolist() == [0, 0, 1]
    assert softmax_ops.softmax(x, mask=mask)[2] == 0
    assert transformer_softmax_lib.VAL == 10000


def test_the_score_of_what_is_hidden_is_not_scaled() -> None:
    x = torch.tensor([-1.0, 5.0, -3.0])
    verify(x, torch.tensor([False, True, False]), 4000.0)  # visible: -4000 and -12000; hidden: -10000
    verify(x, torch.tensor([False, True, False]), 9999.0)


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), float("-inf")])
def test_what_is_hidden_is_not_read(hidden: float) -> None:
    x = torch.tensor([1.0, hidden, 2.0])
    assert torch.isfinite(verify(x, torch.tensor([0.0, 1.0, 0.0]))).all()


@pytest.mark.parametrize(
    "scale",
    [0.5, 2, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]], dtype=torch.float64), torch.tensor(2)],
    ids=["float", "int", "0-d", "1 element", "1 element of 2-d", "integer tensor"],
)
def test_scale(scale: float | Tensor) -> None:
    x, mask = scores(B, H, Q, K), ones(B, 1, 1, K)
    y = verify(x, mask, scale)
    dy = scores(B, H, Q, K, seed=2)
    assert torch.equal(
        scaled_masked_softmax_backward(dy, y, scale), scaled_masked_softmax_backward(dy, y, float(scale))
    )


@every_dtype
def test_strides(dtype: torch.dtype) -> None:
    x = scores(Q, H, B, K, dtype=dtype).transpose(0, 2)
    verify(x, ones(Q, K, dtype=torch.float16))
    verify(x.expand(5, *x.shape), ones(K, Q, dtype=dtype).t())
    verify(scores(B, K, Q, dtype=dtype).transpose(1, 2), ones(1, 1, dtype=dtype).expand(Q, K))
    verify(scores(Q, 2 * K, dtype=dtype)[:, ::2], ones(Q, 2 * K, dtype=dtype)[:, 1::2])


@pytest.mark.parametrize("shape", [(K,), (Q, K), (2, 1, 2, 1, Q, K), (0, K), (Q, 0)], ids=str)
def test_ranks(shape: tuple[int, ...]) -> None:
    verify(scores(*shape), torch.ones(shape[-1:], dtype=torch.float16))


def test_nothing_is_recorded() -> None:
    """As in the documentation, the gradient is left to whoever wraps the functions."""
    x = scores(Q, K).requires_grad_()
    y = scaled_masked_softmax_forward(x, None, 1.0)
    assert not y.requires_grad and not scaled_masked_softmax_backward(x, y, 1.0).requires_grad


def test_who_knows_operators_only_sees_those_of_torch() -> None:
    x, mask = scores(Q, K, dtype=torch.float16), ones(K, dtype=torch.float16)
    y = scaled_masked_softmax_forward(TwoTensor(x, 2 * x), mask, 0.7)
    assert isinstance(y, TwoTensor)
    assert torch.equal(y.a, verify(x, mask, 0.7)) and torch.equal(y.b, verify(2 * x, mask, 0.7))


# backward


@every_dtype
def test_backward_is_the_formula_on_every_column(dtype: torch.dtype) -> None:
    """Including those of a completely hidden row, whose y is not 0."""
    mask = ones(Q, K)
    mask[1] = True
    y = scaled_masked_softmax_forward(scores(B, H, Q, K, dtype=dtype), mask, 0.7)
    dy = scores(B, H, Q, K, dtype=dtype, seed=2)
    dx = scaled_masked_softmax_backward(dy, y, 0.7)
    given = (to_numpy(dy), to_numpy(y), 0.7)
    magnitude = reference.backward_magnitude(*given)
    assert_close(dx, reference.softmax_backward(*given), DTYPE_NAMES[dtype], floor=0.0, magnitude=magnitude)
    assert dx.is_contiguous() and dx[:, :, 1].abs().min() > 0


def test_backward_of_a_sum() -> None:
    y = scaled_masked_softmax_forward(scores(Q, K), None, 1.0)
    assert scaled_masked_softmax_backward(torch.ones(()).expand(Q, K), y, 1.0).abs().max() < 1e-6


def test_backward_is_the_gradient() -> None:
    x, mask = scores(Q, K, dtype=torch.float64).requires_grad_(), ones(Q, K)
    dy = scores(Q, K, dtype=torch.float64, seed=2)
    expected = (x * 0.7).masked_fill(mask, FILL).softmax(-1)
    y = scaled_masked_softmax_forward(x, mask, 0.7)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(expected, x, dy)
    torch.testing.assert_close(scaled_masked_softmax_backward(dy, y, 0.7), gradient)


# errors

FORWARD = "transformer_softmax_lib.scaled_masked_softmax_forward: "


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((None, None, 1.0), TypeError, "input is of type NoneType; want a torch.Tensor"),
        ((torch.ones(Q, K).long(), None, 1.0), ValueError, "want dtype float16, bfloat16, float32 or float64"),
        ((torch.ones(()), None, 1.0), ValueError, "input is a 0-d"),
        ((torch.ones(Q, K), [0, 1], 1.0), TypeError, "mask is of type list; want a torch.Tensor of bool, uint8 or a"),
        ((torch.ones(Q, K), torch.ones(K).int(), 1.0), ValueError, "want bool, uint8, float16, bfloat16, float32 or"),
        ((torch.ones(Q, K), torch.ones(K).int(), 1.0), ValueError, "convert it with mask == 1"),
        ((torch.ones(Q, K), torch.ones(Q).bool(), 1.0), ValueError, "mask has shape (4,) and input has shape (4, 7)"),
        ((torch.ones(K), torch.ones(Q, K).bool(), 1.0), ValueError, "no more of them than input has"),
        ((torch.ones(Q, K), None, "1"), TypeError, "scale is '1' of type str; want a real number"),
        ((torch.ones(Q, K), None, float("inf")), ValueError, "scale is inf; want a finite number"),
        ((torch.ones(Q, K), None, torch.tensor([float("nan")])), ValueError, "scale is nan; want a finite number"),
        ((torch.ones(Q, K), None, torch.ones(2)), ValueError, "scale is a float32 tensor of shape (2,)"),
        (
            (torch.ones(Q, K), None, torch.ones(1, device="meta")),
            ValueError,
            "want a number, since a tensor on meta has no value",
        ),
    ],
)
def test_forward_refuses(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        scaled_masked_softmax_forward(*arguments)
    assert type(raised.value) is error and str(raised.value).startswith(FORWARD) and words in str(raised.value)


def test_a_scale_on_the_gpu_is_not_read_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode():
        scale = torch.ones(1, device="cuda:0")
    x, refusal = torch.ones(Q, K), r"scale is a float32 tensor .* want a number, for a graph is captured"
    with pytest.raises(ValueError, match=refusal):
        scaled_masked_softmax_forward(x, None, scale)
    with pytest.raises(ValueError, match=refusal):
        scaled_masked_softmax_backward(x, x, scale)


def test_forward_refuses_a_mask_elsewhere() -> None:
    with FakeTensorMode():
        x = torch.empty(Q, K, device="cuda:0")
    with pytest.raises(ValueError, match=r"want both on one device: pass mask.to\(input.device\)"):
        scaled_masked_softmax_forward(x, torch.ones(K), 1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.ones(Q, K), torch.ones(K), 1.0), ValueError, "dy is a float32 tensor of shape (4, 7)"),
        ((torch.ones(K).half(), torch.ones(K), 1.0), ValueError, "want one dtype, shape and device for both"),
        ((torch.ones(K), torch.ones(K), torch.ones(2)), ValueError, "want a number or a tensor of one element"),
    ],
)
def test_backward_refuses(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        scaled_masked_softmax_backward(*arguments)


# the example program


@pytest.mark.slow
def test_the_program() -> None:
    """The output is within a unit in the last place of torch's, the gradients as close to the exact one as torch's."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(CHECKOUT / "examples" / "transformer_softmax.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, ""), result
    ulp, output, gradient, errors = result.stdout.splitlines()
    assert ulp in {f"output: largest difference from torch.softmax in ULP: {n}" for n in (0, 1)}
    assert re.match(r"output: within 1e-05: (True|False) \(", output)
    assert gradient == "gradient: within 1e-05: True"
    ours, theirs = map(float, re.findall(r"\d\.\d\de[+-]\d\d", errors))
    assert 0 < ours <= 1.25 * theirs


def test_compilers_get_operations_of_torch_in_one_graph() -> None:
    x, mask = torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5) < 0.5
    compiled = torch.compile(scaled_masked_softmax_forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask, 0.5), scaled_masked_softmax_forward(x, mask, 0.5))


@pytest.mark.parametrize("shape", [(2, 3, Q, K), (8, 16, 128, 128), (K,)], ids=str)
def test_a_compiler_sees_few_operations_at_any_size(shape: tuple[int, ...]) -> None:
    """The blocks in which the CPU computes are none of its business."""
    nodes: list[int] = []

    def counting(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        nodes.append(len(module.graph.nodes))
        return module

    x, mask = torch.randn(shape), torch.rand(shape[-1]) < 0.3
    compiled = torch.compile(scaled_masked_softmax_forward, backend=counting, fullgraph=True)
    torch.testing.assert_close(compiled(x, mask, 0.5), scaled_masked_softmax_forward(x, mask, 0.5))
    assert nodes[0] < 30


def test_vmap_of_the_forward() -> None:
    x, mask = torch.randn(3, Q, K), torch.rand(3, K) < 0.3
    found = torch.vmap(lambda x, mask: scaled_masked_softmax_forward(x, mask, 0.5))(x, mask)
    torch.testing.assert_close(found, scaled_masked_softmax_forward(x, mask[:, None], 0.5))
    found = torch.vmap(lambda mask: scaled_masked_softmax_forward(x[0], mask, 0.5))(mask)
    torch.testing.assert_close(found, scaled_masked_softmax_forward(x[0].expand(3, Q, K), mask[:, None], 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_mask_of_any_float_dtype(dtype: torch.dtype) -> None:
    x, mask = torch.randn(Q, K).half(), torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 2.0, 0.0])
    expected = scaled_masked_softmax_forward(x, mask == 1, 0.5)
    assert torch.equal(scaled_masked_softmax_forward(x, mask.to(dtype), 0.5), expected)


def test_a_converted_mask_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []
    forward = dispatch.forward
    monkeypatch.setattr(dispatch, "forward", lambda request: masks.append(request.mask) or forward(request))  # type: ignore[func-returns-value]
    x, mask = torch.randn(B, H, Q, K).half(), ones(B, 1, Q, K, dtype=torch.float32)
    y = scaled_masked_softmax_forward(x, mask.expand(B, H, Q, K), 0.5)
    assert masks[0].numel() == B * Q * K and torch.equal(y, scaled_masked_softmax_forward(x, mask, 0.5))


def test_transforms_differentiate_the_forward() -> None:
    """In both modes, as they do torch's operations."""
    x, mask, w = torch.randn(Q, K).double(), ones(Q, K), torch.randn(Q, K).double()
    gradient = torch.func.grad(lambda x: (w * scaled_masked_softmax_forward(x, mask, 0.5)).sum())(x)
    expected = scaled_masked_softmax_backward(w, scaled_masked_softmax_forward(x, mask, 0.5), 0.5)
    torch.testing.assert_close(gradient, expected.masked_fill(mask, 0.0))
    moved = torch.func.jvp(lambda x: scaled_masked_softmax_forward(x, mask, 0.5), (x,), (w,))[1]
    torch.testing.assert_close((moved * w).sum(), (gradient * w).sum())


def test_transforms_follow_the_backward() -> None:
    y, dy = torch.rand(1, 2, 3, 5, dtype=torch.float64).softmax(-1), torch.randn(1, 2, 3, 5, dtype=torch.float64)

    def of_both(back: Any) -> tuple[torch.Tensor, ...]:
        return torch.func.grad(lambda dy, y: back(dy, y).square().sum(), argnums=(0, 1))(dy, y)

    ours = of_both(lambda dy, y: scaled_masked_softmax_backward(dy, y, 0.5))
    formula = of_both(lambda dy, y: 0.5 * y * (dy - (y * dy).sum(-1, keepdim=True)))
    torch.testing.assert_close(ours, formula)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_transforms_may_be_compiled(backend: str) -> None:
    """no_grad, under which the forward computes, would hide it from them. A row of -inf stays all zeros."""
    torch._dynamo.reset()
    x, weights = scores(B, H, Q, K), scores(B, H, Q, K, seed=1)

    def loss(x: Tensor) -> Tensor:
        return (scaled_masked_softmax_forward(x, None, 0.5) * weights).square().sum()

    x[0, 0, 0] = -torch.inf
    expected = torch.func.grad(loss)(x)
    found = torch.compile(lambda x: torch.func.grad(loss)(x), backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0 and torch.equal(found[0, 0, 0], torch.zeros(K))


@pytest.mark.parametrize("function", [scaled_masked_softmax_forward, scaled_masked_softmax_backward])
def test_a_derivative_with_respect_to_scale_is_refused(function: Any) -> None:
    x, scale = scores(B, H, Q, K), torch.tensor([0.5])
    second = None if function is scaled_masked_softmax_forward else x.softmax(-1)
    for transformed in (
        torch.func.grad(lambda scale: function(x, second, scale).sum()),
        lambda scale: torch.func.jvp(lambda scale: function(x, second, scale), (scale,), (scale,)),
    ):
        with pytest.raises(ValueError, match=r"scale is a .*; want a number, since it has no derivative"):
            transformed(scale)
    of_x = torch.func.grad(lambda x: function(x, second, scale[0]).square().sum())(x)
    assert of_x.abs().max() > 0


def test_torch_fx_records_the_forward() -> None:
    traced = torch.fx.symbolic_trace(lambda x, mask: scaled_masked_softmax_forward(x, mask, 0.5))
    x, mask = scores(B, H, Q, K), ones(B, 1, Q, K)
    assert torch.equal(traced(x, mask), scaled_masked_softmax_forward(x, mask, 0.5))
