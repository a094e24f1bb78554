"""The CPU path against the reference: shapes, strides, masks, causal offsets, and non-finite values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softmax_ops
from softmax_ops import cpu
from softmax_ops.checks import check_softmax
from tests.support import reference
from tests.support.reference import DTYPE_NAMES, DTYPES, assert_close, to_numpy

INF, NAN = math.inf, math.nan
SHAPE = (2, 3, 5, 7)  # B, H, Q, K

every_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))


def softmax(x: torch.Tensor, *, fill: float = -INF, **arguments: Any) -> torch.Tensor:
    defaults: dict[str, Any] = {"scale": 1.0, "mask": None, "causal": False, "causal_offset": None, "out": None}
    return cpu.softmax(check_softmax(x, **(defaults | arguments))._replace(fill=fill))


def verify(x: torch.Tensor, *, out: torch.Tensor | None = None, fill: float = -INF, **arguments: Any) -> torch.Tensor:
    """softmax(x), after comparing it with the reference; hidden columns must be 0 to the bit."""
    scale, mask = arguments.get("scale", 1.0), arguments.get("mask")
    offset = arguments.get("causal_offset")
    if arguments.get("causal") and offset is None:
        offset = x.shape[-1] - (x.shape[-2] if x.dim() > 1 else 1)
    inputs = (to_numpy(x), scale, None if mask is None else to_numpy(mask), offset, fill)
    expected, rounding = reference.softmax(*inputs), reference.score_rounding(*inputs)

    y = softmax(x, out=out, fill=fill, **arguments)
    assert y.dtype == x.dtype
    assert_close(y, expected, DTYPE_NAMES[x.dtype], rounding=rounding, floor=0.0)
    got = to_numpy(y)
    hidden = ~reference.visible(expected.shape, inputs[2] if fill == -INF else None, offset)
    assert (got[hidden & ~np.isnan(expected)] == 0).all()
    return y


def scores(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal scores around 0 with a spread of 4, and in each row one score of 95, whose plain exp overflows float32."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    if x.numel():
        x[..., x.shape[-1] // 2] = 95
    return x.to(dtype)


def random_mask(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < 0.4


@pytest.fixture(params=[None, 10], ids=["one block", "blocks of 10"])
def block_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' tensors fit into one block; with 10 elements per block, a [5, 7] matrix is computed row by row."""
    if request.param is not None:
        monkeypatch.setattr(cpu, "_BLOCK_ELEMENTS", request.param)


# Shapes, strides, scale

LAYOUTS: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "row": lambda dtype: scores(7, dtype=dtype),
    "matrix": lambda dtype: scores(5, 7, dtype=dtype),
    "batch": lambda dtype: scores(*SHAPE, dtype=dtype),
    "six dims": lambda dtype: scores(2, 1, 2, 3, 2, 7, dtype=dtype),
    "K = 1": lambda dtype: scores(3, 1, dtype=dtype),
    "K = 1000": lambda dtype: scores(3, 1000, dtype=dtype),
    "Q > K": lambda dtype: scores(2, 9, 4, dtype=dtype),
    "transposed": lambda dtype: scores(5, 3, 2, 7, dtype=dtype).permute(2, 1, 0, 3),
    "sliced": lambda dtype: scores(2, 3, 6, 19, dtype=dtype)[:, ::2, 1:, 3:10],
    "expanded": lambda dtype: scores(3, 1, 7, dtype=dtype).expand(2, 3, 5, 7),
    "last stride 5": lambda dtype: scores(2, 7, 5, dtype=dtype).mT,
}


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_shapes_and_strides(
    dtype: torch.dtype, layout: Callable[[torch.dtype], torch.Tensor], causal: bool, block_elements: None
) -> None:
    x = layout(dtype)
    before = x.clone()
    y = verify(x, scale=0.3, causal=causal)
    assert y.is_contiguous()
    assert torch.equal(x, before)


