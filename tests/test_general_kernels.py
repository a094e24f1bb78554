"""General requests through the torch interface, executed by kernels on the interpreter, compared with the CPU path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import softmax_ops
from codegen import variants
from codegen.axes import Direction, Plan
from softmax_ops.artifacts.cubin import Cubin
from tests.support import interpreted, targets
from tests.support.targets import Target

pytestmark = pytest.mark.kernels

B, H, Q = 3, 2, 5
KERNELS = [
    Target(targets.WHOLE, spec)
    for spec in variants.shipped()
    if spec.plan is Plan.WARP and spec.max_k in (64, 128)
    if spec.mask.sums or spec.direction is Direction.BACKWARD
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cubin]:
    return targets.images(set(KERNELS), "ptx", tmp_path_factory.getbasetemp().parent)[targets.WHOLE]


@pytest.fixture(autouse=True)
def gpu(images: dict[str, Cubin], monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Poses as a GPU; the patch returned undoes this, for the CPU's side of a comparison."""
    with monkeypatch.context() as patch:
        interpreted.install(patch.setattr, images)
        yield patch


def made(k: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(k)
    return torch.randn(*shape, k, generator=generator, dtype=torch.float32).to(dtype) * 3


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def arguments(k: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Arguments, by name of what they ask for."""
    row_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    lengths = torch.tensor([0, k, k // 2 + 1], dtype=torch.int32)
    slopes, sinks = torch.tensor([0.5, 0.25], dtype=row_dtype), torch.tensor([-1.0, 2.0], dtype=row_dtype)
    scales = torch.linspace(0.1, 1.5, B * H * Q, dtype=row_dtype).reshape(B, H, Q)
    mask = made(k, torch.float32, B, 1, Q) > 2
    return {
        "lengths": {"key_lengths": lengths, "return_lse": True},
        "device offset": {"scale": scales, "causal": True, "causal_offset": torch.tensor([k - Q - 2])},
        "device scale": {"scale": scales[0, 0, 0], "window": (3, 1), "causal_offset": 4, "mask": mask},
        "bias, mask": {"bias": made(k, dtype, 1, H, Q), "mask": mask, "causal": True, "scale": 0.25},
        "f32 bias": {
            "bias": made(k, torch.float32, B, 1, 1),
            "alibi_slopes": slopes,
            "sinks": sinks,
            "return_lse": True,
        },
        "softcap": {"softcap": 5.0, "window": (None, 2), "sinks": sinks, "return_lse": True},
        "bias along a row, lse": {"bias": made(k, dtype, Q)[:, :1], "return_lse": True},
        "bias": {"bias": made(k, dtype, 1, H, Q), "scale": 0.25},
        "bias along a row": {"bias": made(k, dtype, Q)[:, :1]},
        "mask": {"mask": mask, "return_lse": True},
        "device offsets": {"causal": True, "causal_offset": lengths.long() - Q, "key_lengths": lengths, "scale": 0.5},
    }


ASKED = tuple(arguments(1, torch.float32))


def posed(name: str, dtype: torch.dtype) -> tuple[int, Callable[..., Any], dict[str, Any]]:
    """K, the function and its arguments. Two dtypes of each name, in turn, use the logarithm."""
    number = ASKED.index(name)
    k = (40, 77)[number % 2]
    log = (number // 2 + DTYPES.index(dtype)) % 2
    return k, softmax_ops.log_softmax if log else softmax_ops.softmax, arguments(k, dtype)[name]


def close(found: Any, expected: Any) -> None:
    for a, b in zip(*((each if isinstance(each, tuple) else (each,)) for each in (found, expected)), strict=True):
        assert a.dtype is b.dtype and a.shape == b.shape
        tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 3e-6, torch.float64: 1e-12}[a.dtype]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(dtype: torch.dtype, name: str, gpu: pytest.MonkeyPatch) -> None:
    k, softmax, given = posed(name, dtype)
    x = made(k, dtype, B, H, Q)
    if name == "device offset":
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
    half = dtype in (torch.float16, torch.bfloat16)
    found = [softmax(x, **given), *([softmax(x, dtype=torch.float32, **given)] if half else [])]
    gpu.undo()
    close(found[0], softmax(x, **given))
    if half:
        close(found[1], softmax(x, dtype=torch.float32, **given))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_an_offset_of_tensors_that_are_copied(dtype: torch.dtype, gpu: pytest.MonkeyPatch) -> None:
    """Five dimensions that do not continue each other are more than kernels can follow; the offset stays one number,
    or one for each batch entry."""
    x = made(40, torch.float32, 4, 4, 4, 4, Q)[::2, ::2, ::2, ::2, ::2]
    one, many = torch.tensor([7], dtype=dtype), torch.tensor([7, 0, 20, 0], dtype=dtype)[::2]
    found = [softmax_ops.softmax(x, causal=True, causal_offset=offset) for offset in (one, many)]
    gpu.undo()
    close(found[0], softmax_ops.softmax(x, causal=True, causal_offset=7))
    close(found[1][:1], softmax_ops.softmax(x[:1], causal=True, causal_offset=7))
    close(found[1][1:], softmax_ops.softmax(x[1:], causal=True, causal_offset=20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logarithms_of_large_scores(dtype: torch.dtype) -> None:
    """Their accuracy is that of the differences of scores, not that of lse."""
    x = 1e6 + made(77, torch.float32, B, H, Q).round()
    found = softmax_ops.log_softmax(x.to(dtype))
    expected = torch.log_softmax(x.double(), -1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6 if dtype is torch.float32 else 1e-14, atol=0)


@pytest.mark.parametrize(
    "name", ["lengths", "device offset", "device offsets", "device scale", "bias, mask", "softcap", "bias"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(dtype: torch.dtype, name: str, gpu: pytest.MonkeyPatch) -> None:
    """Gradients of x, bias and sinks, for random gradients of the result and of lse."""
    k, softmax, given = posed(name, dtype)
    rows = made(k, dtype, B, H, Q)

    def gradients(**more: Any) -> tuple[torch.Tensor, ...]:
        x = rows.clone().requires_grad_()
        wanted = {n: given[n].clone().requires_grad_() for n in ("bias", "sinks") if n in given}
        result = softmax(x, **(given | wanted | more))
        results = result if isinstance(result, tuple) else (result,)
        seeds = [made(k, y.dtype, *y.shape[:-1])[..., : y.shape[-1]].reshape(y.shape) for y in results]
        return torch.autograd.grad(results, [x, *wanted.values()], seeds)

    half = {"dtype": torch.float32} if dtype in (torch.float16, torch.bfloat16) else {}
    found, wide = gradients(), gradients(**half)
    gpu.undo()
    for a, b in zip((*found, *wide), (*gradients(), *gradients(**half)), strict=True):
        scale = b.abs().max().item() or 1.0
        close(a / scale, b / scale)


def test_a_bias_alone_has_kernels_of_its_own() -> None:
    """If it has the scores' 16-bit type; with anything else, or with another type, the general kernels run."""
    x, bias = made(77, torch.bfloat16, B, H, Q), made(77, torch.bfloat16, 1, H, Q)
    explained = softmax_ops.explain(x, bias=bias, scale=0.5, dtype=torch.bfloat16, out=torch.empty_like(x))
    assert "_bf16_bias_warp_k128_v1_" in str(explained.variant)
    others: list[dict[str, Any]] = [
        {"bias": bias.float()},
        {"mask": torch.zeros(77, dtype=torch.bool)},
        {"causal": True},
        {"window": (3, 0), "causal_offset": 7},
        {"window": (None, 0)},
        {"softcap": 3.0},
        {"return_lse": True},
        {"log": True},
        {"dtype": torch.float32},
        {"sinks": torch.zeros(H)},
        {"key_lengths": torch.zeros(B, dtype=torch.int32)},
        {"scale": torch.ones(Q)},
    ]
    for other in others:
        assert "_general_" in str(softmax_ops.explain(x, **{"bias": bias, **other}).variant), other
    assert "_general_" in str(softmax_ops.explain(x.float(), bias=bias.float()).variant)


def test_explain_says_which_kernel_and_what_it_moves() -> None:
    """Reads cover only a window's columns, and a bias once; results have a type of their own. Also for the backward."""
    x, bias = made(77, torch.float16, B, H, Q), made(77, torch.float16, 1, H, Q)
    said = softmax_ops.explain(x, bias=bias, window=(3, 0), causal_offset=10, dtype=torch.float32, return_lse=True)
    assert said.variant is not None and said.variant.startswith("softmax_fwd_f16tof32_general_warp_k128_v1")
    assert (said.bytes_read, said.bytes_written) == (B * H * Q * 4 * 2 + bias.numel() * 2, x.numel() * 4)
    back = softmax_ops.explain(x, key_lengths=torch.zeros(B, dtype=torch.int32), dtype=torch.float32, backward=True)
    assert back.variant is not None and back.variant.startswith("softmax_bwd_f32tof16_general_warp_k128_v1")
    assert (back.bytes_read, back.bytes_written) == (2 * x.numel() * 4, x.numel() * 2)
    unknown = softmax_ops.explain(x, causal=True, causal_offset=torch.tensor([10]))
    assert unknown.bytes_read == x.numel() * 2
