"""Gradients of general calls against finite differences and torch's operations; what is saved, launched, refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import softmax_ops
from softmax_ops import dispatch
from softmax_ops.checks import BackwardRequest
from tests.support.small import leaf, normal, one_thread

__all__ = ["one_thread"]  # a fixture, for every test

B, H, Q, K = 2, 3, 4, 5


LENGTHS = torch.tensor([4, 0], dtype=torch.int32)
MASK = torch.rand(B, 1, Q, K, generator=torch.Generator().manual_seed(1)) < 0.3
HIDING = normal(H, 1, K, seed=3)
HIDING[1, 0, 2] = -torch.inf

# Arguments, and which of them are differentiated besides x.
CALLS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "scale": {"scale": -0.7},
    "scale in a tensor": {"scale": torch.tensor([0.7])},
    "scale of each row": {"scale": normal(B, 1, Q, seed=1)},
    "mask": {"mask": MASK},
    "lengths": {"key_lengths": LENGTHS},
    "causal": {"causal": True, "causal_offset": -1},
    "offset in a tensor": {"causal": True, "causal_offset": torch.tensor([1])},
    "window": {"window": (1, 1)},
    "window, offset in a tensor": {"window": (1, None), "causal_offset": torch.tensor([0])},
    "slopes": {"alibi_slopes": normal(H, seed=2), "causal_offset": 9},
    "slopes, causal": {"alibi_slopes": normal(H, seed=2, dtype=torch.float32), "causal": True},
    "softcap": {"softcap": 1.5},
    "softcap, mask, lengths": {"softcap": 0.7, "scale": 2.0, "mask": MASK, "key_lengths": LENGTHS, "window": (2, 2)},
    "bias": {"bias": HIDING, "scale": 0.7},
    "bias of rows": {"bias": normal(Q, 1, seed=4), "causal": True},
    "bias, scale of each row": {"bias": normal(1, H, Q, K, seed=5), "scale": normal(Q, seed=1), "mask": MASK},
    "sinks": {"sinks": normal(H, seed=6), "scale": 0.7},
    "sinks, window": {"sinks": normal(H, seed=6), "window": (1, 0), "causal_offset": -2},
    "sinks, softcap": {"sinks": normal(H, seed=6), "softcap": 1.5, "causal": True},
    "most": {
        "bias": normal(B, 1, 1, K, seed=7),
        "sinks": normal(H, seed=6),
        "scale": normal(H, 1, seed=8),
        "mask": MASK,
        "key_lengths": LENGTHS,
        "window": (3, 1),
        "alibi_slopes": normal(H, seed=2),
    },
}

every_call = pytest.mark.parametrize("name", CALLS)
either = pytest.mark.parametrize("function", [softmax_ops.softmax, softmax_ops.log_softmax], ids=["y", "log y"])


def of(name: str) -> tuple[list[Tensor], Callable[..., dict[str, Any]]]:
    """The tensors to differentiate, x first; and a function that puts all but x into the arguments."""
    arguments = CALLS[name]
    names = [each for each in ("bias", "sinks") if each in arguments]
    inputs = [leaf(B, H, Q, K), *(arguments[each].clone().requires_grad_() for each in names)]
    return inputs, lambda *given: arguments | dict(zip(names, given, strict=True))


def finite(*outputs: Tensor) -> tuple[Tensor, ...]:
    """Replaces -inf, which log y and lse have where there is nothing to differentiate, by 0."""
    return tuple(torch.where(output == -torch.inf, 0.0, output) for output in outputs)


# numbers


@either
@every_call
def test_derivatives_of_y_and_of_lse(name: str, function: Callable[..., Any]) -> None:
    inputs, arguments = of(name)

    def both(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return finite(*function(x, return_lse=True, **arguments(*rest)))

    assert torch.autograd.gradcheck(both, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x, *rest: finite(function(x, **arguments(*rest))), inputs, fast_mode=True)


@either
@every_call
def test_second_derivatives(name: str, function: Callable[..., Any]) -> None:
    inputs, arguments = of(name)

    def both(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return finite(*function(x, return_lse=True, **arguments(*rest)))

    assert torch.autograd.gradgradcheck(both, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@either
@pytest.mark.parametrize("frozen", ["x", "bias", "sinks"])
def test_what_is_not_asked_for_changes_nothing(frozen: str, function: Callable[..., Any]) -> None:
    tensors = {"x": leaf(B, H, Q, K), "bias": leaf(Q, K, seed=1), "sinks": leaf(H, seed=2)}
    dy = normal(B, H, Q, K, seed=3)
    expected = torch.autograd.grad(function(**tensors, scale=0.5), list(tensors.values()), dy)
    wanted = [name for name in tensors if name != frozen]
    tensors[frozen] = tensors[frozen].detach()
    found = torch.autograd.grad(function(**tensors, scale=0.5), [tensors[name] for name in wanted], dy)
    for name, gradient in zip(("x", "bias", "sinks"), expected, strict=True):
        if name in wanted:
            assert torch.equal(found[wanted.index(name)], gradient)


@pytest.mark.parametrize("shape", [(B, H, Q, K), (1, H, 1, K), (Q, 1), (K,), (1,), (B, 1, Q, K)], ids=str)
def test_bias_gradient_sums_what_was_broadcast(shape: tuple[int, ...]) -> None:
    x, bias, dy = normal(B, H, Q, K), leaf(*shape, seed=1), normal(B, H, Q, K, seed=2)
    (found,) = torch.autograd.grad(softmax_ops.softmax(x, bias=bias, scale=0.5), bias, dy)
    (expected,) = torch.autograd.grad((x * 0.5 + bias).softmax(-1), bias, dy)
    torch.testing.assert_close(found, expected)


# 16 bits and float32


@pytest.mark.parametrize(
    ("dtype", "result", "bias_dtype", "each"),
    [(torch.float16, torch.float32, torch.float16, 4e-7), (torch.float64, None, torch.float32, 1.0)],
    ids=["16 bits from float32", "float32 from float64"],
)
def test_bias_gradient_is_rounded_once_summed(
    dtype: torch.dtype, result: torch.dtype | None, bias_dtype: torch.dtype, each: float
) -> None:
    """What each row adds may be too small for the bias's dtype, or lose digits when added to the sum so far."""
    x, bias = torch.zeros(600, 1, 2, dtype=dtype), torch.zeros(2, dtype=bias_dtype, requires_grad=True)
    y = softmax_ops.softmax(x, bias=bias, dtype=result)
    dy = torch.tensor([each / 10, 0.0], dtype=y.dtype).expand(y.shape)
    (found,) = torch.autograd.grad(y, bias, dy)
    assert torch.equal(found, torch.tensor([15 * each, -15 * each], dtype=torch.float64).to(bias_dtype))


