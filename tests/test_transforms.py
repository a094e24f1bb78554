"""torch.func and forward mode of calls with every argument: against the same call of each sample, and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import softmax_ops
from softmax_ops import dispatch
from tests.support.small import normal

N, B, H, Q, K = 3, 2, 4, 5, 6


def bits(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.3


def integers(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(0, K + 1, shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


# The shape of x in a sample; tensors by argument, "batched" ones with the batch in front; other arguments; and how many
# calls the whole batch takes.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Tensor], dict[str, Tensor], dict[str, Any], int]] = {
    "log": ((Q, K), {}, {}, {"window": (1, 2)}, 1),
    "one row": ((K,), {}, {"bias": normal(K)}, {"scale": 0.5}, 1),
    "one row, each with a bias and a scale": ((K,), {"bias": normal(N, K), "scale": normal(N)}, {}, {}, 1),
    "masks of a lower rank": ((B, Q, K), {"mask": bits(N, K)}, {}, {"softcap": 2.0}, 1),
    "biases": ((B, H, Q, K), {"bias": normal(N, H, 1, K)}, {"mask": bits(Q, K)}, {"causal": True}, 1),
    "scale of each row": ((B, Q, K), {"scale": normal(N, Q)}, {}, {"causal": True}, 1),
    "scales of samples": ((B, Q, K), {"scale": normal(N, 1, 1)}, {}, {}, 1),
    "one scale": ((B, Q, K), {}, {"scale": normal(1)}, {}, 1),
    "offset of each sample": ((Q, K), {"causal_offset": integers(N)}, {}, {"causal": True}, 1),
    "offset of each sample, entries": ((B, H, Q, K), {"causal_offset": integers(N, 1)}, {}, {"window": (2, 0)}, 1),
    "offsets of entries": ((B, H, Q, K), {"causal_offset": integers(N, B, dtype=torch.int64)}, {}, {"causal": True}, 1),
    "one offset": ((B, H, Q, K), {}, {"causal_offset": integers(1)}, {"causal": True}, 1),
    "lengths of samples": ((B, H, Q, K), {"key_lengths": integers(N, B)}, {}, {"causal": True}, 1),
    "lengths": ((B, H, Q, K), {}, {"key_lengths": integers(B)}, {}, 1),
    "lengths, offset of each sample": (
        (B, H, Q, K),
        {"causal_offset": integers(N)},
        {"key_lengths": integers(B), "bias": normal(B, 1, 1, K), "mask": bits(1, 1, K), "scale": normal(B, 1, 1)},
        {"causal": True},
        1,
    ),
    "lengths of rows": ((Q, K), {}, {"key_lengths": integers(Q)}, {}, N),
    "slopes": ((H, Q, K), {}, {"alibi_slopes": normal(H)}, {"causal": True}, 1),
    "slopes of samples": ((B, H, Q, K), {"alibi_slopes": normal(N, H)}, {}, {}, N),
    "sinks": ((B, H, Q, K), {}, {"sinks": normal(H)}, {"scale": 0.5}, 1),
    "sinks of samples": ((B, H, Q, K), {"sinks": normal(N, H)}, {}, {}, N),
    "sinks, lengths of heads": ((H, Q, K), {}, {"sinks": normal(H), "key_lengths": integers(H)}, {}, N),
    "sinks, lengths": ((B, H, Q, K), {}, {"sinks": normal(H), "key_lengths": integers(B)}, {"softcap": 1.5}, 1),
}

every_case = pytest.mark.parametrize("name", CASES)
either = pytest.mark.parametrize("function", [softmax_ops.softmax, softmax_ops.log_softmax], ids=["y", "log y"])


def counted(monkeypatch: pytest.MonkeyPatch, direction: str) -> list[Any]:
    requests, compute = [], getattr(dispatch, direction)

    def count(request: Any, *rest: Any) -> Any:
        requests.append(request)
        return compute(request, *rest)

    monkeypatch.setattr(dispatch, direction, count)
    return requests


def samples(tensors: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: tensor[i] for name, tensor in tensors.items()}


@either
@every_case
def test_vmap_is_the_call_of_each_sample(
    name: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, batched, shared, numbers, calls = CASES[name]
    x = normal(N, *shape)

    def one(x: Tensor, batched: dict[str, Tensor]) -> Any:
        return function(x, return_lse=True, **batched, **shared, **numbers)

    expected = [one(x[i], samples(batched, i)) for i in range(N)]
    requests = counted(monkeypatch, "forward")
    found = torch.vmap(one)(x, batched)
    assert len(requests) == calls
    for ours, theirs in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-13, atol=1e-13)
    only_y = torch.vmap(lambda x, batched: function(x, **batched, **shared, **numbers))(x, batched)
    torch.testing.assert_close(only_y, found[0], rtol=0, atol=0)


@either
@every_case
def test_gradients_of_each_sample(name: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shape, batched, shared, numbers, calls = CASES[name]
    x, dy, of_lse = normal(N, *shape), normal(N, *shape, seed=1), normal(N, *shape[:-1], seed=2)
    followed = {name: tensor for name, tensor in (batched | shared).items() if name in ("bias", "sinks")}

    def loss(x: Tensor, followed: dict[str, Tensor], dy: Tensor, of_lse: Tensor, rest: dict[str, Tensor]) -> Tensor:
        y, lse = function(x, return_lse=True, **(shared | rest | followed), **numbers)
        return (y * dy).masked_fill(y == -torch.inf, 0.0).sum() + (lse * of_lse).masked_fill(lse == -torch.inf, 0).sum()

    gradient = torch.func.grad(loss, argnums=(0, 1))
    own = {name: tensor for name, tensor in followed.items() if name in batched}
    common = {name: tensor for name, tensor in followed.items() if name in shared}
    expected = []
    for i in range(N):
        leaves = [x[i].clone().requires_grad_()]
        leaves += [tensor.clone().requires_grad_() for tensor in (common | samples(own, i)).values()]
        given = dict(zip((common | own), leaves[1:], strict=True))
        expected.append(
            torch.autograd.grad(loss(leaves[0], given, dy[i], of_lse[i], samples(batched, i) | given), leaves)
        )
    requests = counted(monkeypatch, "backward")
    found = torch.vmap(gradient, in_dims=(0, dict.fromkeys(common) | dict.fromkeys(own, 0), 0, 0, 0))(
        x, common | own, dy, of_lse, batched
    )
    scaled = "bias" in followed and ("scale" in batched | shared | numbers)  # dz and dx are a launch each
    assert len(requests) <= (1 + scaled) * (calls if name != "sinks of samples" else 1)
    for ours, theirs in zip([found[0], *found[1].values()], zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-12, atol=1e-12)


@either
@every_case
def test_tangents_of_each_sample(name: str, function: Callable[..., Any]) -> None:
    """Against central differences, in which log y is compared where it is finite."""
    shape, batched, shared, numbers, _ = CASES[name]
    x, tangent = normal(N, *shape), normal(N, *shape, seed=1)

    def pushed(x: Tensor, tangent: Tensor, batched: dict[str, Tensor]) -> Any:
        return torch.func.jvp(lambda x: function(x, return_lse=True, **batched, **shared, **numbers), (x,), (tangent,))

    results, tangents = torch.vmap(pushed)(x, tangent, batched)
    h = 1e-6
    for i in range(N):
        above, below = (
            function(x[i] + step * tangent[i], return_lse=True, **samples(batched, i), **shared, **numbers)
            for step in (h, -h)
        )
        for result, found, high, low in zip(results, tangents, above, below, strict=True):
            expected = ((high - low) / (2 * h)).masked_fill(result[i] == -torch.inf, 0.0)
            torch.testing.assert_close(
                found[i].masked_fill(result[i] == -torch.inf, 0.0), expected, rtol=1e-6, atol=1e-8
            )


def test_a_tangent_takes_one_launch_and_no_copy_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of softmax alone, it is what the backward computes: the Jacobian is symmetric."""
    x, tangent = normal(B, Q, K, dtype=torch.float16), normal(B, Q, K, seed=1, dtype=torch.float16)
    forwards, backwards = counted(monkeypatch, "forward"), counted(monkeypatch, "backward")
    y, t, *_ = torch.func.jvp(lambda x: softmax_ops.softmax(x, scale=0.5, causal=True), (x,), (tangent,))
    assert (len(forwards), len(backwards)) == (1, 1)
    assert torch.equal(t, softmax_ops.softmax_backward(tangent, y, scale=0.5, causal=True))


