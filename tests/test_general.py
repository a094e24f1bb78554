"""General requests on the CPU against the reference: each feature alone and in pairs; non-finite values."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any, assert_type

import numpy as np
import pytest
import torch
from torch import Tensor

import softmax_ops
from softmax_ops import cpu, routes
from softmax_ops.checks import check_softmax, check_softmax_backward
from softmax_ops.checks.values import accumulation
from softmax_ops.keywords import Forward
from tests.support import bounds, reference
from tests.support.reference import DTYPE_NAMES, DTYPES, FORMATS, General, assert_close, to_numpy

INF, NAN = math.inf, math.nan
B, H, Q, K = SHAPE = (2, 3, 5, 7)

every_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def positive(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed, dtype=torch.float32).abs()


HIDDEN = torch.rand(B, 1, Q, K, generator=torch.Generator().manual_seed(3)) < 0.4
ADDED = normal(H, Q, K, seed=4, dtype=torch.float32)
ADDED[:, :2, 3:] = -INF

# Each is something that a call may ask for besides x. Tensors of values are float32 where they must be.
FEATURES: dict[str, dict[str, Any]] = {
    "scale": {"scale": -0.7},
    "scale in a tensor": {"scale": torch.tensor([0.4])},
    "scale of each row": {"scale": normal(B, 1, Q, seed=1, dtype=torch.float32)},
    "mask": {"mask": HIDDEN},
    "uint8 mask": {"mask": HIDDEN[0, 0].byte() + 2 * HIDDEN[1, 0].byte()},
    "bias": {"bias": ADDED},
    "bias of columns": {"bias": normal(1, 1, 1, K, seed=5, dtype=torch.float32)},
    "lengths": {"key_lengths": torch.tensor([4, 0], dtype=torch.int32)},
    "lengths beyond": {"key_lengths": torch.tensor([K + 9, -2], dtype=torch.int32)},
    "causal": {"causal": True},
    "causal offset": {"causal": True, "causal_offset": -1},
    "offset in a tensor": {"causal": True, "causal_offset": torch.tensor([1])},
    "offset of each batch entry": {"window": (2, 0), "causal_offset": torch.tensor([3, -1, 1][:B])},
    "window": {"window": (2, 1)},
    "window to the left": {"window": (1, None), "causal_offset": torch.tensor(3)},
    "causal window": {"window": (1, 4), "causal": True, "causal_offset": 2},
    "slopes": {"alibi_slopes": positive(H, seed=6)},
    "slopes, offset": {"alibi_slopes": -positive(H, seed=7), "causal_offset": -3},
    "sinks": {"sinks": normal(H, seed=8, dtype=torch.float32)},
    "softcap": {"softcap": 2.5},
}
PAIRS = [pair for pair in itertools.combinations(FEATURES, 2) if not {*FEATURES[pair[0]]} & {*FEATURES[pair[1]]}]


def joined(names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for name in names for key, value in FEATURES[name].items()}


def in_numpy(value: Any) -> Any:
    return to_numpy(value) if isinstance(value, Tensor) else value


def of_reference(arguments: dict[str, Any], shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    """The arguments in the form that `reference.general` takes."""
    given = {name: in_numpy(value) for name, value in arguments.items()}
    names = {"scale": "scale", "mask": "mask", "bias": "bias", "key_lengths": "lengths", "alibi_slopes": "slopes"}
    names |= {"sinks": "sinks", "softcap": "softcap"}
    found = {names[name]: value for name, value in given.items() if name in names}
    offset = given.get("causal_offset")
    default = shape[-1] - (shape[-2] if len(shape) > 1 else 1)
    offset = np.reshape(default if offset is None else offset, -1)
    found["offset"] = offset if offset.size > 1 else int(offset[0])
    found["left"], found["right"] = given.get("window", (None, None))
    if given.get("causal"):
        found["right"] = 0
    if np.size(found.get("scale", 1.0)) == 1:
        found["scale"] = float(np.asarray(found.get("scale", 1.0)).reshape(()))
    return found


def expect(x: Tensor, arguments: dict[str, Any]) -> General:
    return reference.general(to_numpy(x), **of_reference(arguments, tuple(x.shape)))


def verify(x: Tensor, **arguments: Any) -> General:
    """Compares y, log y and lse of a call with the reference, and returns the reference's values."""
    expected = expect(x, arguments)
    allowed = bounds.forward(expected, bounds.TANH * np.abs(expected.s) if "softcap" in arguments else None)
    wanted = arguments.get("dtype") or x.dtype
    name, unit = DTYPE_NAMES[wanted], FORMATS[DTYPE_NAMES[x.dtype]].unit_roundoff

    y, lse = softmax_ops.softmax(x, return_lse=True, **arguments)
    log_y, log_lse = softmax_ops.log_softmax(x, return_lse=True, **arguments)
    assert y.dtype is log_y.dtype is wanted and lse.dtype is accumulation(x) and lse.shape == x.shape[:-1]
    assert torch.equal(lse, log_lse) or lse.isnan().any()
    assert_close(y, expected.y, name, rounding=allowed.y, floor=0.0)
    assert (to_numpy(y)[~expected.visible & ~np.isnan(expected.y)] == 0).all()
    near(lse, expected.lse, unit * allowed.lse)
    assert_close(log_y, expected.log_y, name, rounding=allowed.log_y, floor=0.0)
    return expected


