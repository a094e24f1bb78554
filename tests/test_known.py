"""The fast path of known calls agrees with the full path in what is launched and in what is refused."""

import inspect
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import softmax_ops
from softmax_ops import dispatch, launcher, routes
from softmax_ops.artifacts import catalog
from softmax_ops.known import addressed, calls
from softmax_ops.planning.launch_plan import WORKSPACE
from tests.support import stub_driver
from tests.support.launches import STREAM, Serve, posing, serve
from tests.support.stub_driver import isolated
from tests.support.ways import asking
from transformer_softmax_lib import scaled_masked_softmax_forward

pytestmark = pytest.mark.slow  # many calls, or a process per test

__all__ = ["asking", "posing", "serve"]  # fixtures

Call = Callable[[], Tensor]


@contextmanager
def long_way() -> Iterator[None]:
    """Inside, no call is known, and none is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        for direction in (calls.forward, calls.backward, calls.masked_fill):
            for name in ("run", "found", "remember"):
                patch.setattr(direction, name, lambda *_: None)
        yield


def outcome(call: Call, *watched: Tensor) -> Any:
    """What a call launches and returns, or how it fails, in a form that can be compared with another call's."""
    stub_driver.forget()
    before = [tensor._version for tensor in watched]
    try:
        result = call()
    except Exception as error:
        return type(error), str(error), stub_driver.launches() == []
    facts = result.shape, result.stride(), result.dtype, result.requires_grad, result.is_inference()
    launched = [(each.kernel, each.grid, each.block, each.cluster, each.stream) for each in stub_driver.launches()]
    at = [each.parameters for each in stub_driver.launches()]
    bumped = [tensor._version - version for tensor, version in zip(watched, before, strict=True)]
    writes = next((place for place, tensor in enumerate(watched) if tensor is result), None)
    fixed = writes is not None and all(
        tensor.stride(-1) == 1 for tensor in watched
    )  # neither the result nor a copy is new
    return facts, launched, at if fixed else [], bumped, writes


def serve_everything(served: Serve) -> None:
    served(*(each for each in catalog.load().variants.values() if each.plan in ("warp", "tile", "split")))


@pytest.fixture
def long_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the directions of calls that take the full path."""
    taken: list[str] = []
    compute = dispatch.compute

    def noted(direction: str, *rest: Any) -> Tensor:
        taken.append(direction)
        return compute(direction, *rest)

    monkeypatch.setattr(dispatch, "compute", noted)
    return taken


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_backward", "log_softmax_backward"])
def test_both_ways_are_given_what_the_signature_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast path goes by the order of arguments, the full path by their names."""
    function, backward = getattr(softmax_ops, name), name.endswith("_backward")
    direction = calls.backward if backward else calls.forward
    given = {argument: object() for argument in inspect.signature(function).parameters}
    expected = given | {"log": name.startswith("log_")}
    taken: list[tuple[Any, ...]] = []
    monkeypatch.setattr(direction, "run", lambda *values: taken.append(values))
    monkeypatch.setattr(routes, "softmax_backward" if backward else "softmax", lambda **named: named)
    assert function(**given) == expected
    assert direction.names == (*expected,) and taken == [(*expected.values(),)]


@isolated
def test_the_second_call_is_short(serve: Serve, long_calls: list[str]) -> None:
    """Also with other scales, other tensors and any offset; interleaved with others."""
    serve_everything(serve)
    shapes = [(3, 5, 1000), (2, 5, 1000)]
    for number in range(4):
        for shape in shapes:
            x, mask = torch.randn(shape).half(), torch.zeros(5, 1000, dtype=torch.bool)
            y = softmax_ops.softmax(x, scale=0.1 + number, mask=mask, causal=True, causal_offset=10**6)
            softmax_ops.softmax_(y)
            softmax_ops.softmax_backward(x, y, out=x)
    assert len(stub_driver.launches()) == 4 * 2 * 3 and len(long_calls) == 2 * 3
    assert {call.stream for call in stub_driver.launches()} == {STREAM}


