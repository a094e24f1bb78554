"""Properties of the public functions on random tensors: on the CPU, and planned and executed on the PTX interpreter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softmax_ops
from codegen import build, variants
from softmax_ops import dispatch, layouts
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.checks import BackwardRequest, Request, check_softmax, check_softmax_backward
from softmax_ops.planning.geometry import OPERANDS
from softmax_ops.planning.selection import NoVariant
from tests.support import engines, reference
from tests.support.reference import DTYPE_NAMES, DTYPES, assert_close, to_numpy

ARCHITECTURE = "sm_90"
KINDS = {"f16": "boolcausal", "bf16": "bool", "f32": "causal", "f64": "none"}
"""The mask kind that is executed for each dtype: every kind once."""

BACKWARD_KINDS = {"f16": "causal", "bf16": "none", "f32": "none", "f64": "causal"}

LONGEST = 600
"""Longest executed row, in columns."""

examples = settings(deadline=None, database=None, derandomize=True)


class Call(NamedTuple):
    x: torch.Tensor
    arguments: dict[str, Any]
    out: torch.Tensor | None  # strided, or x itself


class BackwardCall(NamedTuple):
    dy: torch.Tensor  # strided or expanded
    y: torch.Tensor
    arguments: dict[str, Any]
    out: torch.Tensor | None  # strided, or dy or y itself


def strided(draw: st.DrawFn, shape: list[int], dtype: torch.dtype, *, padding: int) -> torch.Tensor:
    """Uninitialised; anywhere in its storage, leading dimensions permuted, cut out of larger ones, last stride 1."""
    rank = len(shape)
    order = [*draw(st.permutations(range(rank - 1))), rank - 1]
    extra = [draw(st.sampled_from([0, 0, padding])) for _ in shape]
    padded = [shape[d] + extra[d] for d in order]
    first = draw(st.sampled_from([0, 0, 1, 4]))
    tensor = torch.empty(first + math.prod(padded), dtype=dtype)[first:].view(padded)
    tensor = tensor.permute([order.index(d) for d in range(rank)])
    for d, size in enumerate(shape):
        tensor = tensor.narrow(d, extra[d], size)
    return tensor


def random_mask(draw: st.DrawFn, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Broadcast in some dimensions; contains uint8 values other than 1, which do not hide."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    mask_shape = [size if draw(st.booleans()) else 1 for size in kept]
    if draw(st.booleans()):
        return torch.rand(mask_shape, generator=generator) < 0.4
    return torch.randint(0, 3, mask_shape, generator=generator, dtype=torch.uint8)


@st.composite
def shapes(draw: st.DrawFn, longest: int) -> list[int]:
    k = draw(st.one_of(st.integers(1, longest), st.integers(1, longest // 8).map(lambda n: 8 * n)))
    return [*draw(st.lists(st.integers(1, 4), min_size=0, max_size=4)), k]


@st.composite
def calls(draw: st.DrawFn, kinds: Mapping[str, str] | None = None, longest: int = 64) -> Call:
    """Any dtype with any mask, or those of `kinds`. Hidden scores are NaN, and so is out."""
    dtype = draw(st.sampled_from(sorted(kinds or DTYPES)))
    kind = kinds[dtype] if kinds else draw(st.sampled_from(["none", "causal", "bool", "boolcausal"]))
    shape = draw(shapes(longest))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    x = strided(draw, shape, DTYPES[dtype], padding=draw(st.sampled_from([1, 8])))
    x.copy_(torch.randn(shape, generator=generator) * draw(st.sampled_from([0.1, 4.0])))
    arguments: dict[str, Any] = {"scale": draw(st.sampled_from([1.0, 0.125, -0.5, 1 / 3]))}
    if kind in ("bool", "boolcausal"):
        arguments["mask"] = random_mask(draw, shape, generator)
        x.masked_fill_(arguments["mask"] == 1, math.nan)
    if kind in ("causal", "boolcausal"):
        arguments |= {"causal": True, "causal_offset": draw(st.none() | st.integers(-5, shape[-1]))}
    where = draw(st.sampled_from(["new", "strided", "in place"]))
    if where == "strided":
        return Call(x, arguments, strided(draw, shape, DTYPES[dtype], padding=8).fill_(math.nan))
    return Call(x, arguments, x if where == "in place" else None)


@st.composite
def backward_calls(
    draw: st.DrawFn, kinds: Mapping[str, str] | None = None, longest: int = 64, *, constant: bool = False
) -> BackwardCall:
    """Any dtype, causal or not, or as in `kinds`; y is a softmax, 0 where a mask hid. Columns that causality hides are
    NaN, and so is out. If `constant`, dy is a single number and nothing was masked."""
    dtype = draw(st.sampled_from(sorted(kinds or DTYPES)))
    kind = kinds[dtype] if kinds else draw(st.sampled_from(["none", "causal"]))
    shape = draw(shapes(longest))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    arguments: dict[str, Any] = {"scale": draw(st.sampled_from([1.0, 0.125, -0.5, 1 / 3]))}
    causal: dict[str, Any] = {}
    if kind == "causal":
        causal = {"causal": True, "causal_offset": draw(st.none() | st.integers(-5, shape[-1]))}
    scores = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.1, 4.0]))
    mask = None if constant else random_mask(draw, shape, generator)

    y = strided(draw, shape, DTYPES[dtype], padding=draw(st.sampled_from([1, 8])))
    y.copy_(softmax_ops.softmax(scores, mask=mask, **causal))
    if constant or draw(st.booleans()):
        kept = [] if constant else [n if draw(st.booleans()) else 1 for n in shape[draw(st.integers(0, len(shape))) :]]
        dy = (torch.randn(kept, generator=generator) * 3).to(DTYPES[dtype]).expand(shape)
        own = [y]
    else:
        dy = strided(draw, shape, DTYPES[dtype], padding=draw(st.sampled_from([1, 8])))
        dy.copy_(torch.randn(shape, generator=generator) * 3)
        own = [dy, y]
    if causal:
        offset = check_softmax_backward(dy, y, scale=1.0, **causal, out=None).causal_offset
        hidden = torch.from_numpy(~reference.visible(tuple(shape), None, offset))
        for tensor in own:
            tensor.masked_fill_(hidden, math.nan)
    where = draw(st.sampled_from(["new", "strided", *(["dy", "y"] if len(own) == 2 else ["y"])]))
    out = {
        "new": lambda: None,
        "strided": lambda: strided(draw, shape, DTYPES[dtype], padding=8).fill_(math.nan),
        "dy": lambda: dy,
        "y": lambda: y,
    }[where]()
    return BackwardCall(dy, y, arguments | causal, out)


def verify(y: torch.Tensor, x: torch.Tensor, request: Request) -> None:
    """Compares y with the reference for scores x."""
    mask = None if request.mask is None else to_numpy(request.mask)
    inputs = (to_numpy(x), request.scale, mask, request.causal_offset)
    expected, rounding = reference.softmax(*inputs), reference.score_rounding(*inputs)
    assert_close(y, expected, DTYPE_NAMES[x.dtype], rounding=rounding)
    assert (to_numpy(y)[~reference.visible(expected.shape, mask, request.causal_offset)] == 0).all()


def verify_backward(dx: torch.Tensor, dy: torch.Tensor, y: torch.Tensor, request: BackwardRequest) -> None:
    """Compares dx with the reference for dy and y."""
    inputs = (to_numpy(dy), to_numpy(y), request.scale, request.causal_offset)
    magnitude = reference.backward_magnitude(*inputs)
    assert_close(dx, reference.softmax_backward(*inputs), DTYPE_NAMES[y.dtype], magnitude=magnitude)
    assert (to_numpy(dx)[~reference.visible(tuple(y.shape), None, request.causal_offset)] == 0).all()


def checked(call: Call) -> Request:
    defaults: dict[str, Any] = {"mask": None, "causal": False, "causal_offset": None, "out": call.out}
    return check_softmax(call.x, **(defaults | call.arguments))


def checked_backward(call: BackwardCall) -> BackwardRequest:
    defaults: dict[str, Any] = {"causal": False, "causal_offset": None, "out": call.out}
    return check_softmax_backward(call.dy, call.y, **(defaults | call.arguments))


class Prepared(NamedTuple):
    """A call as the torch interface passes it to planning: the operands' tensors, the output last, and the mask."""

    direction: str
    tensors: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None
    metadata: layouts.Metadata


