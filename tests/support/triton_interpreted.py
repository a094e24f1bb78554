"""Runs the benchmark's Triton kernels in Triton's own interpreter on the CPU; the caller sets TRITON_INTERPRET=1."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import correctness, tensors, triton_softmax
from benchmarks.cells import MASKS, Cell
from benchmarks.providers import triton_rows


def check(cell: Cell) -> None:
    """Hidden columns are NaN, since they may be read as part of a vector."""
    (made,) = tensors.make(cell, "cpu", 1, seed=3)
    made.out.fill_(torch.nan)
    given = made
    if cell.causal:
        hidden = tensors.later(cell, (slice(None),) * 3, made.out.device)
        given = replace(made, inputs=tuple(x.masked_fill(hidden, torch.nan) for x in made.inputs))
    result = triton_rows.prepare(cell)(given)
    assert correctness.worst(cell, made, [result])[0] <= 16, cell


shapes = ((2, 3, 5, 33), (1, 2, 3, 64))
for held, piece in ((65536, 8192), (8, 32)):  # rows in registers, then the same rows in pieces
    triton_softmax.HELD, triton_softmax.PIECE = held, piece
    for shape in shapes:
        for mask in MASKS:
            check(Cell("", shape, "f16", mask))
        check(Cell("", shape, "f32", "causal", "bwd"))

x = torch.randn(1, 2, 5, 100, dtype=torch.float16)
y = torch.empty_like(x)
assert torch.equal(triton_softmax.copy(x, y), x)
assert torch.equal(triton_softmax.add(x, x, y), x + x)
hidden = torch.ones(5, 100, dtype=torch.bool).triu(96)
assert torch.equal(triton_softmax.copy_visible(x.masked_fill(hidden, torch.nan), y), x.tril(95))