@isolated
def test_a_scale_is_any_number(serve: Serve, long_calls: list[str]) -> None:
    """Any type of number with one value; other values take the full path, and are refused there."""
    serve_everything(serve)
    x, out = torch.zeros(3, 5, 1000).half(), torch.zeros(3, 5, 1000).half()
    for scale in (2, 2.0, np.float64(2.0), np.sqrt(4.0)):
        softmax_ops.softmax(x, scale=scale, out=out)
    for bad in (True, np.float64("nan"), 10**400, 2**128, "2"):
        with pytest.raises((TypeError, ValueError), match="scale is "):
            softmax_ops.softmax(x, scale=bad, out=out)  # type: ignore[arg-type]
    assert long_calls == ["fwd"] and len({call.parameters for call in stub_driver.launches()}) == 1


@isolated
@pytest.mark.parametrize("mask_dtype", [torch.float16, torch.bool, None])
def test_masked_fill_is_short_too(serve: Serve, long_calls: list[str], mask_dtype: torch.dtype | None) -> None:
    """With its own score for hidden columns, alternating with softmax on the same tensors."""
    serve_everything(serve)
    x = torch.zeros(3, 5, 1000).half()
    mask = None if mask_dtype is None else torch.zeros(5, 1000, dtype=mask_dtype)
    launched = []
    for _ in range(3):
        stub_driver.forget()
        y = scaled_masked_softmax_forward(x, mask, 0.5)
        softmax_ops.softmax(x, scale=0.5, mask=mask if mask_dtype is torch.bool else None)
        masked, _ = stub_driver.launches()
        launched.append(masked.parameters.replace(y.data_ptr().to_bytes(8, "little"), bytes(8)))
        assert (struct.pack("f", -10000.0) in masked.parameters) == (mask is not None)
    assert len({*launched}) == 1 and long_calls == ["fwd", "fwd"]


@isolated
def test_split_rows_get_a_workspace(serve: Serve, long_calls: list[str]) -> None:
    stub_driver.devices("sm_80")
    serve(catalog.load().variants["softmax_fwd_f32_none_split_kany_v1_t256r1"], held=("sm_80",))
    x = torch.randn(3, 50257)
    softmax_ops.softmax(x, out=x)
    softmax_ops.softmax(x, out=x)
    first, _, third, _ = stub_driver.launches()
    differing = [i for i, pair in enumerate(zip(first.parameters, third.parameters, strict=True)) if len({*pair}) > 1]
    assert long_calls == ["fwd"] and len(differing) <= 8, "the address of the workspace"
    ((_, executable),) = launcher._executables.values()
    (at,) = (offset for name, offset, _ in executable.plan.fields if name == WORKSPACE)
    assert 0 not in {int.from_bytes(call.parameters[at : at + 8], "little") for call in stub_driver.launches()}


def some_call(choose: random.Random) -> tuple[Call, list[Tensor]]:
    """A call, valid or not, and the tensors to watch: few shapes, so that they recur, at any alignment."""
    dtype = choose.choice([torch.float16, torch.float32])
    memory = torch.zeros(1 << 16, dtype=dtype)
    q, k = choose.choice([(4, 24), (1, 24), (3, 7)])

    def rows() -> Tensor:
        start, step = choose.choice([0, 0, 1, 8, 64, 2048]), choose.choice([k, k, k + 1, 2 * k])
        return memory.as_strided((2, q, k), (q * step, step, 1), start)

    x = rows()
    out = choose.choice([None, None, x, rows(), torch.empty_like(x), torch.empty(2, q, k + 1, dtype=dtype)])
    causal, offset = choose.choice([(False, None), (True, None), (True, 0), (True, True), (1, None), (False, 0)])
    scale = choose.choice([1.0, 0.5, 2, float("nan"), 1e39, True, 1.0, 1.0, 1.0, np.float64(0.5), -1, 10**400])
    facts: dict[str, Any] = {"scale": scale, "causal": causal, "causal_offset": offset, "out": out}
    tensors = [x] if out is None else [x, out]
    if choose.random() < 0.3:
        dy = choose.choice([x, rows(), torch.ones(()).to(dtype).expand(x.shape)])
        call, tensors = partial(softmax_ops.softmax_backward, dy, x, **facts), [*tensors, dy]
    else:
        masks = [torch.zeros(q, k, dtype=torch.bool), torch.zeros(k + 1, dtype=torch.uint8)[1:]]
        masks += [memory.view(torch.uint8)[:k], torch.zeros(k), torch.zeros(k, 1).bool().expand(k, q).t()]
        mask = choose.choice([None, None, None, *masks])
        call = partial(softmax_ops.softmax, x, mask=mask, **facts)
    mask = call.keywords.get("mask")
    if choose.random() < 0.4 and k == 24 and all(map(is_aligned, [*tensors, *([] if mask is None else [mask])])):
        return partial(call, batch_invariant=True), tensors  # nothing is copied to an address that is new each time
    return call, tensors


