"""`batch_invariant=True`: a row has the same bits alone, in a batch, and wherever it lies. Kernels run on the
interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import softmax_ops
from codegen import variants
from codegen.axes import DType, Plan
from softmax_ops import layouts
from softmax_ops.artifacts.cubin import Cubin
from tests.support import interpreted, targets
from tests.support.targets import Target

pytestmark = pytest.mark.kernels

ROWS = 8  # of an odd number of columns: every offset from a 16-byte boundary
KERNELS = [
    Target(targets.WHOLE, spec)
    for spec in variants.shipped()
    if (spec.plan is Plan.WARP and spec.max_k in (384, 512) and spec.dtype is not DType.F64)
    or (spec.plan is Plan.BLOCK and spec.mask.has_epilogue and spec.dtype is DType.F32)
]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CALLS: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": lambda x, dy, mask, **how: softmax_ops.softmax(x, **how),
    "causal, mask": lambda x, dy, mask, **how: softmax_ops.softmax(x, causal=True, causal_offset=300, mask=mask, **how),
    "log_softmax": lambda x, dy, mask, **how: softmax_ops.log_softmax(x, **how),
    "float32 result": lambda x, dy, mask, **how: softmax_ops.softmax(x, dtype=torch.float32, **how),
    "softcap, bias": lambda x, dy, mask, **how: softmax_ops.softmax(x, softcap=9.0, bias=dy, **how),
    "backward": lambda x, dy, mask, **how: softmax_ops.softmax_backward(dy, x.abs(), **how),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cubin]:
    return targets.images(set(KERNELS), "ptx", tmp_path_factory.getbasetemp().parent)[targets.WHOLE]


@pytest.fixture(autouse=True)
def gpu(images: dict[str, Cubin], monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted.install(monkeypatch.setattr, images)


def batch(row: torch.Tensor, gap: int = 0, offset: int = 0) -> torch.Tensor:
    """[ROWS, 1, K]: equal rows, with so many elements before the first one and between them."""
    memory = row.new_empty(offset + ROWS * (row.numel() + gap))
    rows = memory[offset:].view(ROWS, 1, -1)[..., : row.numel()]
    return rows.copy_(row)


def made(k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, dy and a mask of one row."""
    generator = torch.Generator().manual_seed(k)
    x, dy = (4 * torch.randn(k, generator=generator)).to(dtype), torch.randn(k, generator=generator).to(dtype)
    return x, dy, torch.rand(k, generator=generator) < 0.3


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(dtype, name) for dtype in DTYPES for name in CALLS if (dtype, name) != (torch.float32, "float32 result")],
    ids=str,
)
@pytest.mark.parametrize("k", [333, 336])
def test_a_row_keeps_its_bits(k: int, dtype: torch.dtype, name: str) -> None:
    """Inputs and output one after the other, with gaps, and off the boundaries."""
    call, row = CALLS[name], made(k, dtype)
    alone = call(*(each.view(1, 1, k) for each in row), batch_invariant=True)
    assert alone.is_contiguous() and alone.isfinite().any()
    for gap, offset in ((0, 0), (1, 0), (0, 1), (8, 3)):
        inputs = [batch(each, gap, offset) for each in row]
        out = batch(torch.zeros_like(alone[0, 0]), gap, offset)
        found: list[Any] = [call(*inputs, batch_invariant=True), call(*inputs, batch_invariant=True, out=out)]
        assert found[1] is out
        for rows in found:
            assert all(torch.equal(each, alone[0]) for each in rows), (gap, offset)


def test_where_rows_lie_is_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the copies the same rows have several results, so that the test above can fail."""
    monkeypatch.setattr(layouts, "_on_boundaries", lambda tensors, others: (tensors, others))
    x, dy, mask = (batch(each) for each in made(333, torch.float32))
    rows = CALLS["softmax"](x, dy, mask, batch_invariant=True)
    assert not all(torch.equal(row, rows[0]) for row in rows)


def test_nothing_is_copied_where_rows_lie_well() -> None:
    """Whole vectors on boundaries; one row; float64, whose columns are dealt one by one."""
    for tensors in (
        (torch.zeros(4, 336), torch.zeros(4, 336)),
        (torch.zeros(1, 333), torch.zeros(1, 333)),
        (torch.zeros(4, 333), torch.zeros(4, 336)[:, :333]),
        (torch.zeros(4, 333).double(), torch.zeros(4, 333).double()),
    ):
        mask = torch.zeros(4, tensors[0].shape[-1], dtype=torch.bool)
        ready, others = layouts.supported(tensors, {"mask": mask}, batch_invariant=True)
        assert all(a is b for a, b in zip((*ready, others["mask"]), (*tensors, mask), strict=True))


def test_expanded_rows_stay_expanded() -> None:
    """A gradient or bias that repeats itself is copied once."""
    dy = torch.zeros(337)[1:].expand(4, 5, 336)
    bias = torch.zeros(5, 337)[:, 1:].expand(4, 5, 336)
    (copy, *_), others = layouts.supported(
        (dy, torch.zeros(4, 5, 336), torch.zeros(4, 5, 336)), {"bias": bias}, batch_invariant=True
    )
    assert copy.stride() == (0, 0, 1) and copy.untyped_storage().nbytes() == 336 * 4
    assert others["bias"].stride() == (0, 336, 1) and others["bias"].untyped_storage().nbytes() == 5 * 336 * 4