def near(got: Tensor, wanted: Any, error: Any) -> None:
    found = to_numpy(got)
    same = (np.isnan(found) & np.isnan(wanted)) | (found == wanted)
    with np.errstate(invalid="ignore"):
        assert (same | (np.abs(found - wanted) <= error)).all(), np.nanmax(np.abs(found - wanted) - error)


# the forward


@every_dtype
@pytest.mark.parametrize("name", FEATURES)
def test_alone(name: str, dtype: torch.dtype) -> None:
    verify(normal(*SHAPE, dtype=dtype), **FEATURES[name])


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_in_pairs(pair: tuple[str, str]) -> None:
    verify(normal(*SHAPE), **joined(pair))


@pytest.mark.parametrize("elements", [1, 10, 40, 120])
def test_in_blocks(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' tensors fit into one block; with smaller blocks, each one has its part of every operand."""
    monkeypatch.setattr(cpu, "_BLOCK_ELEMENTS", elements)
    names = ("scale of each row", "mask", "bias", "lengths", "slopes", "sinks")
    verify(normal(*SHAPE), window=(4, 3), causal_offset=1, **joined(names))
    dy, y = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2).softmax(-1)
    verify_backward(dy, y, window=(2, 1), grad_lse=normal(B, H, Q), **joined(("scale of each row", "lengths")))


def test_everything_at_once() -> None:
    names = ("scale of each row", "mask", "bias", "lengths", "slopes", "sinks", "softcap", "causal window")
    for dtype in DTYPES.values():
        verify(normal(*SHAPE, dtype=dtype), **joined(names))


