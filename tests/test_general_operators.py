"""torch.ops.softmax_ops.general and its backward: torch.library's checks, compiled and exported programs, fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import softmax_ops
from softmax_ops import dispatch, schema
from tests.support.small import fresh_compiler, one_thread
from tests.test_operators import Seen, bits, leaf, normal

__all__ = ["fresh_compiler", "one_thread"]  # fixtures, for every test

B, H, Q, K = 2, 3, 4, 6

FORWARD = torch.ops.softmax_ops.general.default
BACKWARD = torch.ops.softmax_ops.general_backward.default

LENGTHS = torch.tensor([5, 0], dtype=torch.int32)


# Keyword arguments of the functions.
CALLS: dict[str, dict[str, Any]] = {
    "lse": {"return_lse": True},
    "bias": {"bias": leaf(H, 1, K, seed=1), "scale": 0.5},
    "sinks": {"sinks": leaf(H, seed=2), "causal": True, "return_lse": True},
    "softcap": {"softcap": 2.0, "mask": bits(B, 1, 1, K), "window": (2, 1)},
    "lengths, slopes": {"key_lengths": LENGTHS, "alibi_slopes": normal(H, seed=3), "causal": True, "causal_offset": 1},
    "tensors": {"scale": normal(B, 1, Q, seed=4), "causal_offset": torch.tensor([1]), "window": (3, None)},
    "numbers in tensors": {"scale": torch.tensor(0.5), "causal_offset": torch.tensor(1), "window": (3, 0)},
    "dtype": {"dtype": torch.float32, "x": leaf(B, H, Q, K, dtype=torch.float16), "batch_invariant": True},
    "frozen": {"x": normal(B, H, Q, K), "bias": normal(K), "softcap": 1.0},
}

every_call = pytest.mark.parametrize("name", CALLS)
either = pytest.mark.parametrize("function", [softmax_ops.softmax, softmax_ops.log_softmax], ids=["y", "log y"])


def of(name: str) -> tuple[Tensor, dict[str, Any]]:
    arguments = dict(CALLS[name])
    return arguments.pop("x") if "x" in arguments else leaf(B, H, Q, K), arguments


def of_operator(x: Tensor, arguments: dict[str, Any], log: bool) -> dict[str, Any]:
    plain = {"scale": 1.0, "causal_offset": None, "window": None, "softcap": None} | arguments
    return schema.to_operator("", x, plain) | {"log": log}


def tensors(*results: Any) -> list[Tensor]:
    """The tensors with elements among results that may be pairs."""
    flat = [each for result in results for each in (result if isinstance(result, tuple) else (result,))]
    return [tensor for tensor in flat if tensor.numel()]


def same(found: Any, expected: Any, inputs: list[Tensor]) -> None:
    """Compares values and gradients, of y alone or with lse."""
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
    if inputs:
        losses = [
            sum(torch.where(y == -torch.inf, 0, y).sin().sum() for y in side) for side in zip(*pairs, strict=True)
        ]
        gradients = [torch.autograd.grad(loss, inputs) for loss in losses if isinstance(loss, Tensor)]
        for ours, theirs in zip(*gradients, strict=True):
            assert torch.equal(ours, theirs)


def differentiated(x: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
    given = [x, *(value for value in arguments.values() if isinstance(value, Tensor))]
    return [tensor for tensor in given if tensor.requires_grad]


@pytest.mark.parametrize("log", [False, True])
@every_call
def test_forward_is_a_valid_operator(name: str, log: bool) -> None:
    """Schema, autograd registration, fake tensors, tracing with dynamic shapes."""
    x, arguments = of(name)
    torch.library.opcheck(FORWARD, (x,), of_operator(x, arguments, log))


@pytest.mark.parametrize(
    "arguments",
    [
        {"window": (1, 1), "return_dot": True},
        {"log": True, "scale": normal(B, 1, Q), "grad_lse": normal(B, H, Q)},
        {"softcap": 2.0, "lse": normal(B, H, Q), "key_lengths": LENGTHS, "dtype": torch.float16},
    ],
    ids=str,
)
def test_backward_is_a_valid_operator(arguments: dict[str, Any]) -> None:
    dy, y = normal(B, H, Q, K), normal(B, H, Q, K, seed=1).softmax(-1)
    given = of_operator(y, arguments, arguments.get("log", False))
    torch.library.opcheck(BACKWARD, (dy, y), given)
    dx, d = BACKWARD(dy, y, **given)
    assert dx.dtype is arguments.get("dtype", y.dtype) and d.shape == ((B, H, Q) if "return_dot" in arguments else (0,))


@either
@every_call
def test_operator_is_the_function(name: str, function: Callable[..., Any]) -> None:
    x, arguments = of(name)
    given = of_operator(x, arguments, function is softmax_ops.log_softmax)
    y, lse = FORWARD(x, **given)
    expected = function(x, **arguments | {"return_lse": bool(lse.numel())})
    same((y, lse), expected, differentiated(x, arguments))


@either
@every_call
def test_compiled(name: str, function: Callable[..., Any]) -> None:
    x, arguments = of(name)
    program = torch.compile(function, backend="aot_eager", fullgraph="numbers" not in name)
    same(program(x, **arguments), function(x, **arguments), differentiated(x, arguments))


def test_compiled_into_out() -> None:
    x, out = normal(B, Q, K, dtype=torch.float16), torch.empty(B, Q, K)
    program = torch.compile(
        lambda x, out: softmax_ops.softmax(x, out=out, softcap=2.0), backend="aot_eager", fullgraph=True
    )
    assert program(x, out) is out and torch.equal(out, softmax_ops.softmax(x, softcap=2.0, dtype=torch.float32))


def test_compiled_backward_of_ones_own() -> None:
    dy, y = normal(B, Q, K), normal(B, Q, K, seed=1).softmax(-1)
    out = torch.empty(B, Q, K, dtype=torch.float16)

    def program(dy: Tensor, y: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        return softmax_ops.log_softmax_backward(dy, y), softmax_ops.softmax_backward(dy, y, window=(1, 1), out=out)

    found = torch.compile(program, backend="aot_eager", fullgraph=True)(dy, y, out)
    for ours, theirs in zip(found, program(dy, y, torch.empty_like(out)), strict=True):
        assert torch.equal(ours, theirs)
    assert found[1].dtype is torch.float16


def test_one_graph_serves_every_shape_offset_and_scale() -> None:
    """And every window, even one that depends on the shape."""
    counter = CompileCounterWithBackend("aot_eager")

    def program(x: Tensor, bias: Tensor, scale: Tensor, offset: int) -> Any:
        window = (x.shape[-1] // 3, 1)
        return softmax_ops.softmax(
            x, bias=bias, scale=scale, window=window, causal_offset=offset, return_lse=True, sinks=torch.ones(H)
        )

    function = torch.compile(program, backend=counter, fullgraph=True, dynamic=True)
    for queries, columns, offset in ((4, 6, 2), (5, 9, 3), (7, 8, 11)):
        x, bias, scale = leaf(B, H, queries, columns), normal(queries, columns), normal(queries)
        same(function(x, bias, scale, offset), program(x, bias, scale, offset), [x])
    assert counter.frame_count == 1


def test_exported_program_holds_the_operator() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: Tensor, lengths: Tensor, sinks: Tensor) -> Tensor:
            return softmax_ops.softmax(x, scale=0.5, key_lengths=lengths, sinks=sinks, window=(3, 0))

    batch, columns = torch.export.Dim("batch", min=2), torch.export.Dim("columns", min=2)
    dynamic = {"x": {0: batch, 3: columns}, "lengths": {0: batch}, "sinks": {}}
    example = normal(B, H, Q, K), LENGTHS, normal(H)
    program = torch.export.export(Attention(), example, dynamic_shapes=dynamic)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"].count(FORWARD) == 1
    given = normal(5, H, Q, 9), torch.arange(5, dtype=torch.int32), normal(H)
    assert torch.equal(program.module()(*given), Attention()(*given))


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_fake_tensors(device: str) -> None:
    """Shape, dtype, device and strides, without a GPU; values are not read."""
    with FakeTensorMode():
        x = torch.empty(H, B, K, Q, dtype=torch.float16, device=device).permute(1, 0, 3, 2)
        one, lengths = torch.ones(1, device=device), torch.ones(B, dtype=torch.int32, device=device)
        tensors: dict[str, Any] = {
            "scale": one,
            "causal_offset": one.int(),
            "key_lengths": lengths,
            "sinks": one.expand(H),
        }
        y, lse = softmax_ops.softmax(x, causal=True, dtype=torch.float32, return_lse=True, **tensors)
        log_y = softmax_ops.log_softmax(x, softcap=2.0)
        dx = softmax_ops.softmax_backward(y, y, dtype=torch.float16, grad_lse=lse)
    expected = {y: torch.float32, lse: torch.float32, log_y: torch.float16, dx: torch.float16}
    for result, dtype in expected.items():
        assert (result.dtype, str(result.device)) == (dtype, device) and result.is_contiguous()
        assert result.shape == ((B, H, Q) if result is lse else (B, H, Q, K))


ERRORS: dict[str, Callable[[], Any]] = {
    "bias": lambda: softmax_ops.softmax(torch.ones(Q, K), bias=torch.ones(5)),
    "lengths": lambda: softmax_ops.log_softmax(torch.ones(Q, K), key_lengths=torch.ones(3, dtype=torch.int32)),
    "window": lambda: softmax_ops.softmax(torch.ones(Q, K), window=(-1, 0)),
    "scale": lambda: softmax_ops.softmax(torch.ones(Q, K), scale=torch.ones(2)),
    "offset": lambda: softmax_ops.softmax(torch.ones(Q, K), causal_offset=torch.ones(1)),
    "dtype": lambda: softmax_ops.softmax(torch.ones(Q, K), dtype=torch.float16),
    "out": lambda: softmax_ops.softmax(torch.ones(Q, K), softcap=1.0, out=torch.ones(Q, K).half()),
    "recorded": lambda: softmax_ops.log_softmax(torch.ones(Q, K, requires_grad=True), out=torch.ones(Q, K)),
    "recorded lse": lambda: softmax_ops.softmax_backward(
        torch.ones(Q, K), torch.ones(Q, K), grad_lse=torch.ones(Q, requires_grad=True), out=torch.ones(Q, K)
    ),
    "softcap": lambda: softmax_ops.softmax(torch.ones(Q, K, requires_grad=True), softcap=1.0, bias=torch.ones(K)),
    "lse": lambda: softmax_ops.softmax_backward(torch.ones(Q, K), torch.ones(Q, K), lse=torch.ones(Q)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_fake_tensors_are_those_of_real_ones(name: str) -> None:
    with pytest.raises((ValueError, NotImplementedError)) as eager:
        ERRORS[name]()
    with FakeTensorMode(), pytest.raises(type(eager.value)) as fake:
        ERRORS[name]()
    assert str(fake.value) == str(eager.value)


def test_a_dispatch_mode_sees_the_operators_and_nothing_beneath() -> None:
    x, sinks = leaf(B, H, Q, K), leaf(H)
    with Seen() as mode:
        softmax_ops.log_softmax(x, sinks=sinks, scale=0.5).sum().backward()
    assert mode.operators.count(FORWARD) == 1 and mode.operators.count(BACKWARD) == 1


def test_eager_calls_do_not_reach_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "softmax_ops", None)
    softmax_ops.softmax(normal(Q, K), softcap=2.0, return_lse=True)
    softmax_ops.log_softmax(leaf(Q, K)).sum().backward()


def test_causality_reaches_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward does not read what the forward did not."""
    requests: list[Any] = []
    compute = dispatch.backward

    def counted(request: Any, batch_invariant: bool) -> Any:
        requests.append(request)
        return compute(request, batch_invariant)

    monkeypatch.setattr(dispatch, "backward", counted)
    y, _ = FORWARD(leaf(Q, K), causal=True, log=True)
    y.logsumexp(-1).sum().backward()
    assert [(request.left, request.right, request.causal_offset) for request in requests] == [(None, 0, K - Q)]
