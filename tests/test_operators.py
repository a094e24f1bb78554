"""torch.ops.softmax_ops: torch.library's checks, compiled and exported programs, fakes, modes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import softmax_ops
from softmax_ops import dispatch, ops
from tests.support import small
from tests.support.small import fresh_compiler, one_thread

__all__ = ["fresh_compiler", "one_thread"]  # fixtures, for every test

B, H, Q, K = 2, 3, 4, 6

SOFTMAX = torch.ops.softmax_ops.softmax.default
BACKWARD = torch.ops.softmax_ops.softmax_backward.default


normal, leaf = (partial(each, dtype=torch.float32) for each in (small.normal, small.leaf))


def bits(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend="aot_eager", fullgraph=True, **options)


# torch.library's checks


def test_schemas_can_be_inferred_before_torch_2_5() -> None:
    """From types: strings, into which `from __future__ import annotations` turns them, were refused."""
    for operator in (ops.softmax, ops.softmax_backward, ops.general, ops.general_backward):
        assert str not in map(type, inspect.get_annotations(operator._init_fn).values())


FORWARD_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "plain": (normal(B, Q, K),),
    "gradient": (leaf(B, Q, K), 0.5),
    "mask": (leaf(B, H, Q, K), -2.0, bits(B, 1, 1, K)),
    "uint8 mask": (normal(Q, K), 1.0, bits(Q, K).byte()),
    "everything": (leaf(B, H, Q, K), 0.5, bits(B, 1, 1, K), True, 1, True),
    "causal": (leaf(B, Q, K, dtype=torch.float16), 1.0, None, True),
    "row": (leaf(K, dtype=torch.bfloat16), 1.0, bits(K), True),
    "transposed": (normal(K, Q, dtype=torch.float64).t().requires_grad_(),),
    "expanded": (normal(1, K).expand(Q, K),),
    "empty": (normal(0, K),),
}

BACKWARD_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "plain": (normal(B, Q, K), normal(B, Q, K, seed=1)),
    "gradient": (leaf(B, Q, K), leaf(B, Q, K, seed=1), 0.5),
    "everything": (leaf(B, Q, K), leaf(B, Q, K, seed=1), -2.0, True, 1, True),
    "float16": (leaf(Q, K, dtype=torch.float16), normal(Q, K, seed=1, dtype=torch.float16), 1.0, True),
    "row": (leaf(K), leaf(K, seed=1), 1.0, True),
    "expanded": (normal(1, 1).expand(Q, K), normal(K, Q, seed=1).t().requires_grad_()),
    "empty": (normal(Q, 0), normal(Q, 0)),
}


@pytest.mark.parametrize("name", FORWARD_ARGUMENTS)
def test_forward_is_a_valid_operator(name: str) -> None:
    """Schema, autograd registration, fake tensors, tracing with dynamic shapes."""
    torch.library.opcheck(SOFTMAX, FORWARD_ARGUMENTS[name])


@pytest.mark.parametrize("name", BACKWARD_ARGUMENTS)
def test_backward_is_a_valid_operator(name: str) -> None:
    torch.library.opcheck(BACKWARD, BACKWARD_ARGUMENTS[name])


@pytest.mark.parametrize("name", FORWARD_ARGUMENTS)
def test_operator_is_the_function(name: str) -> None:
    x, *rest = FORWARD_ARGUMENTS[name]
    names = ("scale", "mask", "causal", "causal_offset", "batch_invariant")
    expected = softmax_ops.softmax(x, **dict(zip(names, rest, strict=False)))
    y = SOFTMAX(x, *rest)
    assert torch.equal(y, expected) and y.stride() == expected.stride()
    if x.requires_grad:
        dy = normal(*x.shape, seed=2, dtype=x.dtype)
        assert torch.equal(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(expected, x, dy)[0])


def test_second_derivative_of_the_operator() -> None:
    x = leaf(Q, K, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: SOFTMAX(x, 0.5, None, True), (x,))


# compiled programs

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.125},
    "integer scale": {"scale": 2},
    "mask": {"mask": bits(B, 1, 1, K), "scale": 0.5},
    "uint8 mask": {"mask": bits(Q, K).byte()},
    "causal": {"causal": True},
    "offset": {"causal": True, "causal_offset": -1, "mask": bits(1, H, 1, 1)},
    "batch invariant": {"batch_invariant": True},
}


@pytest.mark.parametrize("name", CALLS)
def test_compiled_forward_and_backward_are_the_eager_ones(name: str) -> None:
    arguments = CALLS[name]

    def program(x: Tensor) -> Tensor:
        return softmax_ops.softmax(x * 2, **arguments) + 1

    dy = normal(B, H, Q, K, seed=2)
    results = []
    for function in (program, compiled(program)):
        x = leaf(B, H, Q, K)
        y = function(x)
        y.backward(dy)
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_compiled_backward_function() -> None:
    def program(dy: Tensor, y: Tensor) -> Tensor:
        return softmax_ops.softmax_backward(dy, y, scale=0.5, causal=True)

    dy, y = normal(B, Q, K), normal(B, Q, K, seed=1)
    assert torch.equal(compiled(program)(dy, y), program(dy, y))


@pytest.mark.parametrize("causal", [False, True])
def test_compiled_out_and_in_place(causal: bool) -> None:
    x, dy = normal(B, Q, K), normal(B, Q, K, seed=1)
    expected = softmax_ops.softmax(x, causal=causal)

    out = torch.empty_like(x)
    result = compiled(lambda x, out: softmax_ops.softmax(x, causal=causal, out=out))(x, out)
    assert result is out and torch.equal(out, expected)

    written = x.clone()
    compiled(lambda x: softmax_ops.softmax_(x, causal=causal))(written)
    assert torch.equal(written, expected)

    strided = torch.zeros(B, Q, K + 1)
    compiled(lambda x, out: softmax_ops.softmax(x, causal=causal, out=out))(x, strided[..., :K])
    assert torch.equal(strided[..., :K], expected) and not strided[..., K].any()

    written = dy.clone()
    compiled(lambda dy, y: softmax_ops.softmax_backward(dy, y, causal=causal, out=dy))(written, expected)
    assert torch.equal(written, softmax_ops.softmax_backward(dy, expected, causal=causal))


@pytest.mark.parametrize(
    "out",
    [torch.empty(5, B, Q, K), torch.empty(Q, K), torch.empty(B, Q, K, dtype=torch.float64)],
    ids=["more", "fewer", "float64"],
)
def test_compiled_out_is_validated(out: Tensor) -> None:
    """copy_ alone would broadcast and convert."""
    program = torch.compile(lambda x, out: softmax_ops.softmax(x, out=out), backend="aot_eager")
    with pytest.raises(ValueError, match=r"out is a .* want one dtype, shape and device for both"):
        program(normal(B, Q, K), out)


@pytest.mark.parametrize("which", ["x", "out"])
def test_compiled_out_is_refused_where_a_gradient_is_asked_for(which: str) -> None:
    x, out = normal(B, Q, K), torch.empty(B, Q, K)
    {"x": x, "out": out}[which].requires_grad_()
    program = torch.compile(lambda x, out: softmax_ops.softmax(x, out=out), backend="aot_eager")
    with pytest.raises(Exception, match=f"{which} requires grad"):
        program(x, out)
    with torch.no_grad():
        assert torch.equal(program(x, out), softmax_ops.softmax(x))


def test_one_graph_serves_every_shape() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def program(x: Tensor, mask: Tensor) -> Tensor:
        return softmax_ops.softmax(x, mask=mask, causal=True, scale=0.5)

    function = torch.compile(program, backend=counter, fullgraph=True, dynamic=True)
    for batch, queries, columns in ((2, 4, 6), (3, 5, 9), (7, 8, 3)):
        x, mask = normal(batch, queries, columns), bits(batch, 1, columns)
        assert torch.equal(function(x, mask), program(x, mask))
    assert counter.frame_count == 1


def test_one_graph_serves_every_offset() -> None:
    """The offset grows as a decoder steps."""
    counter = CompileCounterWithBackend("aot_eager")

    def program(x: Tensor, offset: int) -> Tensor:
        return softmax_ops.softmax(x, causal=True, causal_offset=offset)

    function = torch.compile(program, backend=counter, fullgraph=True, dynamic=True)
    for offset in (2, 3, 5, -3, 99, -99):
        x = leaf(B, Q, K)
        y = function(x, offset)
        assert torch.equal(y, program(x, offset))
        (found,) = torch.autograd.grad(y, x, normal(B, Q, K, seed=2))
        assert torch.equal(found, torch.autograd.grad(program(x, offset), x, normal(B, Q, K, seed=2))[0])
    assert counter.frame_count <= 2  # negative ones may get a graph of their own


def test_offset_and_scale_from_shapes() -> None:
    def program(x: Tensor) -> Tensor:
        offset = x.shape[-1] - x.shape[-2]
        return softmax_ops.softmax(x, scale=x.shape[-1] ** -0.5, causal=True, causal_offset=offset)

    function = compiled(program, dynamic=True)
    for columns in (6, 9):
        assert torch.equal(function(normal(B, Q, columns)), program(normal(B, Q, columns)))


def test_numbers_of_numpy_are_numbers_to_a_compiler() -> None:
    """It traces them as arrays. A layer turns them into Python's, integers too."""
    x = normal(B, Q, K)

    def function(x: Tensor, size: int) -> Any:
        return softmax_ops.softmax(x, scale=1 / np.sqrt(size), softcap=np.float32(1.5))  # type: ignore[call-overload]

    layer: Any = softmax_ops.FusedSoftmax
    layers = layer(scale=np.float32(0.5), window=(np.int64(2), None)), layer(causal=True, causal_offset=np.int64(1))
    for callee, given in (function, (x, 64)), *((each, (x,)) for each in layers):
        compiled: Any = torch.compile(callee, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*given), callee(*given))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_scale_in_a_0d_tensor_is_an_input_of_the_graph(direction: str, strict: bool) -> None:
    """Where an eager call reads its value."""
    x, dy = normal(Q, K), normal(Q, K, seed=1)

    class Scaled(torch.nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            if direction == "fwd":
                return softmax_ops.softmax(x, scale=scale, causal=True)
            return softmax_ops.softmax_backward(dy, x, scale=scale, causal=True)

    expected = [Scaled()(x, torch.tensor(scale)) for scale in (0.5, 0.25)]
    exported = torch.export.export(Scaled(), (x, torch.tensor(1.0)), strict=strict).module()
    traced = torch.jit.trace(Scaled(), (x, torch.tensor(1.0)))
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    for program in (exported, traced, torch.compile(Scaled(), backend=counter, fullgraph=True)):
        for scale, y in zip((0.5, 0.25), expected, strict=True):
            torch.testing.assert_close(program(x, torch.tensor(scale)), y)
    assert counter.frame_count == 1


@pytest.mark.parametrize("scale", [torch.tensor(True), torch.tensor(1j)], ids=["bool", "complex"])
def test_a_scale_in_a_tensor_that_is_no_real_number_is_refused_while_compiling(scale: Tensor) -> None:
    program = torch.compile(lambda x: softmax_ops.softmax(x, scale=scale), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="want a real number: pass float"):
        program(normal(Q, K))


def test_compiled_vmap() -> None:
    x, mask = normal(7, Q, K), bits(7, K)

    def one(x: Tensor, mask: Tensor) -> Tensor:
        return softmax_ops.softmax(x, mask=mask, causal=True)

    torch.testing.assert_close(compiled(torch.vmap(one))(x, mask), torch.vmap(one)(x, mask))


with_rules = pytest.mark.skipif(not hasattr(ops.softmax, "register_vmap"), reason="torch 2.5 has it")


@with_rules
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_vmap_of_the_operator_is_one_call(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one per sample, as torch would do without a rule."""
    shapes: list[torch.Size] = []
    compute = getattr(dispatch, direction)

    def counted(request: Any, batch_invariant: bool) -> Tensor:
        shapes.append(request[0].shape)
        result: Tensor = compute(request, batch_invariant)
        return result

    monkeypatch.setattr(dispatch, direction, counted)
    x = normal(7, Q, K)
    torch.vmap(SOFTMAX)(x) if direction == "forward" else torch.vmap(BACKWARD)(x, x)
    assert shapes == [(7, Q, K)]


def test_exported_program_holds_the_operator() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return softmax_ops.softmax(x, scale=0.5, mask=mask, causal=True)

    batch, columns = torch.export.Dim("batch"), torch.export.Dim("columns")
    dynamic = {"x": {0: batch, 2: columns}, "mask": {0: batch, 2: columns}}
    program = torch.export.export(Attention(), (normal(B, Q, K), bits(B, 1, K)), dynamic_shapes=dynamic)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"].count(SOFTMAX) == 1
    x, mask = normal(5, Q, 9), bits(5, 1, 9)
    assert torch.equal(program.module()(x, mask), Attention()(x, mask))


# fake tensors


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fake_tensors(dtype: torch.dtype, device: str) -> None:
    """Shape, dtype, device and strides, without a GPU."""
    with FakeTensorMode():
        x = torch.empty(K, B, Q, dtype=dtype, device=device).permute(1, 2, 0)
        mask = torch.empty(B, 1, K, dtype=torch.bool, device=device)
        y = softmax_ops.softmax(x, mask=mask, causal=True, scale=0.5)
        dx = softmax_ops.softmax_backward(x, y)
    for result in (y, dx):
        assert (result.shape, result.dtype, str(result.device)) == ((B, Q, K), dtype, device)
        assert result.is_contiguous()


ERRORS: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "mask shape": (ValueError, lambda: softmax_ops.softmax(torch.ones(B, Q, K), mask=torch.ones(5, dtype=torch.bool))),
    "mask dtype": (ValueError, lambda: softmax_ops.softmax(torch.ones(B, Q, K), mask=torch.ones(K))),
    "dtype": (ValueError, lambda: softmax_ops.softmax(torch.ones(Q, K, dtype=torch.int64))),
    "0-d": (ValueError, lambda: softmax_ops.softmax(torch.ones(()))),
    "scale": (ValueError, lambda: softmax_ops.softmax(torch.ones(Q, K), scale=float("inf"))),
    "scale tensor": (ValueError, lambda: softmax_ops.softmax(torch.ones(Q, K), scale=torch.ones(2))),
    "recorded scale": (
        ValueError,
        lambda: softmax_ops.softmax(torch.ones(Q, K), scale=torch.tensor(2.0, requires_grad=True)),
    ),
    "offset": (ValueError, lambda: softmax_ops.softmax(torch.ones(Q, K), causal_offset=1)),
    "out": (ValueError, lambda: softmax_ops.softmax(torch.ones(Q, K), out=torch.ones(K))),
    "recorded x": (
        ValueError,
        lambda: softmax_ops.softmax(torch.ones(Q, K, requires_grad=True), out=torch.ones(Q, K)),
    ),
    "shapes": (ValueError, lambda: softmax_ops.softmax_backward(torch.ones(Q, K), torch.ones(K))),
    "dtypes": (ValueError, lambda: softmax_ops.softmax_backward(torch.ones(Q, K), torch.ones(Q, K).half())),
    "backward out": (
        ValueError,
        lambda: softmax_ops.softmax_backward(torch.ones(Q, K), torch.ones(Q, K), out=torch.ones(K)),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_fake_tensors_are_those_of_real_ones(name: str) -> None:
    error, call = ERRORS[name]
    with pytest.raises(error) as eager:
        call()
    with FakeTensorMode(), pytest.raises(error) as fake:
        call()
    assert str(fake.value) == str(eager.value)


def test_errors_while_compiling_say_the_same() -> None:
    x, mask = normal(B, Q, K), bits(5)
    with pytest.raises(ValueError) as eager:
        softmax_ops.softmax(x, mask=mask)
    with pytest.raises(Exception) as raised:
        compiled(lambda x, mask: softmax_ops.softmax(x, mask=mask))(x, mask)
    assert str(eager.value) in str(raised.value)


# which calls reach the operator


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operators.append(func)
        return func(*args, **kwargs or {})


class Marked(Tensor):
    """A subclass that only sees calls that go through torch."""

    seen: list[Any] = []  # noqa: RUF012 (annotating a class attribute of a Tensor as ClassVar changes nothing)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_dispatch_mode_sees_the_operator_and_nothing_beneath() -> None:
    x = leaf(Q, K)
    with Seen() as mode:
        y = softmax_ops.softmax(x, causal=True)
        y.backward(normal(Q, K, seed=1))
    assert mode.operators.count(SOFTMAX) == 1 and mode.operators.count(BACKWARD) == 1
    assert not [operator for operator in mode.operators if "exp" in str(operator)]


def test_an_operator_loses_no_tangent() -> None:
    x, scale = normal(Q, K), torch.ones(1)
    with forward_ad.dual_level(), Seen():
        assert torch.equal(softmax_ops.softmax(x), softmax_ops.softmax(x, scale=scale))
        dual, dual_scale = (forward_ad.make_dual(each, each) for each in (x, scale))
        for call in (
            lambda: softmax_ops.softmax(dual),
            lambda: softmax_ops.softmax_backward(x, dual),
            lambda: softmax_ops.log_softmax(dual),
        ):
            assert forward_ad.unpack_dual(call()).tangent is not None
        with pytest.raises(NotImplementedError, match="has a tangent"):
            softmax_ops.log_softmax_backward(x, x, scale=dual_scale)


def test_a_tensor_subclass_sees_the_operator() -> None:
    Marked.seen.clear()
    x = normal(Q, K).as_subclass(Marked)
    y = softmax_ops.softmax(x)
    assert type(y) is Marked and torch.ops.softmax_ops.softmax in Marked.seen
    assert torch.equal(y.as_subclass(Tensor), softmax_ops.softmax(normal(Q, K)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"causal": 1}, TypeError, "causal is 1 of type int; want a bool"),
        ({"scale": True}, TypeError, "scale is True"),
        ({"scale": "x"}, TypeError, "scale is 'x' of type str"),
        ({"mask": [1]}, TypeError, "mask is of type list"),
        ({"causal": True, "causal_offset": 1.5}, TypeError, "causal_offset is 1.5"),
        ({"batch_invariant": "no"}, TypeError, "batch_invariant is 'no'"),
        ({"causal": True, "causal_offset": 10**30}, ValueError, "want an integer of 64 bits"),
        ({"window": (10**30, 0)}, ValueError, "window_left is 10{30}; want an integer of 64 bits"),
    ],
    ids=str,
)
def test_a_call_that_goes_through_an_operator_is_checked_as_any_other(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    for x in (normal(Q, K).to("meta"), normal(Q, K).as_subclass(Marked)):
        with pytest.raises(error, match=words):
            softmax_ops.softmax(x, **arguments)


def test_meta_tensors_have_shapes_and_gradients() -> None:
    x = torch.empty(3, Q, K, dtype=torch.float16, device="meta", requires_grad=True)
    y, lse = softmax_ops.softmax(x, mask=torch.empty(K, dtype=torch.bool, device="meta"), return_lse=True)
    assert (y.shape, y.dtype, lse.shape, lse.dtype) == (x.shape, x.dtype, x.shape[:-1], torch.float32)
    softmax_ops.softmax(x, scale=0.5, causal=True).sum().backward()
    assert x.grad is not None and (x.grad.shape, x.grad.device) == (x.shape, x.device)
    assert softmax_ops.softmax_(y.detach()).is_meta and softmax_ops.softmax_backward(y, y).is_meta
    with pytest.raises(ValueError, match=r"^softmax_ops.softmax: out is .*; want last stride 1"):
        softmax_ops.softmax(y.detach(), out=torch.empty(3, K, Q, dtype=y.dtype, device="meta").transpose(1, 2))
    with pytest.raises(ValueError, match=r"mask is a .* on cpu and x a .* on meta"):
        softmax_ops.softmax(x, mask=bits(K))
    with pytest.raises(ValueError, match=r"x is a .* on meta.*want plain tensors on cpu or cuda"):
        softmax_ops.plan(x.detach())
    large = torch.empty(2**20, 2**12, dtype=torch.float16, device="meta")
    assert softmax_ops.explain(large).bytes_read == 2**33


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("x", "arguments", "copied"),
    [
        (meta(2, 3, 6, 8), {"mask": meta(6, 8, dtype=torch.bool), "key_lengths": meta(2, dtype=torch.int32)}, ()),
        (meta(4, 6, 8), {"sinks": meta(4, dtype=torch.float32), "scale": meta(6, dtype=torch.float32)}, ()),
        (meta(64, 64).t(), {}, ("x",)),
        (meta(2, 3, 4, 5, 6, 8), {"out": meta(4, 6, 8, 10, 12, 8)[::2, ::2, ::2, ::2, ::2]}, ("out",)),
        (meta(2, 3, 6, 8), {"mask": meta(8, 6, dtype=torch.bool).t()}, ("mask",)),
        (meta(2, 3, 6, 8), {"bias": meta(3, 6, 1)}, ("bias",)),
        (meta(2, 3, 6, 8), {"bias": meta(1, 3, 6, 8, dtype=torch.float32)}, ()),
        (meta(2, 3, 6, 8, dtype=torch.float64), {"bias": meta(1, 3, 6, 8, dtype=torch.float32)}, ("bias",)),
        (meta(2, 3, 4, 5, 6, 8), {"mask": meta(2, 1, 4, 1, 6, 8, dtype=torch.bool)}, ("mask",)),
        (meta(2, 3, 4, 5, 6, 8), {"bias": meta(2, 1, 4, 1, 6, 8)}, ("bias",)),
    ],
)
def test_an_explanation_names_what_each_call_copies(
    x: Tensor, arguments: dict[str, Any], copied: tuple[str, ...]
) -> None:
    found = softmax_ops.explain(x, **arguments)
    assert found.copied == copied
    assert [line.split()[1].strip(":") for line in str(found).splitlines() if line.startswith("  copies")] == [*copied]


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the names of the operators called through torch.ops from now on."""
    called: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            called.append(name)
            return getattr(ops, name)

    monkeypatch.setattr(torch.ops, "softmax_ops", Counting())
    return called


def test_eager_calls_do_not_reach_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs more than a launch, so plain tensors, parameters, and calls that autograd records avoid it."""
    called = calls(monkeypatch)
    x, mask = normal(Q, K), bits(K)
    softmax_ops.softmax(x, mask=mask, scale=0.5, causal=True)
    softmax_ops.softmax(x, out=torch.empty_like(x))
    softmax_ops.softmax_(x)
    softmax_ops.softmax_backward(x, x, causal=True)
    softmax_ops.softmax(torch.nn.Parameter(x)).sum().backward()
    softmax_ops.softmax(leaf(Q, K)).sum().backward()
    assert called == []
    with Seen():
        softmax_ops.softmax(x)
    assert called == ["softmax"]


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_ragged_tensors_are_refused_in_words() -> None:
    """They are a subclass without rules for operators, for which torch would name only the operator."""
    rows = [torch.zeros(2, K), torch.zeros(3, K)]
    ragged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    plain = torch.zeros(2, 3, K)
    for call in (
        lambda: softmax_ops.softmax(ragged),
        lambda: softmax_ops.log_softmax(ragged),
        lambda: softmax_ops.softmax_backward(ragged, ragged),
        lambda: softmax_ops.softmax(plain, mask=ragged),
        lambda: softmax_ops.softmax(plain, bias=ragged),
        lambda: softmax_ops.softmax(plain, out=ragged),
    ):
        with pytest.raises(ValueError, match=r"is a nested float32 tensor.*to_padded_tensor\(0\)"):
            call()


def test_an_out_that_does_not_fit_is_refused_while_tracing() -> None:
    compiled = torch.compile(lambda x, out: softmax_ops.softmax(x, out=out), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"out is a float32 tensor of shape \(4, 5\).*want one dtype, shape and device"):
        compiled(normal(Q, K), normal(Q, K - 1))


@pytest.mark.parametrize("beside", ["mask", "bias", "scale"])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiled_rows_whose_number_depends_on_data(beside: str) -> None:
    """As tokens that a router has chosen."""

    def chosen(x: Tensor) -> Tensor:
        rows = x[x[:, 0] > 0]
        arguments: dict[str, Any] = {beside: rows > 0 if beside == "mask" else rows}
        return softmax_ops.softmax(rows, **arguments if beside != "scale" else {"scale": rows[:, 1]})

    x = normal(Q, K).float()
    compiled = torch.compile(chosen, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), chosen(x))


@pytest.mark.filterwarnings("ignore")  # of what lies outside the graph
def test_torch_compile_loses_no_tangent() -> None:
    """It refuses forward mode where it may not leave the graph, and leaves the graph otherwise."""
    x = torch.randn(3, 4)

    def tangent(x: Tensor) -> Tensor:
        return torch.func.jvp(softmax_ops.softmax, (x,), (x,))[1]

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(tangent, backend="aot_eager", fullgraph=True)(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(x), tangent(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_is_compiled_may_be_transformed(backend: str) -> None:
    """By forward mode, torch.vmap and torch.func, from outside."""
    torch._dynamo.reset()
    x, t = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    compiled = torch.compile(lambda x: softmax_ops.softmax(x, scale=0.5), backend=backend)
    expected = torch.func.jvp(lambda x: torch.softmax(0.5 * x, -1), (x,), (t,))[1]
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(compiled(forward_ad.make_dual(x, t))).tangent
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.func.jvp(compiled, (x,), (t,))[1], expected)
    inside = torch.compile(
        lambda x: torch.func.jvp(lambda x: softmax_ops.softmax(x, scale=0.5), (x,), (t,))[1], backend=backend
    )
    torch.testing.assert_close(inside(x), expected)
    torch.testing.assert_close(torch.vmap(compiled)(x), torch.softmax(0.5 * x, -1))

    def hessian(function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.func.hessian(lambda x: function(x).square().sum())(x[0, 0])

    torch.testing.assert_close(hessian(compiled), hessian(lambda x: torch.softmax(0.5 * x, -1)))


def test_bounds_of_an_exported_window_may_be_dynamic() -> None:
    class Windowed(torch.nn.Module):
        def forward(self, x: Tensor, left: int) -> Tensor:
            return softmax_ops.softmax(x, window=(left, 0))

    x, dynamic = normal(B, Q, K), (None, torch.export.Dim.DYNAMIC)
    program = torch.export.export(Windowed(), (x, 3), dynamic_shapes=dynamic, strict=True).module()
    for left in (0, 3, 100):
        assert torch.equal(program(x, left), softmax_ops.softmax(x, window=(left, 0)))


@pytest.mark.parametrize("read", [lambda offset: offset, Tensor.item])
def test_an_exported_offset_may_be_read_from_a_tensor(read: Callable[[Tensor], Any]) -> None:
    class Causal(torch.nn.Module):
        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return softmax_ops.softmax(x, causal=True, causal_offset=read(offset))

    x = normal(B, Q, K)
    program = torch.export.export(Causal(), (x, torch.tensor(2)), strict=False).module()
    for offset in (-1, 0, 5):
        expected = softmax_ops.softmax(x, causal=True, causal_offset=offset)
        assert torch.equal(program(x, torch.tensor(offset)), expected)


def test_a_gradient_of_a_scale_is_refused_while_compiling() -> None:
    x, scale = torch.randn(3, 4, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match=r"scale is a float32 tensor .* requires grad"):
        torch.compile(lambda x, scale: softmax_ops.softmax(x, scale=scale), backend="aot_eager")(x, scale)


@pytest.mark.filterwarnings("ignore")  # of torch about its own tensors
def test_compiled_autograd_of_an_eager_call() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(softmax_ops.softmax(x).square().sum(), x)
    y = softmax_ops.softmax(x).square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        y.backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_vmap_holds_the_operator(strict: bool) -> None:
    class Rows(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.vmap(softmax_ops.softmax)(x)

    x = torch.randn(2, 3, 4)
    program = torch.export.export(Rows(), (x,), strict=strict)
    assert "softmax_ops.softmax" in str(program.graph)
    torch.testing.assert_close(program.module()(x), softmax_ops.softmax(x))


def test_an_operator_takes_a_scale_in_a_0d_tensor() -> None:
    """On the CPU too, where a function reads it."""
    x = torch.randn(2, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.softmax_ops.general, (x,), {"scale_tensor": torch.tensor(0.5)})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": "0.5"}, "scale is '0.5' of type str; want a real number"),
        ({"scale": True}, "scale is True of type bool"),
        ({"softcap": True}, "softcap is True of type bool"),
        ({"causal": True, "causal_offset": 1.9}, "causal_offset is 1.9 of type float; want an int"),
        ({"causal": True, "causal_offset": True}, "causal_offset is True of type bool"),
        ({"causal": 1}, "causal is 1 of type int; want a bool"),
        ({"return_lse": 1}, "return_lse is 1 of type int"),
    ],
)
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_scalars_of_another_type_are_refused_while_compiling(
    arguments: dict[str, Any], words: str, direction: str
) -> None:
    """An operator would convert them without a word. The same words as without a compiler."""
    x = torch.randn(2, 8)

    def call() -> Any:
        if direction == "fwd" or "return_lse" in arguments:
            return softmax_ops.softmax(x, **arguments)
        return softmax_ops.softmax_backward(x, x, **arguments)

    with pytest.raises(TypeError, match=re.escape(words)):
        call()
    torch._dynamo.reset()
    with pytest.raises(Exception, match=re.escape(words)):
        torch.compile(call, backend="eager", fullgraph=True)()