@every_dtype
@pytest.mark.parametrize("scale", [1.0, 0.125, -0.7, 0.0, 1 / 3, torch.tensor(0.1, dtype=torch.float64), 30.0])
def test_scale(dtype: torch.dtype, scale: Any) -> None:
    verify(scores(4, 33, dtype=dtype), scale=scale)


def test_scale_is_not_rounded_to_the_dtype_of_x() -> None:
    """At a score of 30000 a scale rounded to float16 would change the ratio of the first two columns by e^5."""
    x = torch.tensor([30000.0, 29984.0], dtype=torch.float16)
    y = verify(x, scale=0.1)
    assert y[1].item() == pytest.approx(math.exp(-1.6) / (1 + math.exp(-1.6)), rel=2**-11)


def test_the_maximum_is_over_scaled_scores() -> None:
    """With a negative scale the largest x has the smallest z; exp(z - scale * max x) would overflow."""
    assert verify(torch.tensor([100.0, -100.0]), scale=-1.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores(dtype: torch.dtype) -> None:
    assert verify(torch.full((4,), -2000.0, dtype=dtype)).tolist() == [0.25] * 4
    assert verify(torch.tensor([2000.0, 1999.0, -2000.0], dtype=dtype))[2] == 0
    verify(torch.tensor([1e30, -1e30, 1e30], dtype=dtype))
    low = verify(torch.tensor([-20000.0, -20001.0, 0.0], dtype=dtype), mask=torch.tensor([False, False, True]))
    assert low[0] > 0.7


def test_float16_subnormals_are_kept() -> None:
    y = verify(torch.tensor([0.0, -10.0, -13.0, -16.5], dtype=torch.float16))
    assert ((y[1:] > 0) & (y[1:] < 2.0**-14)).all(), y


@pytest.mark.parametrize("shape", [(0,), (5, 0), (0, 5), (2, 0, 7), (0, 0)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_empty(shape: tuple[int, ...], causal: bool) -> None:
    x = torch.zeros(shape, dtype=torch.float16)
    y = softmax(x, causal=causal, mask=torch.ones(1, dtype=torch.bool))
    assert y.shape == shape
    assert y.dtype == x.dtype
    assert softmax(x, out=x) is x


# Masks and causality

MASKS = [SHAPE, (2, 1, 1, 7), (2, 1, 5, 1), (1, 3, 1, 7), (1, 1, 5, 7), (3, 1, 1), (5, 7), (7,), (1,), ()]


@every_dtype
@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("offset", [None, 0], ids=["full", "causal"])
def test_mask_broadcasts(dtype: torch.dtype, shape: tuple[int, ...], offset: int | None, block_elements: None) -> None:
    mask = random_mask(*shape)
    x = scores(*SHAPE, dtype=dtype)
    x[mask.expand(SHAPE)] = NAN
    verify(x, scale=0.3, mask=mask, causal=offset is not None, causal_offset=offset)


def test_mask_may_have_any_strides() -> None:
    x = scores(*SHAPE)
    for mask in (random_mask(7, 5).t(), random_mask(5, 14)[:, ::2], random_mask(5, 1).expand(3, 5, 7)):
        verify(x, mask=mask)


def test_row_mask_of_a_row() -> None:
    for shape in [(7,), (1,), ()]:
        verify(scores(7), mask=random_mask(*shape))


@every_dtype
def test_only_exactly_one_hides(dtype: torch.dtype) -> None:
    mask = torch.tensor([0, 1, 2, 255, 1, 128, 3], dtype=torch.uint8)
    x = torch.tensor([1.0, INF, 2.0, 3.0, NAN, 2.5, 0.0], dtype=dtype)
    y = verify(x, mask=mask)
    assert (y == 0).tolist() == (mask == 1).tolist()
    assert torch.equal(y, softmax(x, mask=mask == 1))


@pytest.mark.parametrize("q, k", [(5, 7), (7, 5), (1, 7), (5, 1)])
@pytest.mark.parametrize("offset", [None, 0, -1, 1, -5, -9, 4, 12, 10**20])
def test_causal(q: int, k: int, offset: int | None, block_elements: None) -> None:
    """Columns beyond the diagonal are NaN or inf, which must not affect anything."""
    x = scores(2, q, k)
    edge = k - q if offset is None else offset
    future = torch.tensor([[j > i + edge for j in range(k)] for i in range(q)])
    x.masked_fill_(future, NAN if q > 1 else INF)
    y = verify(x, causal=True, causal_offset=offset)
    assert (y[:, future] == 0).all()


def test_causal_row() -> None:
    """[K] is the last query of a bottom-right causal square; with offset 1, the second one of a top-left one."""
    x = scores(6)
    assert torch.equal(softmax(x, causal=True), softmax(x))
    assert verify(x, causal=True, causal_offset=1)[2:].eq(0).all()


@every_dtype
def test_rows_that_see_nothing_are_zero(dtype: torch.dtype) -> None:
    x = scores(3, 5, dtype=dtype)
    x[0], x[1, 2:] = -INF, NAN
    x[1, :2] = -INF
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[1, 2:], hidden[2] = True, True
    assert (verify(x, mask=hidden) == 0).all()
    assert (verify(scores(3, 5, dtype=dtype), causal=True, causal_offset=-3) == 0).all()
    assert (verify(-x, scale=-1.0, mask=hidden) == 0).all()


# Non-finite values


@every_dtype
@pytest.mark.parametrize("value", [NAN, INF], ids=["nan", "inf"])
def test_visible_nan_and_inf_make_their_row_nan(dtype: torch.dtype, value: float) -> None:
    """The whole row, hidden columns included; other rows are unaffected."""
    x, mask = scores(3, 6, dtype=dtype), torch.tensor([False, True, False, False, True, True])
    x[1, 2] = value
    y = verify(x, mask=mask)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], softmax(x[[0, 2]], mask=mask))
    assert verify(x, causal=True)[0].isfinite().all()
    assert verify(-x, scale=-1.0)[1].isnan().all()


def test_all_low_and_one_infinite() -> None:
    x = torch.full((2, 5), -2000.0)
    x[0, 3], x[1, 3] = INF, -INF
    y = verify(x)
    assert y[0].isnan().all()
    assert y[1].tolist() == [0.25, 0.25, 0.25, 0.0, 0.25]
    assert verify(x, mask=torch.tensor([0, 0, 0, 1, 0], dtype=torch.uint8))[0].tolist() == y[1].tolist()


def test_infinity_times_zero_is_nan() -> None:
    assert verify(torch.tensor([1.0, -INF]), scale=0.0).isnan().all()
    assert verify(torch.tensor([1.0, -INF]), scale=0.0, mask=torch.tensor([False, True])).tolist() == [1.0, 0.0]


# Masked fill


@every_dtype
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_fill(dtype: torch.dtype, causal: bool, block_elements: None) -> None:
    """Hidden columns take part with the fill as their score, whatever they contain; causality still excludes."""
    x, mask = scores(3, 5, 7, dtype=dtype), random_mask(3, 1, 7)
    x[mask.expand(x.shape)] = NAN
    for fill in (-10000.0, 2.0, 94.5):
        verify(x, mask=mask, causal=causal, fill=fill)


def test_fill_makes_a_hidden_row_uniform() -> None:
    x, mask = scores(3, 8), torch.zeros(3, 8, dtype=torch.bool)
    mask[1] = True
    assert verify(x, mask=mask, fill=-10000.0)[1].tolist() == [0.125] * 8
    ramp = verify(x, mask=mask | True, fill=-10000.0, causal=True, causal_offset=0)
    assert ramp[1].tolist() == [0.5, 0.5] + [0.0] * 6


def test_fill_outweighs_lower_scores() -> None:
    x = torch.tensor([-20000.0, -20001.0, 0.0])
    assert verify(x, mask=torch.tensor([False, False, True]), fill=-10000.0).tolist() == [0.0, 0.0, 1.0]


# out


@every_dtype
def test_out_keeps_its_strides_and_its_surroundings(dtype: torch.dtype, block_elements: None) -> None:
    x, mask = scores(*SHAPE, dtype=dtype), random_mask(2, 1, 1, 7)
    buffer = torch.full((3, 6, 2, 16), 77.0, dtype=dtype)
    out = buffer.permute(2, 0, 1, 3)[:, :, 1:, 3:10]  # (2,3,5,7), strides (16,192,32,1)
    untouched = torch.ones(buffer.shape, dtype=torch.bool)
    untouched.permute(2, 0, 1, 3)[:, :, 1:, 3:10] = False
    strides, address = out.stride(), out.data_ptr()

    y = verify(x, out=out, scale=0.3, mask=mask, causal=True)
    assert y is out
    assert (y.stride(), y.data_ptr()) == (strides, address)
    assert (buffer[untouched] == 77).all()
    assert torch.equal(y, softmax(x, scale=0.3, mask=mask, causal=True))


@every_dtype
def test_in_place(dtype: torch.dtype, block_elements: None) -> None:
    for x in (scores(*SHAPE, dtype=dtype), scores(2, 3, 5, 12, dtype=dtype)[..., 2:9], scores(7, dtype=dtype)):
        expected = softmax(x.clone(), scale=0.3, causal=True)
        assert verify(x, out=x, scale=0.3, causal=True) is x
        assert torch.equal(x, expected)


def test_blocks_cover_large_tensors() -> None:
    """A tensor larger than a block, whose rows do not divide it, and a single row larger than a block."""
    x = scores(3, 700, 1001)
    verify(x, causal=True, mask=random_mask(3, 1, 1001))
    verify(scores(2, 2**20 + 1, dtype=torch.bfloat16))


# Properties


Call = tuple[torch.Tensor, dict[str, Any]]  # x, keyword arguments


@st.composite
def calls(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(DTYPES.values())) -> Call:
    """x of random shape, strides and magnitude; arguments that hide some of it, with NaN where the mask hides."""
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**32))
    shape = [*draw(st.lists(st.integers(1, 4), max_size=3)), draw(st.integers(1, 40))]
    generator = torch.Generator().manual_seed(seed)
    order = [*draw(st.permutations(range(len(shape) - 1))), len(shape) - 1]
    padded = [shape[d] + draw(st.integers(0, 2)) for d in order]
    x = torch.randn(padded, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.01, 1.0, 5.0, 50.0]))
    x = x.to(dtype).permute([order.index(d) for d in range(len(shape))])
    for dim, size in enumerate(shape):
        x = x.narrow(dim, x.shape[dim] - size, size)

    arguments: dict[str, Any] = {"scale": draw(st.sampled_from([1.0, 0.125, -0.5, 2.0, 1 / 3]))}
    if draw(st.booleans()):
        kept = shape[draw(st.integers(0, len(shape))) :]
        mask_shape = [size if draw(st.booleans()) else 1 for size in kept]
        mask = torch.rand(mask_shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.9]))
        arguments["mask"] = mask.to(draw(st.sampled_from([torch.bool, torch.uint8])))
        x.masked_fill_(mask, NAN)
    if draw(st.booleans()):
        arguments |= {"causal": True, "causal_offset": draw(st.none() | st.integers(-6, 42))}
    return x, arguments