@either
def test_a_hidden_nan_reaches_no_tangent(function: Callable[..., Any]) -> None:
    x, mask = normal(Q, K), bits(Q, K)
    hidden = x.masked_fill(mask, torch.nan)
    tangents = [torch.func.jvp(lambda x: function(x, mask=mask, softcap=1.5), (each,), (x,))[1] for each in (x, hidden)]
    assert torch.equal(*tangents) and tangents[0].isfinite().all()


@either
def test_forward_mode_without_torch_func(function: Callable[..., Any]) -> None:
    x, tangent, bias = normal(Q, K), normal(Q, K, seed=1), normal(K, seed=2)
    expected = torch.func.jvp(lambda x, bias: function(x, bias=bias, scale=0.5), (x, bias), (tangent, bias))
    with forward_ad.dual_level():
        dual, bias_dual = forward_ad.make_dual(x, tangent), forward_ad.make_dual(bias, bias)
        y, t = forward_ad.unpack_dual(function(dual, bias=bias_dual, scale=0.5))
        out = torch.empty_like(x)
        function(dual, bias=bias_dual, scale=0.5, out=out)
        written = forward_ad.unpack_dual(out)
    torch.testing.assert_close((y, t), expected)
    torch.testing.assert_close((written.primal, written.tangent), expected)