@pytest.mark.parametrize("shape", [(K,), (Q, K), (2, 2, 1, H, Q, K), (1, 1, 1)], ids=str)
def test_of_any_rank(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    verify(x, window=(1, 1), causal_offset=0, softcap=1.5, bias=normal(shape[-1], seed=1), scale=torch.tensor([0.5]))
    if len(shape) > 1:
        lengths = torch.arange(shape[0], dtype=torch.int32)
        verify(x, key_lengths=lengths, scale=normal(shape[-2], seed=2))
    if len(shape) > 2:
        verify(x, alibi_slopes=positive(shape[-3]).double(), sinks=normal(shape[-3]))


@pytest.mark.parametrize("queries", [3, 11])
@pytest.mark.parametrize("window", [(0, 0), (2, None), (None, 2), (0, 99), (3, 1)], ids=str)
@pytest.mark.parametrize("offset", [-99, -5, -1, 0, 2, 4, 9, 99])
def test_windows_off_both_ends(window: tuple[int | None, int | None], offset: int, queries: int) -> None:
    """The offset as a number and as a tensor; also with large distances from the queries."""
    x, slopes = normal(1, queries, 5), torch.tensor([0.25])
    for given in (offset, torch.tensor([offset], dtype=torch.int32)):
        verify(x, window=window, causal_offset=given)
        verify(x, window=window, causal_offset=given, alibi_slopes=slopes)


def test_window_bounds_beyond_every_integer() -> None:
    x = normal(Q, K)
    everything, huge = softmax_ops.softmax(x), 10**30
    assert torch.equal(softmax_ops.softmax(x, window=(huge, huge)), everything)
    assert torch.equal(softmax_ops.softmax(x, window=(None, huge), causal_offset=-1), everything)
    assert not softmax_ops.softmax(x, window=(5, huge), causal_offset=huge).any()
    assert not softmax_ops.softmax(x, window=(huge, 5), causal_offset=-huge).any()
    for far, window in ((2**30 + K, (2**31 - 1, 0)), (-(2**31), (None, 2**62))):  # an offset known only to the device
        assert torch.equal(softmax_ops.softmax(x, window=window, causal_offset=torch.tensor([far])), everything)
    level, far = torch.zeros(1), 2**30  # at most, for distances
    past = softmax_ops.softmax(x[None], window=(None, far), causal_offset=-far, alibi_slopes=level)
    assert torch.equal(past[0], softmax_ops.softmax(x, causal=True, causal_offset=0))


@pytest.mark.parametrize("beyond", [2**63 - 1, 2**40 - 3, -(2**63), -(2**40) + 1])
def test_of_an_offset_in_a_tensor_the_lower_half_counts(beyond: int) -> None:
    """As in the kernels, which read 32 bits of it."""
    x, lower = normal(Q, K), torch.tensor([beyond]).view(torch.int32)[:1]
    for arguments in ({"causal": True}, {"window": (1, 1)}):
        found = softmax_ops.softmax(x, causal_offset=torch.tensor([beyond]), **arguments)
        assert torch.equal(found, softmax_ops.softmax(x, causal_offset=int(lower), **arguments))


def test_no_window_is_the_plain_call() -> None:
    x = normal(Q, K, dtype=torch.float32)
    plain = softmax_ops.softmax(x, causal=True)
    for arguments in ({"window": (None, None)}, {"dtype": torch.float32}, {"window": (None, 0)}):
        request = check_softmax(x, scale=1.0, mask=None, causal=True, causal_offset=None, out=None, **arguments)
        assert not request.general and request.dtype is None
        assert torch.equal(softmax_ops.softmax(x, causal=True, **arguments), plain)


# non-finite values, and rows that see nothing


def test_a_row_that_sees_nothing() -> None:
    x, nothing = normal(*SHAPE), torch.ones(K, dtype=torch.bool)
    for arguments in (
        {"key_lengths": torch.zeros(B, dtype=torch.int32)},
        {"mask": nothing, "bias": normal(K)},
        {"bias": torch.full((K,), -INF)},
        {"window": (0, 0), "causal_offset": K},
    ):
        y, lse = softmax_ops.softmax(x, return_lse=True, **arguments)
        assert not y.any() and (lse == -INF).all()
        assert (softmax_ops.log_softmax(x, **arguments) == -INF).all()
        verify(x, **arguments)
        sinks = normal(H, seed=9)
        sinks[0] = -INF
        expected = verify(x, sinks=sinks, **arguments)
        assert (expected.lse == to_numpy(sinks)[:, None]).all()


@pytest.mark.parametrize("value", [INF, -INF, NAN], ids=str)
@pytest.mark.parametrize("where", ["x", "bias", "sinks", "scale"])
@pytest.mark.parametrize("log", [False, True])
def test_values_that_are_not_finite(where: str, value: float, log: bool) -> None:
    """In one row, or one head. Hidden columns never affect the result, wherever they are."""
    x, bias, sinks, scale = normal(*SHAPE), normal(*SHAPE, seed=1), normal(H, seed=2), normal(B, H, Q, seed=3).abs()
    mask, lengths = torch.zeros(K, dtype=torch.bool), torch.tensor([K - 1, K - 1], dtype=torch.int32)
    mask[0] = True
    for tensor in (x, bias):
        tensor[..., 0], tensor[..., -1] = NAN, INF  # hidden
    {"x": x[1, 1, 2], "bias": bias[1, 1, 2], "sinks": sinks[1:], "scale": scale[1, 1, 2:3]}[where][0:2] = value
    if where in ("x", "bias"):
        {"x": x, "bias": bias}[where][1, 1, 2, 1] = value
    arguments: dict[str, Any] = {"bias": bias, "sinks": sinks, "scale": scale, "mask": mask, "key_lengths": lengths}
    expected = expect(x, arguments)
    assert np.isnan(expected.y).any() == (value != -INF or where == "scale")
    y = (softmax_ops.log_softmax if log else softmax_ops.softmax)(x, **arguments)
    near(y, expected.log_y if log else expected.y, 1e-13)


@pytest.mark.parametrize("value", [INF, NAN], ids=str)
def test_a_bias_hides_whatever_the_score_is(value: float) -> None:
    x, bias = normal(Q, K), torch.zeros(Q, K, dtype=torch.float64)
    x[1, 2], bias[1, 2] = value, -INF
    expected = verify(x, bias=bias)
    assert expected.y[1, 2] == 0 and not np.isnan(expected.y).any()


def test_softcap_bounds_what_is_infinite() -> None:
    y, lse = softmax_ops.softmax(torch.tensor([INF, -INF, 0.0]), softcap=2.0, return_lse=True)
    torch.testing.assert_close(y, torch.tensor([2.0, -2.0, 0.0]).softmax(-1))
    torch.testing.assert_close(lse, torch.tensor([2.0, -2.0, 0.0]).logsumexp(-1))


def test_large_scores_keep_their_logarithm() -> None:
    """The largest score is subtracted before the logarithm is: at 10000 the f32 spacing is 2^-10. exp(-200) is 0."""
    x = torch.tensor([10000.0, 9999.0, 9950.0, 9800.0])
    expected = torch.log_softmax(x.double(), -1)
    torch.testing.assert_close(softmax_ops.log_softmax(x).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0,), (2, 3, 0), (2, 0, 4), (0, 3, 4)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, dtype=torch.float16)
    y, lse = softmax_ops.softmax(x, return_lse=True, dtype=torch.float32)
    assert (y.shape, y.dtype, lse.shape) == (shape, torch.float32, shape[:-1]) and (lse == -INF).all()
    if len(shape) > 2:
        sinks = torch.arange(float(shape[-3]))
        _, lse = softmax_ops.softmax(x, return_lse=True, sinks=sinks)
        assert torch.equal(lse, sinks[:, None].expand(shape[:-1]))
    grad_lse = torch.ones(shape[:-1])
    request = check_softmax_backward(
        x, x, scale=1.0, causal=False, causal_offset=None, out=None, grad_lse=grad_lse, return_dot=True
    )
    dx, d = cpu.softmax_backward(request)
    assert dx.shape == shape and torch.equal(d, -grad_lse)


