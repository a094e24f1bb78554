"""Whether a tensor is like another: each property that a known call depends on, changed alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from softmax_ops.known.likeness import guards, matcher

K, Q = 5, 4


def test_tensors_like_these() -> None:
    is_like = matcher(torch.zeros(3, Q, K), torch.zeros(Q, 1).expand(Q, K))
    for _ in range(2):
        assert is_like(torch.ones(3, Q, K), torch.ones(2 * Q, 1)[:Q].expand(Q, K))
        assert not is_like(torch.ones(Q, 1).expand(Q, K), torch.ones(3, Q, K))


def test_guards_that_take_other_arguments_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a torch that is still to come."""

    class Guards:
        def __init__(self, *tensors: Tensor):
            self.check = None

    assert guards() is not None  # and stays cached for other tests
    monkeypatch.setattr(torch._C._dynamo.guards, "TensorGuards", Guards)
    assert guards.__wrapped__() is None


class Own(Tensor):
    pass


OTHERS = {
    "shape": torch.zeros(Q + 1, K),
    "fewer dimensions": torch.zeros(K),
    "strides": torch.zeros(K, Q).t(),
    "row stride": torch.zeros(Q, K + 1)[:, :K],
    "expanded": torch.zeros(1, K).expand(Q, K),
    "dtype": torch.zeros(Q, K).half(),
    "device": torch.zeros(Q, K, device="meta"),
    "requires grad": torch.zeros(Q, K, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.zeros(Q, K), requires_grad=False),
    "subclass": torch.zeros(Q, K).as_subclass(Own),
    "negated": torch._neg_view(torch.zeros(Q, K)),
    "sparse": torch.zeros(Q, K).to_sparse(),
    "list": [[0.0] * K] * Q,
    "none": None,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=list(OTHERS))
@pytest.mark.parametrize("place", [0, 1])
def test_others(other: Any, place: int) -> None:
    like = [torch.zeros(Q, K), torch.zeros(Q, K)]
    is_like = matcher(*like)
    like[place] = other
    assert not is_like(*like)


def test_metadata_changed_in_place() -> None:
    x = torch.zeros(Q, Q)
    is_like = matcher(x)
    assert not is_like(x.as_strided_((Q, Q), (1, Q))) and is_like(x.t_())
    x.requires_grad_()
    assert not is_like(x)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "circumstance",
    [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), Mode],
    ids=["inference", "autocast", "dispatch mode"],
)
def test_circumstances(circumstance: Callable[[], Any]) -> None:
    x = torch.zeros(Q, K)
    outside = matcher(x)
    with circumstance():
        inside = matcher(x)
        assert inside(x) and not outside(x)
    assert outside(x) and not inside(x)


def test_inference_tensors() -> None:
    """They have no version to increment."""
    with torch.inference_mode():
        made_inside = torch.zeros(Q, K)
    assert not matcher(torch.zeros(Q, K))(made_inside)


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.functionalize], ids=lambda t: t.__name__)
def test_transforms(transform: Callable[..., Any]) -> None:
    """For the transformed tensor, and for another one next to it."""
    x = torch.zeros(Q, K)
    is_like, of_samples = matcher(x), matcher(torch.zeros(K))

    def look(sample: Tensor) -> Tensor:
        assert not is_like(x) and not is_like(sample) and not of_samples(sample)
        return sample.sum()

    transform(look)(x)
    assert is_like(x)