def properties(examples: int) -> Callable[[Any], Any]:
    return settings(deadline=None, database=None, derandomize=True, max_examples=examples)


@given(calls())
@properties(200)
def test_rows_sum_to_one_and_hidden_columns_are_zero(call: Call) -> None:
    """Against the reference, and without it: a row that sees something sums to 1 up to rounding, any other to 0."""
    x, arguments = call
    y = verify(x, **arguments)
    total = to_numpy(y).sum(axis=-1, keepdims=True)
    off = np.minimum(abs(total - 1), np.where((to_numpy(y) == 0).all(axis=-1, keepdims=True), 0, np.inf))
    assert (off <= reference.row_sum_tolerance(to_numpy(y), DTYPE_NAMES[x.dtype])).all()
    assert (y >= 0).all()


@given(calls(dtypes=(torch.float64,)), st.integers(-1000, 1000))
@properties(60)
def test_shift_invariance(call: Call, shift: int) -> None:
    """With scores of few bits and a power of two as scale, x + shift and z - max are exact: the bits are the same."""
    x, arguments = call
    x = (x * 1024).round() / 1024
    arguments["scale"] = math.copysign(0.25, arguments["scale"])
    assert torch.equal(softmax(x, **arguments), softmax(x + shift, **arguments))


@given(calls(), st.randoms(use_true_random=False))
@properties(100)
def test_permutation(call: Call, random: Any) -> None:
    """Permuted columns give permuted results, up to the order of the sum."""
    x, arguments = call
    arguments = {name: value for name, value in arguments.items() if not name.startswith("causal")}
    order = random.sample(range(x.shape[-1]), x.shape[-1])
    permuted = dict(arguments)
    if "mask" in arguments and arguments["mask"].dim() and arguments["mask"].shape[-1] > 1:
        permuted["mask"] = arguments["mask"][..., order]
    name = DTYPE_NAMES[x.dtype]
    y, got = softmax(x, **arguments), softmax(x[..., order], **permuted)
    error = reference.ulp_error(to_numpy(got), to_numpy(y[..., order]), name)
    assert (error <= (1.0 if name in ("f16", "bf16") else reference.TOLERANCE_ULP[name])).all()