@either
def test_nothing_but_the_result_is_kept_for_a_gradient(function: Callable[..., Any]) -> None:
    """Of torch.func too: x and what else forward mode needs are kept only for that."""
    import weakref

    mask, gone = bits(Q, K), []

    def loss(x: Tensor) -> Tensor:
        scores = x * 2.0
        gone.append(weakref.ref(scores))
        y = function(scores, mask=mask, return_lse=True)[0]
        del scores
        assert gone[0]() is None
        return y.masked_fill(mask, 0.0).sum()

    torch.func.vjp(loss, normal(Q, K))


@either
def test_a_hessian_is_that_of_torch(function: Callable[..., Any]) -> None:
    x, bias = normal(K), normal(K, seed=1)
    theirs = torch.softmax if function is softmax_ops.softmax else torch.log_softmax

    def ours(x: Tensor, bias: Tensor) -> Tensor:
        return function(x, scale=0.5, bias=bias)[1].sin()

    def torchs(x: Tensor, bias: Tensor) -> Tensor:
        return theirs(x * 0.5 + bias, -1)[1].sin()

    def reverse_over_forward(function: Callable[..., Any], argnums: tuple[int, ...]) -> Callable[..., Any]:
        return torch.func.jacrev(torch.func.jacfwd(function, argnums), argnums)

    for transform in (torch.func.hessian, reverse_over_forward):
        torch.testing.assert_close(transform(ours, argnums=(0, 1))(x, bias), transform(torchs, argnums=(0, 1))(x, bias))