def prepared(call: Call | BackwardCall) -> Prepared:
    """The tensors of a call; a new output is filled with NaN."""
    request = checked(call) if isinstance(call, Call) else checked_backward(call)
    inputs = (call.x,) if isinstance(call, Call) else (call.dy, call.y)
    mask = request.mask if isinstance(request, Request) else None
    output = torch.full(inputs[0].shape, math.nan, dtype=inputs[0].dtype) if call.out is None else call.out
    direction = "fwd" if isinstance(call, Call) else "bwd"
    scalars = layouts.Scalars(request.scale, -math.inf, request.causal_offset, False)
    others = {} if mask is None else {"mask": mask}
    tensors, others = layouts.supported((*inputs, output), others, batch_invariant=False)
    metadata = layouts.metadata_of(direction, tensors, others, scalars, ARCHITECTURE)
    return Prepared(direction, tensors, others.get("mask"), metadata)


# The public functions on the CPU


@given(calls())
@settings(examples, max_examples=200)
def test_softmax(call: Call) -> None:
    x, request = call.x.clone(), checked(call)
    y = softmax_ops.softmax(call.x, out=call.out, **call.arguments)
    verify(y, x, request)
    assert y is call.out if call.out is not None else y.is_contiguous()
    if call.out is not call.x:
        assert torch.equal(call.x.nan_to_num(9.0), x.nan_to_num(9.0))