@given(calls(), st.data())
@properties(60)
def test_a_row_does_not_depend_on_its_neighbours(call: Call, data: st.DataObject) -> None:
    """Replacing other rows by NaN does not change a row's bits."""
    x, arguments = call
    spoilt = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) < 0.5
    y = softmax(x, **arguments)
    got = softmax(x.masked_fill(spoilt.unsqueeze(-1), NAN), **arguments)
    assert torch.equal(got[~spoilt], y[~spoilt])


# The reference itself


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("f16", 1.0, 2.0**-10),
        ("f16", 1.0 - 2.0**-11, 2.0**-11),
        ("f16", 2.0**-14, 2.0**-24),
        ("f16", 2.0**-30, 2.0**-24),
        ("f16", 0.0, 2.0**-24),
        ("bf16", -3.0, 2.0**-6),
        ("bf16", 0.0, 2.0**-133),
        ("f32", 1.5, 2.0**-23),
        ("f32", 2.0**-140, 2.0**-149),
        ("f64", 1.0, 2.0**-52),
        ("f64", 0.0, 5e-324),
    ],
)
def test_spacing(dtype: str, value: float, expected: float) -> None:
    assert reference.spacing(value, dtype) == expected
    neighbour = torch.nextafter(torch.tensor(abs(value), dtype=DTYPES[dtype]), torch.tensor(INF, dtype=DTYPES[dtype]))
    if abs(value) == torch.tensor(abs(value), dtype=DTYPES[dtype]).item():
        assert neighbour.item() - abs(value) == expected