@pytest.mark.parametrize("beside", ["bias", "alibi_slopes"])
def test_softcap_with_what_is_added_has_tangents_and_no_gradient(beside: str) -> None:
    """Its gradient would need the scores, which are not kept. The tangent of x is with x."""
    x = normal(B, H, Q, K)
    arguments: dict[str, Any] = {"softcap": 1.5, beside: normal(H, 1, 1) if beside == "bias" else normal(H)}

    def function(x: Tensor) -> Tensor:
        y: Any = softmax_ops.softmax(x, **arguments)
        return y[..., 1].sum()

    for gradient in (
        torch.func.grad(function),
        torch.func.grad(lambda x: torch.vmap(function)(x).sum()),
        lambda x: torch.ops.softmax_ops.general(x.requires_grad_(), **arguments)[0].sum().backward(),
    ):
        with pytest.raises(NotImplementedError, match=f"softcap with {beside} has no backward"):
            gradient(x.clone())
    h, tangent = 1e-6, normal(B, H, Q, K, seed=1)
    _, found, *_ = torch.func.jvp(function, (x,), (tangent,))
    expected = (function(x + h * tangent) - function(x - h * tangent)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_vmap_over_a_vmap_and_an_operator() -> None:
    x, bias = normal(2, N, Q, K), normal(N, K, seed=1)
    expected = softmax_ops.log_softmax(x, bias=bias[:, None])
    nested = torch.vmap(torch.vmap(lambda x, bias: softmax_ops.log_softmax(x, bias=bias)), in_dims=(0, None))
    torch.testing.assert_close(nested(x, bias), expected)
    if hasattr(torch.library.CustomOpDef, "register_vmap"):
        one = torch.vmap(lambda x, bias: torch.ops.softmax_ops.general(x, bias=bias, log=True))
        y, lse = one(x[0], bias)
        torch.testing.assert_close(y, expected[0])
        assert lse.numel() == 0


@either
def test_what_a_transform_leaves_behind_reaches_no_kernel(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pullback that is called later has saved a wrapper of the transform, which has no memory."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    y, pull, *_ = torch.func.vjp(lambda x: function(x, softcap=2.0, scale=0.5) + function(x), normal(Q, K))
    plain_y, plain_pull, *_ = torch.func.vjp(softmax_ops.softmax, normal(Q, K))
    requests = counted(monkeypatch, "backward")
    with torch.no_grad():
        pull(y)
        plain_pull(plain_y)
    assert len(requests) == 3
    for request in requests:
        assert not any(isinstance(each, Tensor) and wrapped(each) for each in request)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")
def test_linearize_records_the_operator() -> None:
    x, tangent = normal(Q, K), normal(Q, K, seed=1)
    y, push = torch.func.linearize(lambda x: softmax_ops.softmax(x, scale=0.5), x)
    torch.testing.assert_close(push(tangent), softmax_ops.softmax_backward(tangent, y, scale=0.5))


def test_a_compiled_vmap() -> None:
    x, bias = normal(N, Q, K), normal(N, K, seed=1)
    one = torch.vmap(lambda x, bias: softmax_ops.log_softmax(x, bias=bias))
    compiled = torch.compile(one, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, bias), one(x, bias))


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.grad,
        torch.func.jacrev,
        torch.func.hessian,
        lambda function: torch.vmap(torch.func.grad(function)),
        lambda function: torch.func.grad(lambda x: torch.vmap(function)(x).sum()),
    ],
    ids=["grad", "jacrev", "hessian", "vmap of grad", "grad of vmap"],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch about its own tensors
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_compiled_gradient_leaves_the_graph(transform: Callable[..., Any], direction: str) -> None:
    """torch has no rule for an operator inside of a compiled grad: without a break in the graph it fails."""
    dy = normal(Q, K, seed=1)

    def function(x: Tensor) -> Tensor:
        y = (
            softmax_ops.softmax(x, scale=0.5)
            if direction == "fwd"
            else softmax_ops.softmax_backward(dy.expand_as(x), x)
        )
        return y.square().sum()

    x = normal(N, Q, K)
    torch._dynamo.reset()
    compiled = torch.compile(transform(function), backend="aot_eager")
    torch.testing.assert_close(compiled(x), transform(function)(x))


def capped(x: Tensor) -> Tensor:
    return torch.softmax(2.0 * torch.tanh(x / 2.0), -1)