@given(calls())
@settings(examples, max_examples=100)
def test_softmax_in_place(call: Call) -> None:
    expected = softmax_ops.softmax(call.x, **call.arguments)
    assert softmax_ops.softmax_(call.x, **call.arguments) is call.x
    assert torch.equal(call.x, expected)


@pytest.mark.slow
@given(calls(), st.booleans())
@settings(examples, max_examples=100)
def test_explain(call: Call, backward: bool) -> None:
    """Every row in exactly one CTA; the element type and mask of the call; traffic of every element once."""
    x, request = call.x, checked(call)
    said = softmax_ops.explain(x, out=call.out, backward=backward, **call.arguments)
    rows = x.numel() // x.shape[-1]
    direction, inputs, mask = ("bwd", 2, None) if backward else ("fwd", 1, request.mask)
    assert said.variant is not None and said.variant.startswith(f"softmax_{direction}_{DTYPE_NAMES[x.dtype]}_")
    assert ("bool" in said.variant) == (mask is not None)
    assert sum(said.grid) * said.rows_per_cta >= rows > (sum(said.grid) - 1) * said.rows_per_cta
    assert said.bytes_written == x.numel() * x.element_size()
    visible = int(reference.visible(tuple(x.shape), None, request.causal_offset).sum())
    assert said.bytes_read == inputs * visible * x.element_size() + (0 if mask is None else mask.numel())
    assert said.as_dict()["arch"] == "sm_90" and said.variant in str(said)