def test_ulp_error() -> None:
    actual, expected = [1.0, 0.5, NAN, 1.0, NAN, INF, INF], [1.0, 0.5 + 2.0**-11, NAN, NAN, 1.0, INF, 1.0]
    got = reference.ulp_error(actual, expected, "f16")
    assert got.tolist() == [0.0, 1.0, 0.0, INF, INF, 0.0, INF]
    assert reference.ulp_error([0.25], [0.25 + 2.0**-12], "f16", magnitude=[1.0]).tolist() == [0.25]


@every_dtype
def test_assert_close_names_the_worst_element(dtype: torch.dtype) -> None:
    name = DTYPE_NAMES[dtype]
    expected = reference.softmax(to_numpy(scores(3, 5, dtype=dtype)), 0.01)
    actual = torch.tensor(expected.astype(np.float64)).to(dtype)
    assert_close(actual, expected, name, floor=0.0)
    actual[0, 1] += 20 * float(reference.spacing(expected[0, 1], name))
    actual[2, 4] += 40 * float(reference.spacing(expected[2, 4], name))
    with pytest.raises(AssertionError, match=rf"{name} element \(2, 4\): got .* wanted .* off by .* ULP .* 2 of 15"):
        assert_close(actual, expected, name)
    with pytest.raises(AssertionError, match=r"got shape \(3,\), wanted \(3, 5\)"):
        assert_close(actual[:, 0], expected, name)