def is_aligned(tensor: Tensor) -> bool:
    size = tensor.element_size()
    places = [tensor.data_ptr(), *(stride * size for stride in tensor.stride()[:-1])]
    return not any(place % min(16, 8 * size) for place in places)


@isolated
def test_both_ways_agree(serve: Serve, long_calls: list[str]) -> None:
    serve_everything(serve)
    choose = random.Random(0)
    short = 0
    for _ in range(700):
        call, tensors = some_call(choose)
        with long_way():
            expected = outcome(call, *tensors)
        taken = len(long_calls)
        for _ in range(2):
            assert outcome(call, *tensors) == expected, call
        short += len(long_calls) == taken
    assert short > 100, "the short way was hardly ever taken"


@isolated
def test_all_checks_hold_for_known_calls(serve: Serve) -> None:
    """Every call from the tests of the checks, good or bad, acts the same after good ones with tensors like its own."""
    serve_everything(serve)

    class Warm:
        seen = 0

        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            for module in {item.module for item in items}:  # type: ignore[attr-defined]
                backward = module.__name__.endswith("backward")
                op = softmax_ops.softmax_backward if backward else softmax_ops.softmax
                for name in ("check", "refuse"):
                    setattr(module, name, partial(self.agree, op, getattr(module, name), name))

        def agree(
            self, op: Callable[..., Tensor], original: Callable[..., Any], name: str, *given: Any, **facts: Any
        ) -> Any:
            result = original(*given, **facts)
            tensors = given if name == "check" else ()
            good = torch.zeros(2, 3, 4, 6)
            call_facts = dict(facts)
            if op is softmax_ops.softmax:
                tensors = tensors or (call_facts.pop("x", good),)
            else:
                y = call_facts.pop("y", None)
                dy = call_facts.pop("dy", None)
                if not tensors:
                    tensors = (dy if dy is not None else torch.zeros_like(y) if isinstance(y, Tensor) else good,)
                if len(tensors) == 1:
                    tensors = (*tensors, y if y is not None else tensors[0])
            if tensors[0] is None:
                tensors = (good,)
            warm = [good.clone() for _ in tensors]
            with torch.no_grad():
                op(*warm), op(*warm, out=good), op(*warm, causal=True), op(*warm, causal=True, causal_offset=1)
                if op is softmax_ops.softmax:
                    op(*warm, mask=torch.zeros(4, 6, dtype=torch.bool))
            call = partial(op, *tensors, **call_facts)
            with long_way():
                expected = outcome(call)
            assert [outcome(call), outcome(call)] == [expected, expected]
            type(self).seen += 1
            return result

    warm = Warm()
    options = ["--noconftest", "-p", "no:cacheprovider", "-q", "-k", "not never_missed and not exact"]
    assert pytest.main([*options, "tests/test_checks.py", "tests/test_checks_backward.py"], plugins=[warm]) == 0
    assert warm.seen > 250


@isolated
def test_circumstances_of_a_known_call(serve: Serve) -> None:
    """Each special circumstance comes right after the same call in plain ones."""
    serve_everything(serve)
    x, out = torch.zeros(4, 24), torch.zeros(4, 24)
    plain = partial(softmax_ops.softmax, x, out=out)
    for _ in range(2):
        assert outcome(plain, out)[3:] == ([1], 0)
        with torch.inference_mode():
            assert outcome(plain, out)[3:] == ([1], 0)
            made_inside = torch.zeros(4, 24)
            assert softmax_ops.softmax(x, out=made_inside) is made_inside and softmax_ops.softmax(x).is_inference()
        with torch.autograd.forward_ad.dual_level():
            assert outcome(plain, out)[4] == 0
        requires = torch.zeros(4, 24, requires_grad=True)
        with torch.no_grad():
            assert softmax_ops.softmax(requires, out=out) is out
        with pytest.raises(ValueError, match="x requires grad"):
            softmax_ops.softmax(requires, out=out)
        assert softmax_ops.softmax(x.detach()).grad_fn is None
        x.requires_grad_()
        with pytest.raises(ValueError, match="x requires grad"):
            plain()
        assert softmax_ops.softmax(x).grad_fn is not None
        x.requires_grad_(False)