@given(calls() | backward_calls())
@settings(examples, max_examples=300)
def test_geometry_moves_like_the_tensors(call: Call | BackwardCall) -> None:
    """Strides are 0 where a tensor broadcasts; those of a dimension of size 1 are never used."""
    direction, tensors, mask, metadata = prepared(call)
    geometry = layouts.geometry_of(metadata)
    assert [operand.name for operand in geometry.operands] == [
        *OPERANDS[direction],
        *([] if mask is None else ["mask"]),
    ]
    for tensor, operand in zip([*tensors, *([] if mask is None else [mask])], geometry.operands, strict=True):
        expected = tensor.expand(geometry.shape).stride()
        assert [s for s, size in zip(operand.strides, geometry.shape, strict=True) if size > 1] == [
            s for s, size in zip(expected, geometry.shape, strict=True) if size > 1
        ]
        assert operand.element_bytes == tensor.element_size()
        assert tensor.data_ptr() % operand.alignment == 0
        assert operand.alignment == 16 or tensor.data_ptr() % (2 * operand.alignment) != 0


@given(backward_calls())
@settings(examples, max_examples=200)
def test_what_is_expanded_is_copied_once(call: BackwardCall) -> None:
    """A gradient whose last stride is 0 is copied to one row for all equal rows; no other dimension is expanded."""
    dy = layouts.with_unit_stride(call.dy)
    if call.dy.shape[-1] == 1 or call.dy.stride(-1) == 1:
        assert dy is call.dy
        return
    assert torch.equal(dy, call.dy) and dy.stride(-1) == 1
    moving = [size for size, stride in zip(dy.shape[:-1], call.dy.stride(), strict=False) if stride]
    assert dy.untyped_storage().nbytes() == math.prod(moving) * dy.shape[-1] * dy.element_size()


def test_the_gradient_of_a_sum_is_copied_as_one_row() -> None:
    y = torch.rand(4, 16, 128, 1000)
    dy = torch.ones(()).expand(y.shape)
    copy = layouts.with_unit_stride(dy)
    assert copy.stride() == (0, 0, 0, 1) and copy.untyped_storage().nbytes() == 4 * 1000
    per_query = layouts.with_unit_stride(torch.rand(4, 16, 128, 1).expand(y.shape))  # as from y.sum(-1)
    assert per_query.is_contiguous()
    transposed = y.transpose(-1, -2)
    assert layouts.with_unit_stride(transposed).is_contiguous()


# The backward


@given(backward_calls())
@settings(examples, max_examples=200)
def test_softmax_backward(call: BackwardCall) -> None:
    dy, y, request = call.dy.clone(), call.y.clone(), checked_backward(call)
    dx = softmax_ops.softmax_backward(call.dy, call.y, out=call.out, **call.arguments)
    verify_backward(dx, dy, y, request)
    assert dx is call.out if call.out is not None else dx.is_contiguous()
    for tensor, before in ((call.dy, dy), (call.y, y)):
        if call.out is not tensor:
            assert torch.equal(tensor.nan_to_num(9.0), before.nan_to_num(9.0))


@given(backward_calls(constant=True))
@settings(examples, max_examples=100)
def test_the_gradient_of_a_constant_is_nothing(call: BackwardCall) -> None:
    """Except for what the rounded y lacks to a sum of 1."""
    dy, y, request = to_numpy(call.dy).copy(), to_numpy(call.y).copy(), checked_backward(call)
    seen = reference.visible(y.shape, None, request.causal_offset)
    y = np.where(seen, y, 0.0)
    dx = to_numpy(softmax_ops.softmax_backward(call.dy, call.y, out=call.out, **call.arguments))
    dtype = DTYPE_NAMES[call.y.dtype]
    lacking = reference.row_sum_tolerance(y, dtype) + 16 * reference.FORMATS[dtype].unit_roundoff
    allowed = abs(request.scale) * y * np.abs(dy).max() * lacking
    assert (np.abs(dx) <= 1.01 * allowed + reference.FORMATS[dtype].smallest).all()


