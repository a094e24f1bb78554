"""Gradients against finite differences and the reference, by autograd and torch.func; what is saved and recorded."""

from __future__ import annotations

import contextlib
import runpy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.torch_version import TorchVersion

import softmax_ops
from softmax_ops import autograd, current, dispatch, transforms
from softmax_ops.checks import check_softmax
from tests.support import reference
from tests.support.reference import DTYPE_NAMES, DTYPES, assert_close, to_numpy
from tests.support.small import normal, one_thread

__all__ = ["one_thread"]  # a fixture, for every test

B, H, Q, K = 2, 3, 4, 5

every_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))

CALLS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((B, Q, K), {}),
    "scale": ((B, Q, K), {"scale": 0.7}),
    "negative scale": ((B, Q, K), {"scale": -1.3}),
    "scale 0": ((Q, K), {"scale": 0.0}),
    "mask": ((B, H, 2, K), {"scale": 0.7, "mask": "B11K"}),
    "full mask": ((H, Q, K), {"mask": "HQK"}),
    "causal": ((B, Q, K), {"causal": True, "scale": 0.7}),
    "causal, mask": ((B, Q, K), {"causal": True, "mask": "B1K"}),
    "offset 0": ((B, Q, K), {"causal": True, "causal_offset": 0}),
    "offset -2": ((B, Q, K), {"causal": True, "causal_offset": -2}),  # two rows that see nothing
    "offset beyond": ((Q, K), {"causal": True, "causal_offset": 99}),
    "more queries than columns": ((6, 3), {"causal": True}),  # three rows that see nothing
    "row": ((K,), {"scale": 0.7}),
    "causal row": ((K,), {"causal": True, "causal_offset": 2}),
    "masked row": ((K,), {"mask": "K"}),
    "batch invariant": ((Q, K), {"batch_invariant": True}),
}

every_call = pytest.mark.parametrize("name", CALLS)