RECORDED: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {"scale": 0.5, "causal": True},
    "masked": lambda: {"mask": torch.zeros(5, 1000, dtype=torch.bool)},
    "lengths": lambda: {"key_lengths": torch.tensor([3, 5, 7], dtype=torch.int32), "return_lse": True},
    "softcap": lambda: {"softcap": 30.0},
}


@isolated
@pytest.mark.parametrize("name", RECORDED)
def test_a_known_call_is_recorded_without_checks(serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And so is its backward. What autograd must not record is not known to it."""
    served = ("warp", "tile", "block")
    serve(*(each for each in catalog.load().variants.values() if each.plan in served and "f16" in each.name))
    arguments, dy = RECORDED[name](), torch.zeros(3, 5, 1000).half()
    x = torch.zeros(3, 5, 1000).half().requires_grad_()

    def gradient() -> tuple[Tensor, Tensor]:
        result: Any = softmax_ops.softmax(x, **arguments)
        y = result[0] if isinstance(result, tuple) else result
        return y, torch.autograd.grad(y, x, dy)[0]

    gradient(), gradient()
    stub_driver.forget()
    with pytest.MonkeyPatch.context() as patch:
        for way in ("softmax", "softmax_backward"):
            patch.setattr(routes, way, None)
        y, dx = gradient()
    assert y.grad_fn is not None and dx.shape == x.shape and len(stub_driver.launches()) == 2
    assert softmax_ops.softmax(x.detach(), **arguments) is not None
    with torch.no_grad():
        first: Any = softmax_ops.softmax(x, **arguments)
    assert not (first[0] if isinstance(first, tuple) else first).requires_grad
    with pytest.raises(ValueError, match="requires grad"):
        softmax_ops.softmax(x, **arguments, out=torch.empty_like(dy))


@isolated
def test_what_autograd_must_refuse_is_not_recorded(serve: Serve) -> None:
    """After the same call where nothing is recorded."""
    served = ("band", "general")
    serve(*(each for each in catalog.load().variants.values() if each.mask in served))
    x, slopes = torch.zeros(2, 3, 4, 24).requires_grad_(), torch.zeros(3)
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"softcap": 5.0, "alibi_slopes": slopes, "return_lse": True}, NotImplementedError),
        ({"alibi_slopes": slopes.clone().requires_grad_()}, ValueError),
        ({"scale": torch.ones(2, 3, 4, requires_grad=True)}, ValueError),
    ]
    for arguments, error in refused:
        for _ in range(2):
            with torch.no_grad():
                softmax_ops.softmax(x, **arguments)
            with pytest.raises(error, match=r"no backward|requires grad"):
                softmax_ops.softmax(x, **arguments)


@isolated
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_trace_records_an_operator(serve: Serve) -> None:
    """Also of a known call: a trace would miss what a kernel writes, and keep memory that nobody writes."""
    serve_everything(serve)
    x = torch.zeros(4, 24)
    softmax_ops.softmax(x)
    for function in (softmax_ops.softmax, softmax_ops.log_softmax, lambda x: softmax_ops.softmax_backward(x, x)):
        traced = torch.jit.trace(function, (x,), check_trace=False)
        assert "softmax_ops::" in str(traced.graph)
        stub_driver.forget()
        traced(torch.ones(4, 24))
        assert len(stub_driver.launches()) == 1


@isolated
def test_a_freed_storage_is_noticed(serve: Serve) -> None:
    """The tensor is otherwise the same as before."""
    serve_everything(serve)
    x, out = torch.zeros(4, 24), torch.zeros(4, 24)
    softmax_ops.softmax(x, out=out)
    storage = x.untyped_storage()
    storage.resize_(0)
    with pytest.raises(ValueError, match=r"x is a .* without memory"):
        softmax_ops.softmax(x, out=out)
    storage.resize_(4 * 24 * 4)
    softmax_ops.softmax(x, out=out)
    assert len(stub_driver.launches()) == 2


@isolated
def test_what_is_forgotten_is_found_again(serve: Serve, monkeypatch: pytest.MonkeyPatch, long_calls: list[str]) -> None:
    serve_everything(serve)
    monkeypatch.setattr(launcher, "PLANS", 3)
    monkeypatch.setattr(addressed, "ADDRESSES", 4)
    memory = torch.zeros(1 << 14)
    made = [partial(softmax_ops.softmax_, memory[at : at + k].view(1, k)) for k in (24, 28, 32, 36) for at in range(40)]
    with long_way():
        expected = [outcome(call) for call in made]
    long_calls.clear()
    assert [outcome(call) for call in made * 2] == expected * 2
    known = calls.forward._known.values()
    assert len(known) <= 3 and all(len(each.addressed.by_addresses) <= 4 for each in known)
    assert len(long_calls) < len(made) / 4


@isolated
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*nested tensors")  # of the first dual, and of nested tensors
def test_calls_that_differ_in_what_is_looked_at_each_time(serve: Serve) -> None:
    """Addresses, types of flags, modes that no tensor shows: each after a good call that is otherwise like it."""
    serve_everything(serve)
    memory = torch.zeros(1 << 12)

    def rows(start: int) -> Tensor:
        return memory[start : start + 96].view(4, 24)

    mask = torch.zeros(4, 24, dtype=torch.bool)
    ragged = torch.nested.nested_tensor([torch.zeros(24)] * 4)
    good: list[Call] = [
        partial(softmax_ops.softmax, rows(0), out=rows(1024)),
        partial(softmax_ops.softmax, rows(0), mask=memory.view(torch.bool)[4096:4192].view(4, 24), out=rows(2048)),
        partial(softmax_ops.softmax_backward, rows(0), rows(512), out=rows(1024)),
        partial(softmax_ops.softmax, rows(0), mask=mask, causal=True, causal_offset=1),
        partial(softmax_ops.softmax, rows(0)),
    ]
    dual = torch.autograd.forward_ad.make_dual
    bad: list[tuple[Call, type[Exception]]] = [
        (partial(softmax_ops.softmax, rows(0), out=rows(8)), ValueError),
        (partial(softmax_ops.softmax, rows(64), out=rows(0)), ValueError),
        (
            partial(softmax_ops.softmax, rows(0), mask=memory.view(torch.bool)[4096:4192].view(4, 24), out=rows(1016)),
            ValueError,
        ),
        (partial(softmax_ops.softmax_backward, rows(8), rows(512), out=rows(0)), ValueError),
        (partial(softmax_ops.softmax_backward, rows(0), rows(520), out=rows(512)), ValueError),
        (partial(softmax_ops.softmax, ragged), ValueError),
        (partial(softmax_ops.softmax, rows(0), out=ragged), ValueError),
        (partial(softmax_ops.softmax, rows(0), mask=ragged, causal=True, causal_offset=1), ValueError),
        (partial(softmax_ops.softmax_backward, ragged, rows(512), out=rows(1024)), ValueError),
        (partial(softmax_ops.softmax_backward, rows(0), ragged, out=rows(1024)), ValueError),
        (partial(softmax_ops.softmax, rows(0), mask=mask, causal=1, causal_offset=1), TypeError),
        (partial(softmax_ops.softmax, rows(0), mask=mask, causal=True, causal_offset=True), TypeError),
        (partial(softmax_ops.softmax, rows(0), mask=mask, causal=True, causal_offset=1.0), TypeError),
    ]
    for _ in range(2):
        for call in good:
            assert len(outcome(call)[1]) == 1
        for refused, error in bad:
            for call in good:  # each is once the latest
                call()
                assert outcome(refused)[::2] == (error, True), refused
        with torch.autograd.forward_ad.dual_level():
            y = softmax_ops.softmax(dual(rows(0), rows(256)))
            assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None
        fake = torch._subclasses.FakeTensorMode()
        for call in good[:1]:
            with fake, long_way():
                expected = outcome(call)
            call()
            with fake:
                assert outcome(call) == expected
