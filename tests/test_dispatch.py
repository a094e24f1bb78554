"""From tensors to launches on the stub driver: CPU tensors pose as GPU tensors, and launches are recorded."""

from typing import Any

import pytest
import torch

from softmax_ops import dispatch, layouts, operands
from softmax_ops.artifacts import catalog
from softmax_ops.layouts import Scalars, metadata_of
from softmax_ops.planning.launch_plan import LaunchPlan
from tests.support import stub_driver
from tests.support.launches import STREAM, Serve, posing, serve, serve_all
from tests.support.stub_driver import isolated

pytestmark = pytest.mark.slow  # a process per test

__all__ = ["posing", "serve"]  # fixtures

EXCLUDED = -float("inf")


def compute(direction: str, inputs: Any, mask: Any = None, out: Any = None, **scalars: Any) -> torch.Tensor:
    return dispatch.compute(direction, inputs, others(mask), out, of_call(**scalars))


def plan_of(direction: str, tensors: Any, mask: Any = None, **scalars: Any) -> LaunchPlan:
    return dispatch._plan(metadata_of(direction, tensors, others(mask), of_call(**scalars), "sm_90"))


def others(mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {} if mask is None else {"mask": mask}


def of_call(**scalars: Any) -> Scalars:
    facts: dict[str, Any] = {"scale": 0.5, "fill": EXCLUDED, "causal_offset": None, "batch_invariant": False}
    return Scalars(**(facts | scalars))


def launched() -> list[stub_driver.Call]:
    return stub_driver.launches()


@pytest.mark.parametrize("name", ["mask", "bias"])
def test_what_is_expanded_is_not_copied_expanded(name: str) -> None:
    """A mask or bias with a last stride of 2, and a bias that is converted: 2 * 4 * 8 elements are copied, not 16 times
    as many."""
    x = torch.randn(2, 16, 4, 8).half()
    given = torch.rand(2, 1, 4, 16)[..., ::2].expand(2, 16, 4, 8)
    if name == "mask":
        given = given < 0.5
        given = torch.stack((given[:, :1], given[:, :1]), -1).flatten(-2)[..., ::2].expand(2, 16, 4, 8)
        _, found = layouts.supported((x,), {"mask": given}, batch_invariant=False)
        copy = found["mask"]
    else:
        copy = operands._bias(given, x)
    assert copy.stride(-1) == 1 and copy.untyped_storage().nbytes() == 2 * 4 * 8 * copy.element_size()
    assert torch.equal(copy.expand(x.shape), given)


@isolated
def test_addresses_and_scalars_of_the_forward(serve: Serve) -> None:
    serve_all(serve, "fwd_f16_boolcausal_warp")
    x, mask = torch.randn(3, 2, 5, 1000).half(), torch.zeros(3, 1, 1, 1000, dtype=torch.uint8)
    y = compute("fwd", (x,), mask, causal_offset=995)
    (call,) = launched()
    plan = plan_of("fwd", (x, y), mask, causal_offset=995)
    addresses = {"x.address": x.data_ptr(), "y.address": y.data_ptr(), "mask.address": mask.data_ptr()}
    assert call.parameters == plan.arguments(plan.launches[0], addresses | {"scale": 0.5, "mask.fill": EXCLUDED})
    assert call.stream == STREAM and y.is_contiguous() and y.shape == x.shape and y.dtype is x.dtype


@isolated
def test_addresses_of_the_backward_in_place(serve: Serve) -> None:
    serve_all(serve, "bwd_f32_causal_warp")
    dy, y = torch.randn(2, 5, 300), torch.rand(2, 5, 300)
    version = dy._version
    assert compute("bwd", (dy, y), out=dy) is dy and dy._version == version + 1
    (call,) = launched()
    plan = plan_of("bwd", (dy, y, dy))
    addresses = {"dy.address": dy.data_ptr(), "y.address": y.data_ptr(), "dx.address": dy.data_ptr()}
    assert call.parameters == plan.arguments(plan.launches[0], addresses | {"scale": 0.5})


@isolated
def test_what_has_no_memory_is_refused(serve: Serve) -> None:
    """Zeros that torch does not store, as in some gradients; a freed storage, as in sharded training."""
    serve_all(serve, "f16_none_warp")
    x, freed = torch.randn(4, 64).half(), torch.empty(4, 64).half()
    freed.untyped_storage().resize_(0)
    for nothing in (torch._efficientzerotensor(4, 64, dtype=torch.half), freed):
        for name, inputs in {"x": (nothing,), "dy": (nothing, x), "y": (x, nothing)}.items():
            with pytest.raises(ValueError, match=rf"softmax_ops: {name} is a .* without memory"):
                compute("fwd" if name == "x" else "bwd", inputs)
    assert launched() == []


@isolated
def test_a_mask_of_ones_and_zeros_has_kernels_of_its_own(serve: Serve) -> None:
    serve_all(serve, "fwd_f16_like_warp")
    x = torch.randn(5, 1000).half()
    compute("fwd", (x,), torch.zeros(1, 1000).half(), fill=-10000.0)
    assert b"fwd_f16_like_warp" in launched()[0].kernel


@isolated
def test_a_last_stride_other_than_1_is_copied(serve: Serve) -> None:
    """x transposed is copied whole; of an expanded dy, only one row; a mask too."""
    serve_all(serve, "fwd_f32_boolcausal_warp", "bwd_f32_causal_warp")
    x = torch.randn(300, 7).t()
    compute("fwd", (x,), torch.zeros(300, 7, dtype=torch.bool).t())
    dy = torch.tensor(2.0).expand(7, 300)
    compute("bwd", (dy, torch.rand(7, 300)))
    forward, backward = launched()
    own = {tensor.data_ptr() for tensor in (x, dy)}
    layout = catalog.load().layout(plan_of("bwd", (torch.rand(1, 300).expand(7, 300), x.contiguous(), x)).variant)
    strides = catalog.argument_bytes(layout[: [name for name, _ in layout].index("dy.strides")])
    assert backward.parameters[strides : strides + 16] == bytes(16), "all rows of dy are one"
    for call in (forward, backward):
        assert int.from_bytes(call.parameters[:8], "little") not in own


@isolated
def test_strides_that_no_kernel_can_follow_are_copied(serve: Serve) -> None:
    """Five leading dimensions, none of which continues another; the result still goes to the right place."""
    serve_all(serve, "fwd_f32_none_warp")
    whole = torch.randn(3, 3, 3, 3, 3, 600)
    x, out = whole[::2, ::2, ::2, ::2, ::2, :300], torch.zeros(3, 3, 3, 3, 3, 600)[::2, ::2, ::2, ::2, ::2, :300]
    assert compute("fwd", (x,), out=out) is out
    (call,) = launched()
    source, target = (int.from_bytes(call.parameters[at : at + 8], "little") for at in (0, 8))
    assert source != x.data_ptr() and target != out.data_ptr()


@isolated
def test_a_mask_is_not_expanded_because_the_scores_are_copied(serve: Serve) -> None:
    serve_all(serve, "fwd_f32_boolcausal")
    x, mask = torch.randn(2, 3, 2, 3, 2, 300).permute(4, 1, 0, 3, 2, 5), torch.zeros(300, dtype=torch.bool)
    compute("fwd", (x,), mask)
    (call,) = launched()
    layout = catalog.load().layout(plan_of("fwd", (x.contiguous(), x.contiguous()), mask).variant)
    at = catalog.argument_bytes(layout[: [name for name, _ in layout].index("mask.address")])
    assert int.from_bytes(call.parameters[at : at + 8], "little") == mask.data_ptr()


@isolated
def test_split_rows_get_a_workspace(serve: Serve) -> None:
    stub_driver.devices("sm_80")
    variant = catalog.load().variants["softmax_fwd_f32_none_split_kany_v1_t256r1"]
    serve(variant, held=("sm_80",))
    compute("fwd", (torch.randn(3, 50257),))
    first, second = launched()
    layout = catalog.load().layout(variant)
    at = catalog.argument_bytes(layout[: [name for name, _ in layout].index("workspace.address")])
    assert first.parameters[at : at + 8] == second.parameters[at : at + 8] != bytes(8)


@isolated
def test_nothing_is_launched_for_nothing() -> None:
    assert compute("fwd", (torch.zeros(3, 0),)).shape == (3, 0)
    assert compute("bwd", (torch.zeros(0, 5), torch.zeros(0, 5))).shape == (0, 5)
    assert launched() == []


@isolated
def test_equal_calls_share_a_plan_and_a_kernel(serve: Serve) -> None:
    serve_all(serve, "fwd_f16_none_warp")
    for _ in range(3):
        compute("fwd", (torch.randn(5, 1000).half(),))
    compute("fwd", (torch.randn(6, 1000).half(),))
    names = [call.name for call in stub_driver.calls()]
    assert names.count("cuLibraryLoadData") == 1 and names.count("cuLaunchKernelEx") == 4
    assert dispatch._plan.cache_info().misses == 2
