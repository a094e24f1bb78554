"""Known calls of the general kind agree with the full path, in what is launched and in what is refused."""

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import softmax_ops
from softmax_ops.artifacts import catalog
from tests.support import stub_driver
from tests.support.launches import Serve, posing, serve
from tests.support.stub_driver import isolated
from tests.support.ways import asking
from tests.test_known import Call, long_calls, long_way, outcome

pytestmark = pytest.mark.slow  # a process per test

__all__ = ["asking", "long_calls", "posing", "serve"]  # fixtures

B, H, Q, K = 2, 3, 4, 24


def serve_everything(served: Serve) -> None:
    served(
        *(each for each in catalog.load().variants.values() if each.mask in ("band", "general") or each.plan == "tile")
    )


def rows(**kind: Any) -> Tensor:
    return torch.zeros(B, H, Q, K, **kind)


def parameter(*shape: int) -> Tensor:
    return torch.nn.Parameter(torch.zeros(*shape))


LENGTHS = torch.tensor([3, 5], dtype=torch.int32)
MASK = torch.zeros(B, 1, 1, K, dtype=torch.bool)
ASKED: dict[str, Callable[[], dict[str, Any]]] = {
    "bias": lambda: {"bias": torch.zeros(H, Q, K)},
    "mask and bias": lambda: {"mask": MASK, "bias": rows()},
    "lengths": lambda: {"key_lengths": LENGTHS, "return_lse": True},
    "window": lambda: {"window": (3, 0), "causal_offset": 7},
    "slopes and sinks": lambda: {"alibi_slopes": torch.zeros(H), "sinks": torch.zeros(H), "causal": True},
    "softcap": lambda: {"softcap": 30.0, "return_lse": True},
    "scales": lambda: {"scale": torch.ones(B, H, Q)},
    "offset": lambda: {"causal": True, "causal_offset": torch.tensor([5])},
    "offsets": lambda: {"causal": True, "causal_offset": torch.tensor([5, 6])},
    "everything": lambda: {
        **{"mask": MASK, "bias": rows(), "key_lengths": LENGTHS, "window": (5, None), "softcap": 5.0},
        **{"alibi_slopes": torch.zeros(H), "sinks": torch.zeros(H), "return_lse": True, "scale": 0.5},
    },
}


def answer(call: Call, *watched: Tensor) -> Any:
    """Like `outcome`, for the first of a pair; the address of a new lse is masked out."""
    addresses: list[bytes] = []

    def first() -> Tensor:
        result: Any = call()
        if not isinstance(result, tuple):
            return result
        addresses.append(struct.pack("P", result[1].data_ptr()))
        return result[0]

    found = outcome(first, *watched)
    if not addresses:
        return found
    facts, launched, at, *rest = found
    return facts, launched, [parameters.replace(addresses[0], b"new lse.") for parameters in at], *rest


@isolated
@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
def test_the_second_call_is_short(serve: Serve, long_calls: list[str], asked: Callable[[], dict[str, Any]]) -> None:
    """And launches the same, with new tensors or old ones, into a new result, another tensor, or in place."""
    serve_everything(serve)
    kept = asked()
    for op in (softmax_ops.softmax, softmax_ops.log_softmax):
        for make in (lambda: {}, lambda: {"out": rows()}, lambda: {"out": kept["x"]}):
            kept["x"] = rows()
            for facts in (kept, {**asked(), "x": rows()}):
                facts = facts | make()
                facts = facts | ({"out": facts["x"]} if facts.get("out") is kept["x"] else {})
                call = partial(op, facts.pop("x"), **facts)
                written = [facts["out"]] if "out" in facts else []
                with long_way():
                    expected = answer(call, *written)
                answer(call, *written)
                long_calls.clear()
                assert answer(call, *written) == expected and long_calls == []


@isolated
def test_results_are_of_their_dtype(serve: Serve, long_calls: list[str]) -> None:
    serve_everything(serve)
    for _ in range(2):
        y, lse = softmax_ops.softmax(rows(dtype=torch.float16), dtype=torch.float32, return_lse=True)
        assert (y.dtype, lse.dtype, lse.shape) == (torch.float32, torch.float32, (B, H, Q))
        y, lse = softmax_ops.softmax(rows(dtype=torch.float64), softcap=2.0, return_lse=True)
        assert (y.dtype, lse.dtype) == (torch.float64, torch.float64)
    assert len(long_calls) == 2