# dtype and out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("names", [(), ("mask",), ("causal",), ("bias", "sinks")], ids=str)
def test_float32_from_16_bits(dtype: torch.dtype, names: tuple[str, ...]) -> None:
    x, arguments = normal(*SHAPE, dtype=dtype), joined(names)
    verify(x, dtype=torch.float32, **arguments)
    y = softmax_ops.softmax(x, dtype=torch.float32, **arguments)
    assert torch.equal(y.to(dtype), softmax_ops.softmax(x, **arguments)) and not torch.equal(y, y.to(dtype).float())
    asked: list[dict[str, Any]] = [{}, {"dtype": torch.float32}]
    for given in asked:
        out = torch.full((B, H, Q, 2 * K), NAN)[..., ::1][..., :K]
        assert softmax_ops.softmax(x, out=out, **given, **arguments) is out and torch.equal(out, y)
    log_y, lse = softmax_ops.log_softmax(x, out=torch.empty_like(y), return_lse=True, **arguments)
    torch.testing.assert_close(log_y.exp(), y)
    assert torch.equal(lse, softmax_ops.softmax(x, return_lse=True, **arguments)[1])


def test_bias_may_be_of_either_dtype() -> None:
    x, bias = normal(*SHAPE, dtype=torch.float16), normal(Q, K, seed=1, dtype=torch.float16)
    assert torch.equal(softmax_ops.softmax(x, bias=bias), softmax_ops.softmax(x, bias=bias.float()))
    fine = bias + torch.tensor(2.0**-12)
    assert not torch.equal(softmax_ops.softmax(x, bias=fine), softmax_ops.softmax(x, bias=bias.float()))


def test_in_place() -> None:
    x, arguments = normal(*SHAPE, dtype=torch.float16), joined(("bias", "sinks", "window"))
    expected = softmax_ops.softmax(x, **arguments)
    assert softmax_ops.softmax_(x, **arguments) is x and torch.equal(x, expected)


def test_inputs_stay_as_they_are() -> None:
    names = ("scale of each row", "mask", "bias", "lengths", "slopes", "sinks", "softcap")
    x, arguments = normal(*SHAPE), joined(names)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    copy = x.clone()
    softmax_ops.softmax(x, **arguments)
    assert torch.equal(x, copy) and all(torch.equal(arguments[name], value) for name, value in before.items())


# the backward


def verify_backward(dy: Tensor, y: Tensor, *, log: bool = False, **arguments: Any) -> Tensor:
    """dx by the function, after comparing it, and the sum d that precedes it, with the reference."""
    given = {"grad_lse": in_numpy(arguments.get("grad_lse")), "lse": in_numpy(arguments.get("lse")), "log": log}
    given |= of_reference(arguments, tuple(y.shape))
    expected, expected_d = reference.general_backward(to_numpy(dy), to_numpy(y), **given)
    allowed = bounds.backward(to_numpy(dy), to_numpy(y), **given)
    dx = (softmax_ops.log_softmax_backward if log else softmax_ops.softmax_backward)(dy, y, **arguments)
    wanted = arguments.get("dtype") or y.dtype
    assert dx.dtype is wanted
    assert_close(dx, expected, DTYPE_NAMES[wanted], floor=0.0, magnitude=allowed.magnitude)
    absent = ("causal_offset", "window", "key_lengths", "softcap", "lse", "grad_lse", "dtype")
    asked = {"scale": 1.0, "causal": False, **dict.fromkeys(absent)} | arguments
    _, d = routes.softmax_backward(dy, y, log=log, batch_invariant=False, out=None, return_dot=True, **asked)
    near(d, expected_d, FORMATS[DTYPE_NAMES[y.dtype]].unit_roundoff * allowed.d)
    return dx


