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
from softmax_ops import api
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.checks import Request, check_softmax
from tests import engines, reference
from tests.reference import DTYPE_NAMES, DTYPES, assert_close, to_numpy

ARCHITECTURE = "sm_90"
KINDS = {"f16": "boolcausal", "bf16": "bool", "f32": "causal", "f64": "none"}
"""What is executed of each dtype: every mask kind once."""

LONGEST = 600
"""Longest executed row, in columns."""

examples = settings(deadline=None, database=None, derandomize=True)


class Call(NamedTuple):
    x: torch.Tensor
    arguments: dict[str, Any]
    out: torch.Tensor | None  # strided, or x itself


def strided(draw: st.DrawFn, shape: list[int], dtype: torch.dtype, *, padding: int) -> torch.Tensor:
    """Uninitialised: anywhere in its storage, leading dimensions permuted, all cut out of more, last stride 1."""
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
    """Broadcast in some dimensions; uint8 values other than 1 do not hide."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    mask_shape = [size if draw(st.booleans()) else 1 for size in kept]
    if draw(st.booleans()):
        return torch.rand(mask_shape, generator=generator) < 0.4
    return torch.randint(0, 3, mask_shape, generator=generator, dtype=torch.uint8)


@st.composite
def calls(draw: st.DrawFn, kinds: Mapping[str, str] | None = None, longest: int = 64) -> Call:
    """Any dtype with any mask, or those of `kinds`. What is hidden is NaN, and so is out."""
    dtype = draw(st.sampled_from(sorted(kinds or DTYPES)))
    kind = kinds[dtype] if kinds else draw(st.sampled_from(["none", "causal", "bool", "boolcausal"]))
    k = draw(st.one_of(st.integers(1, longest), st.integers(1, longest // 8).map(lambda n: 8 * n)))
    shape = [*draw(st.lists(st.integers(1, 4), min_size=0, max_size=4)), k]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    x = strided(draw, shape, DTYPES[dtype], padding=draw(st.sampled_from([1, 8])))
    x.copy_(torch.randn(shape, generator=generator) * draw(st.sampled_from([0.1, 4.0])))
    arguments: dict[str, Any] = {"scale": draw(st.sampled_from([1.0, 0.125, -0.5, 1 / 3]))}
    if kind in ("bool", "boolcausal"):
        arguments["mask"] = random_mask(draw, shape, generator)
        x.masked_fill_(arguments["mask"] == 1, math.nan)
    if kind in ("causal", "boolcausal"):
        arguments |= {"causal": True, "causal_offset": draw(st.none() | st.integers(-5, k))}
    where = draw(st.sampled_from(["new", "strided", "in place"]))
    if where == "strided":
        return Call(x, arguments, strided(draw, shape, DTYPES[dtype], padding=8).fill_(math.nan))
    return Call(x, arguments, x if where == "in place" else None)


def verify(y: torch.Tensor, x: torch.Tensor, request: Request) -> None:
    """y against the reference for scores x."""
    mask = None if request.mask is None else to_numpy(request.mask)
    inputs = (to_numpy(x), request.scale, mask, request.causal_offset)
    expected, rounding = reference.softmax(*inputs), reference.score_rounding(*inputs)
    assert_close(y, expected, DTYPE_NAMES[x.dtype], rounding=rounding)
    assert (to_numpy(y)[~reference.visible(expected.shape, mask, request.causal_offset)] == 0).all()


def checked(call: Call) -> Request:
    defaults: dict[str, Any] = {"mask": None, "causal": False, "causal_offset": None, "out": call.out}
    return check_softmax(call.x, **(defaults | call.arguments))


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


@given(calls())
@settings(examples, max_examples=100)
def test_explain(call: Call) -> None:
    """Every row in exactly one CTA; the element type and mask of the call; traffic of every element once."""
    x, request = call.x, checked(call)
    said = softmax_ops.explain(x, out=call.out, **call.arguments)
    rows = x.numel() // x.shape[-1]
    assert said.variant is not None and said.variant.startswith(f"softmax_fwd_{DTYPE_NAMES[x.dtype]}_")
    assert ("bool" in said.variant) == (request.mask is not None)
    assert sum(said.grid) * said.rows_per_cta >= rows > (sum(said.grid) - 1) * said.rows_per_cta
    assert said.bytes_written == x.numel() * x.element_size()
    visible = int(reference.visible(tuple(x.shape), None, request.causal_offset).sum())
    mask_bytes = 0 if request.mask is None else request.mask.numel()
    assert said.bytes_read == visible * x.element_size() + mask_bytes
    assert said.as_dict()["arch"] == "sm_90" and said.variant in str(said)


@given(calls())
@settings(examples, max_examples=200)
def test_geometry_moves_like_the_tensors(call: Call) -> None:
    """Strides of what broadcasts are 0; those of a dimension of size 1 are never used."""
    request = api._with_unit_strides(checked(call))
    y = torch.empty(request.x.shape, dtype=request.x.dtype) if call.out is None else call.out
    geometry = api._geometry(api._metadata(request, y, False))
    x = request.x if request.x.dim() > 1 else request.x.unsqueeze(0)
    moving = [(x, geometry.x_strides), (y, geometry.y_strides), (request.mask, geometry.mask_strides)]
    for tensor, strides in moving:
        expected = (0,) * x.dim() if tensor is None else tensor.expand(x.shape).stride()
        assert [s for s, size in zip(strides, x.shape, strict=True) if size > 1] == [
            s for s, size in zip(expected, x.shape, strict=True) if size > 1
        ]


def test_explain_follows_what_softmax_would_copy() -> None:
    """More dimensions than kernels tell apart, and a last stride other than 1: the plan is that of the copies."""
    x = torch.zeros(8, 2, 2, 2, 2, 2).permute(1, 3, 5, 2, 4, 0)  # [2, 2, 2, 2, 2, 8], last stride 32
    assert softmax_ops.explain(x).variant == "softmax_fwd_f32_none_tile_k8_v4_t256r256"
    x = torch.zeros(4, 4, 4, 4, 4, 8)[::2, ::2, ::2, ::2, ::2]  # five dimensions that do not merge
    mask = torch.zeros(2, 1, 2, 1, 2, 8, dtype=torch.bool)
    assert softmax_ops.explain(x, mask=mask).grid == (1,)
    out = torch.zeros(4, 4, 4, 4, 4, 8)[::2, ::2, ::2, ::2, ::2]
    assert softmax_ops.explain(torch.zeros(2, 2, 2, 2, 2, 8), out=out).grid == (1,)


def test_explain_of_alignment_and_architecture() -> None:
    x = torch.zeros(3, 1000, dtype=torch.float16)
    assert softmax_ops.explain(x, arch="sm_80").arch == "sm_80"
    assert softmax_ops.explain(x).variant == "softmax_fwd_f16_none_warp_k1024_v8_t128r4"
    odd = torch.zeros(3001, dtype=torch.float16)[1:].view(3, 1000)
    assert "x starts on a boundary of 2 bytes" in softmax_ops.explain(odd).reason
    assert "out starts on a boundary of 2 bytes" in softmax_ops.explain(x, out=odd).reason
    assert str(softmax_ops.explain(x[:0])) == "empty: nothing is launched"


def test_rows_longer_than_any_kernel() -> None:
    """CPU tensors have no limit; a GPU would say so before anything is launched."""
    x = torch.randn(2, 50257)
    assert softmax_ops.softmax(x).sum(-1).allclose(torch.ones(2))
    with pytest.raises(softmax_ops.NoVariant, match="rows of 50257 columns; the longest is 16384"):
        softmax_ops.explain(x)


# What is refused leaves everything as it was

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
        softmax_ops.softmax_(torch.ones(3), out=torch.ones(3))


def test_gradients_are_refused_until_there_is_a_backward() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"torch\.no_grad\(\), or pass x\.detach\(\)"):
        softmax_ops.softmax(x)
    with pytest.raises(ValueError, match="requires grad"):
        softmax_ops.softmax_(x)
    with torch.no_grad():
        y = softmax_ops.softmax(x)
    assert torch.equal(y, softmax_ops.softmax(x.detach())) and not y.requires_grad
    with torch.inference_mode():
        assert torch.equal(softmax_ops.softmax(x), y)


# Planned and executed


@cache
def interpreter() -> engines.InterpreterEngine:
    """Holds every variant that the executed calls can arrive at."""
    specs = [
        spec
        for spec in variants.shipped()
        if (spec.dtype.value, spec.mask.label) in KINDS.items() and spec.max_k <= 4096
    ]
    report = build.build(specs, [ARCHITECTURE], build.user_cache(), kind="ptx", progress=False)
    images: dict[str, Cubin] = {cubin.variant: cubin for cubin in report.cubins}
    return engines.InterpreterEngine(images)


def operand(tensor: torch.Tensor) -> engines.Operand:
    """A tensor where it lies: its whole storage, of which only its own elements may be touched."""
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
@given(calls(KINDS, LONGEST))
@settings(examples, max_examples=60)
def test_planned_and_executed(call: Call) -> None:
    """The geometry that the torch interface makes, its plan, and the kernel on the tensors' memory as it lies."""
    request = api._with_unit_strides(checked(call))
    x, mask = request.x, request.mask
    y = torch.full(x.shape, math.nan, dtype=x.dtype) if request.out is None else request.out
    try:
        plan = api._plan(api._metadata(request, y, False))
    except softmax_ops.plan.TooManyDimensions:
        return
    outcome = interpreter().run(
        plan,
        engines.Operands(
            x=operand(x),
            y=None if y is x else operand(y),
            mask=None if mask is None else operand(mask),
            scale=request.scale,
            fill=request.fill,
        ),
    )
    assert outcome.unwritten is not None and not outcome.unwritten.any()
    scores = x.clone()
    torch.empty(0, dtype=torch.uint8).set_(y.untyped_storage()).copy_(
        torch.from_numpy(np.ascontiguousarray(outcome.output))
    )
    verify(y, scores, request)
