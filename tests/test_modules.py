"""The layer computes the same as the function."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import softmax_ops


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, "FusedSoftmax(scale=1)"),
        ({"scale": 0.125, "causal": True}, "FusedSoftmax(scale=0.125, causal=True)"),
        ({"causal": True, "causal_offset": -1}, "FusedSoftmax(scale=1, causal=True, causal_offset=-1)"),
        ({"batch_invariant": True}, "FusedSoftmax(scale=1, batch_invariant=True)"),
        ({"window": (2, None), "softcap": 5.0}, "FusedSoftmax(scale=1, window=(2, None), softcap=5.0)"),
        ({"dtype": torch.float32, "causal": True}, "FusedSoftmax(scale=1, causal=True, dtype=torch.float32)"),
    ],
)
def test_layer_is_the_function(arguments: dict[str, Any], shown: str) -> None:
    layer = softmax_ops.FusedSoftmax(**arguments)
    assert repr(layer) == shown and not layer.state_dict() and not list(layer.parameters())
    x, mask = torch.randn(2, 4, 6, requires_grad=True), torch.rand(2, 1, 6) < 0.4
    for given in (None, mask):
        y, expected = layer(x, given), softmax_ops.softmax(x, mask=given, **arguments)
        assert torch.equal(y, expected)
        dy = torch.randn_like(x)
        assert torch.equal(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(expected, x, dy)[0])


def test_every_argument_reaches_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("softmax_ops.api.softmax", lambda x, **arguments: seen.update(arguments))
    arguments: dict[str, Any] = {"scale": 0.5, "causal": True, "causal_offset": 2, "batch_invariant": True}
    new: dict[str, Any] = {"window": (3, 1), "softcap": 2.0, "dtype": torch.float32}
    tensors = {"mask": torch.ones(1), "bias": torch.ones(2), "key_lengths": torch.ones(3)}
    softmax_ops.FusedSoftmax(**arguments, **new)(torch.ones(3), **tensors)
    assert seen == arguments | new | tensors


def test_log_is_the_other_function() -> None:
    x, bias = torch.randn(2, 4, 6), torch.randn(4, 6)
    layer = softmax_ops.FusedSoftmax(scale=0.5, log=True)
    assert repr(layer) == "FusedSoftmax(scale=0.5, log=True)"
    assert torch.equal(layer(x, bias=bias), softmax_ops.log_softmax(x, scale=0.5, bias=bias))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"causal_offset": 1}, "causal_offset is 1 and causal is False"),
        ({"scale": "2"}, "scale is '2'"),
        ({"window": 3}, "window is 3"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"causal": 1}, "causal is 1"),
        ({"dtype": "float32"}, "dtype is 'float32'"),
    ],
    ids=str,
)
def test_what_no_scores_fit_is_refused_at_once(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        softmax_ops.FusedSoftmax(**arguments)


def test_arguments_have_names() -> None:
    """The first one of torch.nn.Softmax is the dimension, which would be taken for a scale."""
    layer: Any = softmax_ops.FusedSoftmax
    with pytest.raises(TypeError, match="positional"):
        layer(-1)


def test_every_scale_is_shown() -> None:
    assert repr(softmax_ops.FusedSoftmax(scale=Fraction(1, 8))) == "FusedSoftmax(scale=0.125)"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["scale", "causal_offset"])
@pytest.mark.parametrize("tensor", [torch.tensor([0.5]), torch.nn.Parameter(torch.tensor(0.5))], ids=["", "parameter"])
def test_tensors_are_no_state_of_a_layer(name: str, tensor: Tensor) -> None:
    with pytest.raises(TypeError, match=f"{name} is a float32 tensor .*; want a number"):
        softmax_ops.FusedSoftmax(**{name: tensor}, causal=True)  # type: ignore[arg-type]


def test_a_dtype_that_no_scores_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; want one that scores can have"):
        softmax_ops.FusedSoftmax(dtype=torch.int8)


def test_the_default_device_and_dtype_matter_to_no_layer() -> None:
    with torch.device("meta"):
        layer = softmax_ops.FusedSoftmax(scale=1e60, softcap=1e60)  # fits float64 scores
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(layer(x), softmax_ops.softmax(x, scale=1e60, softcap=1e60))
    with pytest.raises(ValueError, match=r"^FusedSoftmax: scale is inf"):
        softmax_ops.FusedSoftmax(scale=float("inf"))


@pytest.mark.parametrize("name", ["log", "batch_invariant", "causal"])
def test_flags_are_bools(name: str) -> None:
    with pytest.raises(TypeError, match=f"^FusedSoftmax: {name} is 'no' of type str; want a bool"):
        made: Any = softmax_ops.FusedSoftmax
        made(**{name: "no"})


def test_fx_records_a_call_of_which_any_tensor_is_a_proxy() -> None:
    x, seen = torch.randn(3, 5), torch.zeros(5, dtype=torch.bool)
    seen[2] = True
    traced = torch.fx.symbolic_trace(lambda mask: softmax_ops.softmax(x, mask=mask))
    assert torch.equal(traced(seen), softmax_ops.softmax(x, mask=seen))
    y = softmax_ops.softmax(x)
    traced = torch.fx.symbolic_trace(lambda dy: softmax_ops.softmax_backward(dy, y, scale=0.5))
    assert torch.equal(traced(x), softmax_ops.softmax_backward(x, y, scale=0.5))


def test_fx_records_a_call() -> None:
    """By its name and arguments, with whatever function the layer calls."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.softmax = softmax_ops.FusedSoftmax(scale=0.5, causal=True)

        def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            y, lse = softmax_ops.log_softmax(self.softmax(x, bias=bias), return_lse=True)
            return softmax_ops.softmax_backward(softmax_ops.softmax_(y), y) + lse[..., None]

    traced = torch.fx.symbolic_trace(Model())
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert [function for function in called if getattr(function, "__module__", "") == "softmax_ops.api"] == [
        *(softmax_ops.softmax, softmax_ops.log_softmax, softmax_ops.softmax, softmax_ops.softmax_backward)
    ]
    x, bias = torch.randn(2, 4, 6), torch.randn(4, 6)
    assert torch.equal(traced(x, bias), Model()(x, bias))
