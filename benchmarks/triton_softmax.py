"""A row softmax in Triton as a good engineer would write it: scale, mask, bias and causality fused.

Rows of up to 65536 columns are held in registers, several short ones per program; longer rows are read twice, with an
online maximum and sum. A row is read up to the end of the vector that holds its last visible score: loads that could
end anywhere would be of single elements. Also contains the copies used as ceilings. Offsets are 64-bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HELD = 65536
PIECE = 8192
PROGRAM = 2048
"""Elements per program when rows are short."""

VECTOR_BYTES = 16


def forward(x: Tensor, y: Tensor, *, scale: float, mask: Tensor | None, bias: Tensor | None, causal: bool) -> Tensor:
    """softmax(scale * x + bias) of contiguous [B, H, Q, K] into y; 0 where hidden (mask exactly 1, or causal)."""
    heads, queries, k = x.shape[1:]
    rows = x.numel() // k
    hides = _strides(mask, x)
    adds = _strides(bias, x)
    mask = x if mask is None else mask.view(torch.uint8) if mask.dtype is torch.bool else mask
    bias = x if bias is None else bias
    offset = k - queries if causal else k
    shape, flags = (rows, k, heads, queries, offset), (any(hides), any(adds), causal, _vector(x))
    if k > HELD:
        _forward_long[(rows,)](x, mask, bias, y, scale, *shape, *hides, *adds, *flags, PIECE, num_warps=16)
        return y
    block, per_program, warps = _tile(k)
    grid = (triton.cdiv(rows, per_program),)
    _forward[grid](x, mask, bias, y, scale, *shape, *hides, *adds, *flags, per_program, block, num_warps=warps)
    return y


def backward(dy: Tensor, y: Tensor, dx: Tensor, *, scale: float, causal: bool) -> Tensor:
    """scale * y * (dy - sum_j y_j dy_j) of contiguous [B, H, Q, K] into dx, over what a causal mask shows."""
    queries, k = y.shape[2:]
    rows = y.numel() // k
    offset = k - queries if causal else k
    flags = causal, _vector(y)
    if k > HELD:
        _backward_long[(rows,)](dy, y, dx, scale, k, queries, offset, *flags, PIECE, num_warps=16)
        return dx
    block, per_program, warps = _tile(k)
    grid = (triton.cdiv(rows, per_program),)
    _backward[grid](dy, y, dx, scale, rows, k, queries, offset, *flags, per_program, block, num_warps=warps)
    return dx


def copy(x: Tensor, y: Tensor) -> Tensor:
    """y = x, in 32-bit words if they fit."""
    words = torch.int32 if x.numel() * x.element_size() % 4 == 0 else torch.int8
    source, target = x.view(-1).view(words), y.view(-1).view(words)
    _copy[(triton.cdiv(source.numel(), PROGRAM),)](source, target, source.numel(), PROGRAM, num_warps=4)
    return y


def copy_visible(x: Tensor, y: Tensor) -> Tensor:
    """y = x where a bottom-right causal mask shows it, reading whole vectors, and 0 elsewhere."""
    queries, k = x.shape[2:]
    rows = x.numel() // k
    grid = (rows, triton.cdiv(k, PROGRAM))
    _copy_visible[grid](x, y, k, queries, k - queries, _vector(x), PROGRAM, num_warps=4)
    return y


def add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """c = a + b."""
    count = a.numel()
    _add[(triton.cdiv(count, PROGRAM),)](a, b, c, count, PROGRAM, num_warps=4)
    return c


def _vector(x: Tensor) -> int:
    """Elements per load."""
    return VECTOR_BYTES // x.element_size()


def _strides(broadcast: Tensor | None, x: Tensor) -> tuple[int, int, int, int]:
    """Strides in elements of batch, head, query and column; all 0 without a tensor."""
    if broadcast is None:
        return 0, 0, 0, 0
    b, h, q, k = (0 if n == 1 else step for n, step in zip(broadcast.shape, broadcast.stride(), strict=True))
    return b, h, q, k


def _tile(k: int) -> tuple[int, int, int]:
    """(columns, rows, warps) of a program: 16 to 32 elements per lane; more only where 32 warps are not enough."""
    block = triton.next_power_of_2(k)
    rows = max(PROGRAM // block, 1)
    return block, rows, min(max(rows * block // 1024, 4), 32)


@triton.jit
def _causal(valid, row, column, queries, offset, CAUSAL: tl.constexpr, VEC: tl.constexpr):
    """Which valid columns to read, in whole vectors, and which of them are visible."""
    read = valid
    visible = valid
    if CAUSAL:
        last = row % queries + offset
        read = valid & (column // VEC <= last // VEC)
        visible = valid & (column <= last)
    return read, visible


@triton.jit
def _loaded(pointers, read, visible):
    return tl.where(visible, tl.load(pointers, mask=read, other=0), 0.0)


@triton.jit
def _scores(
    x, mask, bias, scale, row, column, read, visible, k, heads, queries,
    mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k,
    MASKED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """log2(e) * z of the visible columns, -inf elsewhere; [rows, columns] or [columns]."""
    query = row % queries
    head = (row // queries) % heads
    batch = row // (queries * heads)
    z = tl.load(x + row * k + column, mask=read, other=0).to(tl.float32) * (scale * 1.4426950408889634)
    if BIASED:
        place = batch * bias_b + head * bias_h + query * bias_q + column * bias_k
        z += tl.load(bias + place, mask=read, other=0).to(tl.float32) * 1.4426950408889634
    if MASKED:
        place = batch * mask_b + head * mask_h + query * mask_q + column * mask_k
        z = tl.where(tl.load(mask + place, mask=read, other=1) == 1, -float("inf"), z)
    return tl.where(visible, z, -float("inf"))


@triton.jit
def _forward(
    x, mask, bias, y, scale, rows, k, heads, queries, offset,
    mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k,
    MASKED: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr, VEC: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    valid = (row < rows) & (column < k)
    read, visible = _causal(valid, row, column, queries, offset, CAUSAL, VEC)
    z = _scores(
        x, mask, bias, scale, row, column, read, visible, k, heads, queries,
        mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k, MASKED, BIASED,
    )  # fmt: skip
    m = tl.max(z, axis=1)[:, None]
    e = tl.exp2(z - tl.where(m == -float("inf"), 0.0, m))
    s = tl.sum(e, axis=1)[:, None]
    result = e / tl.where(s == 0.0, 1.0, s)
    tl.store(y + row * k + column, result.to(y.dtype.element_ty), mask=valid)


@triton.jit
def _forward_long(
    x, mask, bias, y, scale, rows, k, heads, queries, offset,
    mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k,
    MASKED: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr, VEC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, k, BLOCK):
        column = start + tl.arange(0, BLOCK)
        read, visible = _causal(column < k, row, column, queries, offset, CAUSAL, VEC)
        z = _scores(
            x, mask, bias, scale, row, column, read, visible, k, heads, queries,
            mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k, MASKED, BIASED,
        )  # fmt: skip
        higher = tl.maximum(top, z)
        known = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp2(top - known) + tl.exp2(z - known)
        top = higher
    m = tl.max(top, axis=0)
    m = tl.where(m == -float("inf"), 0.0, m)
    s = tl.sum(total * tl.exp2(top - m), axis=0)
    s = tl.where(s == 0.0, 1.0, s)
    for start in range(0, k, BLOCK):
        column = start + tl.arange(0, BLOCK)
        read, visible = _causal(column < k, row, column, queries, offset, CAUSAL, VEC)
        z = _scores(
            x, mask, bias, scale, row, column, read, visible, k, heads, queries,
            mask_b, mask_h, mask_q, mask_k, bias_b, bias_h, bias_q, bias_k, MASKED, BIASED,
        )  # fmt: skip
        tl.store(y + row * k + column, (tl.exp2(z - m) / s).to(y.dtype.element_ty), mask=column < k)


@triton.jit
def _backward(
    dy, y, dx, scale, rows, k, queries, offset,
    CAUSAL: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    valid = (row < rows) & (column < k)
    read, visible = _causal(valid, row, column, queries, offset, CAUSAL, VEC)
    place = row * k + column
    gradient = _loaded(dy + place, read, visible).to(tl.float32)
    weight = _loaded(y + place, read, visible).to(tl.float32)
    dot = tl.sum(gradient * weight, axis=1)[:, None]
    tl.store(dx + place, (scale * weight * (gradient - dot)).to(dx.dtype.element_ty), mask=valid)


@triton.jit
def _backward_long(dy, y, dx, scale, k, queries, offset, CAUSAL: tl.constexpr, VEC: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, k, BLOCK):
        column = start + tl.arange(0, BLOCK)
        read, visible = _causal(column < k, row, column, queries, offset, CAUSAL, VEC)
        gradient = _loaded(dy + row * k + column, read, visible).to(tl.float32)
        total += gradient * _loaded(y + row * k + column, read, visible).to(tl.float32)
    dot = tl.sum(total, axis=0)
    for start in range(0, k, BLOCK):
        column = start + tl.arange(0, BLOCK)
        read, visible = _causal(column < k, row, column, queries, offset, CAUSAL, VEC)
        gradient = _loaded(dy + row * k + column, read, visible).to(tl.float32)
        weight = _loaded(y + row * k + column, read, visible).to(tl.float32)
        tl.store(dx + row * k + column, (scale * weight * (gradient - dot)).to(dx.dtype.element_ty), mask=column < k)


@triton.jit
def _copy(x, y, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + place, tl.load(x + place, mask=place < count), mask=place < count)


@triton.jit
def _copy_visible(x, y, k, queries, offset, VEC: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    read, visible = _causal(column < k, row, column, queries, offset, True, VEC)
    tl.store(y + row * k + column, _loaded(x + row * k + column, read, visible), mask=column < k)


@triton.jit
def _add(a, b, c, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    tl.store(c + place, tl.load(a + place, mask=inside) + tl.load(b + place, mask=inside), mask=inside)