@either
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True], ids=["as x", "float32"])
@pytest.mark.parametrize("bias_wide", [False, True], ids=["bias as x", "float32 bias"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_dtypes_of_gradients(
    scale: float, bias_wide: bool, wide: bool, dtype: torch.dtype, function: Callable[..., Any]
) -> None:
    """Each has its input's dtype, and is within a few units of the float64 gradients from the same y."""
    x, sinks = leaf(B, H, Q, K, dtype=dtype), leaf(H, seed=1, dtype=torch.float32)
    bias = leaf(H, 1, K, seed=2, dtype=torch.float32 if bias_wide else dtype)
    inputs = [x, bias, sinks]
    result = torch.float32 if wide else dtype
    y = function(x, bias=bias, sinks=sinks, scale=scale, dtype=result)
    dy = normal(B, H, Q, K, seed=3, dtype=result)
    found = torch.autograd.grad(y, inputs, dy)
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(
        function(doubles[0], bias=doubles[1], sinks=doubles[2], scale=scale), doubles, dy.double()
    )
    eps = torch.finfo(dtype).eps
    for gradient, tensor, close in zip(found, inputs, expected, strict=True):
        assert gradient.dtype is tensor.dtype
        torch.testing.assert_close(gradient.double(), close, rtol=4 * eps, atol=8 * eps)
    if bias_wide:  # summed in float32
        assert not torch.equal(found[1], found[1].to(dtype).float())
    if wide and bias_wide:  # nothing was rounded to 16 bits in between
        torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=1e-5)


# what is saved and launched


def saved_by(call: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return call(), saved


@either
def test_the_result_alone_is_saved(function: Callable[..., Any]) -> None:
    x, bias = leaf(B, H, Q, K), leaf(H, Q, K)
    arguments = {"mask": MASK, "alibi_slopes": normal(H), "window": (2, 0), "return_lse": True}
    (y, _), saved = saved_by(lambda: function(x, bias=bias, **arguments))
    assert [tensor.data_ptr() for tensor in saved] == [y.data_ptr()]


@pytest.mark.parametrize("arguments", [{"softcap": 1.0}, {"sinks": normal(H)}], ids=["softcap", "sinks"])
def test_lse_is_saved_where_it_is_needed(arguments: dict[str, Any]) -> None:
    y, saved = saved_by(lambda: softmax_ops.softmax(leaf(B, H, Q, K), **arguments))
    shapes = [tuple(tensor.shape) for tensor in saved]
    assert saved[0].data_ptr() == y.data_ptr() and shapes[1] == (B, H, Q) and shapes[2:] in ([], [(H,)])


def test_what_is_saved_does_not_hold_the_scores() -> None:
    import weakref

    x = leaf(B, H, Q, K)
    scores = x * 2
    held = weakref.ref(scores)
    y = softmax_ops.softmax(scores, softcap=2.0, key_lengths=LENGTHS)
    del scores
    assert held() is None and y.grad_fn is not None


def launches(monkeypatch: pytest.MonkeyPatch) -> list[BackwardRequest]:
    requests: list[BackwardRequest] = []
    compute = dispatch.backward

    def counted(request: BackwardRequest, batch_invariant: bool = False) -> Any:
        requests.append(request)
        return compute(request, batch_invariant)

    monkeypatch.setattr(dispatch, "backward", counted)
    return requests


@pytest.mark.parametrize(
    ("wanted", "scale", "launched"),
    [
        ("x", 0.5, [0.5]),
        ("bias", 0.5, [1.0]),
        ("bias sinks", 0.5, [1.0]),
        ("x bias sinks", 1.0, [1.0]),
        ("x bias", 0.5, [1.0, 0.5]),
        ("sinks", 0.5, [0.5]),
    ],
)
def test_launches_of_the_backward(
    wanted: str, scale: float, launched: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, and a second one only if x wants scale * dz and a bias dz. Row values only for sinks."""
    requests = launches(monkeypatch)
    tensors: dict[str, Any] = {"x": normal(B, H, Q, K), "bias": normal(Q, K), "sinks": normal(H)}
    for name in wanted.split():
        tensors[name].requires_grad_()
    softmax_ops.softmax(**tensors, scale=scale).sum().backward()
    assert sorted(request.scale for request in requests) == sorted(launched)
    assert any(request.return_dot for request in requests) == ("sinks" in wanted)


def test_bounds_reach_the_backward_and_slopes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward does not read what the forward did not; instead of a mask it has y."""
    requests = launches(monkeypatch)
    offset = torch.tensor([1])
    arguments: dict[str, Any] = {"window": (2, None), "causal": True, "causal_offset": offset, "key_lengths": LENGTHS}
    softmax_ops.log_softmax(leaf(B, H, Q, K), alibi_slopes=normal(H), **arguments).sum().backward()
    (request,) = requests
    assert (request.left, request.right, request.offset_tensor, request.key_lengths) == (2, 0, offset, LENGTHS)
    assert request.log and request.lse is None and request.grad_lse is None and request.dtype is torch.float64
    softmax_ops.softmax(leaf(B, H, Q, K), alibi_slopes=normal(H), causal_offset=3).sum().backward()
    assert not requests[1].general and requests[1].causal_offset is None


def test_a_sink_of_minus_infinity_beside_rows_that_see_nothing_has_no_gradient() -> None:
    sinks = torch.full((H,), -torch.inf, dtype=torch.float64, requires_grad=True)
    softmax_ops.softmax(normal(B, H, Q, K), sinks=sinks, key_lengths=LENGTHS).square().sum().backward()
    assert sinks.grad is not None and torch.equal(sinks.grad, torch.zeros_like(sinks))


def test_unused_results_cost_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, x = launches(monkeypatch), leaf(Q, K)
    y, lse = softmax_ops.softmax(x, return_lse=True)
    (of_lse,) = torch.autograd.grad(lse.sum(), x, retain_graph=True)
    torch.testing.assert_close(of_lse, y.detach())  # d logsumexp = softmax
    (of_y,) = torch.autograd.grad(y, x, normal(Q, K, seed=1))
    assert torch.equal(of_y, softmax_ops.softmax_backward(normal(Q, K, seed=1), y.detach()))
    assert requests[0].grad_lse is not None and requests[1].grad_lse is None


def test_what_asks_for_nothing_new_has_second_derivatives() -> None:
    def plain(x: Tensor) -> Tensor:
        return softmax_ops.softmax(x, dtype=torch.float64, window=(None, 0))

    assert torch.autograd.gradgradcheck(plain, (leaf(Q, K),))


# what is refused


@either
@pytest.mark.parametrize("beside", ["bias", "alibi_slopes"])
def test_softcap_with_what_is_added_has_no_backward(beside: str, function: Callable[..., Any]) -> None:
    x, arguments = normal(B, H, Q, K), {"softcap": 1.0, beside: normal(H, 1, 1) if beside == "bias" else normal(H)}
    assert function(x, **arguments).grad_fn is None
    with pytest.raises(NotImplementedError, match=f"softcap with {beside} has no backward.*want softcap alone"):
        function(x.clone().requires_grad_(), **arguments)
    with torch.no_grad():
        assert not function(x.clone().requires_grad_(), **arguments).requires_grad
    if beside == "bias":
        with pytest.raises(NotImplementedError, match="no backward"):
            function(x, softcap=1.0, bias=leaf(K))


@either
@pytest.mark.parametrize("name", ["scale", "alibi_slopes"])
@pytest.mark.parametrize("how", ["grad", "jvp", "dual"])
def test_what_has_no_derivative_is_refused(how: str, name: str, function: Callable[..., Any]) -> None:
    x, value = normal(B, H, Q, K), normal(H, 1).abs() if name == "scale" else normal(H)

    def call(value: Tensor) -> Tensor:
        return function(x, **{name: value}).exp().sum()

    with pytest.raises((NotImplementedError, ValueError), match=f"no (derivative|gradient) with respect to {name}"):
        if how == "grad":
            torch.func.grad(call)(value)
        elif how == "jvp":
            torch.func.jvp(call, (value,), (value,))
        else:
            with forward_ad.dual_level():
                call(forward_ad.make_dual(value, value))


def test_autocast_keeps_the_dtype() -> None:
    x = normal(Q, K, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, lse = softmax_ops.log_softmax(x, return_lse=True)
    assert y.dtype is torch.float16 and lse.dtype is torch.float32


@pytest.mark.parametrize("name", ["bias", "sinks, softcap", "most"])
def test_checkpointing_computes_it_again(name: str) -> None:
    """Saved tensors are unpacked only once, which is all that a checkpoint allows."""
    inputs, arguments = of(name)
    dy = normal(B, H, Q, K, seed=9)

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        return softmax_ops.softmax(x, **arguments(*rest))

    expected = torch.autograd.grad(call(*inputs), inputs, dy)
    found = torch.autograd.grad(torch.utils.checkpoint.checkpoint(call, *inputs, use_reentrant=False), inputs, dy)
    for gradient, same in zip(found, expected, strict=True):
        assert torch.equal(gradient, same)


def test_what_has_no_gradient_may_require_one_where_nothing_is_recorded() -> None:
    """Such as a learned temperature, or slopes, at inference."""
    x, scale, slopes = normal(B, H, Q, K), leaf(1, seed=1), leaf(H, seed=2)
    calls: list[Callable[[], Any]] = [
        lambda: softmax_ops.softmax(x, scale=scale),
        lambda: softmax_ops.softmax(x, scale=scale.sum()),
        lambda: softmax_ops.log_softmax(x, alibi_slopes=slopes),
        lambda: softmax_ops.softmax_backward(x, x, scale=scale),
        lambda: torch.ops.softmax_ops.general(x, 1.0, scale),
        lambda: torch.ops.softmax_ops.general(x, alibi_slopes=slopes),
    ]
    for call in calls:
        with torch.no_grad():
            call()
        with torch.inference_mode():
            call()
        with pytest.raises(ValueError, match=r"requires grad, and no gradient with respect to .*no_grad"):
            call()


def test_small_gradients_of_a_wider_bias_are_summed_before_they_are_rounded() -> None:
    """In 16 bits most of them would be 0."""
    x, bias = torch.randn(64, 512).half(), torch.zeros(512, requires_grad=True)
    dy = (torch.rand(64, 512) * 1e-4).half()
    (ours,) = torch.autograd.grad(softmax_ops.softmax(x, bias=bias), bias, dy)
    y = (x.double() + bias).softmax(-1)
    (expected,) = torch.autograd.grad(y, bias, dy.double())
    assert (ours - expected).norm() < 2e-3 * expected.norm()