def test_assert_close_allows_a_flush_to_zero_below_the_floor() -> None:
    tiny = np.array([2.0**-127])
    assert_close([0.0], tiny, "f32")
    for floor, value in [(0.0, tiny), (None, 4 * tiny)]:
        with pytest.raises(AssertionError, match="off by"):
            assert_close([0.0], value, "f32", floor=floor)


@pytest.mark.parametrize("offset", [None, 0, -2], ids=["full", "causal", "causal below"])
def test_reference_agrees_with_torch(offset: int | None) -> None:
    """Forward and backward against torch's own operations in float64, and the gradient by autograd."""
    x, dy = scores(2, 5, 7, dtype=torch.float64), scores(2, 5, 7, dtype=torch.float64, seed=5)
    mask = random_mask(2, 1, 7)
    leaf = x.clone().requires_grad_()
    hidden = mask.expand(x.shape).clone()
    if offset is not None:
        hidden |= torch.ones(5, 7, dtype=torch.bool).triu(offset + 1)
    sees = ~hidden.all(-1, keepdim=True)
    y = torch.where(sees, torch.softmax((leaf * -0.3).masked_fill(hidden & sees, -INF), -1), 0.0)
    y.backward(dy)
    expected = reference.softmax(to_numpy(x), -0.3, to_numpy(mask), offset)
    np.testing.assert_allclose(expected.astype(np.float64), y.detach().numpy(), rtol=1e-13, atol=1e-300)
    dx = reference.softmax_backward(to_numpy(dy), expected, -0.3, offset)
    magnitude = reference.backward_magnitude(to_numpy(dy), expected, -0.3, offset)
    assert leaf.grad is not None
    assert (abs(leaf.grad.numpy() - dx) <= 1e-13 * magnitude).all()
    assert (dx[hidden.numpy()] == 0).all()


def test_backward_reference_reads_nothing_beyond_the_diagonal() -> None:
    y, dy = reference.softmax(np.ones((3, 3)), causal_offset=0), np.ones((3, 3))
    upper = np.triu(np.ones((3, 3), dtype=bool), 1)
    dx = reference.softmax_backward(np.where(upper, np.nan, dy), np.where(upper, np.nan, y), 2.0, causal_offset=0)
    assert dx.tolist() == np.zeros((3, 3)).tolist()  # the gradient of a constant


def test_tensors_whose_storage_was_freed_are_refused() -> None:
    """As on a GPU; torch's operations would end the process."""
    freed, mask, whole = torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 4)
    for each in (freed, mask):
        each.untyped_storage().resize_(0)
    for name, call in {
        "x": lambda: softmax_ops.softmax(freed),
        "mask": lambda: softmax_ops.softmax(whole, mask=mask),
        "out": lambda: softmax_ops.softmax(whole, out=freed),
        "dy": lambda: softmax_ops.softmax_backward(freed, whole),
    }.items():
        with pytest.raises(ValueError, match=rf"softmax_ops: {name} is a .* without memory"):
            call()