OF_BACKWARD = {
    name: features
    for name, features in FEATURES.items()
    if not {*features} & {"mask", "bias", "alibi_slopes", "sinks", "softcap"}
} | {"softcap": FEATURES["softcap"], "grad of lse": {"grad_lse": normal(B, H, Q, seed=11, dtype=torch.float32)}}


@every_dtype
@pytest.mark.parametrize("log", [False, True], ids=["y", "log y"])
@pytest.mark.parametrize("name", OF_BACKWARD)
def test_backward_alone(name: str, log: bool, dtype: torch.dtype) -> None:
    """On the results of the forward, with hidden columns poisoned: they are not read."""
    arguments = dict(OF_BACKWARD[name])
    grad_lse = arguments.pop("grad_lse", None)
    forward = softmax_ops.log_softmax if log else softmax_ops.softmax
    y, lse = forward(normal(*SHAPE, dtype=dtype), return_lse=True, **arguments)
    hidden = torch.from_numpy(~expect(normal(*SHAPE), arguments).visible)
    dy = normal(*SHAPE, seed=10, dtype=dtype).masked_fill(hidden, NAN)
    y = y.masked_fill(hidden, NAN)
    if "softcap" in arguments:
        arguments["lse"] = lse
    if grad_lse is not None:
        arguments["grad_lse"] = grad_lse.to(lse.dtype)
    dx = verify_backward(dy, y, log=log, **arguments)
    assert (dx[hidden] == 0).all()


def test_backward_of_log_reads_no_gradient_where_nothing_was_seen() -> None:
    """The mask plays no part in the backward: where it hid, log y is -inf."""
    x, mask = normal(Q, K), HIDDEN[0, 0]
    y, dy = softmax_ops.log_softmax(x, mask=mask), normal(Q, K, seed=1)
    dx = verify_backward(dy.masked_fill(mask, NAN), y, log=True)
    assert (dx[mask] == 0).all() and torch.equal(dx, softmax_ops.log_softmax_backward(dy, y))
    dy[~mask] = NAN  # makes its row NaN, except hidden columns
    dx = verify_backward(dy, y, log=True)
    assert (dx[mask] == 0).all() and dx[~mask].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("log", [False, True])
def test_gradient_in_16_bits_of_a_float32_result(dtype: torch.dtype, log: bool) -> None:
    x = normal(*SHAPE, dtype=dtype)
    y = (softmax_ops.log_softmax if log else softmax_ops.softmax)(x, dtype=torch.float32)
    dy = normal(*SHAPE, seed=1, dtype=torch.float32)
    dx = verify_backward(dy, y, log=log, dtype=dtype, scale=0.3)
    out = torch.empty_like(dx)
    backward = softmax_ops.log_softmax_backward if log else softmax_ops.softmax_backward
    assert backward(dy, y, scale=0.3, out=out) is out and torch.equal(out, dx)


def test_softcap_beyond_what_rounding_allows() -> None:
    """If rounding puts log y + lse beyond softcap, the slope is 0, not negative."""
    y, lse = torch.tensor([[0.75, 0.25]]), torch.tensor([4.0])
    dy = torch.tensor([[1.0, 0.0]])
    dx = softmax_ops.softmax_backward(dy, y, softcap=3.0, lse=lse)
    assert dx[0, 0] == 0 and dx[0, 1] < 0


def test_types_of_results_and_arguments() -> None:
    """The type checker of `make lint` sees what a call returns; both signatures name the same arguments."""
    x = torch.zeros(2, 3)
    assert_type(softmax_ops.softmax(x, scale=0.5), torch.Tensor)
    assert_type(softmax_ops.softmax(x, return_lse=True), tuple[torch.Tensor, torch.Tensor])
    assert_type(softmax_ops.log_softmax(x), torch.Tensor)
    assert_type(softmax_ops.softmax_(x, return_lse=True), tuple[torch.Tensor, torch.Tensor])
    for function in (softmax_ops.softmax, softmax_ops.log_softmax):
        assert {*inspect.signature(function).parameters} == {"x", "return_lse", "out", *Forward.__annotations__}
