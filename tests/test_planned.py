"""Planned calls: the results of `softmax` for tensors as planned, and only errors for others. On the CPU and, with the
stub driver, as on a GPU."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import softmax_ops
from softmax_ops import dispatch
from tests.support import stub_driver
from tests.support.launches import STREAM, Serve, serve, serve_all
from tests.support.posing import pose
from tests.support.stub_driver import isolated
from tests.support.ways import asking
from tests.test_known import outcome

pytestmark = pytest.mark.slow  # a process per test

__all__ = ["asking", "serve"]  # fixtures

Q, K = 5, 1000


def scores(seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(3, 2, Q, K, generator=torch.Generator().manual_seed(seed)).to(dtype)


MASK = torch.arange(K) > 900

PLANS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"mask": MASK, "scale": 0.5},
    "causal": {"causal": True, "causal_offset": 7, "batch_invariant": True},
}
every_plan = pytest.mark.parametrize("facts", PLANS.values(), ids=list(PLANS))


@every_plan
def test_it_computes_what_softmax_computes(facts: dict[str, Any]) -> None:
    run = softmax_ops.plan(scores(), **facts)
    mask = facts.get("mask")
    for seed in range(3):
        x, out = scores(seed), torch.empty(3, 2, Q, K, dtype=torch.float16)
        expected = softmax_ops.softmax(x, **facts)
        assert torch.equal(run(x, mask=mask), expected)
        assert run(x, out=out, mask=mask) is out and torch.equal(out, expected)
        assert run(x, out=x, mask=mask) is x and torch.equal(x, expected)


def test_the_backward() -> None:
    run = softmax_ops.plan(scores(), scale=0.5, causal=True, backward=True)
    y, dy = softmax_ops.softmax(scores()), scores(1)
    expected = softmax_ops.softmax_backward(dy, y, scale=0.5, causal=True)
    assert torch.equal(run(dy, y), expected)
    assert run(dy, y, out=dy) is dy and torch.equal(dy, expected)
    with pytest.raises(ValueError, match="mask is given, and backward is True"):
        softmax_ops.plan(scores(), mask=MASK, backward=True)
    with pytest.raises(TypeError, match="backward is 1 of type int; want a bool"):
        softmax_ops.plan(scores(), backward=1)  # type: ignore[call-overload]
    for tensors in ({"scale": torch.ones(1)}, {"causal": True, "causal_offset": torch.tensor([1])}):
        with pytest.raises(ValueError, match=r"(scale|causal_offset) is an? .*tensor of .* want numbers"):
            softmax_ops.plan(scores(), **tensors)


def shifted(elements: int) -> Tensor:
    """Like scores(), starting that many elements after a 64-byte boundary."""
    return torch.zeros(30 * K + 64, dtype=torch.float16)[elements : elements + 30 * K].view(3, 2, Q, K)


OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "shape": (
        lambda: {"x": scores()[:2]},
        r"x is a float16 tensor of shape \(2, .* planned is a float16 tensor .*\(3,",
    ),
    "strides": (
        lambda: {"x": scores().transpose(0, 1).contiguous().transpose(0, 1)},
        r"x is a .*strides \(5000, 15000",
    ),
    "dtype": (lambda: {"x": scores(dtype=torch.float32)}, "x is a float32 .*planned is a float16"),
    "device": (lambda: {"x": scores().to("meta")}, "meta"),
    "alignment": (lambda: {"x": shifted(1)}, "x is a .*, 2-byte aligned, .*planned.*, 16-byte aligned"),
    "alignment of out": (lambda: {"out": shifted(4)}, "out is a .*, 8-byte aligned"),
    "strides of out": (lambda: {"out": torch.zeros(3, 2, Q, K + 8).half()[..., :K]}, "out is a .*, strides"),
    "overlap": (lambda: {"x": (x := shifted(0)), "out": shifted_on(x, 8)}, "overlaps x"),
    "mask": (lambda: {"mask": MASK}, r"mask is a bool tensor of shape \(1000,\).*; planned is none: plan such a call"),
    "requires grad": (lambda: {"x": scores().requires_grad_()}, "requires grad.*softmax_ops.softmax"),
}


def shifted_on(x: Tensor, elements: int) -> Tensor:
    return x.as_strided(x.shape, x.stride(), x.storage_offset() + elements)


@pytest.mark.parametrize(("other", "says"), OTHERS.values(), ids=list(OTHERS))
def test_others_raise(other: Callable[[], dict[str, Any]], says: str) -> None:
    """Before and after a good call."""
    run = softmax_ops.plan(scores())
    for _ in range(2):
        with pytest.raises(ValueError, match=says):
            run(**{"x": scores(), **other()})
        run(scores(), out=scores())
        run(scores())


def test_a_planned_mask_is_wanted() -> None:
    run = softmax_ops.plan(scores(), mask=MASK)
    with pytest.raises(ValueError, match=r"mask is None; planned is a bool tensor of shape \(1000,\)"):
        run(scores())
    with pytest.raises(ValueError, match=r"mask is a bool tensor of shape \(1, 1000\).* planned is a bool tensor"):
        run(scores(), mask=MASK[None])
    with pytest.raises(TypeError, match="x is of type list"):
        run([1.0], mask=MASK)  # type: ignore[arg-type]


def test_an_out_with_strides_of_its_own() -> None:
    wide = torch.zeros(3, 2, Q, K + 8).half()
    run = softmax_ops.plan(scores(), out=wide[..., :K])
    run(scores(), out=wide[..., :K])
    assert torch.equal(wide[..., :K], softmax_ops.softmax(scores())) and not wide[..., K:].any()
    with pytest.raises(ValueError, match="out is None; results were planned to be written to a float16 tensor"):
        run(scores())


@every_plan
def test_what_requires_grad_under_no_grad(facts: dict[str, Any]) -> None:
    run = softmax_ops.plan(scores().requires_grad_(), **facts)
    with torch.no_grad():
        y = run(scores().requires_grad_(), mask=facts.get("mask"))
    assert not y.requires_grad
    with pytest.raises(ValueError, match="invisible to autograd"):
        run(scores().requires_grad_(), mask=facts.get("mask"))


def test_transforms_and_compilers_are_refused() -> None:
    run = softmax_ops.plan(scores()[0])
    with pytest.raises(ValueError, match="compilers, dispatch modes"):
        torch.vmap(run)(scores())
    with pytest.raises(ValueError, match="compilers, dispatch modes"), torch._subclasses.FakeTensorMode():
        run(scores()[0])


def test_empty_tensors() -> None:
    assert softmax_ops.plan(torch.zeros(3, 0))(torch.zeros(3, 0)).shape == (3, 0)


def test_the_version_is_bumped() -> None:
    out = torch.zeros(3, 2, Q, K).half()
    softmax_ops.plan(scores())(scores(), out=out)
    assert out._version > 0


# With the stub driver


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    pose(monkeypatch.setattr, STREAM)
    serve_all(serve, "fwd_f16_none_warp", "fwd_f16_boolcausal_warp", "bwd_f16_causal_warp")


def to(target: Tensor, call: Callable[..., Tensor], *watched: Tensor) -> Any:
    return outcome(lambda: call(target), *watched)


def never(*_: Any) -> None:
    raise AssertionError("took the long way")


@isolated
@pytest.mark.parametrize("masked", [False, True])
def test_launches(gpu: None, monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    """It launches what softmax launches, on torch's current stream, in any mode, without looking up the plan."""
    mask = MASK if masked else None
    run = softmax_ops.plan(scores(), scale=0.5, mask=mask)
    assert stub_driver.launches() == [] and len(stub_driver.calls("cuLibraryLoadData")) == 1
    softmax_ops.freeze()
    stub_driver.capture(STREAM)
    x, out = scores(), torch.zeros(3, 2, Q, K).half()
    expected = [to(t, lambda t: softmax_ops.softmax(x, scale=0.5, mask=mask, out=t), x, out) for t in (out, x)]
    monkeypatch.setattr(dispatch, "compute", never)
    monkeypatch.setattr(dispatch, "_plan", never)
    for _ in range(2):
        assert [to(t, lambda t: run(x, t, mask), x, out) for t in (out, x)] == expected
        with torch.inference_mode():
            assert [to(t, lambda t: run(x, t, mask), x, out) for t in (out, x)] == expected
    pose(monkeypatch.setattr, 0x99)
    assert run(x, mask=mask).is_contiguous() and stub_driver.launches()[-1].stream == 0x99