@given(backward_calls())
@settings(examples, max_examples=100)
def test_the_backward_is_linear_in_dy(call: BackwardCall) -> None:
    """Doubling the gradient doubles the result, exactly; a sum of gradients gives the sum, except for its rounding."""
    dtype, y = DTYPE_NAMES[call.y.dtype], call.y
    generator = torch.Generator().manual_seed(y.numel())
    one, other = (torch.randint(-8, 9, y.shape, generator=generator).to(y.dtype) for _ in range(2))

    def backward(dy: torch.Tensor) -> torch.Tensor:
        return softmax_ops.softmax_backward(dy, y, **call.arguments)

    normal = backward(one).abs() > 2 * torch.finfo(y.dtype).tiny  # below, halving rounds
    assert torch.equal(backward(2 * one)[normal], 2 * backward(one)[normal])
    request = checked_backward(call)
    magnitude = sum(
        reference.backward_magnitude(to_numpy(dy), to_numpy(y), request.scale, request.causal_offset)
        for dy in (one, other)
    )
    parts = to_numpy(backward(one)) + to_numpy(backward(other))
    error = reference.ulp_error(to_numpy(backward(one + other)), parts, dtype, magnitude)
    assert (error <= 3 * reference.TOLERANCE_ULP[dtype]).all()


@given(calls())
@settings(examples, max_examples=100)
def test_forward_and_backward_agree_with_autograd(call: Call) -> None:
    """In float64, on rows that see something; torch's softmax gives NaN for the others."""
    x = call.x.double().contiguous()
    request = check_softmax(x, **({"mask": None, "causal": False, "causal_offset": None} | call.arguments), out=None)
    seen = torch.from_numpy(
        reference.visible(
            tuple(x.shape), None if request.mask is None else to_numpy(request.mask), request.causal_offset
        )
    )
    scores = x.masked_fill(~seen, 0.0).requires_grad_()
    expected = (request.scale * scores).masked_fill(~seen, -math.inf).softmax(-1)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(expected, scores, dy)
    y = softmax_ops.softmax(x, **call.arguments)
    causal = {name: value for name, value in call.arguments.items() if name != "mask"}
    dx = softmax_ops.softmax_backward(dy, y, **causal)
    sees = seen.any(-1, keepdim=True)
    assert torch.allclose(dx, gradient.where(sees, torch.zeros(())), atol=1e-12)


# What is launched, and why


def test_explain_follows_what_softmax_would_copy() -> None:
    """More dimensions than kernels distinguish, and a last stride other than 1: the plan is for the copies."""
    x = torch.zeros(8, 2, 2, 2, 2, 2).permute(1, 3, 5, 2, 4, 0)  # [2, 2, 2, 2, 2, 8], last stride 32
    assert "_f32_none_tile_k16_v4_" in str(softmax_ops.explain(x).variant)
    x = torch.zeros(4, 4, 4, 4, 4, 8)[::2, ::2, ::2, ::2, ::2]  # five dimensions that do not merge
    mask = torch.zeros(2, 1, 2, 1, 2, 8, dtype=torch.bool)
    assert softmax_ops.explain(x, mask=mask).grid == (1,)
    out = torch.zeros(4, 4, 4, 4, 4, 8)[::2, ::2, ::2, ::2, ::2]
    assert softmax_ops.explain(torch.zeros(2, 2, 2, 2, 2, 8), out=out).grid == (1,)
    assert softmax_ops.explain(x, out=out, backward=True).grid == (1,)
    expanded = torch.zeros(3, 1).expand(3, 1000)
    explained = softmax_ops.explain(expanded, backward=True)
    assert "softmax_bwd_f32_causal_block_k16384_v4_" in str(explained.variant)
    assert (explained.threads_per_row, explained.block) == (64, 64)  # two warps hold 512 columns each