def gradient_of(x: Tensor) -> Tensor:
    return softmax_ops.softmax_backward(x.sin(), torch.softmax(x, -1))


def gradient_in_torch(x: Tensor) -> Tensor:
    y, dy = torch.softmax(x, -1), x.sin()
    return y * (dy - (y * dy).sum(-1, keepdim=True))


AND_IN_TORCH: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softmax": (softmax_ops.softmax, lambda x: torch.softmax(x, -1)),
    "log_softmax": (softmax_ops.log_softmax, lambda x: torch.log_softmax(x, -1)),
    "softcap": (lambda x: softmax_ops.softmax(x, softcap=2.0), capped),
    "gradient": (gradient_of, gradient_in_torch),
}


@pytest.mark.parametrize(("ours", "in_torch"), AND_IN_TORCH.values(), ids=list(AND_IN_TORCH))
@pytest.mark.parametrize("modes", ["fff", "rff", "ffr", "frf"])
def test_third_derivatives_in_mixed_modes(
    ours: Callable[[Tensor], Tensor], in_torch: Callable[[Tensor], Tensor], modes: str
) -> None:
    """Forward mode within forward mode: a rule must not hide its operations from the levels around it."""

    def third(function: Callable[[Tensor], Tensor]) -> Tensor:
        derivative: Callable[[Tensor], Any] = lambda x: function(x).square().sum()  # noqa: E731
        for mode in modes:
            derivative = torch.func.jacfwd(derivative) if mode == "f" else torch.func.jacrev(derivative)
        return derivative(normal(3))

    torch.testing.assert_close(third(ours), third(in_torch))


def test_a_tangent_of_log_softmax_where_the_probability_is_0() -> None:
    x, t = torch.tensor([0.0, 150.0, 3.0]), torch.tensor([1.0, 0.0, 2.0])
    assert torch.func.jvp(softmax_ops.log_softmax, (x,), (t,))[1].tolist() == [1.0, 0.0, 2.0]


def test_hidden_scores_reach_no_derivative() -> None:
    """Not a hidden NaN, a probability of 0 in a third one, or a row that sees nothing beside a sink of -inf in a second
    one.
    """
    x, hidden = torch.tensor([torch.nan, 1.0, 2.0], requires_grad=True), torch.tensor([True, False, False])

    def masked(x: Tensor) -> Tensor:
        return softmax_ops.softmax(x, mask=hidden, softcap=2.0)

    tangent = torch.func.jvp(masked, (x,), (torch.tensor([0.0, 1.0, 2.0]),))[1]
    (dx,) = torch.autograd.grad(tangent.square().sum(), x)
    assert dx[0] == 0.0 and dx[1:].abs().min() > 0.0

    x = normal(3).requires_grad_()
    found: Tensor = masked(x)
    for _ in range(3):
        (found,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    assert found[0] == 0.0 and found[1:].isfinite().all() and found[1:].abs().min() > 0.0

    x, sinks = normal(1, 2, 3).requires_grad_(), torch.full((1,), -torch.inf, dtype=torch.float64, requires_grad=True)
    y = softmax_ops.softmax(x, sinks=sinks, mask=torch.tensor([[True], [False]]))
    first = torch.autograd.grad(y.square().sum(), (x, sinks), create_graph=True)
    of_x, of_sinks = torch.autograd.grad(first[0].square().sum() + first[1].sum(), (x, sinks))
    assert (of_x[0, 0] == 0.0).all() and of_x[0, 1].abs().min() > 0.0 and of_sinks.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_tangent_of_a_bias_alone(dtype: torch.dtype) -> None:
    x, bias = normal(Q, K, dtype=dtype), normal(K, seed=1, dtype=dtype)
    y, t = torch.func.jvp(lambda bias: softmax_ops.softmax(x, bias=bias), (bias,), (torch.ones_like(bias),))[:2]
    assert y.dtype is t.dtype is dtype and t.abs().max() < torch.finfo(dtype).eps  # a constant shifts nothing


def test_functionalize() -> None:
    x = normal(Q, K)
    for function in (softmax_ops.softmax, softmax_ops.log_softmax, lambda x: softmax_ops.softmax_backward(x, x)):
        assert torch.equal(torch.func.functionalize(function)(x), function(x))


def test_an_empty_batch_of_what_takes_a_call_of_its_own() -> None:
    x, sinks = normal(0, H, Q, K, dtype=torch.float32), torch.zeros(0, H)
    y, lse = torch.vmap(lambda x, sinks: softmax_ops.softmax(x, sinks=sinks, return_lse=True))(x, sinks)
    assert y.shape == x.shape and lse.shape == x.shape[:-1] and y.dtype is x.dtype


@pytest.mark.parametrize(
    "arguments",
    [
        {"softcap": True},
        {"scale": "0.5"},
        {"scale": [1]},
        {"causal": True, "causal_offset": 1.9},
        {"causal": True, "causal_offset": float("inf")},
        {"softcap": torch.tensor(3.0, requires_grad=True)},
    ],
    ids=str,
)
def test_what_a_call_refuses_a_transformed_one_refuses(arguments: dict[str, Any]) -> None:
    """With the same words, and not what float() and int() make of it."""
    x = normal(N, Q, K)
    with pytest.raises(TypeError) as alone:
        softmax_ops.softmax(x[0], **arguments)
    with pytest.raises(TypeError) as transformed:
        torch.vmap(lambda x: softmax_ops.softmax(x, **arguments))(x)
    assert str(transformed.value) == str(alone.value)


def test_a_gradient_of_a_scale_is_refused_and_not_lost() -> None:
    x, scale = normal(N, Q, K).requires_grad_(), torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match=r"scale is a float32 tensor .* requires grad"):
        torch.vmap(lambda x: softmax_ops.softmax(x, scale=scale))(x)
    with pytest.raises(ValueError, match=r"scale is a float32 tensor .* requires grad"):
        torch.vmap(lambda y: softmax_ops.softmax_backward(y, y, scale=scale))(x)