@isolated
def test_launches_of_the_backward(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = softmax_ops.plan(scores(), scale=0.5, backward=True)
    dy, y, out = scores(), scores(1), scores(2)
    targets = (out, dy, y)
    expected = [to(t, lambda t: softmax_ops.softmax_backward(dy, y, scale=0.5, out=t), *targets) for t in targets]
    monkeypatch.setattr(dispatch, "compute", never)
    for _ in range(2):
        assert [to(t, lambda t: run(dy, y, t), *targets) for t in targets] == expected
    assert [part[3] for part in expected] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "versions"


@isolated
def test_one_kernel_whatever_the_alignment(gpu: None) -> None:
    """A plan for tensors anywhere also runs aligned ones, with the kernel that was planned."""
    run = softmax_ops.plan(shifted(1), out=shifted(1))
    for elements in (1, 0, 8, 3, 1):
        run(shifted(elements), out=shifted(elements))
    kernels = {call.kernel for call in stub_driver.launches()}
    assert len(stub_driver.launches()) == 5 and len(kernels) == 1 and b"_v1_" in kernels.pop()


@isolated
def test_others_launch_nothing(gpu: None) -> None:
    run = softmax_ops.plan(scores())
    run(scores(), out=scores()), run(scores())
    stub_driver.forget()
    for other in ("shape", "strides", "dtype", "alignment", "overlap", "requires grad"):
        make, says = OTHERS[other]
        with pytest.raises(ValueError, match=says):
            run(**{"x": scores(), **make()})
        with pytest.raises(ValueError):
            run(**{"x": scores(), "out": scores(), **make()})
    assert stub_driver.launches() == []


@isolated
def test_layouts_that_must_be_copied_are_no_plan(gpu: None) -> None:
    with pytest.raises(ValueError, match=r"no kernel follows a .* without a copy"):
        softmax_ops.plan(torch.zeros(K, Q).half().t())
    x = torch.zeros(Q, K + 1).half()
    with pytest.raises(ValueError, match=r"rows of out on 16-byte boundaries, as batch_invariant needs them"):
        softmax_ops.plan(x, batch_invariant=True)
    softmax_ops.plan(x, out=torch.zeros(Q, K + 8).half()[:, : K + 1], batch_invariant=True)


@isolated
def test_copies_of_a_module_share_its_plan(gpu: None) -> None:
    run = softmax_ops.plan(scores())
    assert copy.deepcopy({"plan": run})["plan"] is run and copy.copy(run) is run
    with pytest.raises(TypeError, match=r"^softmax_ops.plan: a plan belongs to its process and GPU, .* plan again"):
        pickle.dumps(run)


@isolated
def test_threads_share_a_plan(gpu: None) -> None:
    run = softmax_ops.plan(scores())
    stub_driver.hesitate(20e-6)
    tensors = [[scores() for _ in range(3)] for _ in range(4)]

    def work(mine: list[Tensor]) -> None:
        for _ in range(100):
            for x in mine:
                run(x, out=x)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    at = [(call.parameters[:8], call.parameters[8:16]) for call in stub_driver.launches()]
    assert len(at) == 1200 and all(x == y for x, y in at) and len({*at}) == 12