def test_explain_of_alignment_and_architecture() -> None:
    x = torch.zeros(3, 1000, dtype=torch.float16)
    assert softmax_ops.explain(x, arch="sm_80").arch == "sm_80"
    assert softmax_ops.explain(x).variant == "softmax_fwd_f16_none_warp_k1024_v8_t128r4"
    odd = torch.zeros(3001, dtype=torch.float16)[1:].view(3, 1000)
    assert "x starts on a boundary of 2 bytes" in softmax_ops.explain(odd).reason
    assert "out starts on a boundary of 2 bytes" in softmax_ops.explain(x, out=odd).reason
    assert "dy starts on a boundary of 2 bytes" in softmax_ops.explain(odd, backward=True).reason
    assert str(softmax_ops.explain(x[:0])) == "empty: nothing is launched"
    wide = softmax_ops.explain(x, dtype=torch.float32, backward=True)  # its y does not exist
    assert "softmax_bwd_f32tof16_general_" in str(wide.variant) and wide.arch == "sm_90"
    for arch in ("sm_50", "sm_60", "sm_130"):
        with pytest.raises(NoVariant, match=rf"no kernel ships for {arch}; want one of sm_70, .*sm_120"):
            softmax_ops.explain(x, arch=arch)


def test_explain_of_a_gradient_that_is_a_plain_one() -> None:
    """What autograd launches: of bias, slopes and lse nothing is left in the gradient, if lse has none itself."""
    x = torch.zeros(2, 3, 128, 1000, dtype=torch.float16)
    slopes = torch.zeros(3)
    for arguments in (
        {"bias": x},
        {"bias": x, "causal": True, "mask": x[0, 0] == 1},
        {"alibi_slopes": slopes, "causal_offset": 7},
        {"return_lse": True},
        {"window": (None, 0)},
    ):
        said = softmax_ops.explain(x, backward=True, **arguments)
        assert said.variant == "softmax_bwd_f16_causal_warp_k1024_v8_t128r4", arguments
    assert "_general_" in str(softmax_ops.explain(x, backward=True, window=(5, 0)).variant)
    with pytest.raises(NotImplementedError, match="softcap with bias and alibi_slopes has no backward"):
        softmax_ops.explain(x, softcap=1.0, bias=x, alibi_slopes=slopes, backward=True)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_explain_of_long_rows(backward: bool) -> None:
    """In a cluster if the architecture has them; else read twice, and split with a workspace if they are few."""
    few = torch.zeros(2, 50257, dtype=torch.float16)
    many = few[:1].expand(129, 50257)
    inputs = 2 if backward else 1
    once = inputs * 2 * few.numel()

    said = softmax_ops.explain(few, backward=backward)
    assert (said.plan, said.cluster, said.grid, said.bytes_read, said.workspace_bytes) == ("cluster", 8, (16,), once, 0)
    said = softmax_ops.explain(few, backward=backward, arch="sm_80")
    partial = 4 if backward else 8
    assert (said.plan, said.cluster, said.grid, said.bytes_read) == ("split", 1, (26, 26), 2 * once)
    assert said.workspace_bytes == 26 * partial and f"{26 * partial} of workspace" in str(said)
    invariant = softmax_ops.explain(few, backward=backward, arch="sm_80", batch_invariant=True)
    assert (invariant.plan, invariant.grid, invariant.bytes_read) == ("stream", (2,), 2 * once)
    assert "workspace" not in str(invariant)
    assert softmax_ops.explain(many, backward=backward, arch="sm_80").variant == invariant.variant
    assert "softmax_bwd" in str(invariant.variant) if backward else "softmax_fwd" in str(invariant.variant)


def test_a_vocabulary() -> None:
    x = torch.randn(2, 50257)
    assert softmax_ops.softmax(x).sum(-1).allclose(torch.ones(2))


# Refused calls change nothing

REFUSED: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "scale": ({"scale": math.nan}, ValueError),
    "mask dtype": ({"mask": torch.zeros(3, 4)}, ValueError),
    "mask shape": ({"mask": torch.zeros(3, dtype=torch.bool)}, ValueError),
    "causal_offset alone": ({"causal_offset": 0}, ValueError),
    "causal": ({"causal": 1}, TypeError),
    "unknown": ({"dim": -1}, TypeError),
}