@pytest.mark.parametrize("name", ["scale", "alibi_slopes"])
def test_what_has_no_gradient_may_require_one_under_no_grad(name: str) -> None:
    x, given = normal(N, H, Q, K), normal(H if name == "alibi_slopes" else 1, dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        arguments: dict[str, Any] = {name: given}
        found = torch.vmap(lambda x: softmax_ops.softmax(x, **arguments))(x)
        expected = softmax_ops.softmax(x, **arguments)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("shape", "of_scale"), [((K,), (1,)), ((Q, K), (1, 1)), ((Q, K), (1, 1, 1))], ids=str)
def test_a_scale_of_one_element_has_any_rank_in_forward_mode(shape: tuple[int, ...], of_scale: tuple[int, ...]) -> None:
    x, t, scale = normal(*shape), normal(*shape, seed=1), torch.full(of_scale, 0.5, dtype=torch.float64)
    found = torch.func.jvp(lambda x: softmax_ops.log_softmax(x, scale=scale), (x,), (t,))[1]
    torch.testing.assert_close(found, torch.func.jvp(lambda x: torch.log_softmax(0.5 * x, -1), (x,), (t,))[1])


def test_the_tangent_of_a_hidden_score_may_be_nan() -> None:
    """Like the score itself: keys that are padded may hold anything."""
    hidden = torch.tensor([False, False, True, False])
    x, t = torch.tensor([1.0, 2.0, torch.nan, 0.5]), torch.tensor([1.0, 0.0, torch.nan, 2.0])
    found = torch.func.jvp(lambda x: softmax_ops.softmax(x, scale=0.5, mask=hidden), (x,), (t,))[1]
    seen, of_seen = x[~hidden], t[~hidden]
    expected = torch.func.jvp(lambda x: torch.softmax(0.5 * x, -1), (seen,), (of_seen,))[1]
    torch.testing.assert_close(found[~hidden], expected)
    assert found[2] == 0