def bits(*shape: int, seed: int = 1) -> Tensor:
    """A mask with both values in it; with several rows, the first one is hidden entirely."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask.view(-1, shape[-1])[0] = len(shape) > 1
    mask.view(-1)[-1], mask.view(-1)[-2] = False, True
    return mask


def call(name: str) -> tuple[tuple[int, ...], dict[str, Any]]:
    shape, arguments = CALLS[name]
    if "mask" not in arguments:
        return shape, arguments
    sizes = {"B": B, "H": H, "Q": Q, "K": K, "1": 1}
    return shape, arguments | {"mask": bits(*(sizes[letter] for letter in arguments["mask"]))}


def of_backward(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "mask"}


def offset_of(shape: tuple[int, ...], arguments: dict[str, Any]) -> int | None:
    default = shape[-1] - (shape[-2] if len(shape) > 1 else 1)
    return arguments.get("causal_offset", default) if arguments.get("causal") else None


def in_torch(x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None, offset: int | None = None) -> Tensor:
    """The contract for rows that see something, in operations that torch itself can differentiate."""
    hidden = torch.zeros(x.shape[-2:] if x.dim() > 1 else x.shape, dtype=torch.bool)
    if offset is not None:
        hidden = ~torch.ones(hidden.shape, dtype=torch.bool).tril(offset)
    if mask is not None:
        hidden = hidden | (mask == 1)
    return (x * scale).masked_fill(hidden, -torch.inf).softmax(-1)


# numbers


@every_call
def test_first_and_second_derivative_of_the_forward(name: str) -> None:
    shape, arguments = call(name)
    x = normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: softmax_ops.softmax(x, **arguments), (x,))
    assert torch.autograd.gradgradcheck(lambda x: softmax_ops.softmax(x, **arguments), (x,))


@every_call
def test_first_and_second_derivative_of_the_backward(name: str) -> None:
    """For any y, not only for one that is a softmax."""
    shape, arguments = call(name)
    dy, y = normal(*shape, seed=2).requires_grad_(), normal(*shape, seed=3).requires_grad_()

    def backward(dy: Tensor, y: Tensor) -> Tensor:
        return softmax_ops.softmax_backward(dy, y, **of_backward(arguments))

    assert torch.autograd.gradcheck(backward, (dy, y))
    assert torch.autograd.gradgradcheck(backward, (dy, y))


@every_dtype
@every_call
def test_gradient_is_that_of_the_reference(name: str, dtype: torch.dtype) -> None:
    shape, arguments = call(name)
    x = (3 * normal(*shape)).to(dtype).requires_grad_()
    dy = normal(*shape, seed=2, dtype=dtype)
    y = softmax_ops.softmax(x, **arguments)
    y.backward(dy)
    assert x.grad is not None and x.grad.dtype is dtype

    given = (to_numpy(dy), to_numpy(y), arguments.get("scale", 1.0), offset_of(shape, arguments))
    expected, magnitude = reference.softmax_backward(*given), reference.backward_magnitude(*given)
    assert_close(x.grad, expected, DTYPE_NAMES[dtype], floor=0.0, magnitude=magnitude)


@pytest.mark.parametrize("name", ["plain", "negative scale", "causal", "row"])
def test_gradient_and_its_gradient_are_those_of_torch(name: str) -> None:
    shape, arguments = call(name)
    x, dy, g = normal(*shape).requires_grad_(), normal(*shape, seed=2).requires_grad_(), normal(*shape, seed=3)
    expected = in_torch(x, scale=arguments.get("scale", 1.0), offset=offset_of(shape, arguments))
    for y in (softmax_ops.softmax(x, **arguments), expected):
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        found = (dx, *torch.autograd.grad(dx, (x, dy), g))
        if y is not expected:
            ours = found
    torch.testing.assert_close(ours, found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_second_derivative_in_16_bits(dtype: torch.dtype) -> None:
    """It is computed in float32: within a few spacings of the float64 result on the same y."""
    dy, y, g = normal(Q, K, seed=2, dtype=dtype), normal(Q, K).softmax(-1).to(dtype), normal(Q, K, seed=3, dtype=dtype)

    def gradients(wide: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [tensor.to(wide).requires_grad_() for tensor in (dy, y)]
        return torch.autograd.grad(softmax_ops.softmax_backward(*inputs, scale=0.5), inputs, g.to(wide))

    for narrow, wide in zip(gradients(dtype), gradients(torch.float64), strict=True):
        assert narrow.dtype is dtype
        torch.testing.assert_close(narrow.double(), wide, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_gradient_of_an_expanded_upstream_gradient() -> None:
    """As from a sum: one number with strides 0. The rows of a softmax sum to 1 whatever x is."""
    x = normal(B, Q, K).requires_grad_()
    softmax_ops.softmax(x, causal=True).sum().backward()
    assert x.grad is not None and x.grad.abs().max() < 1e-15


def test_gradient_of_an_empty_tensor() -> None:
    x = torch.empty(3, 0, requires_grad=True)
    softmax_ops.softmax(x).sum().backward()
    assert x.grad is not None and x.grad.shape == (3, 0)


# what is saved and recorded


def test_the_forward_saves_its_result_and_nothing_else() -> None:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x, mask = normal(B, H, Q, K).requires_grad_(), bits(B, 1, 1, K)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = softmax_ops.softmax(x, scale=0.5, mask=mask, causal=True)
    assert [tensor.data_ptr() for tensor in saved] == [y.data_ptr()]


def test_the_backward_runs_twice_where_the_graph_is_kept() -> None:
    x, dy = normal(Q, K).requires_grad_(), normal(Q, K, seed=2)
    y = softmax_ops.softmax(x)
    (first,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(first, second) and first.grad_fn is None
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(dy)


def test_checkpointing_computes_it_again() -> None:
    x, dy = normal(Q, K).requires_grad_(), normal(Q, K, seed=2)
    (expected,) = torch.autograd.grad(softmax_ops.softmax(x, causal=True), x, dy)
    checkpointed = torch.utils.checkpoint.checkpoint(
        lambda x: softmax_ops.softmax(x, causal=True), x, use_reentrant=False
    )
    assert torch.equal(torch.autograd.grad(checkpointed, x, dy)[0], expected)


def gpu_path(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """In place as on a GPU, where a kernel writes without torch noticing. Here the kernel writes zeros."""
    monkeypatch.setattr(current, "working_on", contextlib.nullcontext)

    def zeros(direction: str, scalars: Any, tensors: tuple[Tensor, ...], others: Any) -> Tensor:
        tensors[-1].data.zero_()
        return tensors[-1]

    monkeypatch.setattr(dispatch, "_launch", zeros)

    def softmax_(out: Tensor) -> None:
        request = check_softmax(out, scale=1.0, mask=None, causal=False, causal_offset=None, out=out)
        dispatch.compute("fwd", (request.x,), {}, request.out, dispatch.Scalars(1.0, 0.0, None, False))

    return softmax_


@pytest.mark.parametrize("write", ["softmax_", "out=", "backward out=", "on a GPU"])
def test_writing_to_a_saved_tensor_is_noticed(write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(Q, K).requires_grad_()
    y = x.sigmoid()  # saves y
    alias = y.detach()
    before = alias._version
    if write == "softmax_":
        assert softmax_ops.softmax_(alias) is alias
    elif write == "out=":
        assert softmax_ops.softmax(normal(Q, K, seed=4), out=alias) is alias
    elif write == "backward out=":
        assert softmax_ops.softmax_backward(normal(Q, K, seed=4), normal(Q, K, seed=5), out=alias) is alias
    else:
        gpu_path(alias, monkeypatch)(alias)
        assert not alias.any()
    assert alias._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_versions_are_incremented_before_torch_2_6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.6, torch's function takes a single tensor, and refuses a tuple as this one does."""

    def of_one(tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            raise RuntimeError("increment_version expect a Tensor as input")
        current.increment_version((tensor,))

    monkeypatch.setattr(torch._C, "_increment_version", of_one)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.5.1+cu124"))
    x = normal(Q, K)
    before = x._version
    runpy.run_path(current.__file__)["increment_version"]((x,))
    assert x._version > before


def test_overwriting_the_result_is_noticed() -> None:
    x = normal(Q, K).requires_grad_()
    y = softmax_ops.softmax(x)
    y.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("which", ["x", "out"])
def test_out_is_refused_where_a_gradient_is_asked_for(which: str) -> None:
    x, out = normal(Q, K), normal(Q, K)
    {"x": x, "out": out}[which].requires_grad_()
    with pytest.raises(ValueError, match=rf"{which} requires grad .*invisible to autograd"):
        softmax_ops.softmax(x, out=out)
    with pytest.raises(ValueError, match=rf"{'dy' if which == 'x' else 'out'} requires grad .*invisible to autograd"):
        softmax_ops.softmax_backward(x, normal(Q, K), out=out)
    with torch.no_grad():
        assert softmax_ops.softmax(x, out=out) is out


@pytest.mark.parametrize("way", ["no_grad", "inference_mode", "detached", "requires none"])
def test_what_needs_no_gradient_is_not_recorded(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("went through autograd")

    for function in (autograd.Softmax, transforms.Backward):
        monkeypatch.setattr(function, "apply", never)
    x = normal(Q, K).requires_grad_(way != "requires none")
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(way, contextlib.nullcontext)
    with context():
        x = x.detach() if way == "detached" else x
        y = softmax_ops.softmax(x)
        dx = softmax_ops.softmax_backward(x, x)
    for result in (y, dx):
        assert result.grad_fn is None and not result.requires_grad
        assert result.is_inference() == (way == "inference_mode")


def test_what_is_recorded_costs_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every call, torch would inspect the signature of anything that a transform may use."""

    def never(*arguments: Any) -> None:
        raise AssertionError("a signature was looked at, or a gradient recorded")

    x, dy = normal(Q, K).requires_grad_(), normal(Q, K)
    monkeypatch.setattr(torch.autograd.function, "inspect", SimpleNamespace(signature=never))
    y, lse = softmax_ops.softmax(x), softmax_ops.softmax(x, return_lse=True)[1]
    monkeypatch.setattr(transforms.Backward, "apply", never)
    torch.autograd.grad((y, lse), x, (dy, dy[:, 0]))


def test_inference_tensors_may_be_overwritten() -> None:
    with torch.inference_mode():
        x = normal(Q, K)
        expected = softmax_ops.softmax(x)
        assert torch.equal(softmax_ops.softmax_(x), expected)
        x = normal(Q, K)
    with pytest.raises(ValueError, match=r"out is a .* made in inference mode, and the call is outside"):
        softmax_ops.softmax_(x)


def test_a_gradient_may_be_lazily_negated() -> None:
    """Autograd makes them of complex numbers."""
    x, weight = normal(Q, K).requires_grad_(), torch.complex(normal(Q, K, seed=1), normal(Q, K, seed=2))

    def gradient(softmax: Callable[[Tensor], Tensor]) -> Tensor:
        imaginary = torch.complex(torch.zeros(Q, K, dtype=x.dtype), softmax(x))
        return torch.autograd.grad((imaginary.conj() * weight).real.sum(), x)[0]

    assert torch.allclose(gradient(softmax_ops.softmax), gradient(lambda x: x.softmax(-1)))


def test_explain_does_not_mind_a_gradient() -> None:
    """As under no_grad."""
    x = normal(Q, K).requires_grad_()
    assert softmax_ops.explain(x, out=torch.empty(Q, K, dtype=x.dtype)).variant


def test_parameters_are_plain_tensors() -> None:
    y = softmax_ops.softmax(torch.nn.Parameter(normal(Q, K)))
    assert type(y) is Tensor and "CustomOp" not in type(y.grad_fn).__name__ and y.grad_fn is not None


# torch.func


def test_grad_and_jacobian() -> None:
    x, weight = normal(Q, K), normal(Q, K, seed=2)
    expected = torch.func.grad(lambda x: (in_torch(x, scale=0.5, offset=1) * weight).sum())(x)
    found = torch.func.grad(lambda x: (softmax_ops.softmax(x, scale=0.5, causal=True) * weight).sum())(x)
    torch.testing.assert_close(found, expected)
    jacobian = torch.func.jacrev(lambda x: softmax_ops.softmax(x, scale=0.5, causal=True))(x)
    torch.testing.assert_close(jacobian, torch.func.jacrev(lambda x: in_torch(x, scale=0.5, offset=1))(x))


@pytest.mark.parametrize("name", ["plain", "causal", "row"])
@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd])
def test_hessian(outer: Callable[..., Any], name: str) -> None:
    shape, arguments = call(name)
    weight = normal(*shape, seed=2)
    offset = offset_of(shape, arguments)
    ours = outer(torch.func.jacrev(lambda x: (softmax_ops.softmax(x, **arguments) * weight).sum()))
    theirs = torch.func.jacrev(
        torch.func.jacrev(lambda x: (in_torch(x, scale=arguments.get("scale", 1.0), offset=offset) * weight).sum())
    )
    torch.testing.assert_close(ours(normal(*shape)), theirs(normal(*shape)))


@pytest.mark.parametrize("how", ["jvp", "jvp of grad", "dual"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_forward_mode_by_the_scale_is_refused(how: str, backward: bool) -> None:
    """A scale is used as a number, which has no tangent."""
    x, scale = normal(Q, K), torch.tensor(0.5)

    def function(scale: Tensor, x: Tensor = x) -> Tensor:
        return softmax_ops.softmax_backward(x, x, scale=scale) if backward else softmax_ops.softmax(x, scale=scale)

    with pytest.raises(NotImplementedError, match=r"scale has a tangent"):
        if how == "jvp":
            torch.func.jvp(function, (scale,), (scale,))
        elif how == "jvp of grad":
            gradient = torch.func.grad(lambda x, scale: function(scale, x).sum())
            torch.func.jvp(lambda scale: gradient(x, scale), (scale,), (scale,))
        else:
            with forward_ad.dual_level():
                function(forward_ad.make_dual(scale, scale))


def test_what_has_no_tangent_is_computed_in_forward_mode() -> None:
    x, out = normal(Q, K), normal(Q, K)
    expected = softmax_ops.softmax(x)
    with forward_ad.dual_level():
        assert torch.equal(softmax_ops.softmax(x), expected)
        assert torch.equal(softmax_ops.softmax(x, out=out), expected) and torch.equal(out, expected)


# Shapes of x and mask with the batch, its dimension in each, and the other arguments.
BATCHES: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int | None, int | None], dict[str, Any]]] = {
    "x": ((7, B, Q, K), None, (0, None), {}),
    "x in the middle": ((B, 7, Q, K), None, (1, None), {"causal": True}),
    "x at the end": ((B, Q, K, 7), None, (-1, None), {"causal": True}),
    "x, a mask for all": ((7, B, Q, K), (B, 1, K), (0, None), {"causal": True}),
    "mask": ((B, Q, K), (7, 1, K), (None, 0), {}),
    "mask of lower rank": ((B, H, Q, K), (7, K), (None, 0), {}),
    "both": ((7, B, Q, K), (7, Q, K), (0, 0), {"causal": True, "scale": 0.5}),
    "both, apart": ((B, Q, 7, K), (1, K, 7), (2, 2), {"causal": True, "causal_offset": 0}),
    "rows": ((7, K), None, (0, None), {}),
    "causal rows": ((7, K), None, (0, None), {"causal": True, "causal_offset": 2}),
    "default offset of rows": ((3, K), None, (0, None), {"causal": True}),
    "columns": ((K, 7), None, (1, None), {"causal": True}),
    "rows, a mask for all": ((7, K), (K,), (0, None), {}),
    "a row, masks": ((K,), (7, K), (None, 0), {}),
    "rows, masks": ((7, K), (7, 1), (0, 0), {}),
    "one": ((1, Q, K), (1, Q, K), (0, 0), {"causal": True}),
}


@pytest.mark.parametrize("through", ["function", "operator"])
@pytest.mark.parametrize("name", BATCHES)
def test_vmap_is_one_call_for_each(name: str, through: str) -> None:
    shape, mask_shape, (x_dim, mask_dim), arguments = BATCHES[name]
    x, mask = normal(*shape), None if mask_shape is None else bits(*mask_shape)
    function: Callable[..., Tensor] = (
        softmax_ops.softmax if through == "function" else torch.ops.softmax_ops.softmax.default
    )

    def one(x: Tensor, mask: Tensor | None) -> Tensor:
        return function(x, mask=mask, **arguments)

    size = shape[x_dim] if x_dim is not None else next(n for n in mask_shape or () if n == 7)
    expected = torch.stack(
        [
            one(
                x if x_dim is None else x.select(x_dim, i),
                mask if mask is None or mask_dim is None else mask.select(mask_dim, i),
            )
            for i in range(size)
        ]
    )
    found = torch.vmap(one, in_dims=(x_dim, mask_dim))(x, mask)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert torch.equal(found == 0, expected == 0)  # in visible columns, bit for bit


@pytest.mark.parametrize("through", ["function", "operator"])
@pytest.mark.parametrize("dims", [(0, 0), (1, 0), (0, None), (None, 1), (2, 1)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_vmap_of_the_backward(rank: int, dims: tuple[int | None, int | None], through: str) -> None:
    inner = (B, Q, K)[-rank:]
    if max(dim or 0 for dim in dims) > rank:
        pytest.skip("no such dimension")
    tensors = [
        normal(*inner, seed=seed) if dim is None else normal(*inner[:dim], 7, *inner[dim:], seed=seed)
        for seed, dim in enumerate(dims)
    ]
    function: Callable[..., Tensor] = (
        softmax_ops.softmax_backward if through == "function" else torch.ops.softmax_ops.softmax_backward.default
    )

    def one(dy: Tensor, y: Tensor) -> Tensor:
        return function(dy, y, scale=0.5, causal=True)

    expected = torch.stack(
        [
            one(*(tensor if dim is None else tensor.select(dim, i) for tensor, dim in zip(tensors, dims, strict=True)))
            for i in range(7)
        ]
    )
    torch.testing.assert_close(torch.vmap(one, in_dims=dims)(*tensors), expected, rtol=1e-13, atol=1e-15)


def test_nested_vmap() -> None:
    x, mask = normal(6, 7, Q, K), bits(7, K)

    def one(x: Tensor, mask: Tensor) -> Tensor:
        return softmax_ops.softmax(x, mask=mask, causal=True)

    found = torch.vmap(torch.vmap(one), in_dims=(0, None))(x, mask)
    torch.testing.assert_close(found, softmax_ops.softmax(x, mask=mask[:, None], causal=True))
    rows = torch.vmap(torch.vmap(torch.vmap(softmax_ops.softmax), in_dims=1))(x)
    torch.testing.assert_close(rows, softmax_ops.softmax(x).transpose(1, 2))


def test_vmap_of_grad_and_grad_of_vmap() -> None:
    x, mask, weight = normal(7, Q, K), bits(7, 1, K), normal(7, Q, K, seed=2)

    def loss(x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return (softmax_ops.softmax(x, mask=mask, causal=True, scale=0.5) * weight).sum()

    leaf = x.clone().requires_grad_()
    loss(leaf, mask, weight).backward()
    found = torch.vmap(torch.func.grad(loss))(x, mask, weight)
    torch.testing.assert_close(found, leaf.grad)
    found = torch.func.grad(lambda x: torch.vmap(loss)(x, mask, weight).sum())(x)
    torch.testing.assert_close(found, leaf.grad)


def test_vmap_over_upstream_gradients() -> None:
    """As `torch.autograd.functional` and `is_grads_batched` do."""
    x, dy = normal(Q, K).requires_grad_(), normal(7, Q, K, seed=2)
    y = softmax_ops.softmax(x, causal=True)
    (found,) = torch.autograd.grad(y, x, dy, is_grads_batched=True)
    expected = softmax_ops.softmax_backward(dy, y.detach().expand(7, Q, K), causal=True)
    torch.testing.assert_close(found, expected)

    z, g = normal(Q, K, seed=3).requires_grad_(), normal(7, Q, K, seed=4)
    dx = softmax_ops.softmax_backward(z, y.detach(), causal=True)
    (found,) = torch.autograd.grad(dx, z, g, is_grads_batched=True)
    torch.testing.assert_close(found, softmax_ops.softmax_backward(g, y.detach().expand(7, Q, K), causal=True))


def test_writing_to_out_under_vmap() -> None:
    """The tensors that vmap passes have no memory of their own."""
    x, out = normal(7, Q, K), torch.empty(7, Q, K, dtype=torch.float64)
    expected = softmax_ops.softmax(x, causal=True)
    torch.vmap(lambda x, out: softmax_ops.softmax(x, causal=True, out=out))(x, out)
    torch.testing.assert_close(out, expected)
    torch.vmap(lambda x: softmax_ops.softmax_(x, causal=True), in_dims=1)(written := x.transpose(0, 1).clone())
    torch.testing.assert_close(written.transpose(0, 1), expected)
    dx = torch.empty_like(x)
    torch.vmap(lambda dy, y, out: softmax_ops.softmax_backward(dy, y, out=out))(x, expected, dx)
    torch.testing.assert_close(dx, softmax_ops.softmax_backward(x, expected))


@pytest.mark.parametrize("wrong", [(Q, K + 1), (1, Q, K)])
def test_out_under_vmap_is_validated(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^softmax_ops\.softmax: out is a .* want one dtype, shape and device"):
        torch.vmap(lambda x, out: softmax_ops.softmax(x, out=out))(normal(7, Q, K), normal(7, *wrong))


def test_errors_under_vmap_are_those_of_one_call() -> None:
    mask = bits(3)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\) and x has shape \(4, 5\)"):
        torch.vmap(lambda x: softmax_ops.softmax(x, mask=mask))(normal(7, Q, K))
    with pytest.raises(ValueError, match="x is a 0-d"):
        torch.vmap(softmax_ops.softmax)(normal(7))


# autocast


@every_dtype
def test_autocast_keeps_the_dtype(dtype: torch.dtype) -> None:
    x, dy = normal(Q, K, dtype=dtype).requires_grad_(), normal(Q, K, seed=2, dtype=dtype)
    expected = softmax_ops.softmax(x)
    (gradient,) = torch.autograd.grad(expected, x, dy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = softmax_ops.softmax(x)
        assert torch.equal(softmax_ops.softmax_backward(dy, y.detach()), gradient)
        (inside,) = torch.autograd.grad(y, x, dy)
    assert y.dtype is dtype and torch.equal(y, expected) and torch.equal(inside, gradient)