@isolated
def test_a_wider_result_over_the_scores_is_refused(serve: Serve) -> None:
    """A wider result has the address and strides of the scores, but is twice as long."""
    serve_everything(serve)
    memory = torch.zeros(2 * B * H * Q * K, dtype=torch.float16)
    x, out = memory[: B * H * Q * K].view(B, H, Q, K), memory.view(torch.float32).view(B, H, Q, K)
    for _ in range(2):
        softmax_ops.softmax(x, out=torch.empty_like(out))
        with pytest.raises(ValueError):
            softmax_ops.softmax(x, out=out)


@isolated
def test_what_must_be_converted_takes_the_long_way(serve: Serve, long_calls: list[str]) -> None:
    serve_everything(serve)
    x = rows(dtype=torch.float16)
    calls = [
        partial(softmax_ops.softmax, x, bias=torch.zeros(Q, 1, dtype=torch.float16)),
        partial(softmax_ops.softmax, x, bias=torch.zeros(K, Q, dtype=torch.float16).t()),
        partial(softmax_ops.softmax, x.transpose(2, 3), softcap=1.0),
        partial(softmax_ops.softmax, x, softcap=1.0, scale=torch.tensor(0.5)),
        partial(softmax_ops.softmax, x, window=(2, 2), causal_offset=torch.tensor(1)),
    ]
    for call in calls:
        for _ in range(3):
            long_calls.clear()
            call()
            assert long_calls == ["fwd"], call


@isolated
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*nested tensors")  # of the first dual, and of nested tensors
def test_calls_that_differ_a_little(serve: Serve) -> None:
    """Each comes right after a good call that it otherwise resembles, and behaves as if alone."""
    serve_everything(serve)
    memory = torch.zeros(1 << 12)
    bias, out = memory[:K], memory[K : K + B * H * Q * K].view(B, H, Q, K)
    ragged = torch.nested.nested_tensor([torch.zeros(K)] * 4)
    x, sinks = rows(), parameter(H)
    good: dict[str, Any] = {"bias": bias, "window": (3, 0), "softcap": 2.0, "causal_offset": 1, "sinks": sinks}
    good["out"] = out
    others: list[dict[str, Any]] = [
        {"window": (3, False)},
        {"window": (3.0, 0)},
        {"window": [3, 0]},
        {"window": (4, 0)},
        {"softcap": 3.0},
        {"softcap": 2},
        {"softcap": float("nan")},
        {"causal_offset": True},
        {"causal_offset": 2},
        {"scale": float("inf")},
        {"scale": 1},
        {"scale": torch.tensor(0.5)},
        {"out": memory[: B * H * Q * K].view(B, H, Q, K)},
        {"out": ragged},
        {"out": None},
        {"bias": ragged},
        {"bias": [0.0] * K},
        {"bias": torch.zeros(K).half()},
        {"bias": torch.zeros(K + 1)},
        {"bias": None},
        {"sinks": torch.zeros(H)},
        {"sinks": torch.zeros(H).double()},
        {"return_lse": True},
        {"return_lse": 1},
        {"batch_invariant": True},
        {"dtype": torch.float16},
        {"causal": True},
        {"key_lengths": LENGTHS},
    ]
    with torch.no_grad():
        plain = partial(softmax_ops.softmax, x, **good)
        for facts in others:
            call = partial(softmax_ops.softmax, x, **{**good, **facts})
            with long_way():
                expected = answer(call, out)
            plain(), plain()
            assert [answer(call, out), answer(call, out)] == [expected, expected], facts
        strangers: list[Any] = [ragged, None, [0.0], x.to_sparse()]
        for first in strangers:
            plain()
            with pytest.raises((TypeError, ValueError)):
                softmax_ops.softmax(first, **good)
    with pytest.raises(ValueError, match="sinks requires grad"):
        plain()
    with torch.no_grad():
        softmax_ops.softmax(x, sinks=sinks)
    assert softmax_ops.softmax(x, sinks=sinks).grad_fn is not None
    with torch.no_grad():
        plain()
        with torch.autograd.forward_ad.dual_level():
            y = softmax_ops.softmax(torch.autograd.forward_ad.make_dual(rows(), rows()), **{**good, "out": None})
            assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None


@isolated
def test_the_scale_is_a_number_of_the_call(serve: Serve) -> None:
    serve_everything(serve)
    x, out = rows(), rows()
    for scale in (0.5, 0.25, 0.25, -1.0):
        stub_driver.forget()
        softmax_ops.softmax(x, softcap=1.0, scale=scale, out=out)
        with long_way():
            softmax_ops.softmax(x, softcap=1.0, scale=scale, out=out)
        short, long = stub_driver.launches()
        assert short.parameters == long.parameters