@pytest.mark.parametrize(("arguments", "error"), REFUSED.values(), ids=list(REFUSED))
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    x, out = torch.ones(3, 4), torch.full((3, 4), 7.0)
    with pytest.raises(error):
        softmax_ops.softmax(x, out=out, **arguments)
    with pytest.raises(error):
        softmax_ops.softmax_(x, **arguments)
    with pytest.raises(error):
        softmax_ops.explain(x, **arguments)
    assert x.eq(1).all() and out.eq(7).all()


def test_in_place_takes_no_out() -> None:
    with pytest.raises(TypeError, match="out"):
        softmax_ops.softmax_(torch.ones(3), out=torch.ones(3))  # type: ignore[call-overload]


def test_refused_arguments_of_the_backward() -> None:
    dy, y, out = torch.ones(3, 4), torch.ones(3, 4), torch.full((3, 4), 7.0)
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"scale": math.nan}, ValueError),
        ({"causal_offset": 0}, ValueError),
        ({"causal": 1}, TypeError),
        ({"mask": None}, TypeError),
    ]
    for arguments, error in refused:
        with pytest.raises(error):
            softmax_ops.softmax_backward(dy, y, out=out, **arguments)
    with pytest.raises(ValueError, match="want one dtype, shape and device for both"):
        softmax_ops.softmax_backward(dy[:1], y, out=out)
    assert dy.eq(1).all() and y.eq(1).all() and out.eq(7).all()


# Planned and executed


@cache
def interpreter() -> engines.InterpreterEngine:
    """Has every variant that the executed calls can use."""
    tables = [("fwd", *kind) for kind in KINDS.items()] + [("bwd", *kind) for kind in BACKWARD_KINDS.items()]
    names = {entry.name for key in tables for entry in catalog.load().tables[key] if entry.k[0] <= LONGEST}
    specs = [variants.by_name()[name] for name in sorted(names)]
    report = build.build(specs, [ARCHITECTURE], user_cache(), kind="ptx", progress=False)
    images: dict[str, Cubin] = {cubin.variant: cubin for cubin in report.cubins}
    return engines.InterpreterEngine(images)


def operand(tensor: torch.Tensor) -> engines.Operand:
    """A tensor where it is: its whole storage, of which only its own elements may be touched."""
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    size = tensor.element_size()
    elements = torch.arange(storage.numel() // size).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    valid = torch.zeros(storage.numel() // size, dtype=torch.bool)
    valid[elements.reshape(-1)] = True
    return engines.Operand(
        storage=storage.numpy().copy(),
        phase=storage.data_ptr() % 256,
        first=tensor.data_ptr() - storage.data_ptr(),
        valid=valid.repeat_interleave(size).numpy(),
    )


@pytest.mark.kernels
@given(calls(KINDS, LONGEST) | backward_calls(BACKWARD_KINDS, LONGEST))
@settings(examples, max_examples=100)
def test_planned_and_executed(call: Call | BackwardCall) -> None:
    """The geometry made by the torch interface, its plan, and the kernel on the tensors' memory in place."""
    direction, (*inputs, output), mask, metadata = prepared(call)
    try:
        plan = dispatch._plan(metadata)
    except softmax_ops.planning.launch_plan.TooManyDimensions:
        return
    named = dict(zip(OPERANDS[direction], inputs, strict=False))
    replaced = [name for name, tensor in named.items() if tensor is output]
    outcome = interpreter().run(
        plan,
        engines.Operands(
            inputs={name: operand(tensor) for name, tensor in named.items()},
            output=replaced[0] if replaced else operand(output),
            mask=None if mask is None else operand(mask),
            scale=call.arguments["scale"],
            fill=-math.inf,
        ),
    )
    assert outcome.unwritten is not None and not outcome.unwritten.any()
    before = {name: tensor.clone() for name, tensor in named.items()}
    torch.empty(0, dtype=torch.uint8).set_(output.untyped_storage()).copy_(
        torch.from_numpy(np.ascontiguousarray(outcome.output))
    )
    if isinstance(call, Call):
        verify(output, before["x"], checked(call))
    else:
        verify_backward(output, before["dy"], before["y"], checked_backward(call))
